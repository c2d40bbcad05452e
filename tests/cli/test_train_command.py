"""``imprag train``: the dry run, and how the real run is called."""

import json
from pathlib import Path
from typing import Any

import pytest

from imprag.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "llama-3.2-3b.yaml"


def run(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def test_a_dry_run_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", CONFIG, "--dry-run", "--devices", 8) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("meta-llama/Llama-3.2-3B: 28 layers, b=7, t=19, embeddings of 1024\n")
    assert "missing, so that numbers and lengths are assumed: data/NQ-open" in shown
    assert "3,212,749,824" in shown
    for title in ("Parameters", "Data", "Memory of one device", "Training", "Index and stored KV"):
        assert f"\n{title}" in shown


def test_a_dry_run_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "model.k=4", "batch.examples=16", "--set", "train.steps=7"]
    assert run("--config", CONFIG, "--dry-run", "--json", "--flops", "1e15", *options) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["training"]["steps"] == 7
    assert estimate["training"]["flops_per_device"] == 1e15
    assert estimate["stages"]["warmup"]["embedded"] == pytest.approx(16 * 0.15 * 5 * 140, rel=1e-3)


def test_the_recipe_reaches_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def train(recipe: Any, out: Path, *, resume: bool, evaluator: Any) -> dict[str, float]:
        assert evaluator.args == (recipe.evaluation,)
        assert evaluator.keywords == {"metric": "exact_match"}
        calls.append((recipe.model.k, recipe.train.steps, out, resume))
        return {"exact_match": 0.5}

    monkeypatch.setattr("imprag.training.run.train", train)
    arguments = ["--config", CONFIG, "--set", "model.k=4", "--out", tmp_path / "run"]
    assert run(*arguments, "--set", "train.steps=3") == 0
    assert capsys.readouterr().out == "exact_match: 0.5\n"
    assert run(*arguments, "--json", "--resume") == 0
    assert json.loads(capsys.readouterr().out) == {"exact_match": 0.5}
    assert calls == [(4, 3, tmp_path / "run", False), (4, None, tmp_path / "run", True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", CONFIG], "--out"),
        (["--config", "nowhere.yaml", "--dry-run"], "cannot read the recipe nowhere.yaml"),
        (["--config", CONFIG, "--dry-run", "--set", "model.tt=3"], "did you mean model.t?"),
        (["--config", CONFIG, "--dry-run", "--set", "model.t=28"], "has 28 layers"),
        (["--config", CONFIG, "--dry-run", "--devices", 0], "devices"),
        (["--config", CONFIG, "--dry-run", "--flops", "nan"], "flops"),
        (["--config", CONFIG, "--out", "x", "--devices", 1], "--devices has no effect without"),
        (["--config", CONFIG, "--out", "x", "--flops", 1e15], "--flops has no effect without"),
        (["--dry-run"], "--config"),
    ],
)
def test_mistakes(
    arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("imprag: error: ")
    assert message in line
    assert captured.out == ""
