"""What each image contributes to the metrics: the mean IoU of single images, the worst of them, and how much the
metrics depend on which images there are (bootstrap).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deeplab_jax.data.large import row_parts
from deeplab_jax.distributed import gathered
from deeplab_jax.evaluate.results import Results, mean_known, number
from deeplab_jax.labels import IGNORE_LABEL, LabelSet
from deeplab_jax.ops.metrics import nanmean, ratio

WORST = 5
SEED, LEVEL = 0, 0.95
AT_ONCE = 100  # resamples

# The rows of an image's counts, int64 `[3, K]`: pixels that are right, labelled and predicted as each class.
RIGHT, LABELLED, PREDICTED = range(3)


def areas(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the counts of an image, int64 `[3, K]`, over its labelled pixels.

    Args:
      label: uint8 `[H, W]`; `[H, W, K]` of 0, 1 and 255 where a pixel can have several labels.
      predicted: class ids in the shape of the labels.
      num_classes: K.
    """
    found = np.zeros((3, num_classes), np.int64)
    for rows in row_parts(label.shape):
        found += _areas(label[rows], predicted[rows], num_classes)
    return found


def _areas(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    if label.ndim == 3:
        found, there = (predicted == 1) & (label <= 1), label == 1
        return np.stack([(found & there).sum((0, 1)), there.sum((0, 1)), found.sum((0, 1))])
    counted = (label < num_classes) & (label != IGNORE_LABEL)
    pairs = label[counted].astype(np.int64) * num_classes + predicted[counted]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each class, float64 `[..., K]`, from counts `[..., 3, K]`; NaN where a class does not occur."""
    right = counts[..., RIGHT, :]
    return ratio(right, counts[..., LABELLED, :] + counts[..., PREDICTED, :] - right)


class PerImage:
    """The counts of each image.

    Args:
      num_classes: K.
      bootstrap: number of resamples; 0: none.
      every: whether the results hold the counts of every image.
    """

    def __init__(self, num_classes: int, *, bootstrap: int = 0, every: bool = False) -> None:
        self._num_classes, self._bootstrap, self._every = num_classes, bootstrap, every
        self._rows: list[tuple[str, np.ndarray]] = []

    def add(self, name: str, label: np.ndarray, predicted: np.ndarray) -> None:
        """Count an image; see `areas`."""
        self._rows.append((name, areas(label, predicted, self._num_classes)))

    def results(self, labels: LabelSet) -> Results:
        """Return the entries in `metrics.json` over the images of all processes, which all must call this."""
        # One order, whichever process had an image.
        rows = sorted(map(tuple, gathered([(name, counts.tolist()) for name, counts in self._rows])))
        counts = np.array([row[1] for row in rows], np.int64).reshape(-1, 3, self._num_classes)
        mious = np.array([nanmean(of_classes) for of_classes in ious(counts)])
        known = sorted((miou, name) for miou, (name, _) in zip(mious.tolist(), rows, strict=True) if not np.isnan(miou))
        per_image: dict[str, Any] = {
            "miou": mean_known(miou for miou, _ in known),
            "images": len(known),
            "worst": [{"name": name, "miou": miou} for miou, name in known[:WORST]],
        }
        if self._every:
            per_image["every"] = [
                {"name": name, **dict(zip(("right", "labelled", "predicted"), of_image.tolist(), strict=True))}
                for (name, _), of_image in zip(rows, counts, strict=True)
            ]
        if not self._bootstrap:
            return {"per_image": per_image}
        return {"per_image": per_image, "bootstrap": intervals(counts, mious, labels, samples=self._bootstrap)}


def intervals(counts: np.ndarray, mious: np.ndarray, labels: LabelSet, *, samples: int) -> dict[str, Any]:
    """Return the entry `bootstrap` in `metrics.json`: the middle 95% of each metric over resampled images (percentile
    bootstrap; Efron and Tibshirani, 1993, ch. 13).

    A resample draws as many images as there are, with replacement, and sums their counts. A metric that is not defined
    in a resample, such as the IoU of a class that does not occur there, is left out of its interval.

    Args:
      counts: of each image, int64 `[N, 3, K]`.
      mious: mean IoU of each image, float64 `[N]`; NaN for images without a labelled pixel.
      labels: the K classes.
      samples: number of resamples.
    """
    images, known = len(counts), ~np.isnan(mious)
    found: dict[str, list[np.ndarray]] = {}
    # A product in floating point, which is fast and exact: no sum comes near 2**53 pixels.
    flat = np.concatenate(
        [counts.reshape(images, 3 * counts.shape[2]), known[:, None], np.where(known, mious, 0.0)[:, None]], axis=1
    )
    for drawn in resamples(images, samples):
        sums = drawn @ flat
        of_classes = sums[:, :-2].reshape(len(drawn), *counts.shape[1:])
        for name, values in _metrics_of(of_classes, several=labels.multilabel).items():
            found.setdefault(name, []).append(values)
        found.setdefault("image_miou", []).append(ratio(sums[:, -1], sums[:, -2]))
    whole = {name: np.concatenate(values) for name, values in found.items()}
    per_class = whole.pop("iou", np.empty((0, len(labels.names))))
    return {
        "samples": samples,
        "level": LEVEL,
        "seed": SEED,
        **{name: _interval(values) for name, values in whole.items()},
        "per_class": [
            {"name": name, "iou": _interval(values)} for name, values in zip(labels.names, per_class.T, strict=True)
        ],
    }


def resamples(images: int, samples: int) -> Iterator[np.ndarray]:
    """Yield how often each of some images is in each resample, float64 `[B, N]`, some resamples at a time."""
    rng = np.random.default_rng(SEED)
    for first in range(0, samples if images else 0, AT_ONCE):
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=min(AT_ONCE, samples - first))
        yield drawn.astype(np.float64)


def _metrics_of(counts: np.ndarray, *, several: bool) -> dict[str, np.ndarray]:
    """Return the metrics of each of B summed counts `[B, 3, K]`, `[B]`, and the IoU of each class, `[B, K]`."""
    right, labelled = counts[:, RIGHT], counts[:, LABELLED]
    of_classes = ious(counts)
    total = labelled.sum(-1)
    found = {
        "miou": np.array([nanmean(row) for row in of_classes]),
        "mean_accuracy": np.array([nanmean(row) for row in ratio(right, labelled)]),
        "frequency_weighted_iou": ratio((labelled * np.nan_to_num(of_classes)).sum(-1), total),
        "iou": of_classes,
    }
    # With several labels a pixel, a label that is rightly absent counts too, and these counts do not hold it.
    return found if several else {**found, "pixel_accuracy": ratio(right.sum(-1), total)}


def _interval(values: np.ndarray) -> list[float | None]:
    values = values[~np.isnan(values)]
    if not values.size:
        return [None, None]
    tail = 50 * (1 - LEVEL)
    return [number(float(end)) for end in np.percentile(values, [tail, 100 - tail])]
