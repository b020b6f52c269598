"""The taps of an atrous 3x3 kernel that lie on the map (DeepLabv3, sec. 3.3 and Fig. 4), and a trained pyramid without
some of them.
"""

import time
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.ops.atrous import Lowering, conv2d
from deeplab_jax.ops.geometry import taps_on_map, valid_tap_counts

PROJECTION = ("params", "context", "projection", "conv", "kernel")


def valid_regions(size: int, rate: int) -> np.ndarray:
    """Return whether each tap of a 3x3 kernel lies on the map, for each position of its centre on a map of
    `size` x `size`.

    Returns:
      bool `[3, 3, size, size]`: row and column of the tap, then row and column of the kernel's centre.
    """
    seen = taps_on_map(size, size, 3, stride=1, rate=rate, before=rate)
    return seen.T[:, None, :, None] & seen.T[None, :, None, :]


def valid_weight_map(size: int, rate: int) -> np.ndarray:
    """Return the number of valid weights, 1 to 9, at every position of a map, int `[size, size]`."""
    per_axis = valid_tap_counts(size, 3, rate)
    return np.outer(per_axis, per_axis)


def closed_form_shares(size: int, rate: int) -> dict[int, float]:
    """Return the share (0 to 1) of the positions with 1, 2, 4, 6 and 9 valid weights, by a formula.

    Take a side of n samples and the rate r. Three taps are valid at n - 2r positions, and at none if r >= n/2. One tap
    is valid at 2r - n positions, at none if r <= n/2, and at all n if r >= n. Two taps are valid at the others. The two
    sides are independent, so the shares multiply. No position has three valid weights, since no rate has both positions
    with one valid tap and positions with three.
    """
    three = max(size - 2 * rate, 0) / size
    one = min(max(2 * rate - size, 0), size) / size
    two = 1 - three - one
    return {1: one**2, 2: 2 * one * two, 4: two**2, 6: 2 * two * three, 9: three**2}


def with_outer_taps(variables: Variables, branch: int, *, key: jax.Array | None = None) -> Variables:
    """Return the variables of a DeepLabv3 without the outer taps of one atrous branch of its pyramid.

    Args:
      variables: variables of the DeepLabv3.
      branch: number of the branch, from 1.
      key: where it is given, the outer taps get random values as at the start of a training: the normal distribution of
        He et al. for the kernel's fan-in. Taps that see only padding get random values too.
    """
    path = ("params", "context", f"branch_atrous{branch}", "conv", "kernel")
    flat = flatten_dict(dict(variables))
    kernel = np.array(flat[path])
    centre = kernel[1, 1].copy()
    kernel[:] = 0.0 if key is None else jax.nn.initializers.he_normal()(key, kernel.shape)
    kernel[1, 1] = centre
    return unflatten_dict({**flat, path: kernel})


def outer_tap_share(variables: Variables, branch: int) -> float:
    """Return the share (0 to 1) of the eight outer taps in an atrous branch's squared weights."""
    squares = np.asarray(variables["params"]["context"][f"branch_atrous{branch}"]["conv"]["kernel"]) ** 2
    outer = squares.sum() - squares[1, 1].sum()
    return float(outer / squares.sum())


def branch_names(context: ASPP) -> list[str]:
    """Return the names of a pyramid's branches, in the order of their concatenation."""
    atrous = [f"branch_atrous{index + 1}" for index in range(len(context.aspp_rates))]
    return ["branch_1x1", *atrous, *(["image_pooling"] if context.image_pooling else [])]


def without_branch(variables: Variables, context: ASPP, name: str) -> Variables:
    """Return the variables of a DeepLabv3 in which the pyramid's projection ignores the branch `name`."""
    index = branch_names(context).index(name)
    flat: Mapping[Any, Any] = flatten_dict(dict(variables))
    kernel = np.array(flat[PROJECTION])
    kernel[:, :, index * context.aspp_channels : (index + 1) * context.aspp_channels] = 0
    return unflatten_dict({**flat, PROJECTION: kernel})


def logit_change(model: Segmenter, variables: Variables, changed: Variables, images: np.ndarray) -> float:
    """Return the relative change of the logits of uint8 images `[N, H, W, 3]` with other variables: the root mean
    square of the change, divided by that of the logits' deviations from their means.
    """
    before, after = (_logits(model, each, jnp.asarray(images)) for each in (variables, changed))
    deviations = before - before.mean(axis=(0, 1, 2), keepdims=True)
    return float(jnp.sqrt(jnp.sum((after - before) ** 2) / jnp.sum(deviations**2)))


def convolution_seconds(size: int, rate: int, channels: int, lowering: Lowering, *, repeats: int = 5) -> float:
    """Return the median time of a 3x3 atrous convolution with as many outputs as inputs, after one warm-up."""
    x = jnp.ones((1, size, size, channels))
    kernel = jnp.ones((3, 3, channels, channels))
    call = jax.jit(partial(conv2d, rate=rate, lowering=lowering))
    call(x, kernel).block_until_ready()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call(x, kernel).block_until_ready()
        found.append(time.perf_counter() - began)
    return median(found)


@partial(jax.jit, static_argnums=0)
def _logits(model: Segmenter, variables: Variables, images: jax.Array) -> jax.Array:
    return jnp.asarray(model.apply(variables, model.preprocessing(images), train=False))
