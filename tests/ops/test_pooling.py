"""Pooling: values by hand and the symmetric padding that subsampling needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops.pooling import global_average_pool, max_pool


def test_max_pool_by_hand() -> None:
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    expected = [[6, 8, 9], [16, 18, 19], [21, 23, 24]]
    assert max_pool(x, window=3, stride=2)[0, :, :, 0].tolist() == expected
    assert jax.jit(lambda x: max_pool(x, window=3, stride=2))(x)[0, :, :, 0].tolist() == expected


def test_max_pool_pads_with_less_than_any_value() -> None:
    assert max_pool(jnp.full((1, 3, 3, 1), -7.0), window=3, stride=1).ravel().tolist() == [-7.0] * 9


@pytest.mark.parametrize("size", [4, 5])
def test_max_pool_strided_is_subsampled(size: int) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, 6, 3)), jnp.float32)
    full = max_pool(x, window=3, stride=1)
    assert full.shape == x.shape
    np.testing.assert_array_equal(max_pool(x, window=3, stride=2), full[:, ::2, ::2])


def test_global_average_pool_by_hand() -> None:
    x = jnp.asarray([[[[1, 10], [2, 20]], [[3, 30], [6, 60]]]], jnp.float32)
    assert global_average_pool(x).tolist() == [[[[3, 30]]]]
    assert jax.jit(global_average_pool)(x).tolist() == [[[[3, 30]]]]


def test_global_average_pool_adds_in_float32() -> None:
    """A running sum in bfloat16 would stop growing at 256."""
    pooled = global_average_pool(jnp.full((1, 65, 65, 1), 1.5, jnp.bfloat16))
    assert pooled.dtype == jnp.bfloat16
    assert pooled.tolist() == [[[[1.5]]]]
