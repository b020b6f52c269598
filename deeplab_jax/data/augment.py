"""Augmentations beside those of the papers (`transforms.augment`), all off by default.

The image and its label go through these steps together:

1. a fixed size, if there is one, times the papers' random factor;
2. the papers' random crop, which may be drawn again for the sake of its classes;
3. rotation, perspective and elastic deformation around the crop's centre, with what lies around the crop;
4. colours, gamma, blur, noise and JPEG compression, of the image alone; the padding keeps its colour;
5. cut-out rectangles;
6. the papers' mirroring, vertical flips and quarter turns, which are exact.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from deeplab_jax.data import colour
from deeplab_jax.data.colour import apply_jitter, sample_jitter
from deeplab_jax.data.sampling import count_classes
from deeplab_jax.data.transforms import (
    Pair,
    Size,
    pad_to,
    random_flip,
    resize_label,
    resize_pair,
    sample_size,
    sample_window,
)
from deeplab_jax.data.warp import Window, elastic, perspective, read_at, rotation, source_positions
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

Wanted = tuple[int, float]

TRIES = 10
"""How often a crop is checked and drawn again, as in mmsegmentation and DAFormer."""
_VALUES = {"gamma": colour.gamma, "blur": colour.blur, "noise": colour.noise, "jpeg": colour.jpeg}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to an example beside the papers' augmentation; the defaults are off. `config_keys` has the limits.

    Attributes:
      probability: of each of the following but `vertical_flip`, `quarter_turns`, `resize` and `cat_max_ratio`, drawn
        apart for each. Brightness, contrast, saturation and hue are one.
      vertical_flip: upside down, with probability 1/2.
      quarter_turns: by 0, 90, 180 or 270 degrees, equally likely.
      rotation: largest angle in degrees, either way, around the crop's centre.
      perspective: how far a corner of the crop moves at most along each side, as a share of the side.
      elastic: standard deviation in pixels of random displacements on a coarse grid, between which they are
        interpolated bicubically (U-Net, Ronneberger et al. 2015: 10 pixels, a grid of 3 x 3).
      elastic_grid: points of that grid along each side of the crop.
      resize: the size before random scaling: nothing keeps it; one number is that of the shorter side; two are (height,
        width).
      keep_ratio: whether `resize` with two numbers is the largest size of the image's ratio, whose shorter side has at
        most the smaller number, and whose longer side the larger one (mmsegmentation's `keep_ratio`).
      cat_max_ratio: a crop is drawn again, up to 10 times, unless it has two classes or more, and the share of each
        among the labelled pixels is below this (mmsegmentation's RandomCrop: 0.75); 1: any crop is taken.
      brightness, contrast, saturation: strengths in `[0, 1)`; see `colour.jitter`. Saturation is for RGB alone.
      hue: largest angle in degrees, either way; see `colour.hue_matrix`. For RGB alone.
      gamma: values become 255 * (value / 255) ** g, with g between 1 / (1 + gamma) and 1 + gamma.
      blur: largest standard deviation of a Gaussian blur, in pixels.
      noise: largest standard deviation of normal noise, in levels of 0 to 255.
      jpeg: lowest quality of a JPEG compression, 1 to 100; 0: none. For images of 8 bits, grey or RGB.
      cutout: number of rectangles that get the mean colour.
      cutout_size: largest sides of these, as shares of the crop's.
      cutout_ignored: whether the labels of the rectangles become the ignore label; otherwise they stay, and the network
        has to infer them from what is around.

    Raises:
      UserError: `resize` has more than two numbers, or one below 1.
    """

    probability: float = 0.5
    vertical_flip: bool = False
    quarter_turns: bool = False
    rotation: float = 0.0
    perspective: float = 0.0
    elastic: float = 0.0
    elastic_grid: int = 3
    resize: tuple[int, ...] = ()
    keep_ratio: bool = False
    cat_max_ratio: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    cutout: int = 0
    cutout_size: float = 0.2
    cutout_ignored: bool = False

    def __post_init__(self) -> None:
        if len(self.resize) > 2 or min(self.resize, default=1) < 1:
            raise UserError(
                f"config.data.augment.resize={self.resize}: give the shorter side, such as 512, or height and width, "
                "such as 512,1024"
            )

    def check(self, image: np.ndarray) -> None:
        """Raise a UserError if the options have no meaning for an image `[H, W, C]`."""
        channels = image.shape[2]
        for name in ("saturation", "hue"):
            if getattr(self, name) and channels != 3:
                raise UserError(
                    f"config.data.augment.{name}={getattr(self, name)}: images of {channels} channels have no {name}; "
                    f"leave it out: --config.data.augment.{name}=0"
                )
        if self.jpeg and (image.dtype != np.uint8 or channels not in (1, 3)):
            raise UserError(
                f"config.data.augment.jpeg={self.jpeg}: JPEG has 8 bits and one or three channels, and the images are "
                f"{image.dtype} of {channels}; leave it out: --config.data.augment.jpeg=0"
            )


NONE = Augmentation()


def vary(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_step: float = 0.25,
    flip: bool = True,
    color_jitter: float = 0.0,
    fill: Sequence[float],
    more: Augmentation = NONE,
    wanted: Wanted | None = None,
) -> Pair:
    """Return an example after the papers' augmentation and more.

    Without further augmentation, the result and the use of the generator are those of `transforms.augment`.

    Args:
      image: `[H, W, C]`.
      label: uint8 `[H, W]`, or `[H, W, K]` where a pixel can have several labels.
      rng: the only source of randomness.
      crop_size, scale_range, scale_step, flip, color_jitter, fill: see `transforms.augment`.
      more: what happens beside these.
      wanted: (class id, pixels): a crop is drawn again, up to 10 times, unless it has more pixels of this class.

    Returns:
      `[h, w, C]` of the image's dtype, and uint8 `[h, w]` or `[h, w, K]`, of `crop_size`.

    Raises:
      UserError: an option that makes no sense, or none for such images.
    """
    more.check(image)
    turns = int(rng.integers(4)) if more.quarter_turns else 0
    before = (crop_size[1], crop_size[0]) if turns % 2 else crop_size
    size = resized(label.shape[:2], more.resize, keep_ratio=more.keep_ratio)
    size = sample_size(rng, size, scale_range=scale_range, scale_step=scale_step)
    colours = sample_jitter(rng, color_jitter, channels=image.shape[2]) if color_jitter else None
    window = choose_window(rng, label, size, before, cat_max_ratio=more.cat_max_ratio, wanted=wanted)
    image, label, outside = _cropped(image, label, rng, more, size=size, window=window, crop_size=before, fill=fill)
    changed = image if colours is None else apply_jitter(image, colours)
    changed = _change_values(changed, rng, more)
    if changed is not image:
        changed[outside] = fill
    if more.cutout and rng.random() < more.probability:
        changed, label = cut_out(
            changed,
            label,
            rng,
            fill=fill,
            count=more.cutout,
            size=more.cutout_size,
            ignored=more.cutout_ignored,
        )
    if flip:
        changed, label = random_flip(changed, label, rng)
    if more.vertical_flip and rng.random() < 0.5:
        changed, label = changed[::-1], label[::-1]
    return np.rot90(changed, turns), np.rot90(label, turns)


def resized(size: Size, to: tuple[int, ...], *, keep_ratio: bool = False) -> Size:
    """Return the size of an image of `size` after a resize `to`: see `Augmentation.resize`. Halves are rounded up."""
    if not to or (len(to) == 2 and not keep_ratio):
        return (to[0], to[1]) if to else size
    factors = ((to[0], min(size)),) if len(to) == 1 else ((max(to), max(size)), (min(to), min(size)))
    new, old = min(factors, key=lambda factor: factor[0] / factor[1])
    height, width = (max(1, (2 * side * new + old) // (2 * old)) for side in size)
    return height, width


def choose_window(
    rng: np.random.Generator,
    label: np.ndarray,
    size: Size,
    crop_size: Size,
    *,
    cat_max_ratio: float = 1.0,
    wanted: Wanted | None = None,
) -> Window:
    """Return the part (top, left, height, width) of a resized image that a random crop holds.

    Args:
      rng: the only source of randomness.
      label: of the stored image, `[H, W]` or `[H, W, K]`.
      size: (height, width) of the resized image.
      crop_size: (height, width) of the crop.
      cat_max_ratio: see `Augmentation`.
      wanted: see `vary`.
    """
    window = sample_window(rng, size, crop_size)
    for _ in range(TRIES if cat_max_ratio < 1 or wanted else 0):
        counts = count_classes(resize_label(label, size, window=window))
        mixed = np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum()
        if (cat_max_ratio == 1 or mixed) and (wanted is None or counts[wanted[0]] > wanted[1]):
            break
        window = sample_window(rng, size, crop_size)
    return window


def _cropped(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    options: Augmentation,
    *,
    size: Size,
    window: Window,
    crop_size: Size,
    fill: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the crop of an image and its label, warped at random, and where it is padding."""
    matrix, displacement = sample_warp(rng, options, crop_size)
    if matrix is not None or displacement is not None:
        source = (label.shape[0], label.shape[1])
        positions = source_positions(
            crop_size, window=window, size=size, source=source, warp=matrix, displacement=displacement
        )
        return read_at(image, label, positions, fill=fill)
    image, label = resize_pair(image, label, size, window=window)
    outside = np.ones(crop_size, bool)
    outside[: label.shape[0], : label.shape[1]] = False
    return *pad_to(image, label, crop_size, fill=fill), outside


def sample_warp(
    rng: np.random.Generator, options: Augmentation, crop_size: Size
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return a random homography and random displacements, see `source_positions`; None: there are none."""
    matrix = displacement = None
    if options.rotation and rng.random() < options.probability:
        matrix = rotation(rng.uniform(-options.rotation, options.rotation))
    if options.perspective and rng.random() < options.probability:
        corners = perspective(rng.uniform(-options.perspective, options.perspective, (4, 2)), crop_size)
        matrix = corners if matrix is None else matrix @ corners
    if options.elastic and rng.random() < options.probability:
        grid = options.elastic * rng.standard_normal((options.elastic_grid, options.elastic_grid, 2))
        displacement = elastic(grid, crop_size)
    return matrix, displacement


def _change_values(image: np.ndarray, rng: np.random.Generator, options: Augmentation) -> np.ndarray:
    """Return an image after random changes of its values, or the image itself if there are none."""
    strengths = (options.brightness, options.contrast, options.saturation)
    if any((*strengths, options.hue)) and rng.random() < options.probability:
        image = apply_jitter(image, sample_jitter(rng, strengths, channels=image.shape[2], hue=options.hue))
    for name, change in _VALUES.items():
        strength = getattr(options, name)
        if strength and rng.random() < options.probability:
            image = change(image, rng, strength)
    return image


def cut_out(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    fill: Sequence[float],
    count: int,
    size: float,
    ignored: bool,
) -> Pair:
    """Return an image with random rectangles of the colour `fill`, and its label; see `Augmentation.cutout`.

    A rectangle's sides are uniform up to `size` times the image's, at least one pixel. Its centre is any pixel.
    """
    image, label = image.copy(), label.copy()
    sides = np.array(label.shape[:2])
    for _ in range(count):
        extent = np.maximum(1, np.rint(rng.uniform(0, size, 2) * sides)).astype(int)
        first = rng.integers(sides) - extent // 2
        (top, left), (bottom, right) = np.maximum(first, 0), first + extent
        image[top:bottom, left:right] = fill
        if ignored:
            label[top:bottom, left:right] = IGNORE_LABEL
    return image, label
