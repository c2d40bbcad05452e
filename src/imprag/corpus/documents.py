"""Reads text, Markdown and reStructuredText files as documents with a title and sections."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from imprag.corpus.decoding import READ_ERRORS, NoTextError, name_without_compression, open_text
from imprag.corpus.outline import short
from imprag.corpus.records import BadRecord, Document, Record

_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd")
_REST = (".rst", ".rest")
SUFFIXES = (".txt", *_MARKDOWN, *_REST)
_GENERAL_NAMES = {"readme", "index"}  # the folder's name says more
_SHORTEST_NAME = 3
_TITLE_CHARACTERS = 200
_WORD = re.compile(r"\w+")


def document_record(file: Path, folder: Path) -> Record:
    """The record of a text file, named by its path in the folder; the text is read later."""
    name = file.relative_to(folder).as_posix()
    valid = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Record(str(file), Document(valid, partial(_sections, file, valid)))


def _sections(file: Path, name: str) -> Iterable[tuple[str, str]]:
    """Title and text of each section of a file; sections without text are left out."""
    text = _text(file)
    plain_name = name_without_compression(file)
    if plain_name.endswith(_MARKDOWN):
        from imprag.corpus.markdown import parse_markdown as parse
    elif plain_name.endswith(_REST):
        from imprag.corpus.rest import parse_rest as parse
    else:
        return [(_stem(name), text)] if text.strip() else []
    outline = parse(text)
    title = _document_title(outline.title, name)
    sections = [
        (_title(list(dict.fromkeys([title, *map(short, section.headings)]))), section.text)
        for section in outline.sections
        if section.text
    ]
    if not sections and outline.title:
        return [(title, outline.title)]
    return sections


def _text(file: Path) -> str:
    """The text of a file, with line feeds as line ends."""
    try:
        with open_text(file) as stream:
            text = stream.read()
    except NoTextError as error:
        raise BadRecord(str(error).removeprefix(f"{file} ")) from error
    except READ_ERRORS as error:
        raise BadRecord(f"cannot be read ({error})") from error
    if "\0" in text:
        raise BadRecord('"text" contains NUL bytes; it is not text')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f'"text" is not valid UTF-8 at character {error.start}') from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _stem(name: str) -> str:
    """A file's name without its suffixes."""
    path = PurePosixPath(name)
    plain = name_without_compression(Path(path.name))
    return path.name[: len(plain)][: -len(PurePosixPath(plain).suffix)] or path.name


def _document_title(own: str | None, name: str) -> str:
    """The document's own title, followed by the file's name unless the title contains it."""
    stem = _stem(name)
    parent = PurePosixPath(name).parent.name
    if stem.lower() in _GENERAL_NAMES and parent:
        stem = f"{parent}/{stem}"
    if own is None:
        return stem
    short_own = short(own)
    known = set(_WORD.findall(short_own.lower()))
    if len(stem) < _SHORTEST_NAME or known.issuperset(_WORD.findall(stem.lower())):
        return short_own
    return f"{short_own} ({stem})"


def _title(parts: list[str]) -> str:
    """The path of headings; only its first and last part if it is too long."""
    title = " > ".join(parts)
    return title if len(title) <= _TITLE_CHARACTERS else " > ".join([parts[0], "…", parts[-1]])
