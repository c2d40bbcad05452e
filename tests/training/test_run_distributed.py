"""Training runs in two processes, with DDP and FSDP2, end with the model of one process."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from processes import fsdp2, in_group, quick_evaluation
from safetensors.torch import load_file
from tiny_runs import logged, make_world, recipe, weights

from imprag.cli import main
from imprag.errors import ImpRAGError
from imprag.evaluation.development import DevelopmentSet
from imprag.training.recipe import Recipe
from imprag.training.recipe_file import load_recipe
from imprag.training.run import train

STEPS, KILLED = 6, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def evaluating(world: Path) -> Recipe:
    """A recipe with all that processes do together: mining, evaluation, accumulation."""
    return recipe(
        world,
        batch={"examples": 8, "cross_batch_memory": 2},
        stages={"mine_every": 2},
        evaluation={"tasks": [f"nq={world / 'nq.jsonl'}"], "limit": 6},
        train={"steps": STEPS},
        trainer={
            "learning_rate": 3e-4,
            "save_steps": 2,
            "eval_steps": 3,
            "metric_for_best_model": "passage_recall@10",
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
        },
    )


def run(settings: Recipe, out: Path, resume: bool = False) -> dict[str, Any]:
    """What the command ``imprag train`` does."""
    evaluator = None
    if settings.evaluation:
        metric = settings.trainer["metric_for_best_model"]
        evaluator = partial(DevelopmentSet, settings.evaluation, metric=metric)
    with quick_evaluation():
        return train(settings, out, resume=resume, evaluator=evaluator)


def under_fsdp2(rank: int, file: Path, out: Path, resume: bool = False) -> None:
    with fsdp2():
        run(load_recipe(file), out, resume)


def refusal(rank: int, file: Path, out: Path) -> str:
    """The error of a run that cannot be resumed under FSDP2."""
    with pytest.raises(ImpRAGError) as error:
        under_fsdp2(rank, file, out, resume=True)
    return str(error.value)


def command_under_ddp(rank: int, file: Path, out: Path) -> str:
    """What the command ``imprag train --json`` prints."""
    shown = io.StringIO()
    # The group ends with the scenario.
    with redirect_stdout(shown), patch.object(PartialState, "destroy_process_group"):
        assert main(["train", "--config", str(file), "--out", str(out), "--json"]) == 0
    return shown.getvalue()


def interrupted(rank: int, file: Path, out: Path) -> None:
    """Train under FSDP2, then again from the first checkpoint."""
    under_fsdp2(rank, file, out)
    if rank == 0:
        for part in ("model", "checkpoint-4"):
            shutil.rmtree(out / part)
    dist.barrier()
    under_fsdp2(rank, file, out, resume=True)


def written(settings: Recipe, path: Path) -> Path:
    path.write_text(settings.to_yaml())
    return path


def predictions(out: Path) -> Iterator[tuple[Any, ...]]:
    for file in sorted(out.glob("development/*/predictions.jsonl")):
        for line in file.read_text().splitlines():
            one = json.loads(line)
            passages = [passage["id"] for passage in one["passages"]]
            yield file.parent.name, one["id"], one["answer"], passages, one["metrics"]


def remembered(out: Path) -> dict[str, torch.Tensor]:
    """The cross-batch memory: the embedding of each row."""
    saved = load_file(out / f"checkpoint-{STEPS}" / "cross_batch_memory.safetensors")
    return {str(row): x for row, x in zip(saved["rows"].tolist(), saved["embeddings"], strict=True)}


def assert_same(actual: dict[str, Any], expected: dict[str, Any], most: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=most)


def test_killed_and_resumed_under_fsdp2_is_the_run_of_one_process(
    world: Path, tmp_path: Path
) -> None:
    settings = evaluating(world)
    file, one, two = written(settings, tmp_path / "r.yaml"), tmp_path / "one", tmp_path / "two"
    run(settings, one)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    program = [str(Path(__file__).with_name("killed_run.py")), str(KILLED)]
    command = ["train", "--config", str(file), "--out", str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [*torchrun, *program, *command], env=environment, capture_output=True, text=True
    )
    assert "SIGKILL" in killed.stderr
    assert not (two / "model").exists()
    in_group(2, under_fsdp2, file, two, True)

    for name in ("model", f"checkpoint-{STEPS}"):
        assert_same(weights(two / name), weights(one / name), 1e-6)
    assert list(predictions(two)) == list(predictions(one))
    for step in (0, 2, 3, 5):  # the second stage begins with step 3
        name = f"own-ranks/step-{step}.safetensors"
        assert_same(load_file(two / name), load_file(one / name), 0)
    for actual, expected in zip(logged(two)[:-1], logged(one)[:-1], strict=True):
        # A passage that prompts of both processes read is encoded, and counted, twice.
        assert actual.pop("tokens", 0) >= expected.pop("tokens", 0)
        assert actual == pytest.approx(expected, abs=2e-4)
    assert_same(remembered(two), remembered(one), 1e-5)


def test_adapters_trained_and_resumed_under_fsdp2_are_those_of_one_process(
    world: Path, tmp_path: Path
) -> None:
    adapters = {"bottom": {"rank": 4}, "reading": {"rank": 2}, "norms": True}
    settings = recipe(world, lora=adapters, train={"steps": 4}, trainer={"save_steps": 2})
    run(settings, tmp_path / "one")
    in_group(2, interrupted, written(settings, tmp_path / "recipe.yaml"), tmp_path / "two")
    one, two = (load_file(tmp_path / n / "model/adapter_model.safetensors") for n in ("one", "two"))
    assert_same(two, one, 1e-6)

    for name in ("one", "two"):
        shutil.rmtree(tmp_path / name / "model")
    with pytest.raises(ImpRAGError, match="began with FSDP2 and cannot be resumed without it"):
        run(settings, tmp_path / "two", resume=True)
    for error in in_group(2, refusal, tmp_path / "recipe.yaml", tmp_path / "one"):
        assert "began without FSDP2 and cannot be resumed with it" in error


def test_bfloat16_under_fsdp2_trains_in_float32_weights(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, train={"steps": 2}, trainer={"bf16": True})
    run(settings, tmp_path / "one")
    in_group(2, under_fsdp2, written(settings, tmp_path / "recipe.yaml"), tmp_path / "two")
    one, two = ([line["loss"] for line in logged(tmp_path / n)[:2]] for n in ("one", "two"))
    assert two == pytest.approx(one, rel=0.02)
    trained = weights(tmp_path / "two/model")
    assert all(value.dtype == torch.float32 for value in trained.values())
    assert not trained["model.embed_tokens.weight"].equal(
        trained["model.embed_tokens.weight"].bfloat16().float()
    )


def test_ddp_trains_the_model_of_one_process(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, train={"steps": 4}, stages={"mine_every": 2})
    run(settings, tmp_path / "one")
    file = written(settings, tmp_path / "recipe.yaml")
    printed, nothing = in_group(2, command_under_ddp, file, tmp_path / "two")
    assert_same(weights(tmp_path / "two/model"), weights(tmp_path / "one/model"), 1e-5)
    assert json.loads(printed)["steps"] == 4
    assert nothing == ""
