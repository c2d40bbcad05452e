"""The FAISS back end of :class:`~imprag.index.passage_index.PassageIndex`."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imprag.errors import ImpRAGError
from imprag.index.faiss.structures import STRUCTURES
from imprag.index.faiss.vectors import empty_vectors, map_faiss, vector_blocks, write_vectors
from imprag.index.manifest import MANIFEST, IndexManifest, save_state
from imprag.index.passage_index import (
    EmbeddingParts,
    FloatArray,
    PassageIndex,
    check_new_ids,
    checked_embeddings,
    checked_queries,
)
from imprag.io.building import StoredFile, damaged, versions, write_file
from imprag.io.files import expand_home


class FaissIndex(PassageIndex):
    """Vectors in FAISS files and ids in an Arrow file, all memory-mapped.

    A passage is identified by its row, its place in both the vectors and the ids. Rows never change
    and are never reused:

    - added passages are kept in memory in a second, flat index, which is searched together with the
      stored one; :meth:`save` makes them part of the stored files;
    - removed passages stay in the files but are skipped in every search. Rebuilding the index frees
      their space.

    Args:
        path: the folder.
        manifest: what it holds.
    """

    backend = "faiss"

    _ids: pa.ChunkedArray  # of all rows, the added and the removed ones as well
    _added: Any
    _removed: npt.NDArray[np.int64]  # rows, ascending

    def __init__(self, path: Path, manifest: IndexManifest) -> None:
        self._open(path, manifest)

    @classmethod
    def settings(cls, kind: str, dimension: int, count: int, seed: int) -> dict[str, int]:
        structure = STRUCTURES.get(kind)
        return structure.settings(dimension, count, seed) if structure else {}

    @classmethod
    def footprint(cls, goal: IndexManifest) -> tuple[int, int]:
        structure = STRUCTURES.get(goal.kind)
        if structure is None:
            return 0, 0
        size = goal.dimension, goal.count
        memory = structure.memory(goal.settings, *size, goal.dtype)
        return structure.disk(goal.settings, *size), memory

    @classmethod
    def create(
        cls, folder: Path, goal: IndexManifest, parts: EmbeddingParts, progress: bool
    ) -> dict[str, StoredFile]:
        def vectors(stream: BinaryIO) -> None:
            blocks = (embeddings for _, embeddings in parts)
            write_vectors(stream, goal.dimension, goal.dtype, goal.count, blocks)

        def ids(stream: BinaryIO) -> None:
            write_ids(stream, (pa.array(ids, pa.large_string()) for ids, _ in parts))

        files = {
            "vectors": write_file(folder, "vectors.faiss", vectors),
            "ids": write_file(folder, "ids.arrow", ids),
        }
        if structure := STRUCTURES.get(goal.kind):
            stored = map_faiss(folder / files["vectors"].name)
            built = structure.build(stored, goal.dtype, goal.settings, progress)
            files["structure"] = write_file(
                folder, f"{goal.kind}.faiss", lambda stream: structure.write(built, stream)
            )
        return files

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"faiss": faiss.__version__}

    @property
    def manifest(self) -> IndexManifest:
        return dataclasses.replace(self._manifest, count=len(self))

    def __len__(self) -> int:
        return len(self._ids) - len(self._removed)

    def add(self, ids: Sequence[str], embeddings: FloatArray) -> None:
        dimension, dtype = self._manifest.dimension, self._manifest.dtype
        embeddings = checked_embeddings(embeddings, dimension, dtype)
        check_new_ids(ids, embeddings, self._rows(ids))
        # Rounded as in the file, so that saving changes no score.
        self._added.add(embeddings.astype(dtype).astype(np.float32))
        self._ids = pa.chunked_array([*self._ids.chunks, pa.array(ids, pa.large_string())])
        self._select()

    def remove(self, ids: Sequence[str]) -> int:
        rows = self._known_rows(ids)
        self._removed = np.union1d(self._removed, np.fromiter(rows.values(), np.int64))
        self._select()
        return len(rows)

    def embeddings(
        self, ids: Sequence[str], rows: npt.NDArray[np.int64] | None = None
    ) -> FloatArray:
        if rows is None or not self._has(ids, rows):
            row_of = self._known_rows(ids)
            rows = np.array([row_of[passage_id] for passage_id in ids], np.int64)
        stored = self._vectors.ntotal
        found = np.empty((len(rows), self._manifest.dimension), np.float32)
        for vectors, first, here in (
            (self._vectors, 0, rows < stored),
            (self._added, stored, rows >= stored),
        ):
            if here.any():
                found[here] = vectors.reconstruct_batch(rows[here] - first)
        return found

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, list[list[str]]]:
        queries = checked_queries(queries, self._manifest.dimension, k, len(self))
        scores, rows = self._search_stored(queries, k)
        if self._added.ntotal:
            selected = faiss.SearchParameters(sel=self._added_selector)
            added_scores, added_rows = self._added.search(queries, k, params=selected)
            added_rows[added_rows >= 0] += self._vectors.ntotal
            scores = np.hstack([scores, added_scores])
            rows = np.hstack([rows, added_rows])
        # Equal scores in the order of their rows, whatever the kind.
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        found = np.take_along_axis(rows, order, 1).tolist()
        ids = [[self._ids[row].as_py() for row in best] for best in found]
        return np.take_along_axis(scores, order, 1), ids

    def save(self, path: Path | str, *, corpus_fingerprint: str | None = None) -> None:
        path = expand_home(path)
        fingerprint = corpus_fingerprint or self._manifest.corpus_fingerprint
        manifest = dataclasses.replace(self.manifest, corpus_fingerprint=fingerprint)
        self._open(
            path, save_state(path, self._manifest, lambda folder: self._write(folder, manifest))
        )

    def verify(self) -> None:
        self._manifest.verify_files(self._path)

    def _open(self, path: Path, manifest: IndexManifest) -> None:
        self._path = path
        self._manifest = manifest
        self._structure = STRUCTURES.get(manifest.kind)
        self._vectors = map_faiss(self._file("vectors"))
        self._searched = self._vectors
        if self._structure is not None:
            self._searched = self._structure.open(self._file("structure"), self._vectors)
        self._removed = np.zeros(0, np.int64)
        try:
            self._ids = map_ids(self._file("ids"))
            if "removed" in manifest.files:
                self._removed = np.load(self._file("removed"))
        except (ValueError, KeyError) as error:  # Arrow's errors are such, too
            raise damaged(path, f"its ids cannot be read: {error}") from error
        rows = {self._vectors.ntotal, self._searched.ntotal, len(self._ids)}
        if rows != {manifest.count + len(self._removed)}:
            raise damaged(path / MANIFEST, f"{manifest.count} passages, its files have {rows}")
        self._added = empty_vectors(manifest.dimension, manifest.dtype)
        self._select()

    def _file(self, role: str) -> Path:
        if role not in self._manifest.files:
            raise damaged(self._path / MANIFEST, f"it names no file for {role}")
        return self._path / self._manifest.files[role].name

    def _rows(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of those ids that are in the index."""
        import pyarrow.compute as pc  # takes a tenth of a second, and searches need none of it

        wanted = pa.array(ids, pa.large_string())
        found = np.flatnonzero(pc.is_in(self._ids, value_set=wanted).to_numpy())
        found = np.setdiff1d(found, self._removed)
        return {self._ids[row].as_py(): row for row in found.tolist()}

    def _has(self, ids: Sequence[str], rows: npt.NDArray[np.int64]) -> bool:
        """Whether the passages with these ids, none of them removed, stand in these rows."""
        if len(self._removed) or (len(rows) and rows.max() >= len(self._ids)):
            return False
        return [self._ids[row].as_py() for row in rows.tolist()] == list(ids)

    def _known_rows(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of ids, all of which have to be in the index."""
        rows = self._rows(ids)
        if unknown := [passage_id for passage_id in ids if passage_id not in rows]:
            raise ImpRAGError(f"the passage {unknown[0]!r} is not in the index")
        return rows

    def _select(self) -> None:
        """Renew what tells FAISS which rows to pass over."""
        stored = self._vectors.ntotal
        self._stored_selector = _selector(stored, self._removed)
        self._added_selector = _selector(self._added.ntotal, self._removed - stored)

    def _search_stored(
        self, queries: FloatArray, k: int
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Scores and rows of stored vectors, (queries, k); row -1 where there are fewer."""
        exact = faiss.SearchParameters(sel=self._stored_selector)
        scores: FloatArray
        rows: npt.NDArray[np.int64]
        if self._structure is None:
            scores, rows = self._vectors.search(queries, k, params=exact)
            return scores, rows
        settings, selector = self._manifest.settings, self._stored_selector
        approximate = self._structure.parameters(settings, k, selector)
        scores, rows = self._searched.search(queries, k, params=approximate)
        # The lists, or the part of the graph, that were looked at may hold fewer than k.
        few = (rows < 0).any(axis=1)
        if few.any():
            scores[few], rows[few] = self._vectors.search(queries[few], k, params=exact)
        return scores, rows

    def _write(self, folder: Path, manifest: IndexManifest) -> IndexManifest:
        """Write the files as they are now; a file that is in the folder and still right is kept."""
        files = dict(self._manifest.files)
        if self._added.ntotal:
            files["vectors"] = write_file(folder, "vectors.faiss", self._write_vectors)
            files["ids"] = write_file(folder, "ids.arrow", self._write_ids)
            if self._structure is not None:
                name = f"{manifest.kind}.faiss"
                files["structure"] = write_file(folder, name, self._write_structure)
        if len(self._removed):
            removed = self._removed
            files["removed"] = write_file(folder, "removed.npy", lambda s: np.save(s, removed))
        for file in files.values():
            if not (folder / file.name).exists():
                shutil.copyfile(self._path / file.name, folder / file.name)
        made_by = versions(**self.versions())
        return dataclasses.replace(manifest, files=files, versions=made_by)

    def _write_vectors(self, stream: BinaryIO) -> None:
        blocks = itertools.chain(vector_blocks(self._vectors), vector_blocks(self._added))
        dimension, dtype = self._manifest.dimension, self._manifest.dtype
        write_vectors(stream, dimension, dtype, len(self._ids), blocks)

    def _write_ids(self, stream: BinaryIO) -> None:
        write_ids(stream, self._ids.chunks)

    def _write_structure(self, stream: BinaryIO) -> None:
        assert self._structure is not None
        added = self._added.reconstruct_n(0, self._added.ntotal)
        path, dtype = self._file("structure"), self._manifest.dtype
        structure = self._structure.extend(path, self._vectors, dtype, added)
        self._structure.write(structure, stream)


def write_ids(stream: BinaryIO, chunks: Iterable[pa.Array]) -> None:
    """Write passage ids, in the order of their rows, as an Arrow file."""
    schema = pa.schema([("id", pa.large_string())])
    with pa.ipc.new_file(stream, schema) as writer:
        for chunk in chunks:
            writer.write_batch(pa.record_batch([chunk], schema))


def map_ids(path: Path) -> pa.ChunkedArray:
    """Passage ids, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["id"]


def _selector(rows: int, removed: npt.NDArray[np.int64]) -> Any:
    """Lets FAISS see those of the first rows that are not removed; None where that is all."""
    hidden = removed[(removed >= 0) & (removed < rows)]
    if not len(hidden):
        return None
    visible = np.ones(rows, np.bool_)
    visible[hidden] = False
    return faiss.IDSelectorBitmap(np.packbits(visible, bitorder="little"))
