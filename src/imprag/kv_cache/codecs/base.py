"""How the keys and values of passages are coded: the contract of codecs and their registry.

A *block* holds the states of one or more passages, (2, layers, key heads, tokens, d_h): keys, then
values. A codec turns a block into *parts*, tensors (2 or 1, layers, key heads, tokens, width) of a
fixed width each, and back. Head vectors are coded one by one, so parts of passages can be put side
by side before they are decoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.io.registry import Registry

Parts = Mapping[str, Tensor]
"""The coded states of passages: by name, (2, layers, key heads, tokens, width) of keys and values,
or (1, layers, key heads, tokens, width) of one of them."""

KINDS = ("keys", "values")

#: Names that no part can have: what else a shard of a KV cache holds.
RESERVED_PARTS = frozenset({"texts", "starts"})


class Codec(ABC):
    """Codes head vectors.

    A codec that learns from states defines `fit`, `state` and `load_state`, too.

    Attributes:
        unrotated_keys: whether it codes keys from before the rotary embedding, whose channels are
            more alike from token to token. Its blocks, samples and decoded keys are then such keys,
            and the KV cache rotates them when they are read.

    Args:
        name: the name that it is registered under.
        head_dim: d_h.

    Raises:
        ImpRAGError: the codec cannot take the head size.
    """

    unrotated_keys: ClassVar[bool] = False

    def __init__(self, name: str, head_dim: int) -> None:
        self.name = name
        self.head_dim = head_dim

    @property
    @abstractmethod
    def bytes_per_vector(self) -> int:
        """The size of a coded head vector, in the mean over keys and values; known before `fit`."""

    @abstractmethod
    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Parts of a block, (2, layers, key heads, tokens, d_h) of any floating dtype."""

    @abstractmethod
    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """The block behind the parts.

        The parts may be those of keys or values alone, or of a single layer, unless the codec
        defines `decode_layer`, too.
        """

    def held_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which a prompt's states are held: the model's, or one that loses nothing.

        Args:
            dtype: the model's.
        """
        return dtype

    def decode_layer(self, parts: Parts, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """The keys or values of one layer alone, (key heads, tokens, d_h).

        Args:
            parts: of all layers.
            kind: one of ``KINDS``.
            layer: its place among them.
            dtype: to decode to.
        """
        place = KINDS.index(kind)
        kinds, layers = slice(place, place + 1), slice(layer, layer + 1)
        return self.decode({name: part[kinds, layers] for name, part in parts.items()}, dtype)[0, 0]

    def weigh(self, moments: Tensor) -> None:  # noqa: B027 (most weigh nothing)
        """Learn which errors of keys cost most; called before `fit`. By default all cost the same.

        Args:
            moments: M of each layer and key head, (layers, key heads, d_h, d_h) float32: an error e
                of a key from before the rotary embedding changes attention logits by e·M·e in the
                mean square.
        """

    def fit(self, sample: Tensor, seed: int = 0) -> None:  # noqa: B027 (most learn nothing)
        """Learn from states; by default there is nothing to learn.

        Args:
            sample: a block, (2, layers, key heads, tokens, d_h), of some ten thousand tokens.
            seed: of all that is random.

        Raises:
            ImpRAGError: the sample is too small.
        """

    def state(self) -> dict[str, Tensor]:
        """What `fit` has learned; `load_state` takes it back. Nothing by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another codec of this name and head size has learned.

        Raises:
            KeyError, TypeError, ValueError: it is no such state.
        """
        if state:
            raise ValueError(f"the codec '{self.name}' has no state")


CODECS: Registry[type[Codec]] = Registry(
    "codec",
    "imprag.codecs",
    {
        "bf16": "imprag.kv_cache.codecs.float:BFloat16",
        "fp32": "imprag.kv_cache.codecs.float:Float32",
        "int8": "imprag.kv_cache.codecs.int:Int8",
        "pq": "imprag.kv_cache.codecs.pq:ProductQuantizer",
    },
)
"""Codecs by name."""

#: Decorator: makes a codec known under a name.
register_codec = CODECS.register


def untrained_codec(name: str, head_dim: int) -> Codec:
    """A codec that has not learned anything yet, which only some have to: see `needs_fit`.

    Args:
        name: one of ``CODECS.names()``.
        head_dim: d_h.

    Raises:
        ImpRAGError: there is no such codec, or it cannot take the head size.
    """
    return CODECS.find(name)(name, head_dim)


def needs_fit(codec: Codec) -> bool:
    """Whether a codec learns from states before it can code any."""
    return type(codec).fit is not Codec.fit


def weighs(codec: Codec) -> bool:
    """Whether a codec wants to know which errors of keys cost most."""
    return type(codec).weigh is not Codec.weigh


def check_kv_keep_ratio(codec: Codec, kv_keep_ratio: float) -> None:
    """Refuse a share of a passage's tokens that cannot be kept.

    Raises:
        ImpRAGError: it is no share, or the codec needs all tokens, since it codes keys from before
            the rotary embedding, which is applied to the positions 0, 1, ... when they are read.
    """
    if not 0 < kv_keep_ratio <= 1:
        raise ImpRAGError(f"kv_keep_ratio is a share above 0 and at most 1, not {kv_keep_ratio}")
    if codec.unrotated_keys and kv_keep_ratio < 1:
        raise ImpRAGError(
            f"the codec {codec.name} needs the position of every token, so it takes no "
            f"kv_keep_ratio below 1: leave {kv_keep_ratio} out, or choose bf16 or int8"
        )


def check_parts(parts: Parts) -> None:
    """Refuse parts that a KV cache cannot store.

    Raises:
        ImpRAGError: a part is named like something else in the files.
    """
    if taken := RESERVED_PARTS & parts.keys():
        raise ImpRAGError(
            f"the codec names a part '{min(taken)}', which KV caches use for something else; give "
            "the part another name"
        )
