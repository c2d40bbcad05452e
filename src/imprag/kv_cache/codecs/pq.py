"""Product quantization of head vectors (paper, appendix C)."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import KINDS, Parts

CENTROIDS = 256  # one byte for each slice of a vector
SLICE = {"keys": 2, "values": 8}  # numbers in a slice
ROUNDS = 10  # of k-means
MOST_TOKENS = 4096  # that it learns from


class ProductQuantizer:
    """Head vectors cut into slices, each slice the number of its nearest centroid.

    Keys and values of every layer and head have centroids of their own. Slices of keys are smaller,
    since a prompt's attention suffers from what keys lose and hardly from what values lose
    (dev/LOG.md). There is no learned rotation as in the paper's OPQ: what is large in one
    dimension of a key is so in all tokens, and slices of the vectors as they are keep that apart
    (docs/concepts/decisions.md).

    Args:
        keys: centroids of keys, (layers, key heads, slices, 256, 2) float32.
        values: of values, (layers, key heads, slices, 256, 8).
    """

    name = "pq"

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.centroids = {"keys": keys, "values": values}
        self.bytes_per_vector = (keys.shape[2] + values.shape[2]) // 2

    @classmethod
    def train(cls, sample: Tensor, *, seed: int = 0) -> "ProductQuantizer":
        """Learn centroids (k-means of FAISS).

        Args:
            sample: a block, (2, layers, key heads, tokens, d_h); some ten thousand tokens.
            seed: of the first centroids.

        Raises:
            ImpRAGError: d_h is no multiple of 16, or the sample is too small.
        """
        import faiss

        _, *which, tokens, head_dim = sample.shape
        cls.bytes_for(head_dim)  # refuses what cannot be cut into slices
        if tokens < CENTROIDS:
            raise ImpRAGError(
                f"product quantization learns {CENTROIDS} centroids, but the sample has only "
                f"{tokens} tokens; choose int8 or int4 for so small a corpus"
            )
        centroids = {}
        for kind, heads in zip(KINDS, sample.float(), strict=True):
            slices = head_dim // SLICE[kind]
            found = []
            for vectors in heads.reshape(-1, tokens, head_dim).numpy():
                coder: Any = faiss.ProductQuantizer(head_dim, slices, 8)
                coder.cp.seed = seed + 1
                coder.cp.niter = ROUNDS
                coder.cp.max_points_per_centroid = MOST_TOKENS // CENTROIDS
                # FAISS warns where a centroid has few vectors; a few hundred tokens do in a test.
                coder.cp.min_points_per_centroid = 1
                coder.train(np.ascontiguousarray(vectors))
                found.append(faiss.vector_to_array(coder.centroids))
            centroids[kind] = torch.from_numpy(np.stack(found)).view(*which, slices, CENTROIDS, -1)
        return cls(**centroids)

    @staticmethod
    def bytes_for(head_dim: int) -> int:
        """Of a coded head vector, in the mean over keys and values.

        Raises:
            ImpRAGError: d_h is no multiple of 16.
        """
        if head_dim % 16:
            raise ImpRAGError(
                "product quantization cuts head vectors into slices and needs a head size that is "
                f"a multiple of 16, but the head size is {head_dim}; choose int8 or int4"
            )
        return sum(head_dim // size for size in SLICE.values()) // 2

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes of ``keys`` and ``values``, (1, layers, key heads, tokens, slices) uint8."""
        coded = {}
        for kind, heads in zip(KINDS, block.float().cpu(), strict=True):
            vectors = heads.flatten(0, 1).numpy()
            codes = [
                coder.compute_codes(np.ascontiguousarray(one))
                for coder, one in zip(self._coders[kind], vectors, strict=True)
            ]
            shape = (1, *heads.shape[:3], heads.shape[3] // SLICE[kind])
            coded[kind] = torch.from_numpy(np.stack(codes)).view(shape).to(block.device)
        return coded

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Centroids, side by side."""
        return torch.cat([self._decoded(parts, kind, slice(None), dtype) for kind in KINDS])

    def decode_layer(self, parts: Parts, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """The keys or values of one layer alone, (key heads, tokens, d_h)."""
        return self._decoded(parts, kind, slice(layer, layer + 1), dtype)[0, 0]

    def state(self) -> dict[str, Tensor]:
        """What makes the quantizer again: the arguments."""
        return self.centroids

    def _decoded(self, parts: Parts, kind: str, layers: slice, dtype: torch.dtype) -> Tensor:
        codes = parts[kind][:, layers]
        if self.centroids[kind].device != codes.device:
            self.centroids[kind] = self.centroids[kind].to(codes.device)
        centroids = self.centroids[kind][layers]
        # One gather from the list of all centroids: a slice's own begin at a multiple of 256.
        starts = torch.arange(0, centroids[..., 0].numel(), CENTROIDS, device=codes.device)
        rows = codes.int() + starts.view(*centroids.shape[:2], 1, -1).int()
        found = torch.nn.functional.embedding(rows, centroids.flatten(0, 3).to(dtype))
        return found.flatten(-2)

    @cached_property
    def _coders(self) -> dict[str, list[Any]]:
        """FAISS's quantizer of every layer and head, by kind."""
        import faiss

        coders: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for kind, found in coders.items():
            for centroids in self.centroids[kind].cpu().flatten(0, 1):
                slices, _, size = centroids.shape
                found.append(faiss.ProductQuantizer(slices * size, slices, 8))
                faiss.copy_array_to_vector(centroids.numpy().ravel(), found[-1].centroids)
        return coders
