"""What ``--dry-run`` prints: the time that a build takes, and the bytes of each way to build."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imprag.corpus import Corpus, Passage
from imprag.evaluation.tables import markdown_table
from imprag.io.building import readable_size

#: Headings of the tables' columns; all that are missing here name themselves.
_HEADINGS = {
    "bytes_per_passage": "a passage",
    "building": "disk while building",
    "memory": "memory while building",
    "server": "on the server",
}


@dataclass(frozen=True)
class Plan:
    """What a build takes.

    Attributes:
        passages: number of passages.
        passages_per_second: of them that this machine makes ready.
        done: what is done to them, for the table: "embedded".
        choices: what differs: "kinds".
        rows: the bytes of each choice, after its name.
    """

    passages: int
    passages_per_second: float
    done: str
    choices: str
    rows: Sequence[Mapping[str, str | int]]

    @property
    def hours(self) -> float:
        """Time to make all passages ready on this machine."""
        return self.passages / self.passages_per_second / 3600

    def as_json(self) -> str:
        """The plan in JSON; sizes are in bytes."""
        names = ("passages", "passages_per_second", "hours")
        content = {name: getattr(self, name) for name in names}
        return json.dumps({**content, self.choices: self.rows}, indent=2)

    def __str__(self) -> str:
        first, *sizes = self.rows[0]
        head = [first, *(_HEADINGS.get(name, name) for name in sizes)]
        table = [
            [str(row[first]), *(readable_size(float(row[name])) for name in sizes)]
            for row in self.rows
        ]
        return (
            f"{self.passages:,} passages, {self.passages_per_second:.3g} of them {self.done} in a "
            f"second on this machine: {duration(self.hours)}\n\n"
            + markdown_table(head, table).rstrip()
        )


def passages_per_second(
    make: Callable[[Sequence[Passage]], object],
    passages: Corpus,
    rows: Sequence[int],
    count: int = 96,
) -> float:
    """How fast passages are made ready, measured on some from all over a corpus."""
    sample = passages.passages(rows[:: max(1, len(rows) // count)][:count])
    make(sample[:8])  # warms up
    began = time.perf_counter()
    make(sample)
    return len(sample) / (time.perf_counter() - began)


def duration(hours: float) -> str:
    """A time in words."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} seconds"
    return f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"
