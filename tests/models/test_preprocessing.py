"""Preprocessing: stored values to what a network expects, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing


def test_imagenet_by_hand() -> None:
    image = jnp.asarray([[[0, 0, 0], [255, 255, 255]]], jnp.uint8)
    expected = [
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225],
    ]
    for call in (IMAGENET, jax.jit(IMAGENET)):
        found = call(image)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_symmetric_by_hand() -> None:
    image = jnp.asarray([[[0, 51, 255]]], jnp.uint8)
    np.testing.assert_allclose(SYMMETRIC(image)[0, 0], [-1, -0.6, 1], atol=1e-6)


def test_batches_and_single_images_are_alike() -> None:
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)), jnp.uint8)
    np.testing.assert_array_equal(IMAGENET(images)[1], IMAGENET(images[1]))


@pytest.mark.parametrize(("record", "expected"), [(IMAGENET, (124, 116, 104)), (SYMMETRIC, (128, 128, 128))])
def test_the_mean_pixel_becomes_zero(record: Preprocessing, expected: tuple[int, int, int]) -> None:
    """Up to the rounding to stored values: zeros around a preprocessed image are mean pixels around the stored one."""
    assert record.mean_pixel == expected
    low, high = record.value_range
    step = (high - low) / 255 / min(record.std)
    assert np.abs(record(jnp.asarray([[expected]], jnp.uint8))).max() <= 0.51 * step


def test_the_mean_is_in_units_of_the_range() -> None:
    record = Preprocessing((0.0, 255.0), (123.0, 117.0, 104.0), (1.0, 1.0, 1.0))
    assert record.mean_pixel == (123, 117, 104)
    np.testing.assert_allclose(record(jnp.asarray([[[124, 117, 100]]], jnp.uint8))[0, 0], [1, 0, -4], atol=1e-4)


def test_records_are_compared_and_hashed_by_value() -> None:
    copy = Preprocessing(IMAGENET.value_range, IMAGENET.mean, IMAGENET.std)
    assert copy == IMAGENET
    assert hash(copy) == hash(IMAGENET)
    assert copy != SYMMETRIC
