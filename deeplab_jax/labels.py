"""Class names, palettes, and how the stored values of a mask become class ids.

Class ids run from 0 to `num_classes - 1`; 255 marks the pixels that count neither in the loss nor in a metric. Ids are
never shifted by default: a data set whose stored values are not class ids has an explicit `value_map`.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError

IGNORE_LABEL = 255
MAX_CLASSES = 254  # 255 is the ignore label, and 254 is kept free to mark unknown values in the look-up table.
UNKNOWN = 254
"""What a look-up table of class ids has for a value without meaning."""


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The classes of a data set.

    Attributes:
      names: one name per class id.
      palette: one (red, green, blue) triple in 0 to 255 per class id.
      value_map: pairs (value stored in a mask, class id or 255). None: stored values are already class ids, and 255 is
        ignored.
      multilabel: whether a pixel can have several of the classes, or none. Labels then are `[H, W, num_classes]`, 0, 1
        or 255 (not known) for each.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    value_map: tuple[tuple[int, int], ...] | None = None
    multilabel: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"{len(self.names)} classes; a label set holds 1 to {MAX_CLASSES}")
        if len(self.palette) != len(self.names):
            raise ValueError(f"{len(self.palette)} colours for {len(self.names)} classes")
        stored_values = [stored for stored, _ in self.value_map or ()]
        if len(set(stored_values)) < len(stored_values):
            raise ValueError(f"value_map {self.value_map!r:.100} has a stored value twice")
        for stored, class_id in self.value_map or ():
            if stored < 0 or not (0 <= class_id < len(self.names) or class_id == IGNORE_LABEL):
                raise ValueError(f"value_map sends {stored} to {class_id}, which is no class id and not {IGNORE_LABEL}")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def stored_values(self) -> tuple[int, ...]:
        """The values that a mask may hold, ascending."""
        if self.value_map is None:
            return (*range(self.num_classes), IGNORE_LABEL)
        return tuple(sorted(stored for stored, _ in self.value_map))

    def info(self) -> dict[str, Any]:
        """Return names and colours as a model's `info` holds them."""
        return {"class_names": list(self.names), "palette": [list(colour) for colour in self.palette]}

    def decoded(self) -> "LabelSet":
        """The same classes, for masks that store class ids."""
        return dataclasses.replace(self, value_map=None)


def to_class_ids(stored: np.ndarray, labels: LabelSet) -> tuple[np.ndarray, list[int]]:
    """Turn stored mask values into class ids.

    Args:
      stored: integers `[H, W]`.
      labels: the meanings of the values.

    Returns:
      `(class_ids, unknown)`: uint8 `[H, W]` with ids and 255, and the ascending stored values that `labels` does not
      list. Pixels with these values are 255 in `class_ids`.
    """
    table = _table(labels)
    if stored.dtype == np.uint8:
        ids = table[stored]
    else:
        # Values beyond the table are unknown too: index 0 keeps the look-up in range, and a later line marks them.
        outside = (stored < 0) | (stored >= len(table))
        ids = table[np.where(outside, 0, stored)]
        ids[outside] = UNKNOWN
    strange = ids == UNKNOWN
    if not strange.any():
        return ids, []
    ids[strange] = IGNORE_LABEL
    return ids, [int(value) for value in np.unique(stored[strange])]


def to_stored(labels: LabelSet) -> tuple[tuple[int, ...], list[str]]:
    """Return the stored value of each class: the inverse of the label set's `value_map`.

    Returns:
      `(stored, shared)`: the smallest value of each class, and the names of the classes that have several.

    Raises:
      UserError: no value stands for a class.
    """
    pairs = labels.value_map
    if pairs is None:
        return tuple(range(labels.num_classes)), []
    values = [sorted(stored for stored, class_id in pairs if class_id == k) for k in range(labels.num_classes)]
    for name, of_class in zip(labels.names, values, strict=True):
        if not of_class:
            raise UserError(f"value_map: no stored value stands for the class {name}; leave out --ids dataset")
    shared = [name for name, of_class in zip(labels.names, values, strict=True) if len(of_class) > 1]
    return tuple(of_class[0] for of_class in values), shared


@functools.lru_cache(maxsize=64)
def _table(labels: LabelSet) -> np.ndarray:
    pairs = labels.value_map
    if pairs is None:
        pairs = (*((i, i) for i in range(labels.num_classes)), (IGNORE_LABEL, IGNORE_LABEL))
    table = np.full(max(256, 1 + max((stored for stored, _ in pairs), default=0)), UNKNOWN, np.uint8)
    for stored, class_id in pairs:
        table[stored] = class_id
    return table


def colormap(count: int) -> tuple[tuple[int, int, int], ...]:
    """The PASCAL VOC colours of ids 0 to `count - 1` (VOC2012 development kit, VOClabelcolormap).

    The bits of the id go in turn to red, green and blue; each channel fills from its high bit down.
    """

    def colour(index: int) -> tuple[int, int, int]:
        channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        return channels[0], channels[1], channels[2]

    return tuple(colour(index) for index in range(count))


BINARY = LabelSet(names=("background", "object"), palette=colormap(2))
"""The two classes of a network with one logit, where nobody has named them."""
PRESENCE = LabelSet(names=("absent", "present"), palette=colormap(2))
"""The two classes of one label, absent and present, where a pixel can have several labels."""

# (name, colour) by stored value.
_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CAMVID = LabelSet(
    names=tuple(name for name, _ in _CAMVID),
    palette=tuple(colour for _, colour in _CAMVID),
    value_map=(*((i, i) for i in range(11)), (11, IGNORE_LABEL)),
)
"""CamVid in SegNet's grouping: 11 classes, stored value 11 is unlabelled."""

_VOC_NAMES = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
"""

VOC = LabelSet(names=tuple(_VOC_NAMES.split()), palette=colormap(21))
"""PASCAL VOC 2012: background and 20 objects; the void outline is stored as 255 already."""

# (stored label id, name, colour) of the 19 classes that the Cityscapes benchmark evaluates, in the order of their train
# ids.
_CITYSCAPES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_CITYSCAPES_IDS = {stored: train_id for train_id, (stored, _, _) in enumerate(_CITYSCAPES)}

CITYSCAPES = LabelSet(
    names=tuple(name for _, name, _ in _CITYSCAPES),
    palette=tuple(colour for _, _, colour in _CITYSCAPES),
    # The licence plate is -1 in the published table; an 8-bit file can store it only as 255.
    value_map=(*((i, _CITYSCAPES_IDS.get(i, IGNORE_LABEL)) for i in range(34)), (IGNORE_LABEL, IGNORE_LABEL)),
)
"""Cityscapes: label ids 0 to 33 as stored; the 19 evaluated ones become train ids."""

_ADE20K_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
    pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
    food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
    sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
    glass, clock, flag
"""

ADE20K = LabelSet(
    names=tuple(name.strip() for name in _ADE20K_NAMES.split(",")),
    palette=colormap(151)[1:],
    value_map=((0, IGNORE_LABEL), *((value, value - 1) for value in range(1, 151))),
)
"""ADE20K scene parsing: 150 classes, stored as 1 to 150; 0 is "other" and ignored.

The colours follow the rule of PASCAL VOC, not the benchmark's own table.
"""

PET = LabelSet(
    names=("background", "pet"),
    palette=((0, 0, 0), (224, 128, 0)),
    value_map=((1, 1), (2, 0), (3, IGNORE_LABEL)),
)
"""Oxford-IIIT Pet trimaps: 1 pet, 2 background, 3 the border, which is ignored."""
PUBLISHED_SETS: dict[str, LabelSet] = {
    "ade20k": ADE20K,
    "camvid": CAMVID,
    "cityscapes": CITYSCAPES,
    "coco": VOC,
    "pet": PET,
    "voc": VOC,
}
"""The data sets that others know by name, with their classes; COCO has those of VOC."""
