"""The metrics in `metrics.json` that the counts of pixels give."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deeplab_jax.errors import MOST_CHOICES, spell
from deeplab_jax.labels import PRESENCE, LabelSet
from deeplab_jax.ops import metrics

Results = dict[str, Any]


def summarize_confusion(confusion: np.ndarray, labels: LabelSet) -> Results:
    """Return the metrics of a confusion matrix `[K, K]` (rows are labels): ratios 0 to 1, None for a class that does
    not occur.
    """
    columns = {
        "iou": metrics.iou_per_class(confusion),
        "accuracy": metrics.accuracy_per_class(confusion),
        "precision": metrics.precision_per_class(confusion),
        "recall": metrics.accuracy_per_class(confusion),
        "dice": metrics.dice_per_class(confusion),
    }
    support = confusion.sum(axis=1)
    return {
        "miou": number(metrics.mean_iou(confusion)),
        "pixel_accuracy": number(metrics.pixel_accuracy(confusion)),
        "mean_accuracy": number(metrics.mean_accuracy(confusion)),
        "frequency_weighted_iou": number(metrics.frequency_weighted_iou(confusion)),
        "per_class": [
            {"name": name, **{key: number(column[k]) for key, column in columns.items()}, "support": int(support[k])}
            for k, name in enumerate(labels.names)
        ],
        "confusion_matrix": confusion.tolist(),
    }


def summarize_sigmoids(
    counts: np.ndarray, labels: LabelSet, *, thresholds: Sequence[float], threshold: float
) -> Results:
    """Return the metrics of sigmoids at a threshold, and how they change with it.

    One sigmoid has the metrics of the confusion matrix of its two classes. Where a pixel has several labels, each has a
    2x2 confusion matrix of its own. Its row says how well its presence is found. The mean IoU and the mean accuracy are
    those over the labels' presence, and the pixel accuracy is the share of all labels that are right.

    Args:
      counts: from `ops.metrics.threshold_counts`, `[K, 2, T + 1]`.
      labels: the two classes, or the K labels.
      thresholds: the T thresholds of the counts; `threshold` is one of them.
      threshold: at which the metrics are.
    """
    confusions = metrics.confusion_at(counts)
    at = confusions[:, list(thresholds).index(threshold)]
    names = labels.names[1:] if len(counts) == 1 else labels.names
    swept = [_swept(name, own, thresholds) for name, own in zip(names, confusions, strict=True)]
    if len(counts) == 1:
        return {**summarize_confusion(at[0], labels), "thresholds": swept}
    rows = [_presence(name, confusion) for name, confusion in zip(names, at, strict=True)]
    return {
        "miou": mean_known([row["iou"] for row in rows]),
        "pixel_accuracy": number(metrics.pixel_accuracy(at.sum(axis=0))),
        "mean_accuracy": mean_known([row["accuracy"] for row in rows]),
        "frequency_weighted_iou": number(
            metrics.weighted_iou(
                np.array([row["iou"] for row in rows], np.float64), np.array([row["support"] for row in rows])
            )
        ),
        "per_class": rows,
        "confusion_matrix": at.tolist(),
        "thresholds": swept,
    }


def unlabelled(results: Results) -> str:
    """Return a note on the classes of which the labels have no pixel, and "" if there are none."""
    images, rows = results["protocol"]["split"], results["per_class"]
    if not np.any(results["confusion_matrix"]):
        return f"every label of {images} is ignored, so nothing is measured; run check-data"
    absent = [f"{k} ({row['name']})" for k, row in enumerate(rows) if not row["support"]]
    if not absent:
        return ""
    named = spell(absent, limit=MOST_CHOICES)
    return f"{'class' if len(absent) == 1 else 'classes'} {named}: in no label of {images}; run check-data"


def _presence(name: str, confusion: np.ndarray) -> Results:
    """Return the row of a label from the 2x2 confusion matrix of its absence and presence."""
    row: Results = summarize_confusion(confusion, PRESENCE)["per_class"][1]
    return {**row, "name": name}


def _swept(name: str, confusions: np.ndarray, thresholds: Sequence[float]) -> Results:
    """Return the IoU, precision, recall and F1 of an object at each threshold, and the row of the best IoU."""
    rows: list[Results] = [
        {
            "threshold": threshold,
            "iou": number(metrics.iou_per_class(confusion)[1]),
            "precision": number(metrics.precision_per_class(confusion)[1]),
            "recall": number(metrics.accuracy_per_class(confusion)[1]),
            "f1": number(metrics.dice_per_class(confusion)[1]),
        }
        for threshold, confusion in zip(thresholds, confusions, strict=True)
    ]
    # If several are equal, the threshold nearest to 0.5.
    best = max(rows, key=lambda row: (row["iou"] or 0.0, -abs(row["threshold"] - 0.5)))
    return {"name": name, "table": rows, "best": best}


def mean_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of those that are known, the same in any order; None if none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def number(value: float) -> float | None:
    """Return a float, or None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)
