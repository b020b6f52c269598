"""Inference on images of any size: whole or by sliding window, at several scales, mirrored, padded or exact.

Two modes, recorded in every protocol:

- `exact` runs the model on the image alone. Every image size is one compilation.
- `padded` is the authors' own: preprocessed images are padded with zeros (the mean pixel) at the bottom and right to
  one of a few sizes, and the logits are cut back. Padding changes the borders and image-level features a little;
  compilations are as few as the sizes. Sizes of k * 16 + 1 pixels put the corners of every feature map on pixels, which
  `align_corners=True` assumes.
"""

from collections.abc import Iterable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter, Variables
from deeplab_jax.ops import crf as ops_crf
from deeplab_jax.ops.crf import DenseCRF
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.ops.metrics import confusion_matrix
from deeplab_jax.ops.resize import resize_bilinear

Size = tuple[int, int]
Array = np.ndarray | jax.Array

PAD_STEP = 128
LONGEST_WHOLE = 2**14
"""Side of an image, in pixels, that `predict` runs whole: the matrix that resizes logits along it has
side² / output stride entries."""


def segment(
    model: Segmenter,
    variables: Variables,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: Size | None = None,
    crf: DenseCRF | bool = False,
) -> np.ndarray:
    """Segment one image, in `exact` mode.

    Batch norm is folded on every call; for many images, fold once before with `fold_norm`, whose second call is free.

    Args:
      model, variables: as from `load`.
      image: uint8 `[H, W, 3]`, RGB, of any size.
      scales: factors at which the image is seen; the class probabilities are averaged.
      flip: see the mirrored image as well.
      window: height and width of a sliding window for large images; None sees the image whole.
      crf: refine the class probabilities by a fully connected CRF on the image; True takes the default parameters.

    Returns:
      int32 `[H, W]` class ids.

    Raises:
      ValueError: the image is not uint8 `[H, W, 3]`.
      UserError: scales or a window that make no sense.
    """
    check_views(scales, window or ())
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image of shape {image.shape} and dtype {image.dtype}: expected uint8 [H, W, 3]")
    size = image.shape[:2]
    images, sizes = pad_images([image], (max(size[0], SMALLEST_SIDE), max(size[1], SMALLEST_SIDE)))
    model, variables = fold_norm(model, variables)
    classes = predict_classes(
        model,
        variables,
        images,
        sizes,
        scales=tuple(scales),
        flip=flip,
        window=None if window is None else (window[0], window[1]),
        crf=crf,
    )
    return np.asarray(classes[0, : size[0], : size[1]], np.int32)


def predict_classes(
    model: Segmenter,
    variables: Variables,
    images: Array,
    sizes: Array,
    *,
    scales: tuple[float, ...],
    flip: bool,
    window: Size | None,
    crf: DenseCRF | bool = False,
) -> jax.Array:
    """Predict class ids `[N, H, W]` for padded uint8 images `[N, H, W, 3]` whose true sizes are `[N, 2]`."""
    parameters = crf_parameters(crf)
    if parameters is not None:
        probabilities = predict_probabilities(model, variables, images, sizes, scales=scales, flip=flip, window=window)
        return _crf_classes(probabilities, images, sizes, parameters)
    if window is None or _holds(window, images):
        return _classes(model, variables, images, sizes, scales, flip)
    return jnp.argmax(_sliding_sums(model, variables, images, sizes, scales, flip, window), axis=-1)


def predict_probabilities(
    model: Segmenter,
    variables: Variables,
    images: Array,
    sizes: Array,
    *,
    scales: tuple[float, ...],
    flip: bool,
    window: Size | None,
) -> jax.Array:
    """Predict class probabilities `[N, H, W, K]`, averaged over all views and windows; see `predict_classes`."""
    if window is None or _holds(window, images):
        return _probabilities(model, variables, images, sizes, scales, flip)
    sums = _sliding_sums(model, variables, images, sizes, scales, flip, window)
    return sums / jnp.sum(sums, axis=-1, keepdims=True)


def crf_parameters(crf: DenseCRF | bool) -> DenseCRF | None:
    """Return the parameters that an option `crf` means: None for False, the defaults for True."""
    if isinstance(crf, DenseCRF):
        return crf
    return ops_crf.DEFAULT if crf else None


def _crf_classes(probabilities: jax.Array, images: Array, sizes: Array, crf: DenseCRF) -> jax.Array:
    """Refine probabilities image by image, each at its true size; images of size 0 fill a batch up and are left."""
    classes = []
    for index, (height, width) in enumerate(np.asarray(sizes)):
        refined = probabilities[index]
        if height and width:
            mask = np.zeros(refined.shape[:2], bool)
            mask[:height, :width] = True
            refined = ops_crf.mean_field(refined, jnp.asarray(images[index]), jnp.asarray(mask), crf=crf)
        classes.append(jnp.argmax(refined, axis=-1))
    return jnp.stack(classes)


def _holds(window: Size, images: Array) -> bool:
    return images.shape[1] <= window[0] and images.shape[2] <= window[1]


@partial(jax.jit, static_argnums=(0, 4, 5))
def _classes(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, scales: tuple[float, ...], flip: bool
) -> jax.Array:
    return jnp.argmax(
        class_scores(model, variables, preprocess(model, images, sizes), scales=scales, flip=flip), axis=-1
    )


@partial(jax.jit, static_argnums=(0, 4, 5))
def _probabilities(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, scales: tuple[float, ...], flip: bool
) -> jax.Array:
    logits = class_scores(model, variables, preprocess(model, images, sizes), scales=scales, flip=flip)
    return logits if len(scales) * (1 + flip) > 1 else jax.nn.softmax(logits)


def preprocess(model: Segmenter, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Preprocess padded uint8 images `[N, H, W, 3]`;
    pixels outside their true sizes `[N, 2]` become exactly zero, the mean.
    """
    rows = jnp.arange(images.shape[1])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :] < sizes[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], model.preprocessing(images), 0.0)


def class_scores(
    model: Segmenter, variables: Variables, images: jax.Array, *, scales: tuple[float, ...], flip: bool
) -> jax.Array:
    """Score classes `[N, H, W, K]` of preprocessed images: logits for one view, else the mean of the views' class
    probabilities.

    A side of n pixels becomes `(n - 1) * scale + 1`, as in the papers' counts of multiply-adds.
    """
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]

    def logits(scale: float, mirrored: bool) -> jax.Array:
        size = tuple(max(SMALLEST_SIDE, scaled_side(side, scale)) for side in images.shape[1:3])
        view = resize_bilinear(images, (size[0], size[1]), align_corners=True)
        view = view[:, :, ::-1] if mirrored else view
        logits: Any = model.apply(variables, view, method="coarse_logits_of_whole")
        logits = logits[:, :, ::-1] if mirrored else logits
        return resize_bilinear(logits, images.shape[1:3], align_corners=model.settings.align_corners)

    if len(views) == 1:
        return logits(*views[0])
    return reduce(jnp.add, (jax.nn.softmax(logits(*view)) for view in views)) / len(views)


@partial(jax.jit, static_argnums=(0, 5, 6, 7), donate_argnums=(2,))
def _add_window(
    model: Segmenter,
    variables: Variables,
    total: jax.Array,
    images: jax.Array,
    corner: jax.Array,
    scales: tuple[float, ...],
    flip: bool,
    window: Size,
) -> jax.Array:
    start = (0, corner[0], corner[1], 0)
    view = jax.lax.dynamic_slice(images, start, (images.shape[0], *window, images.shape[3]))
    probabilities = jax.nn.softmax(class_scores(model, variables, view, scales=scales, flip=flip))
    old = jax.lax.dynamic_slice(total, start, probabilities.shape)
    return jax.lax.dynamic_update_slice(total, old + probabilities, start)


def _sliding_sums(
    model: Segmenter,
    variables: Variables,
    images: Array,
    sizes: Array,
    scales: tuple[float, ...],
    flip: bool,
    window: Size,
) -> jax.Array:
    """Sum the probabilities of overlapping windows, `[N, H, W, K]`.

    Class ids need no division, since each pixel's classes share their count.
    """
    height, width = images.shape[1:3]
    window = (min(window[0], height), min(window[1], width))
    whole = jax.jit(preprocess, static_argnums=0)(model, images, sizes)
    total = jnp.zeros((images.shape[0], height, width, model.num_classes), jnp.float32)
    for top in window_starts(height, window[0]):
        for left in window_starts(width, window[1]):
            total = _add_window(model, variables, total, whole, np.asarray([top, left], np.int32), scales, flip, window)
    return total


def window_starts(size: int, window: int) -> list[int]:
    """Return where windows start so that they cover `size` pixels and overlap by at least a third of a window."""
    if size <= window:
        return [0]
    count = -(-(size - window) // max(1, window * 2 // 3)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


@partial(jax.jit, static_argnums=(0, 5, 6))
def _classes_and_counts(
    model: Segmenter,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    scales: tuple[float, ...],
    flip: bool,
) -> tuple[jax.Array, jax.Array]:
    classes = _classes(model, variables, images, sizes, scales, flip)
    return classes, confusion_matrix(labels, classes, num_classes=model.num_classes)


def evaluate_batch(
    model: Segmenter,
    variables: Variables,
    images: Array,
    labels: Array,
    sizes: Array,
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    window: Size | None = None,
    crf: DenseCRF | bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict a padded batch and count it against its labels.

    Returns:
      Class ids `[N, H, W]` and an int32 confusion matrix `[K, K]`; only these leave the device.
    """
    if window is None and not crf:
        classes, counts = _classes_and_counts(model, variables, images, labels, sizes, scales, flip)
    else:
        classes = predict_classes(model, variables, images, sizes, scales=scales, flip=flip, window=window, crf=crf)
        counts = confusion_matrix(jnp.asarray(labels), classes, num_classes=model.num_classes)
    return np.asarray(classes), np.asarray(counts)


def pad_images(images: Iterable[np.ndarray], size: Size, *, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Stack images at the top left of `size`, and return them with their true sizes int32 `[N, 2]`.

    With `count`, empty images of size 0 x 0 fill the batch up.
    """
    images = list(images)
    total = len(images) if count is None else count
    stacked = np.zeros((total, *size, 3), np.uint8)
    sizes = np.zeros((total, 2), np.int32)
    for index, image in enumerate(images):
        stacked[index, : image.shape[0], : image.shape[1]] = image
        sizes[index] = image.shape[:2]
    return stacked, sizes


def padded_size(size: Size, pad_to: Sequence[Size]) -> Size:
    """Return the smallest of the sizes `pad_to` that holds an image;
    where none does, the next multiple of 128, plus 1, of each side.
    """
    fitting = [(height, width) for height, width in pad_to if height >= size[0] and width >= size[1]]
    if fitting:
        return min(fitting, key=lambda s: s[0] * s[1])
    height, width = (-(-(side - 1) // PAD_STEP) * PAD_STEP + 1 for side in size)
    return max(height, PAD_STEP + 1), max(width, PAD_STEP + 1)


def check_views(scales: Sequence[float], window: Sequence[int]) -> None:
    """Raise a UserError where scales or the sides of a sliding window (empty: none) make no sense."""
    if not scales or min(scales) <= 0:
        raise UserError(f"scales={tuple(scales)}: give one or more positive factors")
    if len(window) not in (0, 2) or (window and min(window) < 1):
        raise UserError(f"window={tuple(window)}: give a height and a width in pixels, such as 513,513")


def check_whole(size: Size, window: Sequence[int], *, name: str) -> None:
    """Raise a UserError where an image has a side too long to run whole."""
    if max(size) > LONGEST_WHOLE and not window:
        raise UserError(
            f"{name}: an image of {size[1]}x{size[0]} pixels; a side of more than {LONGEST_WHOLE} does not run whole, "
            "give --window 513,513"
        )


def run_size(size: Size, *, mode: str, pad_to: Sequence[Size]) -> Size:
    """Return the size at which an image runs in a mode."""
    if mode == "exact":
        return max(size[0], SMALLEST_SIDE), max(size[1], SMALLEST_SIDE)
    return padded_size(size, pad_to)
