"""Bootstrap confidence intervals of means, and the paired bootstrap test of two runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imprag.errors import ImpRAGError

#: Numbers drawn at once, which bounds the memory for any number of instances.
_BATCH = 2**22


class Interval(NamedTuple):
    """The bounds of a confidence interval."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """The paired test of run A against run B on the same instances.

    Attributes:
        difference: mean of A minus mean of B.
        interval: bootstrap confidence interval of the difference.
        p_value: two-sided; see `paired_bootstrap`.
    """

    difference: float
    interval: Interval
    p_value: float


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap confidence interval of the mean.

    Args:
        values: one score per instance.
        confidence: probability that the interval covers the mean.
        resamples: number of resamples.
        seed: seed of the resampling.

    Raises:
        ImpRAGError: there are no values.
    """
    means = _resampled_means(np.asarray(values, dtype=np.float64), resamples, seed)
    return _percentile_interval(means, confidence)


def paired_bootstrap(
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Bootstrap test of two runs that scored the same instances in the same order.

    Instances are resampled in pairs. Let d be the difference of the means and d* that of a
    resample. The distribution of d* − d estimates that of d under the null hypothesis, so the
    two-sided p-value is

        p = (1 + number of resamples with |d* − d| ≥ |d|) / (1 + number of resamples).

    Raises:
        ImpRAGError: there are no scores, or the runs have different numbers of them.
    """
    if len(scores_a) != len(scores_b):
        raise ImpRAGError(
            f"the runs have {len(scores_a)} and {len(scores_b)} scores; "
            "a paired test needs the same instances in both"
        )
    differences = np.asarray(scores_a, dtype=np.float64) - np.asarray(scores_b, dtype=np.float64)
    means = _resampled_means(differences, resamples, seed)
    difference = float(differences.mean())
    # Sums of the same numbers in another order differ in their last bits, and count as equal here.
    scatter = np.abs(means - difference) * (1 + 1e-9) + 1e-12
    extreme = int((scatter >= abs(difference)).sum())
    return PairedTest(
        difference=difference,
        interval=_percentile_interval(means, confidence),
        p_value=(1 + extreme) / (1 + resamples),
    )


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of resamples of ``values`` with replacement; ``(resamples,)``.

    A mean depends only on how often each distinct value was drawn, and these counts are
    multinomial. Scores have few distinct values (exact match has two), so drawing counts is much
    faster than drawing instances, with the same distribution.
    """
    if not len(values):
        raise ImpRAGError("there are no scores to resample; evaluate at least one instance")
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH // len(distinct))
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    draws = (generator.multinomial(len(values), counts / len(values), size) for size in sizes)
    return np.concatenate([drawn @ distinct for drawn in draws]) / len(values)


def _percentile_interval(means: NDArray[np.float64], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
