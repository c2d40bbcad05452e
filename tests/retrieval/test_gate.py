"""The gate: its features, fixed and fitted weights, and settings that are refused."""

import math
from typing import Any

import numpy as np
import pytest

from imprag.errors import ImpRAGError
from imprag.retrieval.gate import FEATURES, LIMIT, Gate, Rankings, features
from imprag.retrieval.hybrid import Candidates
from imprag.training.gate import GateExample, fit_gate


def rankings(
    implicit: list[float], attended: list[float], sample: list[float], terms: float = 1
) -> Rankings:
    arrays = (np.array(scores, np.float32) for scores in (implicit, attended, sample))
    return Rankings(*arrays, terms)


def test_features_are_known_numbers() -> None:
    implicit = [9.0, 8.0, 6.0, *[5.0] * 6, 4.0, 1.0]
    found = dict(
        zip(FEATURES, features(rankings(implicit, [3, 1], [1, 3], terms=7)).tolist(), strict=True)
    )
    assert found == pytest.approx(
        {
            "bias": 1,
            "log_terms": math.log(7),
            "implicit_z": (9 - 2) / 1,
            "implicit_first_second": 1,
            "implicit_first_tenth": 5,
            "implicit_log_spread": 0,
            "attended_first_second": 2,
            "attended_first_tenth": 2,
            "attended_log_spread": 0,
        }
    )


@pytest.mark.parametrize(
    ("implicit", "attended", "sample"),
    [([2.0], [], [2.0]), ([1.0, 1.0], [0.5], [1.0, 1.0]), ([-3.0, -4.0], [1.0, 1.0], [-3.0])],
)
def test_features_are_finite_for_few_passages_and_unknown_words(
    implicit: list[float], attended: list[float], sample: list[float]
) -> None:
    assert np.isfinite(features(rankings(implicit, attended, sample, terms=0))).all()


def test_a_weight_is_the_exponential_of_weighted_features_within_limits() -> None:
    prompt = rankings([4, 1], [2, 1], [0, 2], terms=1)
    gate = Gate({"bias": 0.5, "implicit_first_second": -0.25}, None, {"attended_first_tenth": 99})
    assert gate.weights(prompt) == pytest.approx((math.exp(0.5 - 0.75), 0, math.exp(LIMIT)))


def test_a_fixed_weight_is_the_same_for_every_prompt() -> None:
    for weight in (0.5, 1000.0):
        for prompt in (rankings([4, 1], [2], [0, 2]), rankings([0, 0], [], [0])):
            assert Gate.fixed(weight).weights(prompt) == pytest.approx((1, 0, weight))
    for weight in (0, -1, math.nan, math.inf, 1e308):
        with pytest.raises(ImpRAGError, match="must be positive"):
            Gate.fixed(weight)


def test_weights_are_finite_whatever_a_file_says() -> None:
    gate = Gate.from_json({"implicit": {"bias": 1000}, "lexical": {"bias": -1e9, "log_terms": 1}})
    assert gate.weights(rankings([1, 0], [1], [0, 1])) == pytest.approx((1e6, math.exp(-4), 0))


def test_a_gate_survives_json() -> None:
    gate = Gate({"bias": 1.0}, None, {"log_terms": -0.5})
    assert gate.to_json() == {"implicit": {"bias": 1.0}, "attended": {"log_terms": -0.5}}
    assert Gate.from_json(gate.to_json()) == gate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "a gate maps implicit, lexical, attended"),
        ({"dense": {}}, "a gate maps implicit, lexical, attended"),
        ({"implicit": {"size": 1}}, "something else than weights of the features bias"),
        ({"implicit": [1]}, "something else than weights"),
        ({"lexical": {"bias": "1"}}, "weight of bias is not a finite number"),
        ({"lexical": {"bias": True}}, "not a finite number"),
        ({"lexical": {"bias": math.nan}}, "not a finite number"),
        ({"lexical": {"bias": 10**400}}, "not a finite number"),
    ],
)
def test_bad_weights_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        Gate.from_json(values)


def example(rng: np.random.Generator, *, known: bool) -> GateExample:
    """A known text has spread implicit scores that are right; elsewhere the words are."""
    gold, n = int(rng.integers(20)), 20
    implicit = rng.normal(0, 3 if known else 0.5, n)
    words = rng.uniform(0, 8, n)
    (implicit if known else words)[gold] += 9 if known else 6
    scores = np.stack([implicit, words, words]).astype(np.float32)
    ranked = [np.sort(one)[::-1].astype(np.float32) for one in (implicit, words)]
    seen = Rankings(*ranked, implicit.astype(np.float32), 8)
    return GateExample(Candidates(np.arange(n), scores, seen, {}), frozenset({gold}))


def first(gate: Gate, examples: list[GateExample]) -> float:
    def hit(one: GateExample) -> bool:
        scores = np.array(gate.weights(one.candidates.rankings)) @ one.candidates.scores
        return int(scores.argmax()) in one.gold

    return float(np.mean([hit(one) for one in examples]))


def test_a_fitted_gate_tells_known_from_unknown_text() -> None:
    rng = np.random.default_rng(0)
    known, unknown = ([example(rng, known=yes) for _ in range(80)] for yes in (True, False))
    gate = fit_gate({"a": {"task": known[:40]}, "b": {"task": unknown[:40]}})
    assert gate == fit_gate({"a": {"task": known[:40]}, "b": {"task": unknown[:40]}})
    assert first(gate, known[40:]) > 0.9 > first(Gate.fixed(1), known[40:])
    assert first(gate, unknown[40:]) > 0.75 > 0.3 > first(Gate(), unknown[40:])


def test_prompts_without_gold_among_their_candidates_teach_nothing() -> None:
    one = example(np.random.default_rng(0), known=True)._replace(gold=frozenset({99}))
    with pytest.raises(ImpRAGError, match="no prompt has a gold passage"):
        fit_gate({"a": {"task": [one]}})
