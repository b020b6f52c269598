"""What the bands of a data set's images hold: smallest and largest values, mean, deviation and percentiles.

The images are added one by one. Memory does not grow with their number: values are counted in at most 65,536 bins.
"""

import dataclasses
import threading

import numpy as np

MOST_BANDS = 64
"""Further bands of an image are not counted."""


@dataclasses.dataclass(frozen=True)
class BandStatistics:
    """The stored values of one band over all images of one type.

    Attributes:
      kind: the type of the values, such as uint16.
      band: number, from 0.
      images: number of images that have it.
      minimum, maximum, mean, std: of the pixels.
      p1, p99: percentiles: 1% and 99% of the pixels are not above them. For integers of up to 16 bits they are
        exact, otherwise a value less than 1% too small in magnitude.
    """

    kind: str
    band: int
    images: int
    minimum: float
    maximum: float
    mean: float
    std: float
    p1: float
    p99: float


class Tally:
    """Counts of the values of all bands. Several threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bands: dict[tuple[str, int], _Band] = {}

    def add(self, samples: np.ndarray) -> None:
        """Add an image `[H, W, bands]`; values that are not finite are left out."""
        for number in range(min(MOST_BANDS, samples.shape[2])):
            values = samples[..., number].ravel()
            if values.dtype.kind == "f":
                values = values[np.isfinite(values)]
            if not values.size:
                continue
            counts = np.bincount(_bins(values), minlength=256 if values.dtype == np.uint8 else 65536)
            exact = values.astype(np.float64)
            ends = float(np.min(exact)), float(np.max(exact))
            added = _Band(counts, 1, *ends, float(np.sum(exact)), float(np.vdot(exact, exact)))
            with self._lock:
                key = values.dtype.name, number
                self._bands[key] = self._bands[key].plus(added) if key in self._bands else added

    def statistics(self) -> tuple[BandStatistics, ...]:
        """Return the statistics of each type and band, in order."""
        return tuple(band.statistics(kind, number) for (kind, number), band in sorted(self._bands.items()))


@dataclasses.dataclass(frozen=True)
class _Band:
    counts: np.ndarray
    images: int
    minimum: float
    maximum: float
    total: float
    squares: float

    def plus(self, other: "_Band") -> "_Band":
        return _Band(
            self.counts + other.counts,
            self.images + other.images,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.total + other.total,
            self.squares + other.squares,
        )

    def statistics(self, kind: str, number: int) -> BandStatistics:
        count = int(self.counts.sum())
        mean = self.total / count
        ends = np.searchsorted(np.cumsum(self.counts), [0.01 * count, 0.99 * count])
        p1, p99 = (min(max(value, self.minimum), self.maximum) for value in _values(ends, kind))
        std = max(0.0, self.squares / count - mean**2) ** 0.5
        return BandStatistics(kind, number, self.images, self.minimum, self.maximum, mean, std, p1, p99)


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each value; larger values have larger bins.

    That of a float or a wide integer is the upper half of its 32-bit form. Their order is that of the values, once the
    bits of negative ones are turned around.
    """
    if values.dtype in (np.uint8, np.uint16):
        return values
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> 16


def _values(bins: np.ndarray, kind: str) -> list[float]:
    """Return the value of each bin."""
    if kind in ("uint8", "uint16"):
        return [float(one) for one in bins]
    ordered = bins.astype(np.uint32) << 16
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return [float(one) for one in bits.astype(np.uint32).view(np.float32)]
