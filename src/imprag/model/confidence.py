"""Confidence: how likely an answer is right, from what is known when it has been written.

    confidence = 1 / (1 + exp(-w · f))

f are ten numbers (:data:`FEATURES`) about the ranking, the reading, the answer's tokens and its
words; none needs a further pass. `imprag.training.confidence` fits the weights w.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from imprag.corpus.words import fold, words_and_symbols
from imprag.errors import ImpRAGError

HUGE = 1e100
"""Numbers from here on are refused as weights: with features they might become infinite."""

NOT_FOUND = "not found in the corpus"
"""The answer in place of one whose confidence is too low."""

#: Names of the features, in the order of :func:`features`.
FEATURES = (
    "bias",
    "score",
    "first_second",
    "first_tenth",
    "read",
    "read_most",
    "mean_log_probability",
    "least_log_probability",
    "log_tokens",
    "names",
)
#: After these, a word may have a capital letter without being a name.
_BEFORE_SENTENCES = frozenset(".?!:[")
_LONGEST_ABBREVIATION = 3


def names_found(prompt: str, answer: str, passages: Sequence[str]) -> float:
    """Share of the prompt's names in the first passage that states the answer, 0 to 1.

    Without a passage that states the answer it is 0; with one, but without a name in the prompt,
    it is one half. Punctuation, case and the separators within numbers make no difference.

    >>> names_found("Q: How long is Niger's coast? A:", "853 km", ["Nigeria. Coastline: 853 km"])
    0.0
    """
    said = _words(answer)
    if not said:
        return 0.0
    stated, names = f" {' '.join(said)} ", _names(prompt)
    for passage in passages:
        text = _words(passage)
        if stated in f" {' '.join(text)} ":
            return len(names.intersection(text)) / len(names) if names else 0.5
    return 0.0


def _names(prompt: str) -> set[str]:
    """Folded numbers and capitalised words, but for the first word of a sentence or line.

    Abbreviations ("St. Lucia") end no sentence, and they and single letters are no names. Words in
    capitals among others in capitals say nothing.
    """
    cased = any(character.islower() for character in prompt)
    names: set[str] = set()
    begins, before = True, ""
    for word in words_and_symbols(_joined_numbers(prompt.replace("\n", " ! "))):
        capital = cased and not begins and len(word) > 1 and word[0].isupper()
        if capital or word[0].isdigit():
            names.add(fold(word))
        begins = word in _BEFORE_SENTENCES
        if word == "." and before[:1].isupper() and len(before) <= _LONGEST_ABBREVIATION:
            names.discard(fold(before))
            begins = False
        before = word
    return names


def _words(text: str) -> list[str]:
    """Folded words without symbols, each number as one word."""
    return [word for word in words_and_symbols(_joined_numbers(fold(text))) if word[0].isalnum()]


def _joined_numbers(text: str) -> str:
    return re.sub(r"(?<=\d)[.,](?=\d)", "", text)


def features(
    scores: Sequence[float],
    shares: Sequence[float],
    log_probabilities: Sequence[float],
    names: float,
) -> dict[str, float]:
    """The ten features of an answer by name.

    Args:
        scores: s(q, p) of the passages that were read, best first; none if they were not ranked by
            the model. Without any, the three features of scores are 0.
        shares: of each passage, as in `imprag.model.attribution.Attribution`.
        log_probabilities: natural logarithms of the probabilities of the answer's tokens.
        names: of `names_found`.
    """

    def lead(place: int) -> float:
        return scores[0] - scores[min(place, len(scores) - 1)] if scores else 0.0

    tokens = list(log_probabilities) or [0.0]
    values = (
        1.0,
        scores[0] if scores else 0.0,
        lead(1),
        lead(9),
        sum(shares),
        max(shares, default=0.0),
        sum(tokens) / len(tokens),
        min(tokens),
        math.log(len(tokens)),
        names,
    )
    return dict(zip(FEATURES, values, strict=True))


@dataclass(frozen=True)
class Confidence:
    """The logistic model.

    Attributes:
        weights: of the features by name; features without one weigh nothing.
    """

    weights: Mapping[str, float]

    @classmethod
    def from_json(cls, values: Any) -> "Confidence":
        """What a model's settings hold.

        Raises:
            ImpRAGError: a feature is unknown, or a weight is not a finite number.
        """
        if not isinstance(values, Mapping) or not set(values) <= set(FEATURES):
            raise ImpRAGError(f"confidence maps features to weights: {', '.join(FEATURES)}")
        for name, weight in values.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not abs(weight) < HUGE:
                raise ImpRAGError(f"the confidence's weight of {name} is not a finite number")
        return cls(dict(values))

    @classmethod
    def of_model(cls, values: Any, model: str) -> "Confidence":
        """The confidence of a model that is asked for it.

        Args:
            values: the model's setting ``confidence``.
            model: its name.

        Raises:
            ImpRAGError: it has none, or a bad one.
        """
        if values is None:
            raise ImpRAGError(
                f"{model} has no fitted confidence, which min_confidence needs: fit one with "
                "examples/default_model/fit_confidence.py"
            )
        return cls.from_json(values)

    def of(self, found: Mapping[str, float]) -> float:
        """The confidence in an answer with these features, 0 to 1."""
        logit = sum(weight * found[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))


def check_min_confidence(value: float | None) -> None:
    """Refuse a least confidence that is none.

    Raises:
        ImpRAGError: it is not between 0 and 1.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= 1):
        raise ImpRAGError(f"min_confidence must be between 0 and 1, not {value!r}")


class TokenProbabilities(LogitsProcessor):  # type: ignore[misc]  # untyped in transformers
    """Notes the probability of each chosen token; it changes no score."""

    def __init__(self) -> None:
        self._offered: Tensor | None = None
        self._chosen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note(input_ids[:, -1])
        self._offered = scores.float().log_softmax(-1)
        return scores

    def note(self, tokens: Tensor) -> None:
        """Note the tokens that were chosen last, (rows,)."""
        if self._offered is not None:
            self._chosen.append(self._offered.gather(1, tokens[:, None])[:, 0])
            self._offered = None

    def of_row(self, row: int) -> list[float]:
        """The natural logarithms of the probabilities of a row's tokens."""
        return torch.stack(self._chosen)[:, row].tolist() if self._chosen else []
