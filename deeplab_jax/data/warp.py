"""Rotation, perspective and elastic deformation of an image together with its label.

A warp is one map: for each pixel of a crop, the position in the stored image that it shows. Scaling and cropping are
parts of the map, so an image is read once, bilinearly, and only where the crop needs it. The label is read at the
nearest pixel of the same map. What lies outside the image gets the padding's colour and the ignore label.

Positions are (x, y) in pixels, with pixel centres at integers: a pixel reaches half a unit to each side.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from deeplab_jax.data.colour import each_band
from deeplab_jax.data.transforms import Size
from deeplab_jax.labels import IGNORE_LABEL

Window = tuple[int, int, int, int]
"""Top, left, height and width in a resized image."""


def source_positions(
    crop_size: Size,
    *,
    window: Window,
    size: Size,
    source: Size,
    warp: np.ndarray | None = None,
    displacement: np.ndarray | None = None,
) -> np.ndarray:
    """Return the position in a stored image that each pixel of a crop shows, float64 `[h, w, 2]`.

    Args:
      crop_size: (h, w) of the crop.
      window: the part of the resized image that the crop holds without a warp, from its top left corner.
      size: (height, width) of the resized image.
      source: (height, width) of the stored image.
      warp: `[3, 3]` homography from positions in the crop to positions in the resized image, both from the centre of
        the crop.
      displacement: `[h, w, 2]`, which is added to the positions in the resized image.
    """
    top, left, _, _ = window
    centre_x, centre_y = (crop_size[1] - 1) / 2, (crop_size[0] - 1) / 2
    rows, columns = np.mgrid[: crop_size[0], : crop_size[1]].astype(np.float64)
    step = np.array([source[1] / size[1], source[0] / size[0]])
    to_source = np.diag([*step, 1.0])
    to_source[:2, 2] = np.array([left + centre_x + 0.5, top + centre_y + 0.5]) * step - 0.5
    points = np.dstack([columns - centre_x, rows - centre_y])
    positions = cv2.perspectiveTransform(points, to_source if warp is None else to_source @ warp)
    return np.asarray(positions) if displacement is None else positions + displacement * step


def read_at(
    image: np.ndarray,
    label: np.ndarray,
    positions: np.ndarray,
    *,
    fill: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image and its label at positions, and where these lie outside of them.

    Args:
      image: `[H, W, C]`.
      label: integers `[H, W]`, or `[H, W, K]`.
      positions: (x, y), floats `[h, w, 2]`.
      fill: value of each channel outside the image.

    Returns:
      The image `[h, w, C]`, read bilinearly, the label at the nearest pixel (of two equally near ones, the right or
      lower one), `[h, w]` or `[h, w, K]`, and bool `[h, w]`.
    """
    if image.shape[:2] != label.shape[:2]:
        raise ValueError(f"image {image.shape} and label {label.shape} are not of one size")
    height, width = label.shape[:2]
    columns, rows = np.moveaxis(np.floor(positions + 0.5), 2, 0)
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    rows, columns = rows.clip(0, height - 1).astype(np.intp), columns.clip(0, width - 1).astype(np.intp)
    # OpenCV takes images of at most 32767 pixels a side, so it gets the part that is read, with the neighbours.
    top, left = max(0, int(rows.min()) - 1), max(0, int(columns.min()) - 1)
    part = image[top : int(rows.max()) + 2, left : int(columns.max()) + 2]
    map_x, map_y = cv2.split((positions - (left, top)).astype(np.float32))

    def remapped(bands: np.ndarray) -> np.ndarray:
        read = cv2.remap(bands, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return read.reshape(*outside.shape, bands.shape[2])

    pixels, labels = each_band(remapped, part), label[rows, columns]
    pixels[outside], labels[outside] = fill, IGNORE_LABEL
    return pixels, labels, outside


def rotation(degrees: float) -> np.ndarray:
    """Return the warp `[3, 3]` that turns an image counter-clockwise, as it is seen."""
    turn = math.radians(degrees)
    # The map goes from the crop to the image, and y points down.
    return np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])


def perspective(shifts: np.ndarray, size: Size) -> np.ndarray:
    """Return the warp `[3, 3]` with which the corners of a crop show other places of the image.

    Args:
      shifts: `[4, 2]`, for the corners upper left, upper right, lower right and lower left: by how much the place lies
        to the right and below, as shares of width and height. Below 0.25 the four places form a convex figure.
      size: (height, width) of the crop.
    """
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    side = size[::-1]
    start, end = ((points * side).astype(np.float32) for points in (corners, corners + shifts))
    return np.asarray(cv2.getPerspectiveTransform(start, end))


def elastic(grid: np.ndarray, size: Size) -> np.ndarray:
    """Return smooth displacements `[h, w, 2]` in pixels, interpolated bicubically from those of a coarse grid
    `[n, n, 2]`, as in U-Net (Ronneberger et al. 2015, section 3.1).
    """
    return np.asarray(cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC))
