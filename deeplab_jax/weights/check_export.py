"""Comparison of an exported file, as its own runtime runs it, with our network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.decision import decide
from deeplab_jax.models.layers import LayerSettings, change_settings
from deeplab_jax.models.segmenter import Segmenter

Run = Callable[[np.ndarray], np.ndarray]

# The largest difference of a logit, as a share of the largest logit, that a correct export may have.
LOGITS = {"float32": 1e-4, "float16": 2e-2}
# The largest share of pixels with another class.
CLASSES = {"float32": 1e-3, "float16": 1e-2}
# In int8 each layer rounds to one of 255 steps, and a few logits differ by a quarter of the largest. In networks
# trained on CamVid, 99% of them differ by less than this share of their range, 13 steps. A class that leads by more
# should stay.
CLEAR = 0.05
# The smallest share of these pixels that keep their class. These networks keep 99.6% or more. With logits that are
# moved by 8 pixels, two of three keep 95%.
KEPT = 0.98


def in_float32(model: Segmenter, *, direct: bool = False) -> Segmenter:
    """Return a network whose activations are float32; `direct` computes each convolution as one, for other runtimes."""

    def change(settings: LayerSettings) -> LayerSettings:
        return replace(settings, dtype="float32", lowering="direct" if direct else settings.lowering)

    changed: Segmenter = change_settings(model, change)
    return changed


def images_like(
    images: jax.ShapeDtypeStruct, model: Segmenter, *, batch: int, preprocess: bool, seed: int = 0
) -> np.ndarray:
    """Return random images of the kind that the exported function takes: as stored, or preprocessed."""
    random = np.random.default_rng(seed)
    shape = (batch, *images.shape[1:])
    if images.dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    if preprocess:
        low, high = model.preprocessing.stored_range
        return random.uniform(low, high, shape).astype(np.float32)
    return random.normal(size=shape).astype(np.float32)


def check(
    run: Run, reference: Callable[[np.ndarray], Any], inputs: Sequence[np.ndarray], *, precision: str, runtime: str
) -> str:
    """Run an exported file and our own function on the same images, and return a sentence on how far they differ.

    For int8 there is `check_classes`.

    Args:
      run: runs the file.
      reference: our network, from images to logits or class ids.
      inputs: batches of images.
      precision: of the file, a key of `LOGITS`.
      runtime: what runs it, for the sentence.

    Raises:
      UserError: they differ by more than the bound of `LOGITS` or `CLASSES`.
    """
    differences, largest, ids = [], 0.0, False
    for images in inputs:
        expected, found = np.asarray(reference(images)), run(images)
        _check_kind(found, expected, runtime)
        ids = expected.dtype.kind != "f"
        differences.append(np.mean(found != expected) if ids else np.abs(found - expected).max())
        largest = max(largest, float(np.abs(expected).max()))
    difference = float(np.max(differences))  # NaN stays NaN, and is above any bound.
    if ids:
        said, share, bound = f"{difference:.3%} of the pixels have another class", difference, CLASSES[precision]
    else:
        share, bound = difference / max(largest, 1e-30), LOGITS[precision]
        said = f"the logits differ by at most {difference:.2g}, which is {100 * share:.2g}% of the largest"
    if not share <= bound:
        raise UserError(f"{runtime}: {said}, more than {bound:.2%} for {precision}; nothing is written")
    return f"{_compared(runtime, inputs)}: {said} (bound {bound:.2%})"


def check_classes(
    run: Run,
    reference: Callable[[np.ndarray], Any],
    inputs: Sequence[np.ndarray],
    *,
    model: Segmenter,
    threshold: float,
    runtime: str,
) -> str:
    """Run an int8 file and our own network on the same images, and return a sentence on the classes of their pixels.

    Args:
      run: runs the file, from images to logits or class ids.
      reference: our network, from images to logits.
      inputs: batches of images.
      model: says how logits become classes.
      threshold: of sigmoids.
      runtime: what runs the file, for the sentence.

    Raises:
      UserError: fewer than `KEPT` of the pixels that are clear by `CLEAR` have the same class, or none is clear.
    """
    least = math.log(threshold / (1 - threshold))  # The logit of a sigmoid from which on the object is there.
    pairs = [(np.asarray(reference(images)), run(images)) for images in inputs]
    lowest, highest = min(logits.min() for logits, _ in pairs), max(logits.max() for logits, _ in pairs)
    same, clear = [], []
    for logits, found in pairs:
        expected = np.asarray(decide(model, logits, least))
        in_logits = found.dtype.kind == "f"
        _check_kind(found, logits if in_logits else expected.astype(found.dtype), runtime)
        usable = np.isfinite(found).all()
        found = np.asarray(decide(model, found, least)) if in_logits else found
        same.append((found == expected) & usable)
        clear.append(_lead(model, logits, least) > CLEAR * (highest - lowest))
    alike, sure = np.concatenate(same), np.concatenate(clear)
    if not sure.any():
        raise UserError(
            f"{runtime}: no pixel's class leads by {CLEAR:.0%} of the range of the logits, so there is nothing to "
            "compare; calibrate with images such as it will see"
        )
    kept = float(alike[sure].mean())
    said = (
        f"{alike.mean():.2%} of the pixels have the same class, and {kept:.2%} of the {sure.mean():.0%} whose class "
        f"leads by {CLEAR:.0%} of the range of the logits"
    )
    if kept < KEPT:
        raise UserError(
            f"{runtime}: {said}, less than {KEPT:.0%}; nothing is written; calibrate with more images such as it will "
            "see"
        )
    return f"{_compared(runtime, inputs)}: {said} (bound {KEPT:.0%})"


def _lead(model: Segmenter, logits: np.ndarray, least: float) -> np.ndarray:
    """Return by how much the largest logit leads the second, or how far a sigmoid's is from its threshold `least`."""
    if model.activation == "softmax":
        two = np.partition(logits, -2, axis=-1)[..., -2:]
        return np.asarray(two[..., 1] - two[..., 0])
    away = np.abs(logits - least)
    return np.asarray(away if model.multilabel else away[..., 0])


def _check_kind(found: np.ndarray, expected: np.ndarray, runtime: str) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise UserError(
            f"{runtime} returns {found.dtype} of shape {found.shape}, the model {expected.dtype} of {expected.shape}; "
            "nothing is written"
        )


def _compared(runtime: str, inputs: Sequence[np.ndarray]) -> str:
    return f"compared in {runtime}, on batches of {', '.join(str(len(images)) for images in inputs)} images"
