"""How much a model's confidence says: risk and coverage, AUROC, expected calibration error.

`Risk` is the share of wrong answers among those that are given, `coverage` the share of prompts
that are answered, when answers are given from the most confident on (El-Yaniv and Wiener 2010).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

COVERAGES = tuple(n / 20 for n in range(1, 21))
THRESHOLDS = tuple(n / 10 for n in range(1, 10))
_BINS = 10


def auroc(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """Probability that a right answer has more confidence than a wrong one; ties count half.

    Returns:
        None if all answers are right, or all wrong.
    """
    values, is_right = np.asarray(confidences), np.asarray(right, dtype=bool)
    good, bad = values[is_right], np.sort(values[~is_right])
    if not len(good) or not len(bad):
        return None
    below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + upto).mean() / 2 / len(bad))


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error over ten bins of equal width (Guo et al. 2017).

    It is the mean distance, over answers, of their bin's confidence from its share of right ones.
    """
    values, is_right = np.asarray(confidences), np.asarray(right, dtype=float)
    bins = np.minimum((values * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, values - is_right, _BINS)
    return float(np.abs(gaps).sum() / len(values))


def risks(confidences: Sequence[float], right: Sequence[bool]) -> list[float]:
    """The risk at each of `COVERAGES`; answers of the same confidence are given in any order.

    At a coverage c, the c · n most confident answers are given, rounded up.
    """
    values, is_right = np.asarray(confidences), np.asarray(right, dtype=float)
    order = np.argsort(-values, kind="stable")
    ordered: npt.NDArray[np.float64] = values[order]
    # Answers of the same confidence count as their mean, so that no order of theirs is better.
    _, group, sizes = np.unique(-ordered, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, 1 - is_right[order])[group] / sizes[group]
    given = [int(np.ceil(coverage * len(values))) for coverage in COVERAGES]
    return [float(wrong[:count].mean()) for count in given]


def summarize_confidence(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """All measures of a task's answers, for ``results.json``.

    Returns:
        ``n``; ``right``, the share of right answers; ``auroc``; ``calibration_error``; ``risk`` by
        coverage; ``refused``, the share of answers below each threshold.
    """
    values = np.asarray(confidences)
    return {
        "n": len(values),
        "right": float(np.mean(right)),
        "auroc": auroc(confidences, right),
        "calibration_error": calibration_error(confidences, right),
        "risk": dict(zip(map(str, COVERAGES), risks(confidences, right), strict=True)),
        "refused": {str(least): float((values < least).mean()) for least in THRESHOLDS},
    }
