"""Evaluations of answers that retrieve again."""

from pathlib import Path
from typing import Any

import pytest
from tiny_evaluation import make_corpus, make_rag, make_tasks
from tiny_evaluation import read_predictions as read

from imprag import evaluate
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation.metrics import exact_match
from imprag.evaluation.passage_sources import (
    gold_passages,
    no_passages,
    own_retrieval,
    without_gold,
)
from imprag.evaluation.run_folder import RunFolder
from imprag.evaluation.scoring import score_all_retrievals
from imprag.pipeline import ImpRAG
from imprag.retrieval import RetrievedPassage
from imprag.tasks import Answer, Example, TaskExamples, load_task


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprag.evaluation.runner.write_report", lambda run, corpus: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("evaluation") / "corpus")


@pytest.fixture(scope="module")
def rag(corpus: Corpus) -> ImpRAG:
    return make_rag(corpus, corpus.path.parent / "index")


@pytest.fixture(scope="module")
def tasks(rag: ImpRAG) -> list[TaskExamples]:
    return make_tasks(rag)[1:3]


def test_predictions_and_metrics_cover_all_retrievals(
    tmp_path: Path, rag: ImpRAG, tasks: list[TaskExamples]
) -> None:
    own: dict[str, Any] = {"retrieve": "every:4", "passages_kept": "instead"}
    results = evaluate(rag, tasks, tmp_path / "run", k=5, **own)
    reading = RunFolder.open(tmp_path / "run").recipe["settings"]["reading"]
    assert (reading["retrieve"], reading["passages_kept"]) == ("every:4", "instead")
    by_id = {one.id: (item.task, one) for item in tasks for one in item.examples}
    predictions = read(tmp_path / "run")
    numbers = []
    for prediction in predictions:
        task, example = by_id[prediction["id"]]
        answer = rag.ask(
            prediction["prompt"], 5, max_new_tokens=task.max_new_tokens, raw=True, **own
        )
        assert prediction["answer"] == answer.text
        told = [
            (one["tokens"], one["written"], [found["id"] for found in one["passages"]])
            for one in prediction["retrievals"]
        ]
        later = [
            (one.tokens, one.written, [found.passage.id for found in one.passages])
            for one in answer.retrievals[1:]
        ]
        assert told == later
        metrics = prediction["metrics"]
        assert metrics["retrievals"] == 1 + len(later)
        numbers.append(1 + len(later))
        first = [one["id"] for one in prediction["passages"]]
        for depth in (1, 5):
            union = {*first[:depth], *(id for _, _, ids in later for id in ids[:depth])}
            wanted = example.evidence_sets(joint=task.joint_evidence)
            assert metrics[f"all_passage_recall@{depth}"] == any(
                set(ids) <= union for ids in wanted
            )
        assert "all_passage_recall@10" not in metrics
    assert max(numbers) > 1
    task_results = results["tasks"]["hotpotqa"]["metrics"]
    assert "passage_recall@5" in task_results
    assert task_results["retrievals"]["mean"] > 1
    assert evaluate(rag, tasks, tmp_path / "run", k=5, **own) == results
    with pytest.raises(ImpRAGError, match="retrieve"):
        evaluate(rag, tasks, tmp_path / "run", k=5)


def test_recall_of_all_retrievals_counts_the_first_of_each() -> None:
    task = load_task("hotpotqa")
    proof = [{"passage_id": "a"}, {"passage_id": "b"}]
    example = Example("1", "?", [Answer("yes", proof)])
    corpus_passages = {
        id: RetrievedPassage(Passage(id, id, f"text of {id}"), 0.0) for id in "abcdefghij"
    }
    rankings = [["c", "a", "d", "e", "f"], ["b", "c", "d", "e", "f"]]
    found = [[corpus_passages[id] for id in ranking] for ranking in rankings]
    scores = score_all_retrievals(task, example, found, 5)
    assert scores == {
        "retrievals": 2.0,
        "all_passage_recall@1": 0.0,
        "all_passage_recall@5": 1.0,
        "all_answer_recall@1": 0.0,
        "all_answer_recall@5": 0.0,
    }
    assert score_all_retrievals(task, example, found[:1], 5)["all_passage_recall@5"] == 0.0


def test_what_follows_the_separator_is_scored(
    tmp_path: Path, rag: ImpRAG, tasks: list[TaskExamples], corpus: Corpus
) -> None:
    model = rag.model.with_settings(retrieve="on:w5")
    asking = ImpRAG(model, rag.tokenizer, rag.index)
    sources = {"own": own_retrieval(asking), "gold": gold_passages(corpus), "none": no_passages()}
    for name, source in sources.items():
        evaluate(asking, tasks[:1], tmp_path / name, source=source)
        recipe = RunFolder.open(tmp_path / name).recipe["settings"]
        assert recipe["reading"]["answer_after"] == "w5"
        assert ("retrieve" in recipe["reading"]) == (name == "own")
        for prediction in read(tmp_path / name):
            last = prediction["answer"].rsplit("w5", 1)[-1].strip()
            expected = exact_match(last, prediction["answers"])
            assert prediction["metrics"]["exact_match"] == expected
            assert ("retrievals" in prediction) == (name == "own")


def test_once_leaves_runs_as_they_were(
    tmp_path: Path, rag: ImpRAG, tasks: list[TaskExamples]
) -> None:
    evaluate(rag, tasks, tmp_path / "run", retrieve="once")
    settings = RunFolder.open(tmp_path / "run").recipe["settings"]
    assert settings["reading"] == {"k": 3, "in_context": False}
    assert not {"retrieve", "passages_kept"} & settings["model"].keys()
    assert all("retrievals" not in one for one in read(tmp_path / "run"))


def test_retrieving_again_needs_the_models_own_index(
    tmp_path: Path, rag: ImpRAG, tasks: list[TaskExamples], corpus: Corpus
) -> None:
    without = without_gold(own_retrieval(rag))  # later tokens would find the gold passages
    for own in ({"source": gold_passages(corpus)}, {"in_context": True}, {"source": without}):
        with pytest.raises(ImpRAGError, match="retrieve"):
            evaluate(rag, tasks, tmp_path / "run", retrieve="every:2", **own)
    with pytest.raises(ImpRAGError, match="retrieve"):
        evaluate(None, tasks, tmp_path / "run", source=own_retrieval(rag), retrieve="every:2")
