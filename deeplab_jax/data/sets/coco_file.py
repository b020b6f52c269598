"""Annotations in COCO's format with categories of their own, as annotation programs export them."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.data.holdout import hold_out
from deeplab_jax.data.layouts import COCO_FILES, WHOLE_COCO_FILES, split_words
from deeplab_jax.data.mask_formats import check_overlap
from deeplab_jax.data.sets.coco import MAX_BYTES, CocoSource, Entry, place_of, read_region
from deeplab_jax.data.source import normal_name, walk_files
from deeplab_jax.errors import UserError, did_you_mean, spell
from deeplab_jax.files import at_home, read_json
from deeplab_jax.labels import MAX_CLASSES, LabelSet, colormap


def open_coco_file(
    dir: str | Path,
    *,
    split: str,
    annotations: str = "",
    class_names: Sequence[str] = (),
    overlap: str = "ignore",
    val_fraction: float | None = None,
) -> CocoSource:
    """Return the images of a COCO file; its categories are the classes.

    Class 0 is the background, unless a category has this name; the others follow in the order of the categories' ids.
    Crowd regions get the ignore label, because they are coarse and hold background between the objects. Images without
    annotations are all background. An image's `file_name` is looked up in the file's folder, then in the data set's
    folder, its `images/` and the split's folder. If it is in none, all folders are searched for a file of that name.

    Args:
      dir: the folder of the data set.
      split: the part to open; `all` is everything in a file of all images.
      annotations: path of the file relative to `dir`; `{split}` stands for the split. Empty: found in
        `layouts.COCO_FILES` and `layouts.WHOLE_COCO_FILES`.
      class_names: some of the categories, in the order of class ids; the others are background.
      overlap: what becomes of pixels in instances of two classes, "ignore" (the ignore label), "last" (the class with
        the larger id) or "refuse".
      val_fraction: the share of the images in `val` if there is one file for all.

    Raises:
      UserError: no file, one of another format, an unknown split or class name.
    """
    check_overlap(overlap)
    root = Path(dir)
    file, is_whole = _find_file(root, split, annotations)
    content = _read(file)
    try:
        names, ids = _classes(content, tuple(class_names), file, lambda: _other_names(root, annotations))
        entries, missing = _entries(content, ids, _Places(root, file.parent, split), file)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: not COCO annotations ({error!r:.200}); export them again") from error
    if not entries:
        raise UserError(f"{file}: lists no image; export it again")
    is_share = is_whole and split != "all"
    if is_share:
        if val_fraction is not None and split not in ("train", "val"):
            fix = did_you_mean(split, ("train", "val", "all"))
            raise UserError(f"{file}: val_fraction makes no split '{split}'; {fix}; or add a file for each split")
        if val_fraction is None:
            raise UserError(
                f"{file}: nothing says which images are '{split}'; set --config.data.options.val_fraction=0.2, which "
                "makes 'train' and 'val', or add a file for each split; split 'all' takes everything"
            )
        kept = hold_out([entry.name for entry in entries], val_fraction)
        entries = tuple(entry for entry in entries if (entry.name in kept) == (split == "val"))
    lost = tuple((entry.image, place_of(entry, file)) for entry in entries if entry.name in missing)
    entries = tuple(entry for entry in entries if entry.name not in missing)
    without = sum(not entry.regions for entry in entries)
    counts = Counter(region.class_id for entry in entries for region in entry.regions)
    found = ", ".join(f"{name} ({counts[i]} instances)" if i or counts[i] else name for i, name in enumerate(names))
    note = (
        f"found {os.path.relpath(file, root)}; classes {found}; {without} of {len(entries)} images without annotations"
    )
    labels = LabelSet(names, colormap(len(names)))
    return CocoSource(entries, str(file), lost, is_share, "coco_file", labels, overlap=overlap, note=note)


def _find_file(root: Path, split: str, annotations: str) -> tuple[Path, bool]:
    """Return the file, and whether it holds the images of all splits."""
    if annotations:
        file = root / at_home(annotations.replace("{split}", split))
        return file, "{split}" not in annotations
    own = [root / row.format(split=word) for row in COCO_FILES for word in split_words(split)]
    whole = [root / name for name in WHOLE_COCO_FILES]
    found = [file for file in own if file.is_file()]
    if len(found) > 1:
        raise UserError(
            f"{found[0]} and {found[1]}: both could be the annotations of '{split}'; choose with "
            f"--config.data.options.annotations='{found[0].relative_to(root)}'"
        )
    if found:
        return found[0], False
    for file in whole:
        if file.is_file():
            return file, True
    raise UserError(
        f"{root}: no annotations of '{split}' (such as {COCO_FILES[1].format(split=split)} or {WHOLE_COCO_FILES[0]}); "
        "correct --config.data.dir, or set --config.data.options.annotations to the path of the file"
    )


def _other_names(root: Path, annotations: str) -> set[str]:
    """Return the names of the categories in the files of all splits, as far as they can be read."""
    names: set[str] = set()
    for split in ("train", "val", "test"):
        with contextlib.suppress(UserError, KeyError, TypeError):
            names |= {
                str(category["name"]) for category in _read(_find_file(root, split, annotations)[0])["categories"]
            }
    return names


def _read(file: Path) -> Any:
    try:
        return read_json(file, limit=MAX_BYTES)
    except FileNotFoundError as error:
        raise UserError(
            f"{file}: no such file; correct --config.data.dir or --config.data.options.annotations"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not JSON ({error}); export the annotations again") from error


def _classes(
    content: Any, chosen: tuple[str, ...], file: Path, others: Callable[[], set[str]]
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the class names, and category id -> class id. A chosen name may be one of the `others` alone, the
    categories of other splits.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    used = {annotation["category_id"] for annotation in content["annotations"]}
    groups = {category.get("supercategory") for category in categories}
    # Roboflow lists the data set itself as category 0, above all others, and uses it nowhere.
    categories = [c for c in categories if c["id"] in used or c["id"] != 0 or c["name"] not in groups]
    names = {category["id"]: str(category["name"]) for category in categories}
    if len(names) != len(categories) or len(set(names.values())) != len(names):
        raise UserError(f"{file}: two categories have one id or name; rename one and export again")
    if unknown := sorted(used - names.keys()):
        raise UserError(f"{file}: annotations are of category {spell(unknown)}, which it does not list; export again")
    background = next((name for name in names.values() if name.lower() == "background"), "background")
    classes = (background, *(name for name in names.values() if name != background))
    if strange := [name for name in chosen if name not in classes]:
        known = dict.fromkeys([*classes, *sorted(others())])
        for name in strange:
            if name not in known:
                raise UserError(
                    f"{file}: class_names has {name!r:.100}, which is no category; {did_you_mean(name, known)}"
                )
    if chosen:
        classes = (background, *(name for name in chosen if name != background))
    if len(classes) > MAX_CLASSES:
        raise UserError(f"{file}: {len(classes)} classes, and {MAX_CLASSES} are the limit; choose some as class_names")
    return classes, {number: classes.index(name) for number, name in names.items() if name in classes}


class _Places:
    """Where the images of a file may be."""

    def __init__(self, root: Path, beside: Path, split: str) -> None:
        words = [place for word in split_words(split) for place in (word, f"images/{word}")]
        self._folders = [beside, *(root / word for word in ("", "images", *words))]
        self._root = root
        self._by_name: Mapping[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """Return the file of an image, or None if there is none or more than one."""
        name = name.replace("\\", "/")
        for folder in self._folders:
            if (folder / name).is_file():
                return folder / name
        if self._by_name is None:  # Made only if it is needed.
            files: dict[str, list[Path]] = {}
            for path in walk_files(self._root):
                files.setdefault(normal_name(path.name), []).append(path)
            self._by_name = files
        found = self._by_name.get(normal_name(name.rpartition("/")[2]), [])
        return found[0] if len(found) == 1 else None


def _entries(content: Any, ids: Mapping[int, int], places: _Places, file: Path) -> tuple[tuple[Entry, ...], set[str]]:
    """Return the images by name, and the names of those that do not exist, whose entries have the file's own name.

    Raises:
      UserError: an annotation without an outline, or of an image that the file does not list.
    """
    regions: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        class_id = ids.get(annotation["category_id"])
        if class_id is None:
            continue
        which, image_id = f"{file}: annotation {annotation.get('id')!r:.50}", annotation["image_id"]
        if image_id not in regions:
            raise UserError(
                f"{which} is of image {image_id!r:.50}, which the file does not list; delete it, or add the image"
            )
        if not annotation.get("segmentation"):
            raise UserError(f"{which} has a box and no outline; draw its outline, or delete it")
        region = read_region(class_id, bool(annotation.get("iscrowd", 0)), annotation["segmentation"])
        regions[image_id].append(region)
    entries, missing = [], set()
    for image in content["images"]:
        path = places.find(image["file_name"])
        name = normal_name(os.path.splitext(image["file_name"].replace("\\", "/"))[0]).lstrip("/")
        if path is None:
            missing.add(name)
        size, of_image = (image["height"], image["width"]), tuple(regions[image["id"]])
        entries.append(Entry(str(path or image["file_name"]), *size, image["id"], of_image, name))
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("two images have one file_name")
    return tuple(sorted(entries, key=lambda entry: entry.name)), missing
