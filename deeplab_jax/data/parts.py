"""Which files of a folder belong to a split: folders of the splits, lists, or a share held out for validation."""

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from deeplab_jax.data.holdout import check_fraction
from deeplab_jax.data.image_files import IMAGE_SUFFIXES
from deeplab_jax.data.layouts import Files, collect, find_layout, find_list, split_words
from deeplab_jax.data.source import normal_name, walk_files
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.files import at_home

IMAGES, MASKS = "images", "masks"
"""The usual folders; where an option says so, other layouts are looked for, too."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The files of a split, or of more.

    Attributes:
      files: all that the layout has.
      how: how the split's files are selected, for a note.
      names_file: the list that selects, or None.
      keeps: "train" or "val" if a share of the selected is held out for validation; None: all count.
    """

    files: Files
    how: str = ""
    names_file: Path | None = None
    keeps: str | None = None


def find_part(
    root: Path,
    split: str,
    images: str,
    masks: str,
    split_lists: Mapping[str, str] | Sequence[tuple[str, str]] | None,
    val_fraction: float | None,
    *,
    finds: bool,
) -> Part:
    """Return the files of a split, and how they are selected among those that the layout has.

    The arguments are those of `sets.folder.open_folder`; `finds`: whether to look for layouts and lists that no option
    names.

    Raises:
      UserError: no files, two layouts that fit, or nothing that says which files are the split's.
    """
    if val_fraction is not None:
        check_fraction(val_fraction)
    try:
        lists = None if split_lists is None else dict(split_lists)
    except (TypeError, ValueError):
        raise UserError(
            f"split_lists is {split_lists!r:.100}; give pairs of a split and its list: "
            "\"--config.data.options.split_lists=(('train','train.txt'),('val','val.txt'))\""
        ) from None
    share = "" if val_fraction is None else f"; {val_fraction:g} of them for validation"
    divides = val_fraction is not None and split in ("train", "val")
    if "{split}" in images + masks:
        places = {one: _places(root, one, images, masks) for one in (split, "train", "val")}
        if places["train"] and not places["val"] and divides:
            return Part(_named(root, *places["train"]), share, keeps=split)
        missing = images.replace("{split}", split), masks.replace("{split}", split)  # For the message.
        return Part(_named(root, *(places[split] or missing)))
    if not lists and split != "all" and (finds or val_fraction is None):
        own = {one: _of_split(root, one, images, masks, finds=finds) for one in dict.fromkeys((split, "train", "val"))}
        if own["train"] is not None and own["val"] is None and divides:
            return Part(own["train"], share, keeps=split)
        if (files := own[split]) is not None:
            return Part(files)
    files = _all(root, images, masks, finds=finds)
    if split == "all" and not lists:
        return Part(files)
    if lists:
        if divides and "train" in lists and "val" not in lists:
            return Part(files, f"; listed in {lists['train']}{share}", root / at_home(lists["train"]), keeps=split)
        if split not in lists:
            raise UserError(f"split_lists has no split '{split}'; {did_you_mean(split, lists)}")
        return Part(files, f"; listed in {lists[split]}", root / at_home(lists[split]))
    if finds and lists is None:
        found = {one: find_list(root, one) for one in dict.fromkeys((split, "train", "val", "default"))}
        whole = found["train"] or found["default"]
        if divides and whole and not found["val"]:
            return Part(files, f"; listed in {whole.relative_to(root)}{share}", whole, keeps=split)
        # A single list beside the images may be of anything; with the other one it is of the splits.
        if (own_list := found[split]) is not None and (found["train"] or split == "test"):
            return Part(files, f"; listed in {own_list.relative_to(root)}", own_list)
    if val_fraction is None:
        raise UserError(
            f"{root}: nothing says which examples are '{split}'; set --config.data.options.val_fraction=0.2 or "
            f"split_lists, or make {images}/{split} and {masks}/{split}; split 'all' takes everything"
        )
    if split not in ("train", "val"):
        raise UserError(f"val_fraction makes no split '{split}'; {did_you_mean(split, ('train', 'val', 'all'))}")
    return Part(files, share, keeps=split)


def _places(root: Path, split: str, images: str, masks: str) -> tuple[str, str] | None:
    """Return the folders or globs of a split that stands as `{split}` in the options: those of the first of its words
    under which both are there; None if there are none.
    """
    for word in split_words(split):
        found = [_spelled(root, place, word) for place in (images, masks)]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return None


def _spelled(root: Path, place: str, word: str) -> str | None:
    """Return a folder or glob with a word for `{split}`, in the letters that are there; None if it is not there."""
    spelled = [place.replace("{split}", form) for form in (word, word.capitalize(), word.upper())]
    return next((one for one in spelled if (root / one).is_dir() or any(glob.iglob(one, root_dir=root))), None)


def _of_split(root: Path, split: str, images: str, masks: str, *, finds: bool) -> Files | None:
    """Return the files in folders of a split, or None if there are none."""
    if is_glob(root, images) or is_glob(root, masks):
        return None
    if finds and (images, masks) == (IMAGES, MASKS):
        return find_layout(root, split)
    at, masks_at = root / images / split, root / masks / split
    return collect(root, at, masks_at) if at.is_dir() and masks_at.is_dir() else None


def _all(root: Path, images: str, masks: str, *, finds: bool) -> Files:
    """Return the files in folders without splits."""
    if finds and (images, masks) == (IMAGES, MASKS) and (files := find_layout(root, None)) is not None:
        return files
    return _named(root, images, masks)


def _named(root: Path, images: str, masks: str) -> Files:
    """Return the files in folders or globs that the options name.

    Raises:
      UserError: a folder does not exist, or holds no image.
    """
    layout = f"{images} and {masks}"
    if is_glob(root, images) or is_glob(root, masks):
        found = match_glob(root, masks)
        outlines = not found
        if outlines:
            found = match_glob(root, masks, suffixes=(".json",))
        return Files(match_glob(root, images), found, layout, root, outlines=outlines)
    for option, name in (("images", images), ("masks", masks)):
        if not (root / name).is_dir():
            raise UserError(
                f"{root / name}: no such folder, and no other layout is there; correct --config.data.dir, or set "
                f"--config.data.options.{option} to a folder or glob"
            )
    files = collect(root, root / images, root / masks)
    if files is None:
        empty = root / images if not walk_files(root / images) else root / masks
        raise UserError(
            f"{empty}: no {'image' if empty == root / images else 'mask'} found; check --config.data.dir (files ending "
            f"in {', '.join(IMAGE_SUFFIXES)} count)"
        )
    return files


# Folders and globs that an option names.


def is_glob(root: Path, pattern: str) -> bool:
    """Return whether a pattern is a glob, and not the name of a folder that has such characters."""
    return glob.has_magic(pattern) and not (root / pattern).is_dir()


def match_glob(root: Path, pattern: str, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return name -> file of the files that match a glob, or lie in a folder.

    If the last part of the glob has one `*` and an end after it, the part that `*` matches is the name; otherwise the
    name is the stem.

    Raises:
      UserError: two files have one name.
    """
    if not is_glob(root, pattern):
        pattern = f"{glob.escape(pattern)}/*"
    absolute = PurePosixPath(pattern).is_absolute()
    base, relative = (Path("/"), pattern.lstrip("/")) if absolute else (root, pattern)
    last = PurePosixPath(pattern).name
    before, star, after = last.partition("*")
    has_one_star = star and not set(after) & set("*?[") and not set(before) & set("?[")
    found: dict[str, Path] = {}
    for path in sorted(base.glob(relative)):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        name = path.name[len(before) : len(path.name) - len(after)] if has_one_star and after else path.stem
        name = normal_name(name)
        if name in found:
            raise UserError(
                f"{path}: also called '{name}', like {found[name]}; rename one, or narrow the glob '{pattern}'"
            )
        found[name] = path
    return found
