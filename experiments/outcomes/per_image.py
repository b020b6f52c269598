"""The counts of an evaluation on every image. Their files are `OUT/REGIME/TABLE/TRAINING-EVALUATION.npz`.

`intervals` resamples images from these counts. A file holds the `names` of the images. For every image and class it
holds the number of pixels that are labelled and predicted as this class (`right`), and of those that are labelled or
predicted as it (`union`).
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.files import write_whole
from deeplab_jax.ops.metrics import nanmean, ratio

SMALLEST = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True)
class Counts:
    """The counts of N images.

    Attributes:
      names: names of the images, in order.
      right, union: numbers of pixels, int64 `[N, K]`.
    """

    names: tuple[str, ...]
    right: np.ndarray
    union: np.ndarray

    def miou(self) -> float:
        """Return the mean IoU over all images, 0 to 1; NaN where no class occurs."""
        return float(nanmean(ratio(self.right.sum(0), self.union.sum(0))))


def counts_file(folder: Path, training: str, evaluation: str) -> Path:
    """Return the file in a table's folder that has the counts of an evaluation."""
    return folder / f"{training}-{evaluation}.npz"


def counts_of(every: Sequence[Mapping[str, Any]]) -> Counts:
    """Return the counts from the entry `per_image.every` of `metrics.json`."""
    right, labelled, predicted = (
        np.array([one[key] for one in every], np.int64) for key in ("right", "labelled", "predicted")
    )
    return Counts(tuple(one["name"] for one in every), right, labelled + predicted - right)


def write_counts(file: Path, counts: Counts) -> None:
    """Write counts in the smallest type that holds them. The file is written whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    fitting = next((kind for kind in SMALLEST if counts.union.max(initial=0) <= np.iinfo(kind).max), np.int64)
    right, union = counts.right.astype(fitting), counts.union.astype(fitting)

    def write(fresh: Path) -> None:
        with fresh.open("wb") as stream:
            np.savez_compressed(stream, names=np.array(counts.names, np.str_), right=right, union=union)

    write_whole(file, write)


def read_counts(file: Path, miou: float) -> Counts | None:
    """Return the counts in a file, None where there is no file or where its counts give another mean IoU than `miou`.

    Results and counts are two files, so one of them may come from an older training. The mean IoU shows this.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            right, union = held["right"].astype(np.int64), held["union"].astype(np.int64)
            found = Counts(tuple(map(str, held["names"])), right, union)
    except (OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    fits = right.ndim == 2 and right.shape == union.shape and len(right) == len(found.names)
    return found if fits and abs(found.miou() - miou) < 1e-6 else None
