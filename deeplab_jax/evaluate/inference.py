"""Inference on images of any size, by a protocol: whole or by sliding window, at several scales, mirrored, refined."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.evaluate.protocol import Protocol, Size, View
from deeplab_jax.evaluate.windows import OVERLAP, Tile, mean_of_windows
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter, Variables
from deeplab_jax.ops import crf as ops_crf
from deeplab_jax.ops.crf import DenseCRF
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.ops.metrics import confusion_matrix
from deeplab_jax.ops.resize import resize_bilinear

Array = np.ndarray | jax.Array
Views = tuple[View, ...]
COUNTED_AT_ONCE = 2**20  # pixels
Place = Callable[..., Sequence[Array]]


def unplaced(*arrays: Array) -> Sequence[Array]:
    """Return arrays as they are: the first device takes them when it needs them."""
    return arrays


def segment(
    model: Segmenter,
    variables: Variables,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: Size | None = None,
    overlap: float = OVERLAP,
    blend: str = "uniform",
    crf: DenseCRF | bool = False,
    return_probabilities: bool = False,
) -> Any:
    """Return the class of each pixel of one image, run at its own size.

    Batch norm is folded on every call. For many images, call `fold_norm` once before; a second fold is free.

    Args:
      model, variables: from `load`.
      image: `[H, W, C]` of any size, RGB for most models: uint8 or uint16 as stored, or float32 from 0 to 255. uint16
        values become such floats by the model's `preprocessing.stored_range`, or else by their type's full range.
      scales: scales of the image; the class probabilities are averaged.
      flip: whether to add the mirrored image.
      window: (height, width) of a sliding window for large images; None runs the image whole.
      overlap, blend: of the windows; see `Protocol`.
      crf: whether a fully connected CRF on the image refines the class probabilities; True takes the default
        parameters.
      return_probabilities: whether to return the class probabilities as well. They need 4 bytes for each pixel and
        class, whatever the window is; the ids alone need the memory of some windows.

    Returns:
      int32 `[H, W]` class ids. With `return_probabilities` also float32 `[H, W, num_classes]`, 0 to 1, which sum to 1
      at each pixel.

    Raises:
      ValueError: the image is no uint8, uint16 or float32 `[H, W, C]` with the channels of the model.
      UserError: scales or a window that make no sense, or a CRF for a model of other than three channels.
    """
    protocol = Protocol(
        mode="exact", scales=tuple(scales), flip=flip, window=window or (), overlap=overlap, blend=blend, crf=crf
    )
    model, image = protocol.at_stride(model), np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16, np.float32) or image.ndim != 3 or image.shape[-1] != model.in_channels:
        raise ValueError(
            f"image of shape {image.shape} and dtype {image.dtype}: expected [H, W, {model.in_channels}] of uint8, "
            "uint16 or float32"
        )
    image = model.preprocessing.levels(image)
    height, width = image.shape[:2]
    model, variables = fold_norm(model, variables)
    if not return_probabilities and not protocol.crf and protocol.slides(protocol.run_size((height, width))):
        return predict_large(model, variables, image, protocol).astype(np.int32)
    images, sizes = pad_images([image], protocol.run_size((height, width)))
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
    protocol's CRF refines both.

    Args:
      model, variables: with batch norm folded, for speed.
      images: uint8 or float32 `[N, H, W, C]`, 0 to 255, padded.
      sizes: their true sizes `[N, 2]`.
      protocol: its scales, flip, window and CRF.
    """
    if protocol.slides(padded_to(images)):
        probabilities = jnp.asarray(_whole_means(model, variables, np.asarray(images), np.asarray(sizes), protocol))
        classes = jnp.argmax(probabilities, axis=-1)
    else:
        classes, probabilities = _predict(model, variables, images, sizes, protocol.views)
    if isinstance(protocol.crf, DenseCRF):
        probabilities = _refined(probabilities, images, sizes, protocol.crf)
        classes = jnp.argmax(probabilities, axis=-1)
    return classes, probabilities


def predict_classes(
    model: Segmenter, variables: Variables, images: Array, sizes: Array, protocol: Protocol
) -> jax.Array:
    """Return the class ids of `predict`, with less memory if no CRF needs the probabilities."""
    if protocol.crf:
        return predict(model, variables, images, sizes, protocol)[0]
    if not protocol.slides(padded_to(images)):
        return _classes(model, variables, images, sizes, protocol.views)
    classes = np.zeros(images.shape[:3], np.int32)
    for index, (height, width) in enumerate(np.asarray(sizes)):
        if height and width:
            own = np.asarray(images[index])[:height, :width]
            classes[index, :height, :width] = predict_large(model, variables, own, protocol, size=padded_to(images))
    return jnp.asarray(classes)


def predict_large(
    model: Segmenter,
    variables: Variables,
    image: np.ndarray,
    protocol: Protocol,
    *,
    size: Size | None = None,
    batch_size: int = 1,
    place: Place = unplaced,
) -> np.ndarray:
    """Return the class of each pixel of an image that is larger than the window, as from `predict_classes`. Beside the
    image and the ids, it takes the memory of some windows.

    Args:
      model, variables: with batch norm folded, for speed.
      image: uint8 `[H, W, C]`; an array, or anything that gives one for a slice, such as a `numpy.memmap`.
      protocol: its scales, flip and windows; without a CRF, which needs the whole image.
      size: (height, width) over which the windows are spread; None: the protocol's for such an image.
      batch_size: number of windows that run together.
      place: puts windows and their sizes on the devices; see `evaluator.split_over`.

    Returns:
      Class ids `[H, W]`: uint8 if they fit, else int32.
    """
    classes = np.zeros(image.shape[:2], np.uint8 if model.num_classes <= 2**8 else np.int32)
    size = size or protocol.run_size((image.shape[0], image.shape[1]))
    for tile in _means(model, variables, image, protocol, size=size, batch_size=batch_size, place=place):
        classes[tile.place] = np.argmax(tile.probabilities, axis=-1)
    return classes


def evaluate_batch(
    model: Segmenter, variables: Variables, images: Array, labels: Array, sizes: Array, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    """Predict a padded batch and compare it with its labels.

    Returns:
      Class ids `[N, H, W]` and an int32 confusion matrix `[K, K]`; only these leave the device.
    """
    if not protocol.slides(padded_to(images)) and not protocol.crf:
        classes, counts = _classes_and_counts(model, variables, images, labels, sizes, protocol.views)
    else:
        classes = predict_classes(model, variables, images, sizes, protocol)
        counts = confusion_matrix(jnp.asarray(labels), classes, num_classes=model.num_classes)
    return np.asarray(classes), np.asarray(counts)


def evaluate_large(
    model: Segmenter,
    variables: Variables,
    image: np.ndarray,
    label: np.ndarray,
    protocol: Protocol,
    *,
    batch_size: int = 1,
    place: Place = unplaced,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict an image that is larger than the window, in little memory, and compare it with its label `[H, W]`.

    Returns:
      Class ids `[H, W]` and an int64 confusion matrix `[K, K]`. See `predict_large` for the arguments.
    """
    classes = predict_large(model, variables, image, protocol, batch_size=batch_size, place=place)
    counts = np.zeros((model.num_classes, model.num_classes), np.int64)
    for first in range(0, classes.size, COUNTED_AT_ONCE):
        part = np.full((2, COUNTED_AT_ONCE), IGNORE_LABEL, np.int32)  # Of one size, so that one program counts all.
        for row, whole in zip(part, (label, classes), strict=True):
            values = whole.reshape(-1)[first : first + COUNTED_AT_ONCE]
            row[: values.size] = values
        counts += np.asarray(_counts(*part, model.num_classes))
    return classes, counts


_counts = jax.jit(lambda labels, classes, count: confusion_matrix(labels, classes, num_classes=count), static_argnums=2)


@partial(jax.jit, static_argnums=(0, 4))
def _classes(model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views) -> jax.Array:
    return _predict(model, variables, images, sizes, views)[0]


@partial(jax.jit, static_argnums=(0, 5))
def _classes_and_counts(
    model: Segmenter, variables: Variables, images: jax.Array, labels: jax.Array, sizes: jax.Array, views: Views
) -> tuple[jax.Array, jax.Array]:
    classes = _classes(model, variables, images, sizes, views)
    return classes, confusion_matrix(labels, classes, num_classes=model.num_classes)


@partial(jax.jit, static_argnums=(0, 4))
def _predict(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views
) -> tuple[jax.Array, jax.Array]:
    return classes_and_probabilities(model, variables, preprocess(model, images, sizes), views)


def classes_and_probabilities(
    model: Segmenter, variables: Variables, images: jax.Array, views: Views
) -> tuple[jax.Array, jax.Array]:
    """Return class ids `[N, H, W]` and the mean of the views' class probabilities `[N, H, W, K]` of preprocessed
    images. The ids of a single view come from its logits, so under `jit` the ids alone need no softmax.
    """
    if len(views) == 1:
        logits = view_logits(model, variables, images, views[0])
        return jnp.argmax(logits, axis=-1), jax.nn.softmax(logits)
    softmaxes = (jax.nn.softmax(view_logits(model, variables, images, view)) for view in views)
    mean = reduce(jnp.add, softmaxes) / len(views)
    return jnp.argmax(mean, axis=-1), mean


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
    """Return padded images `[N, H, W, C]` preprocessed; pixels outside their true sizes `[N, 2]` become exactly
    zero, the mean.
    """
    rows = jnp.arange(images.shape[1])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :] < sizes[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], model.preprocessing(images), 0.0)


def _refined(probabilities: jax.Array, images: Array, sizes: Array, crf: DenseCRF) -> jax.Array:
    """Refine the probabilities of each image at its true size; images of size 0, which fill up a batch,
    do not change.
    """
    refined = []
    for index, (height, width) in enumerate(np.asarray(sizes)):
        own = probabilities[index]
        if height and width:
            mask = np.zeros(own.shape[:2], bool)
            mask[:height, :width] = True
            own = ops_crf.mean_field(own, jnp.asarray(images[index]), jnp.asarray(mask), crf=crf)
        refined.append(own)
    return jnp.stack(refined)


def _means(
    model: Segmenter,
    variables: Variables,
    image: np.ndarray,
    protocol: Protocol,
    *,
    size: Size,
    batch_size: int = 1,
    place: Place = unplaced,
) -> Iterator[Tile]:
    """Yield the mean probabilities of the protocol's windows over an image that is padded to `size`."""
    return mean_of_windows(
        image,
        lambda seen, sizes: _probabilities(model, variables, *place(seen, sizes), protocol.views),
        size=size,
        window=(protocol.window[0], protocol.window[1]),
        classes=model.num_classes,
        overlap=protocol.overlap,
        blend=protocol.blend,
        batch_size=batch_size,
    )


def _whole_means(
    model: Segmenter, variables: Variables, images: np.ndarray, sizes: np.ndarray, protocol: Protocol
) -> np.ndarray:
    """Return the mean probabilities of the windows over a padded batch, float32 `[N, H, W, K]`: 1 / K in
    the padding.
    """
    whole = np.full((*images.shape[:3], model.num_classes), 1 / model.num_classes, np.float32)
    for image, (height, width), means in zip(images, sizes, whole, strict=True):
        if height and width:
            for tile in _means(model, variables, image[:height, :width], protocol, size=padded_to(images)):
                means[tile.place] = tile.probabilities
    return whole


@partial(jax.jit, static_argnums=(0, 4))
def _probabilities(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views
) -> jax.Array:
    return _predict(model, variables, images, sizes, views)[1]


def padded_to(images: Array) -> Size:
    """Return the (height, width) of a batch `[N, H, W, C]`."""
    return images.shape[1], images.shape[2]


def pad_images(images: Iterable[np.ndarray], size: Size, *, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images `[H, W, C]` stacked at the top left of `size`, and their true sizes int32 `[N, 2]`.

    They are uint8, or float32 if one of them is.

    With `count`, empty images of size 0 x 0 fill the batch up.
    """
    images = list(images)
    total = len(images) if count is None else count
    dtype = np.uint8 if all(image.dtype == np.uint8 for image in images) else np.float32
    stacked = np.zeros((total, *size, images[0].shape[-1]), dtype)
    sizes = np.zeros((total, 2), np.int32)
    for index, image in enumerate(images):
        stacked[index, : image.shape[0], : image.shape[1]] = image
        sizes[index] = image.shape[:2]
    return stacked, sizes
