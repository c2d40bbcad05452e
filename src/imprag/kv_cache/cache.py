"""The passage KV cache: keys and values from a store, or computed on demand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imprag.corpus import Passage
from imprag.corpus.passage import text_of
from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import KINDS, Codec, Parts
from imprag.kv_cache.stores import Store
from imprag.model.kv import PassageKV
from imprag.model.model import ImpRAGModel
from imprag.model.text import passage_tokens


class PassageKVCache:
    """Keys and values of passages at layers b..t, by passage.

    Without a store they are computed on demand, in the model's passage encoding. With a store,
    passages must be encoded independently of each other; those that it lacks are computed, counted
    in ``misses`` and offered to it.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        store: holds coded states.
        keep_coded: keep the passage KV of prompts in coded form and decode one layer at a time, for
            every new token: slower, but as small as the codec makes it.

    Raises:
        ImpRAGError: there is a store, but the model's passages are not encoded independently.

    Attributes:
        hits, misses: number of passages that were found in the store, and that were not.
    """

    def __init__(
        self,
        model: ImpRAGModel,
        tokenizer: Any,
        store: Store | None = None,
        *,
        keep_coded: bool = False,
    ) -> None:
        if store is not None:
            check_independent(model)
        self.model = model
        self.tokenizer = tokenizer
        self.store = store
        self.keep_coded = keep_coded
        self.hits = 0
        self.misses = 0

    @torch.no_grad()
    def kv(self, passages: Sequence[Sequence[Passage]]) -> PassageKV:
        """The passage KV of every prompt.

        Args:
            passages: the passages of each prompt; any number.
        """
        config = self.model.config
        if self.store is None or not any(passages):
            tokens = iter(
                passage_tokens(self.tokenizer, config, [one for row in passages for one in row])
            )
            return self.model.encode_passages([[next(tokens) for _ in row] for row in passages])
        found = self._parts([one for row in passages for one in row])
        device = self.model.device
        joined: list[Parts] = []
        lengths: list[list[int]] = []
        for row in passages:
            # A prompt without passages gets empty parts of the right shape.
            parts = [found[text_of(one)] for one in row] or [_nothing_of(*found.values())]
            lengths.append([next(iter(part.values())).shape[3] for part in parts])
            joined.append(
                {
                    name: torch.cat([part[name].to(device) for part in parts], dim=3)
                    for name in parts[0]
                }
            )
        codec, dtype = self.store.codec, self.model.lm.dtype
        if self.keep_coded:
            return CodedPassageKV.of(joined, codec, dtype, config.b, lengths)
        blocks = [codec.decode(parts, codec.held_dtype(dtype)) for parts in joined]
        return PassageKV.from_blocks(blocks, config.b, lengths)

    def _parts(self, passages: Sequence[Passage]) -> dict[tuple[str, str], Parts]:
        """Coded states by the passages' text."""
        assert self.store is not None
        distinct = {text_of(passage): passage for passage in passages}
        stored = self.store.get(list(distinct.values()))
        found = {key: parts for key, parts in zip(distinct, stored, strict=True) if parts}
        missing = {key: passage for key, passage in distinct.items() if key not in found}
        self.hits += len(found)
        self.misses += len(missing)
        if missing:
            encoded = encode_parts(
                self.model,
                self.tokenizer,
                list(missing.values()),
                self.store.codec,
                self.store.kv_keep_ratio,
            )
            for (key, passage), parts in zip(missing.items(), encoded, strict=True):
                self.store.put(passage, parts)
                found[key] = parts
        return found


class CodedPassageKV(PassageKV):
    """Passage KV that is decoded one layer at a time, when it is attended to."""

    @classmethod
    def of(
        cls,
        parts: Sequence[Parts],
        codec: Codec,
        dtype: torch.dtype,
        first_layer: int,
        lengths: Sequence[Sequence[int]],
    ) -> "CodedPassageKV":
        """Wrap coded parts.

        Args:
            parts: the coded states of every prompt.
            codec: the codec of the parts.
            dtype: the dtype to decode to.
            first_layer: the number of the first layer.
            lengths: as in `PassageKV`.
        """
        keys, values = (_Decoded(parts, codec, dtype, first_layer, kind) for kind in KINDS)
        return cls(keys, values, lengths)

    @property
    def nbytes(self) -> int:
        """The size of the codes in bytes."""
        assert isinstance(self.keys, _Decoded)
        return sum(part.nbytes for parts in self.keys.parts for part in parts.values())


class _Decoded(Mapping[int, Tensor]):
    """Keys or values by layer, decoded at every access: (batch, key heads, S, d_h)."""

    def __init__(
        self,
        parts: Sequence[Parts],
        codec: Codec,
        dtype: torch.dtype,
        first_layer: int,
        kind: str,
    ) -> None:
        self.parts = parts
        self.codec = codec
        self.dtype = dtype
        self.first_layer = first_layer
        self.kind = kind

    def __getitem__(self, layer: int) -> Tensor:
        number = layer - self.first_layer
        decoded = [
            self.codec.decode_layer(parts, self.kind, number, self.dtype) for parts in self.parts
        ]
        longest = max(states.shape[1] for states in decoded)
        return torch.stack([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in decoded])

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first_layer, self.first_layer + len(self)))

    def __len__(self) -> int:
        return next(iter(self.parts[0].values())).shape[1]


def _nothing_of(parts: Parts, *others: Parts) -> Parts:
    return {name: part[:, :, :, :0] for name, part in parts.items()}


@torch.no_grad()
def encode_parts(
    model: ImpRAGModel,
    tokenizer: Any,
    passages: Sequence[Passage],
    codec: Codec,
    kv_keep_ratio: float = 1.0,
) -> list[Parts]:
    """Run each passage through layers 0..t independently and code its states.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        passages: any number of passages.
        codec: codes the states.
        kv_keep_ratio: the share of its tokens that each passage keeps.
    """
    rows = passage_tokens(tokenizer, model.config, passages)
    coded: list[Parts] = [{}] * len(rows)
    for batch, states in model.encode_batches(rows, with_attention=kv_keep_ratio < 1):
        for i, block in zip(batch, states.blocks(kv_keep_ratio), strict=True):
            coded[i] = codec.encode(block)
    return coded


def check_independent(model: ImpRAGModel) -> None:
    """Refuse a model whose passages depend on each other.

    Raises:
        ImpRAGError: the passage encoding is ``segmented`` or ``full``.
    """
    encoding = model.config.passage_encoding
    if encoding != "independent":
        raise ImpRAGError(
            f"this model encodes passages {encoding}: the states of a passage depend on the "
            "others, so none can be stored; set passage_encoding to independent"
        )
