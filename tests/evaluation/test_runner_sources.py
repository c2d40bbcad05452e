"""Where passages come from: retrievers with their query templates, gold passages, none."""

from pathlib import Path

import pytest
from tiny_evaluation import example

from imprag.corpus import Corpus, Passage
from imprag.evaluation import passage_sources
from imprag.evaluation.passage_sources import (
    Question,
    bm25_retrieval,
    gold_passages,
    no_passages,
    oracle_query,
    teacher_retrieval,
)
from imprag.index.folder import RetrievedPassage
from imprag.tasks import load_task

TEXTS = [
    ("The Who", "An English rock band"),
    ("Chad", "The capital of Chad is N'Djamena, a city on the river Chari"),
    ("Mali", "The capital of Mali is Bamako"),
    ("Vitamin C", "Also known as ascorbic acid"),
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    passages = [Passage(f"p{n}", *texts) for n, texts in enumerate(TEXTS)]
    return Corpus.build(passages, tmp_path / "corpus")


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
def test_oracle_queries(text: str, query: str) -> None:
    assert oracle_query(example("q", text, ["x"])) == query


class Fake:
    """A text retriever that finds what it was asked for."""

    def retrieve(self, queries: list[str], k: int) -> list[list[RetrievedPassage]]:
        return [[RetrievedPassage(Passage(query, "", "text"), 1.0)] * k for query in queries]


@pytest.mark.parametrize("name", ["bm25", "teacher"])
def test_text_retrievers_get_the_prompt_or_the_oracle_query(
    name: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder:
        name = "fake"

        def fingerprint(self) -> str:
            return "f"

    monkeypatch.setattr(passage_sources, "BM25", lambda corpus: Fake())
    monkeypatch.setattr(passage_sources, "TextEncoder", Encoder)
    monkeypatch.setattr(passage_sources, "Teacher", lambda corpus, encoder: Fake())
    make = {"bm25": bm25_retrieval, "teacher": teacher_retrieval}[name]
    task = load_task("trex")
    asked = example("q", "Chad [SEP] capital", ["x"])
    question = Question(task, asked, task.prompt(asked))
    for template, query in (("none", task.prompt(asked)), ("oracle", "Chad capital")):
        source = make(corpus, template)
        assert [[item.passage.id for item in row] for row in source.find([question], 2)] == [
            [query, query]
        ]
        assert (source.name, source.ranks) == (name, True)
        assert source.details["query_template"] == template


def test_gold_passages_and_none(corpus: Corpus) -> None:
    task = load_task("nq")
    questions = [
        Question(task, example("a", "?", ["x"], "p2", "p0", "p1"), "?"),
        Question(task, example("b", "?", ["x"]), "?"),
    ]
    found = gold_passages(corpus).find(questions, 2)
    assert [[item.passage for item in row] for row in found] == [[corpus[2], corpus[0]], []]
    assert no_passages().find(questions, 2) == [[], []]
