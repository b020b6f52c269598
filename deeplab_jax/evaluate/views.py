"""Views of images: their logits at several scales, mirrored or not, and the mean of their class probabilities."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.evaluate.protocol import View
from deeplab_jax.models.decision import THRESHOLD, decide, to_probabilities
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter, Variables
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.ops.resize import resize_bilinear

Views = tuple[View, ...]
Number = float | jax.Array


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

    A side of n pixels becomes `(n - 1) * scale + 1`, as in the papers' counts of multiply-adds. Images and logits have
    the corner alignment of the network, so that each pixel gets back its own logits. The logits are resized once. The
    authors' code (`multi_scale_logits` in TensorFlow's deeplab) resizes those of a scale below 1 to the grid of scale 1
    first. Only its scale 0.75 differs by that; see "Protocol switches" in the README beside this file.
    """
    height, width = (max(SMALLEST_SIDE, scaled_side(side, view.scale)) for side in images.shape[1:3])
    seen = resize_bilinear(images, (height, width), align_corners=model.settings.align_corners)
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
