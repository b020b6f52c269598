"""Outlines drawn with labelme (github.com/wkentaro/labelme): one JSON file beside each image.

The shapes are drawn as `labelme.utils.shapes_to_label` draws them, in the order of the file: a later shape covers
earlier ones. Shapes of one group are of one class, so groups change nothing here. The image embedded in the file is not
read.
"""

import base64
import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from deeplab_jax.data.class_tables import BACKGROUNDS, IGNORED, with_background
from deeplab_jax.data.image_files import LIMIT, MAX_BYTES, MAX_PIXELS, open_encoded
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.files import read_json
from deeplab_jax.labels import IGNORE_LABEL

BACKGROUND = BACKGROUNDS[1]
LINE_WIDTH = 10  # of lines, in pixels; labelme's default
POINT_RADIUS = 5  # of points
FARTHEST = 1e6  # largest coordinate; Pillow takes time for each row of an outline


@dataclasses.dataclass(frozen=True)
class LabelmeMasks:
    """Reads the JSON files of labelme; `ids` maps the label of a shape to its class id or 255."""

    ids: Mapping[str, int]

    def __call__(self, file: str) -> np.ndarray:
        """Return uint8 `[H, W]` class ids, of the size that the file states; 0 outside of all shapes.

        Raises:
          UserError: the file is not one of labelme, or has a label that is no class.
        """
        content = read_labelme(Path(file))
        label = np.zeros((content["imageHeight"], content["imageWidth"]), np.uint8)
        for number, shape in enumerate(content["shapes"], start=1):
            name = shape["label"]
            if name not in self.ids:
                raise UserError(
                    f"{file}: shape {number} is {name!r:.100}, which is no class; "
                    f"{did_you_mean(name, self.ids)}; correct the shape, or class_names"
                )
            try:
                label[draw_shape(shape, *label.shape)] = self.ids[name]
            except Exception as error:  # The PNG of a mask can be damaged in any way.
                raise UserError(
                    f"{file}: shape {number} ({name!r:.100}) cannot be drawn ({error}); draw it again in labelme"
                ) from None
        return label


def read_labelme(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file of labelme, with a size and shapes with labels.

    Raises:
      UserError: it cannot be read, or is not such a file.
    """
    try:
        content = read_json(file, limit=MAX_BYTES)
        height, width = content["imageHeight"], content["imageWidth"]
        sound = type(height) is int and type(width) is int and min(height, width) > 0
        sound = sound and all(isinstance(shape["label"], str) for shape in content["shapes"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file}: not annotations of labelme ({error!r:.100}); save them again, or remove the file"
        ) from None
    if not sound:
        raise UserError(f"{file}: not annotations of labelme (size or labels); save them again, or remove the file")
    if height * width > MAX_PIXELS:
        raise UserError(f"{file}: an image of {height * width} pixels; {LIMIT} sets more than {MAX_PIXELS}")
    return dict(content)


def labels_in(files: Sequence[Path], *, others: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the labels of all shapes in some files: sorted, the background first, without `__ignore__`.

    Those of `others` count, too, as far as they are files of labelme: so each split has the same classes.

    Raises:
      UserError: as `read_labelme`, for `files`.
    """
    found = {shape["label"] for file in files for shape in read_labelme(file)["shapes"]}
    for file in set(others) - set(files):
        with contextlib.suppress(UserError):
            found |= {shape["label"] for shape in read_labelme(file)["shapes"]}
    return with_background(sorted(found - {IGNORED}), called=BACKGROUND)


def ids_of(class_names: Sequence[str]) -> dict[str, int]:
    """Return label -> class id for `LabelmeMasks`; labelme's names of the background and of ignored pixels, too."""
    return {BACKGROUND: 0, IGNORED: IGNORE_LABEL, **{name: i for i, name in enumerate(class_names)}}


def draw_shape(shape: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Return the pixels of one shape as bool `[height, width]`.

    Raises:
      ValueError: another number of points than its type has, or an unknown type.
    """
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
    if not (np.abs(points) <= FARTHEST).all():  # Also for values that are not numbers.
        raise ValueError("points far from any image")
    if kind == "mask":
        return _paste(shape["mask"], points, height, width)
    corners = [(float(x), float(y)) for x, y in points]
    count = {"circle": 2, "rectangle": 2, "line": 2, "point": 1, "linestrip": None, "polygon": None}
    count["oriented_rectangle"] = 4
    if kind not in count:
        raise ValueError(f"unknown shape {kind!r:.50}")
    if len(corners) != (count[kind] or max(len(corners), 3 if kind == "polygon" else 2)):
        raise ValueError(f"a {kind} of {len(corners)} points")
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    if kind in ("circle", "point"):
        x, y = corners[0]
        radius = math.dist(corners[0], corners[1]) if kind == "circle" else POINT_RADIUS
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
    elif kind == "rectangle":
        # Pillow wants the upper left corner first.
        draw.rectangle([*points.min(axis=0).tolist(), *points.max(axis=0).tolist()], outline=1, fill=1)
    elif kind in ("line", "linestrip"):
        draw.line(corners, fill=1, width=LINE_WIDTH)
    else:
        draw.polygon(corners, outline=1, fill=1)
    return np.asarray(canvas) == 1


def _paste(encoded: str, points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a shape that is a small mask, a PNG in base64, whose corners `points` gives."""
    with open_encoded(base64.b64decode(encoded)) as image:
        small = np.asarray(image.convert("L")) != 0
    (left, top), (right, bottom) = points.astype(int)
    if small.shape != (bottom - top + 1, right - left + 1) or min(left, top) < 0 or right >= width or bottom >= height:
        raise ValueError(f"a mask of {small.shape[1]}x{small.shape[0]} pixels at {left},{top} to {right},{bottom}")
    label = np.zeros((height, width), bool)
    label[top : bottom + 1, left : right + 1] = small
    return label
