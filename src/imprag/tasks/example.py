"""Examples: an input and its answers with their provenance, stored as JSONL in KILT's form."""

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
    """A correct answer and its provenance.

    Attributes:
        answer: the text; empty if only the provenance is known.
        provenance: references to passages that prove the answer, such as
            ``{"passage_id": "fb-12"}``, with a ``relevance`` where passages are graded, or KILT's
            ``{"wikipedia_id": "9228", "start_paragraph_id": 3, …}``.
    """

    answer: str
    provenance: Sequence[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hops:
    """How a question of two hops is answered: the bridge is found first, then the answer.

    Attributes:
        bridge: links the hops, such as the country that the question describes.
        first: ids of the passages that prove the bridge, one of each answer.
        second: ids of the passages that prove the answer.
    """

    bridge: str
    first: Sequence[str]
    second: Sequence[str]

    def named(self, prompt: str, separator: str) -> str:
        """The prompt with the bridge named after it, up to the separator: "… A: Nepal ;"."""
        return f"{prompt} {self.bridge} {separator}"


@dataclass(frozen=True, slots=True)
class Example:
    """One instance of a task.

    Attributes:
        id: unique in its file.
        input: the bare question, statement or text, without prompt template.
        output: the correct answers, at least one; or, for retrieval alone, gold passages.
        meta: any JSON-like metadata, including texts that a prompt template names, such as the
            ``context`` of a reading comprehension question. ``group`` is a list of two texts: the
            entity and the relation that the example asks about (see `group`). ``bridge_answer`` is
            the bridge of a two-hop question (see `hops`).
        task: the name of the task, in files of several tasks.
    """

    id: str
    input: str
    output: Sequence[Answer]
    meta: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""

    def __post_init__(self) -> None:
        if not self.answers and not self.gold_ids:
            raise ImpRAGError(
                f"example '{self.id}' has neither an answer nor a gold passage; it needs one"
            )

    @property
    def answers(self) -> list[str]:
        """The texts of the answers, without blank ones."""
        return [output.answer for output in self.output if output.answer.strip()]

    @property
    def gold_ids(self) -> list[str]:
        """Ids of the passages that prove the answers, in the answers' order."""
        references = (reference for output in self.output for reference in output.provenance)
        ids = (reference.get("passage_id") for reference in references)
        return list(dict.fromkeys(str(id) for id in ids if id is not None))

    @property
    def relevance(self) -> dict[str, int]:
        """The grade of each gold passage, 1 where none is given."""
        references = [reference for output in self.output for reference in output.provenance]
        return {
            str(reference["passage_id"]): int(reference.get("relevance", 1))
            for reference in references
            if reference.get("passage_id") is not None
        }

    @property
    def group(self) -> tuple[str, ...]:
        """The entity and the relation asked about, from ``meta["group"]``; () if it is missing.

        A ``grid`` batch crosses the entities and relations of examples.
        """
        match self.meta.get("group"):
            case [str(entity), str(relation)]:
                return (entity, relation)
        return ()

    @property
    def hops(self) -> Hops | None:
        """Both hops, of ``meta["bridge_answer"]`` and the two references of each answer, in order.

        None if there is no bridge, which is text in one line, or if an answer with provenance has
        not two passages.
        """
        bridge = self.meta.get("bridge_answer")
        bridge = bridge.strip() if isinstance(bridge, str) else ""
        pairs = [[ref.get("passage_id") for ref in one.provenance] for one in self.output]
        pairs = [pair for pair in pairs if pair]
        if len(bridge.splitlines()) != 1 or not pairs:
            return None
        if any(len(set(pair)) != 2 or len(pair) != 2 or None in pair for pair in pairs):
            return None
        first, second = ([str(pair[hop]) for pair in pairs] for hop in (0, 1))
        return Hops(bridge, list(dict.fromkeys(first)), list(dict.fromkeys(second)))

    def evidence_sets(self, *, joint: bool, key: str = "passage_id") -> list[frozenset[str]]:
        """The sets of passages or pages that prove an answer; a ranking must contain one of them.

        Args:
            joint: whether an answer's references prove it only together, like the two passages of
                a two-hop question, rather than each alone. `Task.joint_evidence` has the value.
            key: the field of the provenance that names passages or pages.

        Returns:
            Distinct, non-empty sets; no set for provenance without the field.
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
            ImpRAGError: a field is missing or has the wrong type, or there is no answer.
        """
        output = [
            Answer(
                "" if item.get("answer") is None else item.text("answer"),
                [_reference(ref) for ref in item.records("provenance")]
                if "provenance" in item
                else [],
            )
            for item in record.records("output")
        ]
        if not any(item.answer.strip() or item.provenance for item in output):
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
        """The example as a JSON object: the inverse of `from_record`."""
        output = [
            {"answer": item.answer, "provenance": [dict(ref) for ref in item.provenance]}
            for item in self.output
        ]
        fields = {"id": self.id, "task": self.task, "input": self.input, "output": output}
        if not self.task:
            del fields["task"]
        return {**fields, "meta": dict(self.meta)}


def _reference(record: Record) -> dict[str, Any]:
    if "relevance" in record:
        record.integer("relevance")
    return dict(record)


def answers(texts: Iterable[str]) -> list[Answer]:
    """Answers without provenance for the distinct texts that are not blank, in order."""
    return [Answer(text) for text in dict.fromkeys(texts) if text.strip()]


def read_examples(path: str | Path) -> Iterator[Example]:
    """Read a JSONL file of examples, plain or ``.gz``.

    Raises:
        ImpRAGError: a line is not an example, or an id occurs twice.
    """
    places: dict[str, str] = {}
    for record in read_records(path):
        example = Example.from_record(record)
        if example.id in places:
            raise ImpRAGError(
                f"{record.place}: the id '{example.id}' already occurs in {places[example.id]}; "
                "give every example its own id"
            )
        places[example.id] = record.place
        yield example


def write_examples(path: str | Path, examples: Iterable[Example]) -> int:
    """Write examples as JSONL, all or none; gzip-compressed if the path ends in ``.gz``.

    Returns:
        The number of examples written.

    Raises:
        ImpRAGError: an example has a value without a JSON type, the disk is full, or the folder
            cannot be written.
    """
    path = expand_home(path)
    count = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as raw:
        # Without a time stamp, equal examples give equal bytes.
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
