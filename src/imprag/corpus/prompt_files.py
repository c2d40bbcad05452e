"""Reads prompts from files and streams, one per line."""

import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from imprag.corpus.decoding import encoding_of
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home
from imprag.io.text_checks import check_unicode

_BYTE_ORDER_MARK = "\ufeff"


def prompts_of_file(path: Path) -> list[str]:
    """The prompts of a file.

    Raises:
        ImpRAGError: the file cannot be read, or a prompt is not valid Unicode.
    """
    try:
        with open(expand_home(path), "rb") as stream:
            return list(read_prompts(stream, str(path)))
    except OSError as error:
        reason = error.strerror or error
        raise ImpRAGError(f"cannot read the prompts in {path}: {reason}") from error


def prompts_of_standard_input() -> Iterator[str]:
    """Yield the prompts of standard input, each as soon as its line arrives.

    Raises:
        ImpRAGError: a prompt is not valid Unicode; the prompts before it have been yielded.
    """
    name = "standard input"
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # replaced by a text stream
        return prompts_of_lines(sys.stdin, name)
    return read_prompts(stream, name, sys.stdin.encoding)


def read_prompts(stream: BinaryIO, name: str, fallback: str = "utf-8") -> Iterator[str]:
    """Yield the prompts of a byte stream, with any line ends.

    The text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Args:
        stream: a stream whose ``read1`` returns what is available, such as a file or pipe.
        name: the stream's name for messages.
        fallback: the encoding of lines that are not valid UTF-8, such as the console's. UTF-8 by
            default, so that such lines are an error.

    Raises:
        ImpRAGError: a prompt is not valid Unicode; the prompts before it have been yielded.
    """
    peek: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    start = peek.peek(4)
    encoding = encoding_of(start).removesuffix("-sig")  # the mark is dropped below
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    lines = io.TextIOWrapper(peek, encoding, errors, newline=None)
    try:
        yield from prompts_of_lines(lines, name, fallback if encoding == "utf-8" else "utf-8")
    except UnicodeDecodeError as error:
        codec = encoding.upper()
        raise ImpRAGError(f"{name} is not complete {codec} text; save it as UTF-8") from error
    finally:
        lines.detach()  # otherwise it would close the stream


def prompts_of_lines(lines: Iterable[str], name: str, fallback: str = "utf-8") -> Iterator[str]:
    """Yield the prompts in lines of text. Blank lines and byte-order marks are dropped.

    Args:
        lines: lines of text with lone surrogates for invalid bytes.
        name: the name of their source for messages.
        fallback: the encoding of lines with invalid bytes.

    Raises:
        ImpRAGError: a prompt is not valid Unicode; the prompts before it have been yielded.
    """
    count = 0
    for number, line in enumerate(lines, start=1):
        prompt = _recoded(line, fallback).removeprefix(_BYTE_ORDER_MARK).strip()
        if not prompt:
            continue
        count += 1
        place = f" (line {number} of {name})"
        check_unicode(prompt, f"prompt {count}", place)
        if "\0" in prompt:
            raise ImpRAGError(
                f"prompt {count} contains a NUL character{place}: this is binary, or UTF-16 "
                "without a byte-order mark; save it as UTF-8"
            )
        yield prompt


def _recoded(line: str, encoding: str) -> str:
    """Decode a line with invalid bytes in another encoding, if it is valid there."""
    try:
        line.encode()
        return line
    except UnicodeEncodeError:
        pass
    try:
        return line.encode("utf-8", "surrogateescape").decode(encoding)
    except (UnicodeError, LookupError):
        return line
