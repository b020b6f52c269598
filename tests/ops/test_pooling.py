"""Pooling: values by hand, the symmetric padding that subsampling needs, and unpooling as the inverse."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.ops.pooling import adaptive_average_pool, global_average_pool, max_pool, max_unpool, spatial_pyramid


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


def test_a_window_of_two_tiles_the_map_and_rounds_its_size_up() -> None:
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    assert max_pool(x, window=2, stride=2)[0, :, :, 0].tolist() == [[6, 8, 9], [11, 13, 14]]
    # Without the stride a window begins at its pixel.
    assert max_pool(x, window=2, stride=1)[0, 0, :, 0].tolist() == [6, 7, 8, 9, 9]


def test_the_rate_sets_the_distance_within_a_window() -> None:
    x = jnp.asarray([5.0, 1, 2, 4, 3, 0]).reshape(1, 1, 6, 1)
    assert max_pool(x, window=2, stride=1, rate=2).ravel().tolist() == [5, 4, 3, 4, 3, 0]
    assert max_pool(x, window=3, stride=1, rate=2).ravel().tolist() == [5, 4, 5, 4, 3, 4]


@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize("size", [7, 8])
def test_a_rate_sees_on_the_fine_map_what_a_stride_left(window: int, size: int) -> None:
    """Pooling of stride 2, then another; without the first stride the second has rate 2."""
    x = jnp.asarray(np.random.default_rng(size).normal(size=(1, size, size + 4, 2)), jnp.float32)
    coarse = max_pool(x[:, ::2, ::2], window=window, stride=1)
    np.testing.assert_array_equal(max_pool(x, window=window, stride=1, rate=2)[:, ::2, ::2], coarse)


def test_max_unpool_by_hand() -> None:
    """Maxima of each 2x2 tile at their places; of equal ones (-1, -1, -1, -1 and 7, 7) the first in reading order."""
    pooled = jnp.asarray([[1, 2, -1, -1, 7], [4, 3, -1, -1, 7], [9, 5, 0, 6, -8]], jnp.float32)[None, :, :, None]
    x = jnp.asarray([[10, 20, 30], [40, 50, 60]], jnp.float32)[None, :, :, None]
    assert max_unpool(x, pooled)[0, :, :, 0].tolist() == [
        [0, 0, 20, 0, 30],
        [10, 0, 0, 0, 0],
        [40, 0, 0, 50, 60],
    ]


@jax.jit
def pool_and_unpool(pooled: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """The maxima of a map, made-up values and those maxima unpooled to it, and the former pooled again."""
    maxima = max_pool(pooled, window=2, stride=2)
    y = max_unpool(x, pooled)
    return maxima, y, max_unpool(maxima, pooled), max_pool(y, window=2, stride=2)


@settings(max_examples=15)
@given(st.integers(1, 7), st.integers(1, 7), st.booleans(), st.integers(0, 99))
def test_max_unpool_inverts_max_pool(height: int, width: int, ties: bool, seed: int) -> None:
    """Each value lands once, in its own tile, on a maximum of that tile: pooling magnitudes again gives it back."""
    rng = np.random.default_rng(seed)
    size = (2, height, width, 2)
    pooled = rng.integers(-1, 2, size) if ties else rng.permutation(np.prod(size)).reshape(size) - 20
    pooled = pooled.astype(np.float32)
    x = rng.uniform(1, 2, (2, -(-height // 2), -(-width // 2), 2)).astype(np.float32)
    maxima, y, restored, again = (np.asarray(a) for a in pool_and_unpool(pooled, x))
    assert y.shape == size
    np.testing.assert_array_equal(again, x)
    assert np.count_nonzero(y) == x.size
    spread = maxima.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    np.testing.assert_array_equal(spread[y != 0], pooled[y != 0])
    if not ties:
        np.testing.assert_array_equal(restored, np.where(spread == pooled, pooled, 0))


def test_the_gradient_of_max_unpool_gathers() -> None:
    pooled = jnp.asarray([[1, 2], [4, 3]], jnp.float32)[None, :, :, None]
    weights = jnp.asarray([[5, 6], [7, 8]], jnp.float32)[None, :, :, None]
    gradient = jax.grad(lambda x: jnp.sum(max_unpool(x, pooled) * weights))(jnp.ones((1, 1, 1, 1)))
    assert gradient.ravel().tolist() == [7]


def test_adaptive_average_pool_by_hand() -> None:
    """Five pixels in three regions: 0 to 1, 1 to 3 and 3 to 4 share pixels 1 and 3; two in three: 0, 0 to 1, 1."""
    x = jnp.asarray([[0, 6, 12, 18, 30], [30, 36, 42, 48, 60]], jnp.float32)[None, :, :, None]
    expected = [[3, 12, 24], [18, 27, 39], [33, 42, 54]]
    np.testing.assert_allclose(adaptive_average_pool(x, 3)[0, :, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(adaptive_average_pool(x, 1), global_average_pool(x), rtol=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_adaptive_average_pool_of_a_multiple_averages_blocks(bins: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 2 * bins, 3 * bins, 3)).astype(np.float32)
    blocks = x.reshape(2, bins, 2, bins, 3, 3).mean((2, 4))
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), bins), blocks, atol=1e-6)


def test_adaptive_average_pool_adds_in_float32() -> None:
    pooled = adaptive_average_pool(jnp.full((1, 65, 33, 1), 1.5, jnp.bfloat16), 2)
    assert (pooled.dtype, pooled.ravel().tolist()) == (jnp.bfloat16, [1.5] * 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (4, 4), (13, 13), (10, 17), (40, 33)])
def test_a_spatial_pyramid_of_any_map_has_one_length(size: tuple[int, int]) -> None:
    """SPP-net: (16 + 4 + 1) * 256 = 5376 numbers; the last 256 are the maxima of the whole map."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 256)), jnp.float32)
    vector = np.asarray(spatial_pyramid(x, (4, 2, 1)))
    assert vector.shape == (2, 5376)
    whole = np.max(np.asarray(x), axis=(1, 2))
    np.testing.assert_array_equal(vector[:, -256:], whole)
    # The regions of each level cover the map.
    for level in (vector[:, : 16 * 256].reshape(2, 16, 256), vector[:, 16 * 256 : 20 * 256].reshape(2, 4, 256)):
        np.testing.assert_array_equal(level.max(1), whole)


def test_a_spatial_pyramid_by_hand() -> None:
    """Three pixels in two regions share the middle one; regions in reading order."""
    x = jnp.asarray([[1, 9, 2], [3, 4, 5], [8, 0, 7]], jnp.float32)[None, :, :, None]
    assert spatial_pyramid(x, (2, 1)).tolist() == [[9, 9, 8, 7, 9]]
    assert spatial_pyramid(x[:, :1, :1], (2, 1)).tolist() == [[1, 1, 1, 1, 1]]


def test_global_average_pool_by_hand() -> None:
    x = jnp.asarray([[[[1, 10], [2, 20]], [[3, 30], [6, 60]]]], jnp.float32)
    assert global_average_pool(x).tolist() == [[[[3, 30]]]]
    assert jax.jit(global_average_pool)(x).tolist() == [[[[3, 30]]]]


def test_global_average_pool_adds_in_float32() -> None:
    """A running sum in bfloat16 would stop growing at 256."""
    pooled = global_average_pool(jnp.full((1, 65, 65, 1), 1.5, jnp.bfloat16))
    assert pooled.dtype == jnp.bfloat16
    assert pooled.tolist() == [[[[1.5]]]]


@pytest.mark.parametrize("padding", ["VALID", "same", "symmetric"])
def test_an_unknown_padding_is_refused(padding: Any) -> None:
    with pytest.raises(ValueError, match=rf"padding='{padding}': give None or 'SAME'"):
        max_pool(jnp.ones((1, 5, 5, 1)), window=3, stride=2, padding=padding)


def test_averages_of_whole_numbers_are_refused() -> None:
    for pool in (global_average_pool, partial(adaptive_average_pool, bins=2)):
        with pytest.raises(TypeError, match="the map is int32: convert it to a floating dtype first"):
            pool(jnp.arange(9, dtype=jnp.int32).reshape(1, 3, 3, 1))
