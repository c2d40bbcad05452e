"""Integers of 8 or 4 bits with one scale for each head vector, its largest magnitude."""

from typing import ClassVar

import torch
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import Codec, Parts


class ScaledIntegers(Codec):
    """Scaled integers: ``codes``, and ``scales``, (…, 1) float16.

    Attributes:
        levels: the largest code.
    """

    levels: ClassVar[int]

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes, (…, d_h) int8, and scales."""
        block = block.float()
        largest = block.abs().amax(dim=-1, keepdim=True)
        # Rounded to what is stored, so that encoding and decoding use the same number.
        scales = (largest / self.levels).clamp(2.0**-24, 65504).half()
        codes = (block / scales.float()).round().clamp(-self.levels, self.levels).to(torch.int8)
        return {"codes": codes, "scales": scales}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Codes times scales."""
        return parts["codes"].to(dtype) * parts["scales"].to(dtype)


class Int8(ScaledIntegers):
    """Integers of 8 bits: half the size of bf16."""

    levels = 127

    @property
    def bytes_per_vector(self) -> int:
        return self.head_dim + 2


class Int4(ScaledIntegers):
    """Integers of 4 bits, two in a byte: a quarter of the size of bf16."""

    levels = 7

    def __init__(self, name: str, head_dim: int) -> None:
        if head_dim % 2:
            raise ImpRAGError(f"int4 needs an even head size, but this model's is {head_dim}")
        super().__init__(name, head_dim)

    @property
    def bytes_per_vector(self) -> int:
        return self.head_dim // 2 + 2

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes, (…, d_h / 2) uint8, and scales."""
        parts = super().encode(block)
        codes = (parts["codes"] + 8).to(torch.uint8)
        return {**parts, "codes": codes[..., ::2] << 4 | codes[..., 1::2]}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Codes times scales."""
        codes = parts["codes"]
        pairs = torch.stack([codes >> 4, codes & 15], dim=-1)
        return super().decode({**parts, "codes": pairs.flatten(-2).to(torch.int8) - 8}, dtype)
