"""What every retrieval objective has to do."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from imprag.errors import ImpRAGError
from imprag.training import distributed
from imprag.training.objectives import (
    OBJECTIVES,
    RetrievalObjective,
    ScoredBatch,
    make_objective,
)

PROMPTS, PASSAGES = 8, 9


def random_batch(seed: int = 0) -> tuple[Tensor, ScoredBatch]:
    """Scores in float64 and a batch; its last prompt has no positive and one candidate only.

    The last passage is nothing to any prompt: neither a positive nor a negative, and no candidate.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (PROMPTS, PASSAGES)
    label = torch.randint(4, shape, generator=generator)
    label[:, 0], label[:, 1] = 0, 1
    positive, negative = label == 0, label >= 2
    positive[-1] = False
    candidates = torch.rand(shape, generator=generator) < 0.4
    candidates[:, :2] = True
    candidates[-1] = torch.arange(PASSAGES) == 1
    for mask in (positive, negative, candidates):
        mask[:, -1] = False
    likelihood = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    return scores, ScoredBatch(positive, negative, candidates, likelihood * candidates)


class ObjectiveSuite:
    """Tests of a retrieval objective; inherit them and say which objective is meant.

    Attributes:
        name: that the objective is registered under.
        settings: that recipes may give it; the tests use them.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    @cached_property
    def objective(self) -> RetrievalObjective:
        """The objective, as a recipe asks for it."""
        return make_objective({"name": self.name, **self.settings})

    def loss(self, scores: Tensor, batch: ScoredBatch) -> Tensor:
        """The loss of a batch, with what the objective has asked for."""
        if not self.objective.needs_log_likelihood:
            batch = replace(batch, log_likelihood=None)
        return self.objective(scores, batch)

    def test_it_is_found_by_its_name(self) -> None:
        assert self.name in OBJECTIVES.names()
        assert isinstance(self.objective, RetrievalObjective)

    def test_a_setting_that_it_does_not_have_is_refused(self) -> None:
        with pytest.raises(ImpRAGError, match="no_such_setting"):
            make_objective({"name": self.name, "no_such_setting": 1})

    def test_it_gives_one_finite_number(self) -> None:
        scores, batch = random_batch()
        for dtype in (torch.float64, torch.float32):
            loss = self.loss(scores.to(dtype), _mapped(batch, Tensor.float, "log_likelihood"))
            assert loss.shape == ()
            assert loss.is_floating_point()
            assert loss.isfinite()

    def test_the_gradient_is_that_of_the_loss(self) -> None:
        scores, batch = random_batch()
        scores.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: self.loss(x, batch), scores)
        assert torch.autograd.grad(self.loss(scores, batch), scores)[0].any()

    def test_large_scores_give_a_finite_gradient(self) -> None:
        scores, batch = random_batch()
        for size in (1e4, -1e4):
            large = (scores.float() * size).requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(large, batch), large)
            assert gradient.isfinite().all()

    def test_nothing_to_learn_from_is_zero_loss(self) -> None:
        scores, batch = random_batch()
        none = _mapped(batch, torch.zeros_like)
        for given, empty in ((scores, none), (scores[:0], _mapped(batch, lambda x: x[:0]))):
            given = given.clone().requires_grad_()
            loss = self.loss(given, empty)
            assert loss.item() == 0
            (gradient,) = torch.autograd.grad(loss, given)
            assert not gradient.any()

    def test_passages_that_are_nothing_to_a_prompt_get_no_gradient(self) -> None:
        scores, batch = random_batch()
        scores.requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(scores, batch), scores)
        assert not gradient[~(batch.positive | batch.negative | batch.candidates)].any()

    def test_the_order_of_prompts_and_passages_does_not_matter(self) -> None:
        scores, batch = random_batch()
        rows, columns = torch.arange(PROMPTS).flip(0), torch.arange(PASSAGES).flip(0)
        turned = _mapped(batch, lambda values: values[rows][:, columns])
        loss = self.loss(scores[rows][:, columns], turned)
        assert_close(loss, self.loss(scores, batch))

    def test_the_language_model_is_not_taught_by_its_own_likelihoods(self) -> None:
        scores, batch = random_batch()
        likelihood = batch.log_likelihood
        assert likelihood is not None
        likelihood.requires_grad_()
        scores.requires_grad_()
        self.loss(scores, batch).backward()  # type: ignore[no-untyped-call]
        assert likelihood.grad is None

    def test_two_processes_give_the_loss_and_gradient_of_one(self) -> None:
        scores, batch = random_batch()
        scores.requires_grad_()
        whole = self.loss(scores, batch)
        (wanted,) = torch.autograd.grad(whole, scores)

        def part(rows: slice) -> Callable[[], Tensor]:
            return lambda: self.loss(scores[rows], _mapped(batch, lambda values: values[rows]))

        # Parts of different size: the mean of their own means is another one.
        losses = in_processes(part(slice(None, 3)), part(slice(3, None)))
        mean = torch.stack(losses).mean()
        assert_close(mean, whole, check_dtype=False, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(mean, scores)
        assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def in_processes(*calls: Callable[[], Tensor]) -> list[Tensor]:
    """What the calls give if each runs in a process of its own.

    Threads stand for the processes; they exchange what `mean_over_processes` sums up.
    """
    barrier = threading.Barrier(len(calls), timeout=30)
    shared: list[Tensor] = []

    def all_reduce(tensor: Tensor) -> None:
        shared.append(tensor.clone())
        barrier.wait()
        tensor.copy_(torch.stack(shared).sum(dim=0))
        if barrier.wait() == 0:
            shared.clear()
        barrier.wait()

    def run(call: Callable[[], Tensor]) -> Tensor:
        try:
            return call()
        except BaseException:
            barrier.abort()
            raise

    with (
        patch.object(distributed, "_world_size", lambda: len(calls)),
        patch("torch.distributed.all_reduce", all_reduce),
        ThreadPoolExecutor(len(calls)) as threads,
    ):
        return list(threads.map(run, calls))


def _mapped(batch: ScoredBatch, change: Callable[[Tensor], Tensor], *names: str) -> ScoredBatch:
    """The batch with some of its tensors changed, all if none are named."""
    chosen = names or [field.name for field in fields(ScoredBatch)]
    return replace(batch, **{name: change(getattr(batch, name)) for name in chosen})
