"""Streams passages from files and folders in the usual corpus formats."""

import datetime
import decimal
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from imprag.corpus import documents
from imprag.corpus.decoding import READ_ERRORS, name_without_compression
from imprag.corpus.folders import FolderFiles, folder_files, is_special, kind_by_name
from imprag.corpus.json_records import json_records
from imprag.corpus.kilt_page import kilt_passages
from imprag.corpus.passage import Passage
from imprag.corpus.questions import QUESTIONS, holds_passages, kind_of_questions
from imprag.corpus.records import BadRecord, Document, Record
from imprag.corpus.tables import arrow_records, dataset_records, parquet_records
from imprag.corpus.text import split_spans
from imprag.corpus.tsv import tsv_records
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home

#: Raise it when the same files give other passages, so that cached corpora are read again.
REVISION = 5

_DOCUMENT_WORDS = 100
_LISTED_LINES = 100
_LOOKED_AHEAD = 1000
_OWN_FIELDS = {"id", "_id", "title", "text", "contents", "meta"}
_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]"
)

_FILE_FORMATS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "jsonl": json_records,
    "kilt": json_records,  # its records are pages, recognised by "wikipedia_title"
    "tsv": tsv_records,
    "parquet": parquet_records,
    "arrow": arrow_records,
}
_FORMATS = (*_FILE_FORMATS, "datasets", "text")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    **dict.fromkeys(documents.SUFFIXES, "text"),
}
_COMPRESSED_FORMATS = ("jsonl", "tsv", "text")
#: Formats that are skipped in folders, where they belong to datasets and built corpora.
_ONLY_BY_NAME = ("arrow",)


@dataclass
class SkippedLines:
    """The lines, documents and files that a reader skipped, and the ids that it had to make.

    Attributes:
        count: the number of lines, rows or files that cannot be read.
        first: the problems of the first hundred of them.
        empty: the number of documents, or KILT pages, without text.
        unread: the number of other files in a folder, by kind.
        numbered: the number of records without an id, whose number became their id.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    empty: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    numbered: int = 0

    def add(self, problem: str) -> None:
        """Count a line; ``problem`` says where it is and what is wrong."""
        self.count += 1
        if len(self.first) < _LISTED_LINES:
            self.first.append(problem)

    def summary(self) -> list[str]:
        """Lines that tell the user what was skipped."""
        lines = []
        if self.count:
            lines.append("\n  ".join([f"skipped {self.count} bad lines:", *self.first]))
        if self.empty:
            lines.append(f"documents without text, skipped: {self.empty}")
        if self.unread:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in self.unread.items())
            lines.append(f"not read: {kinds}")
        return lines

    def join(self, other: "SkippedLines") -> None:
        """Add what was skipped in another part of the corpus."""
        self.count += other.count
        self.first = (self.first + other.first)[:_LISTED_LINES]
        self.empty += other.empty
        self.numbered += other.numbered
        self.unread = dict(Counter(self.unread) + Counter(other.unread))


class PassageReader:
    """The passages of a file or folder; every iteration reads them again.

    Attributes:
        path: the file or folder.
        skipped: what the latest iteration skipped.
    """

    def __init__(
        self, path: Path, format: str | None, max_words: int | None, skip_bad_lines: bool
    ) -> None:
        self.path = path
        self.skipped = SkippedLines()
        self._format = format
        self._max_words = max_words
        self._skip_bad_lines = skip_bad_lines
        self._prefix = ""
        self._number_prefix: str | None = None

    def with_prefix(self, prefix: str) -> "PassageReader":
        """A reader of the same passages that puts a prefix before generated ids."""
        reader = PassageReader(self.path, self._format, self._max_words, self._skip_bad_lines)
        reader._prefix = prefix
        return reader

    def __iter__(self) -> Iterator[Passage]:
        self.skipped = SkippedLines()
        return (passage for _, passage in self._located(self.skipped))

    def locate(self, row: int) -> str:
        """The file and line of the passage in row ``row``, counted from 0."""
        return next(itertools.islice(self._located(SkippedLines()), row, None))[0]

    def _located(self, skipped: SkippedLines) -> Iterator[tuple[str, Passage]]:
        records = self._records(skipped)
        has_good, number = False, 0
        for record in records:
            number += not isinstance(record.fields, Document)
            try:
                passages = self._passages(record, number, skipped)
            except BadRecord as problem:
                if not self._skip_bad_lines:
                    has_good = has_good or self._any_good(records)
                    advice = " (--skip-bad-lines skips such lines)" if has_good else ""
                    raise ImpRAGError(f"{record.place}: {problem}{advice}") from problem
                skipped.add(f"{record.place}: {problem}")
                continue
            has_good = True
            skipped.empty += not passages
            for passage in passages:
                yield record.place, passage

    def _records(self, skipped: SkippedLines) -> Iterator[Record]:
        if self.path.is_dir() and self._format != "datasets":
            found = corpus_files(self.path, self._format)
            skipped.unread = dict(sorted(found.unread.items()))
            for file in found.files:
                yield from _file_records(file, self.path, self._format)
        else:
            yield from _file_records(self.path, self.path.parent, self._format)

    def _passages(self, record: Record, number: int, made: SkippedLines) -> list[Passage]:
        if isinstance(record.fields, Document):
            return list(_document_passages(record.fields, self._prefix, self._max_words))
        make_id = partial(self._generated_id, number, made)
        return list(_record_passages(record.fields, make_id, self._max_words))

    def _generated_id(self, number: int, made: SkippedLines) -> str:
        """The id of a record without one: its number, prefixed if other records have ids."""
        made.numbered += 1
        if self._number_prefix is None:
            self._number_prefix = self._unused_prefix()
        return f"{self._prefix}{self._number_prefix}{number}"

    def _unused_prefix(self) -> str:
        """A prefix that no given id begins with; empty if no record has an id."""
        prefix = ""
        for record in self._records(SkippedLines()):
            if given := _given_id(record.fields):
                prefix = prefix or f"{self.path.name}#"
                while given.startswith(prefix):
                    prefix += "#"
        return prefix

    def _any_good(self, records: Iterator[Record]) -> bool:
        """Whether one of the next records is good, so that skipping bad ones helps."""
        try:
            for record in itertools.islice(records, _LOOKED_AHEAD):
                try:
                    if self._passages(record, 1, SkippedLines()):
                        return True
                except BadRecord:
                    continue
        except ImpRAGError:
            pass  # the file cannot be read any further
        return False


class JoinedReader(PassageReader):
    """The passages of several corpora, one after another.

    Args:
        parts: readers or built corpora.
    """

    def __init__(self, parts: Sequence[PassageReader | Iterable[Passage]]) -> None:
        self.skipped = SkippedLines()
        self._parts = parts

    def __iter__(self) -> Iterator[Passage]:
        self.skipped = SkippedLines()
        for part in self._parts:
            yield from part
            if isinstance(part, PassageReader):
                self.skipped.join(part.skipped)

    def _located(self, skipped: SkippedLines) -> Iterator[tuple[str, Passage]]:
        for part in self._parts:
            if isinstance(part, PassageReader):
                yield from part._located(skipped)
            else:
                yield from ((f"{part!r}", passage) for passage in part)


def read_passages(
    path: str | Path,
    format: str | None = None,
    skip_bad_lines: bool = False,
    max_words: int | None = None,
) -> PassageReader:
    """Read the passages of a file or folder as a stream.

    Args:
        path: a file; a folder, whose files in known formats are all read; or a dataset on disk.
        format: ``jsonl``, ``kilt``, ``tsv``, ``parquet``, ``arrow``, ``datasets`` or ``text``. By
            default the names of the files decide.
        skip_bad_lines: skip lines that cannot be read, and list them in ``skipped``. By default
            the first such line is an error.
        max_words: the maximum number of words per passage; longer texts are split. By default
            documents (``text``, ``kilt``) are split at 100 words and other records are not split.

    Returns:
        An iterable of passages. Lines are read, and their errors raised, during the iteration.

    Raises:
        ImpRAGError: ``path`` does not exist or has no known format.
    """
    path = expand_home(path)
    if not path.exists():
        raise ImpRAGError(f"{path} does not exist")
    if is_special(path):
        raise ImpRAGError(
            f"{path} is neither a file nor a folder; a corpus is read more than once, so save it "
            "as a file"
        )
    if format is not None and format not in _FORMATS:
        raise ImpRAGError(f"unknown corpus format {format!r}; choose one of {', '.join(_FORMATS)}")
    if max_words is not None and max_words < 1:
        raise ImpRAGError(f"max_words is {max_words}; a passage needs at least one word")
    if format is None:
        format = _folder_format(path) if path.is_dir() else _file_format(path)
    return PassageReader(path, format, max_words, skip_bad_lines)


def corpus_files(folder: Path, format: str | None = None) -> FolderFiles:
    """The files of a folder to read, in the given format or in any known one.

    Raises:
        ImpRAGError: there are no such files, or a folder cannot be listed.
    """

    def kind_if_unread(file: Path) -> str | None:
        return kind_of_questions(file) or (None if is_read(file) else kind_by_name(file))

    def is_read(file: Path) -> bool:
        name = _format_of(file)
        if format in ("jsonl", "kilt"):
            return name == "jsonl"
        if format is not None or name is None:
            return name == format and name is not None
        if file.name.lower().endswith(".json"):
            return holds_passages(file)
        return name not in _ONLY_BY_NAME

    try:
        found = folder_files(folder, kind_if_unread)
    except OSError as error:
        raise ImpRAGError(f"cannot read {folder}: {error}") from error
    if not found.files:
        if found.unread.keys() & QUESTIONS:
            raise ImpRAGError(
                f"{folder} holds the questions of a data set without its passages; give the file "
                "of the passages, which BEIR and FlashRAG name corpus.jsonl"
            )
        known = [suffix for suffix in _SUFFIXES if _SUFFIXES[suffix] not in _ONLY_BY_NAME]
        raise ImpRAGError(f"{folder} holds no file in a known format ({', '.join(known)})")
    return found


def source_files(path: Path) -> list[Path]:
    """All files that the passages of a file, folder or dataset are read from."""
    if not path.is_dir():
        return [path]
    if _folder_format(path) == "datasets":
        return sorted(file for file in path.rglob("*") if file.is_file())
    return corpus_files(path).files


def _format_of(file: Path) -> str | None:
    """The format of a file according to its name; None if it is unknown."""
    plain_name = name_without_compression(file)
    name = next((_SUFFIXES[end] for end in _SUFFIXES if plain_name.endswith(end)), None)
    is_compressed = len(plain_name) < len(file.name)
    return name if name in _COMPRESSED_FORMATS or not is_compressed else None


def _file_format(file: Path) -> str:
    if name := _format_of(file):
        return name
    raise ImpRAGError(
        f"cannot tell the format of {file}; known are {', '.join(_SUFFIXES)}, some of them "
        "compressed (.gz, .bz2, .xz), folders of such files, and datasets"
    )


def _folder_format(folder: Path) -> str | None:
    """``datasets`` for a dataset; None for a folder of files in any format."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in folder.iterdir() if part.is_dir())
        raise ImpRAGError(f"{folder} holds several datasets; choose one: {', '.join(splits)}")
    return "datasets" if (folder / "dataset_info.json").is_file() else None


def _file_records(file: Path, folder: Path, format: str | None) -> Iterator[Record]:
    """Yield the records of a file or dataset.

    Raises:
        ImpRAGError: the file or dataset cannot be opened or is damaged.
    """
    name = format or _file_format(file)
    try:
        if name == "text":
            yield documents.document_record(file, folder)
        else:
            yield from (dataset_records if name == "datasets" else _FILE_FORMATS[name])(file)
    except READ_ERRORS as error:
        raise ImpRAGError(f"cannot read {file}: {' '.join(str(error).split())}") from error


def _document_passages(document: Document, prefix: str, max_words: int | None) -> Iterator[Passage]:
    """Yield the passages of a document; their metadata holds its name as ``file``."""
    name = prefix + document.name
    number = 0
    for title, text in document.sections():
        for start, end in split_spans(text, max_words or _DOCUMENT_WORDS):
            if not _VISIBLE.search(text, start, end):
                continue
            number += 1
            yield Passage(f"{name}/{number}", title, text[start:end], {"file": name})


def _record_passages(
    fields: Mapping[str, Any] | BadRecord, make_id: Callable[[], str], max_words: int | None
) -> Iterator[Passage]:
    if isinstance(fields, BadRecord):
        raise fields
    if "wikipedia_title" in fields:
        yield from _kilt_page(fields, _DOCUMENT_WORDS if max_words is None else max_words)
        return
    passage = _passage(fields, make_id)
    if max_words is None:
        yield passage
        return
    for part, (start, end) in enumerate(split_spans(passage.text, max_words), 1):
        yield replace(passage, id=f"{passage.id}/{part}", text=passage.text[start:end])


def _passage(fields: Mapping[str, Any], make_id: Callable[[], str]) -> Passage:
    """The passage in a record. ``_id`` and ``contents`` are other names of ``id`` and ``text``.

    Other fields that hold text or numbers become metadata.
    """
    meta = fields.get("meta")
    others = {
        name: value
        for name, value in fields.items()
        if name not in _OWN_FIELDS and isinstance(value, str | int | float) and value == value
    }
    given_id = _id(_first(fields, "id", "_id"))
    title, text = _title(fields.get("title")), _text(_first(fields, "text", "contents"))
    if not title and _is_missing(fields.get("text")):
        title, text = _titled(text)
    return Passage(
        id=make_id() if given_id is None else given_id,
        title=title,
        text=text,
        meta={**(meta if isinstance(meta, Mapping) else {}), **others},
    )


def _titled(contents: str) -> tuple[str, str]:
    """Title and text of FlashRAG's ``contents``, whose first line is the title in quotes."""
    line, _, text = contents.partition("\n")
    if len(line) > 2 and line[0] == line[-1] == '"' and _VISIBLE.search(text):
        return line[1:-1], text
    return "", contents


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if not _is_missing(fields.get(name))), None)


def _is_missing(value: Any) -> bool:
    """Whether a value is missing: None, or the NaN that pandas writes instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _id(value: Any) -> str | None:
    """The id in a record: a string or a whole number, which pandas may have stored as a float."""
    if value is None:
        return None
    # True is an int in Python but not an id.
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    identifier = str(int(value)) if is_whole else _string("id", value)
    if not identifier:
        raise BadRecord('"id" is empty')
    return identifier


def _given_id(fields: Mapping[str, Any] | Document | BadRecord) -> str:
    """The id of a good record; empty if it has none."""
    if isinstance(fields, Document):
        return ""
    try:
        passages = _record_passages(fields, lambda: "", None)
        return next((passage.id for passage in passages), "")
    except BadRecord:
        return ""


def _title(value: Any) -> str:
    """The title in a record. It may be a number or a date: 1984 is a book."""
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float | decimal.Decimal | datetime.date):
        return str(value)
    return _string("title", value)


def _text(value: Any) -> str:
    if _is_missing(value):
        raise BadRecord('no "text"; expected {"text": "…"}, optionally with "id" and "title"')
    text = _string("text", value)
    if not _VISIBLE.search(text):
        raise BadRecord('"text" is empty')
    return text


def _string(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise BadRecord(f'"{name}" is {json.dumps(value, default=str)[:40]}; expected a string')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f'"{name}" is not valid UTF-8 at character {error.start}') from error
    if "\0" in value:
        raise BadRecord(f'"{name}" contains NUL characters; is it UTF-16?')
    return value


def _kilt_page(fields: Mapping[str, Any], max_words: int) -> Iterator[Passage]:
    """Yield the passages of a page of the KILT knowledge source.

    Headings (``Section::::``) are dropped. The metadata holds the page and the passage's
    paragraph numbers, which KILT's provenance refers to.
    """
    title = _string("wikipedia_title", fields["wikipedia_title"])
    page = _id(_first(fields, "wikipedia_id", "_id"))
    paragraphs = fields.get("text")
    if page is None or not isinstance(paragraphs, list):
        raise BadRecord(
            'not a KILT page; expected "wikipedia_id" and a list of paragraphs in "text"'
        )
    texts = [_string("text", paragraph).strip() for paragraph in paragraphs]
    yield from kilt_passages(page, title, texts, max_words)
