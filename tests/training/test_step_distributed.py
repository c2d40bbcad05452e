"""Under DDP and FSDP2, two processes (gloo) take the same step as one process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_group
from safetensors.torch import load_file, save_file
from tiny_batches import random_batch, tiny_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from imprag.training.distributed import mean_over_processes
from imprag.training.samplers.batch_sampler import BatchIndices
from imprag.training.step import TrainingBatch

PROCESSES = 2
MANNERS = ("ddp", "fsdp2")
LOSSES = ("loss", "generation", "retrieval")

CANDIDATES = [[0, 1, 2], [3, 1], [], [4, 5, 0], [6], []]
MIXED = random_batch([3, 1, 0, 4, 6, 2], CANDIDATES, 9)
RETRIEVING = random_batch([0] * 5, [[]] * 5, 9)
NONE = torch.zeros(6, 9, dtype=torch.bool)

BATCHES = {
    "nce": RETRIEVING,
    "generation": replace(MIXED, positive=NONE, negative=NONE),
    "warmup": MIXED,
    "self-distillation": replace(MIXED, self_distillation=True),
    "text only": random_batch([3, 1, 5], [[], [], []], 0),
    "one process generates": random_batch([4, 0, 0, 0], [[0, 2], [], [], []], 5),
    "one process has everything": random_batch([4], [[0, 1, 2]], 3),
    "one process distils": random_batch([4], [[0, 1, 2]], 3, self_distillation=True),
}


def shard(batch: TrainingBatch, rank: int, world_size: int) -> TrainingBatch:
    """A process's shard of a batch, as in training."""
    part = BatchIndices(
        examples=tuple(range(len(batch.prompts))),
        generated=tuple(map(bool, batch.responses)),
        passages=tuple(range(len(batch.passages))),
        candidates=tuple(map(tuple, batch.candidates)),
        positive=batch.positive.numpy(),
        negative=batch.negative.numpy(),
        columns=tuple(range(len(batch.passages))),
        cross_batch_memory=(),
        cross_batch_negative=np.zeros((len(batch.prompts), 0), np.bool_),
    ).shard(rank, world_size)
    return replace(
        batch,
        ids=[batch.ids[n] for n in part.examples],
        prompts=[batch.prompts[n] for n in part.examples],
        responses=[batch.responses[n] for n in part.examples],
        passages=[batch.passages[n] for n in part.passages],
        candidates=part.candidates,
        positive=torch.from_numpy(part.positive),
        negative=torch.from_numpy(part.negative),
        columns=part.columns,
        first_column=part.first_column,
    )


def train_step(name: str, rank: int = 0, manner: str | None = None) -> dict[str, Tensor]:
    """Losses, gradients, and the weights after an optimizer step."""
    batch = BATCHES[name]
    batch = replace(batch, columns=range(len(batch.passages)))
    model: nn.Module = tiny_model()
    if manner:
        batch = shard(batch, rank, PROCESSES)
    if manner == "ddp":
        model = DistributedDataParallel(model, find_unused_parameters=True)
    elif manner == "fsdp2":
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(batch)
    output.loss.backward()
    results = {field: mean_over_processes(getattr(output, field)) for field in LOSSES}
    for parameter, p in model.named_parameters():
        if p.grad is not None:
            gradient = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            results[f"gradient of {parameter.removeprefix('module.')}"] = gradient
    optimizer.step()
    options = StateDictOptions(full_state_dict=True)
    return {**results, **get_model_state_dict(model, options=options)}


def take_steps(rank: int, folder: Path) -> None:
    for manner in MANNERS:
        for name in BATCHES:
            save_file(train_step(name, rank, manner), folder / f"{manner} {name} {rank}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of results for each manner, batch and process."""
    folder = tmp_path_factory.mktemp("runs")
    in_group(PROCESSES, take_steps, folder)
    return folder


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("name", BATCHES)
def test_two_processes_take_the_step_of_one(name: str, manner: str, runs: Path) -> None:
    expected = train_step(name)
    assert expected["loss"] > 0.1
    for rank in range(PROCESSES):
        found = load_file(runs / f"{manner} {name} {rank}")
        # Both must have gradients of the same parameters: the optimizer skips one without.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_gathered_from_fsdp2_load_in_one_process(runs: Path) -> None:
    gathered = load_file(runs / "fsdp2 warmup 0")
    model = tiny_model()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.load_state_dict({name: gathered[name] for name in before})
    for name, weights in model.state_dict().items():
        assert weights.equal(gathered[name])
        assert not weights.equal(before[name])
