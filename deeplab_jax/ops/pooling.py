"""Pooling with symmetric padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def max_pool(x: jax.Array, *, window: int, stride: int) -> jax.Array:
    """Take the maximum over windows centred on every `stride`-th pixel: `[N, H, W, C] -> [N, H', W', C]` (odd windows)."""
    pad = (window - 1) // 2
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=((pad, pad), (pad, pad)))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Average over height and width, in float32: `[N, H, W, C] -> [N, 1, 1, C]` of the dtype of `x`."""
    return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
