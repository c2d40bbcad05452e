"""Reading passages from the formats that corpora come in, as a stream."""

import itertools
import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imprag.corpus import formats
from imprag.corpus.formats import BadRecord, Record
from imprag.corpus.passage import Passage
from imprag.corpus.text import split_spans
from imprag.errors import ImpRAGError

_DOCUMENT_WORDS = 100
_LISTED_LINES = 100
_OWN_FIELDS = {"id", "_id", "title", "text", "contents", "meta"}


_FORMATS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "jsonl": formats.jsonl_records,
    "kilt": formats.jsonl_records,  # its records are pages, told by their "wikipedia_title"
    "tsv": formats.tsv_records,
    "parquet": formats.parquet_records,
    "datasets": formats.dataset_records,
    "text": formats.text_records,
}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}


@dataclass
class SkippedLines:
    """Lines that were left out: how many, and what was wrong with the first hundred."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Count a line; ``problem`` names its place."""
        self.count += 1
        if len(self.first) < _LISTED_LINES:
            self.first.append(problem)


class PassageReader:
    """The passages of a file or folder, read anew at every iteration.

    Attributes:
        path: the file or folder.
        skipped: the lines that the latest iteration left out.
    """

    def __init__(
        self,
        path: Path,
        records: Callable[[Path], Iterator[Record]],
        max_words: int | None,
        skip_bad_lines: bool,
    ) -> None:
        self.path = path
        self.skipped = SkippedLines()
        self._records = records
        self._max_words = max_words
        self._skip_bad_lines = skip_bad_lines

    def __iter__(self) -> Iterator[Passage]:
        self.skipped = SkippedLines()
        return (passage for _, passage in self._located(self.skipped))

    def locate(self, row: int) -> str:
        """File and line that passage number ``row``, counted from 0, comes from."""
        return next(itertools.islice(self._located(SkippedLines()), row, None))[0]

    def _located(self, skipped: SkippedLines) -> Iterator[tuple[str, Passage]]:
        try:
            for number, (place, fields) in enumerate(self._records(self.path), 1):
                try:
                    passages = list(_passages(fields, number, self._max_words))
                except BadRecord as problem:
                    if not self._skip_bad_lines:
                        raise ImpRAGError(
                            f"{place}: {problem} (--skip-bad-lines leaves such lines out)"
                        ) from problem
                    skipped.add(f"{place}: {problem}")
                    continue
                for passage in passages:
                    yield place, passage
        except (OSError, EOFError, zlib.error) as error:
            raise ImpRAGError(f"cannot read {self.path}: {error}") from error


def read_passages(
    path: str | Path,
    format: str | None = None,
    skip_bad_lines: bool = False,
    max_words: int | None = None,
) -> PassageReader:
    """Read the passages of a file or folder as a stream.

    Args:
        path: a file, or a folder of Parquet files, of text files, or of a dataset on disk.
        format: ``jsonl``, ``kilt``, ``tsv``, ``parquet``, ``datasets`` or ``text``; by default it
            is told from the name.
        skip_bad_lines: leave out lines that cannot be read, and list them in ``skipped``.
        max_words: split texts into passages of at most so many words. By default documents
            (``text``, ``kilt``) are split at 100 words, and passages stay as they are.

    Returns:
        An iterable of passages. Reading starts with the iteration, and so do errors in lines.

    Raises:
        ImpRAGError: ``path`` does not exist or is in no format that is known.
    """
    path = Path(path)
    if not path.exists():
        raise ImpRAGError(f"{path} does not exist")
    name = format or _detect(path)
    if name not in _FORMATS:
        raise ImpRAGError(f"unknown corpus format {name!r}; choose one of {', '.join(_FORMATS)}")
    if name == "text" and max_words is None:
        max_words = _DOCUMENT_WORDS
    return PassageReader(path, _FORMATS[name], max_words, skip_bad_lines)


def _detect(path: Path) -> str:
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
            raise ImpRAGError(f"{path} holds several datasets; choose one: {', '.join(splits)}")
        if (path / "dataset_info.json").is_file():
            return "datasets"
        return "parquet" if any(path.rglob("*.parquet")) else "text"
    for suffix, name in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return name
    raise ImpRAGError(
        f"cannot tell the format of {path}; known are {', '.join(_SUFFIXES)}, and folders of "
        "Parquet files, of text files and of datasets"
    )


def _passages(
    fields: Mapping[str, Any] | BadRecord, number: int, max_words: int | None
) -> Iterator[Passage]:
    if isinstance(fields, BadRecord):
        raise fields
    if "wikipedia_title" in fields:
        yield from _kilt_page(fields, _DOCUMENT_WORDS if max_words is None else max_words)
        return
    passage = _passage(fields, number)
    if max_words is None:
        yield passage
        return
    for part, (start, end) in enumerate(split_spans(passage.text, max_words), 1):
        yield replace(passage, id=f"{passage.id}/{part}", text=passage.text[start:end])


def _passage(fields: Mapping[str, Any], number: int) -> Passage:
    """The passage in a record: ``_id`` and ``contents`` stand for ``id`` and ``text`` too.

    A record without an id gets its number. Other fields that are no lists become metadata.
    """
    meta = fields.get("meta")
    others = {
        name: value
        for name, value in fields.items()
        if name not in _OWN_FIELDS and isinstance(value, str | int | float)
    }
    return Passage(
        id=_id(_first(fields, "id", "_id"), number),
        title=_string("title", fields.get("title") or ""),
        text=_text(_first(fields, "text", "contents")),
        meta={**(meta if isinstance(meta, Mapping) else {}), **others},
    )


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _id(value: Any, number: int) -> str:
    if value is None:
        return str(number)
    # JSON and Parquet often hold whole numbers as ids; True is an int in Python, but no id.
    identifier = str(value) if type(value) is int else _string("id", value)
    if not identifier:
        raise BadRecord('"id" is empty')
    return identifier


def _text(value: Any) -> str:
    if value is None:
        raise BadRecord('no "text"; expected {"text": "…"}, with "id" and "title" if there are any')
    text = _string("text", value)
    if not text.strip():
        raise BadRecord('"text" is empty')
    return text


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord(f'"{name}" is {json.dumps(value, default=str)[:40]}; expected a string')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f'"{name}" is not valid UTF-8 at character {error.start}') from error
    return value


def _kilt_page(fields: Mapping[str, Any], max_words: int) -> Iterator[Passage]:
    """The passages of a page of the KILT knowledge source.

    Headings (``Section::::``) are left out. The metadata says which paragraphs of the page a
    passage comes from, so that KILT's provenance can be matched.
    """
    title = _string("wikipedia_title", fields["wikipedia_title"])
    page = _first(fields, "wikipedia_id", "_id")
    paragraphs = fields.get("text")
    if page is None or not isinstance(paragraphs, list):
        raise BadRecord('no KILT page; expected "wikipedia_id" and a list of paragraphs in "text"')
    numbers, texts = [], []
    for number, paragraph in enumerate(paragraphs):
        text = _string("text", paragraph).strip().removeprefix("BULLET::::")
        is_title = number == 0 and text == title
        if text and not is_title and not text.startswith("Section::::"):
            numbers.append(number)
            texts.append(text)
    page_text = "\n\n".join(texts)
    starts = list(itertools.accumulate((len(text) + 2 for text in texts), initial=0))
    for part, (start, end) in enumerate(split_spans(page_text, max_words), 1):
        yield Passage(
            id=f"{page}/{part}",
            title=title,
            text=page_text[start:end].replace("\n\n", "\n"),
            meta={
                "wikipedia_id": str(page),
                "start_paragraph_id": numbers[bisect_right(starts, start) - 1],
                "end_paragraph_id": numbers[bisect_right(starts, end - 1) - 1],
            },
        )
