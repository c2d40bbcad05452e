"""Printing on consoles of any encoding."""

import codecs
import io
import json
import sys
from typing import Any


def prepare_console() -> None:
    """Print characters that the console lacks as ``?`` instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, with escapes where the console is not UTF-8."""
    print(json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout.encoding)), flush=True)


def _is_utf8(encoding: str | None) -> bool:
    try:
        return encoding is None or codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False
