"""Augmentation beside the papers': values worked out by hand, and an image and its label that never drift apart."""

import dataclasses

import cv2
import numpy as np
import pytest

from deeplab_jax.config import load_config
from deeplab_jax.config_keys import Augment
from deeplab_jax.data import colour, transforms, warp
from deeplab_jax.data.augment import augment, check_augment, choose_window, cut_out, resized, sample_warp
from deeplab_jax.errors import UserError

FILL = (7, 8, 9)
GEOMETRY = {
    "vertical_flip": {"vertical_flip": True},
    "quarter_turns": {"quarter_turns": True},
    "rotation": {"rotation": 180.0},
    "perspective": {"perspective": 0.2},
    "elastic": {"elastic": 6.0, "elastic_grid": 4},
    "resize": {"resize": (70, 45)},
    "shorter side": {"resize": (50,)},
    "keep_ratio": {"resize": (60, 150), "keep_ratio": True},
    "cat_max_ratio": {"cat_max_ratio": 0.5},
}
VALUES = {
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.3},
    "saturation": {"saturation": 0.9},
    "hue": {"hue": 180.0},
    "gamma": {"gamma": 0.5},
    "blur": {"blur": 1.5},
    "noise": {"noise": 20.0},
    "jpeg": {"jpeg": 20},
    "cutout": {"cutout": 3, "cutout_ignored": True},
}
ALL = {**GEOMETRY, **VALUES}
ANY_CHANNELS = ("brightness", "contrast", "gamma", "blur", "noise", "cutout")


def options(*names: str, probability: float = 1.0) -> Augment:
    """Those augmentations of the table."""
    return Augment(probability=probability, **{k: v for name in names for k, v in ALL[name].items()})  # type: ignore


CHAINS = {name: options(name) for name in ALL}
CHAINS["all"] = options("vertical_flip", "quarter_turns", "rotation", "perspective", "elastic", "keep_ratio", *VALUES)
CHAINS["some"] = dataclasses.replace(CHAINS["all"], probability=0.5)


def positions(height: int, width: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """An image that stores its own coordinates (row, column, 100), and a label that stores the column."""
    rows, columns = np.mgrid[0:height, 0:width].astype(dtype)
    return np.stack([rows, columns, np.full_like(rows, 100)], axis=-1), columns.astype(np.uint8)


def varied(image: np.ndarray, label: np.ndarray, seed: int, more: Augment, **how) -> tuple[np.ndarray, np.ndarray]:
    how = {"crop_size": (64, 80), "fill": FILL, "scale_step": 0.0, **how}
    return augment(image, label, np.random.default_rng(seed), more=more, **how)


# The image and its label together.


@pytest.mark.parametrize("name", [*GEOMETRY, "together"])
def test_every_pixel_of_an_image_lies_where_its_label_lies(name) -> None:
    """The image says in float32 from where each pixel came; its label is the nearest one."""
    image, columns = positions(90, 120)
    together = options("vertical_flip", "quarter_turns", "rotation", "perspective", "elastic", "keep_ratio")
    more, inside_share = together if name == "together" else CHAINS[name], []
    for seed in range(12):
        pixels, label = varied(image, columns, seed, more)
        assert pixels.shape == (64, 80, 3) and label.shape == (64, 80)
        inside = label != 255
        assert np.abs(pixels[..., 1] - label)[inside].max(initial=0) <= 0.51
        np.testing.assert_array_equal(pixels[~inside], np.broadcast_to(FILL, pixels.shape)[~inside])
        np.testing.assert_allclose(pixels[inside][:, 2], 100, atol=1e-3)  # No padding is mixed in.
        inside_share.append(inside.mean())
    assert np.mean(inside_share) > 0.4


@pytest.mark.parametrize("name", CHAINS)
def test_a_blob_stays_under_its_label(name) -> None:
    """A light disc turns, bends and changes its colour. Its label's centre is that of the image's light pixels."""
    compared = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        centre = tuple(int(x) for x in rng.integers(25, 75, 2))
        image, label = np.full((100, 100, 3), 40, np.uint8), np.zeros((100, 100), np.uint8)
        cv2.circle(image, centre, 11, (235, 200, 180), -1)
        cv2.circle(label, centre, 11, 1, -1)
        how = {"fill": (40, 40, 40), "scale_range": (0.8, 1.5), "crop_size": (90, 90)}
        pixels, ids = varied(image, label, seed, CHAINS[name], **how)
        # The threshold of Otsu (1979) between light and dark, because colours change. Padding keeps its own.
        grey = pixels.mean(axis=2).astype(np.uint8)
        light = grey > cv2.threshold(grey[ids != 255], 0, 1, cv2.THRESH_OTSU)[0]
        disc = ids == 1
        if disc.sum() < 100:
            continue
        compared += 1
        assert np.count_nonzero(light & (ids == 0)) < 0.15 * disc.sum(), seed
        apart = np.argwhere(light & (ids != 255)).mean(axis=0) - np.argwhere(disc).mean(axis=0)
        assert np.abs(apart).max() < 0.8, seed
    assert compared > 10


@pytest.mark.parametrize("name", CHAINS)
def test_labels_get_no_new_class(name) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (50, 70, 3), np.uint8), rng.choice([3, 90, 255], (50, 70)).astype(np.uint8)
    for seed in range(5):
        assert set(np.unique(varied(image, label, seed, CHAINS[name])[1])) <= {3, 90, 255}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_number_of_channels_and_labels(channels, dtype) -> None:
    """Band k is the first one plus k, and label k is the first one, whatever happens to their places."""
    more = options("vertical_flip", "quarter_turns", "rotation", "perspective", "elastic", "shorter side", "cutout")
    image = np.random.default_rng(0).integers(0, 200, (60, 70, 1)).astype(dtype) + np.arange(channels, dtype=dtype)
    label = np.repeat(np.random.default_rng(1).integers(0, 2, (60, 70, 1), np.uint8), 2, axis=2)
    for seed in range(4):
        fill = tuple(range(50, 50 + channels))
        pixels, several = varied(image, label, seed, more, fill=fill)
        _, one = varied(image, label[..., 0], seed, more, fill=fill)
        assert pixels.shape == (64, 80, channels) and pixels.dtype == dtype
        assert several.shape == (64, 80, 2) and one.shape == (64, 80)
        np.testing.assert_array_equal(several, np.repeat(one[..., None], 2, axis=2))
        apart = pixels.astype(float) - pixels[..., :1] - np.arange(channels)
        assert np.abs(apart).max() <= (1 if dtype == np.uint8 else 1e-4)


@pytest.mark.parametrize("name", ["all", "some"])
def test_it_is_a_function_of_the_generator_and_writes_into_nothing(name) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (80, 100, 3), np.uint8), rng.integers(0, 5, (80, 100), np.uint8)
    image.setflags(write=False)
    label.setflags(write=False)
    first, again, other = (varied(image, label, seed, CHAINS[name]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


# Geometry by hand.


def test_a_quarter_turn_and_a_vertical_flip_by_hand() -> None:
    label = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    image = np.repeat(label[..., None] * 10, 3, axis=2)
    how = {"crop_size": (3, 3), "scale_range": (1.0, 1.0), "flip": False}
    flips, turns = set(), set()
    for seed in range(30):
        pixels, ids = varied(image, label, seed, Augment(vertical_flip=True), **how)
        np.testing.assert_array_equal(pixels[ids != 255][:, 0], ids[ids != 255] * 10)
        flips.add(str(np.where(ids == 255, 0, ids).tolist()))
        pixels, ids = varied(image, label, seed, Augment(quarter_turns=True), **how)
        turns.add(str(np.where(ids == 255, 0, ids).tolist()))
    assert flips == {"[[1, 2, 3], [4, 5, 6], [0, 0, 0]]", "[[0, 0, 0], [4, 5, 6], [1, 2, 3]]"}
    assert turns == {
        "[[1, 2, 3], [4, 5, 6], [0, 0, 0]]",
        "[[3, 6, 0], [2, 5, 0], [1, 4, 0]]",  # Counter-clockwise: the right column becomes the first row.
        "[[0, 0, 0], [6, 5, 4], [3, 2, 1]]",
        "[[0, 4, 1], [0, 5, 2], [0, 6, 3]]",
    }


def crop_positions(size: tuple[int, int], matrix: np.ndarray | None = None, **how) -> np.ndarray:
    """The positions of a crop that is the whole image."""
    return warp.source_positions(size, window=(0, 0, *size), size=size, source=size, warp=matrix, **how)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_rotation_by_right_angles_is_a_quarter_turn(turns) -> None:
    image, columns = positions(9, 9)
    pixels, label, outside = warp.read_at(image, columns, crop_positions((9, 9), warp.rotation(90 * turns)), fill=FILL)
    np.testing.assert_allclose(pixels, np.rot90(image, turns), atol=1e-4)
    np.testing.assert_array_equal(label, np.rot90(columns, turns))
    assert not outside.any()


def test_perspective_by_hand() -> None:
    size = (40, 80)
    identity = crop_positions(size)
    np.testing.assert_allclose(identity[3, 5], (5, 3))
    np.testing.assert_allclose(crop_positions(size, warp.perspective(np.zeros((4, 2)), size)), identity, atol=1e-4)
    # All corners a quarter of the side to the right: a shift by 20 pixels.
    moved = crop_positions(size, warp.perspective(np.tile([0.25, 0.0], (4, 1)), size))
    np.testing.assert_allclose(moved, identity + np.array([20, 0]), atol=1e-4)
    # The upper left corner alone: the pixel there shows 0.1 sides inwards, the opposite corner stays.
    shifts = np.array([[0.1, 0.1], [0, 0], [0, 0], [0, 0]])
    matrix = warp.perspective(shifts, size)
    corners = cv2.perspectiveTransform(np.array([[[-40.0, -20.0], [40.0, 20.0]]]), matrix)
    np.testing.assert_allclose(corners[0], [[-32, -16], [40, 20]], atol=1e-4)


def test_a_crop_is_turned_and_tilted_at_once() -> None:
    """A small tilt leaves the direction of the crop's middle as the rotation turned it, and its size."""
    more, directions = Augment(probability=1.0, rotation=180.0, perspective=0.02), []
    tilts = []
    for seed in range(30):
        matrix, displacement = sample_warp(np.random.default_rng(seed), more, (50, 50))
        assert matrix is not None and displacement is None
        start, end = cv2.perspectiveTransform(np.array([[[0.0, 0.0], [1.0, 0.0]]]), matrix)[0]
        assert 0.8 < np.linalg.norm(end - start) < 1.2
        corner = cv2.perspectiveTransform(np.array([[[-25.0, -25.0]]]), matrix)[0, 0]
        tilts.append(np.linalg.norm(corner) / np.linalg.norm([25, 25]))
        directions.append(np.degrees(np.arctan2(*(end - start)[::-1])))
    assert min(directions) < -120 and max(directions) > 120 and np.std(directions) > 70
    assert 0.005 < np.std(tilts) < 0.05


def test_elastic_displacements_by_hand() -> None:
    assert warp.elastic(np.zeros((3, 3, 2)), (20, 30)).shape == (20, 30, 2)
    constant = warp.elastic(np.tile([4.0, -2.0], (3, 3, 1)), (20, 30))
    np.testing.assert_allclose(constant, np.tile([4.0, -2.0], (20, 30, 1)), atol=1e-6)
    # In pixels of the resized image: half as many of one that was twice as small.
    how = {"window": (0, 0, 20, 30), "size": (20, 30), "source": (10, 15)}
    straight = warp.source_positions((20, 30), **how)
    np.testing.assert_allclose(
        warp.source_positions((20, 30), displacement=constant, **how), straight + np.array([2, -1])
    )
    np.testing.assert_allclose(straight[0, :3, 0], [-0.25, 0.25, 0.75])


def test_reading_at_positions_by_hand() -> None:
    image, label = np.array([[[10.0], [30.0]]], np.float32), np.array([[1, 2]], np.uint8)
    at = np.array([[[0.25, 0], [0.5, 0], [-0.5, 0], [-0.51, 0], [1.49, 0.49], [1.5, 0], [0, -7]]], float)
    pixels, ids, outside = warp.read_at(image, label, at, fill=(99,))
    assert ids.tolist() == [[1, 2, 1, 255, 2, 255, 255]]
    assert pixels[..., 0].tolist() == [[15, 20, 10, 99, 30, 99, 99]]
    assert outside[0].tolist() == [False, False, False, True, False, True, True]


def test_a_rotated_crop_shows_what_lies_around_it() -> None:
    """A crop from the middle of a larger image has no padding in its corners."""
    image, columns = positions(250, 250)
    window = (100, 100, 50, 50)
    for degrees in range(0, 180, 7):
        how = {"window": window, "size": (250, 250), "source": (250, 250)}
        at = warp.source_positions((50, 50), warp=warp.rotation(degrees), **how)
        assert not warp.read_at(image, columns, at, fill=FILL)[2].any()
        np.testing.assert_allclose(at.mean(axis=(0, 1)), (124.5, 124.5))


def test_a_small_image_is_turned_around_the_crops_centre() -> None:
    """Of an image of 40x120 at the upper left of a crop of 129x129, turned by 90 degrees, every pixel stays."""
    image, columns = positions(40, 120)
    how = {"window": (0, 0, 40, 120), "size": (40, 120), "source": (40, 120)}
    at = warp.source_positions((129, 129), warp=warp.rotation(90), **how)
    _, label, outside = warp.read_at(image, columns, at, fill=FILL)
    assert (~outside).sum() == 40 * 120
    np.testing.assert_array_equal(label, np.rot90(np.pad(columns, ((0, 89), (0, 9)), constant_values=255)))


def test_sizes_by_hand() -> None:
    assert resized((375, 500), ()) == (375, 500)
    assert resized((375, 500), (512,)) == (512, 683)  # 682.67
    assert resized((500, 375), (512,)) == (683, 512)
    assert resized((375, 500), (100, 300)) == (100, 300)
    # mmsegmentation's scale (2048, 512): longer side at most 2048, shorter at most 512, turned or not.
    assert resized((1024, 2048), (512, 2048), keep_ratio=True) == (512, 1024)
    assert resized((2048, 1024), (512, 2048), keep_ratio=True) == (1024, 512)
    assert resized((200, 1600), (512, 2048), keep_ratio=True) == (256, 2048)
    assert resized((3, 1), (1,)) == (3, 1) and resized((1, 900), (2, 3), keep_ratio=True) == (1, 3)


# Crops by their classes.


def test_cat_max_ratio_by_hand() -> None:
    """Of five crops only the last has two classes of which none has three quarters or more: 0 0 1 1."""
    label = np.array([[0, 0, 0, 0, 0, 0, 1, 1]], np.uint8)

    def drawn(**how: object) -> list[int]:
        return [
            choose_window(np.random.default_rng(seed), label, (1, 8), (1, 4), **how)[1]  # type: ignore[arg-type]
            for seed in range(300)
        ]

    assert 35 < drawn().count(4) < 85  # 60
    # Eleven draws, the last of which is taken as it is: 1 - 0.8 ** 11 = 91.4%.
    assert 255 < drawn(cat_max_ratio=0.75).count(4) < 293
    assert set(drawn(cat_max_ratio=0.76)[:50]) <= {0, 1, 2, 3, 4}
    assert 285 < sum(left >= 3 for left in drawn(cat_max_ratio=0.76)) <= 300  # 1 - 0.6 ** 11
    assert 35 < drawn(cat_max_ratio=0.5).count(4) < 85  # None fits: any crop.


def test_ignored_pixels_and_several_labels_count_as_they_should() -> None:
    rng = np.random.default_rng
    label = np.array([[0, 0, 0, 255, 255, 255, 0, 1]], np.uint8)  # Of the last four, two count: a half each.
    found = [choose_window(rng(seed), label, (1, 8), (1, 4), cat_max_ratio=0.6)[1] for seed in range(60)]
    assert found.count(4) > 40
    several = np.where(label[..., None] == 255, 255, label[..., None] == np.arange(2)).astype(np.uint8)
    assert found == [choose_window(rng(seed), several, (1, 8), (1, 4), cat_max_ratio=0.6)[1] for seed in range(60)]


def test_to_have_no_label_is_no_class() -> None:
    """A quarter of the crop has the one label that occurs, and all of it is known: it is taken as it is drawn first."""
    label = np.zeros((1, 40, 2), np.uint8)
    label[0, ::4, 0] = 1
    for seed in range(20):
        first = transforms.sample_window(np.random.default_rng(seed), (1, 40), (1, 8))
        assert choose_window(np.random.default_rng(seed), label, (1, 40), (1, 8), cat_max_ratio=0.5) == first


def test_a_crop_holds_the_class_that_is_wanted() -> None:
    image, label = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8)
    label[60:80, 60:80] = 5  # 400 pixels: a quarter of all crops of 50 x 50 hold more than 200.
    how = {"crop_size": (50, 50), "scale_range": (1.0, 1.0), "fill": FILL}
    held = [
        [np.sum(augment(image, label, np.random.default_rng(seed), wanted=wanted, **how)[1] == 5) for seed in range(80)]
        for wanted in (None, (5, 200))
    ]
    assert np.mean(np.array(held[0]) > 200) < 0.6 and np.mean(np.array(held[1]) > 200) > 0.95


# Values by hand.


def test_gamma_by_hand() -> None:
    image = np.array([[[0], [64], [255]]], np.uint8)
    assert colour.apply_gamma(image, 2.0)[0, :, 0].tolist() == [0, 16, 255]  # 255 * (64 / 255) ** 2 = 16.06
    np.testing.assert_allclose(colour.apply_gamma(image.astype(np.float32), 2.0)[0, 1, 0], 16.0627, atol=1e-3)
    rng, exponents = np.random.default_rng(0), []
    for _ in range(200):
        exponents.append(np.log(colour.gamma(np.full((1, 1, 1), 127.5, np.float32), rng, 0.5) / 255) / np.log(0.5))
    assert 1 / 1.5 <= np.min(exponents) < 0.7 and 1.45 < np.max(exponents) <= 1.5 + 1e-4


def test_contrast_and_brightness_by_hand() -> None:
    image = np.full((1, 1, 4), 100, np.float32)
    for strengths, expected in (((0.2, 0, 0), lambda f: 100 * f), ((0, 0.2, 0), lambda f: (100 - 127.5) * f + 127.5)):
        factor = np.random.default_rng(3).uniform(1 - np.array(strengths), 1 + np.array(strengths)).prod()
        colours = colour.sample_jitter(np.random.default_rng(3), strengths, channels=4)
        np.testing.assert_allclose(colour.apply_jitter(image, colours), expected(factor), rtol=1e-6)
    one, three = (colour.sample_jitter(np.random.default_rng(3), s) for s in (0.3, (0.3, 0.3, 0.3)))
    np.testing.assert_array_equal(one, three)


def test_hue_by_hand() -> None:
    for degrees in (-170, -40, 15, 90):
        matrix = colour.hue_matrix(degrees)
        np.testing.assert_allclose(matrix @ [80, 80, 80], [80, 80, 80], atol=1e-9)
        luma = np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(luma @ matrix @ [200, 30, 90], luma @ [200, 30, 90], atol=1e-9)
        np.testing.assert_allclose(matrix @ colour.hue_matrix(-degrees), np.eye(3), atol=1e-9)
    red, green, blue = colour.hue_matrix(120) @ [200, 50, 50]
    assert green > red > 0 and green > blue  # Red turns towards green.


def test_noise_blur_and_jpeg_do_what_they_say() -> None:
    image = np.full((64, 64, 3), 120, np.uint8)
    deviations = [colour.noise(image, np.random.default_rng(seed), 20.0).std() for seed in range(40)]
    assert np.min(deviations) < 4 and 16 < np.max(deviations) <= 21
    spot = np.zeros((33, 33, 7), np.float32)
    spot[16, 16] = 200
    blurred = colour.blur(spot, np.random.default_rng(2), 3.0)
    assert blurred.shape == spot.shape and blurred.max() < 100
    np.testing.assert_allclose(blurred.sum(axis=(0, 1)), 200, rtol=1e-3)
    rows, columns = np.nonzero(blurred[..., 0] > blurred.max() / 2)
    assert abs(rows.mean() - 16) < 0.01 and abs(columns.mean() - 16) < 0.01
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    photo = np.stack([smooth + 100, smooth, 127 - smooth], axis=-1)
    for strength, most in ((100, 3), (5, 40)):
        packed = colour.jpeg(photo, np.random.default_rng(0), strength)
        apart = np.abs(packed.astype(int) - photo)
        assert apart.max() > 0 and apart.mean() < most  # Red stays red.
    # In columns of two colours of one luma (115), JPEG's halved colours become one. With red and blue exchanged, the
    # two would have another luma each.
    columns = np.tile(np.array([[150, 100, 100], [100, 100, 231]], np.uint8), (64, 32, 1))
    assert colour.jpeg(columns, np.random.default_rng(0), 100).std(axis=(0, 1)).max() < 3
    assert colour.jpeg(photo[..., :1], np.random.default_rng(0), 50).shape == (64, 64, 1)


@pytest.mark.parametrize("name", ANY_CHANNELS)
def test_values_of_many_channels(name) -> None:
    image, label = np.full((9, 9, 200), 90, np.uint8), np.zeros((9, 9), np.uint8)
    pixels, _ = varied(image, label, 1, CHAINS[name], fill=(0,) * 200, crop_size=(9, 9), scale_range=(1.0, 1.0))
    assert pixels.shape == image.shape


@pytest.mark.parametrize("name", ANY_CHANNELS)
def test_values_of_floats_keep_their_fractions_and_their_range(name) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (40, 40, 5)).astype(np.float32)
    label = np.zeros((40, 40), np.uint8)
    how = {"crop_size": (40, 40), "scale_range": (1.0, 1.0), "fill": (1,) * 5}
    pixels, _ = varied(image, label, 1, CHAINS[name], **how)
    assert pixels.dtype == np.float32 and (pixels != image).any()
    assert pixels.min() >= 0 and pixels.max() <= 255 and (pixels % 1 != 0).mean() > 0.5


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("turned", [(), ("rotation",)])
def test_padding_keeps_its_colour(name, turned) -> None:
    image, label = np.full((30, 30, 3), (90, 160, 40), np.uint8), np.zeros((30, 30), np.uint8)
    for seed in range(4):
        pixels, ids = varied(image, label, seed, options(name, *turned))
        assert (ids == 255).any() and (pixels[ids == 255] == FILL).all()


def test_cut_out_rectangles_and_their_labels() -> None:
    image, label = np.full((50, 60, 3), 100, np.uint8), np.ones((50, 60), np.uint8)
    for seed in range(20):
        made = [
            cut_out(image, label, np.random.default_rng(seed), fill=FILL, count=2, size=0.4, ignored=ignored)
            for ignored in (False, True)
        ]
        (kept, ids), (same, ignored_ids) = made
        np.testing.assert_array_equal(kept, same)
        holes = (kept == FILL).all(axis=-1)
        assert (kept[~holes] == 100).all() and 0 < holes.sum() <= 2 * (20 * 24)
        assert (ids == 1).all() and ((ignored_ids == 255) == holes).all()
    assert (image == 100).all() and (label == 1).all()


def test_probability_is_that_of_each_alone() -> None:
    image, label = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)
    how = {"crop_size": (20, 20), "scale_range": (1.0, 1.0)}
    more = Augment(probability=0.25, noise=30.0, cutout=5)
    made = [varied(image, label, seed, more, **how)[0] for seed in range(300)]
    cut = np.array([(one == FILL).all(axis=-1).any() for one in made])
    noisy = np.array([((one != 0) & (one != FILL)).any() for one in made])
    assert 45 < cut.sum() < 105 and 45 < noisy.sum() < 105 and 5 < (cut & noisy).sum() < 40
    changes = {"probability": 0.0, "vertical_flip": False, "quarter_turns": False, "resize": (), "keep_ratio": False}
    never = dataclasses.replace(CHAINS["all"], **changes)
    np.testing.assert_array_equal(varied(image, label, 0, never, **how)[0], image)


# What makes no sense.


@pytest.mark.parametrize(
    ("more", "channels", "dtype", "message"),
    [
        ({"hue": 20.0}, 4, np.uint8, "hue=20.0: images of 4 channels have no hue; leave it out: --config.data.augment"),
        ({"saturation": 0.5}, 1, np.uint8, "images of 1 channels have no saturation"),
        ({"jpeg": 50}, 3, np.float32, "images are float32 of 3; leave it out: --config.data.augment.jpeg=0"),
        ({"jpeg": 50}, 4, np.uint8, "images are uint8 of 4"),
    ],
)
def test_colours_that_images_do_not_have_are_refused(more, channels, dtype, message) -> None:
    image, label = np.zeros((9, 9, channels), dtype), np.zeros((9, 9), np.uint8)
    with pytest.raises(UserError, match=message) as error:
        varied(image, label, 0, Augment(**more), fill=(0,) * channels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("resize", [(), (512,)])
def test_keep_ratio_without_height_and_width_is_refused(resize: tuple[int, ...]) -> None:
    both = "keep_ratio=False, or give .* such as --config.data.augment.resize=512,1024$"
    with pytest.raises(UserError, match=f"keep_ratio=True: .*leave it out: --config.data.augment.{both}"):
        check_augment(Augment(keep_ratio=True, resize=resize), 3)
    check_augment(Augment(keep_ratio=True, resize=(512, 1024)), 3)


def test_other_mistakes_are_named() -> None:
    for resize, fix in (("(1,2,3)", "give 2"), ("(0,)", "such as 512,1024"), ("(5,-1)", "such as 512,1024")):
        with pytest.raises(UserError, match=rf"augment\.resize.*{fix}"):
            load_config(["--config=configs/scenes.py", f"--config.data.augment.resize={resize}"])
    image, label = positions(9, 9)
    with pytest.raises(ValueError, match="one size"):
        varied(image, label[:5], 0, Augment(rotation=10.0, probability=1.0))
    with pytest.raises(UserError, match="crop_size"):
        varied(image, label, 0, Augment(), crop_size=(0, 5))
