"""Comparison of runs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, assert_self_contained
from tiny_evaluation import write_run

from imprag.errors import ImpRAGError
from imprag.evaluation.compare import compare
from imprag.evaluation.run_folder import RunFolder
from imprag.evaluation.statistics import bootstrap_interval, paired_bootstrap
from imprag.evaluation.tables import HEADLINE, LABELS, markdown_table, results_table


def predictions(seed: int, task: str = "nq", count: int = 60) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "task": task,
            "id": str(number),
            "metrics": {
                "exact_match": float(draw.random() < 0.3 + 0.2 * seed),
                "f1": draw.random(),
                "mrr": draw.random(),
            },
        }
        for number in range(count)
    ]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for seed in range(3):
        write_run(tmp_path / f"run{seed}", predictions(seed))
    return [tmp_path / f"run{seed}" for seed in range(3)]


def test_differences_and_p_values_are_those_of_the_paired_bootstrap(runs: list[Path]) -> None:
    comparison = compare(runs, ["f1", "exact_match"])
    assert comparison.runs == ["run0", "run1", "run2"]
    assert comparison.notes == []
    assert [(row.task, row.metric, row.n) for row in comparison.rows] == [
        ("nq", "exact_match", 60),
        ("nq", "f1", 60),
    ]
    for row in comparison.rows:
        scores = [[one["metrics"][row.metric] for one in predictions(seed)] for seed in range(3)]
        for values, estimate in zip(scores, row.estimates, strict=True):
            low, high = bootstrap_interval(values)
            assert estimate == {"mean": sum(values) / 60, "low": low, "high": high, "n": 60}
        assert row.tests == [
            paired_bootstrap(scores[1], scores[0]),
            paired_bootstrap(scores[2], scores[0]),
        ]
    assert comparison.rows[0].tests[1].difference > 0.2
    assert comparison.rows[0].tests[1].p_value < 0.01


def test_a_run_equals_itself(runs: list[Path], tmp_path: Path) -> None:
    (row,) = compare([runs[0], runs[0]], ["f1"]).rows
    assert row.tests[0].difference == 0
    assert row.tests[0].p_value == 1
    assert compare([runs[0], runs[0]]).runs == [str(runs[0])] * 2


def test_only_common_examples_count_and_a_note_says_so(tmp_path: Path) -> None:
    longer = predictions(1, count=50)
    write_run(tmp_path / "a", predictions(0, count=30) + predictions(0, "popqa"))
    write_run(tmp_path / "b", [*reversed(longer[10:]), *predictions(0, "zsre")])
    comparison = compare([tmp_path / "a", tmp_path / "b"], ["f1"])
    (row,) = comparison.rows
    assert row.n == 20
    first = [one["metrics"]["f1"] for one in predictions(0, count=30)][10:]
    second = [one["metrics"]["f1"] for one in longer[10:30]]
    assert row.tests[0].difference == pytest.approx(sum(second) / 20 - sum(first) / 20)
    assert comparison.notes == [
        "nq is compared on the 20 examples that all runs have, of 30, 40.",
        f"popqa is left out: it is not in {tmp_path / 'b'}.",
        f"zsre is left out: it is not in {tmp_path / 'a'}.",
    ]
    assert comparison.notes[0] in comparison.to_markdown()


# --- TREC files of other systems ----------------------------------------------------------------


def graded(task: str, id: str) -> dict[str, Any]:
    """A prediction whose gold passage is ``d`` and the id."""
    metrics = {"mrr": 1.0, "ndcg@10": 1.0, "passage_recall@1": 1.0}
    return {"task": task, "id": id, "metrics": metrics, "gold": [[f"d{id}"]]}


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    keys = [("nq", "1"), ("nq", "2"), ("fever", "2"), ("fever", "3"), ("coqa", "4")]
    run = [graded(*key) for key in keys]
    write_run(
        tmp_path / "run", [{**one, "gold": []} if one["task"] == "coqa" else one for one in run]
    )
    return tmp_path / "run"


def compared(reference: Path, *lines: str) -> tuple[dict[str, float], list[str]]:
    """The MRR of each task by a TREC file of ``query passage score``, and the notes."""
    file = reference.parent / "other.trec"
    forms = [
        f"{query} Q0 {rest.replace(' ', ' 0 ')} tag"
        for query, _, rest in (one.partition(" ") for one in lines)
    ]
    file.write_text("\n".join(forms) + "\n")
    comparison = compare([reference, file], ["mrr"])
    notes = [note.replace(f"{reference.parent}/", "") for note in comparison.notes]
    return {row.task: row.estimates[1]["mean"] for row in comparison.rows}, notes


def test_tasks_that_a_trec_file_lacks_are_left_out_with_a_note(reference: Path) -> None:
    means, notes = compared(reference, "1 d0 2", "1 d1 1", "9 d1 1")
    assert means == {"nq": 0.25}
    assert notes == [
        "other.trec lacks 1 queries of nq: they count as nothing found.",
        "other.trec has 1 queries that are not in run.",
        "fever is left out: it is not in other.trec.",
        "coqa is left out: it is not in other.trec.",
    ]


def test_ids_of_several_tasks_need_the_task(reference: Path) -> None:
    with pytest.raises(ImpRAGError, match="query 2 .* may be of the task nq or fever: .*TASK:ID"):
        compared(reference, "1 d1 1", "2 d2 1")
    assert compared(reference, "fever:2 d2 1", "nq:2 d2 1")[0] == {"nq": 0.5, "fever": 0.5}
    assert compared(reference, "fever:2 d2 1", "2 d2 1")[0] == {"nq": 0.5, "fever": 0.5}


def test_a_passage_that_a_query_ranks_twice_is_refused(reference: Path) -> None:
    with pytest.raises(ImpRAGError, match="line 3: query 1 ranks passage d1 twice"):
        compared(reference, "1 d1 1", "1 d2 1", "1 d1 3")


def test_ranks_below_those_of_the_run_do_not_count(reference: Path) -> None:
    lower = [f"1 x{n} {200 - n}" for n in range(100)]
    assert compared(reference, *lower[:99], "1 d1 1")[0] == {"nq": 0.5 * 0.01}
    assert compared(reference, *lower, "1 d1 1")[0] == {"nq": 0.0}


def test_examples_without_a_metric_are_left_out(tmp_path: Path) -> None:
    without = predictions(1)
    for one in without[:45]:
        del one["metrics"]["mrr"]
    write_run(tmp_path / "a", predictions(0))
    write_run(tmp_path / "b", without)
    rows = compare([tmp_path / "a", tmp_path / "b"], ["mrr", "f1"]).rows
    assert [(row.metric, row.n) for row in rows] == [("f1", 60), ("mrr", 15)]


def test_markdown_has_a_row_per_task_and_metric(runs: list[Path]) -> None:
    lines = compare(runs[:2], ["exact_match"]).to_markdown().splitlines()
    assert len({len(line) for line in lines}) == 1
    header, rule, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header == ["task", "metric", "n", "run0", "run1", "difference", "p"]
    assert rule[0].strip("-") == ""
    assert rule[2].endswith(":")
    scores = [[one["metrics"]["exact_match"] for one in predictions(seed)] for seed in (0, 1)]
    test = paired_bootstrap(scores[1], scores[0])
    assert row[:3] == ["nq", "exact match", "60"]
    assert row[3].startswith(f"{100 * sum(scores[0]) / 60:.1f} [")
    assert row[5] == (
        f"{100 * test.difference:+.1f} "
        f"[{100 * test.interval.low:+.1f}, {100 * test.interval.high:+.1f}]"
    )
    assert row[6] == f"{test.p_value:.3f}"


def test_small_p_values_are_not_shown_as_zero(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        rows = [{"task": "nq", "id": str(n), "metrics": {"f1": value}} for n in range(9)]
        write_run(tmp_path / str(value), rows)
    assert "| < 0.001 |" in compare([tmp_path / "0.0", tmp_path / "1.0"], ["f1"]).to_markdown()


def test_json_holds_everything(runs: list[Path]) -> None:
    comparison = compare(runs, list(LABELS))
    value = json.loads(json.dumps(comparison.to_json()))
    assert value["runs"] == ["run0", "run1", "run2"]
    assert [row["metric"] for row in value["rows"]] == ["exact_match", "f1", "mrr"]
    test = value["rows"][0]["tests"][0]
    assert test["difference"] == comparison.rows[0].tests[0].difference
    assert set(test["interval"]) == {"low", "high"}


def test_html_has_tables_and_plots(tmp_path: Path) -> None:
    write_run(tmp_path / "<b>", predictions(0) + predictions(1, "fe|ver"))
    write_run(tmp_path / "other", predictions(1) + predictions(0, "fe|ver"))
    comparison = compare([tmp_path / "<b>", tmp_path / "other"], ["exact_match", "f1"])
    comparison.write_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert_self_contained(html, page)
    assert page.tags.count("svg") == 2
    assert [row[:3] for row in page.rows] == [
        ["task", "metric", "n"],
        ["nq", "exact match", "60"],
        ["", "F1", "60"],
        ["fe|ver", "exact match", "60"],
        ["", "F1", "60"],
    ]
    assert page.rows[0][3:] == ["<b>", "other", "difference", "p"]
    assert "fe\\|ver" in comparison.to_markdown()


def test_runs_that_cannot_be_compared_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="at least two run folders"):
        compare(runs[:1])
    with pytest.raises(ImpRAGError, match="no metric bleu; there are exact_match, f1"):
        compare(runs, ["f1", "bleu"])
    with pytest.raises(ImpRAGError, match=r"is not a run folder: it has no recipe\.yaml"):
        compare([runs[0], tmp_path])
    (runs[1] / "results.json").unlink()
    with pytest.raises(ImpRAGError, match="run1 is not finished"):
        compare(runs)
    with pytest.raises(ImpRAGError, match="nothing to compare: no metric is in all runs"):
        compare([runs[0], runs[2]], ["ndcg@10"])
    write_run(tmp_path / "popqa", predictions(0, "popqa"))
    with pytest.raises(
        ImpRAGError, match="nothing to compare: nq is left out: it is not in .*popqa"
    ):
        compare([runs[0], tmp_path / "popqa"])
    changed = predictions(0)
    changed[7]["answers"] = ["other"]
    write_run(tmp_path / "changed", changed)
    with pytest.raises(
        ImpRAGError, match="example '7' of task 'nq' has other gold answers in .*different versions"
    ):
        compare([runs[0], tmp_path / "changed"])
    damaged = RunFolder.open(runs[0])
    damaged.write_results({"tasks": 3})
    with pytest.raises(ImpRAGError, match=r"results\.json is damaged"):
        compare([runs[0], runs[2]])


def test_results_table_shows_headline_metrics() -> None:
    value = {"mean": 0.12345, "low": 0.1, "high": 0.2, "n": 7}
    tasks = {
        "nq": {"n": 7000, "metrics": {"exact_match": value, "mrr": value}},
        "fever": {"n": 3, "metrics": {"accuracy": {**value, "mean": 1.0, "n": 3}}},
    }
    lines = results_table(tasks).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "n", "exact match", "accuracy"]
    assert cells[2:] == [["nq", "7,000", "12.3 (n 7)", ""], ["fever", "3", "", "100.0"]]
    assert set(HEADLINE) <= LABELS.keys()
    assert markdown_table(["a"], []).splitlines() == ["| a   |", "| --- |"]
