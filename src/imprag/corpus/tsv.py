"""Reads records from tab-separated files, with or without CSV quoting.

Both dialects are common: DPR's passages are quoted; MS MARCO's are not, so that a text may begin
with a quotation mark. The dialect is decided for the whole file before the first record is read.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imprag.corpus.decoding import text_lines
from imprag.corpus.records import BadRecord, Record
from imprag.errors import ImpRAGError

_TEXT_NAMES = ("text", "contents")
_KNOWN_NAMES = ("id", "_id", "title", "meta", *_TEXT_NAMES)
_HEADERS = {2: ["id", "text"], 3: ["id", "text", "title"]}  # columns of files without a header


class _Row(NamedTuple):
    """A row: the number of its first line, counted from 1, and its cells."""

    line: int
    cells: list[str] | BadRecord


class _Lines:
    """The lines of a file; lines can be put back and read again."""

    def __init__(self, path: Path) -> None:
        self._lines = text_lines(path)
        self._returned: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.pop() if self._returned else next(self._lines)
        self.number += 1
        return line

    def put_back(self, lines: list[str]) -> None:
        self._returned += reversed(lines)
        self.number -= len(lines)


def tsv_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a TSV file with a header, or with columns ``id text [title]``."""
    csv.field_size_limit(2**31 - 1)  # a text may be of any length
    header, has_header = _header(path)
    width = len(header)
    lines = _Lines(path)
    if has_header:
        next(lines)
    for row in (_quoted if _is_quoted(path, header, has_header) else _plain)(lines, header):
        place = f"{path}, line {row.line}"
        if isinstance(row.cells, BadRecord):
            yield Record(place, row.cells)
        elif len(row.cells) == width:
            yield Record(place, dict(zip(header, row.cells, strict=True)))
        else:
            problem = f"{len(row.cells)} columns; expected {width}: {', '.join(header)}"
            yield Record(place, BadRecord(problem))


def _header(path: Path) -> tuple[list[str], bool]:
    """The column names, and whether the first line holds them."""
    line = next(text_lines(path), "")
    if "\r" in line.rstrip("\r\n"):
        raise ImpRAGError(f"{path}: its lines end with CR alone; save it with LF or CRLF")
    names = [_name(cell) for cell in _cells(line)]
    if any(name in names for name in _TEXT_NAMES) and not names[0].isdecimal():
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise ImpRAGError(f"{path}, line 1: two columns are called {twice!r}")
        return names, True
    # Column names have no digits; ids nearly always do.
    if len(names) in _HEADERS and any(map(str.isdigit, names[0])) and not names[0].split()[1:]:
        return _HEADERS[len(names)], False
    raise ImpRAGError(
        f"{path}, line 1: no column text; expected a header with tabs, such as id, text, title, or "
        "rows of an id with a digit, a text and optionally a title"
    )


def _name(cell: str) -> str:
    name = cell.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1]
    return name.lower() if name.lower() in _KNOWN_NAMES else name


def _is_quoted(path: Path, header: list[str], has_header: bool) -> bool:
    """Whether the fields of a file are quoted as in CSV.

    They are if CSV quoting explains every quotation mark, or if most fields that begin with one
    are complete quoted fields. A file of one column is always read as quoted, because the two
    kinds of quotation mark look the same; :func:`_quoted` refuses its rows that would span lines.
    """
    whole = torn = bad = 0
    for row in _plain(_data_lines(path, has_header), header):
        cells = row.cells if isinstance(row.cells, list) else []
        bad += len(cells) != len(header)
        for cell in cells:
            if cell.startswith('"'):
                is_whole = len(cell) > 1 and '"' not in cell[1:-1].replace('""', "")
                is_whole = is_whole and cell.endswith('"')
                whole, torn = whole + is_whole, torn + (not is_whole)
    if not torn or len(header) == 1:
        return True
    bad_quoted = sum(
        isinstance(row.cells, BadRecord) or len(row.cells) != len(header)
        for row in _quoted(_data_lines(path, has_header), header)
    )
    return bad_quoted == 0 or bad_quoted <= bad or whole > torn


def _data_lines(path: Path, has_header: bool) -> _Lines:
    """The lines after the header."""
    lines = _Lines(path)
    if has_header:
        next(lines)
    return lines


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _plain(lines: _Lines, header: list[str]) -> Iterator[_Row]:
    """Yield one row per line, split at tabs."""
    for line in lines:
        if line.strip("\r\n"):
            yield _Row(lines.number, _cells(line))


def _quoted(lines: _Lines, header: list[str]) -> Iterator[_Row]:
    """Yield rows whose fields may be quoted.

    A quoted field may span lines, but no line that is a row by itself: then the field's first line
    is bad, and the following lines are read on their own.
    """
    for first in lines:
        if '"' not in first:
            if first.strip("\r\n"):
                yield _Row(lines.number, _cells(first))
            continue
        number, read, cells = lines.number, [first], _cells(first)
        width, id_words = len(cells), _id_words(cells, header)

        def one_row(read: list[str] = read, id_words: int = id_words) -> Iterator[str]:
            yield read[0]
            for line in lines:
                read.append(line)
                if len(read) > 2 and _is_row(read[-2], header, id_words):
                    return  # a line between the first and the last is a row by itself
                yield line

        try:
            cells = next(csv.reader(one_row(), delimiter="\t", strict=True))
        except csv.Error as error:
            problem = f"not tab-separated values ({error})"
        else:
            spans_rows = len(read) > 1 and (
                len(cells) != len(header)
                or (width >= len(header) and _is_row(read[-1], header, id_words))
            )
            if not spans_rows:
                yield _Row(number, cells)
                continue
            problem = ""
        if len(read) > 1:
            problem = (
                f"a quotation mark opens a field that would span {len(read)} lines or more; "
                'double the quotation marks in the text ("") and quote the whole field, or use '
                "JSONL"
            )
            lines.put_back(read[1:])
        yield _Row(number, BadRecord(problem))


def _id_words(cells: list[str], header: list[str]) -> int:
    """The number of words in a row's id; 1 if rows have no id, 0 if it is empty."""
    named = zip(header, cells, strict=False)
    return min((len(cell.split()) for name, cell in named if name in ("id", "_id")), default=1)


def _is_row(line: str, header: list[str], most_words: int) -> bool:
    """Whether a line has the header's number of columns and an id of at most ``most_words``."""
    cells = _cells(line)
    if len(cells) != len(header) or not any(cells):
        return False
    return 1 <= _id_words(cells, header) <= max(1, most_words)
