"""How keys and values of passages are stored: as they are, as small integers, or quantized.

A *block* holds the states of one or more passages, (2, layers, key heads, tokens, d_h): keys, then
values. A codec turns a block into *parts*, tensors (2 or 1, layers, key heads, tokens, width) of a
fixed width each, and back. Head vectors are coded one by one, so parts of passages can be put side
by side before they are decoded.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from imprag.errors import ImpRAGError

Parts = Mapping[str, Tensor]
"""The coded states of passages: by name, (2, layers, key heads, tokens, width) of keys and values,
or (1, layers, key heads, tokens, width) of one of them."""

KINDS = ("keys", "values")

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_LEVELS = {"int8": 127, "int4": 7}  # the largest code

CODECS = ("bf16", "fp32", "int8", "int4", "pq")


class Codec(Protocol):
    """Codes head vectors.

    Attributes:
        name: that the codec is chosen by.
        bytes_per_vector: what a coded head vector takes, in the mean over keys and values.
    """

    @property
    def name(self) -> str: ...

    @property
    def bytes_per_vector(self) -> int: ...

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Parts of a block, (2, layers, key heads, tokens, d_h) of any floating dtype."""

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """The block behind the parts."""

    def decode_layer(self, parts: Parts, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """The keys or values of one layer alone, (key heads, tokens, d_h).

        Args:
            parts: of all layers.
            kind: one of ``KINDS``.
            layer: its place among them.
            dtype: to decode to.
        """


class Floats:
    """States as they are, in a floating dtype.

    Args:
        name: ``bf16`` or ``fp32``.
        head_dim: d_h.
    """

    def __init__(self, name: str, head_dim: int) -> None:
        self.name = name
        self._dtype = _DTYPES[name]
        self.bytes_per_vector = head_dim * self._dtype.itemsize

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """One part, the states."""
        return {"states": block.to(self._dtype)}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """The states."""
        return parts["states"].to(dtype)

    def decode_layer(self, parts: Parts, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """The states of one layer."""
        return self.decode(_one_layer(parts, kind, layer), dtype)[0, 0]


class ScaledIntegers:
    """Integers of 8 or 4 bits with one scale for each head vector, its largest magnitude.

    Args:
        name: ``int8`` or ``int4``; of the latter two share a byte.
        head_dim: d_h.

    Raises:
        ImpRAGError: 4 bits and an odd d_h.
    """

    def __init__(self, name: str, head_dim: int) -> None:
        if name == "int4" and head_dim % 2:
            raise ImpRAGError(f"int4 needs an even head size, but this model's is {head_dim}")
        self.name = name
        self._levels = _LEVELS[name]
        self.bytes_per_vector = (head_dim if name == "int8" else head_dim // 2) + 2

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes, (…, d_h) int8 or (…, d_h / 2) uint8, and scales, (…, 1) float16."""
        block = block.float()
        largest = block.abs().amax(dim=-1, keepdim=True)
        # Rounded to what is stored, so that encoding and decoding use the same number.
        scales = (largest / self._levels).clamp(2.0**-24, 65504).half()
        codes = (block / scales.float()).round().clamp(-self._levels, self._levels).to(torch.int8)
        if self.name == "int4":
            codes = (codes + 8).to(torch.uint8)
            codes = codes[..., ::2] << 4 | codes[..., 1::2]
        return {"codes": codes, "scales": scales}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Codes times scales."""
        codes = parts["codes"]
        if self.name == "int4":
            pairs = torch.stack([codes >> 4, codes & 15], dim=-1)
            codes = pairs.flatten(-2).to(torch.int8) - 8
        return codes.to(dtype) * parts["scales"].to(dtype)

    def decode_layer(self, parts: Parts, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """The states of one layer."""
        return self.decode(_one_layer(parts, kind, layer), dtype)[0, 0]


def _one_layer(parts: Parts, kind: str, layer: int) -> Parts:
    place = KINDS.index(kind)
    kinds, layers = slice(place, place + 1), slice(layer, layer + 1)
    return {name: part[kinds, layers] for name, part in parts.items()}


def untrained_codec(name: str, head_dim: int) -> Codec:
    """A codec that needs no sample: all but ``pq``.

    Args:
        name: one of ``CODECS``.
        head_dim: d_h.

    Raises:
        ImpRAGError: no such codec, or it cannot take the head size.
    """
    if name in _DTYPES:
        return Floats(name, head_dim)
    if name in _LEVELS:
        return ScaledIntegers(name, head_dim)
    raise ImpRAGError(f"the codec {name!r} is unknown; codecs are {', '.join(CODECS)}")
