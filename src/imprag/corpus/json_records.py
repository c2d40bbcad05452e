"""Reads records from JSON files: one object per line, or one array of objects."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imprag.corpus.decoding import open_text, text_lines
from imprag.corpus.records import BadRecord, Record
from imprag.errors import ImpRAGError

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 1 << 16
_LONGEST_TOKEN = 64  # characters of a number or an escape, which a chunk's end may cut


def json_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON file: one per line, without empty lines, or those of an array."""
    if _is_array(path):
        for number, value in enumerate(_array(path), 1):
            fields = value if isinstance(value, dict) else BadRecord("not a JSON object")
            yield Record(f"{path}, record {number}", fields)
        return
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            yield Record(f"{path}, line {number}", _json_object(line))


def _json_object(line: str) -> Mapping[str, Any] | BadRecord:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(f'not valid JSON ({error}); expected one object per line, {{"text": "…"}}')
    if not isinstance(fields, dict):
        return BadRecord('not a JSON object; expected one object per line, {"text": "…"}')
    return fields


def _is_array(path: Path) -> bool:
    """Whether a file is one array, rather than lines of which the first is an array."""
    with open_text(path) as stream:
        start = stream.read(_CHUNK).lstrip()
    line, _, others = start.partition("\n")
    return line.startswith("[") and not (others.strip() and _is_json(line))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _array(path: Path) -> Iterator[Any]:
    """Yield the values of an array; memory grows only with the longest value.

    Raises:
        ImpRAGError: the array is damaged; the values after the damage cannot be found.
    """
    decoder = json.JSONDecoder()
    with open_text(path) as stream:
        buffer, number = stream.read(_CHUNK).lstrip()[1:], 0
        position, more, separator = 0, True, True
        while True:
            position = _end_of_space(buffer, position)
            if position < len(buffer) and not separator:
                if buffer[position] == "]":
                    if buffer[position + 1 :].strip() or stream.read().strip():
                        raise ImpRAGError(f"{path}: there is more text after the end of the array")
                    return
                if buffer[position] != ",":
                    raise _damage(path, number, "expected a comma or the end of the array")
                position, separator = position + 1, True
                continue
            if number == 0 and buffer[position : position + 1] == "]":
                return
            if position < len(buffer):
                try:
                    value, end = decoder.raw_decode(buffer, position)
                except (ValueError, RecursionError) as error:
                    if not more or not _is_cut(error, len(buffer)):
                        raise _damage(path, number + 1, str(error)) from error
                else:
                    if end < len(buffer) or not more:
                        number, position, separator = number + 1, end, False
                        yield value
                        continue
            if not more:
                raise _damage(path, number + 1, "the file ends before the array does")
            chunk = stream.read(max(_CHUNK, len(buffer) - position))
            buffer, position, more = buffer[position:] + chunk, 0, bool(chunk)


def _end_of_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _is_cut(error: Exception, length: int) -> bool:
    """Whether an error may only mean that the value continues after the text read so far."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - _LONGEST_TOKEN


def _damage(path: Path, number: int, problem: str) -> ImpRAGError:
    return ImpRAGError(f"{path}, record {number}: the array is not valid JSON ({problem})")
