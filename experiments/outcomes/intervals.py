"""The standard error of the difference between two rows, over trainings and over images; its interval by Student's t;
and Holm's correction for several comparisons.
"""

from collections.abc import Sequence
from math import hypot
from statistics import stdev
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from deeplab_jax.evaluate.per_image import LEVEL, resamples
from deeplab_jax.ops.metrics import ratio
from experiments.outcomes.per_image import Counts

SAMPLES = 2000


class Error(NamedTuple):
    """A standard error, in the units of the differences, and its degrees of freedom."""

    size: float
    freedom: float


class Interval(NamedTuple):
    """An interval by its two ends, in the units of the differences."""

    low: float
    high: float

    @property
    def side(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below 0, 0 otherwise."""
        return (self.low > 0) - (self.high < 0)


def over_seeds(differences: Sequence[float]) -> Error | None:
    """Return the standard error of the mean of paired differences, None for fewer than two differences."""
    count = len(differences)
    return Error(stdev(differences) / count**0.5, count - 1) if count > 1 else None


def over_images(pairs: Sequence[tuple[Counts, Counts]]) -> Error | None:
    """Return the standard error of the difference in mIoU, in points, over resampled images (bootstrap; Efron and
    Tibshirani, 1993, ch. 6), None where there is no pair, where the images differ, or where there is one image only.

    A resample has as many images as the split, drawn with replacement. Both rows and all trainings get the same
    resample. Its difference is the mean over trainings.

    Args:
      pairs: for each training, the counts of the row that should be better and of the other row.
    """
    counts = [one for pair in pairs for one in pair]
    if not counts or len(counts[0].names) < 2 or any(one.names != counts[0].names for one in counts):
        return None
    # Products in floating point are fast, and exact here: all sums are far below 2**53 pixels.
    flat = [(one.right.astype(np.float64), one.union.astype(np.float64)) for one in counts]
    found = []
    for times in resamples(len(counts[0].names), SAMPLES):
        mious = [np.nanmean(ratio(times @ right, times @ union), axis=1) for right, union in flat]
        found.append(np.mean(mious[::2], axis=0) - np.mean(mious[1::2], axis=0))
    return Error(100 * float(np.std(np.concatenate(found), ddof=1)), len(counts[0].names) - 1)


def together(one: Error, other: Error) -> Error:
    """Return the error of a difference that has two independent ones (degrees of freedom: Satterthwaite, 1946; Welch,
    1947).
    """
    size = hypot(one.size, other.size)
    if size == 0:
        return one
    return Error(size, 1 / sum((part.size / size) ** 4 / part.freedom for part in (one, other)))


def t_interval(middle: float, error: Error) -> Interval:
    """Return the 95% interval around a mean difference by Student's t."""
    half = float(stdtrit(error.freedom, (1 + LEVEL) / 2)) * error.size
    return Interval(middle - half, middle + half)


def errors(seeds: Error, images: Error | None) -> list[Error]:
    """Return the errors whose intervals both have to leave out 0. With few trainings, that of trainings and images may
    be the narrower one, since it has more degrees of freedom. Alone it would decide more than 5% by chance.
    """
    return [seeds] if images is None else [seeds, together(seeds, images)]


def widest(middle: float, found: Sequence[Error]) -> Interval:
    """Return the widest of the 95% intervals around a mean difference."""
    return max((t_interval(middle, error) for error in found), key=lambda one: one.high - one.low)


def p_value(middle: float, error: Error) -> float:
    """Return the two-sided p of the t-test that the mean difference is 0."""
    if error.size == 0:
        return 0.0 if middle else 1.0
    return float(2 * stdtr(error.freedom, -abs(middle) / error.size))


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
