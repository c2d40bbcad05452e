"""Fits the gate of hybrid retrieval: 27 numbers, on prompts whose gold passages are known."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.retrieval.gate import FEATURES, LIMIT, SCORES, FloatArray, Gate, features
from imprag.retrieval.hybrid import Candidates

#: BM25 scores are this much larger than logits; weights start at their inverse.
_SCALE = torch.tensor([1.0, 0.3, 0.3])


class GateExample(NamedTuple):
    """A prompt to fit the gate on.

    Attributes:
        candidates: from :meth:`imprag.retrieval.hybrid.HybridRetriever.candidates`.
        gold: rows of the passages that should be found.
    """

    candidates: Candidates
    gold: frozenset[int]


def is_found(example: GateExample) -> bool:
    """Whether a gold passage is among the candidates."""
    return bool(example.gold & set(example.candidates.rows.tolist()))


def hits(example: GateExample, gate: Gate) -> tuple[bool, bool]:
    """Whether a gold passage is ranked first, and among the first ten."""
    candidates = example.candidates
    scores = np.asarray(gate.weights(candidates.rankings)) @ candidates.scores
    best = candidates.rows[np.lexsort((candidates.rows, -scores))][:10].tolist()
    return bool(best) and best[0] in example.gold, bool(example.gold & set(best))


def fit_gate(
    corpora: Mapping[str, Mapping[str, Sequence[GateExample]]],
    *,
    steps: int = 150,
    learning_rate: float = 0.1,
    l2: float = 1e-2,
) -> Gate:
    """Fit a gate by the NCE loss over the candidates: -log sum of the gold passages' softmax.

    All corpora weigh alike, and within a corpus all tasks. Prompts whose gold passages are not
    among the candidates are left out.

    Args:
        corpora: examples by corpus and task; some of texts that the model was trained on and some
            of others, since the gate learns to tell them apart.
        steps: of Adam, each over all examples.
        learning_rate: of Adam.
        l2: weight of the squared weights, for standardised features.

    Raises:
        ImpRAGError: no gold passage is among the candidates of any prompt.
    """
    examples, weights = [], []
    for tasks in corpora.values():
        for task in tasks.values():
            usable = [one for one in task if is_found(one)]
            examples += usable
            weights += [1 / (max(len(usable), 1) * len(tasks))] * len(usable)
    if not examples:
        raise ImpRAGError("no prompt has a gold passage among its candidates; none can be learnt")
    raw = np.stack([features(one.candidates.rankings) for one in examples])
    mean, spread = raw.mean(0), np.maximum(raw.std(0), 1e-6)
    mean[0], spread[0] = 0.0, 1.0  # the bias
    inputs = torch.from_numpy((raw - mean) / spread)
    scores, gold, padding = _padded(examples)
    weight = torch.tensor(weights) / sum(weights)
    fitted = torch.zeros(len(SCORES), len(FEATURES), requires_grad=True)
    optimizer = torch.optim.Adam([fitted], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            exponents = (inputs @ fitted.T + _SCALE.log()).clamp(-LIMIT, LIMIT)
            logits = torch.einsum("ns,nsc->nc", exponents.exp(), scores)
            logits = logits.masked_fill(padding, -1e9).log_softmax(1)
            found = logits.masked_fill(~gold, -1e9).logsumexp(1)
            loss = -(weight * found).sum() + l2 * fitted[:, 1:].square().sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return _gate(fitted.detach(), mean, spread)


def _padded(examples: Sequence[GateExample]) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (examples, 3, candidates), and which candidates are gold and which are padding."""
    longest = max(len(one.candidates.rows) for one in examples)
    scores = torch.zeros(len(examples), len(SCORES), longest)
    gold = torch.zeros(len(examples), longest, dtype=torch.bool)
    padding = torch.ones_like(gold)
    for n, (candidates, rows) in enumerate(examples):
        count = len(candidates.rows)
        scores[n, :, :count] = torch.from_numpy(candidates.scores)
        padding[n, :count] = False
        gold[n, :count] = torch.from_numpy(np.isin(candidates.rows, list(rows)))
    return scores, gold, padding


def _gate(fitted: Tensor, mean: FloatArray, spread: FloatArray) -> Gate:
    """The gate for features that are not standardised."""
    weights = fitted.numpy() / spread
    weights[:, 0] += np.log(_SCALE.numpy()) - weights[:, 1:] @ mean[1:]
    rows = (
        {name: round(float(weight), 6) for name, weight in zip(FEATURES, row, strict=True)}
        for row in weights
    )
    return Gate(**dict(zip(SCORES, rows, strict=True)))
