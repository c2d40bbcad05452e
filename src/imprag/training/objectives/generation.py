"""The generation loss, J_gen, and the likelihood of responses."""

import torch.nn.functional as F
from torch import Tensor

from imprag.training.objectives.base import Count, mean, precise

IGNORED = -100
"""The label of a position whose next token is no part of the response."""


def generation_loss(logits: Tensor, labels: Tensor, count: Count = None) -> Tensor:
    """Cross-entropy of the response tokens.

    Args:
        logits: (..., vocabulary).
        labels: (...) int64, the token that *follows* each position (nothing is shifted here), or
            :data:`IGNORED`.
        count: response tokens to divide by, instead of those of ``labels``.

    Returns:
        The mean over response tokens, ().
    """
    response = labels != IGNORED
    # Taken out first, so that only the response's logits are copied to float32.
    total = F.cross_entropy(precise(logits[response]), labels[response], reduction="sum")
    return mean(total, response.sum(), count)


def response_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """log P(response) of each row: the sum over its response tokens.

    Args:
        logits: (rows, length, vocabulary).
        labels: (rows, length) int64, as in :func:`generation_loss`.

    Returns:
        (rows,) float32.
    """
    response = labels != IGNORED
    loss = F.cross_entropy(precise(logits[response]), labels[response], reduction="none")
    return loss.new_zeros(labels.shape).masked_scatter(response, -loss).sum(dim=1)
