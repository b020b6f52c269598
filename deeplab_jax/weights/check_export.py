"""Comparison of an exported file, as its own runtime runs it, with our network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.decision import decide
from deeplab_jax.models.layers import change_settings
from deeplab_jax.models.segmenter import Segmenter

Run = Callable[[np.ndarray], np.ndarray]

# The largest difference of a logit, as a share of the largest logit, that a correct export may have.
LOGITS = {"float32": 1e-4, "float16": 2e-2}
# The largest share of pixels with another class.
CLASSES = {"float32": 1e-3, "float16": 1e-2}
# In int8 each layer rounds to one of 255 steps, so a few logits are far off. A class that leads by more than this share
# of the range of the logits, 13 steps, should stay.
CLEAR = 0.05
# The smallest share of these clear pixels that keep their class.
KEPT = 0.98
# The smallest share of clear pixels among all; of fewer, the comparison says nothing.
ENOUGH = 0.1


def in_float32(model: Segmenter, *, direct: bool = False) -> Segmenter:
    """Return a network whose activations are float32; `direct` computes each convolution as one, for other runtimes."""
    changed: Segmenter = change_settings(
        model, lambda own: replace(own, dtype="float32", lowering="direct" if direct else own.lowering)
    )
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


def _exact(reference: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    """Return our own results with products of float32, which accelerators round by default; a runtime on a CPU does
    not.
    """
    with jax.default_matmul_precision("highest"):
        return np.asarray(reference(images))


def check(
    run: Run, reference: Callable[[np.ndarray], Any], inputs: Sequence[np.ndarray], *, precision: str, runtime: str
) -> str:
    """Run an exported file and our own function on the same images, and return a sentence on how far they differ.

    For int8 there is `check_int8`.

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
        expected, found = _exact(reference, images), run(images)
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


def check_int8(
    run: Run,
    reference: Callable[[np.ndarray], Any],
    inputs: Sequence[np.ndarray],
    *,
    returns: np.dtype[Any],
    model: Segmenter,
    threshold: float,
    runtime: str,
    refuse: bool = True,
) -> str:
    """Run an int8 file and our own network on the same images, and return a sentence on the classes of their pixels.

    Args:
      run: runs the file, from images to logits or class ids.
      reference: our network, from images to logits.
      inputs: batches of images.
      returns: dtype of what the file should return.
      model: says how logits become classes.
      threshold: of sigmoids.
      runtime: what runs the file, for the sentence.
      refuse: whether other classes raise; False leaves them to the sentence.

    Raises:
      UserError: fewer than `KEPT` of the pixels that are clear by `CLEAR` have the same class, fewer than `ENOUGH` are
        clear, or the file returns arrays of another kind.
    """
    least = math.log(threshold / (1 - threshold))  # The logit of a sigmoid from which on the object is there.
    ids = returns.kind != "f"
    same, leads, lowest, highest = [], [], math.inf, -math.inf
    for images in inputs:
        logits, found = _exact(reference, images), run(images)
        expected = np.asarray(decide(model, logits, least))
        _check_kind(found, expected.astype(returns) if ids else logits, runtime)
        classes = found if ids else np.asarray(decide(model, found, least))
        same.append(((classes == expected) & np.isfinite(found).all()).ravel())
        leads.append(_lead(model, logits, least).ravel())
        lowest, highest = min(lowest, float(logits.min())), max(highest, float(logits.max()))
    alike = np.concatenate(same)
    clear = np.concatenate(leads) > CLEAR * (highest - lowest)
    kept = float(alike[clear].mean()) if clear.any() else 0.0
    said = (
        f"{alike.mean():.2%} of the pixels have the same class, and {kept:.2%} of the {clear.mean():.0%} whose class "
        f"leads by {CLEAR:.0%} of the range of the logits"
    )
    few = clear.mean() < ENOUGH
    if refuse and (few or kept < KEPT):
        why = f"these pixels are fewer than {ENOUGH:.0%}" if few else f"less than {KEPT:.0%}"
        raise UserError(
            f"{runtime}: {said}, {why}; nothing is written; calibrate with images such as it will see, or use "
            "--precision float16"
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
