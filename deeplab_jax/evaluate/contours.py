"""How well the outlines of classes are found: Boundary IoU (Cheng et al., CVPR 2021) and the boundary F-score (Csurka
et al., BMVC 2013; with another tolerance it is that of the DAVIS benchmark).

Pixels without a label are cut out of the prediction as well. So a prediction that is right wherever there is a label
has 1 in both.
"""

import math
from collections.abc import Iterator

import cv2
import numpy as np

from deeplab_jax.distributed import gathered, summed
from deeplab_jax.evaluate.boundary import boundary_distance
from deeplab_jax.evaluate.results import Results, mean_known, number
from deeplab_jax.labels import IGNORE_LABEL, LabelSet
from deeplab_jax.ops.metrics import nanmean, ratio

DILATION, TOLERANCE = 0.02, 0.0075  # Shares of an image's diagonal: the papers' widths of the two metrics.
FOLLOWING = ((0, 1), (1, 0), (1, 1))  # The neighbours to the right, below, and to the right below.


def inner_distance(classes: np.ndarray) -> np.ndarray:
    """Return how many steps each pixel is from the nearest pixel of another class or outside of the image, int32
    `[H, W]`, at least 1. Diagonal steps count as one.
    """
    height, width = classes.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    edge = np.minimum(np.minimum(rows + 1, height - rows), np.minimum(columns + 1, width - columns))
    return np.minimum(boundary_distance(classes), edge).astype(np.int32)


def inner_areas(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return for each class the pixels of both, of the label's and of the prediction's inner boundary, int64 `[3, K]`.

    The inner boundary of a class holds its pixels that are at most d steps from its outside; d is 2% of the image's
    diagonal, rounded, and at least 1. Outside is also what lies beyond the image.

    Args:
      label, predicted: class ids `[H, W]`, with the ignore label in the same places.
      num_classes: K.
    """
    steps = max(1, round(DILATION * math.hypot(*label.shape)))
    theirs, ours = (np.where(inner_distance(ids) <= steps, ids, IGNORE_LABEL) for ids in (label, predicted))
    both = np.where(theirs == ours, theirs, IGNORE_LABEL)
    counts = (np.bincount(ids.ravel(), minlength=IGNORE_LABEL + 1) for ids in (both, theirs, ours))
    return np.stack([of_ids[:num_classes] for of_ids in counts])


def contour(classes: np.ndarray, which: int) -> np.ndarray:
    """Return the contour of a class, bool `[H, W]`: pixels outside of it of which one of `FOLLOWING` is inside, and
    the other way round (DAVIS's `seg2bmap`). There is none towards pixels without a label.
    """
    height, width = classes.shape
    inside, known = classes == which, classes != IGNORE_LABEL
    found = np.zeros(classes.shape, bool)
    for down, right in FOLLOWING:
        here, there = np.s_[: height - down, : width - right], np.s_[down:, right:]
        found[here] |= (inside[here] != inside[there]) & known[here] & known[there]
    return found


def f_scores(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> Iterator[float | None]:
    """Yield the boundary F-score of each class in an image: the harmonic mean of two shares, that of its predicted
    contour near the label's, and that of the label's near the predicted one. Near is 0.75% of the image's
    diagonal, rounded up to pixels. It is 0 if only one of them has a contour, and None if none has.

    Args:
      label, predicted: class ids `[H, W]`, with the ignore label in the same places.
      num_classes: K.
    """
    most = math.ceil(TOLERANCE * math.hypot(*label.shape))
    for k in range(num_classes):
        theirs, ours = contour(label, k), contour(predicted, k)
        if not theirs.any() or not ours.any():
            yield 0.0 if theirs.any() or ours.any() else None
            continue
        precision, recall = (_near(one, other, most) for one, other in ((ours, theirs), (theirs, ours)))
        yield 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(contour: np.ndarray, other: np.ndarray, most: int) -> float:
    """Return the share of a contour's pixels that are at most so many pixels from another one."""
    distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(np.mean(distance[contour] < most + 1e-3))  # The squares are whole numbers; their roots are rounded.


class Contours:
    """Both metrics over images. The counts of the inner boundaries are summed; F-scores are means over images."""

    def __init__(self, num_classes: int) -> None:
        self._inner = np.zeros((3, num_classes), np.int64)
        self._scores: list[list[float | None]] = []

    def add(self, label: np.ndarray, predicted: np.ndarray) -> None:
        """Count an image by its labels and predicted class ids, integer `[H, W]`."""
        num_classes = self._inner.shape[1]
        label = np.where(label < num_classes, label, IGNORE_LABEL)
        predicted = np.where(label == IGNORE_LABEL, IGNORE_LABEL, predicted).astype(label.dtype)
        self._inner += inner_areas(label, predicted, num_classes)
        self._scores.append(list(f_scores(label, predicted, num_classes)))

    def results(self, labels: LabelSet) -> Results:
        """Return the entry in `metrics.json`, over the images of all processes; None where nothing has a boundary.

        `f1` is the mean over images of the mean over an image's classes. That of a class is the mean over images.
        """
        both, theirs, ours = summed(self._inner)
        ious = ratio(both, theirs + ours - both)
        scores = gathered(self._scores)
        of_images = [mean_known(row) for row in scores]
        return {
            "iou": number(nanmean(ious)),
            "f1": mean_known(of_images),
            "dilation": DILATION,
            "tolerance": TOLERANCE,
            "images": sum(score is not None for score in of_images),
            "per_class": [
                {"name": name, "iou": number(ious[k]), "f1": mean_known([row[k] for row in scores])}
                for k, name in enumerate(labels.names)
            ],
        }
