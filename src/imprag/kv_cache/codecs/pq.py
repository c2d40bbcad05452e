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
SLICE = 4  # numbers in a slice
ROUNDS = 10  # of k-means
MOST_TOKENS = 4096  # that it learns centroids from
_LEAST_WEIGHT = 1e-3  # of a direction, relative to the mean of all


class ProductQuantizer(Codec):
    """Transformed head vectors cut into slices, each slice the number of its nearest centroid.

    Keys and values of every layer and head have a mean, a transform and centroids of their own. The
    transform is that of optimized product quantization for normally distributed vectors (Ge et al.
    2013): to the principal components, which are dealt out so that the variances in every slice
    have about the same product. Keys are those before the rotary embedding: three quarters of their
    energy is in their means, and most of the rest in a few components. Their components are those
    after a multiplication with the root of the queries' second moments (`weigh`), so that distances
    to centroids are errors of attention logits.

    Attributes:
        learned: ``means``, (2, layers, key heads, 1, d_h), ``transforms``, (2, layers, key heads,
            d_h, d_h), whose columns are the components in the order of the slices, their
            ``inverses``, and ``centroids``, (2, layers, key heads, slices, 256, 4); float32, none
            before `fit`.

    Raises:
        ImpRAGError: d_h is no multiple of 4.
    """

    unrotated_keys = True

    def __init__(self, name: str, head_dim: int) -> None:
        if head_dim % SLICE:
            raise ImpRAGError(
                "product quantization cuts head vectors into slices and needs a head size that is "
                f"a multiple of {SLICE}, but the head size is {head_dim}; choose int8"
            )
        super().__init__(name, head_dim)
        self.learned: dict[str, Tensor] = {}
        self._moments: Tensor | None = None

    @property
    def bytes_per_vector(self) -> int:
        return self.head_dim // SLICE

    def weigh(self, moments: Tensor) -> None:
        """Let what `fit` learns lose least in the directions of large queries."""
        self._moments = moments

    def fit(self, sample: Tensor, seed: int = 0) -> None:
        """Learn means, transforms and centroids (k-means of FAISS).

        Raises:
            ImpRAGError: the sample is too small.
        """
        import faiss

        *heads, tokens, _ = sample.shape
        if tokens < CENTROIDS:
            raise ImpRAGError(
                f"product quantization learns {CENTROIDS} centroids, but the sample has only "
                f"{tokens} tokens; choose int8 for so small a corpus"
            )
        means = sample.float().mean(dim=3, keepdim=True)
        roots = torch.eye(self.head_dim).expand(*heads, -1, -1).clone()
        if self._moments is not None:
            roots[KINDS.index("keys")] = _root(self._moments)
        transforms, centroids = [], []
        for vectors, root in zip(
            (sample.float() - means).flatten(0, 2), roots.flatten(0, 2), strict=True
        ):
            weighted = vectors @ root
            variances, components = torch.linalg.eigh(weighted.T @ weighted / tokens)
            transform = root @ components[:, _dealt_out(variances, self.head_dim // SLICE)]
            coder: Any = faiss.ProductQuantizer(self.head_dim, self.head_dim // SLICE, 8)
            coder.cp.seed = seed + 1
            coder.cp.niter = ROUNDS
            coder.cp.max_points_per_centroid = MOST_TOKENS // CENTROIDS
            # FAISS warns where a centroid has few vectors; a few hundred tokens do in a test.
            coder.cp.min_points_per_centroid = 1
            coder.train(np.ascontiguousarray((vectors @ transform).numpy()))
            transforms.append(transform)
            centroids.append(torch.from_numpy(faiss.vector_to_array(coder.centroids)))
        made = torch.stack(transforms).view(*heads, self.head_dim, self.head_dim)
        self.load_state(
            {
                "means": means,
                "transforms": made,
                "inverses": torch.linalg.inv(made),
                "centroids": torch.stack(centroids).view(*heads, -1, CENTROIDS, SLICE),
            }
        )

    def state(self) -> dict[str, Tensor]:
        """Means, transforms, their inverses and centroids."""
        return self.learned

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another has learned."""
        slices = self.head_dim // SLICE
        shapes = {
            "means": (1, self.head_dim),
            "transforms": (self.head_dim, self.head_dim),
            "inverses": (self.head_dim, self.head_dim),
            "centroids": (slices, CENTROIDS, SLICE),
        }
        for name, shape in shapes.items():
            if state[name].shape[3:] != shape:
                raise ValueError(f"{name} of shape {tuple(state[name].shape)} are of other heads")
        self.learned = {name: state[name].contiguous() for name in shapes}
        self.__dict__.pop("_coders", None)

    def encode(self, block: Tensor) -> dict[str, Tensor]:
        """Codes, (…, d_h / 4) uint8."""
        learned = self._on(torch.device("cpu"))
        components = (block.float().cpu() - learned["means"]) @ learned["transforms"]
        heads = components.flatten(0, 2).numpy()
        codes = [
            coder.compute_codes(np.ascontiguousarray(vectors))
            for coder, vectors in zip(self._coders, heads, strict=True)
        ]
        coded = torch.from_numpy(np.stack(codes)).view(*block.shape[:4], self.bytes_per_vector)
        return {"codes": coded.to(block.device)}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Centroids side by side, transformed back, plus means."""
        return self._decoded(parts["codes"], slice(None), slice(None), dtype)

    def decode_layer(self, parts: Parts, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """The keys or values of one layer alone, (key heads, tokens, d_h)."""
        place = KINDS.index(kind)
        kinds, layers = slice(place, place + 1), slice(layer, layer + 1)
        return self._decoded(parts["codes"][kinds, layers], kinds, layers, dtype)[0, 0]

    def _decoded(self, codes: Tensor, kinds: slice, layers: slice, dtype: torch.dtype) -> Tensor:
        learned = self._on(codes.device)
        means, inverses, centroids = (
            learned[name][kinds, layers].to(dtype) for name in ("means", "inverses", "centroids")
        )
        # One gather from the list of all centroids: a slice's own begin at a multiple of 256.
        starts = torch.arange(0, centroids[..., 0].numel(), CENTROIDS, device=codes.device)
        rows = codes.int() + starts.view(*centroids.shape[:3], 1, -1).int()
        found = torch.nn.functional.embedding(rows, centroids.flatten(0, 4)).flatten(-2)
        heads = [x.flatten(0, 2) for x in (means, found, inverses)]
        return torch.baddbmm(*heads).view(*codes.shape[:4], self.head_dim)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """What was learned, on a device."""
        if not self.learned:
            raise ImpRAGError(
                "product quantization has no centroids yet: fit it to a sample of states, as "
                "imprag kv build does"
            )
        if self.learned["means"].device != device:
            self.learned = {name: x.to(device) for name, x in self.learned.items()}
        return self.learned

    @cached_property
    def _coders(self) -> list[Any]:
        """FAISS's quantizer of every kind, layer and head."""
        import faiss

        coders: list[Any] = []
        for centroids in self.learned["centroids"].cpu().flatten(0, 2):
            slices, _, size = centroids.shape
            coders.append(faiss.ProductQuantizer(slices * size, slices, 8))
            faiss.copy_array_to_vector(centroids.numpy().ravel(), coders[-1].centroids)
        return coders


def _root(moments: Tensor) -> Tensor:
    """The symmetric square roots of moments, with a little of the mean added in all directions."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    unit = torch.eye(moments.shape[-1])
    values, vectors = torch.linalg.eigh(moments + _LEAST_WEIGHT * mean * unit)
    root: Tensor = vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT
    return root


def _dealt_out(variances: Tensor, slices: int) -> list[int]:
    """Components in the order of slices whose variances have about the same product.

    Args:
        variances: (d_h,) of the components.
        slices: their number; each gets equally many components.
    """
    variances = variances.clamp(min=1e-12)
    logarithms = (variances / variances.min()).log().tolist()  # none is negative
    hands: list[list[int]] = [[] for _ in range(slices)]
    for component in sorted(range(len(logarithms)), key=lambda i: -logarithms[i]):
        free = [hand for hand in hands if len(hand) < len(logarithms) // slices]
        min(free, key=lambda hand: sum(logarithms[i] for i in hand)).append(component)
    return [component for hand in hands for component in hand]
