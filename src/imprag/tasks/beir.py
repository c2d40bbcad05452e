"""BEIR's folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``."""

import csv
import sys
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
    provenance: ``{"passage_id": ..., "relevance": ...}``. `imprag index` reads ``corpus.jsonl``. A
    note on standard error counts the split's queries that have no text.

    Args:
        folder: the data set.
        split: the name of a file in ``qrels/``; ``test`` if not given.

    Raises:
        ImpRAGError: there is no such split, a query occurs twice or has an empty text, or a file
            has another format.
    """
    relevant = _qrels(folder, split or "test")
    queries = beir_queries(folder)
    assert queries is not None
    places: dict[str, str] = {}
    for record in read_records(queries):
        id = record.identifier("_id")
        if grades := relevant.get(id):
            if id in places:
                raise ImpRAGError(
                    f"{record.place}: the query '{id}' already occurs in {places[id]}"
                )
            places[id] = record.place
            if not (text := record.text("text")).strip():
                raise record.error("text", "the text of the query")
            ranked = sorted(grades, key=lambda passage: -grades[passage])
            references = [{"passage_id": one, "relevance": grades[one]} for one in ranked]
            yield Example(id, text, [Answer("", [one]) for one in references])
    if missing := [id for id in relevant if id not in places]:
        print(
            f"note: {len(missing):,} of {len(relevant):,} queries in {_qrels_file(folder, split)} "
            f"are not in {queries}, such as '{missing[0]}', and are left out",
            file=sys.stderr,
        )


def _qrels_file(folder: Path, split: str | None) -> Path:
    return folder / "qrels" / f"{split or 'test'}.tsv"


def _qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """The relevance of passages, by query and passage; only positive ones."""
    path = _qrels_file(folder, split)
    if not path.is_file():
        known = sorted(one.stem for one in (folder / "qrels").glob("*.tsv"))
        raise ImpRAGError(f"{folder} has no split {split!r}; it has {', '.join(known) or 'none'}")
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            for number, row in enumerate(rows, 1):
                if not row or (number == 1 and row[-1] == "score"):
                    continue
                query, passage, grade = _judgement(row, f"{path}, line {number}")
                if relevant[query].setdefault(passage, grade) != grade:
                    raise ImpRAGError(
                        f"{path}, line {number}: query '{query}' grades the passage '{passage}' "
                        f"{grade} here and {relevant[query][passage]} above"
                    )
    except UnicodeDecodeError as error:
        raise ImpRAGError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    positive = {
        query: {passage: grade for passage, grade in grades.items() if grade > 0}
        for query, grades in relevant.items()
    }
    positive = {query: grades for query, grades in positive.items() if grades}
    if not positive:
        raise ImpRAGError(f"{path} names no relevant passage")
    return positive


def _judgement(row: list[str], place: str) -> tuple[str, str, int]:
    """Query, passage and grade of a line."""
    if len(row) != 3:
        raise ImpRAGError(
            f"{place}: expected query-id, corpus-id and score, with tabs between them"
        )
    query, passage, score = row
    try:
        return query, passage, int(score)
    except ValueError as error:
        raise ImpRAGError(
            f"{place}: expected a whole number as the score, such as 1, not {score!r}"
        ) from error
