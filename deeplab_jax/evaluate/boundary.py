"""Trimaps: how good a segmentation is within w pixels of an object's boundary (Kohli et al., IJCV 2009; DeepLabv3+,
Fig. 5).

The band of width w holds the labelled pixels that are at most w steps from a boundary; diagonal steps count too. The
evaluation script of DeepLab's authors (MyVOCevalsegBoundary.m) dilates the void pixels of the label map by a square of
side 2w + 1 and removes the void pixels themselves. In VOC's annotation a strip of void pixels follows every object's
outline. In other data void pixels lie elsewhere. There a boundary is where a pixel and one of its eight neighbours
differ in label.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from deeplab_jax.distributed import summed
from deeplab_jax.evaluate.protocol import Around
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops import metrics

FAR = np.iinfo(np.int32).max


def boundary_distance(label: np.ndarray, *, around: Around = "labels") -> np.ndarray:
    """Return the distance of each pixel from a boundary in steps; diagonal steps count too.

    Args:
      label: integer `[H, W]`.
      around: "void": distance from the nearest pixel of the ignore label (0 for such a pixel); "labels": distance from
        the nearest pixel of another label, so at least 1. The ignore label counts as a label then.

    Returns:
      int32 `[H, W]`; `FAR` if the map has no boundary.
    """
    if around == "void":
        return _steps_to(label == IGNORE_LABEL)
    smallest, largest = (
        morph(label.astype(np.uint16), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
        for morph in (cv2.erode, cv2.dilate)
    )
    # A pixel with another label beside it is one step nearer than the nearest pixel of another label.
    steps = _steps_to(smallest != largest)
    return np.where(steps == FAR, FAR, steps + 1)


def _steps_to(marked: np.ndarray) -> np.ndarray:
    if not marked.any():
        return np.full(marked.shape, FAR, np.int32)
    return cv2.distanceTransform((~marked).astype(np.uint8), cv2.DIST_C, 3).astype(np.int32)


class Trimap:
    """Confusion matrices of bands of several widths, summed over images.

    Args:
      widths: in pixels, from 1, all different.
      num_classes: K.
      around: see `boundary_distance`.
    """

    def __init__(self, widths: Sequence[int], *, num_classes: int, around: str = "labels") -> None:
        self._widths = sorted(widths)
        self._around: Any = around
        # For each band, the pixels that are not in the next narrower one.
        self._rings = np.zeros((len(widths), num_classes, num_classes), np.int64)

    def add(self, label: np.ndarray, predicted: np.ndarray) -> None:
        """Count an image by its labels and predicted class ids, integer `[H, W]`."""
        distance = boundary_distance(label, around=self._around)
        ring = np.searchsorted(self._widths, distance)
        counted = (ring < len(self._widths)) & (label != IGNORE_LABEL)
        cells = np.ravel_multi_index((ring[counted], label[counted], predicted[counted]), self._rings.shape)
        self._rings += np.bincount(cells, minlength=self._rings.size).reshape(self._rings.shape)

    def results(self) -> dict[str, Any]:
        """Return the entry in `metrics.json`: for each width the mean IoU (None if the band is empty) and the number of
        pixels, over the images of all processes.
        """
        bands = []
        for width, confusion in zip(self._widths, np.cumsum(summed(self._rings), axis=0), strict=True):
            miou = metrics.mean_iou(confusion)
            bands.append({"width": width, "miou": None if np.isnan(miou) else miou, "pixels": int(confusion.sum())})
        return {"around": self._around, "bands": bands}
