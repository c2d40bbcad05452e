"""Imports SQuAD as an open corpus: questions without their paragraphs, which become passages."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from tqdm import tqdm

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.io.building import check_free
from imprag.io.files import expand_home
from imprag.tasks.example import Example, answers
from imprag.tasks.open_corpus import write_open_corpus
from imprag.tasks.records import Record, read_records


def import_squad(source: str | Path, out: str | Path, split: str = "train") -> dict[str, int]:
    """Make a folder of passages and questions from SQuAD, version 1.1 or 2.0.

    Equal paragraphs become one passage, whose id is a hash of its text. The provenance of a
    question is the passage that it was written for. Questions without an answer are skipped.

    Args:
        source: SQuAD's JSON, such as ``train-v1.1.json``, or a dataset on the Hugging Face hub,
            such as ``rajpurkar/squad``.
        out: the folder to create, with ``passages.jsonl`` (a corpus) and ``questions.jsonl``
            (examples of the task ``squad``).
        split: the split of a dataset on the hub, by default ``train``.

    Returns:
        The numbers of ``passages`` and ``questions``.

    Raises:
        ImpRAGError: the source has another format, or the folder exists or cannot be written.
    """
    out = expand_home(out)
    check_free(out)
    passages: dict[str, Passage] = {}

    def examples() -> Iterator[Example]:
        for title, text, question in _questions(read_records(source, split)):
            found = answers(answer.text("text") for answer in question.records("answers"))
            if found:
                id = f"squad-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
                passages.setdefault(id, Passage(id, title, text))
                output = [replace(answer, provenance=[{"passage_id": id}]) for answer in found]
                asked = question.text("question").strip()
                yield Example(question.identifier("id"), asked, output, task="squad")
        if not passages:
            raise ImpRAGError(f"{source} has no question with an answer")

    progress = tqdm(examples(), "SQuAD", unit=" questions", disable=None)
    return write_open_corpus(out, progress, passages)


def _questions(records: Iterable[Record]) -> Iterator[tuple[str, str, Record]]:
    """Yield title, paragraph and question from SQuAD's articles or Hugging Face rows."""
    for record in records:
        # Titles are page names: "University_of_Notre_Dame", "Beyonc%C3%A9".
        title = unquote(record.text("title")).replace("_", " ")
        if "paragraphs" in record:
            for paragraph in record.records("paragraphs"):
                text = paragraph.text("context").strip()
                for question in paragraph.records("qas"):
                    yield title, text, question
        else:
            yield title, record.text("context").strip(), record
