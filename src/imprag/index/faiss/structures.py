"""Search structures of FAISS: how each is built, extended, opened and searched.

Both kinds complement the exact vectors and take their final scores from them, so that a score
means the same in every index. The vectors are not stored twice.
"""

import abc
from math import isqrt
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from imprag.errors import ImpRAGError
from imprag.index.faiss.vectors import empty_vectors, map_faiss, vector_blocks
from imprag.index.passage_index import FloatArray

_CENTROIDS = 256  # of one sub-quantizer: its code is a byte
_POINTS_PER_CENTROID = 40  # in training; FAISS asks for 39


class SearchStructure(abc.ABC):
    """What differs between the kinds that have a search structure.

    ``vectors`` is the flat FAISS index of all vectors, ``structure`` a FAISS index, too.
    """

    @abc.abstractmethod
    def settings(self, dimension: int, count: int, seed: int) -> dict[str, int]:
        """Settings that suit the size of the index, for the manifest.

        Raises:
            ImpRAGError: there are too few passages.
        """

    @abc.abstractmethod
    def disk(self, settings: dict[str, int], dimension: int, count: int) -> int:
        """About how many bytes it takes on disk."""

    @abc.abstractmethod
    def memory(self, settings: dict[str, int], dimension: int, count: int, dtype: str) -> int:
        """About how many bytes of memory :meth:`build` takes."""

    @abc.abstractmethod
    def build(self, vectors: Any, dtype: str, settings: dict[str, int], progress: bool) -> Any:
        """Make the structure."""

    @abc.abstractmethod
    def extend(self, path: Path, vectors: Any, dtype: str, added: FloatArray) -> Any:
        """The structure in a file with more vectors; ``vectors`` are those that it has."""

    @abc.abstractmethod
    def write(self, structure: Any, stream: BinaryIO) -> None:
        """Write a structure."""

    @abc.abstractmethod
    def open(self, path: Path, vectors: Any) -> Any:
        """Memory-map a structure and join it with the vectors."""

    @abc.abstractmethod
    def parameters(self, settings: dict[str, int], k: int, selector: Any) -> Any:
        """FAISS search parameters for k results among the selected rows."""


class IVFPQ(SearchStructure):
    """Inverted lists of product-quantized vectors: a few dozen bytes for each passage.

    The nearest lists are scanned by their codes, and the best candidates are scored again with the
    exact vectors, which are read from disk. Without that second step, codes this small keep about
    two thirds of the best ten.
    """

    def settings(self, dimension: int, count: int, seed: int) -> dict[str, int]:
        minimum = _CENTROIDS * _POINTS_PER_CENTROID
        if count < minimum:
            raise ImpRAGError(
                f"an ivfpq index needs at least {minimum:,} passages to train on, there are "
                f'{count:,}; choose the kind "flat", which is quick at this size'
            )
        nlist = min(4 * isqrt(count), count // _POINTS_PER_CENTROID)
        wanted = min(max(dimension // 8, 16), 64)
        codes = max(m for m in range(1, wanted + 1) if dimension % m == 0)
        return {
            "nlist": nlist,
            "nprobe": min(max(nlist // 4, 1), 256),
            "code_bytes": codes,
            "training_passages": max(nlist * _POINTS_PER_CENTROID, minimum),
            "seed": seed,
        }

    def disk(self, settings: dict[str, int], dimension: int, count: int) -> int:
        tables = dimension * (settings["nlist"] + _CENTROIDS + dimension)
        return count * (settings["code_bytes"] + 8) + 4 * tables

    def memory(self, settings: dict[str, int], dimension: int, count: int, dtype: str) -> int:
        sample = 4 * dimension * settings["training_passages"]
        # Measured: training the rotation takes twenty times what it is trained on.
        rotation = 20 * 4 * dimension * _CENTROIDS * _POINTS_PER_CENTROID
        return sample + max(2 * sample, rotation) + self.disk(settings, dimension, count)

    def build(self, vectors: Any, dtype: str, settings: dict[str, int], progress: bool) -> Any:
        dimension, codes = vectors.d, settings["code_bytes"]
        # Few rounds of training: FAISS's own numbers take minutes and find hardly anything more.
        rotation = faiss.OPQMatrix(dimension, codes)
        rotation.niter, rotation.niter_pq_0, rotation.niter_pq = 4, 4, 1
        rotation.max_train_points = _CENTROIDS * _POINTS_PER_CENTROID
        lists = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(dimension),
            dimension,
            settings["nlist"],
            codes,
            8,
            faiss.METRIC_INNER_PRODUCT,
        )
        lists.cp.niter = lists.pq.cp.niter = 10
        lists.pq.cp.max_points_per_centroid = _POINTS_PER_CENTROID
        lists.cp.seed = lists.pq.cp.seed = settings["seed"]
        structure = faiss.IndexPreTransform(rotation, lists)
        random = np.random.default_rng(settings["seed"])
        rows = random.choice(vectors.ntotal, settings["training_passages"], replace=False)
        structure.train(vectors.reconstruct_batch(np.sort(rows)))
        for block in vector_blocks(vectors, progress):
            structure.add(block)
        return structure

    def extend(self, path: Path, vectors: Any, dtype: str, added: FloatArray) -> Any:
        structure = faiss.read_index(str(path))
        structure.add(added)
        return structure

    def write(self, structure: Any, stream: BinaryIO) -> None:
        faiss.write_index(structure, faiss.PyCallbackIOWriter(stream.write))

    def open(self, path: Path, vectors: Any) -> Any:
        return faiss.IndexRefine(map_faiss(path), vectors)

    def parameters(self, settings: dict[str, int], k: int, selector: Any) -> Any:
        candidates = 10 * k + 100
        probe = faiss.SearchParametersIVF(nprobe=settings["nprobe"], sel=selector)
        return faiss.IndexRefineSearchParameters(
            k_factor=candidates / k,
            base_index_params=faiss.SearchParametersPreTransform(index_params=probe),
        )


class HNSW(SearchStructure):
    """A graph of near neighbours over the exact vectors.

    The graph is built by Euclidean distance and searched by inner product. Built by inner product,
    it links everything to the few longest vectors and falls apart between clusters. A build breadth
    below twice the neighbours keeps FAISS from thinning out near links, which costs recall here.
    """

    def settings(self, dimension: int, count: int, seed: int) -> dict[str, int]:
        return {"neighbours": 32, "ef_construction": 40, "ef_search": 512}

    def disk(self, settings: dict[str, int], dimension: int, count: int) -> int:
        # Twice the neighbours on the lowest level, few above it, a level and an offset.
        return count * (8 * settings["neighbours"] + 16)

    def memory(self, settings: dict[str, int], dimension: int, count: int, dtype: str) -> int:
        vectors = count * dimension * np.dtype(dtype).itemsize
        # FAISS doubles its arrays as they grow.
        return 2 * vectors + self.disk(settings, dimension, count)

    def build(self, vectors: Any, dtype: str, settings: dict[str, int], progress: bool) -> Any:
        graph = _empty_graph(vectors.d, dtype, settings["neighbours"])
        graph.hnsw.efConstruction = settings["ef_construction"]
        for block in vector_blocks(vectors, progress):
            graph.add(block)
        return graph

    def extend(self, path: Path, vectors: Any, dtype: str, added: FloatArray) -> Any:
        graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
        storage = empty_vectors(vectors.d, dtype, faiss.METRIC_L2)
        for block in vector_blocks(vectors):
            storage.add(block)
        _use(graph, storage, faiss.METRIC_L2)
        graph.add(added)
        return graph

    def write(self, structure: Any, stream: BinaryIO) -> None:
        structure.metric_type = faiss.METRIC_INNER_PRODUCT
        writer = faiss.PyCallbackIOWriter(stream.write)
        faiss.write_index(structure, writer, faiss.IO_FLAG_SKIP_STORAGE)

    def open(self, path: Path, vectors: Any) -> Any:
        graph = map_faiss(path, faiss.IO_FLAG_SKIP_STORAGE)
        _use(graph, vectors, faiss.METRIC_INNER_PRODUCT)
        return graph

    def parameters(self, settings: dict[str, int], k: int, selector: Any) -> Any:
        breadth = max(settings["ef_search"], 2 * k)
        return faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)


STRUCTURES: dict[str, SearchStructure] = {"ivfpq": IVFPQ(), "hnsw": HNSW()}


def _empty_graph(dimension: int, dtype: str, neighbours: int) -> Any:
    if dtype == "float32":
        return faiss.IndexHNSWFlat(dimension, neighbours, faiss.METRIC_L2)
    half = faiss.ScalarQuantizer.QT_fp16
    return faiss.IndexHNSWSQ(dimension, half, neighbours, faiss.METRIC_L2)


def _use(graph: Any, storage: Any, metric: int) -> None:
    """Let a graph that was read without vectors compute its distances with these."""
    graph.storage = storage
    graph.own_fields = False
    graph.referenced_objects = [storage]  # FAISS itself does not keep it alive
    graph.metric_type = metric
    graph.hnsw.is_similarity = metric == faiss.METRIC_INNER_PRODUCT
