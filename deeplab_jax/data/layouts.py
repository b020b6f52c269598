"""The layouts of folders of images and masks: a table, and how the layout of a folder is found in it."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.data.image_files import IMAGE_SUFFIXES
from deeplab_jax.data.source import by_stem, list_images, normal_name, walk_files
from deeplab_jax.errors import UserError

IMAGE_WORDS = ("images", "image", "imgs", "img", "img_dir", "jpegimages", "photos", "pictures")
MASK_WORDS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "ann_dir", "annot", "gt"),
    *("segmentationclass", "segmentationclasspng", "labelme", "json"),
)
"""Possible names of the folders, in lower case; the first of each together win over others."""
SPLIT_WORDS = {
    split: (*words, *(f"{word}2017" for word in words))  # COCO's names have the year.
    for split, words in {
        "train": ("train", "training"),
        "val": ("val", "valid", "validation"),
        "test": ("test", "testing"),
    }.items()
}
SPLIT_ROWS = (
    ("{images}/{split}", "{masks}/{split}"),  # also mmsegmentation's img_dir/train with ann_dir/train
    ("{split}/{images}", "{split}/{masks}"),
    ("{split}_{images}", "{split}_{masks}"),
    ("{split}", "{split}_{masks}"),
    ("{split}", "{split}annot"),  # SegNet's CamVid
    ("{split}", "{split}"),  # Roboflow's masks beside images
    ("{images}/{split}", "{images}/{split}"),
)
"""Layouts with folders for each split: those of images and of masks. One folder for both holds masks beside images."""
ROWS = (
    ("{images}", "{masks}"),  # also CVAT's and labelme2voc's JPEGImages with SegmentationClass
    (".", "."),
    ("{images}", "{images}"),
)
"""Layouts without folders for the splits."""
MASK_ENDS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annotation", "-mask", "-label")
"""What may follow the image's name in the mask's name."""
IMAGE_ENDS = ("_img", "_image", "_sat", "_rgb", "-img", "-image")
"""What may follow the example's name in the image's name, where no mask has the whole name: DeepGlobe's `7_sat.jpg`."""
LISTS = ("ImageSets/Segmentation/{split}.txt", "{split}.txt", "lists/{split}.txt", "splits/{split}.txt")
"""Where lists of the splits may be."""
COCO_FILES = (
    "{split}/_annotations.coco.json",  # Roboflow
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "instances_{split}.json",
    "{split}.json",
)
"""Where annotations of a split in COCO's format may be."""
WHOLE_COCO_FILES = (
    "annotations/instances_default.json",
    "annotations.json",
    "_annotations.coco.json",
    "instances.json",
)
"""Where those of all images may be; the first is CVAT's."""
CONFIGS = (
    ("leftImg8bit", "configs/cityscapes.py"),
    *((f"annotations/instances_{split}2017.json", "configs/coco.py") for split in ("train", "val")),
    *(
        (row.format(split=word), "configs/coco_file.py")
        for row in COCO_FILES
        for word in (*SPLIT_WORDS["train"], *SPLIT_WORDS["val"])
    ),
    *((name, "configs/coco_file.py") for name in WHOLE_COCO_FILES),
)
"""What tells that a folder is that of a data set with a config of its own."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a layout.

    Attributes:
      images, masks: name of the example -> file. For masks of one file for each class it is the common beginning of
        their names.
      parts: name of the example -> its (class name, file), for such masks only.
      outlines: whether the masks are JSON files of labelme.
      places: the options `images` and `masks` that name the folders for every split; empty if an option did.
      layout: where the files are, for a message.
      folder: that of the images.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    layout: str
    folder: Path
    parts: Mapping[str, tuple[tuple[str, Path], ...]] = dataclasses.field(default_factory=dict)
    outlines: bool = False
    places: tuple[str, ...] = ()


def find_layout(root: Path, split: str | None) -> Files | None:
    """Return the files of a split in its own folders, or with None those in folders without splits; None if none are.

    Args:
      root: the folder of the data set.
      split: such as "val".

    Raises:
      UserError: several layouts fit; the message names two of them, and the options to choose.
    """
    fitting = dict(_candidates(root, split))
    found = [
        (pair, dataclasses.replace(files, places=places))
        for pair, places in fitting.items()
        if (files := collect(root, *pair)) is not None
    ]
    usual = [
        files
        for (at, masks_at), files in found
        if at != masks_at and {IMAGE_WORDS[0], MASK_WORDS[0]} <= _words(root, at, masks_at)
    ]
    if len(usual) == 1 or len(found) == 1:
        return usual[0] if len(usual) == 1 else found[0][1]
    if found:
        one, two = found[0][1], found[1][1]
        flags = place_flags(*one.places)
        raise UserError(f"{root}: both {one.layout} and {two.layout} could be the data; choose with options: {flags}")
    return None


def place_flags(images: str, masks: str) -> str:
    """Return the arguments of the command line, for a shell, that name the folders of images and of masks."""
    return f"--config.data.options.images='{images}' --config.data.options.masks='{masks}'"


def label_folders(files: Files) -> tuple[str, ...]:
    """Return the names of the folders of masks, if each is of one label: `wet` for image 7 and mask wet/7.png."""
    if files.images.keys() & files.masks.keys():
        return ()
    split = [name.partition("/") for name in files.masks]
    return tuple(sorted({label for label, _, name in split if name in files.images or _owner(name, files.images)}))


def collect(root: Path, folder: Path, masks_folder: Path) -> Files | None:
    """Return the images of one folder with the masks of another, or of the same; None if either has none."""
    where = "the folder" if folder == root else f"{os.path.relpath(folder, root)}/"
    if folder == masks_folder:
        return _beside(folder, where)
    where = f"{where} and {os.path.relpath(masks_folder, root)}/"
    images = by_stem(walk_files(folder), root=folder)
    files = walk_files(masks_folder)
    if images and files:
        return match(images, files, masks_folder, layout=where, folder=folder)
    outlines = by_stem(walk_files(masks_folder, suffixes=(".json",)), root=masks_folder)
    if images.keys() & outlines.keys():
        return Files(images, outlines, f"{where} (labelme)", folder, outlines=True)
    return None


def match(images: Mapping[str, Path], files: Sequence[Path], masks_folder: Path, *, layout: str, folder: Path) -> Files:
    """Return the files of images and of masks in another folder, whose names may have an end, or classes."""
    in_folders: dict[str, list[tuple[str, Path]]] = {}
    for path in files:
        inner = normal_name(path.relative_to(masks_folder).parent.as_posix())
        in_folders.setdefault(inner, []).append((normal_name(path.stem), path))
    if in_folders.keys() <= images.keys():
        parts = {name: tuple(some) for name, some in in_folders.items()}
        masks = {name: some[0][1].parent for name, some in parts.items()}
        return Files(images, masks, f"{layout} (NAME/CLASS)", folder, parts)
    masks = by_stem(files, root=masks_folder)
    if images.keys() & masks.keys():
        return Files(images, masks, layout, folder)
    ended = {name: _owner(name, images) for name in masks}
    ends = {name[len(owner) :] for name, owner in ended.items() if owner is not None}
    if None in ended.values() or not ends:
        for end in IMAGE_ENDS:
            if all(name.endswith(end) for name in images):
                without = {name.removesuffix(end): path for name, path in images.items()}
                found = match(without, files, masks_folder, layout=f"{layout} (images NAME{end})", folder=folder)
                return found if without.keys() & found.masks.keys() else Files(images, masks, layout, folder)
        return Files(images, masks, layout, folder)
    if len(ends) == 1:
        return Files(
            images, {ended[name] or name: path for name, path in masks.items()}, f"{layout} (NAME{min(ends)})", folder
        )
    parts_by_name: dict[str, list[tuple[str, Path]]] = {}
    for name, path in masks.items():
        owner = ended[name] or name
        parts_by_name.setdefault(owner, []).append((name[len(owner) + 1 :], path))
    begins = {name: masks_folder / f"{name}_*" for name in parts_by_name}
    named = {name: tuple(some) for name, some in parts_by_name.items()}
    return Files(images, begins, f"{layout} (NAME_CLASS)", folder, named)


def join(files: Mapping[str, Files]) -> Files:
    """Return the files of several splits as one, each name behind that of its split: `train/7`.

    Raises:
      UserError: the splits have masks of different kinds.
    """
    several = list(files.values())
    layouts = "; ".join(one.layout for one in several)
    if len({(one.outlines, bool(one.parts)) for one in several}) > 1:
        raise UserError(f"the splits have masks of different kinds ({layouts}); open one of them: {', '.join(files)}")

    def of_all(field: str) -> dict[str, Any]:
        return {f"{split}/{name}": file for split, one in files.items() for name, file in getattr(one, field).items()}

    return dataclasses.replace(
        several[0], images=of_all("images"), masks=of_all("masks"), parts=of_all("parts"), layout=layouts
    )


def split_words(split: str) -> tuple[str, ...]:
    """Return the names that a split's folder or list may have."""
    return SPLIT_WORDS.get(split, (split,))


def config_for(root: Path) -> str:
    """Return the config of the data set that a folder without a layout of images and masks may have, or ""."""
    return next((config for place, config in CONFIGS if (root / place).exists()), "")


def find_list(root: Path, split: str) -> Path | None:
    """Return the list of a split, or None."""
    names = functools.cache(_names)
    files = (_descend(root, row.format(split=word), names) for row in LISTS for word in split_words(split))
    return next((file for file in files if file is not None and file.is_file()), None)


def _owner(name: str, images: Mapping[str, Path]) -> str | None:
    """Return the longest name of an image that `name` continues with `_` or `-`, or None."""
    return next((name[:at] for at in range(len(name) - 1, 0, -1) if name[at] in "_-" and name[:at] in images), None)


def _candidates(root: Path, split: str | None) -> Iterator[tuple[tuple[Path, Path], tuple[str, ...]]]:
    """Yield pairs of folders of images and of masks, each with the options that name it for every split."""
    names = functools.cache(_names)
    for row in ROWS if split is None else SPLIT_ROWS:
        for word, image, mask in itertools.product(split_words(split or ""), IMAGE_WORDS, MASK_WORDS):
            at, masks_at = (_descend(root, part.format(split=word, images=image, masks=mask), names) for part in row)
            if at is not None and masks_at is not None and at.is_dir() and masks_at.is_dir():
                parts = zip(row, (at, masks_at), strict=True)
                yield (at, masks_at), tuple(_of_any_split(part, place.relative_to(root), word) for part, place in parts)


def _of_any_split(row: str, found: Path, word: str) -> str:
    """Return the folder found for a part of a row, with `{split}` again in place of a split's word."""
    parts = zip(Path(row).parts, found.parts, strict=True)
    return str(Path(*("{split}" + name[len(word) :] if part.startswith("{split}") else name for part, name in parts)))


def _beside(folder: Path, where: str) -> Files | None:
    """Return images with masks in the same folder: NAME_mask of NAME or NAME_img, NAME.json, or a PNG with a JPEG of
    the same name.
    """
    files = list_images(folder, suffixes=(*IMAGE_SUFFIXES, ".json"))
    pictures = [path for path in files if path.suffix.lower() != ".json"]
    stems = {normal_name(path.stem) for path in pictures}
    for own, end in itertools.product(("", *IMAGE_ENDS), MASK_ENDS):
        marked = {stem for stem in stems if stem.endswith(end) and stem.removesuffix(end) + own in stems}
        if marked:
            masks = by_stem([path for path in pictures if normal_name(path.stem) in marked])
            images = by_stem([path for path in pictures if normal_name(path.stem) not in marked])
            found = {name.removesuffix(end): path for name, path in masks.items()}
            images = {name.removesuffix(own): path for name, path in images.items()}
            return Files(images, found, f"{where} (NAME{own} and NAME{end})", folder)
    outlines = by_stem([path for path in files if path.suffix.lower() == ".json" and normal_name(path.stem) in stems])
    if outlines:
        return Files(by_stem(pictures), outlines, f"{where} (labelme)", folder, outlines=True)
    photos = [path for path in pictures if path.suffix.lower() in (".jpg", ".jpeg")]
    drawings = [path for path in pictures if path.suffix.lower() == ".png"]
    if {normal_name(path.stem) for path in photos} & {normal_name(path.stem) for path in drawings}:
        return Files(by_stem(photos), by_stem(drawings), f"{where} (NAME.jpg and NAME.png)", folder)
    return None


def _words(root: Path, *folders: Path) -> set[str]:
    return {word for folder in folders for word in folder.relative_to(root).parts}


def _descend(root: Path, path: str, names: Callable[[Path], Mapping[str, str]]) -> Path | None:
    """Return the folder or file at a path, whose words may differ in upper and lower case; None if there is none."""
    at = root
    for word in Path(path).parts:
        found = names(at).get(word.lower())
        if found is None:
            return None
        at = at / found
    return at


def _names(folder: Path) -> dict[str, str]:
    """Return name in lower case -> name of what a folder holds; the first in the order of names wins."""
    if not folder.is_dir():
        return {}
    return {name.lower(): name for name in sorted(os.listdir(folder), reverse=True)}
