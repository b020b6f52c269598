"""Class names, colours and stored values from the files that annotation programs write beside their masks."""

import contextlib
import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from deeplab_jax.data.lists import read_lines
from deeplab_jax.data.mask_formats import Colour
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.files import at_home
from deeplab_jax.labels import CITYSCAPES, IGNORE_LABEL, VOC, LabelSet

BACKGROUNDS = ("background", "_background_")
"""Names of the class that gets id 0, wherever a file lists it; the second is labelme's."""
IGNORED = "__ignore__"
"""labelme's name of what is no class."""
NAME_FILES = ("labels.txt", "class_names.txt", "classes.txt")
LABELMAP = "labelmap.txt"
ROBOFLOW = "_classes.csv"


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """What is known of the classes.

    Attributes:
      names: one for each class id; empty: unknown.
      colours: one for each class id, in which masks are drawn; empty: masks are not drawn in known colours.
      extra: further (colour, class id or 255).
      value_map: (stored value, class id); empty: masks hold class ids.
      origin: the file that says so, or "".
    """

    names: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()
    extra: tuple[tuple[Colour, int], ...] = ()
    value_map: tuple[tuple[int, int], ...] = ()
    origin: str = ""

    @property
    def meanings(self) -> tuple[tuple[Colour, int], ...]:
        """(colour, class id or 255) of all colours."""
        return (*self.extra, *((colour, class_id) for class_id, colour in enumerate(self.colours)))


def _published(labels: LabelSet, *void: Colour) -> ClassTable:
    """Return a published palette; `void` colours are ignored."""
    return ClassTable(labels.names, labels.palette, tuple((colour, IGNORE_LABEL) for colour in void))


PALETTES = {
    "voc": _published(VOC, (224, 224, 192)),
    # The labels that the benchmark does not evaluate, from its published table.
    "cityscapes": _published(
        CITYSCAPES, (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
        (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
    ),
}  # fmt: skip
"""Palettes by name."""


def rgb(palette: Sequence[Sequence[int]]) -> tuple[Colour, ...]:
    """Return the option `palette` as (red, green, blue) of 0 to 255, or raise a UserError."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        colours = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
        if all(0 <= value <= 255 for colour in colours for value in colour):
            return colours
    raise UserError(
        f"palette is {palette!r:.100}; give one (red, green, blue) of 0 to 255 for each class: "
        '"--config.data.options.palette=((0,0,0),(255,0,0))"'
    )


def named_palette(palette: str, root: Path) -> ClassTable:
    """Return the palette of a name in `PALETTES`, or of a file in CVAT's form, seen from `root`.

    Raises:
      UserError: it is neither.
    """
    if palette in PALETTES:
        return PALETTES[palette]
    file = root / at_home(palette)
    if not file.is_file():
        raise UserError(
            f"config.data.options.palette={palette!r}: no such file in {root}; give the path of a labelmap.txt from "
            f"there, or a name: {did_you_mean(palette, PALETTES)}"
        )
    return read_labelmap(file)


def read_labelmap(file: Path) -> ClassTable:
    """Return the classes of CVAT's `labelmap.txt`: lines of `name:red,green,blue:parts:actions`.

    The background is class 0; the others follow in the order of the file.

    Raises:
      UserError: a line has another form, or two lines have one name or colour.
    """
    classes: dict[str, Colour] = {}
    for number, text in read_lines(file):
        name, _, rest = text.partition(":")
        words = rest.partition(":")[0].split(",")
        if len(words) != 3 or not all(word.strip().isdecimal() and int(word) < 256 for word in words):
            raise UserError(f"{file}, line {number}: {text!r:.100}; write NAME:RED,GREEN,BLUE:: as CVAT does")
        red, green, blue = (int(word) for word in words)
        if name in classes or (red, green, blue) in classes.values():
            raise UserError(f"{file}, line {number}: {text!r:.100} has the name or colour of a line before; change it")
        classes[name] = red, green, blue
    order = background_first(classes)
    return ClassTable(order, tuple(classes[name] for name in order), origin=file.name)


def read_roboflow(file: Path) -> ClassTable:
    """Return the classes of Roboflow's `_classes.csv`: a line of headings, then lines of stored value and name.

    Raises:
      UserError: a line has another form.
    """
    rows: list[tuple[int, str]] = []
    for number, text in read_lines(file)[1:]:
        words = [word.strip() for word in next(csv.reader([text]))]
        if len(words) != 2 or not words[0].isdecimal() or not words[1] or int(words[0]) in dict(rows):
            raise UserError(f"{file}, line {number}: {text!r:.100}; write one stored value and a name, such as 0, road")
        rows.append((int(words[0]), words[1]))
    rows.sort()
    values = tuple((stored, class_id) for class_id, (stored, _) in enumerate(rows))
    is_plain = all(stored == class_id for stored, class_id in values)
    return ClassTable(tuple(name for _, name in rows), value_map=() if is_plain else values, origin=file.name)


def read_class_names(file: Path) -> ClassTable:
    """Return the classes of a list of names, one a line, in its order; labelme's `__ignore__` is none."""
    names = tuple(line.text for line in read_lines(file) if line.text != IGNORED)
    return ClassTable(names, origin=file.name)


def find_classes(root: Path, folder: Path) -> ClassTable:
    """Return what the files of annotation programs in the data set's folder, or in that of the images, say.

    Raises:
      UserError: such a file has another form.
    """
    for place in dict.fromkeys((folder, root)):
        if (place / ROBOFLOW).is_file():
            return read_roboflow(place / ROBOFLOW)
        if (place / LABELMAP).is_file():
            return read_labelmap(place / LABELMAP)
    files = [root / name for name in NAME_FILES if (root / name).is_file()]
    return read_class_names(files[0]) if files else ClassTable()


def background_first(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in their order, but that of the background first, if there is one."""
    return tuple(sorted(names, key=lambda name: name.lower() not in BACKGROUNDS))


def with_background(names: Iterable[str], *, called: str = BACKGROUNDS[0]) -> tuple[str, ...]:
    """Return names of classes with the background first; if there is none, one with the name `called` is
    added.
    """
    ordered = background_first(names)
    return ordered if any(name.lower() in BACKGROUNDS for name in ordered) else (called, *ordered)
