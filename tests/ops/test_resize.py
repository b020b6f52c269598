"""Bilinear resizing: hand values, numpy's interpolation, and the points that corner alignment promises to keep."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.ops.resize import (
    centre_crop,
    computed_interpolation_matrix,
    interpolation_matrix,
    resize_bilinear,
    resize_labels,
)
from tests.support.params import first_fast


def interpolate(x: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Interpolate `[H, W]` by numpy, one axis after the other; it repeats the edge beyond the outer samples."""
    for axis, target in enumerate(size):
        source = x.shape[axis]
        if align_corners:
            positions = np.linspace(0, source - 1, target) if target > 1 else np.zeros(1)
        else:
            positions = np.linspace(0.5, target - 0.5, target) * source / target - 0.5
        x = np.apply_along_axis(lambda row, p=positions, n=source: np.interp(p, np.arange(n), row), axis, x)
    return x


def row(*values: float) -> jax.Array:
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("values", "target", "align_corners", "expected"),
    [
        ((0, 4), 5, True, [0, 1, 2, 3, 4]),
        ((0, 4), 4, False, [0, 1, 3, 4]),
        ((0, 1, 2, 3, 4), 3, True, [0, 2, 4]),  # shrinking takes samples and does not smooth
        ((0, 1, 2, 3, 4, 5), 2, False, [1, 4]),
        ((1, 5, 3), 5, True, [1, 3, 5, 4, 3]),
        ((8, 2, 4), 1, True, [8]),
        ((8, 2, 4), 1, False, [2]),
        ((7,), 4, True, [7, 7, 7, 7]),
        ((7,), 4, False, [7, 7, 7, 7]),
    ],
)
def test_by_hand(jit: bool, values: tuple[float, ...], target: int, align_corners: bool, expected: list[float]) -> None:
    def resize(x: jax.Array) -> jax.Array:
        return resize_bilinear(x, (1, target), align_corners=align_corners)

    assert (jax.jit(resize) if jit else resize)(row(*values)).ravel().tolist() == expected


def test_two_axes_by_hand() -> None:
    x = jnp.asarray([[0, 2], [4, 6]], jnp.float32).reshape(1, 2, 2, 1)
    y = resize_bilinear(x, (3, 3), align_corners=True)[0, :, :, 0]
    assert y.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert resize_bilinear(x, (1, 1), align_corners=False).tolist() == [[[[3]]]]


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 17), st.integers(1, 17), st.booleans())
def test_equals_numpy(height: int, width: int, new_height: int, new_width: int, align_corners: bool) -> None:
    x = np.random.default_rng(height).normal(size=(height, width))
    expected = interpolate(x, (new_height, new_width), align_corners)
    maps = jnp.asarray(x[None, :, :, None], jnp.float32)
    found = resize_bilinear(maps, (new_height, new_width), align_corners=align_corners)
    assert found.shape == (1, new_height, new_width, 1)
    np.testing.assert_allclose(found[0, :, :, 0], expected, atol=1e-6)


@given(st.integers(1, 70), st.integers(1, 600), st.booleans())
def test_weights_equal_numpy(source: int, target: int, align_corners: bool) -> None:
    matrix = interpolation_matrix(source, target, align_corners)
    assert matrix.dtype == np.float32
    assert matrix.min() >= 0
    assert np.all(np.count_nonzero(matrix, axis=1) <= 2)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=3e-7)
    expected = interpolate(np.eye(source), (target, source), align_corners)
    np.testing.assert_allclose(matrix, expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_same_size_is_the_same_array(align_corners: bool) -> None:
    x = jnp.ones((2, 3, 4, 5))
    assert resize_bilinear(x, (3, 4), align_corners=align_corners) is x


def test_linear_ramps_are_reproduced_exactly() -> None:
    ramp = jnp.broadcast_to(jnp.arange(5.0)[None, :, None, None], (1, 5, 3, 1))
    aligned = resize_bilinear(ramp, (17, 3), align_corners=True)
    np.testing.assert_array_equal(aligned[0, :, 1, 0], np.arange(17) / 4)
    centred = resize_bilinear(ramp, (20, 3), align_corners=False)[0, :, 1, 0]
    # Half-pixel centres: exact between the outer samples, their value beyond.
    np.testing.assert_array_equal(centred, np.clip((np.arange(20) + 0.5) / 4 - 0.5, 0, 4))


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_aligned_samples_lie_on_every_stride_th_pixel(stride: int) -> None:
    """A crop of 513 = 512 + 1: sample i of the map is pixel i * stride of the result, untouched."""
    side = 512 // stride + 1
    np.testing.assert_array_equal(interpolation_matrix(side, 513, True)[::stride], np.eye(side))


def test_constants_stay_and_bfloat16_stays() -> None:
    y = resize_bilinear(jnp.full((1, 3, 5, 2), 1.5, jnp.bfloat16), (7, 8), align_corners=False)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1.5)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, bool])
def test_maps_without_fractions_are_refused(dtype: Any) -> None:
    """A constant map of 100 in uint8 became 0 between its samples."""
    ones = jnp.ones((1, 5, 5, 1), dtype)
    with pytest.raises(TypeError, match=rf"the map is {ones.dtype}: convert it to a floating dtype first"):
        resize_bilinear(ones, (9, 9), align_corners=True)


def test_the_gradient_spreads_the_weights() -> None:
    gradient = jax.grad(lambda x: jnp.sum(resize_bilinear(x, (1, 5), align_corners=True)))(row(0, 0))
    # 1, 3/4, 1/2, 1/4, 0 and their mirror image
    assert gradient.ravel().tolist() == [2.5, 2.5]


def nearest_sample(index: int, source: int, target: int, align_corners: bool) -> int:
    """The nearest sample in exact arithmetic, ties to the lower."""
    if align_corners:
        position = Fraction(index * (source - 1), max(target - 1, 1))
    else:
        position = (index + Fraction(1, 2)) * Fraction(source, target) - Fraction(1, 2)
    return min(range(source), key=lambda sample: (abs(sample - position), sample))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("target", "aligned", "centred"),
    [
        (3, [0, 4, 8], [1, 4, 7]),
        (9, list(range(9)), list(range(9))),
        (1, [0], [4]),
        (17, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8], [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8]),
    ],
)
def test_labels_by_hand(align_corners: bool, target: int, aligned: list[int], centred: list[int]) -> None:
    labels = jnp.arange(9, dtype=jnp.uint8).reshape(1, 1, 9)
    found = resize_labels(labels, (1, target), align_corners=align_corners)
    assert found.dtype == jnp.uint8
    assert found.ravel().tolist() == (aligned if align_corners else centred)


@pytest.mark.parametrize("align_corners", [False, True])
def test_labels_take_the_nearest_sample_and_the_lower_of_two(align_corners: bool) -> None:
    """Against exact arithmetic; half of these pairs of sizes have ties."""
    for source, target in [(4, 2), (10, 19), (21, 11), (24, 47), (33, 513)]:
        labels = jnp.arange(source, dtype=jnp.int32).reshape(1, source, 1)
        found = np.asarray(resize_labels(labels, (target, 1), align_corners=align_corners)).ravel()
        expected = [nearest_sample(i, source, target, align_corners) for i in range(target)]
        assert found.tolist() == expected, (source, target)


@pytest.mark.parametrize("stride", first_fast([16, 8, 4]))
def test_exact_halves_go_to_the_lower_label(stride: int) -> None:
    """Rows of 0, 1, 2, ..., whose positions are known as fractions."""
    for source in range(33, 300, 7):
        target = -(-source // stride)
        labels = jnp.arange(source, dtype=jnp.int32)[None, :, None]
        found = resize_labels(labels, (target, 1), align_corners=True)[0, :, 0]
        exact = [Fraction(row * (source - 1), target - 1) for row in range(target)]
        assert found.tolist() == [math.ceil(position - Fraction(1, 2)) for position in exact]


def test_labels_are_never_mixed() -> None:
    """255 next to 0 must not become a class in between."""
    labels = jnp.asarray([[[0, 255], [255, 3]]], jnp.uint8)
    found = resize_labels(labels, (7, 5), align_corners=True)
    assert set(np.unique(found).tolist()) == {0, 3, 255}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("source", "target"), first_fast([(33, 513), (17, 4), (1, 5), (2, 3), (7, 1), (129, 1025), (9, 9)], fast=2)
)
def test_weights_computed_at_run_time_are_the_constants(source: int, target: int, align_corners: bool) -> None:
    computed = np.asarray(computed_interpolation_matrix(source, target, align_corners))
    constant = interpolation_matrix(source, target, align_corners)
    assert computed.shape == constant.shape and computed.dtype == constant.dtype
    np.testing.assert_allclose(computed, constant, atol=1e-6)


def test_centre_crop() -> None:
    x = jnp.arange(30).reshape(1, 5, 6, 1)
    assert centre_crop(x, (3, 2))[0, :, :, 0].tolist() == [[8, 9], [14, 15], [20, 21]]
    # An odd remainder is cut off at the end; labels have no channels.
    assert centre_crop(x[..., 0], (4, 6))[0, :, 0].tolist() == [0, 6, 12, 18]
    np.testing.assert_array_equal(centre_crop(x, (5, 6)), x)
