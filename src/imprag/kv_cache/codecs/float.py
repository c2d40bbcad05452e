"""States as they are, in a floating dtype."""

from typing import ClassVar

import torch
from torch import Tensor

from imprag.kv_cache.codecs.base import Codec, Parts


class Floats(Codec):
    """States in one floating dtype; a part ``states``.

    Attributes:
        dtype: that they are stored in.
    """

    dtype: ClassVar[torch.dtype]

    @property
    def bytes_per_vector(self) -> int:
        return self.head_dim * self.dtype.itemsize

    def held_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype.itemsize < dtype.itemsize else dtype

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        return {"states": block.to(self.dtype)}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts["states"].to(dtype)


class BFloat16(Floats):
    """States in bfloat16, as models compute them on most devices."""

    dtype = torch.bfloat16


class Float32(Floats):
    """States in float32: nothing is lost, and twice the size."""

    dtype = torch.float32
