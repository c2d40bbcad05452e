"""Product quantization of head vectors (paper, appendix C)."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import KINDS, Codec, Parts

CENTROIDS = 256  # one byte for each slice of a vector
SLICE = {"keys": 2, "values": 8}  # numbers in a slice
ROUNDS = 10  # of k-means
MOST_TOKENS = 4096  # that it learns from


class ProductQuantizer(Codec):
    """Head vectors cut into slices, each slice the number of its nearest centroid.

    Keys and values of every layer and head have centroids of their own. Slices of keys are smaller,
    since a prompt's attention suffers from what keys lose and hardly from what values lose
    (dev/LOG.md). There is no learned rotation as in the paper's OPQ: what is large in one
    dimension of a key is so in all tokens, and slices of the vectors as they are keep that apart
    (docs/concepts/decisions.md).

    Attributes:
        centroids: of ``keys``, (layers, key heads, slices, 256, 2) float32, and of ``values``,
            (layers, key heads, slices, 256, 8); none before `fit`.

    Raises:
        ImpRAGError: d_h is no multiple of 16.
    """

    def __init__(self, name: str, head_dim: int) -> None:
        if head_dim % 16:
            raise ImpRAGError(
                "product quantization cuts head vectors into slices and needs a head size that is "
                f"a multiple of 16, but the head size is {head_dim}; choose int8 or int4"
            )
        super().__init__(name, head_dim)
        self.centroids: dict[str, Tensor] = {}

    @property
    def bytes_per_vector(self) -> int:
        return sum(self.head_dim // size for size in SLICE.values()) // 2

    def fit(self, sample: Tensor, seed: int = 0) -> None:
        """Learn centroids (k-means of FAISS).

        Raises:
            ImpRAGError: the sample is too small.
        """
        import faiss

        _, *which, tokens, head_dim = sample.shape
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
        self.load_state(centroids)

    def state(self) -> dict[str, Tensor]:
        """The centroids."""
        return self.centroids

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over centroids."""
        for kind, size in SLICE.items():
            if state[kind].shape[2:] != (self.head_dim // size, CENTROIDS, size):
                raise ValueError(f"{kind} of shape {tuple(state[kind].shape)} are no centroids")
        self.centroids = {kind: state[kind] for kind in KINDS}
        self.__dict__.pop("_coders", None)

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

    def _decoded(self, parts: Parts, kind: str, layers: slice, dtype: torch.dtype) -> Tensor:
        self._check_fitted()
        codes = parts[kind][:, layers]
        if self.centroids[kind].device != codes.device:
            self.centroids[kind] = self.centroids[kind].to(codes.device)
        centroids = self.centroids[kind][layers]
        # One gather from the list of all centroids: a slice's own begin at a multiple of 256.
        starts = torch.arange(0, centroids[..., 0].numel(), CENTROIDS, device=codes.device)
        rows = codes.int() + starts.view(*centroids.shape[:2], 1, -1).int()
        found = torch.nn.functional.embedding(rows, centroids.flatten(0, 3).to(dtype))
        return found.flatten(-2)

    def _check_fitted(self) -> None:
        if not self.centroids:
            raise ImpRAGError(
                "product quantization has no centroids yet: fit it to a sample of states, as "
                "imprag kv build does"
            )

    @cached_property
    def _coders(self) -> dict[str, list[Any]]:
        """FAISS's quantizer of every layer and head, by kind."""
        import faiss

        self._check_fitted()
        coders: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for kind, found in coders.items():
            for centroids in self.centroids[kind].cpu().flatten(0, 1):
                slices, _, size = centroids.shape
                found.append(faiss.ProductQuantizer(slices * size, slices, 8))
                faiss.copy_array_to_vector(centroids.numpy().ravel(), found[-1].centroids)
        return coders
