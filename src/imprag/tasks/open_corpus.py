"""Writes a folder of passages and questions about them, for training and evaluation."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imprag.corpus import Passage
from imprag.io.files import atomic_path
from imprag.io.locking import new_folder
from imprag.tasks.example import Example, write_examples

PASSAGES = "passages.jsonl"
QUESTIONS = "questions.jsonl"


def write_open_corpus(
    out: Path, questions: Iterable[Example], passages: Mapping[str, Passage]
) -> dict[str, int]:
    """Write ``questions.jsonl`` and ``passages.jsonl`` into a new folder, both or neither.

    Args:
        out: the folder to create.
        questions: the questions, read once.
        passages: the passages by id. They are written last, so that ``questions`` may add to them
            while it is read.

    Returns:
        The numbers of ``passages`` and ``questions``.

    Raises:
        ImpRAGError: the folder exists and is not empty, or cannot be written.
    """
    with new_folder(out), atomic_path(out) as folder:
        folder.mkdir()
        count = write_examples(folder / QUESTIONS, questions)
        with open(folder / PASSAGES, "w", encoding="utf-8") as file:
            for each in passages.values():
                fields: dict[str, Any] = {"id": each.id, "title": each.title, "text": each.text}
                if each.meta:
                    fields["meta"] = dict(each.meta)
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    return {"passages": len(passages), "questions": count}
