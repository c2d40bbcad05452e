"""The gate: how much each of a passage's scores weighs for a prompt, decided by the rankings.

    weight of a score(q) = exp(w . f(q))

f(q) are nine numbers that are known before the candidates are ranked (:data:`FEATURES`), so the
three scores have 27 weights w, which `imprag.training.gate` fits. A corpus that the model has never
seen has flatter implicit scores than one that it knows; there the words have more to say.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imprag.errors import ImpRAGError
from imprag.model.confidence import HUGE

FloatArray = npt.NDArray[np.float32]

#: Names of the features, in the order of :func:`features`.
FEATURES = (
    "bias",
    "log_terms",
    "implicit_z",
    "implicit_first_second",
    "implicit_first_tenth",
    "implicit_log_spread",
    "attended_first_second",
    "attended_first_tenth",
    "attended_log_spread",
)
#: The scores that a gate weighs.
SCORES = ("implicit", "lexical", "attended")
LIMIT = 4.0
"""Of fitted exponents: weights lie between 1/55 and 55."""
GREATEST = 1_000_000
"""Greatest weight that a user can give."""


class Rankings(NamedTuple):
    """What both retrievers have found for a prompt.

    Attributes:
        implicit: the model's scores of its first passages, best first, (found,).
        attended: the BM25 scores, with the words weighted by attention, of the first passages, best
            first, (found,); empty if no passage shares a word with the prompt.
        sample: the model's scores of passages drawn from all over the corpus, (sample,).
        terms: number of terms of the prompt.
    """

    implicit: FloatArray
    attended: FloatArray
    sample: FloatArray
    terms: float


def features(rankings: Rankings) -> FloatArray:
    """The nine features of a prompt, named by :data:`FEATURES`, (9,).

    Differences and spreads are in units of the scores; z is the distance of the best passage from
    the mean of the sample in standard deviations.
    """
    implicit, attended, sample = rankings.implicit, rankings.attended, rankings.sample
    spread = max(float(sample.std()), 1e-3)
    return np.array(
        [
            1.0,
            math.log(max(rankings.terms, 1)),
            (implicit[0] - sample.mean()) / spread,
            _lead(implicit, 1),
            _lead(implicit, 9),
            math.log(spread),
            _lead(attended, 1),
            _lead(attended, 9),
            math.log(max(float(attended.std()), 1e-3)) if len(attended) else 0.0,
        ],
        np.float32,
    )


Weights = Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """For each score the weights of the features by name; features without one weigh nothing.

    Attributes:
        implicit: for the model's own score.
        lexical: for the BM25 score of the prompt's words, counted; None leaves it out.
        attended: for the BM25 score of the words weighted by attention; None leaves it out.
    """

    implicit: Weights = field(default_factory=dict)
    lexical: Weights | None = None
    attended: Weights | None = None

    @classmethod
    def fixed(cls, lexical_weight: float) -> "Gate":
        """The implicit score plus ``lexical_weight`` times the attended one, for every prompt.

        Raises:
            ImpRAGError: the weight is not positive.
        """
        if not 0 < lexical_weight <= GREATEST:
            raise ImpRAGError(
                f"the lexical weight must be positive and at most {GREATEST:,}, but is "
                f"{lexical_weight}; for the model's own scores alone, choose implicit retrieval"
            )
        return cls(attended={"bias": math.log(lexical_weight)})

    @classmethod
    def from_json(cls, values: Any) -> "Gate":
        """The gate that a model's settings hold.

        Raises:
            ImpRAGError: a score or a feature is unknown, or a weight is not a finite number.
        """
        if not isinstance(values, Mapping) or not set(values) <= set(SCORES):
            raise ImpRAGError(f"a gate maps {', '.join(SCORES)} to weights of features")
        for score, weights in values.items():
            if not isinstance(weights, Mapping) or not set(weights) <= set(FEATURES):
                raise ImpRAGError(
                    f"the gate maps {score} to something else than weights of the features "
                    f"{', '.join(FEATURES)}"
                )
            for name, weight in weights.items():
                number = isinstance(weight, int | float) and not isinstance(weight, bool)
                if not number or not abs(weight) < HUGE:
                    raise ImpRAGError(f"the gate's weight of {name} is not a finite number")
        return cls(**values)

    def to_json(self) -> dict[str, dict[str, float]]:
        """The weights by score and feature, for :meth:`from_json`."""
        weights = ((score, getattr(self, score)) for score in SCORES)
        return {score: dict(own) for score, own in weights if own is not None}

    def weights(self, rankings: Rankings) -> tuple[float, float, float]:
        """The weights of the three scores for a prompt, in the order of :data:`SCORES`."""
        found = dict(zip(FEATURES, features(rankings).tolist(), strict=True))
        return (
            _weight(self.implicit, found),
            _weight(self.lexical, found),
            _weight(self.attended, found),
        )


def _weight(weights: Weights | None, found: Mapping[str, float]) -> float:
    if weights is None:
        return 0.0
    exponent = sum(weight * found[name] for name, weight in weights.items())
    # A fitted weight has narrower limits, for prompts unlike those that it was fitted on.
    limit = math.log(GREATEST) if set(weights) <= {"bias"} else LIMIT
    return math.exp(min(max(exponent, -limit), limit))


def _lead(scores: FloatArray, place: int) -> float:
    """How far the best score is ahead of one further down, or of the last one."""
    return float(scores[0] - scores[min(place, len(scores) - 1)]) if len(scores) else 0.0
