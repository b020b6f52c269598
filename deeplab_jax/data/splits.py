"""Which files of a folder belong to a split: folders of the splits, lists, or a share held out for validation."""

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from deeplab_jax.data.holdout import check_fraction
from deeplab_jax.data.image_files import IMAGE_SUFFIXES
from deeplab_jax.data.layouts import SPLIT_WORDS, Files, collect, config_for, find_layout, find_list, join, split_words
from deeplab_jax.data.source import normal_name, walk_files
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.files import at_home

IMAGES, MASKS = "images", "masks"
"""The usual folders; where an option says so, other layouts are looked for, too."""


@dataclasses.dataclass(frozen=True)
class SplitFiles:
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


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What `find_split` is asked for; see `sets.folder.open_folder`."""

    root: Path
    split: str
    images: str
    masks: str
    lists: dict[str, str] | None
    val_fraction: float | None
    finds: bool

    @property
    def divides(self) -> bool:
        """Whether the split is a share of what else would be the files for training."""
        return self.val_fraction is not None and self.split in ("train", "val")

    @property
    def has_placeholder(self) -> bool:
        """Whether an option names the split's place with `{split}`."""
        return "{split}" in self.images + self.masks

    @property
    def finds_usual(self) -> bool:
        """Whether to look in the table of layouts."""
        return self.finds and (self.images, self.masks) == (IMAGES, MASKS)

    @property
    def share(self) -> str:
        """The share for validation, for a note."""
        return "" if self.val_fraction is None else f"; {self.val_fraction:g} of them for validation"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits to look for: this one, and those that say whether it is a share."""
        return tuple(dict.fromkeys((self.split, "train", "val")))

    def listed(self, file: Path, name: object, *, divided: bool = False) -> SplitFiles:
        """Return the files that a list names, or a share of them."""
        share, keeps = (self.share, self.split) if divided else ("", None)
        return SplitFiles(_all(self), f"; listed in {name}{share}", file, keeps)


def find_split(
    root: Path,
    split: str,
    images: str,
    masks: str,
    split_lists: Mapping[str, str] | Sequence[tuple[str, str]] | None,
    val_fraction: float | None,
    *,
    finds: bool,
) -> SplitFiles:
    """Return the files of a split, and how they are selected among those that the layout has, by the first rule that
    applies.

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
    asked = _Asked(root, split, images, masks, lists, val_fraction, finds)
    for rule in (_by_placeholder, _by_split_lists, _by_folders, _whole, _by_lists):
        if (found := rule(asked)) is not None:
            return found
    return _by_fraction(asked)


def _by_placeholder(asked: _Asked) -> SplitFiles | None:
    """Return the files in the places that the options name with `{split}`."""
    images, masks = asked.images, asked.masks
    if not asked.has_placeholder:
        return None
    places = {one: _places(asked.root, one, images, masks) for one in asked.splits}
    if asked.split == "all" and not places["all"]:
        return None  # Those of every split.
    if places["train"] and not places["val"] and asked.divides:
        return SplitFiles(_named(asked.root, *places["train"]), asked.share, keeps=asked.split)
    missing = images.replace("{split}", asked.split), masks.replace("{split}", asked.split)  # For the message.
    return SplitFiles(_named(asked.root, *(places[asked.split] or missing)))


def _by_split_lists(asked: _Asked) -> SplitFiles | None:
    """Return the files that the option `split_lists` names, if it is given. A list for training is divided if no other
    list can be that of the validation.
    """
    if not (lists := asked.lists) or (asked.split == "all" and "all" not in lists):
        return None
    alone = not lists.keys() - {*split_words("train"), *split_words("test")}
    divided = asked.divides and alone and _called("train", lists) is not None
    split = "train" if divided else asked.split
    key = _called(split, lists)
    if key is None:
        raise UserError(f"split_lists has no split '{split}'{_with_list(split, lists)}")
    return asked.listed(asked.root / at_home(lists[key]), lists[key], divided=divided)


def _called(split: str, lists: Mapping[str, str]) -> str | None:
    """Return the key of a split's list, which may be any of the split's names; None if there is none."""
    keys = [word for word in split_words(split) if word in lists]
    if len(keys) > 1:
        raise UserError(f"split_lists has two lists of split '{split}', {' and '.join(keys)}; leave one out")
    return keys[0] if keys else None


def _with_list(split: str, lists: Mapping[str, str]) -> str:
    """Return how to name the list of a split: by another name of a key that is no split's, or by a further key."""
    if split not in SPLIT_WORDS:
        return f"; {did_you_mean(split, lists)}"
    strange = [key for key in lists if not any(key in words for words in SPLIT_WORDS.values())]
    if len(strange) == 1:
        named = {split if key == strange[0] else key: file for key, file in lists.items()}
        return f", but '{strange[0]}'; rename that: {_lists_flag(named)}"
    return f", only {', '.join(lists)}; choose one of these, or add its list: " + _lists_flag(
        {**lists, split: f"{split}.txt"}
    )


def _lists_flag(lists: Mapping[str, str]) -> str:
    """Return the argument of the command line, for a shell, that names the lists of splits."""
    return f'"--config.data.options.split_lists={tuple((key, str(file)) for key, file in lists.items())}"'


def _by_folders(asked: _Asked) -> SplitFiles | None:
    """Return the files in folders of the splits, if there are any. Folders for training alone are divided."""
    if asked.split == "all" or not (asked.finds or asked.val_fraction is None):
        return None
    own = {one: _of_split(asked, one) for one in asked.splits}
    if own["train"] is not None and own["val"] is None and asked.divides:
        return SplitFiles(own["train"], asked.share, keeps=asked.split)
    files = own[asked.split]
    return None if files is None else SplitFiles(files)


def _whole(asked: _Asked) -> SplitFiles | None:
    """Return all files, for the split `all`."""
    return SplitFiles(_all(asked)) if asked.split == "all" else None


def _by_lists(asked: _Asked) -> SplitFiles | None:
    """Return the files that a list in a usual place names, if there is one. A list for training alone is divided."""
    if not asked.finds or asked.lists is not None:
        return None
    found = {one: find_list(asked.root, one) for one in (*asked.splits, "default")}
    whole, own = found["train"] or found["default"], found[asked.split]
    if asked.divides and whole and not found["val"]:
        return asked.listed(whole, whole.relative_to(asked.root), divided=True)
    # A single list beside the images may be of anything; with the other one it is of the splits.
    if own is not None and (found["train"] or asked.split == "test"):
        return asked.listed(own, own.relative_to(asked.root))
    return None


def _by_fraction(asked: _Asked) -> SplitFiles:
    """Return all files, of which `val_fraction` is for validation; or raise a UserError if nothing divides them."""
    files, of_fraction = _undivided(asked), asked.split in ("train", "val")
    own = {} if of_fraction and files is not None else _of_splits(asked)
    if own and not (of_fraction and asked.val_fraction is None):  # Nothing is there that could be divided.
        raise UserError(f"{asked.root}: no split '{asked.split}' is there; {did_you_mean(asked.split, [*own, 'all'])}")
    files = _joined(asked, own) if files is None else files
    if asked.val_fraction is None:
        raise UserError(
            f"{asked.root}: nothing says which examples are '{asked.split}'; set "
            f"--config.data.options.val_fraction=0.2 or split_lists, or make {asked.images}/{asked.split} and "
            f"{asked.masks}/{asked.split}; split 'all' takes everything"
        )
    if not asked.divides:
        fix = did_you_mean(asked.split, ("train", "val", "all"))
        raise UserError(f"val_fraction makes no split '{asked.split}'; {fix}")
    return SplitFiles(files, asked.share, keeps=asked.split)


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


def _of_splits(asked: _Asked) -> dict[str, Files]:
    """Return the files of each split that has folders."""
    found = {split: _of_split(asked, split) for split in SPLIT_WORDS}
    return {split: files for split, files in found.items() if files is not None}


def _of_split(asked: _Asked, split: str) -> Files | None:
    """Return the files in folders of a split, or None if there are none."""
    root, images, masks = asked.root, asked.images, asked.masks
    if asked.has_placeholder:
        places = _places(root, split, images, masks)
        return None if places is None else _named(root, *places)
    if is_glob(root, images) or is_glob(root, masks):
        return None
    if asked.finds_usual:
        return find_layout(root, split)
    at, masks_at = root / images / split, root / masks / split
    return collect(root, at, masks_at) if at.is_dir() and masks_at.is_dir() else None


def _undivided(asked: _Asked) -> Files | None:
    """Return the files in folders or globs without splits, or None if there are none."""
    root, images, masks = asked.root, asked.images, asked.masks
    if asked.has_placeholder:
        return None
    if asked.finds_usual and (files := find_layout(root, None)) is not None:
        return files
    there = all((root / place).is_dir() for place in (images, masks)) or is_glob(root, images) or is_glob(root, masks)
    return _named(root, images, masks) if there else None


def _all(asked: _Asked) -> Files:
    """Return the files in folders without splits, or else those in the folders of every split."""
    files = _undivided(asked)
    return _joined(asked, _of_splits(asked)) if files is None else files


def _joined(asked: _Asked, own: Mapping[str, Files]) -> Files:
    """Return the files of every split, or raise a UserError if there are none."""
    return join(own) if own else _named(asked.root, asked.images, asked.masks)


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
            fix = f"correct --config.data.dir, or set --config.data.options.{option} to a folder or glob"
            if (images, masks) == (IMAGES, MASKS) and (config := config_for(root)):
                fix = f"{root} has the layout of another config; give --config {config} in place of this one"
            raise UserError(f"{root / name}: no such folder, and no other layout is there; {fix}")
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
