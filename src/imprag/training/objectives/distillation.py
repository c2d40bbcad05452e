"""Distillation: scores follow what the language model makes of the candidates."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from imprag.training.distributed import mean_over_processes
from imprag.training.objectives.base import Count, RetrievalObjective, ScoredBatch, mean, precise


class SelfDistillation(RetrievalObjective):
    """KL divergence from the language model's preferences (paper, equations 4 to 6).

    Known as perplexity distillation (Atlas) or LM-supervised retrieval (REPLUG). It needs no
    labels; use it when the model can read already.
    """

    needs_log_likelihood: ClassVar[bool] = True

    target_temperature: PositiveFloat = 1.0
    """τ_t of the softmax over log P_LM; the paper gives no figure."""

    score_temperature: PositiveFloat = 1.0
    """τ_r of the softmax over the scores; the paper gives no figure."""

    def __call__(self, scores: Tensor, batch: ScoredBatch) -> Tensor:
        """The mean over prompts with two or more candidates."""
        assert batch.log_likelihood is not None
        counted = distillation_prompts(batch.candidates)
        return self_distillation_loss(
            scores,
            batch.log_likelihood,
            batch.candidates,
            mean_over_processes(counted.sum()),
            target_temperature=self.target_temperature,
            score_temperature=self.score_temperature,
        )


def distillation_prompts(mask: Tensor) -> Tensor:
    """Which prompts the distillations count: those with a choice of two or more, (Q,) bool."""
    return mask.sum(dim=1) >= 2


def self_distillation_loss(
    scores: Tensor,
    log_likelihood: Tensor,
    candidate_mask: Tensor,
    count: Count = None,
    *,
    target_temperature: float,
    score_temperature: float,
) -> Tensor:
    """KL(P_T || P_R) over each prompt's candidates (equations 4 to 6).

    P_T is the softmax of log P_LM(r | p, q) / target_temperature, without gradient; P_R that of
    s(q, p) / score_temperature.

    Args:
        scores: (Q, P) s(q, p).
        log_likelihood: (Q, P) log P_LM(r | p, q) of the candidates.
        candidate_mask: (Q, P) bool. What the tensors hold elsewhere plays no part.
        count: prompts to divide by, instead of those that count here.
        target_temperature: τ_t.
        score_temperature: τ_r.

    Returns:
        The mean over prompts, ().
    """
    rows = distillation_prompts(candidate_mask)
    mask = candidate_mask[rows]
    target = _log_softmax(log_likelihood[rows].detach(), mask, target_temperature)
    predicted = _log_softmax(scores[rows], mask, score_temperature)
    total = F.kl_div(predicted[mask], target[mask], reduction="sum", log_target=True)
    return mean(total, rows.sum(), count)


def _log_softmax(values: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return (precise(values) / temperature).masked_fill(~mask, -torch.inf).log_softmax(dim=1)
