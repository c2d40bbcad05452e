"""The bootstrap against full enumeration and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.errors import ImpRAGError
from imprag.evaluation import statistics
from imprag.evaluation.statistics import bootstrap_interval, paired_bootstrap

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30)


def all_resampled_means(values: list[float]) -> np.ndarray:
    return np.array([np.mean(s) for s in itertools.product(values, repeat=len(values))])


def test_interval_equals_the_enumeration_of_all_resamples() -> None:
    values = [0.0, 0.1, 0.3, 0.7, 1.5]
    interval = bootstrap_interval(values, confidence=0.8, resamples=100_000)
    expected = np.quantile(all_resampled_means(values), [0.1, 0.9])
    assert interval == pytest.approx(expected, abs=0.011)  # means lie about 0.01 apart


@pytest.mark.parametrize("distribution", ["exact match", "graded"])
def test_interval_equals_scipy(distribution: str) -> None:
    generator = np.random.default_rng(1)
    values = generator.random(400)
    if distribution == "exact match":
        values = (values < 0.3).astype(float)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, random_state=2
    ).confidence_interval
    interval = bootstrap_interval(values.tolist(), resamples=20_000)
    assert interval == pytest.approx([expected.low, expected.high], abs=0.003)


def test_p_value_equals_the_enumeration_of_all_resamples() -> None:
    scores_a, scores_b = [1, 1, 0, 1, 1, 0], [0, 1, 0, 0, 0.5, 1]
    differences = np.subtract(scores_a, scores_b)
    d = differences.mean()
    means = all_resampled_means(differences.tolist())
    exact = np.mean(np.abs(means - d) >= abs(d) - 1e-9)

    test = paired_bootstrap(scores_a, scores_b, resamples=200_000)
    assert test.difference == pytest.approx(d)
    assert test.p_value == pytest.approx(exact, abs=0.005)
    assert test.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-9)


def test_p_value_of_a_clear_and_of_no_difference() -> None:
    clear = paired_bootstrap([1.0] * 90 + [0.0] * 10, [0.0] * 100, resamples=1000)
    assert clear.p_value == 1 / 1001
    assert clear.interval.low > 0
    same = paired_bootstrap([0.0, 1.0, 0.5], [0.0, 1.0, 0.5], resamples=1000)
    assert same == (0, (0, 0), 1)


def test_p_value_is_level_where_the_runs_do_not_differ() -> None:
    generator = np.random.default_rng(3)
    trials = [generator.integers(0, 2, (2, 200)) for _ in range(300)]
    rejected = np.mean([paired_bootstrap(*t, resamples=400).p_value < 0.1 for t in trials])
    assert 0.05 < rejected < 0.15


@settings(deadline=None)
@given(SCORES, st.integers(0, 5))
def test_interval_is_ordered_within_the_values_and_seeded(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, resamples=200, seed=seed)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert bootstrap_interval(values, resamples=200, seed=seed) == (low, high)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1)
)
def test_swapping_the_runs_negates_the_difference(pairs: list[tuple[float, float]]) -> None:
    scores_a, scores_b = zip(*pairs, strict=True)
    forth = paired_bootstrap(scores_a, scores_b, resamples=300)
    assert forth.difference == pytest.approx(np.mean(scores_a) - np.mean(scores_b))
    assert forth.interval.low - 1e-9 <= forth.interval.high
    assert 0 < forth.p_value <= 1
    assert paired_bootstrap(scores_b, scores_a, resamples=300).difference == -forth.difference


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 0.2, 0.4, 0.9]
    whole = bootstrap_interval(values, resamples=500)
    monkeypatch.setattr(statistics, "_BATCH", 4 * 7)
    assert bootstrap_interval(values, resamples=500) == pytest.approx(whole, abs=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ImpRAGError, match="no scores"):
        bootstrap_interval([])
    with pytest.raises(ImpRAGError, match="2 and 1 scores"):
        paired_bootstrap([1, 0], [1])
