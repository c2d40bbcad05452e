"""The passage KV cache: keys and values from a store, or computed on demand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imprag.corpus import Passage
from imprag.corpus.passage import text_of
from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import KINDS, Codec, Parts
from imprag.kv_cache.stores import Store
from imprag.model.key_rotation import passage_positions
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
        hits, misses: number of passages that were found in the store, and that were encoded.
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
            read = [one for row in passages for one in row]
            self.misses += len(read)
            tokens = iter(passage_tokens(self.tokenizer, config, read))
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
            return CodedPassageKV.of(joined, StateDecoder(self.model, codec, dtype), lengths)
        decoder = StateDecoder(self.model, codec, codec.held_dtype(dtype))
        blocks = [decoder.block(*one) for one in zip(joined, lengths, strict=True)]
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


class StateDecoder:
    """Turns parts into the states that prompts attend to.

    Args:
        model: the model that reads.
        codec: the codec of the parts.
        dtype: the dtype to decode to.

    Attributes:
        first_layer: b, the number of the first layer.
    """

    def __init__(self, model: ImpRAGModel, codec: Codec, dtype: torch.dtype) -> None:
        self.first_layer = model.config.b
        self._codec = codec
        self._dtype = dtype
        self._rotation = model.key_rotation if codec.unrotated_keys else None

    def block(self, parts: Parts, lengths: Sequence[int]) -> Tensor:
        """The states of a prompt's passages, (2, layers, key heads, S, d_h).

        Args:
            parts: of all layers.
            lengths: number of tokens of each passage.
        """
        block = self._codec.decode(parts, self._dtype)
        if self._rotation is not None:
            block[0] = self._rotation.rotate(block[0], passage_positions(lengths))
        return block

    def layer(self, parts: Parts, lengths: Sequence[int], kind: str, layer: int) -> Tensor:
        """The keys or values of one layer alone, (key heads, S, d_h).

        Args:
            parts, lengths: as for `block`.
            kind: one of ``KINDS``.
            layer: its place among b..t.
        """
        states = self._codec.decode_layer(parts, kind, layer, self._dtype)
        if self._rotation is None or kind != "keys":
            return states
        positions = passage_positions(lengths)
        return self._rotation.rotate(states[None], positions, slice(layer, layer + 1))[0]


class CodedPassageKV(PassageKV):
    """Passage KV that is decoded one layer at a time, when it is attended to."""

    @classmethod
    def of(
        cls, parts: Sequence[Parts], decoder: StateDecoder, lengths: Sequence[Sequence[int]]
    ) -> "CodedPassageKV":
        """Wrap coded parts.

        Args:
            parts: the coded states of every prompt.
            decoder: decodes them.
            lengths: as in `PassageKV`.
        """
        keys, values = (_Decoded(parts, decoder, lengths, kind) for kind in KINDS)
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
        decoder: StateDecoder,
        lengths: Sequence[Sequence[int]],
        kind: str,
    ) -> None:
        self.parts = parts
        self.decoder = decoder
        self.lengths = lengths
        self.kind = kind

    def __getitem__(self, layer: int) -> Tensor:
        place = layer - self.decoder.first_layer
        decoded = [
            self.decoder.layer(parts, lengths, self.kind, place)
            for parts, lengths in zip(self.parts, self.lengths, strict=True)
        ]
        longest = max(states.shape[1] for states in decoded)
        return torch.stack([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in decoded])

    def __iter__(self) -> Iterator[int]:
        first = self.decoder.first_layer
        return iter(range(first, first + len(self)))

    def __len__(self) -> int:
        return next(iter(self.parts[0].values())).shape[1]


def _nothing_of(parts: Parts, *others: Parts) -> Parts:
    return {name: part[:, :, :, :0] for name, part in parts.items()}


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
        kv_keep_ratio: the share of its tokens that each passage keeps; see `check_kv_keep_ratio`.
    """
    return _encoded(model, tokenizer, passages, codec, codec.encode, kv_keep_ratio)


def states_to_code(
    model: ImpRAGModel, tokenizer: Any, passages: Sequence[Passage], codec: Codec
) -> list[Tensor]:
    """The states of each passage as a codec takes them, (2, layers, key heads, tokens, d_h).

    Args:
        model, tokenizer, passages: as for `encode_parts`.
        codec: says whether its keys come from before the rotary embedding.
    """
    return _encoded(model, tokenizer, passages, codec, Tensor.cpu)


_Coded = TypeVar("_Coded")


@torch.no_grad()
def _encoded(
    model: ImpRAGModel,
    tokenizer: Any,
    passages: Sequence[Passage],
    codec: Codec,
    code: Callable[[Tensor], _Coded],
    kv_keep_ratio: float = 1.0,
) -> list[_Coded]:
    rows = passage_tokens(tokenizer, model.config, passages)
    coded: dict[int, _Coded] = {}
    for batch, states in model.encode_batches(rows, with_attention=kv_keep_ratio < 1):
        for i, block in zip(batch, states.blocks(kv_keep_ratio), strict=True):
            coded[i] = code(block_to_code(model, codec, block))
    return [coded[i] for i in range(len(rows))]


def block_to_code(model: ImpRAGModel, codec: Codec, block: Tensor) -> Tensor:
    """The states of a passage as a codec takes them.

    Args:
        model: the model of the states.
        codec: says whether its keys come from before the rotary embedding.
        block: states as prompts attend to them, (2, layers, key heads, tokens, d_h).
    """
    if not codec.unrotated_keys:
        return block
    keys = model.key_rotation.undo(block[0], torch.arange(block.shape[3]))
    return torch.stack([keys, block[1].float()])


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
