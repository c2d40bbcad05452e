"""Examples: an input, its answers, and where each answer stands. KILT's form, on disk as JSONL."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, expand_home
from imprag.tasks.records import Record, read_records


@dataclass(frozen=True, slots=True)
class Answer:
    """A right answer and what proves it.

    Attributes:
        answer: the text; empty where only the provenance is known.
        provenance: references to passages, such as ``{"passage_id": "fb-12"}`` or KILT's
            ``{"wikipedia_id": "9228", "start_paragraph_id": 3, …}``.
    """

    answer: str
    provenance: Sequence[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Example:
    """One instance of a task.

    Attributes:
        id: unique in its file.
        input: the bare question, statement or text, without prompt template.
        output: the right answers, at least one.
        meta: free, JSON-like. Text that a prompt template asks for by name stands here too, such as
            the ``context`` of a reading comprehension question. ``group`` is a list of two texts:
            what the example asks about, and what it asks about it (see `group`).
        task: name of the task, in files that hold several.
    """

    id: str
    input: str
    output: Sequence[Answer]
    meta: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""

    def __post_init__(self) -> None:
        if not self.answers:
            raise ImpRAGError(f"example '{self.id}' has no answer; it needs at least one")

    @property
    def answers(self) -> list[str]:
        """The answers' texts."""
        return [output.answer for output in self.output if output.answer.strip()]

    @property
    def gold_ids(self) -> list[str]:
        """Ids of the passages that prove the answers, in the answers' order."""
        references = (reference for output in self.output for reference in output.provenance)
        ids = (reference.get("passage_id") for reference in references)
        return list(dict.fromkeys(str(id) for id in ids if id is not None))

    @property
    def group(self) -> tuple[str, ...]:
        """The entity and the relation that are asked about, from ``meta["group"]``; () without.

        Batches of kind ``grid`` cross the entities and relations of examples.
        """
        match self.meta.get("group"):
            case [str(entity), str(relation)]:
                return (entity, relation)
        return ()

    def evidence_sets(self, *, joint: bool, key: str = "passage_id") -> list[frozenset[str]]:
        """What a ranking must hold to prove an answer: one of these sets.

        Args:
            joint: whether the references of an answer prove it together, as the two passages of a
                two-hop question, or each alone. `Task.joint_evidence` says it.
            key: the field of the provenance that names passages or pages.

        Returns:
            Distinct, non-empty sets; none where the provenance lacks the field.
        """
        sets: list[frozenset[str]] = []
        for output in self.output:
            ids = [str(ref[key]) if ref.get(key) is not None else None for ref in output.provenance]
            known = [id for id in ids if id is not None]
            if not joint:
                sets += [frozenset([id]) for id in known]
            elif known and len(known) == len(ids):
                sets.append(frozenset(known))
        return list(dict.fromkeys(sets))

    @classmethod
    def from_record(cls, record: Record) -> "Example":
        """Check and convert an object in KILT's form.

        Raises:
            ImpRAGError: a field is missing or of the wrong kind, or there is no answer.
        """
        output = [
            Answer(
                "" if item.get("answer") is None else item.text("answer"),
                [dict(ref) for ref in item.records("provenance")] if "provenance" in item else [],
            )
            for item in record.records("output")
        ]
        if not any(item.answer.strip() for item in output):
            raise ImpRAGError(
                f"{record.place}: field 'output' has no answer; "
                'expected at least one object with an "answer"'
            )
        if not record.text("input").strip():
            raise record.error("input", "text")
        return cls(
            id=record.identifier("id"),
            input=record.text("input"),
            output=output,
            meta=dict(record.record("meta")) if record.get("meta") is not None else {},
            task="" if record.get("task") is None else record.text("task"),
        )

    def to_json(self) -> dict[str, Any]:
        """The example as it is written: the inverse of `from_record`."""
        output = [
            {"answer": item.answer, "provenance": [dict(ref) for ref in item.provenance]}
            for item in self.output
        ]
        fields = {"id": self.id, "task": self.task, "input": self.input, "output": output}
        if not self.task:
            del fields["task"]
        return {**fields, "meta": dict(self.meta)}


def answers(texts: Iterable[str]) -> list[Answer]:
    """The different texts that are not blank as answers without provenance, in order."""
    return [Answer(text) for text in dict.fromkeys(texts) if text.strip()]


def read_examples(path: str | Path) -> Iterator[Example]:
    """Read a JSONL file of examples, plain or ``.gz``.

    Raises:
        ImpRAGError: a line is no example, or an id occurs twice.
    """
    places: dict[str, str] = {}
    for record in read_records(path):
        example = Example.from_record(record)
        if example.id in places:
            raise ImpRAGError(
                f"{record.place}: the id '{example.id}' stands already in {places[example.id]}; "
                "give every example its own id"
            )
        places[example.id] = record.place
        yield example


def write_examples(path: str | Path, examples: Iterable[Example]) -> int:
    """Write examples as JSONL, whole or not at all; gzip-compressed if the path ends in ``.gz``.

    Returns:
        How many were written.

    Raises:
        ImpRAGError: an example holds what JSON cannot, the disk is full, or the folder cannot be
            written.
    """
    path = expand_home(path)
    count = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as raw:
        # Without a time stamp the same examples give the same bytes.
        stream = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with stream:
            for example in examples:
                try:
                    line = json.dumps(example.to_json(), ensure_ascii=False).encode()
                except (TypeError, UnicodeEncodeError) as error:
                    raise ImpRAGError(f"cannot write example '{example.id}': {error}") from error
                stream.write(line + b"\n")
                count += 1
    return count
