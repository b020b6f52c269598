"""Sliding windows: where they lie, what they weigh, and their weighted mean, a tile of the image at a time.

Windows run from left to right and from top to bottom. A band as high as one window holds the sums of the windows so
far. The rows above the next windows are final: they are handed out and dropped. Where the band of the whole width is
larger than `BAND_BYTES`, the image is done in columns, and the windows across the edge of a column run once for each
side. So memory depends on the window and the number of classes, and not on the size of the image.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import numpy as np

if TYPE_CHECKING:  # To read images sets limits of Pillow for the whole process.
    from deeplab_jax.data.large import Image


Array = np.ndarray | jax.Array
Size = tuple[int, int]
Span = tuple[int, int]
Item = TypeVar("Item")

BLENDS = ("uniform", "gaussian")
OVERLAP = 1 / 3
SIGMA = 0.125  # The standard deviation of the Gaussian, in sides of a window.
SMALLEST_WEIGHT = 1e-3
BAND_BYTES = 2**28
# A column has at least so many steps of windows, however large its band: it runs the windows across its edge again.
FEWEST_STEPS = 4


class Tile(NamedTuple):
    """A finished part of an image: its first row and column, and the mean probabilities `[h, w, K]` there, which are
    overwritten when the next tile is asked for.
    """

    top: int
    left: int
    probabilities: np.ndarray

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the image that it covers."""
        height, width = self.probabilities.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def window_starts(size: int, window: int, overlap: float = OVERLAP) -> list[int]:
    """Return the starts of windows that cover `size` pixels, evenly spread, and overlap by at least this share of a
    window, up to the rounding of positions.
    """
    if size <= window:
        return [0]
    step = max(1, int(window * (1 - overlap) + 1e-6))
    count = -(-(size - window) // step) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def window_weights(window: Size, blend: str) -> np.ndarray:
    """Return the weight of each pixel of a window in the mean, float32 `[h, w, 1]`, above 0.

    "uniform": 1. "gaussian": a Gaussian around the centre, with a standard deviation of an eighth of each side, and at
    least 0.001, as in MONAI's `sliding_window_inference`.
    """
    if blend == "uniform":
        return np.ones((*window, 1), np.float32)
    rows, columns = (np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (SIGMA * n)) ** 2) for n in window)
    return np.maximum(np.outer(rows, columns), SMALLEST_WEIGHT).astype(np.float32)[..., None]


def mean_of_windows(
    image: "Image",
    run: Callable[[np.ndarray, np.ndarray], Array],
    *,
    size: Size,
    window: Size,
    classes: int,
    overlap: float = OVERLAP,
    blend: str = "uniform",
    batch_size: int = 1,
) -> Iterator[Tile]:
    """Yield the parts of an image, which cover it once, with the weighted mean of the windows' probabilities.

    Args:
      image: `[H, W, C]`; an array, or one that is read a part at a time.
      run: takes windows `[N, h, w, C]` and the part of each that lies on the image, int32 `[N, 2]` from its top left;
        returns their probabilities `[N, h, w, K]`. Each call is made before the previous result is read, so the device
        keeps computing.
      size: (height, width) over which the windows are spread, at least the image's: a padded image.
      window: (height, width) of a window; cut to `size`.
      classes: K.
      overlap: smallest overlap of neighbours, as a share of a window: 0 to below 1.
      blend: see `window_weights`.
      batch_size: N. Empty windows fill up the last batch, so that one program runs them all.
    """
    window = (min(window[0], size[0]), min(window[1], size[1]))
    weights = window_weights(window, blend)
    height, width = image.shape[:2]
    rows, columns = (
        [start for start in window_starts(whole, side, overlap) if start < own]  # The others see only padding.
        for whole, side, own in zip(size, window, (height, width), strict=True)
    )
    parts = list(_columns(columns, width, window, classes))
    # One band for all columns: the caller still holds the last tile, so a second band would exist beside it.
    band = np.empty(window[0] * max(right - left for left, right in parts) * classes, np.float32)
    for left, right in parts:
        touching = [start for start in columns if start < right and start + window[1] > left]
        corners = [(top, start) for top in rows for start in touching]
        batches = (corners[first : first + batch_size] for first in range(0, len(corners), batch_size))
        found = _ahead((run(*_cut(image, batch, window, batch_size)), len(batch)) for batch in batches)
        results = (one for batch, count in found for one in np.asarray(batch)[:count])
        sums = band[: window[0] * (right - left) * classes].reshape(window[0], right - left, classes)
        sums[:] = 0
        total = np.zeros((window[0], right - left, 1), np.float32)
        for top, below in zip(rows, [*rows[1:], height], strict=True):
            for start in touching:
                inside = slice(max(start, left) - start, min(start + window[1], right) - start)
                onto = slice(max(start, left) - left, min(start + window[1], right) - left)
                sums[:, onto] += next(results)[:, inside] * weights[:, inside]
                total[:, onto] += weights[:, inside]
            final = below - top
            yield Tile(top, left, np.divide(sums[:final], total[:final], out=sums[:final]))
            for rolled in (sums, total):
                for row in range(len(rolled)):
                    rolled[row] = rolled[row + final] if row + final < len(rolled) else 0


def _columns(starts: list[int], width: int, window: Size, classes: int) -> Iterator[Span]:
    """Yield the (left, right) of each column of the image whose band is small enough."""
    most = BAND_BYTES // (window[0] * (classes + 1) * np.dtype(np.float32).itemsize)
    edges = [*starts, width]
    first = 0
    while first < len(starts):
        last = min(first + FEWEST_STEPS, len(starts))
        while last < len(starts) and edges[last + 1] - edges[first] <= most:
            last += 1
        yield edges[first], edges[last]
        first = last


def _cut(image: "Image", corners: list[Span], window: Size, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows at these corners and the part of each that lies on the image, filled up to `count`."""
    first = image[:1, :1]
    seen = np.zeros((count, *window, first.shape[-1]), first.dtype)
    sizes = np.zeros((count, 2), np.int32)
    for index, (top, left) in enumerate(corners):
        part = image[top : top + window[0], left : left + window[1]]
        seen[index, : part.shape[0], : part.shape[1]] = part
        sizes[index] = part.shape[:2]
    return seen, sizes


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, each when the next one has been taken."""
    waiting: list[Item] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting
