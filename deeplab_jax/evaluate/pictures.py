"""Pictures of labels: in colours, over the photograph, and beside the truth."""

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.data.large import row_parts
from deeplab_jax.data.source import Example
from deeplab_jax.evaluate.reading import shown
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

Palette = Sequence[tuple[int, int, int]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_IGNORED = (48, 48, 48)
_HATCH = (96, 96, 96)
_DIAGONALS = 8  # Pixels from one to the next.
_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_GAP = 4
_LEGIBLE_HEIGHT = 256
_LONGEST_SHOWN = 1024
# Found without an import of Matplotlib, which takes long and complains where a home folder cannot be written.
_MATPLOTLIB = Path(getattr(find_spec("matplotlib"), "origin", None) or "matplotlib")
_FONTS = (
    str(_MATPLOTLIB.with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "msyh.ttc"),
    *("NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "NotoSansHebrew-Regular.ttf", "FreeSans.ttf"),
    *("unifont.ttf", "Arial Unicode.ttf"),
)
"""Fonts for letters that Pillow's own does not have; the first that has all of a name is taken. Pillow looks for those
without a folder where the system keeps its fonts.
"""


def colour_labels(ids: np.ndarray, palette: Palette) -> np.ndarray:
    """Return class ids painted in their colours; ignored pixels (255) become dark grey with light diagonals.

    Args:
      ids: integers `[H, W]`: indices of `palette`, or 255.
      palette: (red, green, blue) of each class.

    Returns:
      uint8 `[H, W, 3]` RGB.

    Raises:
      ValueError: an id is neither in the palette nor 255.
    """
    ignored = ids == IGNORE_LABEL
    known = np.where(ignored, 0, ids)
    if known.size and (known.min() < 0 or known.max() >= len(palette)):
        raise ValueError(f"class ids {known.min()} to {known.max()} do not fit a palette of {len(palette)} colours")
    colours = np.array(palette, np.uint8)[known]
    if ignored.any():
        rows, columns = np.nonzero(ignored)
        is_line = (rows + columns) % _DIAGONALS == 0
        colours[rows, columns] = np.where(is_line[:, None], np.array(_HATCH), np.array(_IGNORED))
    return colours


def overlay(image: np.ndarray, ids: np.ndarray, palette: Palette) -> np.ndarray:
    """Return the image under its class colours, with a thin light line between classes.

    Args:
      image: `[H, W, C]`; see `reading.shown`.
      ids: integers `[H, W]`, class ids or 255; ignored pixels show the darkened image.
      palette: (red, green, blue) of each class.

    Returns:
      uint8 `[H, W, 3]` RGB.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"image {image.shape} and class ids {ids.shape} differ in size")
    mixed = np.empty((*ids.shape, 3), np.uint8)
    for rows in row_parts(ids.shape, multiple=_DIAGONALS):
        own, seen = ids[rows], shown(image[rows])
        part = cv2.addWeighted(seen, 0.5, colour_labels(own, palette), 0.5, 0)
        ignored = own == IGNORE_LABEL
        part[ignored] = (seen[ignored] * 0.7).astype(np.uint8)
        border = boundaries(ids[rows.start : rows.stop + 1])[: len(own)]
        part[border] = (part[border] * 0.5 + 127.5).astype(np.uint8)
        mixed[rows] = part
    return mixed


def boundaries(ids: np.ndarray) -> np.ndarray:
    """Return, as bool `[H, W]`, the pixels whose right or lower neighbour is of another class: lines of one pixel."""
    different = np.zeros(ids.shape, bool)
    different[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    different[:-1] |= ids[:-1] != ids[1:]
    return different


def prediction_strip(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    palette: Palette,
    *,
    names: Sequence[str],
    enlarge: int = 1,
) -> np.ndarray:
    """Return image, truth and prediction side by side, with titles, over a legend of the classes in either.

    Args:
      image: `[H, W, C]`; see `reading.shown`.
      truth: class ids `[H, W]`, 255 where ignored.
      prediction: class ids `[H, W]`.
      palette: (red, green, blue) of each class.
      names: class names for the legend.
      enlarge: factor of the picture's size, for small images.

    Returns:
      uint8 `[height, width, 3]` RGB.
    """
    image, truth, prediction = (_enlarged(each, enlarge) for each in (shown(image), truth, prediction))
    font = _font(image.shape[0])
    columns = (
        ("image", image),
        ("truth", colour_labels(truth, palette)),
        ("prediction", colour_labels(prediction, palette)),
    )
    row = np.concatenate([_titled(panel, title, font) for title, panel in columns], axis=1)[:, :-_GAP]
    present = np.union1d(truth, prediction)
    return np.concatenate([row, legend(present.tolist(), palette, names, width=row.shape[1], font=font)], axis=0)


def drawable(labels: np.ndarray, label_set: LabelSet) -> tuple[np.ndarray, LabelSet]:
    """Return class ids `[H, W]` to draw, and their classes.

    These are the labels themselves, unless a pixel can have several of them, `[H, W, K]`. Then id 0 is none of them. Of
    several, the last one is on top. A pixel is 255 where no label is known.
    """
    if not label_set.multilabel:
        return labels, label_set
    ids = np.zeros(labels.shape[:2], np.uint8)
    for k in range(labels.shape[2]):
        ids[labels[..., k] == 1] = k + 1
    ids[np.all(labels == IGNORE_LABEL, axis=-1)] = IGNORE_LABEL
    return ids, LabelSet(("none", *label_set.names), ((0, 0, 0), *label_set.palette))


def smaller(image: np.ndarray, longest: int = _LONGEST_SHOWN) -> np.ndarray:
    """Return an image with sides of at most `longest` pixels."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def fewer(ids: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the nearest labels at a size, `[h, w]` or `[h, w, K]`."""
    (height, width), (rows, columns) = ids.shape[:2], size
    return ids[np.ix_(np.arange(rows) * height // rows, np.arange(columns) * width // columns)]


class StripCollector:
    """Draws a few, evenly spread, of the examples that `evaluate` reports; pass it as `on_prediction`.

    Attributes:
      strips: the pictures, as from `prediction_strip`, of at most 1024 pixels a panel; small images are enlarged.
      drawn: the examples and their class ids.
    """

    def __init__(self, labels: LabelSet, *, total: int, count: int) -> None:
        self._labels = labels
        count = min(count, total)
        self._chosen = {i * total // count for i in range(count)}
        self._seen = 0
        self.strips: list[np.ndarray] = []
        self.drawn: list[tuple[Example, np.ndarray]] = []

    def __call__(self, example: Example, classes: np.ndarray) -> None:
        """Take the next example and its classes, as `evaluate` reports them."""
        if self._seen in self._chosen:
            image = smaller(shown(example["image"]))
            height, width = image.shape[:2]
            enlarge = min(-(-_LEGIBLE_HEIGHT // height), max(1, _LONGEST_SHOWN // width))
            (truth, _), (ids, drawn) = (
                drawable(fewer(each, (height, width)), self._labels) for each in (example["label"], classes)
            )
            names, palette = drawn.names, drawn.palette
            strip = prediction_strip(image, truth, ids, palette, names=names, enlarge=enlarge)
            self.strips.append(strip)
            self.drawn.append((example, classes))
        self._seen += 1


def stack_strips(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Return strips one below the other, left-aligned on white: uint8 `[height, width, 3]`."""
    width = max(strip.shape[1] for strip in strips)
    padded = [
        cv2.copyMakeBorder(strip, 0, 3 * _GAP, 0, width - strip.shape[1], cv2.BORDER_CONSTANT, value=_PAPER)
        for strip in strips
    ]
    return np.concatenate(padded, axis=0)[: -3 * _GAP]


def legend(
    class_ids: Sequence[int],
    palette: Palette,
    names: Sequence[str],
    *,
    width: int,
    font: Font | None = None,
) -> np.ndarray:
    """Return a legend: each name after a box of its colour, in as many lines as fit `width`. 255 is called "ignored".

    A name whose letters no font here has becomes the number of its class, and says so.

    Returns:
      uint8 `[height, width, 3]` RGB.
    """
    font = font or _font(360)
    line = _line_height(font)
    box = line - 6
    places: list[tuple[int, int, int, str, Font]] = []
    x, y = _GAP, 0
    for class_id in class_ids:
        name = "ignored" if class_id == IGNORE_LABEL else names[class_id]
        own = font_for(name, font)
        if own is None:
            name, own = f"class {class_id} (no font for its name)", font
        needed = box + 4 + int(own.getlength(name)) + 12
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + line
        places.append((x, y, class_id, name, own))
        x += needed
    canvas = Image.new("RGB", (width, y + line), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, y, class_id, name, own in places:
        swatch = colour_labels(np.full((box, box), class_id), palette)
        canvas.paste(Image.fromarray(swatch), (x, y + 3))
        draw.rectangle((x, y + 3, x + box - 1, y + 2 + box), outline=_INK)
        draw.text((x + box + 4, y + line / 2), name, fill=_INK, font=own, anchor="lm")
    return np.asarray(canvas)


def font_for(text: str, font: Font) -> Font | None:
    """Return `font`, or another of its size, that has all letters of a text; None if there is none."""
    size = round(getattr(font, "size", 12))
    others = (each for each in (_open_font(name, size) for name in _FONTS) if each is not None)
    return next((each for each in (font, *others) if _has_letters(each, text)), None)


def _has_letters(font: Font, text: str) -> bool:
    """Return whether a font has every letter of a text."""
    missing = bytes(font.getmask("\U0010ffff"))  # What stands for letters that it does not have.
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in text)


@functools.cache
def _open_font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _enlarged(array: np.ndarray, factor: int) -> np.ndarray:
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _titled(panel: np.ndarray, title: str, font: Font) -> np.ndarray:
    """Return the panel under its title, with the gap to the next column on its right."""
    line = _line_height(font)
    canvas = Image.new("RGB", (panel.shape[1] + _GAP, panel.shape[0] + line), _PAPER)
    canvas.paste(Image.fromarray(np.ascontiguousarray(panel)), (0, line))
    ImageDraw.Draw(canvas).text((2, line / 2), title, fill=_INK, font=font, anchor="lm")
    return np.asarray(canvas)


def _font(image_height: int) -> Font:
    return ImageFont.load_default(size=max(10, min(28, image_height // 24)))


def _line_height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Agjl|")
    return int(bottom - top) + 8
