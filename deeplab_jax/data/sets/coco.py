"""COCO 2017 with the 21 classes of PASCAL VOC, as in DeepLabv3's pre-training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from deeplab_jax.data.image_files import LIMIT, MAX_PIXELS
from deeplab_jax.data.images import read_image
from deeplab_jax.data.mask_formats import combine
from deeplab_jax.data.source import Example, Unpaired, check_sizes, choose_split, list_images, require_folder
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import read_json
from deeplab_jax.labels import IGNORE_LABEL, VOC, LabelSet

LAYOUT = "train2017/, val2017/ and annotations/instances_{train,val}2017.json"
MIN_PIXELS = 1000
FARTHEST = 1e5  # Largest distance of an outline from its image's corner, in pixels.
LONGEST = 1e5  # Longest outlines of an instance, in pixels: COCO's API takes time and memory for each pixel.
MAX_BYTES = 2**31  # Largest annotation file; that of `train` has 450 million bytes.

# COCO's category id for each VOC class from 1 (aeroplane) to 20 (tvmonitor).
CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
CATEGORY_NAMES = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)  # as COCO calls them
VOC_CLASS_OF_CATEGORY = {category: class_id for class_id, category in enumerate(CATEGORIES, start=1)}


@dataclasses.dataclass(frozen=True)
class Region:
    """An instance: what it shows, and its outlines or run lengths."""

    class_id: int
    is_crowd: bool
    polygons: tuple[np.ndarray, ...]  # float64 [points, 2] (x, y)
    runs: np.ndarray | None  # the run lengths of a run-length code; then there are no polygons


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image, and its instances.

    Raises:
      ValueError: the size is none, or too large.
    """

    image: str
    height: int
    width: int
    image_id: int
    regions: tuple[Region, ...]
    name: str

    def __post_init__(self) -> None:
        if type(self.height) is not int or type(self.width) is not int or min(self.height, self.width) < 1:
            raise ValueError(f"image {self.image_id!r:.50} has no size in pixels")
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"image {self.image_id!r:.50} has {self.height * self.width} pixels; {LIMIT} sets more")


@dataclasses.dataclass(frozen=True)
class CocoSource:
    """Images of COCO; their masks are drawn from the instances' outlines when an example is read.

    Attributes:
      entries: the images that exist.
      annotations: the file.
      masks_without_image: names of images that do not exist, each with the place of its instances.
      is_share, channels, value_range, note: see `PairSource`.
      overlap: what becomes of pixels in instances of two classes.
    """

    entries: tuple[Entry, ...]
    annotations: str
    masks_without_image: Unpaired = ()
    is_share: bool = False
    name: str = "coco"
    labels: LabelSet = VOC
    channels: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()
    overlap: str = "ignore"
    note: str = ""

    def require_pairs(self) -> None:
        """Raise a UserError that names the images that do not exist, if there are any."""
        if self.masks_without_image:
            raise UserError(
                f"{spell([name for name, _ in self.masks_without_image])}: no such image, but {self.annotations} lists "
                "it; add the images, or get the annotations again"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry, (_, mask) = self.entries[index], self.describe(index)
        image = read_image(entry.image, channels=self.channels, value_range=self.value_range)
        label = _draw(entry, self.overlap, mask)
        check_sizes(image, label, image_name=entry.image, mask_name=mask)
        return {"image": image, "label": label, "name": entry.name}

    def describe(self, index: int) -> tuple[str, str]:
        entry = self.entries[index]
        return entry.image, place_of(entry, self.annotations)


def place_of(entry: Entry, annotations: str | Path) -> str:
    """Return the place of an image's instances in their file, for messages."""
    return f"{annotations}#image_id={entry.image_id}"


def open_coco(dir: str | Path, *, split: str) -> CocoSource:
    """Return COCO 2017 (`train` or `val`): the images whose instances of VOC classes cover over 1000 pixels, by name.

    The rule is that of DeepLabv3, section 4.3 ("Pretrained on COCO"); an image's area is the sum of the areas in the
    annotations. Instances of other categories are background. Crowd regions are 255, and so are pixels in instances of
    two classes. Reading the annotations of `train` takes a while and much memory; `prepare` writes the data set once.

    Raises:
      UserError: an unknown split, a folder or annotation file that does not exist, or annotations of another format.
    """
    choose_split(split, ("train", "val"), source="coco")
    images = require_folder(Path(dir) / f"{split}2017", source="coco", layout=LAYOUT)
    annotations = Path(dir) / "annotations" / f"instances_{split}2017.json"
    try:
        content = read_json(annotations, limit=MAX_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{annotations}: no such file; data set 'coco' is laid out as {LAYOUT}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{annotations}: not JSON ({error}); download the annotations again") from error
    try:
        _check_categories(content["categories"], annotations)
        entries = _entries(content, images)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{annotations}: not COCO instance annotations ({error!r}); use instances_{split}2017.json as published"
        ) from error
    if not entries:
        raise UserError(
            f"{annotations}: no image has over {MIN_PIXELS} pixels of a PASCAL VOC class; "
            f"use instances_{split}2017.json as published"
        )
    present = {path.name for path in list_images(images)}
    exist = tuple(entry for entry in entries if Path(entry.image).name in present)
    missing = tuple(
        (Path(entry.image).name, place_of(entry, annotations))
        for entry in entries
        if Path(entry.image).name not in present
    )
    return CocoSource(exist, str(annotations), missing)


def _check_categories(categories: Any, file: Path) -> None:
    """Raise a UserError unless the categories are COCO's own: other ids would silently become other classes."""
    names = {category["id"]: category["name"] for category in categories}
    if any(names.get(number) != name for number, name in zip(CATEGORIES, CATEGORY_NAMES, strict=True)):
        raise UserError(
            f"{file}: its categories ({spell(list(names.values()), limit=4)}) are not COCO's own; for a file with "
            "other categories give --config configs/coco_file.py"
        )


def _entries(content: dict[str, Any], folder: Path) -> tuple[Entry, ...]:
    regions: dict[int, list[Region]] = {}
    areas: dict[int, float] = {}
    for annotation in content["annotations"]:
        class_id = VOC_CLASS_OF_CATEGORY.get(annotation["category_id"])
        if class_id is None:
            continue
        image_id = annotation["image_id"]
        is_crowd = bool(annotation.get("iscrowd", 0))
        regions.setdefault(image_id, []).append(read_region(class_id, is_crowd, annotation["segmentation"]))
        areas[image_id] = areas.get(image_id, 0.0) + (0.0 if is_crowd else annotation["area"])
    entries = [
        Entry(
            str(folder / image["file_name"]),
            image["height"],
            image["width"],
            image["id"],
            tuple(regions[image["id"]]),
            Path(image["file_name"]).stem,
        )
        for image in content["images"]
        if areas.get(image["id"], 0.0) > MIN_PIXELS
    ]
    return tuple(sorted(entries, key=lambda entry: entry.image))


def read_region(class_id: int, is_crowd: bool, segmentation: Any) -> Region:
    """Return an instance from `segmentation`: outlines, or a run-length code as a list or a string.

    Raises:
      ValueError, KeyError, TypeError: it is neither, or an outline is too long or too far from any image.
    """
    if isinstance(segmentation, list):
        polygons = tuple(
            np.asarray(outline, np.float64).reshape(-1, 2) for outline in segmentation if len(outline) >= 6
        )
        if any((abs(points) > FARTHEST).any() or np.isnan(points).any() for points in polygons):
            raise ValueError("an outline far from any image")
        if sum(np.abs(np.diff(points, axis=0)).sum() for points in polygons) > LONGEST:
            raise ValueError(f"an outline of over {LONGEST:.0f} pixels")
        return Region(class_id, is_crowd, polygons, None)
    counts = segmentation["counts"]
    runs = decode_counts(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    return Region(class_id, is_crowd, (), runs)


def _draw(entry: Entry, overlap: str, name: str) -> np.ndarray:
    size = (entry.height, entry.width)
    crowd = np.zeros(size, bool)
    inside = [(0, np.zeros(size, bool))]
    for region in entry.regions:
        try:
            filled = fill_polygons(region.polygons, *size) if region.runs is None else fill_runs(region.runs, *size)
        except ValueError as error:
            raise UserError(f"{name}: {error}; get the annotations again") from None
        if region.is_crowd:
            crowd |= filled
        else:
            inside.append((region.class_id, filled))
    label = combine(inside, rest=0, overlap=overlap, name=name)
    label[crowd & (label == 0)] = IGNORE_LABEL
    return label


def fill_polygons(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the union of filled outlines as bool `[height, width]`, pixel by pixel as COCO's own API fills them.

    Args:
      polygons: float `[points, 2]` each, (x, y) in pixels; pixel (0, 0) covers 0 to 1.
      height: of the map.
      width: of the map.
    """
    if not polygons:
        return np.zeros((height, width), bool)
    outlines = [points.ravel().tolist() for points in polygons]
    code = coco_masks.merge(coco_masks.frPyObjects(outlines, height, width))
    return fill_runs(decode_counts(code["counts"].decode("ascii")), height, width)


def fill_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a run-length code as bool `[height, width]`.

    The runs alternate between outside and inside, start with outside, and go down one column after the other. They are
    decoded here because COCO's API reads beyond the end of a damaged code.

    Raises:
      ValueError: the runs do not add up to the size.
    """
    size = height * width
    if runs.min(initial=0) < 0 or runs.max(initial=0) > size or runs.sum() != size:
        raise ValueError(f"a run-length code of {runs.sum()} pixels for an image of {width}x{height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def decode_counts(counts: str) -> np.ndarray:
    """Return the run lengths in COCO's compressed string.

    Each character from `0` on holds five bits, low bits first. From the fourth run on, the string stores the difference
    to the run two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more characters follow
            continue
        if bits & 0x10:  # the sign bit
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return np.asarray(runs, np.int64)
