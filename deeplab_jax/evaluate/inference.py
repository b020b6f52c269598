"""Inference on images of any size, by a protocol: whole or by sliding window, at several scales, mirrored, refined."""

from collections.abc import Iterable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.evaluate.protocol import Protocol, Size, View
from deeplab_jax.evaluate.results import count
from deeplab_jax.models.decision import THRESHOLD, by_pairs, decide, to_probabilities
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter, Variables
from deeplab_jax.ops import crf as ops_crf
from deeplab_jax.ops.crf import DenseCRF
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.ops.resize import resize_bilinear

Array = np.ndarray | jax.Array
Views = tuple[View, ...]
Number = float | jax.Array


def segment(
    model: Segmenter,
    variables: Variables,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: Size | None = None,
    crf: DenseCRF | bool = False,
    threshold: float = THRESHOLD,
    return_probabilities: bool = False,
) -> Any:
    """Return the class of each pixel of one image, run at its own size.

    Batch norm is folded on every call. For many images, call `fold_norm` once before; a second fold is free.

    Args:
      model, variables: from `load`.
      image: uint8 `[H, W, C]` of any size, RGB for most models.
      scales: scales of the image; the class probabilities are averaged.
      flip: whether to add the mirrored image.
      window: (height, width) of a sliding window for large images; None runs the image whole.
      crf: whether a fully connected CRF on the image refines the class probabilities; True takes the default
        parameters.
      threshold: for a model with sigmoids: an object is where its probability is above it.
      return_probabilities: whether to return the class probabilities as well.

    Returns:
      int32 `[H, W]` class ids. With `return_probabilities` also float32 `[H, W, num_classes]`, 0 to 1, which sum to 1
      at each pixel. For one logit that is `[H, W, 1]`, the probability of class 1. For several labels a pixel, both are
      `[H, W, num_classes]`: 0 or 1 for each label, and its probability.

    Raises:
      ValueError: the image is not uint8 `[H, W, C]` with the channels of the model.
      UserError: scales, a window or a threshold that make no sense.
    """
    protocol = Protocol(
        mode="exact", scales=tuple(scales), flip=flip, window=window or (), crf=crf, threshold=threshold
    )
    protocol.check_threshold(model)
    image, channels = np.asarray(image), len(model.preprocessing.mean)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise ValueError(f"image of shape {image.shape} and dtype {image.dtype}: expected uint8 [H, W, {channels}]")
    height, width = image.shape[:2]
    images, sizes = pad_images([image], protocol.run_size((height, width)))
    model, variables = fold_norm(model, variables)
    if not return_probabilities:
        classes = predict_classes(model, variables, images, sizes, protocol)
        return np.asarray(classes[0, :height, :width], np.int32)
    classes, probabilities = predict(model, variables, images, sizes, protocol)
    inside = (0, slice(height), slice(width))
    return np.asarray(classes[inside], np.int32), np.asarray(probabilities[inside], np.float32)


def predict(
    model: Segmenter, variables: Variables, images: Array, sizes: Array, protocol: Protocol
) -> tuple[jax.Array, jax.Array]:
    """Return class ids `[N, H, W]` and class probabilities `[N, H, W, K]`, averaged over all views and windows. The
    protocol's CRF refines both. Where a pixel has several labels, both are `[N, H, W, K]`; see `segment`.

    Args:
      model, variables: with batch norm folded, for speed.
      images: uint8 `[N, H, W, C]`, padded.
      sizes: their true sizes `[N, 2]`.
      protocol: its scales, flip, window, CRF and threshold.
    """
    if _sees_whole(protocol, images):
        classes, probabilities = _predict(model, variables, images, sizes, protocol.views, protocol.threshold)
    else:
        probabilities = _sliding_mean(model, variables, images, sizes, protocol)
        classes = decide(model, probabilities, protocol.threshold)
    if isinstance(protocol.crf, DenseCRF):
        probabilities = _refined(model, probabilities, images, sizes, protocol.crf)
        classes = decide(model, probabilities, protocol.threshold)
    return classes, probabilities


def predict_classes(
    model: Segmenter, variables: Variables, images: Array, sizes: Array, protocol: Protocol
) -> jax.Array:
    """Return the class ids of `predict`, with less memory if no CRF needs the probabilities."""
    if protocol.crf:
        return predict(model, variables, images, sizes, protocol)[0]
    if _sees_whole(protocol, images):
        return _classes(model, variables, images, sizes, protocol.views, protocol.threshold)
    return decide(model, _sliding_mean(model, variables, images, sizes, protocol), protocol.threshold)


def evaluate_batch(
    model: Segmenter, variables: Variables, images: Array, labels: Array, sizes: Array, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    """Predict a padded batch and compare it with its labels.

    Returns:
      Class ids `[N, H, W]` and the int32 counts of `results.count`; only these leave the device.
    """
    if not protocol.window and not protocol.crf:
        counting = protocol.views, protocol.thresholds
        classes, counts = _classes_and_counts(model, variables, images, labels, sizes, protocol.threshold, *counting)
    else:
        classes, probabilities = predict(model, variables, images, sizes, protocol)
        counts = count(model, jnp.asarray(labels), classes, probabilities, thresholds=protocol.thresholds)
    return np.asarray(classes), np.asarray(counts)


@partial(jax.jit, static_argnums=(0, 4))
def _classes(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views, threshold: Number
) -> jax.Array:
    return _predict(model, variables, images, sizes, views, threshold)[0]


@partial(jax.jit, static_argnums=(0, 6, 7))
def _classes_and_counts(
    model: Segmenter,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    threshold: Number,
    views: Views,
    thresholds: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
    classes, probabilities = _predict(model, variables, images, sizes, views, threshold)
    return classes, count(model, labels, classes, probabilities, thresholds=thresholds)


@partial(jax.jit, static_argnums=(0, 4))
def _predict(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views, threshold: Number
) -> tuple[jax.Array, jax.Array]:
    return classes_and_probabilities(model, variables, preprocess(model, images, sizes), views, threshold)


def classes_and_probabilities(
    model: Segmenter, variables: Variables, images: jax.Array, views: Views, threshold: Number = THRESHOLD
) -> tuple[jax.Array, jax.Array]:
    """Return class ids `[N, H, W]` and the mean of the views' class probabilities `[N, H, W, K]` of preprocessed
    images. A softmax's ids of a single view come from its logits, so under `jit` the ids alone need no softmax.
    """
    if len(views) == 1 and model.activation == "softmax":
        logits = view_logits(model, variables, images, views[0])
        return jnp.argmax(logits, axis=-1), jax.nn.softmax(logits)
    of_views = (to_probabilities(model, view_logits(model, variables, images, view)) for view in views)
    mean = reduce(jnp.add, of_views) / len(views)
    return decide(model, mean, threshold), mean


def view_logits(model: Segmenter, variables: Variables, images: jax.Array, view: View) -> jax.Array:
    """Return the logits `[N, H, W, K]` of one view of preprocessed images `[N, H, W, C]`, at the images' size.

    A side of n pixels becomes `(n - 1) * scale + 1`, as in the papers' counts of multiply-adds.
    """
    height, width = (max(SMALLEST_SIDE, scaled_side(side, view.scale)) for side in images.shape[1:3])
    seen = resize_bilinear(images, (height, width), align_corners=True)
    seen = seen[:, :, ::-1] if view.mirrored else seen
    logits: Any = model.apply(variables, seen, method="coarse_logits_of_whole")
    logits = logits[:, :, ::-1] if view.mirrored else logits
    return resize_bilinear(logits, images.shape[1:3], align_corners=model.settings.align_corners)


def preprocess(model: Segmenter, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return padded uint8 images `[N, H, W, C]` preprocessed; pixels outside their true sizes `[N, 2]` become exactly
    zero, the mean.
    """
    rows = jnp.arange(images.shape[1])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :] < sizes[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], model.preprocessing(images), 0.0)


def _refined(model: Segmenter, probabilities: jax.Array, images: Array, sizes: Array, crf: DenseCRF) -> jax.Array:
    """Refine the probabilities of each image at its true size; images of size 0, which fill up a batch,
    do not change. Every sigmoid has a CRF of its own, of two classes.
    """
    refined = []
    for index, (height, width) in enumerate(np.asarray(sizes)):
        own = probabilities[index]
        if height and width:
            mask = np.zeros(own.shape[:2], bool)
            mask[:height, :width] = True
            image = jnp.asarray(images[index])
            refine = partial(ops_crf.mean_field, image=image, mask=jnp.asarray(mask), crf=crf)
            own = refine(own) if model.activation == "softmax" else by_pairs(refine, own)
        refined.append(own)
    return jnp.stack(refined)


def _sees_whole(protocol: Protocol, images: Array) -> bool:
    return not protocol.window or (images.shape[1] <= protocol.window[0] and images.shape[2] <= protocol.window[1])


def _sliding_mean(model: Segmenter, variables: Variables, images: Array, sizes: Array, protocol: Protocol) -> jax.Array:
    """Return the mean probabilities of overlapping windows, `[N, H, W, K]`."""
    height, width = images.shape[1:3]
    window = (min(protocol.window[0], height), min(protocol.window[1], width))
    whole = jax.jit(preprocess, static_argnums=0)(model, images, sizes)
    total = jnp.zeros((images.shape[0], height, width, model.num_classes), jnp.float32)
    covered = np.zeros((1, height, width, 1), np.float32)
    for top in window_starts(height, window[0]):
        for left in window_starts(width, window[1]):
            corner = np.asarray([top, left], np.int32)
            total = _add_window(model, variables, total, whole, corner, protocol.views, window)
            covered[:, top : top + window[0], left : left + window[1]] += 1
    return total / covered


@partial(jax.jit, static_argnums=(0, 5, 6), donate_argnums=(2,))
def _add_window(
    model: Segmenter,
    variables: Variables,
    total: jax.Array,
    images: jax.Array,
    corner: jax.Array,
    views: Views,
    window: Size,
) -> jax.Array:
    start = (0, corner[0], corner[1], 0)
    seen = jax.lax.dynamic_slice(images, start, (images.shape[0], *window, images.shape[3]))
    _, probabilities = classes_and_probabilities(model, variables, seen, views)
    old = jax.lax.dynamic_slice(total, start, probabilities.shape)
    return jax.lax.dynamic_update_slice(total, old + probabilities, start)


def window_starts(size: int, window: int) -> list[int]:
    """Return the starts of windows that cover `size` pixels and overlap by at least a third of a window."""
    if size <= window:
        return [0]
    count = -(-(size - window) // max(1, window * 2 // 3)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def pad_images(images: Iterable[np.ndarray], size: Size, *, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images `[H, W, C]` stacked at the top left of `size`, and their true sizes int32 `[N, 2]`.

    With `count`, empty images of size 0 x 0 fill the batch up.
    """
    images = list(images)
    total = len(images) if count is None else count
    stacked = np.zeros((total, *size, images[0].shape[-1]), np.uint8)
    sizes = np.zeros((total, 2), np.int32)
    for index, image in enumerate(images):
        stacked[index, : image.shape[0], : image.shape[1]] = image
        sizes[index] = image.shape[:2]
    return stacked, sizes
