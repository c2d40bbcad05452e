"""Contrastive losses: labels say which passages should have higher scores than which."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imprag.training.distributed import mean_over_processes
from imprag.training.objectives.base import Count, RetrievalObjective, ScoredBatch, mean, precise


class NCE(RetrievalObjective):
    """Multi-label InfoNCE, the warmup's objective (paper, equation 3).

    Each positive is held against all negatives of its prompt, and not against other positives. Use
    it wherever there are labels, of a teacher or gold.
    """

    def __call__(self, scores: Tensor, batch: ScoredBatch) -> Tensor:
        """The mean over prompts of the sum over positives."""
        counted = contrastive_prompts(batch.positive, batch.negative)
        count = mean_over_processes(counted.sum())
        return nce_loss(scores, batch.positive, batch.negative, count)


def contrastive_prompts(positive: Tensor, negative: Tensor) -> Tensor:
    """Which prompts :func:`nce_loss` counts: those with a positive and a negative, (Q,) bool."""
    return positive.any(dim=1) & negative.any(dim=1)


def nce_loss(scores: Tensor, positive: Tensor, negative: Tensor, count: Count = None) -> Tensor:
    """Multi-label contrastive loss (equation 3): each positive against the negatives only.

    Args:
        scores: (Q, P) s(q, p).
        positive: (Q, P) bool, the passages to find.
        negative: (Q, P) bool, those to stay below, disjoint from the former. Passages that are
            neither play no part.
        count: prompts to divide by, instead of those that count here.

    Returns:
        The mean over prompts of the sum over positives, ().
    """
    rows = contrastive_prompts(positive, negative)
    scores, positive, negative = precise(scores[rows]), positive[rows], negative[rows]
    against = scores.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
    total = -F.logsigmoid((scores - against)[positive]).sum()
    return mean(total, rows.sum(), count)


def nce_against_all(scores: Tensor, positives: Sequence[Sequence[int]]) -> Tensor:
    """:func:`nce_loss` where every passage that is not a positive is a negative, without masks.

    Over a whole corpus, most of the time goes into reading and writing tensors as large as the
    scores; this makes fewer passes over them.

    Args:
        scores: (Q, P) s(q, p).
        positives: the passages to find, for each prompt; not all P.

    Returns:
        The mean over prompts of the sum over positives, ().
    """
    pairs = [(row, column) for row, columns in enumerate(positives) for column in columns]
    rows, columns = torch.tensor(pairs, device=scores.device).T
    scores = precise(scores)
    found = scores[rows, columns]
    hidden = found.new_full((), -torch.inf)
    against = scores.index_put((rows, columns), hidden).logsumexp(dim=1)
    return -F.logsigmoid(found - against[rows]).sum() / len(scores)
