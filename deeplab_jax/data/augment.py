"""Augmentation of an image together with its label.

The papers' augmentation is that of DeepLabv3 (Chen et al. 2017, section 4.1) and of the authors' TensorFlow code: scale
by a factor between 0.5 and 2.0 (in steps of 0.25, or continuous), pad with the mean colour and the ignore label up to
the crop size, take a random crop, mirror with probability one half. The resize differs from the authors': scaled sides
are rounded, and theirs lose their fraction; pixel centres lie at half integers, as in most image libraries, and theirs
align the corners. So crops of one seed differ by a pixel or a fraction of it. It stays so, because published results of
this project were trained with it. With a `config_keys.Augment`, the whole order is:

1. a fixed size, if there is one, times the papers' random factor;
2. the papers' random crop, which may be drawn again for the sake of its classes;
3. rotation, perspective and elastic deformation around the crop's centre, with what lies around the crop;
4. colours, gamma, blur, noise and JPEG compression, of the image alone; the padding keeps its colour;
5. cut-out rectangles;
6. the papers' mirroring, vertical flips and quarter turns, which are exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplab_jax.config_keys import Augment
from deeplab_jax.data import colour
from deeplab_jax.data.colour import apply_jitter, sample_jitter
from deeplab_jax.data.sampling import count_classes
from deeplab_jax.data.transforms import (
    Arrays,
    Size,
    pad_to,
    padding_of,
    random_flip,
    resize_label,
    resize_pair,
    sample_size,
    sample_window,
)
from deeplab_jax.data.warp import Window, elastic, perspective, read_at, rotation, source_positions
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

ClassInCrop = tuple[int, float]

NONE = Augment()
"""The papers' augmentation alone."""
TRIES = 10
"""How often a crop is checked and drawn again, as in mmsegmentation and DAFormer."""
_VALUES = {"gamma": colour.gamma, "blur": colour.blur, "noise": colour.noise, "jpeg": colour.jpeg}


def augment(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    fill: Sequence[float],
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_step: float = 0.25,
    flip: bool = True,
    color_jitter: float = 0.0,
    more: Augment = NONE,
    wanted: ClassInCrop | None = None,
) -> Arrays:
    """Return an example after the papers' augmentation, and more.

    With the default `more`, it equals `resize_pair`, the jitter, `pad_to`, a random crop and `random_flip` in this
    order, but only pixels inside the crop are resampled. The label is the same bit for bit. In the image, rounding
    changes a rare pixel by one level.

    Args:
      image: `[H, W, C]`.
      label: uint8 `[H, W]`, or `[H, W, K]` where a pixel can have several labels.
      rng: the only source of randomness.
      crop_size: (height, width) of the result.
      fill: value of each channel in the padding.
      scale_range: smallest and largest scale factor; `(1, 1)` keeps the size.
      scale_step: distance between the factors; 0 draws them from the whole interval.
      flip: mirror left to right with probability one half.
      color_jitter: strength in `[0, 1)`, see `colour.sample_jitter`; 0 leaves the colours alone.
      more: what happens in addition to these.
      wanted: (class id, pixels): a crop is drawn again, up to 10 times, unless it has more pixels of this class.

    Returns:
      `[h, w, C]` of the image's dtype, and uint8 `[h, w]` or `[h, w, K]`, of `crop_size`.

    Raises:
      UserError: a scale range, step, strength or crop size that makes no sense, or an option that has none for such
        images.
    """
    check_augment(more, image.shape[2], image.dtype)
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
        for part in outside:
            changed[part] = fill
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


def check_augment(more: Augment, channels: int, dtype: np.dtype | type = np.uint8) -> None:
    """Raise a UserError if options have no meaning for images of so many channels and this type, or without another."""
    if more.keep_ratio and len(more.resize) != 2:
        raise UserError(
            "config.data.augment.keep_ratio=True: only a resize to a height and a width may lose the ratio, and "
            f"resize={more.resize}; leave it out: "
            "--config.data.augment.keep_ratio=False, or give height and width, such as "
            "--config.data.augment.resize=512,1024"
        )
    for name in ("saturation", "hue"):
        if getattr(more, name) and channels != 3:
            raise UserError(
                f"config.data.augment.{name}={getattr(more, name)}: images of {channels} channels have no {name}; "
                f"leave it out: --config.data.augment.{name}=0"
            )
    if more.jpeg and (dtype != np.uint8 or channels not in (1, 3)):
        raise UserError(
            f"config.data.augment.jpeg={more.jpeg}: JPEG has 8 bits and one or three channels, and the images are "
            f"{np.dtype(dtype)} of {channels}; leave it out: --config.data.augment.jpeg=0"
        )


def resized(size: Size, to: tuple[int, ...], *, keep_ratio: bool = False) -> Size:
    """Return the size of an image of `size` after a resize `to`: see `config_keys.Augment`. Halves are rounded up."""
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
    wanted: ClassInCrop | None = None,
) -> Window:
    """Return the part (top, left, height, width) of a resized image that a random crop holds.

    Args:
      rng: the only source of randomness.
      label: of the stored image, `[H, W]` or `[H, W, K]`.
      size: (height, width) of the resized image.
      crop_size: (height, width) of the crop.
      cat_max_ratio: a crop is drawn again, up to 10 times, unless it has two classes or more, and the share of each
        among the labelled pixels is below this; 1: any crop is taken.
      wanted: see `augment`.
    """
    window = sample_window(rng, size, crop_size)
    for _ in range(TRIES if cat_max_ratio < 1 or wanted else 0):
        part = resize_label(label, size, window=window)
        counts = count_classes(part)
        mixed = cat_max_ratio == 1 or _is_mixed(part, counts, cat_max_ratio)
        if mixed and (wanted is None or counts[wanted[0]] > wanted[1]):
            break
        window = sample_window(rng, size, crop_size)
    return window


def _is_mixed(label: np.ndarray, counts: np.ndarray, ratio: float) -> bool:
    """Return whether no class has this share of the labelled pixels or more. Where a pixel can have several labels, it
    is labelled if one of them is known: to have none of them is no class.
    """
    if label.ndim == 3:
        return bool(counts.max() < ratio * np.count_nonzero((label != IGNORE_LABEL).any(axis=-1)))
    return bool(np.count_nonzero(counts) > 1 and counts.max() < ratio * counts.sum())


def _cropped(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    options: Augment,
    *,
    size: Size,
    window: Window,
    crop_size: Size,
    fill: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, Sequence[Any]]:
    """Return the crop of an image and its label, warped at random, and the indices of its padding."""
    matrix, displacement = sample_warp(rng, options, crop_size)
    if matrix is not None or displacement is not None:
        source = (label.shape[0], label.shape[1])
        positions = source_positions(
            crop_size, window=window, size=size, source=source, warp=matrix, displacement=displacement
        )
        image, label, outside = read_at(image, label, positions, fill=fill)
        return image, label, [outside]
    image, label = resize_pair(image, label, size, window=window)
    return *pad_to(image, label, crop_size, fill=fill), padding_of(label.shape)


def sample_warp(
    rng: np.random.Generator, options: Augment, crop_size: Size
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


def _change_values(image: np.ndarray, rng: np.random.Generator, options: Augment) -> np.ndarray:
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
) -> Arrays:
    """Return an image with random rectangles of the colour `fill`, and its label; see `config_keys.Augment`.

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
