"""The integer counts that an evaluation adds up, over batches, devices and processes."""

from typing import Any

import jax
import numpy as np

from deeplab_jax.evaluate.calibration import BINS, PARTS, count_confidences
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops import metrics

Counts = dict[str, Any]
Counted = tuple[tuple[float, ...], bool]


def counted(protocol: Protocol) -> Counted:
    """Return what a protocol counts: at which thresholds of sigmoids, and whether confidences too."""
    return protocol.thresholds, protocol.calibration


def count(
    model: Segmenter, labels: jax.Array, classes: jax.Array, probabilities: jax.Array, *, what: Counted
) -> Counts:
    """Return the counts of a batch, int32.

    `pixels` is a confusion matrix `[K, K]`, or those of sigmoids at every threshold
    (`ops.metrics.threshold_counts`); `confidences`, if they are counted, are from `calibration.count_confidences`.
    """
    thresholds, calibration = what
    confidences = {"confidences": count_confidences(model, labels, classes, probabilities)} if calibration else {}
    if model.activation == "softmax":
        return {"pixels": metrics.confusion_matrix(labels, classes, num_classes=model.num_classes), **confidences}
    return {"pixels": metrics.threshold_counts(labels, probabilities, thresholds=thresholds), **confidences}


def no_counts(model: Segmenter, what: Counted) -> Counts:
    """Return zeros, int64, to which counts are added."""
    thresholds, calibration = what
    own = model.num_classes
    shape = (own, own) if model.activation == "softmax" else (own, 2, len(thresholds) + 1)
    confidences = {"confidences": np.zeros((2, BINS * PARTS), np.int64)} if calibration else {}
    return {"pixels": np.zeros(shape, np.int64), **confidences}


def added(counts: Counts, more: Counts) -> Counts:
    """Return the sums, int64, of counts in the host's memory."""
    return {name: own + np.asarray(more[name]) for name, own in counts.items()}
