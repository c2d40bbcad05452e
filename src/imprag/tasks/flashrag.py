"""FlashRAG's form of questions: ``{id, question, golden_answers, metadata}``."""

from collections.abc import Iterable, Iterator

from imprag.tasks.example import Example, answers
from imprag.tasks.records import Record


def read_flashrag(records: Iterable[Record]) -> Iterator[Example]:
    """Yield the questions of a file in FlashRAG's form; those without an answer are skipped.

    Raises:
        ImpRAGError: a field is missing or has another type.
    """
    for record in records:
        if record.get("golden_answers") == []:
            continue
        if found := answers(record.texts("golden_answers")):
            meta = dict(record.record("metadata")) if record.get("metadata") else {}
            yield Example(record.identifier("id"), record.text("question"), found, meta)
