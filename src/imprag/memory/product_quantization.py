"""Product quantization of head vectors (paper, appendix C)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.memory.codecs import Parts

CENTROIDS = 256  # one byte for each slice of a vector
ROUNDS = 10  # of k-means
MOST_TOKENS = 4096  # that it learns from


class ProductQuantizer:
    """Head vectors cut into slices, each slice the number of its nearest centroid.

    Keys and values of every layer and head have centroids of their own. There is no learned
    rotation as in the paper's OPQ: what is large in one dimension of a key is so in all tokens, and
    slices of the vectors as they are keep that apart (docs/decisions.md).

    Args:
        centroids: (2, layers, key heads, slices, 256, d_h / slices) float32.
    """

    name = "pq"

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids
        self.bytes_per_vector = centroids.shape[3]

    @classmethod
    def train(cls, sample: Tensor, *, seed: int = 0) -> "ProductQuantizer":
        """Learn centroids (k-means of FAISS).

        Args:
            sample: a block, (2, layers, key heads, tokens, d_h); some ten thousand tokens.
            seed: of the first centroids.

        Raises:
            ImpRAGError: d_h is no multiple of 4, or the sample is too small.
        """
        import faiss

        *which, tokens, head_dim = sample.shape
        slices = cls.slices(head_dim)
        if tokens < CENTROIDS:
            raise ImpRAGError(
                f"product quantization learns {CENTROIDS} centroids, but the sample has only "
                f"{tokens} tokens; choose int8 or int4 for so small a corpus"
            )
        centroids = []
        for vectors in sample.float().reshape(-1, tokens, head_dim).numpy():
            quantizer: Any = faiss.ProductQuantizer(head_dim, slices, 8)
            quantizer.cp.seed = seed + 1
            quantizer.cp.niter = ROUNDS
            quantizer.cp.max_points_per_centroid = MOST_TOKENS // CENTROIDS
            # FAISS warns where a centroid has few vectors; a few hundred tokens do in a test.
            quantizer.cp.min_points_per_centroid = 1
            quantizer.train(np.ascontiguousarray(vectors))
            found = faiss.vector_to_array(quantizer.centroids)
            centroids.append(found.reshape(slices, CENTROIDS, head_dim // slices))
        return cls(torch.from_numpy(np.stack(centroids)).view(*which, slices, CENTROIDS, -1))

    @staticmethod
    def slices(head_dim: int) -> int:
        """Bytes of a coded head vector: one for four numbers, an eighth of bfloat16.

        Raises:
            ImpRAGError: d_h is no multiple of 4.
        """
        if head_dim % 4:
            raise ImpRAGError(
                "product quantization cuts a head vector into slices of 4, but the head size "
                f"is {head_dim}; choose int8 or int4"
            )
        return head_dim // 4

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes, (2, layers, key heads, tokens, slices) uint8."""
        centroids = self._on(block.device)
        block = block.float()
        slices = block.view(*block.shape[:-1], centroids.shape[3], -1).transpose(3, 4)
        # The nearest: |x - c|² without the |x|² that all centroids share.
        products = slices @ centroids.transpose(-1, -2)  # (…, slices, tokens, 256)
        distances = centroids.square().sum(dim=-1)[..., None, :] - 2 * products
        return {"codes": distances.argmin(dim=-1).transpose(3, 4).to(torch.uint8)}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Centroids, side by side."""
        codes = parts["codes"]
        centroids = self._on(codes.device)
        # One gather from the list of all centroids: a slice's own begin at a multiple of 256.
        starts = torch.arange(0, centroids[..., 0].numel(), CENTROIDS, device=codes.device)
        rows = codes.int() + starts.view(*centroids.shape[:3], 1, -1).int()
        found = torch.nn.functional.embedding(rows, centroids.flatten(0, 4).to(dtype))
        return found.flatten(-2)

    def at(self, kind: int, layer: int) -> "ProductQuantizer":
        """The quantizer of the keys (0) or values (1) of one layer."""
        kinds, layers = slice(kind, kind + 1), slice(layer, layer + 1)
        return ProductQuantizer(self.centroids[kinds, layers])

    def state(self) -> dict[str, Tensor]:
        """What makes the quantizer again: the arguments."""
        return {"centroids": self.centroids}

    def _on(self, device: torch.device) -> Tensor:
        if self.centroids.device != device:
            self.centroids = self.centroids.to(device)
        return self.centroids
