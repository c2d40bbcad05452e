"""The losses of training, as pure functions; docs/concepts/objectives.md works each out by hand.

All of them are means, over prompts or tokens. ``count`` replaces what the sum is divided by, so
that the mean can be taken over everything that several processes or accumulated batches hold: see
:func:`imprag.training.distributed.mean_over_processes`. A mean over nothing is 0, and so is its
gradient.

Half-precision input is computed in float32, under autocast too; float64 stays float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a position whose next token is no part of the response."""

Count = Tensor | float | None


def relevance_scores(query_embeddings: Tensor, passage_embeddings: Tensor) -> Tensor:
    """Scores s(q, p) of all passages for all prompts: inner products, in float32.

    Args:
        query_embeddings: (Q, dim), the score scale included.
        passage_embeddings: (P, dim).

    Returns:
        (Q, P) float32.
    """
    # Autocast would multiply in bfloat16, whose three digits do not tell close passages apart.
    with torch.autocast(query_embeddings.device.type, enabled=False):
        return _precise(query_embeddings) @ _precise(passage_embeddings).T


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
    scores, positive, negative = _precise(scores[rows]), positive[rows], negative[rows]
    against = scores.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
    total = -F.logsigmoid((scores - against)[positive]).sum()
    return _mean(total, rows.sum(), count)


def nce_against_all(scores: Tensor, right: Sequence[Sequence[int]]) -> Tensor:
    """:func:`nce_loss` where every passage that is not right is a negative, without masks.

    Of a whole corpus, most of the time goes into reading and writing what is as large as the
    scores; this does it a few times less.

    Args:
        scores: (Q, P) s(q, p).
        right: the passages to find, for each prompt; not all P.

    Returns:
        The mean over prompts of the sum over positives, ().
    """
    pairs = [(row, column) for row, columns in enumerate(right) for column in columns]
    rows, columns = torch.tensor(pairs, device=scores.device).T
    scores = _precise(scores)
    positives = scores[rows, columns]
    hidden = positives.new_full((), -torch.inf)
    against = scores.index_put((rows, columns), hidden).logsumexp(dim=1)
    return -F.logsigmoid(positives - against[rows]).sum() / len(scores)


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
    total = F.cross_entropy(_precise(logits[response]), labels[response], reduction="sum")
    return _mean(total, response.sum(), count)


def response_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """log P(response) of each row: the sum over its response tokens.

    Args:
        logits: (rows, length, vocabulary).
        labels: (rows, length) int64, as in :func:`generation_loss`.

    Returns:
        (rows,) float32.
    """
    response = labels != IGNORED
    loss = F.cross_entropy(_precise(logits[response]), labels[response], reduction="none")
    return loss.new_zeros(labels.shape).masked_scatter(response, -loss).sum(dim=1)


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
    return _mean(total, rows.sum(), count)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _log_softmax(values: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return (_precise(values) / temperature).masked_fill(~mask, -torch.inf).log_softmax(dim=1)


def _mean(total: Tensor, own: Tensor, count: Count) -> Tensor:
    divisor = own if count is None else count
    return total / (divisor + (divisor == 0))  # nothing divided by nothing is nothing
