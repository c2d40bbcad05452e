"""Several processes (gloo) give the losses and gradients of one process with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import in_group
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imprag.training.distributed import gather_with_gradient, mean_over_processes
from imprag.training.objectives import (
    IGNORED,
    contrastive_prompts,
    distillation_prompts,
    generation_loss,
    nce_loss,
    relevance_scores,
    self_distillation_loss,
)

OBJECTIVES = {  # with the parameters that they train
    "nce": ("query.weight", "passage.weight"),
    "self-distillation": ("query.weight", "passage.weight"),
    "generation": ("head.weight",),
}

# The whole batch: five prompts with their positives, what else is right for them, and candidates,
# all of them corpus rows. The fourth prompt has no positive.
POSITIVES = [[100, 101], [102], [103], [], [105]]
KNOWN = [[104], [], [101], [100], [106]]
CANDIDATES = [[100, 101, 102], [102, 105], [103, 104], [103], [105, 107, 103]]
RESPONSE_TOKENS = [4, 3, 1, 0, 2]

# Which prompts and passages each process has. Passage 105 is in both, 101 and 104 are right for
# prompts of another process; the last of three processes has no prompt.
SHARES = {
    1: [([0, 1, 2, 3, 4], [100, 101, 102, 103, 104, 105, 106, 107])],
    2: [([0, 1], [100, 101, 102, 105]), ([2, 3, 4], [103, 104, 105, 107, 106])],
    3: [
        ([0, 1], [100, 101, 102, 105]),
        ([2, 3, 4], [103, 104, 105, 107]),
        ([], [106, 107, 104]),
    ],
}


class Towers(nn.Module):
    """A linear model in place of the language model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(6, 4, bias=False)
        self.passage = nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(6, 9, bias=False)

    def forward(self, objective: str, prompts: list[int], passages: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        queries = torch.randn(5, 6, generator=generator)
        texts = torch.randn(8, 6, generator=generator)
        hidden = torch.randn(5, 4, 6, generator=generator)
        labels = torch.randint(9, (5, 4), generator=generator)
        log_likelihoods = -5 * torch.rand(5, 8, generator=generator)

        own = torch.tensor(passages) - 100
        query, passage = self.query(queries[prompts]), self.passage(texts[own])
        if objective == "generation":
            labels = labels[prompts]
            for row, prompt in enumerate(prompts):
                labels[row, RESPONSE_TOKENS[prompt] :] = IGNORED
            count = mean_over_processes((labels != IGNORED).sum())
            return generation_loss(self.head(hidden[prompts]), labels, count)
        if objective == "nce":
            columns = gathered_columns()
            positive = membership(POSITIVES, prompts, columns)
            known = membership(KNOWN, prompts, columns)
            negative = ~positive & ~known
            # A passage that several processes have counts once, where it comes first.
            copies = [passage in columns[:n] for n, passage in enumerate(columns)]
            positive[:, copies] = negative[:, copies] = False
            scores = relevance_scores(query, gather_with_gradient(passage))
            count = mean_over_processes(contrastive_prompts(positive, negative).sum())
            return nce_loss(scores, positive, negative, count)
        mask = membership(CANDIDATES, prompts, passages)
        return self_distillation_loss(
            relevance_scores(query, passage),
            log_likelihoods[prompts][:, own],
            mask,
            mean_over_processes(distillation_prompts(mask).sum()),
            target_temperature=0.7,
            score_temperature=1.3,
        )


def membership(rows: list[list[int]], prompts: list[int], passages: list[int]) -> Tensor:
    mask = [[passage in rows[prompt] for passage in passages] for prompt in prompts]
    return torch.tensor(mask, dtype=torch.bool).reshape(len(prompts), len(passages))


def gathered_columns() -> list[int]:
    """The passages of all processes, in the order of their ranks."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    return [passage for _, passages in SHARES[processes] for passage in passages]


def train_step(rank: int, processes: int, folder: Path) -> None:
    """One process's part: losses and gradients of its share, and what gathering gives."""
    results: dict[str, Tensor] = {}
    for objective, trained in OBJECTIVES.items():
        towers = Towers()
        model: nn.Module = towers
        if processes > 1:
            model = DistributedDataParallel(towers, find_unused_parameters=True)
        loss = model(objective, *SHARES[processes][rank])
        loss.backward()
        results[objective] = mean_over_processes(loss)
        for name in trained:
            results[f"{objective} {name}"] = towers.get_parameter(name).grad

    # Rank r brings r rows, so the first brings none.
    rows = torch.full((rank, 2, 3), float(rank), requires_grad=True)
    gathered = gather_with_gradient(rows)
    results["gathered"] = gathered.detach()
    weights = torch.arange(gathered.numel()).reshape(gathered.shape)
    (weights * (rank + 1.0) * gathered).sum().backward()
    assert rows.grad is not None
    results["rows' gradient"] = rows.grad
    results["mean"] = mean_over_processes(torch.tensor(rank))
    save_file(results, folder / f"{rank}-of-{processes}.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Tensor]]]:
    """The results of each process, by the number of processes."""
    folder = tmp_path_factory.mktemp("runs")
    train_step(0, 1, folder)
    for processes in (2, 3):
        in_group(processes, train_step, processes, folder)
    return {
        processes: [
            load_file(folder / f"{rank}-of-{processes}.safetensors") for rank in range(processes)
        ]
        for processes in (1, 2, 3)
    }


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_gradients_equal_those_of_one_process(
    objective: str, processes: int, runs: dict[int, list[dict[str, Tensor]]]
) -> None:
    names = [objective, *(f"{objective} {name}" for name in OBJECTIVES[objective])]
    expected = {name: runs[1][0][name] for name in names}
    assert all(value.abs().max() > 0.1 for value in expected.values())
    for results in runs[processes]:
        found = {name: results[name] for name in names}
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("processes", [2, 3])
def test_gathered_rows_and_their_gradients(
    processes: int, runs: dict[int, list[dict[str, Tensor]]]
) -> None:
    owners = [rank for rank in range(processes) for _ in range(rank)]
    asked = sum(range(1, processes + 1))  # every process weighs the rows by its rank + 1
    weights = torch.arange(len(owners) * 6.0).reshape(-1, 2, 3) * asked
    for rank, results in enumerate(runs[processes]):
        expected = torch.tensor(owners).float()[:, None, None].expand(-1, 2, 3)
        assert results["gathered"].equal(expected)
        assert results["rows' gradient"].equal(weights[[owner == rank for owner in owners]])
        assert results["mean"].item() == pytest.approx((processes - 1) / 2)


def test_without_a_process_group_tensors_are_returned_unchanged() -> None:
    tensor = torch.ones(2, 3)
    assert gather_with_gradient(tensor) is tensor
    assert mean_over_processes(torch.tensor(3)).item() == 3
