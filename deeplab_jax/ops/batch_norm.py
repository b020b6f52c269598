"""Batch normalisation in training (Ioffe and Szegedy, arXiv 1502.03167, algorithm 1), with a derivative written by
hand.

In JAX's own derivative the mean and the variance each add terms that keep the map and read it again. The derivative
written by hand needs two sums over the map and one pass, forward and backward, and keeps one map.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

OVER_ALL_BUT_CHANNELS = (0, 1, 2)
Statistics = tuple[jax.Array, jax.Array]


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the (biased) variance of each channel of `[N, H, W, C]`, in float32.

    One pass, as in flax and TensorFlow's fused layer: where the mean is more than about 3000 times the standard
    deviation, the digits of float32 do not suffice, and the variance may be 0.
    """
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, OVER_ALL_BUT_CHANNELS)
    # Both in one pass; rounding must not make the variance negative.
    return mean, jnp.maximum(0.0, jnp.mean(x * x, OVER_ALL_BUT_CHANNELS) - mean * mean)


def normalise(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, offset: jax.Array, epsilon: float
) -> jax.Array:
    """Return `(x - mean) / sqrt(var + epsilon) * scale + offset`, computed in float32 and in the dtype of `x`."""
    factor = lax.rsqrt(var + epsilon) * scale
    y = (x - _row(mean)) * _row(factor) + _row(offset)
    return y.astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _batch_norm(x: jax.Array, scale: jax.Array, offset: jax.Array, epsilon: float) -> tuple[jax.Array, Statistics]:
    """Normalise a batch by its own statistics.

    Args:
      x: `[N, H, W, C]`.
      scale, offset: float32 `[C]`.
      epsilon: added to the variance; static.

    Returns:
      The result in the dtype of `x`, and the mean and variance, float32 `[C]`, which are constants in derivatives.
    """
    mean, var = moments(x)
    return normalise(x, mean, var, scale, offset, epsilon), (mean, var)


@_batch_norm.defjvp
def _derivative(
    epsilon: float, inputs: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, Statistics], tuple[jax.Array, Statistics]]:
    x, scale, offset = inputs
    mean, var = moments(x)
    y = normalise(x, mean, var, scale, offset, epsilon)
    # The gradient keeps one map, the centred one in float32. If the map is narrower, it keeps the map itself.
    tangent = _tangent if x.dtype == jnp.float32 else jax.checkpoint(_tangent, prevent_cse=False)
    y_tangent = tangent(x, mean, lax.rsqrt(var + epsilon), scale, *tangents)
    return (y, (mean, var)), (y_tangent, (jnp.zeros_like(mean), jnp.zeros_like(var)))


def _tangent(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    x_tangent: jax.Array,
    scale_tangent: jax.Array,
    offset_tangent: jax.Array,
) -> jax.Array:
    """Return the derivative of the result in the direction of the inputs' tangents; `inverse` is 1 / standard
    deviation.

    JAX transposes it to the gradient, line by line from the last: sums of the result's gradient (for `shift`) and of
    its product with the centred map (for `factor`), then one pass.
    """
    centred = x - _row(mean)
    count = x.size // x.shape[-1]
    moved = x_tangent.astype(jnp.float32) * _row(scale * inverse)
    # A change of a channel's mean or variance is normalised away, so the derivative leaves that share out.
    of_variance = jnp.sum(moved * centred, OVER_ALL_BUT_CHANNELS) / count * inverse * inverse
    of_mean = jnp.sum(moved, OVER_ALL_BUT_CHANNELS) / count
    shift, factor = offset_tangent - of_mean, scale_tangent * inverse - of_variance
    return (moved + _row(shift) + centred * _row(factor)).astype(x.dtype)


# A separate compiled function, so that equal layers are traced once.
batch_norm = jax.jit(_batch_norm, static_argnums=3)


def _row(values: jax.Array) -> jax.Array:
    return values[None, None, None]
