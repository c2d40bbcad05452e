"""Exact vectors in a flat FAISS file: written as a stream, searched memory-mapped."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from imprag.index.passage_index import FloatArray
from imprag.io.building import damaged
from imprag.io.progress import progress_bar

_BLOCK_BYTES = 1 << 25  # of float32 vectors that are decoded at a time


def empty_vectors(dimension: int, dtype: str, metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    """A flat FAISS index without vectors."""
    if dtype == "float32":
        return faiss.IndexFlat(dimension, metric)
    return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, metric)


def write_vectors(
    stream: BinaryIO, dimension: int, dtype: str, count: int, parts: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a flat FAISS index without ever holding its vectors.

    FAISS itself writes an index from memory only. A flat one is a header, the length of its data
    and the data: so FAISS writes the header of an empty index, and the rest follows as it comes.

    Args:
        stream: the open file.
        dimension, dtype, count: of all vectors together.
        parts: the vectors, each part (number, dimension) of ``dtype``.
    """
    empty = empty_vectors(dimension, dtype)
    empty.ntotal = count
    header = faiss.serialize_index(empty).tobytes()
    # The length, 0 in the empty index, counts floats in one format and bytes in the other.
    length = count * dimension * (1 if dtype == "float32" else 2)
    stream.write(header[:-8] + struct.pack("<Q", length))
    for part in parts:
        stream.write(np.ascontiguousarray(part, dtype=dtype).data)


def map_faiss(path: Path, flags: int = 0) -> Any:
    """Open a FAISS file memory-mapped. FAISS must not add to it: it would end the process.

    Raises:
        ImpRAGError: FAISS cannot read it.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | flags)
    except RuntimeError as error:
        raise damaged(path, "FAISS cannot read it") from error


def vector_blocks(vectors: Any, progress: bool = False) -> Iterator[FloatArray]:
    """All vectors in order, a few at a time, with a progress bar if asked for."""
    size = max(1, _BLOCK_BYTES // (4 * vectors.d))
    with progress_bar("Indexing", vectors.ntotal, progress) as bar:
        for start in range(0, vectors.ntotal, size):
            block: FloatArray = vectors.reconstruct_n(start, min(size, vectors.ntotal - start))
            yield block
            bar.update(len(block))
