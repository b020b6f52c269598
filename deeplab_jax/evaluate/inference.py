"""Inference on images of any size, by a protocol: whole or by sliding window, at several scales, mirrored, refined."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.counts import Counted, Counts, added, count, counted, no_counts
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.evaluate.views import Number, Views, classes_and_probabilities, preprocess
from deeplab_jax.evaluate.windows import OVERLAP, Size, Tile, mean_of_windows
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.models.decision import THRESHOLD, by_pairs, decide
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.ops import crf as ops_crf
from deeplab_jax.ops.crf import DenseCRF

if TYPE_CHECKING:  # To read images sets limits of Pillow for the whole process.
    from deeplab_jax.data.large import Image

Array = np.ndarray | jax.Array
COUNTED_AT_ONCE = 2**20  # pixels
FAINT = 16
Place = Callable[..., Sequence[Array]]
Prediction = tuple[np.ndarray, np.ndarray | None]  # class ids, and probabilities if wanted


def is_faint(image: Any) -> bool:
    """Whether a whole image of levels 0 to 255 was probably in another range: it is not black, has fractions of levels,
    and stays below 16, as 12 bits in 16 do, and floats of 0 to 1.
    """
    return isinstance(image, np.ndarray) and image.dtype != np.uint8 and 0 < image.max(initial=0) < FAINT


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
    threshold: float = THRESHOLD,
    return_probabilities: bool = False,
) -> Any:
    """Return the class of each pixel of one image, run at its own size.

    Batch norm is folded on every call. For many images, call `fold_norm` once before; a second fold is free.

    Args:
      model, variables: from `load`.
      image: `[H, W, C]` of any size, RGB for most models: uint8 or uint16 as stored, or float32 from 0 to 255. uint16
        values become such floats by the model's `preprocessing.stored_range`, or else by their type's full range. A
        warning says so if the largest level is below 16, as of floats from 0 to 1.
      scales: scales of the image; the class probabilities are averaged.
      flip: whether to add the mirrored image.
      window: (height, width) of a sliding window for large images; None runs the image whole.
      overlap, blend: of the windows; see `Protocol`.
      crf: whether a fully connected CRF on the image refines the class probabilities; True takes the default
        parameters.
      threshold: for a model with sigmoids: an object is where its probability is above it.
      return_probabilities: whether to return the class probabilities as well. They need 4 bytes for each pixel and
        class, whatever the window is; the ids alone need the memory of some windows.

    Returns:
      int32 `[H, W]` class ids. With `return_probabilities` also float32 `[H, W, num_classes]`, 0 to 1, which sum to 1
      at each pixel. For one logit that is `[H, W, 1]`, the probability of class 1. For several labels a pixel, both are
      `[H, W, num_classes]`: 0 or 1 for each label, and its probability.

    Raises:
      UserError: the image is no uint8, uint16 or float32 `[H, W, C]` with the channels of the model; scales, a window
        or a threshold that make no sense; or a CRF for a model of other than three channels.
    """
    views: Any = scales  # The protocol makes a tuple of them, or says what is wrong.
    protocol = Protocol(
        mode="exact",
        scales=views,
        flip=flip,
        window=window or (),
        overlap=overlap,
        blend=blend,
        crf=crf,
        threshold=threshold,
    )
    model, image = protocol.at_stride(model), np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16, np.float32) or image.ndim != 3 or image.shape[-1] != model.in_channels:
        raise UserError(
            f"image of shape {image.shape} and dtype {image.dtype}: expected [H, W, {model.in_channels}] of uint8, "
            "uint16 or float32; give levels of 0 to 255, such as image.astype('float32')"
        )
    image = model.preprocessing.levels(image)
    if is_faint(image):
        warnings.warn(
            f"image: its largest level is {image.max():.3g} of 255; give uint8, or floats from 0 to 255", stacklevel=2
        )
    model, variables = fold_norm(model, variables)
    size = protocol.run_size((image.shape[0], image.shape[1]))
    made = predict_images(model, variables, [image], size, protocol, probabilities=return_probabilities)
    classes, probabilities = made[0][0].astype(np.int32), made[0][1]
    return classes if probabilities is None else (classes, probabilities)


def predict_images(
    model: Segmenter,
    variables: Variables,
    images: Sequence["Image"],
    size: Size,
    protocol: Protocol,
    *,
    count: int | None = None,
    probabilities: bool = False,
    onto: Callable[["Image"], np.ndarray | None] = lambda image: None,
) -> list[Prediction]:
    """Return the class ids of each image, uint8 if they fit, and its probabilities float32 `[H, W, K]` if wanted.

    The images run together, padded to `size`. One that a window slides over runs alone, and may be read a part at a
    time.

    Args:
      model, variables: with batch norm folded, for speed.
      images: uint8 or float32 `[H, W, C]`, 0 to 255.
      size: (height, width) at which they run, from `protocol.run_size`.
      protocol: its scales, flip, window, CRF and threshold.
      count: empty images fill the batch up to so many.
      probabilities: whether the probabilities are wanted.
      onto: returns the array for the ids of an image that a window slides over; None: a new one.
    """
    if not probabilities and not protocol.crf and protocol.slides(size):
        return [(predict_large(model, variables, image, protocol, onto=onto(image)), None) for image in images]
    padded, sizes = pad_images([image[:] for image in images], size, count=count)
    shares: Any = None
    if probabilities:
        classes, shares = predict(model, variables, padded, sizes, protocol)
    else:
        classes = predict_classes(model, variables, padded, sizes, protocol)
    ids = np.asarray(classes).astype(ids_type(model))
    every = None if shares is None else np.asarray(shares, np.float32)
    places = [(k, slice(image.shape[0]), slice(image.shape[1])) for k, image in enumerate(images)]
    return [(ids[place], None if every is None else every[place]) for place in places]


def predict(
    model: Segmenter, variables: Variables, images: Array, sizes: Array, protocol: Protocol
) -> tuple[jax.Array, jax.Array]:
    """Return class ids `[N, H, W]` and class probabilities `[N, H, W, K]`, averaged over all views and windows. The
    protocol's CRF refines both. Where a pixel has several labels, both are `[N, H, W, K]`; see `segment`.

    Args:
      model, variables: with batch norm folded, for speed.
      images: uint8 or float32 `[N, H, W, C]`, 0 to 255, padded.
      sizes: their true sizes `[N, 2]`.
      protocol: its scales, flip, window, CRF and threshold.
    """
    if protocol.slides(padded_to(images)):
        probabilities = jnp.asarray(_whole_means(model, variables, np.asarray(images), np.asarray(sizes), protocol))
        classes = decide(model, probabilities, protocol.threshold)
    else:
        classes, probabilities = _predict(model, variables, images, sizes, protocol.views, protocol.threshold)
    if isinstance(protocol.crf, DenseCRF):
        probabilities = _refined(model, probabilities, images, sizes, protocol.crf)
        classes = decide(model, probabilities, protocol.threshold)
    return classes, probabilities


def predict_classes(
    model: Segmenter, variables: Variables, images: Array, sizes: Array, protocol: Protocol
) -> jax.Array:
    """Return the class ids of `predict`, with less memory if no CRF needs the probabilities. No window slides; see
    `predict_large`.
    """
    if protocol.crf:
        return predict(model, variables, images, sizes, protocol)[0]
    return jitted_classes(model, variables, images, sizes, protocol.views, protocol.threshold)


def predict_large(
    model: Segmenter,
    variables: Variables,
    image: "Image",
    protocol: Protocol,
    *,
    onto: np.ndarray | None = None,
) -> np.ndarray:
    """Return the class of each pixel of an image that is larger than the window, as from `predict_classes`. In
    addition to the image and the ids, it takes the memory of some windows.

    Args:
      model, variables: with batch norm folded, for speed.
      image: uint8 `[H, W, C]`; an array, or one that is read a part at a time.
      protocol: its scales, flip and windows; without a CRF, which needs the whole image.
      onto: an array for the ids, such as one of `scratch`; None: a new one.

    Returns:
      Class ids `[H, W]`: uint8 if they fit, else int32. Where a pixel has several labels, `[H, W, K]`.
    """
    classes = no_classes(model, image.shape[:2]) if onto is None else onto
    size = protocol.run_size((image.shape[0], image.shape[1]))
    for tile in _means(model, variables, image, protocol, size=size):
        classes[tile.place] = decide(model, tile.probabilities, protocol.threshold)
    return classes


def evaluate_batch(
    model: Segmenter, variables: Variables, images: Array, labels: Array, sizes: Array, protocol: Protocol
) -> tuple[np.ndarray, Counts]:
    """Predict a padded batch and compare it with its labels.

    Returns:
      Class ids `[N, H, W]` and the int32 counts of `counts.count`; only these leave the device.
    """
    if not protocol.slides(padded_to(images)) and not protocol.crf:
        how = protocol.views, protocol.threshold, counted(protocol)
        classes, counts = jitted_classes_and_counts(model, variables, images, labels, sizes, *how)
    else:
        classes, probabilities = predict(model, variables, images, sizes, protocol)
        counts = count(model, jnp.asarray(labels), classes, probabilities, what=counted(protocol))
    return np.asarray(classes), jax.device_get(counts)


def evaluate_large(
    model: Segmenter,
    variables: Variables,
    image: "Image",
    label: np.ndarray,
    protocol: Protocol,
    *,
    batch_size: int = 1,
    place: Place = unplaced,
) -> tuple[np.ndarray, Counts]:
    """Return the classes of an image as `predict_large` does, and their counts against its label.

    Args:
      model, variables, image, protocol: see `predict_large`.
      label: `[H, W]`, or `[H, W, K]` where a pixel has several labels.
      batch_size: number of windows that run together.
      place: puts windows and their sizes on the devices; see `evaluator.split_over`.

    Returns:
      The classes, and the int64 counts of `counts.count`.
    """
    classes = no_classes(model, image.shape[:2])
    counts = no_counts(model, counted(protocol))
    size = protocol.run_size((image.shape[0], image.shape[1]))
    for tile in _means(model, variables, image, protocol, size=size, batch_size=batch_size, place=place):
        classes[tile.place] = decide(model, tile.probabilities, protocol.threshold)
        more = _counts_of_tile(model, label[tile.place], classes[tile.place], tile.probabilities, protocol)
        counts = added(counts, more)
    return classes, counts


def no_classes(model: Segmenter, shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros for the classes of so many pixels, uint8 if they fit; `[..., K]` for several labels a pixel."""
    return np.zeros((*shape, *model.label_axes), ids_type(model))


def ids_type(model: Segmenter) -> type[np.integer]:
    """Return the type of class ids: uint8 if they fit, else int32."""
    return np.uint8 if model.label_classes <= 2**8 else np.int32


def _counts_of_tile(
    model: Segmenter, label: np.ndarray, classes: np.ndarray, probabilities: np.ndarray, protocol: Protocol
) -> Counts:
    """Return the counts of a part of an image, `COUNTED_AT_ONCE` pixels at a time, so that one program counts all."""
    counts = no_counts(model, counted(protocol))
    # A softmax's pixels are counted by the ids.
    needed = classes if model.activation == "softmax" and not protocol.calibration else probabilities
    flat = [array.reshape(-1, *array.shape[2:]) for array in (label, classes, needed)]
    for first in range(0, len(flat[0]), COUNTED_AT_ONCE):
        cut = [array[first : first + COUNTED_AT_ONCE] for array in flat]
        for k, (array, filler) in enumerate(zip(cut, (IGNORE_LABEL, 0, 0), strict=True)):
            missing = [(0, COUNTED_AT_ONCE - len(array)), *[(0, 0)] * (array.ndim - 1)]
            cut[k] = np.pad(array, missing, constant_values=filler)
        counts = added(counts, _count(model, *cut, what=counted(protocol)))
    return counts


_count = jax.jit(count, static_argnums=0, static_argnames="what")


@partial(jax.jit, static_argnums=(0, 4))
def jitted_classes(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views, threshold: Number
) -> jax.Array:
    """Compute `predict_classes` of a whole batch; no window slides."""
    return _predict(model, variables, images, sizes, views, threshold)[0]


@partial(jax.jit, static_argnums=(0, 5, 7))
def jitted_classes_and_counts(
    model: Segmenter,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    views: Views,
    threshold: Number,
    what: Counted,
) -> tuple[jax.Array, Counts]:
    """Compute `evaluate_batch` of a whole batch; no window slides."""
    classes, probabilities = _predict(model, variables, images, sizes, views, threshold)
    return classes, count(model, labels, classes, probabilities, what=what)


@partial(jax.jit, static_argnums=(0, 4))
def _predict(
    model: Segmenter, variables: Variables, images: jax.Array, sizes: jax.Array, views: Views, threshold: Number
) -> tuple[jax.Array, jax.Array]:
    return classes_and_probabilities(model, variables, preprocess(model, images, sizes), views, threshold)


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


def _means(
    model: Segmenter,
    variables: Variables,
    image: "Image",
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
    return _predict(model, variables, images, sizes, views, THRESHOLD)[1]


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
