"""How sure a difference between two rows is: Student's t over trainings, the bootstrap over images, and what several
comparisons cost.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from deeplab_jax.evaluate.per_image import LEVEL, resamples
from deeplab_jax.ops.metrics import ratio
from experiments.run.per_image import Counts

SAMPLES = 2000


class Interval(NamedTuple):
    """Both ends, in the units of the differences."""

    low: float
    high: float

    @property
    def side(self) -> int:
        """1 where all of it is above 0, -1 where all of it is below, 0 otherwise."""
        return (self.low > 0) - (self.high < 0)


def over_seeds(differences: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the mean of paired differences by Student's t; None of fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * stdev(differences) / count**0.5
    middle = fmean(differences)
    return Interval(middle - half, middle + half)


def p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the paired t-test that the mean difference is 0; None of fewer than two differences."""
    count = len(differences)
    if count < 2:
        return None
    middle, spread = fmean(differences), stdev(differences)
    if spread == 0:
        return 0.0 if middle else 1.0
    return float(2 * stdtr(count - 1, -abs(middle) / (spread / count**0.5)))


def over_images(pairs: Sequence[tuple[Counts, Counts]]) -> Interval | None:
    """Return the 95% interval of the difference in mIoU, in points, over resampled images (percentile bootstrap; Efron
    and Tibshirani, 1993, ch. 13); None where there is no pair, or pairs are of other images.

    A resample draws as many images as there are, with replacement: the same ones for both rows and all trainings. Its
    difference is the mean over trainings.

    Args:
      pairs: for each training, the counts of the row that should be better and of the other one.
    """
    counts = [one for pair in pairs for one in pair]
    if not counts or not counts[0].names or any(one.names != counts[0].names for one in counts):
        return None
    # A product in floating point, which is fast and exact: no sum comes near 2**53 pixels.
    flat = [(one.right.astype(np.float64), one.union.astype(np.float64)) for one in counts]
    found = []
    for times in resamples(len(counts[0].names), SAMPLES):
        mious = [np.nanmean(ratio(times @ right, times @ union), axis=1) for right, union in flat]
        found.append(np.mean(mious[::2], axis=0) - np.mean(mious[1::2], axis=0))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(100 * np.concatenate(found), [tail, 100 - tail])
    return Interval(float(low), float(high))


def holm(values: Sequence[float]) -> list[bool]:
    """Return which of several hypotheses are rejected at 5% in all (Holm, 1979): the smallest p is compared with
    5% / n, the next with 5% / (n - 1), and so on, up to the first that is too large.
    """
    rejected = [False] * len(values)
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[place] > (1 - LEVEL) / (len(values) - rank):
            break
        rejected[place] = True
    return rejected
