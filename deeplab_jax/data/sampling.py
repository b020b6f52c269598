"""Images drawn by their classes, so that rare classes are seen more often than in the data."""

import hashlib
import os
import pickle
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.data.faults import Skipped
from deeplab_jax.data.mask_formats import PalettesDifferError
from deeplab_jax.data.source import PairSource, Source, decode_label
from deeplab_jax.data.threads import Progress, in_threads
from deeplab_jax.errors import UserError
from deeplab_jax.files import cache_folder, replacing
from deeplab_jax.labels import IGNORE_LABEL


class Drawn(NamedTuple):
    """An example by its index, and the class for which it was drawn."""

    example: int
    class_id: int


@dataclass(frozen=True)
class ClassSampling:
    """Draws a class, and then one of the images that show it, all equally likely.

    Rare class sampling of DAFormer (Hoyer et al. 2022, section 3.3).

    Attributes:
      probabilities: of each class.
      images: the indices of the images of each class.
      pixels: a crop should have more than half as many pixels of the class.
    """

    probabilities: tuple[float, ...]
    images: tuple[tuple[int, ...], ...]
    pixels: int

    @property
    def preferred(self) -> tuple[int, ...]:
        """The classes that are drawn more often than if all classes of the data were drawn alike."""
        alike = 1 / np.count_nonzero(self.probabilities)
        return tuple(np.flatnonzero(np.array(self.probabilities) > alike * (1 + 1e-9)).tolist())  # Up to rounding.

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Return a random example and its class."""
        class_id = int(rng.choice(len(self.probabilities), p=self.probabilities))
        images = self.images[class_id]
        return Drawn(images[int(rng.integers(len(images)))], class_id)

    def wanted(self, drawn: Drawn) -> tuple[int, float]:
        """Return the class for which an example was drawn, and a number of pixels: a crop should have more of it."""
        return drawn.class_id, self.pixels / 2


def sampling_by_class(counts: np.ndarray, *, temperature: float, pixels: int) -> ClassSampling:
    """Return how images are drawn.

    Args:
      counts: pixels of each class in each image, integers `[N, C]`.
      temperature: see `class_probabilities`.
      pixels: an image shows a class if it has more than this many of its pixels. If no image has, every image with any
        such pixel shows it.

    Raises:
      UserError: no image has a class.
    """
    if not counts.any():
        raise UserError(
            "config.data.class_temperature: no pixel of the masks has a class; set it to 0, or run check-data"
        )
    enough = np.where((counts > pixels).any(axis=0), counts > pixels, counts > 0)
    images = tuple(tuple(np.nonzero(column)[0].tolist()) for column in enough.T)
    return ClassSampling(tuple(class_probabilities(counts.sum(axis=0), temperature).tolist()), images, pixels)


def sampling_of(
    source: Source,
    *,
    class_temperature: float,
    class_pixels: int,
    skipped: Skipped | None = None,
    progress: Progress | None = None,
) -> ClassSampling:
    """Return how the images of a source are drawn: `sampling_by_class` of its `class_counts`."""
    counts = class_counts(source, skipped=skipped, progress=progress)
    return sampling_by_class(counts, temperature=class_temperature, pixels=class_pixels)


def class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """Return P(c) = exp((1 - f_c) / T) / Z with the frequency f_c of a class among the labelled pixels.

    Args:
      pixels: of each class, `[C]`. A class without pixels has probability 0.
      temperature: T, above 0. A small one prefers rare classes, a large one draws all classes alike.

    Returns:
      float64 `[C]`, whose sum is 1.
    """
    frequencies = pixels / pixels.sum()
    present = pixels > 0
    # The constant factor exp((1 - the smallest f) / T) is left out: it cancels, and could overflow.
    weights = np.exp((np.min(frequencies[present]) - frequencies) / temperature) * present
    return np.asarray(weights / weights.sum())


def count_classes(label: np.ndarray) -> np.ndarray:
    """Return the pixels of each class, int64 `[255]`, or `[K]` for labels `[H, W, K]`.

    Args:
      label: uint8 `[H, W]` class ids; or `[H, W, K]`, in which 1 says that a pixel has a class. 255 counts nowhere.
    """
    if label.ndim == 3:
        return np.count_nonzero(label == 1, axis=(0, 1))
    return np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]


def class_counts(source: Source, *, skipped: Skipped | None = None, progress: Progress | None = None) -> np.ndarray:
    """Return the pixels of each class in each example of a source, int64 `[N, C]`.

    All masks are read. Where masks are files, the counts are kept in the user's cache, until a mask changes.

    Args:
      source: any source.
      skipped: gets the examples that cannot be read, which then count as without classes.
      progress: called with (examples done, examples to do).

    Raises:
      UserError: an example cannot be read and nothing gets it, or too many were skipped, or palettes differ.
    """
    file = _cache_file(source)
    if file is not None and (known := _read_counts(file, (len(source), source.labels.num_classes))) is not None:
        return known
    failed = []

    def count(index: int) -> np.ndarray:
        try:
            return count_classes(_read_label(source, index))[: source.labels.num_classes]
        except PalettesDifferError:
            raise
        except UserError:
            if skipped is None:
                raise
            failed.append(index)
            return np.zeros(source.labels.num_classes, np.int64)

    rows = in_threads(count, range(len(source)), progress)
    if skipped is not None:
        for index in sorted(failed):
            skipped.add(index)
    counts = np.array(rows, np.int64).reshape(len(source), source.labels.num_classes)
    if file is not None and not failed:
        _write_counts(file, counts)
    return counts


def _read_label(source: Source, index: int) -> np.ndarray:
    if isinstance(source, PairSource):  # The image need not be read.
        mask = source.pairs[index].mask
        return decode_label(source.read_mask(mask), source.labels, name=mask)
    return source[index]["label"]


def _cache_file(source: Source) -> Path | None:
    """Return the file of a source's counts, whose name changes with the masks; None if these are not single files."""
    if not isinstance(source, PairSource):
        return None
    try:
        stats = [os.stat(pair.mask) for pair in source.pairs]
        if not all(stat.S_ISREG(one.st_mode) for one in stats):
            return None
        seen = [(one.st_size, one.st_mtime_ns) for one in stats]
        content = pickle.dumps((source.pairs, source.labels, source.read_mask, seen))
        return cache_folder("classes") / f"{hashlib.sha256(content).hexdigest()}.npy"
    except (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError):
        return None  # The last two, too: `read_mask` may be any function.


def _read_counts(file: Path, shape: Sequence[int]) -> np.ndarray | None:
    try:
        counts = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return counts if counts.shape == tuple(shape) and counts.dtype == np.int64 else None


def _write_counts(file: Path, counts: np.ndarray) -> None:
    """Keep counts for the next run; where that is not possible, it counts again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as fresh, fresh.open("wb") as stream:
            np.save(stream, counts)
    except OSError:
        pass
