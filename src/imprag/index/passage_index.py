"""The contract of every index: passage embeddings go in, the best passages' ids come out."""

import abc
import contextlib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from imprag.errors import ImpRAGError
from imprag.index.backends import INDEX_BACKENDS
from imprag.index.manifest import IndexManifest
from imprag.io.building import StoredFile, building_folder
from imprag.io.files import expand_home

FloatArray = npt.NDArray[np.float32]
#: Ids and embeddings of consecutive passages, part by part; can be iterated over repeatedly.
EmbeddingParts = Iterable[tuple[list[str], npt.NDArray[Any]]]

#: How embeddings can be stored.
DTYPES = ("float16", "float32")

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class PassageIndex(abc.ABC):
    """Passages found by the inner product of their embedding with a query's.

    :meth:`open` opens an index of any kind; :func:`imprag.index.build_index` makes one.
    :meth:`add` and :meth:`remove` change the index in memory, :meth:`save` writes the changes.

    A back end is a subclass, registered under the kinds that it builds with
    :func:`imprag.index.backends.register_index_backend` or under the entry-point group
    ``imprag.index_backends``. :class:`imprag.testing.index_backend.IndexBackendSuite` tests it.

    Args:
        path: an index folder.
        manifest: what it holds.

    Attributes:
        backend: the engine, for the manifest.
    """

    backend: ClassVar[str]

    @abc.abstractmethod
    def __init__(self, path: Path, manifest: IndexManifest) -> None: ...

    @staticmethod
    def open(path: Path | str) -> "PassageIndex":
        """Open an index folder, memory-mapped where the back end can.

        Raises:
            ImpRAGError: there is no finished index, it is damaged, or its kind is unknown.
        """
        path = expand_home(path)
        manifest = IndexManifest.read(path)
        try:
            backend = INDEX_BACKENDS.find(manifest.kind)
        except ImpRAGError as error:
            raise ImpRAGError(f"{path} cannot be opened: {error}") from error
        if backend.backend != manifest.backend:
            raise ImpRAGError(
                f"{path} was built by the back end {manifest.backend!r}, but here the kind "
                f"'{manifest.kind}' is of {backend.backend!r}; install the package that made it"
            )
        return backend(path, manifest)

    @classmethod
    def settings(cls, kind: str, dimension: int, count: int, seed: int) -> dict[str, int]:
        """Settings that suit the size of an index, for its manifest; none by default.

        Raises:
            ImpRAGError: the kind needs more passages.
        """
        return {}

    @classmethod
    def footprint(cls, goal: IndexManifest) -> tuple[int, int]:
        """About how many bytes an index takes in addition to ids and embeddings: on disk, and in
        memory while :meth:`create` runs; none by default."""
        return 0, 0

    @classmethod
    def server_footprint(cls, goal: IndexManifest) -> int:
        """About how many bytes an index takes on its server; none by default."""
        return 0

    @classmethod
    def check_location(cls, goal: IndexManifest) -> None:
        """Look, before a build, whether the vectors can be written where the manifest says.

        Raises:
            ImpRAGError: the server cannot be reached; or one is named, but the vectors of this kind
                of index lie in its folder.
        """
        if goal.location:
            raise ImpRAGError(
                f"the vectors of an index of the kind {goal.kind} lie in its folder: leave --uri "
                "out, or choose a kind with a server"
            )

    @classmethod
    @abc.abstractmethod
    def create(
        cls, folder: Path, goal: IndexManifest, parts: EmbeddingParts, progress: bool
    ) -> dict[str, StoredFile]:
        """Write the files of a new index, all but the manifest.

        Args:
            folder: an empty folder.
            goal: the manifest to be, without files and versions.
            parts: all passages, in the order of the corpus; embeddings have ``goal.dtype``.
            progress: show a bar on standard error.

        Returns:
            the files by their role, as :func:`imprag.io.building.write_file` returns them.
        """

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Versions of the engine's packages, for the manifest; none by default."""
        return {}

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
    def embeddings(
        self, ids: Sequence[str], rows: npt.NDArray[np.int64] | None = None
    ) -> FloatArray:
        """The stored embeddings of passages.

        Args:
            ids: of the passages.
            rows: their rows in the corpus that the index was built from, if the caller knows them:
                a hint that can save looking the ids up.

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

    @classmethod  # noqa: B027  most back ends keep nothing elsewhere
    def drop(cls, path: Path, manifest: IndexManifest) -> None:
        """Delete what an index holds on a server, before its folder is deleted; by default nothing.

        Args:
            path: the folder.
            manifest: what it holds; its ``location`` is not empty. Without files, it is that of a
                build in :func:`imprag.io.building.building_folder` that is not finished.

        Raises:
            ImpRAGError: the server fails.
        """

    @abc.abstractmethod
    def verify(self) -> None:
        """Read everything on disk and compare it with its checksums.

        Raises:
            ImpRAGError: a file was changed.
        """


def drop_vectors(path: Path) -> None:
    """Delete what an index and an unfinished build of it hold on a server, if anything.

    Args:
        path: the folder, before it is deleted; one without a readable manifest names no server.

    Raises:
        ImpRAGError: the server fails.
    """
    found = [IndexManifest.unfinished(path)]
    with contextlib.suppress(ImpRAGError):
        found.append(IndexManifest.read(path))
    for manifest in found:
        if manifest is None or not manifest.location:
            continue
        try:
            INDEX_BACKENDS.find(manifest.kind).drop(path, manifest)
        except ImpRAGError as error:
            where = path if manifest.files else building_folder(path)
            raise ImpRAGError(
                f"the vectors of {where} at {manifest.location} cannot be deleted: {error} (if the "
                "server is gone for good, delete the folder by hand)"
            ) from error


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


def checked_queries(queries: FloatArray, dimension: int, k: int, count: int) -> FloatArray:
    """Queries as contiguous float32, if k passages can be found for them.

    Args:
        queries: (number, dimension).
        dimension: that the index has.
        k: number of passages to find.
        count: number of passages in the index.

    Raises:
        ImpRAGError: k is out of range, or the queries have another shape or are not finite.
    """
    if not 1 <= k <= count:
        raise ImpRAGError(f"k is {k}, but must be between 1 and {count}, the passages in the index")
    return checked_embeddings(queries, dimension, "float32")


def check_new_ids(ids: Sequence[str], embeddings: FloatArray, known: Container[str]) -> None:
    """Refuse ids that cannot be added to an index.

    Args:
        ids: of the passages to add.
        embeddings: of the same passages.
        known: ids that the index has.

    Raises:
        ImpRAGError: an id is known or given twice, or there are more or fewer embeddings than ids.
    """
    if len(ids) != len(embeddings):
        raise ImpRAGError(f"{len(ids)} ids, but {len(embeddings)} embeddings")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ImpRAGError(f"the passage {twice!r} is given twice")
    for passage_id in ids:
        if passage_id in known:
            raise ImpRAGError(
                f"the passage {passage_id!r} is in the index already; remove it first"
            )
