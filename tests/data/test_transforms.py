"""Augmentation: values worked out by hand, and the promise that an image and its label never drift apart."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.data import colour, transforms
from deeplab_jax.data.augment import augment
from deeplab_jax.errors import UserError

FILL = (7, 8, 9)


def positions(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image that stores its own coordinates (row, column, 100), and a label that stores the column."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, 100)], axis=-1), columns


def random_pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 21, (height, width), np.uint8)


def test_resize_pair_doubles_by_hand() -> None:
    image = np.repeat(np.array([[[0], [100]]], np.uint8), 3, axis=2)
    resized, label = transforms.resize_pair(image, np.array([[1, 2]], np.uint8), (1, 4))
    # Centres at 0, 0.25, 0.75 and 1 of the source once the edges are repeated.
    assert resized[0, :, 0].tolist() == [0, 25, 75, 100]
    assert label.tolist() == [[1, 1, 2, 2]]


def test_resize_pair_thirds_by_hand() -> None:
    label = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8]], np.uint8)
    image = np.repeat((label * 10)[..., None], 3, axis=2)
    resized, small = transforms.resize_pair(image, label, (1, 3))
    assert small.tolist() == [[1, 4, 7]]
    assert resized[0, :, 0].tolist() == [10, 40, 70]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 300), st.integers(1, 300))
def test_label_is_nearest_to_the_image(height: int, width: int, new_height: int, new_width: int) -> None:
    image, columns = positions(height, width)
    resized, label = transforms.resize_pair(image, columns, (new_height, new_width))
    # The image says from which column each pixel came, rounded to an integer; the label's column lies within half a
    # pixel of it.
    assert np.abs(resized[..., 1].astype(int) - label).max() <= 1
    exact = (np.arange(new_width) + 0.5) * width / new_width - 0.5
    assert np.abs(label - exact).max() <= 0.5 + 1e-9
    assert np.abs(resized[..., 1] - np.clip(exact, 0, width - 1)).max() <= 0.5 + 1 / 16


@pytest.mark.parametrize("size", [(375, 500), (750, 1000), (281, 375), (188, 250), (649, 865), (33, 41)])
def test_label_resized_as_an_image_agrees(size: tuple[int, int]) -> None:
    label = np.zeros((375, 500), np.uint8)
    cv2.circle(label, (250, 180), 120, 1, -1)
    cv2.rectangle(label, (20, 30), (90, 330), 1, -1)
    image = np.repeat((label * 255)[..., None], 3, axis=2)
    resized, small = transforms.resize_pair(image, label, size)
    # They differ along the boundary only, and neither is shifted: what remains is the choice between two equally near
    # pixels.
    as_image = resized[..., 0] > 127
    boundary = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    assert not (as_image != small)[~boundary].any()
    centroid = [np.argwhere(mask).mean(axis=0) for mask in (as_image, small)]
    assert np.abs(centroid[0] - centroid[1]).max() < 0.3


def bilinear(values: np.ndarray, size: int) -> np.ndarray:
    """Resize the first axis in float64, half-pixel centres."""
    position = np.clip((np.arange(size) + 0.5) * len(values) / size - 0.5, 0, len(values) - 1)
    low = position.astype(int)
    weight = (position - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - weight) + values[np.minimum(low + 1, len(values) - 1)] * weight


@pytest.mark.parametrize("size", [(188, 250), (281, 375), (469, 625), (750, 1000), (601, 333)])
def test_image_resize_is_bilinear(size: tuple[int, int]) -> None:
    image, label = random_pair(375, 500)
    resized, _ = transforms.resize_pair(image, label, size)
    expected = bilinear(bilinear(image.astype(float), size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)
    assert np.abs(resized - expected).max() < 0.6


def test_window_equals_crop_of_the_whole() -> None:
    image, label = random_pair(120, 97)
    whole_image, whole_label = transforms.resize_pair(image, label, (151, 211))
    part_image, part_label = transforms.resize_pair(image, label, (151, 211), window=(13, 40, 60, 171))
    assert np.abs(part_image.astype(int) - whole_image[13:73, 40:211]).max() <= 1
    np.testing.assert_array_equal(part_label, whole_label[13:73, 40:211])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(0, 1000),
    st.booleans(),
)
def test_augment_equals_its_parts(height: int, width: int, h: int, w: int, seed: int, jittered: bool) -> None:
    image, label = random_pair(height, width, seed)
    strength = 0.4 if jittered else 0.0
    whole = augment(image, label, np.random.default_rng(seed), crop_size=(h, w), color_jitter=strength, fill=FILL)
    rng = np.random.default_rng(seed)
    size = transforms.sample_size(rng, (height, width), scale_range=(0.5, 2.0), scale_step=0.25)
    image, label = transforms.resize_pair(image, label, size)
    if jittered:
        image = colour.apply_jitter(image, colour.sample_jitter(rng, strength))
    image, label = transforms.pad_to(image, label, (h, w), fill=FILL)
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(label.shape, (h, w), strict=True))
    image, label = image[top : top + h, left : left + w], label[top : top + h, left : left + w]
    image, label = transforms.random_flip(image, label, rng)
    assert whole[0].shape == (h, w, 3) and whole[1].shape == (h, w)
    assert whole[0].dtype == whole[1].dtype == np.uint8
    # One level of rounding in the resize becomes at most two after the jitter.
    assert np.abs(whole[0].astype(int) - image).max() <= (3 if jittered else 1)
    np.testing.assert_array_equal(whole[1], label)


@pytest.mark.parametrize("step", [0.25, 0.0])
def test_augment_keeps_the_pair_together(step: float) -> None:
    image, columns = positions(90, 120)
    image[..., 2] = columns
    for seed in range(40):
        pixels, label = augment(
            image, columns, np.random.default_rng(seed), crop_size=(64, 80), scale_step=step, fill=FILL
        )
        inside = label != 255
        assert np.abs(pixels[..., 1].astype(int) - label)[inside].max() <= 1
        assert (pixels[~inside] == FILL).all()


def test_augment_is_a_function_of_the_generator() -> None:
    image, label = random_pair(80, 100)
    before = image.copy(), label.copy()
    how = {"crop_size": (65, 65), "fill": FILL, "color_jitter": 0.2}
    first, second, other = (augment(image, label, np.random.default_rng(seed), **how) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_scale_steps_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    drawn = {transforms.sample_scale(rng, scale_range=(0.5, 2.0), scale_step=0.25) for _ in range(300)}
    assert drawn == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}
    tenths = {round(transforms.sample_scale(rng, scale_range=(0.7, 1.3), scale_step=0.2), 9) for _ in range(100)}
    assert tenths == {0.7, 0.9, 1.1, 1.3}


def test_continuous_scale_stays_in_its_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [transforms.sample_scale(rng, scale_range=(0.5, 2.0), scale_step=0) for _ in range(200)]
    assert 0.5 <= min(drawn) < 0.6 and 1.9 < max(drawn) <= 2.0
    assert transforms.sample_scale(rng, scale_range=(1, 1), scale_step=0.25) == 1


def test_pad_to_by_hand() -> None:
    image, label = np.full((1, 2, 3), 50, np.uint8), np.array([[3, 4]], np.uint8)
    padded, ignored = transforms.pad_to(image, label, (2, 3), fill=FILL)
    assert ignored.tolist() == [[3, 4, 255], [255, 255, 255]]
    assert padded[0, 1].tolist() == [50] * 3 and padded[1, 0].tolist() == padded[0, 2].tolist() == list(FILL)
    assert transforms.pad_to(image, label, (1, 1), fill=FILL)[0] is image


def test_every_crop_position_is_drawn() -> None:
    rng = np.random.default_rng(0)
    windows = {transforms.sample_window(rng, (5, 6), (3, 4)) for _ in range(200)}
    assert windows == {(row, column, 3, 4) for row in range(3) for column in range(3)}


def test_flip_is_drawn_half_of_the_time() -> None:
    image, columns = positions(2, 3)
    rng = np.random.default_rng(0)
    flips = []
    for _ in range(400):
        pixels, label = transforms.random_flip(image, columns, rng)
        np.testing.assert_array_equal(pixels[..., 1], label)
        flips.append(label[0, 0] == 2)
    assert 160 < sum(flips) < 240


def test_jitter_by_hand() -> None:
    grey = np.full((1, 1, 3), 100, np.uint8)
    brightness, contrast = np.eye(3) * 1.2, np.full((3, 1), 0.0)
    assert colour.apply_jitter(grey, np.hstack([brightness, contrast]))[0, 0].tolist() == [120] * 3
    rng = np.random.default_rng(3)
    factors = np.random.default_rng(3).uniform(0.6, 1.4, 3)
    expected = np.clip((100 * factors[0] - 127.5) * factors[1] + 127.5, 0, 255)
    # Grey has no saturation to change.
    found = colour.apply_jitter(grey, colour.sample_jitter(rng, 0.4))
    np.testing.assert_allclose(found[0, 0], expected, atol=0.51)


@pytest.mark.parametrize(
    "options, value",
    [
        ({"scale_range": (0, 1)}, "0..1"),
        ({"scale_range": (2, 1)}, "2..1"),
        ({"scale_step": -1}, "-1"),
        ({"color_jitter": 1.5}, "1.5"),
        ({"crop_size": (0, 3)}, "(0, 3)"),
    ],
)
def test_bad_options_are_named(options: dict, value: str) -> None:
    image, label = random_pair(4, 5)
    with pytest.raises(UserError, match="give") as error:
        augment(image, label, np.random.default_rng(0), **{"crop_size": (4, 4), "fill": FILL, **options})
    assert value in str(error.value)


def test_a_pair_of_two_sizes_is_refused() -> None:
    image, label = random_pair(4, 5)
    with pytest.raises(ValueError, match="one size"):
        transforms.pad_to(image, label[:3], (8, 8), fill=FILL)
