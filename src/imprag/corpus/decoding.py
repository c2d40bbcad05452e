"""Opens text files: plain or compressed, in UTF-8 or the encoding of their byte-order mark."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imprag.errors import ImpRAGError

#: The function that opens a compressed file, by suffix.
COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: Exceptions that reading a compressed or damaged file may raise.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError)
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PEEKED = 4096


def encoding_of(start: bytes) -> str:
    """The encoding given by a text's byte-order mark; UTF-8 if it has none."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


class NoTextError(ImpRAGError):
    """The file is not text in a known encoding."""


def open_text(path: Path) -> io.TextIOWrapper:
    """Open a text file. Only a line feed ends a line; invalid bytes become lone surrogates.

    Raises:
        NoTextError: there are NUL bytes near the beginning, so the file is binary, or UTF-16
            without a byte-order mark.
    """
    open_file: Any = COMPRESSIONS.get(path.suffix.lower(), open)
    stream = open_file(path, "rb")
    try:
        start = stream.peek(_PEEKED)[:_PEEKED]
        encoding = encoding_of(start)
        if encoding.startswith("utf-8") and b"\0" in start:
            raise NoTextError(
                f"{path} contains NUL bytes: it is binary, or UTF-16 without a byte-order mark; "
                "save it as UTF-8"
            )
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        return io.TextIOWrapper(stream, encoding, errors, newline="\n")
    except BaseException:
        stream.close()
        raise


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, each with its line end."""
    with open_text(path) as stream:
        yield from stream


def name_without_compression(path: Path) -> str:
    """A file's name in lower case, without ``.gz``, ``.bz2`` or ``.xz``."""
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in COMPRESSIONS else name
