"""Building an index: embed the passages in shards, then make one index of the shards.

The build works in ``OUT.building``, next to the folder to make:

1. Shards: ``shards/<number>-<checksum>.arrow``, ids and embeddings of consecutive passages, each
   written atomically. ``plan.json`` holds the settings that all of them share. This is the long
   part; a kill loses only the unfinished shard.
2. Index: the shards' vectors and ids go into one file each, as a stream; the search structure is
   trained on a sample of them and takes them in block by block.
3. The finished index becomes ``OUT``, in one step, and the rest is deleted.

The result depends on the passages, the encoder and the settings only, so a build that was
interrupted ends with the same bytes as one that was not.
"""

import dataclasses
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imprag.corpus.passage import Passage
from imprag.errors import ImpRAGError
from imprag.index.backends import INDEX_BACKENDS
from imprag.index.manifest import MANIFEST, IndexManifest
from imprag.index.passage_index import (
    DTYPES,
    FloatArray,
    PassageIndex,
    checked_embeddings,
    drop_vectors,
)
from imprag.io.building import (
    OVERWRITE,
    building_folder,
    check_name,
    claim,
    differences,
    discard,
    is_free,
    move_into_place,
    numbered_files,
    readable_size,
    remove_work,
    versions,
    write_file,
)
from imprag.io.files import atomic_path, expand_home
from imprag.io.locking import only_builder
from imprag.io.progress import progress_bar

_SHARD = 1024  # half a minute of work on a CPU; the workers of a cluster share a small corpus, too
_BASE_MEMORY = 150_000_000  # Python with NumPy, Arrow and FAISS


Encode = Callable[[Sequence[Passage]], FloatArray]
Note = Callable[[int], object]
MakeShards = Callable[["Passages", int, Mapping[int, range], Note], Iterator[tuple[int, bytes]]]
"""Embeds shards: from the passages, the batch size and the rows of every missing shard to the
number of each shard with its content, as :func:`shard_content` makes it, in any order. The last
argument is told how many more passages have been embedded."""


class Passages(Protocol):
    """What is needed of a :class:`~imprag.corpus.Corpus`: ids are unique, rows keep their order."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def passages(self, rows: Sequence[int]) -> list[Passage]: ...


def build_index(
    passages: Passages,
    encode: Encode,
    out: Path | str,
    *,
    model_fingerprint: str,
    dimension: int,
    kind: str = "flat",
    dtype: str = "float16",
    location: str = "",
    shard_size: int = _SHARD,
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    make_shards: MakeShards | None = None,
) -> PassageIndex:
    """Embed passages and index them; resumes an interrupted build.

    Args:
        passages: a corpus.
        encode: embeds up to ``batch_size`` passages, (number, dimension) float32. It may sort them
            by length and cut them into smaller batches as it likes.
        out: the folder to make. If it holds this very index already, that is opened.
        model_fingerprint: of the model behind ``encode``.
        dimension: of an embedding.
        kind: ``"flat"`` is exact, ``"ivfpq"`` small, ``"hnsw"`` quick; plug-ins add others (see
            :mod:`imprag.index.backends`).
        dtype: ``"float16"`` or ``"float32"``, in which embeddings are stored.
        location: the URI of the server, for kinds whose vectors lie on one; without a password.
        shard_size: passages embedded between two saves.
        batch_size: passages given to ``encode`` at once.
        seed: for the sample that ivfpq is trained on.
        overwrite: delete an index of other passages, of another model or with other settings,
            finished or not, and rebuild.
        progress: tell on standard error how much disk and memory it will take, and show a bar.
        make_shards: makes the missing shards in the place of ``encode``; see `MakeShards`.

    Raises:
        ImpRAGError: ``out`` holds something else; an unfinished build there has other settings; the
            kind is unknown; the corpus is empty or too small for it; an embedding is not finite;
            the disk is full. The parts that are finished are kept, except where they are of no
            use.
    """
    out = expand_home(out)
    goal = _goal(passages, model_fingerprint, dimension, kind, dtype, location, seed)
    backend = INDEX_BACKENDS.find(kind)
    backend.check_location(goal)
    plan = {**dataclasses.asdict(goal), "shard": shard_size, "batch": batch_size}
    work = building_folder(out)
    replace = overwrite and not _is_finished(out, goal)
    if replace or is_free(out) or work.exists():
        with only_builder(out) as alone:
            if replace and not _is_finished(out, goal):
                discard_index(out)
            if is_free(out):
                claim(work, plan, alone=alone, overwrite=overwrite)
                if progress:
                    predicted = predict_index(
                        passages,
                        dimension=dimension,
                        kind=kind,
                        dtype=dtype,
                        shard_size=shard_size,
                    )
                    print(_prediction(predicted, goal, out), file=sys.stderr)
                make = make_shards or partial(_make_shards, encode, dimension, dtype)
                shards = _write_shards(
                    work / "shards", passages, make, goal.count, shard_size, batch_size, progress
                )
                _write_index(work / "index", shards, goal, backend, progress)
                move_into_place(work / "index", out)
            manifest = _finished(out, goal)
            remove_work(work)
    else:
        manifest = _finished(out, goal)
    return backend(out, manifest)


def check_build(
    passages: Passages,
    dimension: int,
    *,
    kind: str = "flat",
    dtype: str = "float16",
    location: str = "",
    **other_settings: Any,
) -> None:
    """Refuse the arguments that :func:`build_index` refuses, before another index is deleted.

    Raises:
        ImpRAGError: as there.
    """
    goal = _goal(passages, "", dimension, kind, dtype, location, 0)
    INDEX_BACKENDS.find(kind).check_location(goal)


def holds_index(
    out: Path,
    passages: Passages,
    model_fingerprint: str,
    dimension: int,
    *,
    kind: str = "flat",
    dtype: str = "float16",
    location: str = "",
    seed: int = 0,
    **other_settings: Any,
) -> bool:
    """Whether :func:`build_index` with these arguments would only open what is in ``out``.

    Raises:
        ImpRAGError: there is no such kind of index, or the corpus is too small for it.
    """
    goal = _goal(passages, model_fingerprint, dimension, kind, dtype, location, seed)
    return _is_finished(out, goal)


def discard_index(out: Path) -> None:
    """Delete an index, and what it and an unfinished build of it hold on a server.

    The caller must hold its lock. An unfinished build can be resumed afterwards.

    Raises:
        ImpRAGError: the server fails. The finished index is not deleted then.
    """
    work = building_folder(out)
    shutil.rmtree(work / "index", ignore_errors=True)  # made again of its parts
    drop_vectors(out)
    if (out / MANIFEST).is_file():
        discard(out, work)


def _finished(out: Path, goal: IndexManifest) -> IndexManifest:
    """The manifest of the index in ``out``, if it is the one to build."""
    found = IndexManifest.read(out)
    wanted, there = dataclasses.asdict(goal), dataclasses.asdict(found)
    for made in ("files", "versions"):
        del wanted[made]
    other = differences(wanted, there)
    if other or "removed" in found.files:
        raise ImpRAGError(
            f"{out} holds an index already, with another {other or 'set of passages'}; "
            f"{OVERWRITE}, or choose another folder"
        )
    return found


def _is_finished(out: Path, goal: IndexManifest) -> bool:
    """Whether the index to build is there and can be opened."""
    try:
        INDEX_BACKENDS.find(goal.kind)(out, _finished(out, goal))
    except ImpRAGError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class IndexPrediction:
    """What an index takes, in bytes, before it is built.

    Attributes:
        kind: of the index.
        disk: of the finished index, ids included; without the passages and the lexical index.
        building: on disk while it is built.
        memory: while it is built, in addition to the encoder's.
        server: on the server that holds the vectors, if one does.
    """

    kind: str
    disk: int
    building: int
    memory: int
    server: int = 0


def predict_index(
    passages: Passages,
    *,
    dimension: int,
    kind: str = "flat",
    dtype: str = "float16",
    shard_size: int = _SHARD,
) -> IndexPrediction:
    """The size of an index, computed from its settings and the ids of some passages.

    Args:
        passages, dimension, kind, dtype, shard_size: as for :func:`build_index`.

    Raises:
        ImpRAGError: the kind is unknown, or the corpus is empty or too small for it.
    """
    goal = _goal(passages, "", dimension, kind, dtype, "", 0)
    first = passages.passages(range(min(100, goal.count)))
    id_bytes = 8 + sum(len(passage.id.encode()) for passage in first) / len(first)
    vector_bytes = dimension * np.dtype(dtype).itemsize
    shards = round(goal.count * (vector_bytes + id_bytes))
    backend = INDEX_BACKENDS.find(kind)
    own_disk, own_memory = backend.footprint(goal)
    server = backend.server_footprint(goal)
    disk = 0 if server else shards + own_disk
    memory = max(4 * shard_size * vector_bytes, own_memory) + _BASE_MEMORY
    return IndexPrediction(kind, disk, disk + shards, memory, server)


def _prediction(predicted: IndexPrediction, goal: IndexManifest, out: Path) -> str:
    """One line on the disk and memory that a build will take."""
    free = shutil.disk_usage(out.parent).free
    server = f"{readable_size(predicted.server)} on the server, " if predicted.server else ""
    return (
        f"{goal.kind} index of {goal.count:,} passages, {goal.dimension} x {goal.dtype}: "
        f"about {server}{readable_size(predicted.disk)} on disk, "
        f"{readable_size(predicted.building)} while building ({readable_size(free)} are free), "
        f"{readable_size(predicted.memory)} of memory in addition to the encoder"
    )


def _goal(
    passages: Passages,
    model_fingerprint: str,
    dimension: int,
    kind: str,
    dtype: str,
    location: str,
    seed: int,
) -> IndexManifest:
    """The manifest to be, without files and versions."""
    backend = INDEX_BACKENDS.find(kind)
    if dtype not in DTYPES:
        raise ImpRAGError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if not len(passages):
        raise ImpRAGError("the corpus is empty; there is nothing to index")
    return IndexManifest(
        backend=backend.backend,
        kind=kind,
        dimension=dimension,
        count=len(passages),
        dtype=dtype,
        model_fingerprint=model_fingerprint,
        corpus_fingerprint=passages.fingerprint,
        settings=backend.settings(kind, dimension, len(passages), seed),
        files={},
        versions={},
        location=location,
    )


def _write_shards(
    folder: Path,
    passages: Passages,
    make: MakeShards,
    count: int,
    shard_size: int,
    batch_size: int,
    progress: bool,
) -> list[Path]:
    """Embed what is not embedded yet; the paths of all shards, in order."""
    shards = [range(n, min(n + shard_size, count)) for n in range(0, count, shard_size)]
    paths = numbered_files(folder)
    missing = {number: rows for number, rows in enumerate(shards) if number not in paths}
    done = count - sum(map(len, missing.values()))
    with progress_bar("Encoding", count, progress, done) as bar:
        for number, content in make(passages, batch_size, missing, bar.update):
            file = write_file(folder, f"{number:06}.arrow", partial(_write, content))
            paths[number] = folder / file.name
    return [paths[number] for number in range(len(shards))]


def _write(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)


def _make_shards(
    encode: Encode,
    dimension: int,
    dtype: str,
    passages: Passages,
    batch_size: int,
    missing: Mapping[int, range],
    note: Note,
) -> Iterator[tuple[int, bytes]]:
    for number, rows in missing.items():
        yield number, shard_content(encode, dimension, dtype, passages, rows, batch_size, note)


def shard_content(
    encode: Encode,
    dimension: int,
    dtype: str,
    passages: Passages,
    rows: range,
    batch_size: int,
    note: Note,
) -> bytes:
    """The file of a shard: an Arrow file with ids and embeddings.

    Args:
        encode, dimension, dtype, passages, batch_size: as for :func:`build_index`.
        rows: of the shard's passages.
        note: is told how many more passages have been embedded.

    Raises:
        ImpRAGError: ``encode`` gives something else than finite embeddings of its passages.
    """
    ids: list[str] = []
    embeddings: list[npt.NDArray[Any]] = []
    for start in range(0, len(rows), batch_size):
        batch = passages.passages(rows[start : start + batch_size])
        made = encode(batch)
        where = f"passages {batch[0].id!r} to {batch[-1].id!r}"
        if len(made) != len(batch):
            raise ImpRAGError(f"{where}: {len(batch)} passages, but {len(made)} embeddings")
        try:
            made = checked_embeddings(made, dimension, dtype)
        except ImpRAGError as error:
            raise ImpRAGError(f"{where}: {error}") from error
        ids += [passage.id for passage in batch]
        embeddings.append(made.astype(dtype))
        note(len(batch))
    values = pa.array(np.concatenate(embeddings).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(values, dimension)
    shard = pa.record_batch({"id": pa.array(ids, pa.large_string()), "embedding": vectors})
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, shard.schema) as writer:
        writer.write_batch(shard)
    return stream.getvalue()


def _read_batch(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _write_index(
    target: Path,
    shards: list[Path],
    goal: IndexManifest,
    backend: type[PassageIndex],
    progress: bool,
) -> None:
    """Make the finished index of the shards, next to them."""
    if target.exists():
        return  # it is complete and only has to be moved
    for path in shards:
        check_name(path)
    with atomic_path(target) as folder:
        folder.mkdir()
        files = backend.create(folder, goal, _Parts(shards, goal.dimension), progress)
        made_by = versions(**backend.versions())
        dataclasses.replace(goal, files=files, versions=made_by).write(folder)


class _Parts:
    """Ids and embeddings, shard by shard, memory-mapped."""

    def __init__(self, shards: list[Path], dimension: int) -> None:
        self._shards = shards
        self._dimension = dimension

    def __iter__(self) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
        for path in self._shards:
            batch = _read_batch(path)
            values = batch["embedding"].flatten().to_numpy()
            yield batch["id"].to_pylist(), values.reshape(-1, self._dimension)
