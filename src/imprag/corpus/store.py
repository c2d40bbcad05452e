"""A corpus on disk: passages in a memory-mapped Arrow file.

A corpus folder holds

- ``passages.arrow``: the passages in order, in record batches of ``BATCH_ROWS`` rows, so that row
  ``i`` lies in batch ``i // BATCH_ROWS``;
- ``id-hashes.bin`` and ``id-rows.bin``: 64-bit hashes of all passage ids in ascending order, and
  the row of each. The build uses them to find duplicates, and lookups to find rows by id;
- ``corpus.json``: the manifest, with counts, fingerprint, source, and every file's size and
  checksum.
"""

import contextlib
import hashlib
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from imprag.corpus.passage import Passage
from imprag.corpus.readers import PassageReader, SkippedLines
from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, expand_home, read_json, sha256, write_json

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # version 1's fingerprint covers only ids, titles and texts
BATCH_ROWS = 1024  # part of the format
MANIFEST = "corpus.json"
PASSAGES = "passages.arrow"
ID_HASHES = "id-hashes.bin"
ID_ROWS = "id-rows.bin"
_FILES = (PASSAGES, ID_HASHES, ID_ROWS)
_UNSORTED = "unsorted.bin"

# Large strings, because a batch may hold more than 2 GB of text. Metadata is JSON, because its keys
# differ between passages; it is empty if there is none.
_SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text", "meta")])
_UINT64 = np.dtype("<u8")
_SORT_ROWS = 1 << 22
_CHECKED_BYTES = 1 << 24  # files up to this size are checksummed when opened

UInt64Array = npt.NDArray[np.uint64]


class Corpus:
    """Passages on disk, read by row without loading the rest.

    Create one with :meth:`build` or :meth:`open`. ``corpus[i]``, ``len(corpus)`` and iteration
    work as for a list.

    Attributes:
        path: the corpus folder.
        manifest: the content of ``corpus.json``: ``count``, ``words``, ``characters``,
            ``fingerprint``, ``text_fingerprint``, ``source``, ``credit``, ``skipped`` and
            ``files``.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        try:
            self._batches = pa.ipc.open_file(pa.memory_map(str(path / PASSAGES)))
        except (OSError, pa.ArrowInvalid) as error:
            raise _damaged(path / PASSAGES, str(error)) from error
        self._id_columns: dict[int, pa.Array] = {}  # memory-mapped
        self._hashes = _mapped(path / ID_HASHES)
        self._rows = _mapped(path / ID_ROWS)

    @classmethod
    def build(
        cls, passages: Iterable[Passage], path: Path, *, source: str = "", credit: str = ""
    ) -> Self:
        """Stream passages into a new corpus folder, and open it.

        Args:
            passages: the passages; they are read once. Lines that a
                :class:`~imprag.corpus.readers.PassageReader` skips are listed in the manifest.
            path: the folder to create; it appears complete or not at all.
            source: the origin of the passages, in words, for the manifest.
            credit: the credit and licence, for the manifest.

        Raises:
            ImpRAGError: the folder exists and is not empty, an id occurs twice, a passage has no
                id or no text, there are no passages, or the disk is full.
        """
        path = expand_home(path)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ImpRAGError(f"{path} exists already; delete it or choose another folder")
        with atomic_path(path) as folder:
            folder.mkdir()
            counts = _write_passages(passages, folder)
            skipped = passages.skipped if isinstance(passages, PassageReader) else SkippedLines()
            if not counts["count"]:
                raise ImpRAGError(
                    f"the corpus is empty: no passage in {source or 'the input'}"
                    + (f", {skipped.count} bad lines skipped" if skipped.count else "")
                )
            hashes = np.memmap(folder / _UNSORTED, _UINT64, mode="r")
            _sort_hashes(hashes, folder)
            files = {
                name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
                for name in _FILES
            }
            manifest = {
                "version": FORMAT_VERSION,
                **counts,
                "source": source,
                "credit": credit,
                "skipped": asdict(skipped),
                "files": files,
            }
            cls(folder, manifest)._check_unique(passages)
            del hashes
            (folder / _UNSORTED).unlink()
            write_json(folder / MANIFEST, manifest)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a corpus folder.

        Raises:
            ImpRAGError: the folder is not a corpus, was made by another version of ImpRAG, or has
                a missing or damaged file. Of large files only the size is checked.
        """
        path = expand_home(path)
        if not (path / MANIFEST).is_file():
            raise ImpRAGError(f"{path} is not a corpus folder: it has no {MANIFEST}")
        manifest = read_json(path / MANIFEST)
        if not _is_manifest(manifest):
            raise ImpRAGError(
                f"{path / MANIFEST} is not in corpus format {FORMAT_VERSION}; build it again"
            )
        for name, expected in manifest["files"].items():
            file = path / name
            if not file.is_file():
                raise _damaged(file, "it is missing")
            if file.stat().st_size != expected["bytes"]:
                raise _damaged(file, f"{file.stat().st_size} bytes, not {expected['bytes']}")
            if expected["bytes"] <= _CHECKED_BYTES:
                _check_content(file, expected)
        return cls(path, manifest)

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ImpRAGError: a file has changed since the corpus was built.
        """
        for name, expected in self.manifest["files"].items():
            _check_content(self.path / name, expected)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all ids, titles, texts and metadata in order, whatever the source's format.

        Indexes, KV caches and runs store it to notice that the corpus has changed.
        """
        return str(self.manifest["fingerprint"])

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 of all ids, titles and texts in order, which decide the embeddings."""
        return str(self.manifest.get("text_fingerprint", self.fingerprint))

    def __len__(self) -> int:
        return int(self.manifest["count"])

    def __getitem__(self, row: int) -> Passage:
        return self.passages([row])[0]

    def __iter__(self) -> Iterator[Passage]:
        for number in range(self._batches.num_record_batches):
            with self._reading():
                passages = list(map(_passage, self._batches.get_batch(number).to_pylist()))
            yield from passages

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {len(self)} passages)"

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """The passages of the given rows, in the given order.

        Raises:
            IndexError: a row lies outside the corpus.
        """
        with self._reading():
            return [_passage(fields) for fields in self._records(rows)]

    def ids(self, rows: Sequence[int]) -> list[str]:
        """The ids of the passages in the given rows, in the given order.

        Raises:
            IndexError: a row lies outside the corpus.
        """
        numbers = [range(len(self))[operator.index(row)] for row in rows]
        with self._reading():
            return [
                self._ids_of_batch(row // BATCH_ROWS)[row % BATCH_ROWS].as_py() for row in numbers
            ]

    def rows(self, ids: Sequence[str]) -> list[int]:
        """The rows of the passages with the given ids, in the given order.

        Raises:
            ImpRAGError: no passage has one of the ids.
        """
        found = []
        for passage_id, row in zip(ids, self.find(ids), strict=True):
            if row is None:
                raise ImpRAGError(f"no passage has the id {passage_id!r} in {self.path}")
            found.append(row)
        return found

    def find(self, ids: Sequence[str]) -> list[int | None]:
        """The rows of the passages with the given ids; None for an id that no passage has."""
        hashes = np.array([_hash(passage_id) for passage_id in ids], _UINT64)
        starts = np.searchsorted(self._hashes, hashes, "left")
        ends = np.searchsorted(self._hashes, hashes, "right")
        # Different ids may share a hash, so the ids themselves are compared.
        found: list[int | None] = [None] * len(ids)
        asked = np.repeat(np.arange(len(ids)), ends - starts).tolist()
        ranges = zip(starts, ends, strict=True)
        rows = [int(row) for start, end in ranges for row in self._rows[start:end]]
        if max(rows, default=0) >= len(self):
            raise _damaged(self.path / ID_ROWS, "it names rows that the corpus does not have")
        for number, row, known in zip(asked, rows, self.ids(rows), strict=True):
            if known == ids[number] and found[number] is None:
                found[number] = row
        return found

    def _ids_of_batch(self, number: int) -> pa.Array:
        if number not in self._id_columns:
            self._id_columns[number] = self._batches.get_batch(number).column("id")
        return self._id_columns[number]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn an error in reading the passages into one that names the file."""
        try:
            yield
        except (OSError, ValueError) as error:  # bases of Arrow's, JSON's and Unicode's errors
            raise _damaged(self.path / PASSAGES, str(error)) from error

    def _records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The given rows, in the given order.

        Rows are sliced one by one: taking them together would import pandas first.
        """
        batches: dict[int, pa.RecordBatch] = {}
        found = []
        for row in rows:
            number, place = divmod(range(len(self))[operator.index(row)], BATCH_ROWS)
            if number not in batches:
                batches[number] = self._batches.get_batch(number)
            found += batches[number].slice(place, 1).to_pylist()
        return found

    def _check_unique(self, passages: Iterable[Passage]) -> None:
        """Refuse an id that occurs twice; the error names file and line if they are known."""
        same_hash = self._rows[1:][self._hashes[1:] == self._hashes[:-1]]
        for row in np.sort(same_hash).tolist():
            passage_id = self[row].id
            first = self.rows([passage_id])[0]
            if first == row:
                continue
            places = [f"passage {number + 1}" for number in (first, row)]
            if isinstance(passages, PassageReader):
                places = [passages.locate(number) for number in (first, row)]
            raise ImpRAGError(
                f"the id {passage_id!r} occurs twice, in {places[0]} and in {places[1]}; "
                "give every passage its own id"
            )


def _mapped(file: Path) -> UInt64Array:
    try:
        return np.memmap(file, _UINT64, mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error


def _is_manifest(content: Any) -> bool:
    """Whether a manifest is complete, and of a version that can be read."""
    try:
        return (
            content["version"] in READABLE_VERSIONS
            and content["files"].keys() == set(_FILES)
            and all(file.keys() >= {"bytes", "sha256"} for file in content["files"].values())
            and content.keys() >= {"count", "fingerprint", "source", "credit", "skipped"}
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _write_passages(passages: Iterable[Passage], folder: Path) -> dict[str, Any]:
    """Write the Arrow file and the hashes of the ids in row order; return the counts."""
    count = words = characters = 0
    content, metadata = hashlib.sha256(), hashlib.sha256()
    stream = iter(tqdm(passages, "corpus", unit=" passages", delay=2, disable=None))
    with (
        pa.OSFile(str(folder / PASSAGES), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
        open(folder / _UNSORTED, "wb") as hashes,
    ):
        while batch := list(itertools.islice(stream, BATCH_ROWS)):
            for number, passage in enumerate(batch, count + 1):
                for data in _encoded(passage, number):
                    content.update(len(data).to_bytes(8, "little"))
                    content.update(data)
                hashes.write(_hash(passage.id).to_bytes(8, "little"))
                words += len(passage.text.split())
                characters += len(passage.text)
            count += len(batch)
            records = _record_batch(batch)
            for meta in records["meta"].to_pylist():
                metadata.update(f"{len(meta)} {meta}".encode())
            writer.write_batch(records)
    fingerprint = hashlib.sha256(content.digest() + metadata.digest())
    return {
        "count": count,
        "words": words,
        "characters": characters,
        "fingerprint": fingerprint.hexdigest(),
        "text_fingerprint": content.hexdigest(),
    }


def _encoded(passage: Passage, number: int) -> tuple[bytes, bytes, bytes]:
    """A passage's id, title and text in UTF-8. A passage without id or text is refused."""
    if not passage.id:
        raise ImpRAGError(f"passage {number} has no id")
    if not passage.text.strip():
        raise ImpRAGError(f"passage {number} ({passage.id!r}) has no text")
    try:
        return passage.id.encode(), passage.title.encode(), passage.text.encode()
    except UnicodeEncodeError as error:
        raise ImpRAGError(f"passage {number} ({passage.id!r}) is not valid UTF-8") from error


def _record_batch(passages: Sequence[Passage]) -> pa.RecordBatch:
    columns = [
        [passage.id for passage in passages],
        [passage.title for passage in passages],
        [passage.text for passage in passages],
        [
            json.dumps(dict(passage.meta), default=str) if passage.meta else ""
            for passage in passages
        ],
    ]
    arrays = [pa.array(column, pa.large_string()) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _passage(row: dict[str, str]) -> Passage:
    meta = json.loads(row["meta"]) if row["meta"] else {}
    return Passage(row["id"], row["title"], row["text"], meta)


def _hash(passage_id: str) -> int:
    # Callers may look up any string, even one that cannot be an id.
    data = passage_id.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _sort_hashes(hashes: UInt64Array, folder: Path) -> None:
    """Write the hashes in ascending order, and their rows, in bounded memory.

    Sorts one range of hash values after another. Hashes are uniform, so each range has about
    ``_SORT_ROWS`` of them. Equal hashes keep the order of their rows.
    """
    ranges = -(-len(hashes) // _SORT_ROWS)
    edges = [(1 << 64) * number // ranges for number in range(ranges + 1)]
    with open(folder / ID_HASHES, "wb") as sorted_hashes, open(folder / ID_ROWS, "wb") as rows:
        for low, high in itertools.pairwise(edges):
            chosen = np.flatnonzero((hashes >= np.uint64(low)) & (hashes <= np.uint64(high - 1)))
            order = np.argsort(hashes[chosen], kind="stable")
            hashes[chosen[order]].tofile(sorted_hashes)
            chosen[order].astype(_UINT64).tofile(rows)


def _check_content(file: Path, expected: dict[str, Any]) -> None:
    if sha256(file) != expected["sha256"]:
        raise _damaged(file, "its checksum differs")


def _damaged(file: Path, reason: str) -> ImpRAGError:
    return ImpRAGError(f"{file} is damaged ({reason}); delete {file.parent} and build it again")
