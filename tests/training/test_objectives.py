"""Each objective against a plain loop in float64, and what it must leave alone."""

import doctest
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from imprag.training.objectives import (
    IGNORED,
    contrastive_prompts,
    distillation_prompts,
    generation_loss,
    nce_against_all,
    nce_loss,
    relevance_scores,
    response_log_likelihood,
    self_distillation_loss,
)

TEMPERATURES = {"target_temperature": 0.7, "score_temperature": 1.3}
NAN = float("nan")

shapes = st.tuples(st.integers(0, 5), st.integers(1, 6))
seeds = st.integers(0, 2**32 - 1)
densities = st.floats(0, 1)


def close(expected: float) -> object:
    return pytest.approx(expected, rel=1e-6, abs=1e-6)


def masks(generator: torch.Generator, shape: tuple[int, int], density: float) -> list[Tensor]:
    """Two disjoint masks."""
    kind = torch.rand(shape, generator=generator)
    return [kind < density / 2, kind > 1 - density / 2]


# The references: loops over Python numbers.


def mean(terms: list[float]) -> float:
    return sum(terms) / len(terms) if terms else 0.0


def nce_loop(scores: Tensor, positive: Tensor, negative: Tensor) -> float:
    prompts = []
    for row, right, wrong in zip(
        scores.tolist(), positive.tolist(), negative.tolist(), strict=True
    ):
        below = sum(math.exp(s) for s, is_wrong in zip(row, wrong, strict=True) if is_wrong)
        above = [math.exp(s) for s, is_right in zip(row, right, strict=True) if is_right]
        if above and below:
            prompts.append(sum(-math.log(e / (e + below)) for e in above))
    return mean(prompts)


def token_log_likelihoods(logits: Tensor, labels: Tensor) -> list[list[float]]:
    rows = []
    for row, row_labels in zip(logits.tolist(), labels.tolist(), strict=True):
        rows.append(
            [
                math.log(math.exp(token[label]) / sum(math.exp(x) for x in token))
                for token, label in zip(row, row_labels, strict=True)
                if label != IGNORED
            ]
        )
    return rows


def distillation_loop(scores: Tensor, target: Tensor, mask: Tensor) -> float:
    prompts = []
    for row, goal, chosen in zip(scores.tolist(), target.tolist(), mask.tolist(), strict=True):
        wanted = [math.exp(x / 0.7) for x, m in zip(goal, chosen, strict=True) if m]
        found = [math.exp(s / 1.3) for s, m in zip(row, chosen, strict=True) if m]
        if len(found) >= 2:
            prompts.append(
                sum(
                    w / sum(wanted) * math.log(w / sum(wanted) / (f / sum(found)))
                    for w, f in zip(wanted, found, strict=True)
                )
            )
    return mean(prompts)


@given(shapes, seeds, densities)
def test_nce_equals_its_loop(shape: tuple[int, int], seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(shape, generator=generator)
    positive, negative = masks(generator, shape, density)
    assert nce_loss(scores, positive, negative).item() == close(
        nce_loop(scores, positive, negative)
    )


@given(st.integers(1, 5), st.integers(2, 6), seeds)
def test_nce_against_all_is_nce_with_all_others_as_negatives(
    prompts: int, passages: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(prompts, passages, generator=generator, dtype=torch.float64)
    positive = torch.rand(prompts, passages, generator=generator) < 0.4
    positive[:, 0], positive[:, -1] = True, False
    scores.requires_grad_()
    right = [row.nonzero().flatten().tolist() for row in positive]
    losses = nce_against_all(scores, right), nce_loss(scores, positive, ~positive)
    assert losses[0].item() == close(nce_loop(scores.detach(), positive, ~positive))
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


@given(shapes, seeds, densities)
def test_generation_equals_its_loop(shape: tuple[int, int], seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, 5, generator=generator)
    labels = torch.randint(5, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) > density] = IGNORED
    rows = token_log_likelihoods(logits, labels)
    tokens = [token for row in rows for token in row]
    assert generation_loss(logits, labels).item() == close(-mean(tokens))
    likelihoods = response_log_likelihood(logits, labels)
    assert likelihoods.shape == (shape[0],)
    assert likelihoods.tolist() == [close(sum(row)) for row in rows]


@given(shapes, seeds, densities)
def test_distillation_equals_its_loop(shape: tuple[int, int], seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, target = torch.randn(2, *shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < density
    expected = close(distillation_loop(scores, target, mask))
    assert self_distillation_loss(scores, target, mask, **TEMPERATURES).item() == expected


def test_the_examples_of_the_documentation() -> None:
    page = Path(__file__).parents[2] / "docs" / "concepts" / "objectives.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted >= 15
    assert result.failed == 0


# One small case of each objective, as a function of what it gives gradients to. The last two
# prompts cannot count: they lack a negative and a positive, or a second candidate. The third
# response is empty.

POSITIVE = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
NEGATIVE = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
CANDIDATES = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
TEACHER = torch.tensor([[0.3, -1.0, NAN, 0.1], [1, 2, 3, 4], [NAN] * 4, [NAN, 1, NAN, NAN]])
LIKELIHOODS = torch.arange(16.0).reshape(4, 4).cos()
LABELS = torch.tensor([[IGNORED, 2, 0], [1, 3, IGNORED], [IGNORED] * 3, [0, 0, IGNORED]])

Objective = Callable[..., Tensor]
CASES: dict[str, tuple[Objective, tuple[int, ...], int]] = {  # with the input's shape and the count
    "nce": (lambda x, **c: nce_loss(x, POSITIVE, NEGATIVE, **c), (4, 4), 2),
    "generation": (lambda x, **c: generation_loss(x, LABELS, **c), (4, 3, 4), 6),
    "self-distillation": (
        lambda x, **c: self_distillation_loss(
            x, TEACHER.nan_to_num(0.5), CANDIDATES, **c, **TEMPERATURES
        ),
        (4, 4),
        2,
    ),
}
each_case = pytest.mark.parametrize(
    ("objective", "shape", "count"), CASES.values(), ids=CASES.keys()
)


def random_input(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


@each_case
def test_gradients(objective: Objective, shape: tuple[int, ...], count: int) -> None:
    assert gradcheck(objective, random_input(shape, torch.float64))


def test_gradient_of_the_log_likelihood() -> None:
    assert gradcheck(
        lambda x: response_log_likelihood(x, LABELS), random_input((4, 3, 4), torch.float64)
    )


@each_case
def test_another_count_only_scales(
    objective: Objective, shape: tuple[int, ...], count: int
) -> None:
    x = random_input(shape)
    total = objective(x).item() * count
    assert total > 0.1
    for other in (1, 0.5, torch.tensor(2.5)):
        assert objective(x, count=other).item() == close(total / float(other))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_whatever_comes_in(
    objective: Objective, shape: tuple[int, ...], count: int, dtype: torch.dtype
) -> None:
    x = random_input(shape, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(x)
    assert loss.dtype == torch.float32
    assert loss.equal(objective(x.float()))


def test_scores_are_float32_under_autocast() -> None:
    queries, passages = random_input((3, 64)), random_input((5, 64)) + 1
    with torch.autocast("cpu", torch.bfloat16):
        scores = relevance_scores(queries, passages)
    expected = (queries.double() @ passages.double().T).float()
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert gradcheck(relevance_scores, (queries.double(), passages.double()))


@each_case
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_numbers_give_finite_gradients(
    objective: Objective, shape: tuple[int, ...], count: int, size: float
) -> None:
    x = (random_input(shape) * size).detach().requires_grad_()
    loss = objective(x)
    loss.backward()
    assert x.grad is not None
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_prompts_that_cannot_count_change_nothing() -> None:
    x = random_input((4, 4))
    assert contrastive_prompts(POSITIVE, NEGATIVE).tolist() == [True, True, False, False]
    assert distillation_prompts(CANDIDATES).tolist() == [True, True, False, False]
    for loss, alone in (
        (nce_loss(x, POSITIVE, NEGATIVE), nce_loss(x[:2], POSITIVE[:2], NEGATIVE[:2])),
        (
            self_distillation_loss(x, LIKELIHOODS, CANDIDATES, **TEMPERATURES),
            self_distillation_loss(x[:2], LIKELIHOODS[:2], CANDIDATES[:2], **TEMPERATURES),
        ),
    ):
        assert loss.equal(alone)
        (gradient,) = torch.autograd.grad(loss, x)
        assert not gradient[2:].any()
        assert gradient[:2].any(dim=1).all()


def test_passages_that_are_neither_change_nothing() -> None:
    x = random_input((4, 4))
    (gradient,) = torch.autograd.grad(nce_loss(x, POSITIVE, NEGATIVE), x)
    neither = ~(POSITIVE | NEGATIVE)
    assert neither[1].any()
    assert not gradient[neither].any()
    with_infinity = x.masked_fill(neither, torch.inf).detach().requires_grad_()
    (gradient_there,) = torch.autograd.grad(
        nce_loss(with_infinity, POSITIVE, NEGATIVE), with_infinity
    )
    assert gradient_there.equal(gradient)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
@pytest.mark.parametrize("count", [None, 0.0, torch.tensor(0.0), 5])
def test_a_mean_over_nothing_is_zero(shape: tuple[int, int], count: Tensor | float | None) -> None:
    nothing = torch.zeros(shape, dtype=torch.bool)
    x = random_input(shape)
    states = random_input((*shape, 4))
    losses = [
        nce_loss(x, nothing, nothing, count),
        generation_loss(states, nothing.long() + IGNORED, count),
        response_log_likelihood(states, nothing.long() + IGNORED).sum(),
        self_distillation_loss(x, x, nothing, count, **TEMPERATURES),
    ]
    assert [loss.item() for loss in losses] == [0] * 4
    torch.stack(losses).sum().backward()
    for tensor in (x, states):
        assert tensor.grad is not None
        assert tensor.grad.equal(torch.zeros_like(tensor))


def test_no_gradient_flows_into_targets() -> None:
    x, target = random_input((4, 4)), random_input((4, 4))
    self_distillation_loss(x, target, CANDIDATES, **TEMPERATURES).backward()
    assert x.grad is not None
    assert target.grad is None
