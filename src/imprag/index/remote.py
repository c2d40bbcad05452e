"""Indexes whose vectors lie on a server; the folder names the collection that holds them.

A graph built by inner products links most vectors to the few longest ones and finds little else.
So the collection holds one further coordinate, which makes all vectors equally long and is 0 in
queries: scores stay what they are, and the nearest vectors by inner product and by distance are
the same (Bachrach et al., "Speeding Up the Xbox Recommender System Using a Euclidean
Transformation for Inner-Product Spaces", 2014).
"""

import abc
import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imprag.errors import FaultError, ImpRAGError
from imprag.index.manifest import MANIFEST, IndexManifest, save_state
from imprag.index.passage_index import (
    EmbeddingParts,
    FloatArray,
    PassageIndex,
    check_new_ids,
    checked_embeddings,
    checked_queries,
)
from imprag.io.building import StoredFile, building_folder, damaged, write_file
from imprag.io.files import expand_home, read_json, write_json
from imprag.io.progress import progress_bar

_NOTE = "parts/collection.json"  # in the working folder of a build
_BLOCK = 2048  # vectors that are read at a time
_MORE = 16  # candidates that are scored again, besides k


class ServerError(FaultError):
    """A server cannot be reached, or refuses.

    Args:
        location: its address.
        error: what its client raised.
    """

    def __init__(self, location: str, error: Exception) -> None:
        words = str(error).strip() or type(error).__name__
        super().__init__(
            f"the server at {location} failed: {' '.join(words.split())[:300]}; see that it runs "
            "and that you may use it, then run the same command again"
        )


@dataclass(frozen=True)
class StoredVectors:
    """Vectors as a server gives them.

    Attributes:
        ids: of the passages.
        rows: their places in the index, (len(ids),).
        embeddings: (len(ids), dimension) float32.
    """

    ids: list[str]
    rows: npt.NDArray[np.int64]
    embeddings: FloatArray


class Collection(Protocol):
    """The vectors of one index on a server, with their further coordinate.

    All methods raise a ServerError if it fails.
    """

    def prepare(self) -> None:
        """Make the server ready for new collections, as far as that is needed."""

    def create(self) -> None:
        """Make an empty collection under a new name."""

    def insert(self, vectors: StoredVectors) -> None:
        """Add vectors, which must have new ids and rows."""

    def finish(self) -> None:
        """Build the search structure over all vectors."""

    def count(self) -> int | None:
        """Number of vectors; None if there is no such collection."""

    def dimension(self) -> int:
        """The dimension of the collection's vectors."""

    def search(self, queries: FloatArray, k: int) -> list[StoredVectors]:
        """About the k best vectors of each query, in any order; all if there are fewer."""

    def fetch(self, ids: Sequence[str]) -> StoredVectors:
        """The vectors of those ids that are there, in any order."""

    def block(self, rows: range) -> StoredVectors:
        """The vectors of these rows, in any order."""

    def drop(self) -> None:
        """Delete the collection, if it is there."""


@dataclass(frozen=True)
class _Place:
    """What the folder of an index says about its vectors.

    Attributes:
        collection: the name of the collection.
        sha256: of all ids and embeddings in the order of their rows.
        longest: the length that the further coordinate gives to all of them.
        previous: the collection of the state before, which somebody may still read.
    """

    collection: str
    sha256: str
    longest: float
    previous: str | None = None


class RemoteIndex(PassageIndex):
    """Vectors on a server, under the ``location`` of the manifest.

    The server finds candidates, which are scored again here with their exact vectors, so that a
    score means the same in every kind of index. Changes are kept in memory until :meth:`save`,
    which writes a new collection: whoever has the former state open keeps it.

    Args:
        path: the folder.
        manifest: what it holds.

    Raises:
        ImpRAGError: the server cannot be reached, or the collection is not there or incomplete.
    """

    _added: StoredVectors
    _removed: set[str]

    def __init__(self, path: Path, manifest: IndexManifest) -> None:
        self._open(path, manifest)

    @classmethod
    @abc.abstractmethod
    def connect(cls, name: str, manifest: IndexManifest) -> Collection:
        """A collection of that name, whether or not it exists, on a server.

        Args:
            name: of the collection.
            manifest: of the index, but ``dimension`` counts the further coordinate, too.

        Raises:
            ImpRAGError: the location is no address of such a server, or holds a password.
        """

    @classmethod
    def check_location(cls, goal: IndexManifest) -> None:
        if not goal.location:
            raise ImpRAGError("say where the server is: --uri URI (in Python, location=URI)")
        cls._at("imprag_check", goal).prepare()

    @classmethod
    def create(
        cls, folder: Path, goal: IndexManifest, parts: EmbeddingParts, progress: bool
    ) -> dict[str, StoredFile]:
        work = folder.parent.parent
        for left in _noted(work):  # by an interrupted build
            cls._at(left, goal).drop()
        name = _new_name()
        write_json(work / _NOTE, {"collection": name})
        longest = _longest(_numbered(parts))
        place = _write(cls._at(name, goal), name, _numbered(parts), longest, goal, progress)
        return {"collection": _write_place(folder, place)}

    @property
    def manifest(self) -> IndexManifest:
        return replace(self._manifest, count=len(self))

    def __len__(self) -> int:
        return self._manifest.count - len(self._removed) + len(self._added.ids)

    def add(self, ids: Sequence[str], embeddings: FloatArray) -> None:
        dimension, dtype = self._manifest.dimension, self._manifest.dtype
        embeddings = checked_embeddings(embeddings, dimension, dtype)
        check_new_ids(ids, embeddings, self._known(ids))
        first = self._manifest.count + len(self._added.ids)
        added = StoredVectors(
            list(ids), np.arange(first, first + len(ids)), _rounded(embeddings, dtype)
        )
        self._added = _joined([self._added, added])

    def remove(self, ids: Sequence[str]) -> int:
        known = self._known(ids)
        if unknown := [one for one in ids if one not in known]:
            raise ImpRAGError(f"the passage {unknown[0]!r} is not in the index")
        gone = set(ids)
        stored = gone.difference(self._added.ids)
        keep = [n for n, one in enumerate(self._added.ids) if one not in gone]
        self._added = _chosen(self._added, keep)
        self._removed |= stored
        return len(gone)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, list[list[str]]]:
        queries = checked_queries(queries, self._manifest.dimension, k, len(self))
        scores, ids = np.empty((len(queries), k), np.float32), []
        wanted = min(k + len(self._removed) + _MORE, self._manifest.count)
        stored = self._collection.search(_padded(queries), wanted) if len(queries) else []
        for n, found in enumerate(map(_without_padding, stored)):
            keep = [i for i, one in enumerate(found.ids) if one not in self._removed]
            candidates = _joined([_chosen(found, keep), self._added])
            own = candidates.embeddings @ queries[n]
            best = np.lexsort((candidates.rows, -own))[:k]
            if len(best) < k:
                raise ImpRAGError(
                    f"{self._manifest.location} found {len(best)} passages instead of {k}; choose "
                    "a smaller k, or an index of another kind"
                )
            scores[n] = own[best]
            ids.append([candidates.ids[i] for i in best])
        return scores, ids

    def embeddings(
        self, ids: Sequence[str], rows: npt.NDArray[np.int64] | None = None
    ) -> FloatArray:
        found = self._vectors(list(dict.fromkeys(ids)))
        place = {one: n for n, one in enumerate(found.ids)}
        for one in ids:
            if one not in place:
                raise ImpRAGError(f"the passage {one!r} is not in the index")
        return found.embeddings[[place[one] for one in ids]]

    def save(self, path: Path | str, *, corpus_fingerprint: str | None = None) -> None:
        path = expand_home(path)
        fingerprint = corpus_fingerprint or self._manifest.corpus_fingerprint
        goal = replace(self.manifest, corpus_fingerprint=fingerprint)
        here = path.resolve() == self._path.resolve()

        def write(folder: Path) -> IndexManifest:
            name = _new_name()
            longest = max(self._place.longest, _longest([self._added]))
            parts = _renumbered(self._blocks())
            place = _write(self._at(name, goal), name, parts, longest, goal, False)
            if here:
                place = replace(place, previous=self._place.collection)
            return replace(goal, files={"collection": _write_place(folder, place)})

        before = self._place.previous
        made = save_state(path, self._manifest, write)
        if here and before is not None:
            self._at(before, goal).drop()
        self._open(path, made)

    def verify(self) -> None:
        self._manifest.verify_files(self._path)
        if _digest(self._stored_blocks()) != self._place.sha256:
            raise damaged(self._path, f"the collection {self._place.collection} was changed")

    @classmethod
    def drop(cls, path: Path, manifest: IndexManifest) -> None:
        if manifest.files:
            place = _read_place(path, manifest)
            names = [place.collection, *filter(None, [place.previous])]
        else:
            names = _noted(building_folder(path))
        for name in names:
            cls._at(name, manifest).drop()

    def _open(self, path: Path, manifest: IndexManifest) -> None:
        self._path = path
        self._manifest = manifest
        self._place = _read_place(path, manifest)
        self._collection = self._at(self._place.collection, manifest)
        count = self._collection.count()
        if count != manifest.count:
            there = "is not there" if count is None else f"has {count:,} passages"
            raise FaultError(
                f"the collection {self._place.collection} at {manifest.location} {there}, but "
                f"{path} is of {manifest.count:,}; build the index again, with --overwrite"
            )
        if (dimension := self._collection.dimension() - 1) != manifest.dimension:
            raise FaultError(
                f"the collection {self._place.collection} at {manifest.location} has embeddings of "
                f"{dimension} numbers, but {path} is of {manifest.dimension}; build the index "
                "again, with --overwrite"
            )
        nothing = np.zeros((0, manifest.dimension), np.float32)
        self._added = StoredVectors([], np.zeros(0, np.int64), nothing)
        self._removed = set()

    @classmethod
    def _at(cls, name: str, manifest: IndexManifest) -> Collection:
        return cls.connect(name, replace(manifest, dimension=manifest.dimension + 1))

    def _known(self, ids: Sequence[str]) -> set[str]:
        return set(self._vectors(list(dict.fromkeys(ids))).ids)

    def _vectors(self, ids: Sequence[str]) -> StoredVectors:
        """The vectors of those ids that are in the index."""
        wanted = [one for one in ids if one not in self._removed]
        added = [n for n, one in enumerate(self._added.ids) if one in set(ids)]
        parts = [
            self._collection.fetch(wanted[n : n + _BLOCK]) for n in range(0, len(wanted), _BLOCK)
        ]
        return _joined([*map(_without_padding, parts), _chosen(self._added, added)])

    def _stored_blocks(self) -> Iterator[StoredVectors]:
        for start in range(0, self._manifest.count, _BLOCK):
            block = self._collection.block(range(start, start + _BLOCK))
            yield _sorted(_without_padding(block))

    def _blocks(self) -> Iterator[StoredVectors]:
        """All passages of the index as it is now, in the order of their rows."""
        for block in self._stored_blocks():
            yield _chosen(block, [n for n, one in enumerate(block.ids) if one not in self._removed])
        yield self._added


def _write(
    collection: Collection,
    name: str,
    blocks: Iterable[StoredVectors],
    longest: float,
    goal: IndexManifest,
    progress: bool,
) -> _Place:
    """Make a collection of vectors; if it fails, nothing is left of it.

    Args:
        collection: does not exist yet.
        name: of it.
        blocks: all vectors, in the order of their rows.
        longest: the length that all of them get.
        goal: the manifest of the index.
        progress: show a bar on standard error.
    """
    try:
        collection.create()
        with progress_bar("Sending", goal.count, progress) as bar:

            def sent() -> Iterator[StoredVectors]:
                for part in _in_blocks(blocks):
                    collection.insert(_of_length(part, longest, goal.dtype))
                    bar.update(len(part.ids))
                    yield part

            digest = _digest(sent())
        collection.finish()
        if (there := collection.count()) != goal.count:
            raise ImpRAGError(
                f"the collection {name} has {there} passages after sending {goal.count}"
            )
        return _Place(name, digest, longest)
    except Exception:
        with contextlib.suppress(ImpRAGError):
            collection.drop()
        raise


def _in_blocks(parts: Iterable[StoredVectors]) -> Iterator[StoredVectors]:
    for part in parts:
        for start in range(0, len(part.ids), _BLOCK):
            yield _chosen(part, list(range(start, min(start + _BLOCK, len(part.ids)))))


def _longest(blocks: Iterable[StoredVectors]) -> float:
    """The length of the longest vector."""
    return max((float(_lengths(one.embeddings).max(initial=0)) for one in blocks), default=0.0)


def _lengths(embeddings: FloatArray) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    return found


def _of_length(vectors: StoredVectors, length: float, dtype: str) -> StoredVectors:
    """The vectors with a further coordinate that gives them that length."""
    missing = np.sqrt(np.maximum(length**2 - _lengths(vectors.embeddings) ** 2, 0))
    further = np.minimum(missing, np.finfo(dtype).max).astype(np.float32)
    return replace(vectors, embeddings=np.column_stack([vectors.embeddings, further]))


def _padded(queries: FloatArray) -> FloatArray:
    return np.pad(queries, ((0, 0), (0, 1)))


def _without_padding(vectors: StoredVectors) -> StoredVectors:
    return replace(vectors, embeddings=vectors.embeddings[:, :-1])


def _write_place(folder: Path, place: _Place) -> StoredFile:
    content = json.dumps(asdict(place), indent=2).encode()
    return write_file(folder, "collection.json", lambda stream: stream.write(content))


def _read_place(folder: Path, manifest: IndexManifest) -> _Place:
    try:
        return _Place(**read_json(folder / manifest.files["collection"].name))
    except (KeyError, TypeError) as error:
        raise damaged(folder / MANIFEST, "it does not name a collection") from error


def _noted(work: Path) -> list[str]:
    """The collection of an unfinished build, as a list of at most one name."""
    try:
        return [read_json(work / _NOTE)["collection"]]
    except (ImpRAGError, KeyError, TypeError):
        return []


def _new_name() -> str:
    return f"imprag_{uuid.uuid4().hex[:24]}"


def _numbered(parts: EmbeddingParts) -> Iterator[StoredVectors]:
    row = 0
    for ids, embeddings in parts:
        yield StoredVectors(
            ids, np.arange(row, row + len(ids)), np.asarray(embeddings).astype(np.float32)
        )
        row += len(ids)


def _renumbered(blocks: Iterable[StoredVectors]) -> Iterator[StoredVectors]:
    return _numbered((block.ids, block.embeddings) for block in blocks)


def _digest(blocks: Iterable[StoredVectors]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        for one, embedding in zip(block.ids, block.embeddings, strict=True):
            data = one.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
            digest.update(np.ascontiguousarray(embedding, "<f4").data)
    return digest.hexdigest()


def _rounded(embeddings: FloatArray, dtype: str) -> FloatArray:
    return embeddings.astype(dtype).astype(np.float32)


def _sorted(vectors: StoredVectors) -> StoredVectors:
    return _chosen(vectors, np.argsort(vectors.rows).tolist())


def _chosen(vectors: StoredVectors, places: list[int]) -> StoredVectors:
    ids = [vectors.ids[n] for n in places]
    return StoredVectors(ids, vectors.rows[places], vectors.embeddings[places])


def _joined(parts: Sequence[StoredVectors]) -> StoredVectors:
    return StoredVectors(
        [one for part in parts for one in part.ids],
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
    )


def check_password_free(secrets: Iterable[str | None], advice: str) -> None:
    """Refuse a server's address with a password: it goes into the index folder.

    Args:
        secrets: the parts of the address that must be empty.
        advice: where the password belongs instead.

    Raises:
        ImpRAGError: there is a password.
    """
    if any(secrets):
        raise ImpRAGError(f"--uri must not hold a password, which would be stored: {advice}")
