"""Comparison of an exported file, as its own runtime runs it, with our network."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.layers import LayerSettings, change_settings
from deeplab_jax.models.segmenter import Segmenter

# The largest difference of a logit, as a share of the largest logit, that a correct export may have.
LOGITS = {"float32": 1e-4, "float16": 2e-2, "int8": 0.15}
# The largest share of pixels with another class.
CLASSES = {"float32": 1e-3, "float16": 1e-2, "int8": 0.1}


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
    run: Callable[[np.ndarray], np.ndarray],
    reference: Callable[[np.ndarray], Any],
    inputs: list[np.ndarray],
    *,
    precision: str,
    runtime: str,
    bound: float | None = None,
) -> str:
    """Run an exported file and our own function on the same images, and return a sentence on how far they differ.

    Args:
      run: runs the file.
      reference: our network, from images to logits or class ids.
      inputs: batches of images.
      precision: of the file, a key of `LOGITS`.
      runtime: what runs it, for the sentence.
      bound: largest difference, as a share of the largest logit or of the pixels; None: that of `LOGITS` or `CLASSES`.

    Raises:
      UserError: they differ by more than the bound.
    """
    differences, largest, ids = [], 0.0, False
    for images in inputs:
        expected, found = np.asarray(reference(images)), run(images)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise UserError(
                f"{runtime} returns {found.dtype} of shape {found.shape}, the model {expected.dtype} of "
                f"{expected.shape}; nothing is written"
            )
        ids = expected.dtype.kind != "f"
        differences.append(np.mean(found != expected) if ids else np.abs(found - expected).max())
        largest = max(largest, float(np.abs(expected).max()))
    difference = float(np.max(differences))  # NaN stays NaN, and is above any bound.
    if ids:
        said, share, usual = f"{difference:.3%} of the pixels have another class", difference, CLASSES[precision]
    else:
        share, usual = difference / max(largest, 1e-30), LOGITS[precision]
        said = f"the logits differ by at most {difference:.2g}, which is {100 * share:.2g}% of the largest"
    bound = usual if bound is None else bound
    if not share <= bound:
        raise UserError(f"{runtime}: {said}, more than {bound:.2%} for {precision}; nothing is written")
    counts = ", ".join(str(len(images)) for images in inputs)
    limit = f" (bound {bound:.2%})" if bound <= 1 else ""
    return f"compared in {runtime}, on batches of {counts} images: {said}{limit}"
