"""What the readers of all formats yield: records, each with its place."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class BadRecord(Exception):
    """What is wrong with a record, and what was expected."""


@dataclass(frozen=True)
class Document:
    """A text file of which passages are to be made.

    Attributes:
        name: its path within the corpus; unique.
        sections: reads the file and returns title and text of its sections. Raises
            :class:`BadRecord` if it is no text.
    """

    name: str
    sections: Callable[[], Iterable[tuple[str, str]]]


class Record(NamedTuple):
    """A line, row or file of a corpus.

    Attributes:
        place: where it stands, such as ``corpus.jsonl, line 3``.
        fields: such as ``id``, ``title`` and ``text``; a document; or what is wrong.
    """

    place: str
    fields: Mapping[str, Any] | Document | BadRecord
