"""Where examples and passages come from: files, benchmarks, BM25, query templates."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from tiny_evaluation import example

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation import passage_sources
from imprag.evaluation.bm25 import BM25
from imprag.evaluation.examples import read_tasks
from imprag.evaluation.passage_sources import (
    Question,
    bm25_retrieval,
    gold_passages,
    no_passages,
    oracle_query,
    teacher_retrieval,
)
from imprag.files import sha256, write_json
from imprag.index.folder import RetrievedPassage
from imprag.tasks import load_task, write_examples
from imprag.tasks.factbook.build import VERSION

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


# --- BM25 ---------------------------------------------------------------------------------------


def lucene_bm25(query: list[str], documents: list[list[str]]) -> list[float]:
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts = Counter(document)
        score = 0.0
        for word in query:
            containing = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            length = 1 - 0.75 + 0.75 * len(document) / mean
            score += idf * counts[word] / (counts[word] + 1.5 * length)
        scores.append(score)
    return scores


def test_bm25_scores_follow_the_formula(corpus: Corpus) -> None:
    documents = [
        f"{title} {text}".lower().replace(",", "").replace("'", " ").split()
        for title, text in TEXTS
    ]
    for query in ("What is the CAPITAL of Chad?", "who", "vitamin c", "river Chari Mali"):
        expected = lucene_bm25(query.lower().strip("?").split(), documents)
        (found,) = BM25(corpus).retrieve([query], 4)
        scores = {item.passage.id: item.score for item in found}
        assert [scores[f"p{n}"] for n in range(4)] == pytest.approx(expected, abs=1e-5)
        assert [item.score for item in found] == sorted(scores.values(), reverse=True)
        assert found[0].passage == corpus[expected.index(max(expected))]


def test_bm25_takes_any_query(corpus: Corpus) -> None:
    bm25 = BM25(corpus)
    assert bm25.retrieve([], 2) == []
    rows = bm25.retrieve(["", "xyzzy", "?!", "Bamako"], 2)
    assert [len(row) for row in rows] == [2, 2, 2, 2]
    assert all(item.score == 0 for row in rows[:3] for item in row)
    assert rows[3][0].passage.id == "p2"
    with pytest.raises(ImpRAGError, match="k is 5, but the corpus has only 4 passages"):
        bm25.retrieve(["who"], 5)


def test_bm25_is_built_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    import bm25s

    first = BM25(corpus).retrieve(["capital city"], 3)
    monkeypatch.setattr(bm25s.BM25, "index", lambda *a, **k: pytest.fail("built again"))
    assert BM25(corpus).retrieve(["capital city"], 3) == first


def test_bm25_needs_its_package(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ImpRAGError, match="BM25 needs bm25s; run: pip install"):
        BM25(corpus)


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


# --- Examples -----------------------------------------------------------------------------------


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A folder as `imprag tasks build` makes it, with three small tasks."""
    folder = tmp_path / "bench"
    files: dict[str, dict[str, object]] = {}
    for name, split in (("nq", "test"), ("nq", "dev"), ("fever", "test"), ("coqa", "test")):
        file = folder / name / f"{split}.jsonl"
        one = example(f"{name}-{split}", "w1", ["SUPPORTS" if name == "fever" else "x"], "p1")
        count = write_examples(file, [one])
        entry = {"file": f"{name}/{split}.jsonl", "examples": count, "sha256": sha256(file)}
        files.setdefault(name, {"splits": {}})["splits"][split] = entry  # type: ignore[index]
    manifest = {"name": "tiny", "version": VERSION, "seed": 5, "tasks": files}
    write_json(folder / "benchmark.json", manifest)
    return folder


def test_tasks_of_a_benchmark(benchmark: Path) -> None:
    found = read_tasks(["fever", "nq"], data=benchmark)
    assert [(item.task.name, item.examples[0].id) for item in found] == [
        ("fever", "fever-test"),
        ("nq", "nq-test"),
    ]
    assert found[0].source == f"tiny {VERSION}, seed 5, test"
    assert found[0].examples[0].answers == ["True"]
    # Without names: all that retrieve.
    assert [item.task.name for item in read_tasks(data=benchmark)] == ["nq", "fever"]
    (dev,) = read_tasks(["nq"], data=benchmark, split="dev")
    assert dev.examples[0].id == "nq-dev"
    assert dev.fingerprint() != found[1].fingerprint()


def test_files_whose_examples_name_their_tasks(tmp_path: Path) -> None:
    lines = [
        {"id": "1", "task": "nq", "input": "who", "output": [{"answer": "x"}]},
        {
            "id": "2",
            "task": "aida",
            "input": "[START_ENT] A [END_ENT]",
            "output": [{"answer": "B"}],
        },
        {"id": "3", "task": "nq", "input": "what", "output": [{"answer": "y"}]},
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    nq, aida = read_tasks([str(file)])
    assert [one.id for one in nq.examples] == ["1", "3"]
    assert aida.examples[0].input == "[START] A [END]"
    assert nq.source == str(file)


def test_official_files(tmp_path: Path) -> None:
    file = tmp_path / "NQ-open.dev.jsonl"
    file.write_text('{"question": "who", "answer": ["x", "y"]}\n')
    (nq,) = read_tasks([f"nq={file}"])
    assert nq.examples[0].answers == ["x", "y"]


def test_fingerprints_cover_questions_answers_and_prompts(benchmark: Path) -> None:
    (item,) = read_tasks(["nq"], data=benchmark)
    from dataclasses import replace

    others = [
        replace(item, task=replace(item.task, template="{input}?")),
        replace(item, examples=[example("nq-test", "w1", ["y"], "p1")]),
        replace(item, examples=[example("nq-test", "w1", ["x"], "p2")]),
        replace(item, examples=[example("nq-test", "w2", ["x"], "p1")]),
    ]
    assert len({item.fingerprint(), *(other.fingerprint() for other in others)}) == 5
    assert item.fingerprint() == read_tasks(["nq"], data=benchmark)[0].fingerprint()


def test_bad_names_and_files(benchmark: Path, tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="no tasks; name some with --tasks"):
        read_tasks()
    with pytest.raises(
        ImpRAGError, match="no task or file 'nope'; the benchmark has nq, fever, coqa"
    ):
        read_tasks(["nope"], data=benchmark)
    with pytest.raises(ImpRAGError, match="task 'fever' has no split 'dev', but test"):
        read_tasks(["fever"], data=benchmark, split="dev")
    with pytest.raises(ImpRAGError, match="unknown task 'nope'; known are"):
        read_tasks(["nope=file.jsonl"])
    unnamed = tmp_path / "unnamed.jsonl"
    write_examples(unnamed, [example("1", "w1", ["x"])])
    with pytest.raises(ImpRAGError, match=r"example '1' names no task; give it as --tasks TASK="):
        read_tasks([str(unnamed)])
    twice = tmp_path / "twice.jsonl"
    twice.write_text(unnamed.read_text() * 2)
    with pytest.raises(ImpRAGError, match="the id '1' occurs twice in task 'nq'"):
        read_tasks([f"nq={twice}"])
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"id": "1", "input": "who", "output": []}\n')
    with pytest.raises(ImpRAGError, match=r"empty\.jsonl, line 1: field 'output' has no answer"):
        read_tasks([f"nq={empty}"])


def test_changed_benchmarks_are_refused(benchmark: Path) -> None:
    with (benchmark / "nq" / "test.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(ImpRAGError, match=r"test\.jsonl is missing or was changed"):
        read_tasks(["nq"], data=benchmark)
    manifest = json.loads((benchmark / "benchmark.json").read_text())
    write_json(benchmark / "benchmark.json", {**manifest, "version": VERSION + 1})
    with pytest.raises(ImpRAGError, match=f"holds version {VERSION + 1}, not {VERSION}"):
        read_tasks(["nq"], data=benchmark)
