"""Reading passages from the formats that corpora come in, as a stream."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imprag.corpus.passage import Passage
from imprag.errors import ImpRAGError


@dataclass
class SkippedLines:
    """Lines that could not be read: how many, and what was wrong with the first hundred."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"count": self.count, "first": self.first}


class PassageReader:
    """Passages of a file or folder, read anew at every iteration."""

    def __init__(self, path: Path, skip_bad_lines: bool) -> None:
        self.path = path
        self.skipped = SkippedLines()

    def __iter__(self) -> Iterator[Passage]:
        return (passage for _, passage in self._located())

    def locate(self, row: int) -> str:
        """File and line that passage number ``row`` was read from."""
        return next(itertools.islice(self._located(), row, None))[0]

    def _located(self) -> Iterator[tuple[str, Passage]]:
        with open(self.path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                record = json.loads(line)
                yield (
                    f"{self.path}, line {number}",
                    Passage(str(record["id"]), record.get("title", ""), record["text"]),
                )


def read_passages(
    path: Path, format: str | None = None, skip_bad_lines: bool = False
) -> PassageReader:
    """Read the passages of a file or folder as a stream."""
    if not path.exists():
        raise ImpRAGError(f"{path} does not exist")
    return PassageReader(path, skip_bad_lines)
