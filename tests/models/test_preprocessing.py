"""Preprocessing: stored values to what a network expects, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model, describe, from_description
from deeplab_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing
from deeplab_jax.models.segmenter import abstract_variables


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
def test_the_mean_pixel_becomes_zero(record: Preprocessing, expected: tuple[int, ...]) -> None:
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


def test_other_numbers_of_channels_have_the_average_of_the_means() -> None:
    record = IMAGENET.for_channels(4)
    np.testing.assert_allclose(record.mean, [(0.485 + 0.456 + 0.406) / 3] * 4)
    np.testing.assert_allclose(record.std, [0.226] * 4)
    assert record.mean_pixel == (114, 114, 114, 114)  # 0.449 * 255 = 114.5, a little less
    assert record.bands == (0, 1, 2, 3)
    assert IMAGENET.bands == ()
    assert IMAGENET.for_channels(3) is IMAGENET
    levels = jnp.asarray([[0, 51, 127.5, 255]], jnp.float32)
    expected = (np.asarray([0, 0.2, 0.5, 1]) - 0.449) / 0.226
    np.testing.assert_allclose(record(levels)[0], expected, rtol=1e-5)


def test_stored_integers_become_levels_without_rounding() -> None:
    stored = np.asarray([0, 100, 257, 65535], np.uint16)
    np.testing.assert_allclose(IMAGENET.levels(stored), [0, 100 / 257, 1, 255], rtol=1e-6)
    twelve = Preprocessing((0.0, 1.0), (0.5,), (0.25,), channels=(2,), stored_range=(100.0, 4195.0))
    np.testing.assert_allclose(twelve.levels(np.asarray([0, 100, 4195, 9999], np.uint16)), [0, 0, 255, 255])
    np.testing.assert_allclose(twelve.levels(np.asarray([100, 241], np.uint8))[1], 141 * 255 / 4095, rtol=1e-6)
    for same in (np.asarray([0, 7, 255], np.uint8), np.asarray([0.5, 7.25], np.float32)):
        assert IMAGENET.levels(same) is same


def test_options_decide_the_number_of_channels_and_travel_with_the_description() -> None:
    for options, count in (
        ({"in_channels": 1}, 1),
        ({"channels": (3, 0)}, 2),
        ({"mean": (0.1, 0.2, 0.3, 0.4), "std": (1.0, 1.0, 1.0, 1.0)}, 4),
        ({"in_channels": 12, "stored_range": (0.0, 3000.0)}, 12),
        ({}, 3),
    ):
        model = create_model("deeplabv3_mobilenet_v2", width=0.25, **options)
        assert model.in_channels == count
        assert abstract_variables(model)["params"]["backbone"]["stem"]["conv"]["kernel"].shape[2] == count
        again = from_description(describe(model))
        assert again.preprocessing == model.preprocessing
        assert hash(again) == hash(model)
    assert create_model("deeplabv3_mobilenet_v2", in_channels=3).preprocessing == SYMMETRIC


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels=0: give a whole number from 1"),
        ({"in_channels": "4"}, "in_channels='4': give a whole number from 1"),
        ({"in_channels": 4, "channels": (0, 1)}, "2 bands for a network of 4 channels; give 4 bands, such as 0,1,2,3"),
        ({"channels": (0, -1, 2)}, "give the numbers of bands, from 0"),
        ({"mean": (0.5,), "std": (1.0, 1.0)}, "give one value of each for every channel"),
        ({"std": (1.0, 0.0, 1.0)}, "those of std above 0"),
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            r"mean=\(123.675, 116.28, 103.53\): outside value_range=\(-1.0, 1.0\); .* or value_range=\(0,255\)",
        ),
        ({"mean": (0.0, -1.5, 0.0)}, r"mean=\(0.0, -1.5, 0.0\): outside value_range=\(-1.0, 1.0\)"),
        ({"value_range": (1.0,)}, r"value_range=\(1.0,\): give tuple\[float, float\]"),
        ({"value_range": (1.0, 0.0)}, "value_range=.*give two numbers, the lower one first"),
        ({"stored_range": (9.0, 9.0)}, "stored_range=.*give two numbers, the lower one first"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_model("deeplabv3_mobilenet_v2", width=0.25, **options)


def test_images_of_other_channels_are_refused_by_their_number() -> None:
    model = create_model("deeplabv3_mobilenet_v2", width=0.25, in_channels=4)
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    with pytest.raises(UserError, match="this network takes 4 channels"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
