"""The file formats of corpora: each function yields the records of a file or folder as a stream."""

import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from imprag.errors import ImpRAGError
from imprag.optional import require

_TEXT_SUFFIXES = (".txt", ".md")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)[\s#]*$", re.MULTILINE)
_BATCH_ROWS = 1024


class BadRecord(Exception):
    """What is wrong with a record, and what was expected."""


class Record(NamedTuple):
    """A line, row or file of a corpus.

    Attributes:
        place: where it stands, such as ``corpus.jsonl, line 3``.
        fields: such as ``id``, ``title`` and ``text``; or what is wrong with them.
    """

    place: str
    fields: Mapping[str, Any] | BadRecord


def jsonl_records(path: Path) -> Iterator[Record]:
    """One JSON object per line. Empty lines are passed over."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield Record(f"{path}, line {number}", _json_object(line))


def _json_object(line: str) -> Mapping[str, Any] | BadRecord:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(f'no JSON ({error}); expected one object per line, {{"text": "…"}}')
    if not isinstance(fields, dict):
        return BadRecord('no JSON object; expected one object per line, {"text": "…"}')
    return fields


def tsv_records(path: Path) -> Iterator[Record]:
    """Tab-separated values below a header; fields may be quoted as in CSV."""
    rows = csv.reader(_lines(path), delimiter="\t", strict=True)
    header = next(rows, [])
    if "text" not in header:
        raise ImpRAGError(
            f"{path}, line 1: no column text; expected a header with tabs, such as id, text, title"
        )
    while True:
        place = f"{path}, line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(place, BadRecord(f"no tab-separated values ({error})"))
            continue
        if len(row) == len(header):
            yield Record(place, dict(zip(header, row, strict=True)))
        elif row:
            problem = f"{len(row)} columns; expected {len(header)}: {', '.join(header)}"
            yield Record(place, BadRecord(problem))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, perhaps gzipped; wrong bytes become lone surrogates."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        for number, line in enumerate(stream):
            text = line.decode("utf-8", errors="surrogateescape")
            yield text.removeprefix("\ufeff") if number == 0 else text


def parquet_records(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, or of all Parquet files in a folder, by name."""
    import pyarrow.parquet as pq  # half of the time that importing this package would take

    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        number = 0
        try:
            with pq.ParquetFile(file) as rows:
                # Lists, such as embeddings that stand beside the text, are not read.
                columns = [
                    column.name
                    for column in rows.schema_arrow
                    if column.name == "meta" or not pa.types.is_nested(column.type)
                ]
                for batch in rows.iter_batches(_BATCH_ROWS, columns=columns):
                    for fields in batch.to_pylist():
                        number += 1
                        yield Record(f"{file}, row {number}", fields)
        except pa.ArrowInvalid as error:
            raise ImpRAGError(f"{file} is no whole Parquet file: {error}") from error


def dataset_records(path: Path) -> Iterator[Record]:
    """The rows of a Hugging Face dataset that ``save_to_disk`` wrote."""
    require(f"reading {path}", "eval", "datasets")
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except (ValueError, KeyError, OSError) as error:
        raise ImpRAGError(f"{path} is no whole dataset: {error}") from error
    columns = [
        name
        for name, feature in dataset.features.items()
        if name == "meta" or isinstance(feature, datasets.Value)
    ]
    for number, fields in enumerate(dataset.select_columns(columns), 1):
        yield Record(f"{path}, row {number}", fields)


def text_records(path: Path) -> Iterator[Record]:
    """A text or Markdown file, or all of those in a folder and below, by name."""
    files = _text_files(path) if path.is_dir() else [path]
    if not files:
        raise ImpRAGError(f"{path} holds no {', '.join(_TEXT_SUFFIXES)} or .parquet file")
    for file in files:
        name = file.relative_to(path if path.is_dir() else path.parent).as_posix()
        text = file.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        heading = _HEADING.search(text) if file.suffix.lower() != ".txt" else None
        title = heading[1] if heading else file.stem
        yield Record(str(file), {"id": name, "title": title, "text": text})


def _text_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _TEXT_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
