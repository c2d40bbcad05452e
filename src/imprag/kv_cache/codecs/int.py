"""Integers of 8 bits with one scale for each head vector, its largest magnitude."""

import torch
from torch import Tensor

from imprag.kv_cache.codecs.base import Codec, Parts

_LEVELS = 127  # the largest code


class Int8(Codec):
    """Integers of 8 bits: half the size of bf16; ``codes``, and ``scales``, (…, 1) float16."""

    @property
    def bytes_per_vector(self) -> int:
        return self.head_dim + 2

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes, (…, d_h) int8, and scales."""
        block = block.float()
        largest = block.abs().amax(dim=-1, keepdim=True)
        # Rounded to what is stored, so that encoding and decoding use the same number.
        scales = (largest / _LEVELS).clamp(2.0**-24, 65504).half()
        codes = (block / scales.float()).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
        return {"codes": codes, "scales": scales}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Codes times scales."""
        return parts["codes"].to(dtype) * parts["scales"].to(dtype)
