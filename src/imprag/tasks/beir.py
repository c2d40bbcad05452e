"""BEIR's folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from imprag.corpus.questions import beir_queries
from imprag.errors import ImpRAGError
from imprag.tasks.example import Answer, Example
from imprag.tasks.records import read_records


def read_beir(folder: Path, split: str | None = None) -> Iterator[Example]:
    """Yield the queries of a split that have relevant passages, in the order of their file.

    An example has no answer, only the passages with a positive score, in falling order, as its
    provenance: ``{"passage_id": ..., "relevance": ...}``. `imprag index` reads ``corpus.jsonl``.

    Args:
        folder: the data set.
        split: the name of a file in ``qrels/``; ``test`` if not given.

    Raises:
        ImpRAGError: there is no such split, or a file has another format.
    """
    relevant = _qrels(folder, split or "test")
    queries = beir_queries(folder)
    assert queries is not None
    for record in read_records(queries):
        id = record.identifier("_id")
        if grades := relevant.get(id):
            ranked = sorted(grades, key=lambda passage: -grades[passage])
            references = [{"passage_id": one, "relevance": grades[one]} for one in ranked]
            yield Example(id, record.text("text"), [Answer("", [one]) for one in references])


def _qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """The relevance of passages, by query and passage; only positive ones."""
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        known = sorted(one.stem for one in (folder / "qrels").glob("*.tsv"))
        raise ImpRAGError(f"{folder} has no split {split!r}; it has {', '.join(known) or 'none'}")
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if number == 1 and row[-1:] == ["score"]:
                continue
            try:
                query, passage, score = row
                if int(score) > 0:
                    relevant[query][passage] = int(score)
            except ValueError as error:
                raise ImpRAGError(
                    f"{path}, line {number}: expected query-id, corpus-id and score, with tabs "
                    "between them"
                ) from error
    if not relevant:
        raise ImpRAGError(f"{path} names no relevant passage")
    return relevant
