"""Measures of confidence, held against scikit-learn and against their definitions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprag.errors import ImpRAGError
from imprag.evaluation.calibration import (
    COVERAGES,
    auroc,
    calibration_error,
    risks,
    summarize_confidence,
)
from imprag.evaluation.scoring import summarize
from imprag.model.confidence import FEATURES
from imprag.training.confidence import fit_confidence

linear_model = pytest.importorskip("sklearn.linear_model", reason="is the reference")
metrics = pytest.importorskip("sklearn.metrics", reason="is the reference")

Judged = list[tuple[float, bool]]
JUDGED = st.lists(
    st.tuples(st.sampled_from([0, 0.1, 0.35, 0.5, 0.77, 1]), st.booleans()), min_size=1
)


@given(JUDGED)
def test_auroc_is_scikit_learns(judged: Judged) -> None:
    confidences, right = zip(*judged, strict=True)
    if len(set(right)) < 2:
        assert auroc(confidences, right) is None
    else:
        assert auroc(confidences, right) == pytest.approx(metrics.roc_auc_score(right, confidences))


@given(JUDGED)
def test_calibration_error_is_the_mean_gap_of_the_bins(judged: Judged) -> None:
    total = 0.0
    for number in range(10):
        own = [
            (confidence, right)
            for confidence, right in judged
            if number / 10 <= confidence < (number + 1) / 10 or (number == 9 and confidence == 1)
        ]
        if own:
            gap = sum(c for c, _ in own) / len(own) - sum(r for _, r in own) / len(own)
            total += len(own) / len(judged) * abs(gap)
    assert calibration_error(*zip(*judged, strict=True)) == pytest.approx(total)


def test_risk_counts_the_wrong_ones_among_the_most_confident() -> None:
    confidences = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    right = [True, True, True, False, True, False, True, False, False, False]
    found = dict(zip(COVERAGES, risks(confidences, right), strict=True))
    assert found[0.3] == 0
    assert found[0.5] == pytest.approx(1 / 5)
    assert found[0.8] == pytest.approx(3 / 8)
    assert found[1.0] == 0.5


@given(JUDGED, st.randoms())
def test_risk_depends_on_no_order_and_ends_at_the_error_rate(judged: Judged, random: Any) -> None:
    mixed = random.sample(judged, len(judged))
    found = risks(*zip(*judged, strict=True))
    assert found == pytest.approx(risks(*zip(*mixed, strict=True)))
    assert found[-1] == pytest.approx(1 - np.mean([right for _, right in judged]))


def test_results_have_confidence_where_predictions_do() -> None:
    predictions = [
        {"task": "a", "metrics": {"exact_match": 1.0}, "confidence": 0.9},
        {"task": "a", "metrics": {"exact_match": 0.0}, "confidence": 0.4},
        {"task": "a", "metrics": {}, "confidence": 0.4},
        {"task": "b", "metrics": {"accuracy": 1.0}},
    ]
    found = summarize(predictions)
    assert found["a"]["confidence"] == summarize_confidence([0.9, 0.4], [True, False])
    assert found["a"]["confidence"]["auroc"] == 1
    assert found["a"]["confidence"]["n"] == 2
    assert found["a"]["confidence"]["refused"]["0.5"] == 0.5
    assert "confidence" not in found["b"]


def _examples(n: int) -> tuple[list[dict[str, float]], Sequence[bool]]:
    generator = np.random.default_rng(0)
    raw = generator.normal(size=(n, len(FEATURES))) * [1, 20, 3, 5, 0.1, 0.1, 1, 2, 0.5, 1]
    raw[:, 0] = 1
    logits = raw @ [0.5, 0.02, 0.3, 0, 4, 0, 1, 0.2, 0, 0.5]
    right = generator.random(n) < 1 / (1 + np.exp(-logits))
    return [dict(zip(FEATURES, row.tolist(), strict=True)) for row in raw], right.tolist()


def test_the_fit_is_scikit_learns() -> None:
    evidence, right = _examples(300)
    confidence = fit_confidence(evidence, right, l2=2.0)
    raw = np.array([[one[name] for name in FEATURES] for one in evidence])[:, 1:]
    standardised = (raw - raw.mean(0)) / raw.std(0)
    reference = linear_model.LogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(
        standardised, right
    )
    expected = reference.predict_proba(standardised)[:, 1]
    found = [confidence.of(one) for one in evidence]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_fit_tells_right_from_wrong_and_is_calibrated() -> None:
    evidence, right = _examples(2000)
    confidence = fit_confidence(evidence[:1000], right[:1000])
    found = [confidence.of(one) for one in evidence[1000:]]
    measured = summarize_confidence(found, right[1000:])
    assert measured["auroc"] > 0.75
    assert measured["calibration_error"] < 0.06


def test_a_fit_needs_right_and_wrong_answers() -> None:
    evidence, _ = _examples(4)
    with pytest.raises(ImpRAGError, match="there is one kind"):
        fit_confidence(evidence, [True] * 4)
