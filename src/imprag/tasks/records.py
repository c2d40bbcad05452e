"""Reads records from the files of datasets; each knows its place for error messages."""

import codecs
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeGuard

from imprag.errors import ImpRAGError
from imprag.io.files import expand_home
from imprag.io.optional import require

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?")
# Escapes in JSON can stand for half a character, which UTF-8 cannot encode.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_FIELD = 2**31 - 1  # of a CSV file; the csv module accepts this limit on every platform
_FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Record(dict[str, Any]):
    """An object of a file. Errors of its accessors name the line, the field and what is wrong.

    Attributes:
        place: the file and line, or the file and the path to the object in it.
    """

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise ImpRAGError(f"{place} is {_kind(value)}; expected an object with named fields")
        super().__init__(value)
        self.place = place

    def text(self, field: str) -> str:
        """The text under ``field``; it may be empty."""
        value = self.get(field)
        if not _is_text(value):
            raise self.error(field, "text")
        return value

    def identifier(self, field: str) -> str:
        """The text or whole number under ``field``, as text; it must not be blank."""
        value = self.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not self.text(field).strip():
            raise self.error(field, "text or a whole number")
        return self.text(field)

    def integer(self, field: str) -> int:
        """The whole number from 0 under ``field``; it may be a text of digits."""
        value = self.get(field)
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(field, "a whole number from 0")
        return value

    def texts(self, field: str) -> list[str]:
        """The list of texts under ``field``; at least one must not be blank."""
        value = self.get(field)
        if (
            not isinstance(value, list)
            or not all(map(_is_text, value))
            or not "".join(value).strip()
        ):
            raise self.error(field, "a list of at least one text")
        return value

    def items_of(self, field: str) -> list[Any]:
        """The list under ``field``, whatever it holds."""
        value = self.get(field)
        if not isinstance(value, list):
            raise self.error(field, "a list")
        return value

    def record(self, field: str) -> "Record":
        """The object under ``field``."""
        if not isinstance(self.get(field), dict):
            raise self.error(field, "an object with named fields")
        return Record(self[field], f"{self.place}, {field}")

    def records(self, field: str) -> list["Record"]:
        """The list of objects under ``field``.

        Hugging Face may store it as an object of equally long lists, which is transposed.
        """
        value = self.get(field)
        if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
            if len({len(column) for column in value.values()}) > 1:
                raise self.error(field, "lists of the same length")
            rows = zip(*value.values(), strict=True)
            value = [dict(zip(value, row, strict=True)) for row in rows]
        if not isinstance(value, list):
            raise self.error(field, "a list of objects")
        return [Record(item, f"{self.place}, {field}[{i}]") for i, item in enumerate(value)]

    def error(self, field: str, expected: str) -> ImpRAGError:
        """The error that says what ``field`` is and what was expected."""
        value = self.get(field)
        state = "missing" if value is None else _kind(value)
        return ImpRAGError(f"{self.place}: field '{field}' is {state}; expected {expected}")


def read_records(source: str | Path, split: str = "validation") -> Iterator[Record]:
    """Read the records of a dataset as a stream.

    Args:
        source: a file (``.jsonl``, ``.json``, ``.csv``, each also with ``.gz``, or ``.parquet``), a
            folder that ``datasets`` saved with ``save_to_disk``, or a Hugging Face name with or
            without a configuration: ``nq_open``, ``facebook/kilt_tasks:hotpotqa``.
        split: the split of a Hugging Face dataset, by default ``validation``; files have none.

    Raises:
        ImpRAGError: there is no such file or dataset, or it has another format.
    """
    path = expand_home(source)
    if path.is_dir():
        return _from_datasets(str(source), split, on_disk=True)
    if path.is_file():
        return _from_file(path)
    looks_like_file = path.name.removesuffix(".gz").endswith(_FILE_SUFFIXES)
    if looks_like_file or not _HUB_NAME.fullmatch(str(source)):
        raise ImpRAGError(f"{source} does not exist")
    return _from_datasets(str(source), split, on_disk=False)


def _from_file(path: Path) -> Iterator[Record]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in _FILE_SUFFIXES:
        known = ", ".join(_FILE_SUFFIXES)
        raise ImpRAGError(f"{path} has the unknown ending '{suffix}'; expected one of {known}")
    if suffix == ".parquet":
        return _from_parquet(path)
    reader = {".jsonl": _from_json_lines, ".json": _from_json, ".csv": _from_csv}[suffix]
    return _from_text(path, reader)


def _from_text(path: Path, reader: Callable[[TextIO, Path], Iterator[Record]]) -> Iterator[Record]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as start:
            utf16 = start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if utf16 else "utf-8-sig"
        with opener(path, "rt", encoding=encoding, newline="") as text:
            yield from reader(text, path)
    except UnicodeError as error:
        raise ImpRAGError(f"{path} is not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ImpRAGError(f"{path} is not a whole gzip file: {error}") from error
    except csv.Error as error:
        raise ImpRAGError(f"{path} is not a CSV file: {error}") from error
    except OSError as error:
        raise ImpRAGError(f"cannot read {path}: {error.strerror}") from error


def _from_json_lines(text: TextIO, path: Path) -> Iterator[Record]:
    for number, line in enumerate(text, 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ImpRAGError(f"{place} is not valid JSON: {error}") from error
            yield Record(value, place)


def _from_json(text: TextIO, path: Path) -> Iterator[Record]:
    """Read a list of objects, an object with such a list under ``data``, or objects by id."""
    try:
        value = json.load(text)
    except (ValueError, RecursionError) as error:
        raise ImpRAGError(f"{path} is not valid JSON: {error}") from error
    prefix = ""
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        prefix, value = "data", value["data"]
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        for id, item in value.items():
            yield Record({"id": id, **item}, f"{path}, '{id}'")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield Record(item, f"{path}, {prefix}[{index}]")
    else:
        raise ImpRAGError(
            f"{path} holds {_kind(value)}; expected a list of objects, a list 'data', "
            "or objects by id"
        )


def _from_csv(text: TextIO, path: Path) -> Iterator[Record]:
    reader = csv.DictReader(text, strict=True)
    usual = csv.field_size_limit(_LONGEST_FIELD)
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row:
                raise ImpRAGError(f"{place} has more columns than the first line names")
            yield Record(row, place)
    finally:
        csv.field_size_limit(usual)


def _from_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches()
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, 1):
            yield Record(row, f"{path}, row {number}")
    except pa.ArrowInvalid as error:
        raise ImpRAGError(f"{path} is not a whole Parquet file: {error}") from error


def _from_datasets(source: str, split: str, *, on_disk: bool) -> Iterator[Record]:
    require(f"reading {source}", "eval", "datasets")
    import datasets

    try:
        if on_disk:
            found = datasets.load_from_disk(source)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise ValueError(f"it has the splits {', '.join(found)}, not {split}")
                found = found[split]
        else:
            name = _HUB_NAME.fullmatch(source)
            assert name is not None
            found = datasets.load_dataset(name["name"], name["config"], split=split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ImpRAGError(
            f"cannot load the dataset {source}, split {split}: {reason}; check the name and the "
            "network, or give a local file or a folder made by save_to_disk"
        ) from error
    for number, row in enumerate(found):
        yield Record(row, f"{source}, {split}, row {number}")


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not _LONE_SURROGATE.search(value)


def _kind(value: Any) -> str:
    """The kind of a value, in words for messages."""
    if isinstance(value, str) and not _is_text(value):
        return "not valid Unicode"
    if isinstance(value, str):
        return "text" if value.strip() else "empty text"
    if isinstance(value, Sequence):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    return "true or false" if isinstance(value, bool) else f"the value {value!r}"
