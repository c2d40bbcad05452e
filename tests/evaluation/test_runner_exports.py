"""TREC and KILT files, read by their own tools."""

import itertools
import json
import random
from pathlib import Path

import ir_measures
import pytest
from ir_measures import RR, R, Success, nDCG
from tiny_evaluation import write_run

from imprag.corpus import Passage
from imprag.evaluation.exports import write_kilt, write_trec
from imprag.evaluation.metrics import r_precision
from imprag.evaluation.run_folder import RunFolder
from imprag.evaluation.scoring import hit_ranks, score_retrieval
from imprag.retrieval import RetrievedPassage
from imprag.tasks import Answer, Example, load_task

IDS = [f"passage {n}" for n in range(40)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Rankings with many equal scores, as from BM25, and the runner's metrics.

    Questions of nq have one gold passage, those of popqa several."""
    draw = random.Random(0)
    pages = {id: f"page {number % 7}" for number, id in enumerate(IDS)}
    predictions = []
    for number in range(60):
        task = load_task("nq" if number < 30 else "popqa")
        gold = draw.sample(IDS, 1 if task.name == "nq" else 3)
        example = Example(str(number), "?", [Answer("x", [{"passage_id": id} for id in gold])])
        scores = sorted((draw.choice([0, 0.25, 1, 3.3]) for _ in range(25)), reverse=True)
        found = [
            RetrievedPassage(Passage(id, pages[id], "text"), score)
            for id, score in zip(draw.sample(IDS, 25), scores, strict=True)
        ]
        predictions.append(
            {
                "task": task.name,
                "id": example.id,
                "answer": f"answer {number}",
                "gold": [[id] for id in gold],
                "passages": [{"id": f.passage.id, "score": f.score} for f in found],
                "hit_ranks": hit_ranks(task, example, found),
                "metrics": score_retrieval(task, example, found, pages),
            }
        )
    return write_run(tmp_path / "run", predictions)


def test_trec_tools_compute_the_same_metrics(run: RunFolder) -> None:
    write_trec(run, "a tag")
    qrels = list(ir_measures.read_trec_qrels(str(run.path / "qrels.trec")))
    ranking = list(ir_measures.read_trec_run(str(run.path / "run.trec")))
    names = {
        RR: "mrr",
        nDCG @ 10: "ndcg@10",
        **{Success @ k: f"passage_recall@{k}" for k in (1, 5, 10, 20)},
    }
    compared = 0
    own = {f"{one['task']}:{one['id']}": one["metrics"] for one in run.predictions()}
    for value in ir_measures.iter_calc(list(names), qrels, ranking):
        assert value.value == pytest.approx(own[value.query_id][names[value.measure]], abs=1e-9)
        compared += 1
    assert compared == 60 * len(names)
    # With one gold passage, trec_eval's recall is ours.
    of_nq = [qrel for qrel in qrels if qrel.query_id.startswith("nq:")]
    results = run.results()["tasks"]["nq"]["metrics"]
    for measure, value in ir_measures.calc_aggregate([R @ 5, R @ 10], of_nq, ranking).items():
        assert value == pytest.approx(results[f"passage_recall@{measure['cutoff']}"]["mean"])


def test_trec_files_have_the_expected_lines(run: RunFolder) -> None:
    write_trec(run, "a tag")
    lines = [line.split(" ") for line in (run.path / "run.trec").read_text().splitlines()]
    assert len(lines) == 60 * 25
    assert all(len(line) == 6 for line in lines)
    first = next(run.predictions())["passages"]
    assert [line[2].replace("%20", " ") for line in lines[:25]] == [p["id"] for p in first]
    assert lines[0] == ["nq:0", "Q0", lines[0][2], "1", f"{first[0]['score']:.9g}", "a%20tag"]
    scores = [float(line[4]) for line in lines[:25]]
    assert all(above > below for above, below in itertools.pairwise(scores))
    assert scores == pytest.approx([p["score"] for p in first], abs=1e-3)


def test_kilt_predictions_have_answers_and_pages(run: RunFolder) -> None:
    write_kilt(run, lambda id: f"page {IDS.index(id) % 7}")
    assert sorted(file.name for file in (run.path / "kilt").iterdir()) == [
        "nq.jsonl",
        "popqa.jsonl",
    ]
    guesses = [
        json.loads(line)
        for task in ("nq", "popqa")
        for line in (run.path / "kilt" / f"{task}.jsonl").read_text().splitlines()
    ]
    for guess, one in zip(guesses, run.predictions(), strict=True):
        assert guess["id"] == one["id"]
        (output,) = guess["output"]
        assert output["answer"] == one["answer"]
        pages = [reference["wikipedia_id"] for reference in output["provenance"]]
        assert len(set(pages)) == len(pages)
        gold = {f"page {IDS.index(id) % 7}" for ids in one["gold"] for id in ids}
        assert r_precision(pages, [gold]) == one["metrics"]["r_precision"]


def test_kilt_files_of_tasks_with_a_slash(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"task": "factbook/qa", "id": "1", "metrics": {}}])
    write_kilt(run, str)
    line = (run.path / "kilt" / "factbook" / "qa.jsonl").read_text()
    assert json.loads(line) == {"id": "1", "output": [{"answer": "", "provenance": []}]}
