"""Confidence intervals of the difference between two rows: Student's t over trainings and the bootstrap over images;
and Holm's correction for several comparisons.
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
    """An interval by its two ends, in the units of the differences."""

    low: float
    high: float

    @property
    def side(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below 0, 0 otherwise."""
        return (self.low > 0) - (self.high < 0)


def over_seeds(differences: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the mean of paired differences by Student's t, None for fewer than two differences."""
    count = len(differences)
    if count < 2:
        return None
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * stdev(differences) / count**0.5
    middle = fmean(differences)
    return Interval(middle - half, middle + half)


def p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the paired t-test (the mean difference is 0), None for fewer than two differences."""
    count = len(differences)
    if count < 2:
        return None
    middle, spread = fmean(differences), stdev(differences)
    if spread == 0:
        return 0.0 if middle else 1.0
    return float(2 * stdtr(count - 1, -abs(middle) / (spread / count**0.5)))


def over_images(pairs: Sequence[tuple[Counts, Counts]]) -> Interval | None:
    """Return the 95% interval of the difference in mIoU, in points, over resampled images (percentile bootstrap; Efron
    and Tibshirani, 1993, ch. 13), None where there is no pair or where the images differ.

    A resample has as many images as the split, drawn with replacement. Both rows and all trainings get the same
    resample. Its difference is the mean over trainings.

    Args:
      pairs: for each training, the counts of the row that should be better and of the other row.
    """
    counts = [one for pair in pairs for one in pair]
    if not counts or not counts[0].names or any(one.names != counts[0].names for one in counts):
        return None
    # Products in floating point are fast, and exact here: all sums are far below 2**53 pixels.
    flat = [(one.right.astype(np.float64), one.union.astype(np.float64)) for one in counts]
    found = []
    for times in resamples(len(counts[0].names), SAMPLES):
        mious = [np.nanmean(ratio(times @ right, times @ union), axis=1) for right, union in flat]
        found.append(np.mean(mious[::2], axis=0) - np.mean(mious[1::2], axis=0))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(100 * np.concatenate(found), [tail, 100 - tail])
    return Interval(float(low), float(high))


def holm(values: Sequence[float]) -> list[bool]:
    """Return for each of n hypotheses whether it is rejected, at 5% for all together (Holm, 1979).

    The smallest p is compared with 5% / n, the next with 5% / (n - 1), and so on, up to the first that is too large.
    """
    rejected = [False] * len(values)
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[place] > (1 - LEVEL) / (len(values) - rank):
            break
        rejected[place] = True
    return rejected
