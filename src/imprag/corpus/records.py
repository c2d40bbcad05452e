"""Records: the output of the readers of all formats, each with its place in the source."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class BadRecord(Exception):
    """A record cannot be read; the message says what is wrong and what was expected."""


@dataclass(frozen=True)
class Document:
    """A text file to split into passages.

    Attributes:
        name: the file's path within the corpus; unique.
        sections: a function that reads the file and returns the title and text of each section.
            It raises :class:`BadRecord` if the file is not text.
    """

    name: str
    sections: Callable[[], Iterable[tuple[str, str]]]


class Record(NamedTuple):
    """A line, row or file of a corpus.

    Attributes:
        place: the position in the source, such as ``corpus.jsonl, line 3``.
        fields: fields such as ``id``, ``title`` and ``text``; a document; or the problem.
    """

    place: str
    fields: Mapping[str, Any] | Document | BadRecord
