"""Batch normalisation in training (Ioffe and Szegedy, arXiv 1502.03167, algorithm 1), with a gradient written by hand.

Differentiated by rule, the mean and the variance each bring their own terms, which read the map again and are kept for
it; written out, they are one pass over the map and its gradient for two sums, and one for the result, and what is kept
is the map alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

OVER_ALL_BUT_CHANNELS = (0, 1, 2)
Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the (biased) variance of each channel of `[N, H, W, C]`, in float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, OVER_ALL_BUT_CHANNELS)
    # Both in one pass; rounding must not make it negative.
    return mean, jnp.maximum(0.0, jnp.mean(x * x, OVER_ALL_BUT_CHANNELS) - mean * mean)


def normalise(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, offset: jax.Array, epsilon: float
) -> jax.Array:
    """Return `(x - mean) / sqrt(var + epsilon) * scale + offset`, computed in float32 and in the dtype of `x`."""
    factor = lax.rsqrt(var + epsilon) * scale
    y = (x - _row(mean)) * _row(factor) + _row(offset)
    return y.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(
    x: jax.Array, scale: jax.Array, offset: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Normalise a batch by its own statistics.

    Args:
      x: `[N, H, W, C]`.
      scale, offset: float32 `[C]`.
      epsilon: added to the variance; static.

    Returns:
      The result in the dtype of `x`, and the mean and variance, through which no gradient goes. Has no forward-mode
      derivative.
    """
    mean, var = moments(x)
    return normalise(x, mean, var, scale, offset, epsilon), (mean, var)


def _forward(
    x: jax.Array, scale: jax.Array, offset: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, tuple[jax.Array, jax.Array]], Kept]:
    y, (mean, var) = _batch_norm(x, scale, offset, epsilon)
    return (y, (mean, var)), (x, mean, lax.rsqrt(var + epsilon), scale)


def _backward(
    epsilon: float, kept: Kept, gradients: tuple[jax.Array, tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = kept
    gradient = gradients[0].astype(jnp.float32)
    centred = x - _row(mean)
    count = x.size // x.shape[-1]
    of_offset = jnp.sum(gradient, OVER_ALL_BUT_CHANNELS)
    along = jnp.sum(gradient * centred, OVER_ALL_BUT_CHANNELS)
    # What moves mean and variance of a channel changes nothing after them, so its share is taken out.
    of_x = gradient - _row(of_offset / count) - centred * _row(along * inverse * inverse / count)
    return (of_x * _row(scale * inverse)).astype(x.dtype), along * inverse, of_offset


_batch_norm.defvjp(_forward, _backward)
# A compiled function of its own, so that equal layers are traced once.
batch_norm = jax.jit(_batch_norm, static_argnums=3)


def _row(values: jax.Array) -> jax.Array:
    return values[None, None, None]
