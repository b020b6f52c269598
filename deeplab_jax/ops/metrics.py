"""Segmentation metrics from an integer confusion matrix. Counts add up over batches and devices; divisions come once,
at the end.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(labels: jax.Array, predictions: jax.Array, *, num_classes: int) -> jax.Array:
    """Return the number of pixels for each (labelled class, predicted class).

    Args:
      labels: integer `[...]`; values outside 0 to `num_classes - 1`, as the ignore label usually is, are not counted.
      predictions: integer `[...]`, class ids 0 to `num_classes - 1`.
      num_classes: K.

    Returns:
      int32 `[K, K]`, rows are labels. Exact up to 2**31 pixels per call; sum over calls in int64 on the host.
    """
    labels = labels.astype(jnp.int32).ravel()
    predictions = predictions.astype(jnp.int32).ravel()
    valid = (labels >= 0) & (labels < num_classes)
    cells = jnp.where(valid, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[cells].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def threshold_counts(labels: jax.Array, probabilities: jax.Array, *, thresholds: Sequence[float]) -> jax.Array:
    """Return the number of labels for each (sigmoid, label 0 or 1, number of thresholds below the probability).

    Args:
      labels: integer `[...]` for one sigmoid, or `[..., K]`; values other than 0 and 1 are not counted.
      probabilities: float `[..., K]`; the number of sigmoids, K, is 1 for labels without their axis.
      thresholds: T ascending numbers.

    Returns:
      int32 `[K, 2, T + 1]`. Exact up to 2**31 pixels per call; sum over calls in int64 on the host. `confusion_at`
      makes confusion matrices of it.
    """
    count, bins = probabilities.shape[-1], len(thresholds) + 1
    labels = labels.astype(jnp.int32).reshape(probabilities.shape)
    valid = (labels == 0) | (labels == 1)
    below = jnp.searchsorted(jnp.asarray(thresholds, jnp.float32), probabilities, side="left")
    pair = 2 * jax.lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1) + labels
    cells = jnp.where(valid, pair * bins + below, 2 * count * bins)
    counts = jnp.zeros(2 * count * bins + 1, jnp.int32).at[cells.ravel()].add(1)
    return counts[:-1].reshape(count, 2, bins)


def confusion_at(counts: np.ndarray) -> np.ndarray:
    """Return the 2x2 confusion matrices, int64 `[K, T, 2, 2]` with rows of labels, of each sigmoid at each threshold.

    Args:
      counts: from `threshold_counts`, `[K, 2, T + 1]`. A probability above a threshold predicts class 1.
    """
    counts = np.asarray(counts, np.int64)
    at_least = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    positive = at_least[..., 1:]
    return np.moveaxis(np.stack([at_least[..., :1] - positive, positive], axis=-1), 1, 2)


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class, float64 `[K]`; NaN for a class in neither labels nor
    predictions.
    """
    confusion = np.asarray(confusion, np.int64)
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return ratio(intersection, union)


def accuracy_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return the share of each class's labelled pixels that were predicted right (recall), float64 `[K]`; NaN for a
    class without labels.
    """
    confusion = np.asarray(confusion, np.int64)
    return ratio(np.diag(confusion), confusion.sum(1))


def precision_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return the share of each class's predicted pixels that have its label (precision), float64 `[K]`; NaN for a class
    that is not predicted.
    """
    confusion = np.asarray(confusion, np.int64)
    return ratio(np.diag(confusion), confusion.sum(0))


def dice_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return the Dice coefficient of each class, float64 `[K]`: twice the intersection over the sum of both areas, or
    the harmonic mean of precision and recall; NaN for a class in neither labels nor predictions.
    """
    confusion = np.asarray(confusion, np.int64)
    return ratio(2 * np.diag(confusion), confusion.sum(0) + confusion.sum(1))


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in labels or predictions; NaN if none does."""
    return nanmean(iou_per_class(confusion))


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """Return the mean of the classes' IoU, weighted by their labelled pixels (Long et al., 2015, sec. 5); NaN without a
    labelled pixel.
    """
    return weighted_iou(iou_per_class(confusion), np.asarray(confusion, np.int64).sum(1))


def weighted_iou(ious: np.ndarray, support: np.ndarray) -> float:
    """Return the mean of IoUs `[K]`, weighted by the pixels that have each label; NaN if none has one."""
    total = support.sum()
    return float((support * np.nan_to_num(ious)).sum() / total) if total else float("nan")


def mean_accuracy(confusion: np.ndarray) -> float:
    """Return the mean class accuracy over the classes that occur in the labels; NaN if none does."""
    return nanmean(accuracy_per_class(confusion))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Return the share of labelled pixels that were predicted right; NaN if there is none."""
    confusion = np.asarray(confusion, np.int64)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the quotients of two arrays of one shape, float64; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def nanmean(values: np.ndarray) -> float:
    """Return the mean of the values other than NaN; NaN if there is none."""
    return float(np.nanmean(values)) if np.any(~np.isnan(values)) else float("nan")
