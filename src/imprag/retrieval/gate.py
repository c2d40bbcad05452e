"""The gate: how much a prompt's own score and its words weigh, decided by both rankings.

    alpha(q) = exp(u . f(q)),   beta(q) = exp(w . f(q))

f(q) are ten numbers that are known before the candidates are ranked (:data:`FEATURES`), so u and w
are twenty numbers, which `imprag.training.gate` fits. The fewer passages stand out by their
implicit score, the more the words have to say: a corpus that the model has never seen has flatter
scores than one that it knows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imprag.errors import ImpRAGError

FloatArray = npt.NDArray[np.float32]

#: Names of the features, in the order of :func:`features`.
FEATURES = (
    "bias",
    "log_terms",
    "log_passages",
    "implicit_z",
    "implicit_first_second",
    "implicit_first_tenth",
    "implicit_log_spread",
    "lexical_first_second",
    "lexical_first_tenth",
    "lexical_log_spread",
)
_LIMIT = 4.0  # of the exponents: weights between 1/55 and 55


class Rankings(NamedTuple):
    """What both retrievers have found for a prompt.

    Attributes:
        implicit: the model's scores of its first passages, best first, (found,).
        lexical: the BM25 scores of the first passages, best first, (found,); empty if no passage
            shares a word with the prompt.
        sample: the model's scores of passages drawn from all over the corpus, (sample,).
        terms: number of terms of the prompt.
        passages: number of passages in the corpus.
    """

    implicit: FloatArray
    lexical: FloatArray
    sample: FloatArray
    terms: float
    passages: int


def features(rankings: Rankings) -> FloatArray:
    """The ten features of a prompt, named by :data:`FEATURES`, (10,).

    Differences and spreads are in units of the scores; z is the distance of the best passage from
    the mean of the sample in standard deviations.
    """
    implicit, lexical, sample = rankings.implicit, rankings.lexical, rankings.sample
    spread = max(float(sample.std()), 1e-3)
    return np.array(
        [
            1.0,
            math.log(max(rankings.terms, 1)),
            math.log(rankings.passages),
            (implicit[0] - sample.mean()) / spread,
            _lead(implicit, 1),
            _lead(implicit, 9),
            math.log(spread),
            _lead(lexical, 1),
            _lead(lexical, 9),
            math.log(max(float(lexical.std()), 1e-3)) if len(lexical) else 0.0,
        ],
        np.float32,
    )


@dataclass(frozen=True)
class Gate:
    """Weights of the features, by their names; those that are not named weigh nothing.

    Attributes:
        implicit: u, for the weight alpha of the model's own score.
        lexical: w, for the weight beta of the BM25 score.
    """

    implicit: Mapping[str, float] = field(default_factory=dict)
    lexical: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fixed(cls, lexical_weight: float) -> "Gate":
        """The same weights for every prompt: alpha = 1, beta = ``lexical_weight``.

        Raises:
            ImpRAGError: the weight is not positive.
        """
        if not 0 < lexical_weight < math.inf:
            raise ImpRAGError(
                f"the lexical weight must be positive, not {lexical_weight}; for the model's own "
                "scores alone, choose the retrieval implicit"
            )
        return cls(lexical={"bias": math.log(lexical_weight)})

    @classmethod
    def from_json(cls, values: Any) -> "Gate":
        """The gate that a model's settings hold.

        Raises:
            ImpRAGError: a feature is unknown, or its weight no finite number.
        """
        parts = values if isinstance(values, Mapping) else {"": values}
        for part, weights in parts.items():
            if part not in ("implicit", "lexical") or not isinstance(weights, Mapping):
                raise ImpRAGError("the gate must map implicit and lexical to weights of features")
            for name, weight in weights.items():
                if name not in FEATURES:
                    raise ImpRAGError(
                        f"the gate has no feature {name!r}; known are {', '.join(FEATURES)}"
                    )
                if isinstance(weight, bool) or not isinstance(weight, int | float):
                    raise ImpRAGError(f"the gate's weight of {name} must be a number")
                if not math.isfinite(weight):
                    raise ImpRAGError(f"the gate's weight of {name} is not finite")
        return cls(**parts)

    def weights(self, rankings: Rankings) -> tuple[float, float]:
        """alpha and beta of a prompt."""
        found = features(rankings)
        return _weight(self.implicit, found), _weight(self.lexical, found)


def _weight(weights: Mapping[str, float], found: FloatArray) -> float:
    exponent = sum(weights.get(name, 0.0) * x for name, x in zip(FEATURES, found, strict=True))
    if set(weights) <= {"bias"}:  # a fixed weight has no limit
        return math.exp(exponent)
    return math.exp(min(max(exponent, -_LIMIT), _LIMIT))


def _lead(scores: FloatArray, place: int) -> float:
    """How far the best score is ahead of one further down, or of the last one."""
    return float(scores[0] - scores[min(place, len(scores) - 1)]) if len(scores) else 0.0
