"""The part of an image that a position of a network sees: receptive fields, and features as colours."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.analysis.receptive_field import Field, receptive_fields
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.layers import Features
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables


def stage_fields(name: str, *, output_stride: int, **options: Any) -> dict[str, Field]:
    """Return the theoretical receptive fields of a DeepLabv3's stages and of its pyramid.

    The pyramid has no image pooling, which would see the whole image. `options` are those of `create_model`.
    """
    # With this lowering each convolution is a single operation of the program.
    options = {"image_pooling": False, "lowering": "direct", **options}
    model = create_model(name, output_stride=output_stride, **options)

    def maps(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        found = cast(Features, model.apply(variables, images, train=False, method="features"))
        return {stage: array for stage, (array, _) in found.items()}

    return receptive_fields(maps, abstract_variables(model))


def paths(rates: Sequence[int]) -> np.ndarray:
    """Return the number of ways in which a stack of 3-tap kernels with these rates reaches each sample of a line.

    Returns:
      int64 `[2 * sum(rates) + 1]`; the middle entry is the sample under the output. Zeros are samples that the stack
      never sees (gridding).
    """
    kernels = [np.bincount([0, rate, 2 * rate]) for rate in rates]
    return reduce(np.convolve, kernels, np.ones(1, np.int64))


def influence(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> np.ndarray:
    """Return the influence of each sample of `x` on the middle sample of a map (Luo et al., "Understanding the
    Effective Receptive Field in Deep Convolutional Neural Networks", 2016).

    Args:
      function: computes a map `[N, h', w', D]` from `x`.
      x: the input `[N, h, w, C]`.

    Returns:
      float32 `[h, w]`: the absolute gradient of the sum over the middle sample's channels, summed over the channels of
      `x` and averaged over images.
    """

    def middle(x: jax.Array) -> jax.Array:
        result = function(x)
        return jnp.sum(result[:, result.shape[1] // 2, result.shape[2] // 2])

    gradient = jax.jit(jax.grad(middle))(x)
    return np.asarray(jnp.mean(jnp.sum(jnp.abs(gradient), axis=-1), axis=0))


def logit_influence(model: Segmenter, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Return the `influence` `[H, W]` of the pixels of uint8 images `[N, H, W, 3]` on the middle pixel's largest
    logit.
    """

    def largest(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.asarray(model.apply(variables, x, train=False)), axis=-1, keepdims=True)

    return influence(largest, model.preprocessing(jnp.asarray(images)))


def pyramid_influence(model: Segmenter, variables: Variables, image: np.ndarray) -> np.ndarray:
    """Return the `influence` `[h, w]` of a DeepLabv3's backbone features on the middle sample of its pyramid's output,
    for one uint8 image `[H, W, 3]`.
    """
    *_, (x, stride), _ = features(model, variables, image).values()  # The last of the backbone, before the context.
    weights = {name: tree["context"] for name, tree in variables.items()}
    pyramid = cast(ASPP, model.context)
    return influence(lambda x: jnp.asarray(pyramid.apply(weights, x, output_stride=stride, train=False)), x)


def features(model: Segmenter, variables: Variables, image: np.ndarray) -> Features:
    """Return the features `{name: ([1, h, w, C], stride)}` of one uint8 image `[H, W, 3]`."""
    images = model.preprocessing(jnp.asarray(image)[None])
    return cast(Features, model.apply(variables, images, train=False, method="features"))


def side_of(seen: np.ndarray, share: float) -> int:
    """Return the side, in samples, of the smallest centred square that holds a share (0 to 1) of an influence."""
    rows, columns = (np.abs(np.arange(n) - n // 2) for n in seen.shape)
    rings = np.bincount(np.maximum(rows[:, None], columns[None]).ravel(), weights=seen.ravel())
    return 2 * int(np.searchsorted(np.cumsum(rings), share * rings.sum())) + 1


def principal_colours(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return pictures of maps `[h, w, C]`, with three principal components as red, green and blue.

    The components are those of the first map. All maps share them, so equal colours mean equal features.

    Returns:
      For each map float `[h, w, 3]`, 0 to 1. The 2nd percentile of a component in the first map becomes 0, and the 98th
      becomes 1.
    """
    first = maps[0].reshape(-1, maps[0].shape[-1])
    mean = first.mean(axis=0)
    _, _, components = np.linalg.svd(first - mean, full_matrices=False)
    low, high = np.percentile((first - mean) @ components[:3].T, (2, 98), axis=0)
    return [np.clip(((each - mean) @ components[:3].T - low) / (high - low), 0, 1) for each in maps]
