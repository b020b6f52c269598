"""Whether probabilities mean what they say: the reliability diagram and the expected calibration error (Guo et al.,
ICML 2017, sec. 2).

Confidences are counted in narrow parts of each bin. So all counts are integers, which add up exactly, and the mean
confidence of a bin is known to half a part, 1 / 30,000.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.evaluate.results import Results, number
from deeplab_jax.files import write_whole
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.metrics import ratio

BINS = 15
PARTS = 1000  # of each bin
PICTURE = "calibration.png"
Table = Sequence[dict[str, Any]]


def count_confidences(model: Segmenter, labels: jax.Array, classes: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Return the number of labelled pixels, wrong and right, in each part of each bin, int32 `[2, BINS * PARTS]`.

    The confidence of a softmax is the probability of its class, and its class is right or wrong. That of a sigmoid is
    the probability itself, which is right where the object is; where a pixel has several labels, each counts.

    Args:
      model: says which of them.
      labels: integer `[...]`, or `[..., K]` for several labels a pixel; other values than classes are not counted.
      classes: `[...]`.
      probabilities: `[..., K]`.
    """
    if model.activation == "softmax":
        labels = labels.astype(jnp.int32)
        confidence = jnp.take_along_axis(probabilities, classes[..., None].astype(jnp.int32), axis=-1)[..., 0]
        right, most = labels == classes, model.num_classes
    else:
        labels = labels.astype(jnp.int32).reshape(probabilities.shape)
        confidence, right, most = probabilities, labels == 1, 2
    counted = (labels >= 0) & (labels < most) & (labels != IGNORE_LABEL)
    total = BINS * PARTS
    # A bin holds its upper end, as in the paper.
    part = jnp.clip(jnp.ceil(confidence * total).astype(jnp.int32) - 1, 0, total - 1)
    cells = jnp.where(counted, right * total + part, 2 * total)
    return jnp.zeros(2 * total + 1, jnp.int32).at[cells.ravel()].add(1)[:-1].reshape(2, total)


def summarize_confidences(counts: np.ndarray) -> Results:
    """Return the entry in `metrics.json` from the counts of `count_confidences`, int64.

    `ece` is the mean over pixels of the gap between a bin's mean confidence and its accuracy, `mce` the largest gap.
    Both are None without a labelled pixel.
    """
    of_parts = np.asarray(counts, np.int64).reshape(2, BINS, PARTS)
    middles = (np.arange(BINS * PARTS).reshape(BINS, PARTS) + 0.5) / (BINS * PARTS)
    pixels = of_parts.sum((0, 2))
    accuracy = ratio(of_parts[1].sum(1), pixels)
    confidence = ratio((of_parts.sum(0) * middles).sum(1), pixels)
    gaps = np.abs(np.nan_to_num(accuracy - confidence))
    found = pixels.any()
    return {
        "ece": float((pixels * gaps).sum() / pixels.sum()) if found else None,
        "mce": float(gaps.max()) if found else None,
        "table": [
            {
                "above": k / BINS,
                "up_to": (k + 1) / BINS,
                "pixels": int(pixels[k]),
                "confidence": number(confidence[k]),
                "accuracy": number(accuracy[k]),
            }
            for k in range(BINS)
        ],
    }


def draw(calibration: Results, file: Path) -> None:
    """Write the reliability diagram of an entry `calibration`, and how many pixels each bin has, as PNG.

    Raises:
      UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    table = calibration["table"]
    figure = Figure(figsize=(5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges, width = [row["above"] for row in table], 1 / BINS
    above.bar(edges, [row["accuracy"] or 0 for row in table], width, align="edge", color="#4477aa", edgecolor="white")
    above.plot([0, 1], [0, 1], "--", color="#888888", linewidth=1)
    known = [row for row in table if row["pixels"]]
    above.plot([row["confidence"] for row in known], [row["accuracy"] for row in known], "o", color="#222222", ms=4)
    ece = calibration["ece"]
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    above.set_title("no labelled pixel" if ece is None else f"expected calibration error {ece:.4f}", fontsize=10)
    total = max(1, sum(row["pixels"] for row in table))
    below.bar(edges, [row["pixels"] / total for row in table], width, align="edge", color="#bbbbbb", edgecolor="white")
    below.set(xlabel="probability", ylabel="share of pixels")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    write_whole(file, lambda fresh: figure.savefig(fresh, dpi=120, format="png"))
