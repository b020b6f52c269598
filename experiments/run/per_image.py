"""What an evaluation counts on every image, kept beside the tables: `OUT/REGIME/per_image/TRAINING-EVALUATION.npz`.

From these, the report draws images anew (`experiments.report.intervals`). A file holds `names`, and for every image and
class the pixels that are right (`right`) and those that are labelled or predicted as it (`union`).
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

FOLDER = "per_image"
SMALLEST = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True)
class Counts:
    """The counts of N images.

    Attributes:
      names: of the images, in order.
      right, union: pixels, int64 `[N, K]`.
    """

    names: tuple[str, ...]
    right: np.ndarray
    union: np.ndarray

    def miou(self) -> float:
        """Return the mean IoU over all images, 0 to 1; NaN where no class occurs."""
        return float(nanmean(ratio(self.right.sum(0), self.union.sum(0))))


def counts_file(folder: Path, training: str, evaluation: str) -> Path:
    """Return where a regime's folder keeps the counts of an evaluation."""
    return folder / FOLDER / f"{training}-{evaluation}.npz"


def counts_of(every: Sequence[Mapping[str, Any]]) -> Counts:
    """Return the counts in `metrics.json`, entry `per_image.every`."""
    right, labelled, predicted = (
        np.array([one[key] for one in every], np.int64) for key in ("right", "labelled", "predicted")
    )
    return Counts(tuple(one["name"] for one in every), right, labelled + predicted - right)


def write_counts(file: Path, counts: Counts) -> None:
    """Write counts, whole or not at all, in as few bits as they need.

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
    """Return the counts in a file; None where there is no file, or none of an evaluation with this mean IoU.

    Results and counts are two files, so one of them may be of an older training; the mean IoU tells.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            right, union = held["right"].astype(np.int64), held["union"].astype(np.int64)
            found = Counts(tuple(map(str, held["names"])), right, union)
    except (OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    fits = right.ndim == 2 and right.shape == union.shape and len(right) == len(found.names)
    return found if fits and abs(found.miou() - miou) < 1e-6 else None
