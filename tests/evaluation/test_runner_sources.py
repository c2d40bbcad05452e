"""Passage sources: retrievers with their query templates, gold passages, none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_evaluation import example

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation.passage_sources import (
    Question,
    gold_among,
    gold_passages,
    no_passages,
    oracle_query,
    text_retrieval,
)
from imprag.retrieval import RetrievedPassage
from imprag.tasks import load_task

# --- Query templates ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("what is the capital of chad", "what is the capital of chad"),
        ("Chad [SEP] capital", "Chad capital"),
        ("Trade with [START] New Zealand [END] grew; [SEP] or so", "New Zealand"),
        ("a [START]  line\nbreak[END] here", "line\nbreak"),
    ],
)
def test_oracle_queries_drop_markers_and_context(text: str, query: str) -> None:
    assert oracle_query(example("q", text, ["x"])) == query


class Fake:
    """A text retriever whose passages are named after the query."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        return [[RetrievedPassage(Passage(prompt, "", "text"), 1.0)] * k for prompt in prompts]

    def settings(self) -> dict[str, Any]:
        return {"strength": 3}


def test_text_retrievers_get_the_prompt_or_the_oracle_query(corpus: Corpus) -> None:
    task = load_task("trex")
    asked = example("q", "Chad [SEP] capital", ["x"])
    question = Question(task, asked, task.prompt(asked))
    for template, query in (("none", task.prompt(asked)), ("oracle", "Chad capital")):
        source = text_retrieval("fake", Fake(corpus), template)  # type: ignore[arg-type]
        assert [[item.passage.id for item in row] for row in source.find([question], 2)] == [
            [query, query]
        ]
        assert (source.name, source.ranks, source.corpus) == ("fake", True, corpus)
        assert source.details == {"query_template": template, "strength": 3}


def test_gold_passages_and_none(corpus: Corpus) -> None:
    task = load_task("nq")
    questions = [
        Question(task, example("a", "?", ["x"], "p2", "p0", "p1"), "?"),
        Question(task, example("b", "?", ["x"]), "?"),
    ]
    found = gold_passages(corpus).find(questions, 2)
    assert [[item.passage for item in row] for row in found] == [[corpus[2], corpus[0]], []]
    assert [(item.row, item.kind) for item in found[0]] == [(2, "given"), (0, "given")]
    assert no_passages().find(questions, 2) == [[], []]


@pytest.fixture
def numbers(tmp_path: Path) -> Corpus:
    return Corpus.build([Passage(f"p{n}", "", f"{n}") for n in range(40)], tmp_path / "numbers")


def among(corpus: Corpus, questions: list[Question], n: int, k: int = 100, seed: int = 0) -> Any:
    found = gold_among(corpus, n, seed).find(questions, k)
    return [[(item.passage.id, item.score) for item in row] for row in found]


def ask(task: str, id: str, *gold: str) -> Question:
    return Question(load_task(task), example(id, "?", ["x"], *gold), "?")


def test_the_first_gold_passage_stands_among_others(numbers: Corpus) -> None:
    questions = [ask("nq", f"q{n}", f"p{n}", f"p{n + 1}", f"p{n + 2}") for n in range(30)]
    rows = among(numbers, questions, 4)
    for n, row in enumerate(rows):
        ids = {id for id, _ in row}
        assert len(ids) == len(row) == 4
        assert [id for id, score in row if score] == [f"p{n}"]
        assert not ids & {f"p{n + 1}", f"p{n + 2}"}
    places = {[score for _, score in row].index(1) for row in rows}
    assert places == {0, 1, 2, 3}
    assert len({id for row in rows for id, _ in row}) > 35
    # By id and seed alone.
    assert among(numbers, questions[::-1], 4) == rows[::-1]
    assert among(numbers, questions, 4, seed=1) != rows


def test_joint_evidence_stands_among_others_together(numbers: Corpus) -> None:
    ((two_hop,), (single,)) = (
        among(numbers, [ask(task, "q", "p3", "p8")], 3) for task in ("hotpotqa", "nq")
    )
    assert {id for id, score in two_hop if score} == {"p3", "p8"}
    assert {id for id, score in single if score} == {"p3"}
    assert len(two_hop) == len(single) == 3


def test_fewer_passages_still_hold_the_gold_one(numbers: Corpus, corpus: Corpus) -> None:
    question = ask("nq", "q", "p3", "p2")
    for k in (1, 2):
        (row,) = among(numbers, [question], 4, k=k)
        assert len(row) == k
        assert ("p3", 1.0) in row
    # Only two of these four passages are not gold.
    assert {id for id, _ in among(corpus, [question], 4)[0]} == {"p3", "p0", "p1"}
    assert among(numbers, [ask("nq", "q")], 4) == [[]]


def test_gold_among_is_told_from_other_sources(corpus: Corpus) -> None:
    source = gold_among(corpus, 2, seed=5)
    assert (source.name, source.ranks, source.details) == (
        "oracle",
        False,
        {"among": 2, "seed": 5},
    )
    for n in (0, 5):
        with pytest.raises(ImpRAGError, match=f"among {n} passages of a corpus of 4"):
            gold_among(corpus, n)
