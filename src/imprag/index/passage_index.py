"""The contract of every index: passage embeddings go in, the best passages' ids come out."""

import abc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprag.errors import ImpRAGError
from imprag.index.manifest import IndexManifest
from imprag.io.files import expand_home

FloatArray = npt.NDArray[np.float32]

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class PassageIndex(abc.ABC):
    """Passages found by the inner product of their embedding with a query's.

    :meth:`open` opens an index of any back end; :func:`imprag.index.build_index` makes one.
    :meth:`add` and :meth:`remove` change the index in memory, :meth:`save` makes it last.
    """

    @staticmethod
    def open(path: Path | str) -> "PassageIndex":
        """Open an index folder, memory-mapped.

        Raises:
            ImpRAGError: there is no finished index, or it is damaged.
        """
        path = expand_home(path)
        manifest = IndexManifest.read(path)
        if manifest.backend == "faiss":
            from imprag.index.faiss.index import FaissIndex

            return FaissIndex(path, manifest)
        raise ImpRAGError(f"{path} needs the back end {manifest.backend!r}, which is unknown here")

    @property
    @abc.abstractmethod
    def manifest(self) -> IndexManifest:
        """What the index holds and who made it."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of passages that can be found."""

    @abc.abstractmethod
    def add(self, ids: Sequence[str], embeddings: FloatArray) -> None:
        """Add passages.

        Args:
            ids: none of which is in the index.
            embeddings: (len(ids), dimension).

        Raises:
            ImpRAGError: an id is there already or twice, or an embedding has another dimension or
                is not finite. Nothing is added then.
        """

    @abc.abstractmethod
    def remove(self, ids: Sequence[str]) -> int:
        """Remove passages.

        Returns:
            how many.

        Raises:
            ImpRAGError: an id is not in the index. Nothing is removed then.
        """

    @abc.abstractmethod
    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, list[list[str]]]:
        """Find the k best passages of every query.

        Args:
            queries: (number, dimension).
            k: at most the number of passages.

        Returns:
            scores (number, k), best first, and the ids that belong to them.

        Raises:
            ImpRAGError: k is out of range, or a query has another dimension or is not finite.
        """

    @abc.abstractmethod
    def embeddings(self, ids: Sequence[str]) -> FloatArray:
        """The stored embeddings of passages.

        Returns:
            (len(ids), dimension).

        Raises:
            ImpRAGError: an id is not in the index.
        """

    @abc.abstractmethod
    def save(self, path: Path | str, *, corpus_fingerprint: str | None = None) -> None:
        """Write the index into a folder: a new one, or the one it was opened from.

        Whoever opens the folder, at any moment, finds the old state or the new one.

        Args:
            path: the folder.
            corpus_fingerprint: of the corpus that the passages now are; by default the one that
                the index was built from.

        Raises:
            ImpRAGError: the folder holds something else, or the disk is full.
        """

    @abc.abstractmethod
    def verify(self) -> None:
        """Read everything on disk and compare it with its checksums.

        Raises:
            ImpRAGError: a file was changed.
        """


def checked_embeddings(embeddings: FloatArray, dimension: int, dtype: str) -> FloatArray:
    """Embeddings as contiguous float32, if they can be stored as ``dtype``.

    Args:
        embeddings: (number, dimension).
        dimension: that the index has.
        dtype: ``"float16"`` or ``"float32"``.

    Raises:
        ImpRAGError: another shape, or a number that is not finite or too large.
    """
    array = np.ascontiguousarray(embeddings, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dimension:
        raise ImpRAGError(
            f"embeddings have the shape {array.shape}, not (number, {dimension}) as the index needs"
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ImpRAGError(
            f"embedding {int(np.argmin(finite))} is not finite (NaN or infinite); "
            "check the model and its precision"
        )
    if dtype == "float16" and array.size and np.abs(array).max() > _FLOAT16_MAX:
        raise ImpRAGError(
            f"an embedding has a value beyond {_FLOAT16_MAX:.0f}, too large for float16; "
            'build the index with dtype="float32"'
        )
    return array
