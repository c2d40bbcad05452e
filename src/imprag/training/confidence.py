"""Fits the confidence in answers: ten numbers, on answers that are known to be right or wrong."""

from collections.abc import Mapping, Sequence

import numpy as np

from imprag.errors import ImpRAGError
from imprag.model.confidence import FEATURES, Confidence

_STEPS = 50


def fit_confidence(
    evidence: Sequence[Mapping[str, float]], right: Sequence[bool], *, l2: float = 1.0
) -> Confidence:
    """Logistic regression by Newton's method.

    Args:
        evidence: the features of each answer, ``Answer.evidence``.
        right: whether it is right.
        l2: weight of half the squared weights, but for the bias, of standardised features.

    Raises:
        ImpRAGError: all answers are right, or all wrong, or evidence lacks a feature.
    """
    target = np.asarray(right, dtype=float)
    if target.min(initial=1) == target.max(initial=0):
        raise ImpRAGError("confidence is fitted on right and on wrong answers; there is one kind")
    if missing := {name for one in evidence for name in FEATURES if name not in one}:
        raise ImpRAGError(
            f"the evidence of an answer has no {', '.join(sorted(missing))}: it was written by an "
            "earlier version; answer the prompts again"
        )
    raw = np.array([[one[name] for name in FEATURES] for one in evidence])
    mean, spread = raw.mean(0), np.maximum(raw.std(0), 1e-6)
    mean[0], spread[0] = 0.0, 1.0  # the bias
    inputs = (raw - mean) / spread
    penalty = np.full(len(FEATURES), l2)
    penalty[0] = 0.0
    weights = np.zeros(len(FEATURES))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chance - target) + penalty * weights
        curvature = (inputs.T * (chance * (1 - chance))) @ inputs + np.diag(penalty)
        weights = weights - np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), slope)
    own = weights / spread
    own[0] -= own[1:] @ mean[1:]
    return Confidence(dict(zip(FEATURES, own.round(6).tolist(), strict=True)))
