"""The interface of a source, and the most common source: a list of image files, each with its mask."""

import dataclasses
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, TypeGuard

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.image_files import IMAGE_SUFFIXES
from deeplab_jax.data.large import Image, open_large
from deeplab_jax.data.mask_formats import IdMasks
from deeplab_jax.errors import UserError, did_you_mean, spell
from deeplab_jax.labels import IGNORE_LABEL, PRESENCE, LabelSet, to_class_ids

_MANY_VALUES = 32
"""More unknown values than this are noise (interpolation, compression), not classes."""
_LARGEST_VALUE = 65535
"""The largest stored value that a map may have."""


class Example(TypedDict):
    """One example.

    `image` is `[H, W, C]`: uint8, or float32 in the same units, 0 to 255. C is 3 (RGB), or the number of bands that are
    read. `label` is uint8 `[H, W]` (class ids, 255 ignored), or `[H, W, K]` where a pixel can have several labels (0 or
    1 for each, 255 ignored). `name` is stable and usable as a file name without suffix.
    """

    image: np.ndarray
    label: np.ndarray
    name: str


OF_SOURCES = ("name", "labels", "describe", "__len__", "__getitem__")
"""What a source has."""


class Source(Protocol):
    """Random access to the examples of one split. Sources can be pickled and read from many threads."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> LabelSet: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def describe(self, index: int, /) -> tuple[str, str] | str:
        """Return the image's and the mask's path, or the example's name if it has no files."""
        ...


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file, its mask file, and the name of the example."""

    image: str
    mask: str
    name: str


Unpaired = tuple[tuple[str, str], ...]
"""(name, file) of files without a partner."""


class Listing(NamedTuple):
    """The contents of a folder: pairs, the files without a partner, and (name, line) of lines that repeat a name."""

    pairs: tuple[Pair, ...]
    images_without_mask: Unpaired
    masks_without_image: Unpaired
    repeated: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Examples read from pairs of files.

    The listing is made when the source is opened; reading an example opens only its files. `read_mask` returns the
    stored values of a pair's mask, integers `[H, W]`, whatever its format. `channels` and `value_range` say how images
    are read; see `images.read_image`. `note` says in one line how the files were found. `repeated` is that of
    `Listing`. `is_share` says whether `val_fraction` chose the pairs among more. `takes_map` says whether the data set
    has the option `value_map`. With `in_parts` an image whose format allows it is read a part at a time, when it is
    used; see `large.LargeImage`.
    """

    name: str
    labels: LabelSet
    pairs: tuple[Pair, ...]
    images_without_mask: Unpaired = ()
    masks_without_image: Unpaired = ()
    repeated: tuple[tuple[str, str], ...] = ()
    is_share: bool = False
    takes_map: bool = False
    channels: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()
    read_mask: Callable[[str], np.ndarray] = dataclasses.field(default_factory=IdMasks)
    note: str = ""
    in_parts: bool = False

    def require_pairs(self, place: str = "") -> None:
        """Raise a UserError that names the files without a partner, if there are any; `place` has the masks."""
        there = f" in {place}" if place else ""
        if self.images_without_mask:
            files = spell([file for _, file in self.images_without_mask])
            raise UserError(
                f"{files}: no mask of that name{there}; add the masks, remove these images, or (data set 'folder') "
                "list the others: \"--config.data.options.split_lists=(('train','train.txt'),('val','val.txt'))\""
            )
        if self.masks_without_image:
            files = spell([file for _, file in self.masks_without_image])
            raise UserError(f"{files}: no image of that name; add the images or remove these masks")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index]
        reading: Any = {"channels": self.channels, "value_range": self.value_range}
        image: Any = open_large(pair.image, **reading) if self.in_parts else None
        image = images.read_image(pair.image, **reading) if image is None else image
        label = decode_label(self.read_mask(pair.mask), self.labels, name=pair.mask)
        check_sizes(image, label, image_name=pair.image, mask_name=pair.mask)
        return {"image": image, "label": label, "name": pair.name}

    def describe(self, index: int) -> tuple[str, str]:
        pair = self.pairs[index]
        return pair.image, pair.mask


class FileSource(Source, Protocol):
    """A source that reads image files with these bands and this range; see `PairSource`."""

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def value_range(self) -> tuple[float, ...]: ...


def reads_files(source: Source) -> TypeGuard[FileSource]:
    """Return whether a source reads image files."""
    return hasattr(source, "value_range")


def read_as(source: Source, *, channels: Sequence[int], value_range: Sequence[float]) -> Source:
    """Return a source that reads image files with these bands and this range (see `images.read_image`). A source
    without image files is returned unchanged.
    """
    if not (channels or value_range) or not reads_files(source):
        return source
    changes: dict[str, Any] = {"channels": tuple(channels), "value_range": tuple(value_range)}
    return dataclasses.replace(source, **changes)  # type: ignore[type-var]


def read_in_parts(source: Source) -> Source:
    """Return a source of files that reads large images a part at a time, for `evaluate` with a window; others as they
    are.
    """
    if not hasattr(source, "in_parts"):
        return source
    return dataclasses.replace(source, in_parts=True)  # type: ignore[type-var]


def check_limit(limit: int | None) -> None:
    """Raise a UserError unless a number of images to check (None: all) is valid."""
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: give the number of images to look at, at least 1")


def decode_label(stored: np.ndarray, labels: LabelSet, *, name: str) -> np.ndarray:
    """Return the class ids, uint8 `[H, W]`, for stored values `[H, W]`.

    Raises:
      UserError: `stored` holds values that `labels` does not list; the message calls the mask `name`.
    """
    label, unknown = to_class_ids(stored, labels)
    if unknown:
        value_map = suggest_value_map(labels, np.unique(stored).tolist())
        fix = "correct the mask"
        if value_map is not None:
            fix += f", or (data set 'folder') map every stored value: {spell_value_map(value_map, labels.num_classes)}"
        raise UserError(
            f"{name}: mask values {spell(unknown)} are none of those expected ({spell_ranges(labels.stored_values)}) "
            f"for the {labels.num_classes} classes; {fix}"
        )
    return label


def suggest_value_map(labels: LabelSet, stored: Collection[int]) -> dict[int, int] | None:
    """Return stored value -> class id or 255, in which all values of masks have a meaning; None if none is likely.

    Args:
      labels: do not list some of the values.
      stored: the values that the masks hold.
    """
    known, count = stored_meanings(labels), labels.num_classes
    unknown = sorted(set(stored) - known.keys())
    if not unknown or len(unknown) > _MANY_VALUES or unknown[0] < 0 or unknown[-1] > _LARGEST_VALUE:
        return None
    if labels.names == PRESENCE.names:  # The masks of other labels may be in another form.
        return {**known, **dict.fromkeys(unknown, 1)}
    ignored = {value: class_id for value, class_id in known.items() if class_id == IGNORE_LABEL}
    classes = sorted(set(stored) - ignored.keys())
    from_one = labels.value_map is None and unknown == [count]  # Some of the ids before it may not be here.
    others = list(range(1, count + 1)) if from_one else [value for value in classes if value != 0]
    if from_one or others == unknown:
        if len(others) == count:
            of_0 = {0: IGNORE_LABEL} if 0 in classes else {}
            return {**ignored, **of_0, **{value: i for i, value in enumerate(others)}}
        if len(classes) == count:  # 0 is the first class.
            return {**ignored, **{value: i for i, value in enumerate(classes)}}
    suggested = {**known, **dict.fromkeys(unknown, IGNORE_LABEL)}
    return None if all(suggested[value] == IGNORE_LABEL for value in stored) else suggested


def spell_value_map(value_map: Mapping[int, int], num_classes: int) -> str:
    """Return what to do with a suggested map."""
    flag = value_map_flag(value_map)
    may_be_a_class = value_map.get(0) == IGNORE_LABEL
    return f"{flag} if 0 is no label; else give {num_classes + 1} class_names" if may_be_a_class else flag


def stored_meanings(labels: LabelSet) -> dict[int, int]:
    """Return stored value -> class id or 255."""
    return dict(labels.value_map or ((value, value) for value in labels.stored_values))


def value_map_flag(value_map: Mapping[int, int]) -> str:
    """Return the argument of the command line, for a shell, that sets a map of stored values to class ids."""
    pairs = ",".join(f"({stored},{class_id})" for stored, class_id in sorted(value_map.items()))
    return f'"--config.data.options.value_map=({pairs}{"," if len(value_map) == 1 else ""})"'


def check_sizes(image: Image, label: np.ndarray, *, image_name: str, mask_name: str) -> None:
    """Raise a UserError if an image and its mask differ in size."""
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{mask_name}: mask of {label.shape[1]}x{label.shape[0]} pixels for an image of "
            f"{image.shape[1]}x{image.shape[0]} ({image_name}); "
            "give both the same size (resize masks with nearest neighbour only)"
        )


def spell_ranges(values: Sequence[int]) -> str:
    """Return ascending integers as text for a message: "0 to 10, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def choose_split(split: str, splits: Iterable[str], *, source: str) -> None:
    """Raise a UserError unless `split` is one of `splits`."""
    if split not in splits:
        raise UserError(f"data set '{source}' has no split '{split}'; {did_you_mean(split, splits)}")


def require_folder(path: Path, *, source: str, layout: str) -> Path:
    """Return `path`, or raise a UserError that shows the expected `layout` if it is not a folder."""
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; set --config.data.dir to the folder of data set '{source}', which is laid out as "
            f"{layout}"
        )
    return path


def list_images(folder: Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden ones and without folders."""
    ends = tuple(suffixes)
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if entry.name.lower().endswith(ends) and not _is_folder(entry)]
    return [folder / name for name in sorted(files) if not name.startswith(".")]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # The latter fails for a link to itself.


def walk_files(
    root: Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES, skip: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Return the files of a folder and of all folders below that have one of the suffixes, sorted by folder and name.

    Hidden files and folders are left out, and so is the folder `skip` below. A folder is visited once, by its own path
    rather than that of a link.

    Raises:
      UserError: a folder that cannot be read.
    """
    seen = {os.path.realpath(skip)} - {os.path.realpath(root)} if skip is not None else set()
    folders, links, found = [root], list[Path](), list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # Links come last.
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); allow it, or name its files") from None
        for entry in visible:
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif entry.name.lower().endswith(tuple(suffixes)):
                found.append(Path(entry.path))
    return sorted(found, key=lambda file: (file.parent.parts, file.name))


def normal_name(text: str) -> str:
    """Return a name in one Unicode form (NFC): some systems store an accent as a letter of its own."""
    return unicodedata.normalize("NFC", text)


def pair_by_stem(images_found: Sequence[Path], masks_found: Sequence[Path], *, where: str) -> Listing:
    """Return the pairs of images and masks with equal names (without the suffix), sorted by name.

    Raises:
      UserError: no image was found, or two files have one name; the message names them.
    """
    return pair_by_name(by_stem(images_found), by_stem(masks_found), where=where)


def pair_by_name(images_found: Mapping[str, Path], masks_found: Mapping[str, Path], *, where: str) -> Listing:
    """Return the result of `pair_by_stem` for files whose names are already known (name -> path)."""
    if not images_found:
        raise UserError(
            f"{where}: no image found; check --config.data.dir (files ending in {', '.join(IMAGE_SUFFIXES)} count)"
        )
    paired = sorted(images_found.keys() & masks_found.keys())
    return Listing(
        tuple(Pair(str(images_found[name]), str(masks_found[name]), name) for name in paired),
        tuple((name, str(images_found[name])) for name in sorted(images_found.keys() - masks_found.keys())),
        tuple((name, str(masks_found[name])) for name in sorted(masks_found.keys() - images_found.keys())),
    )


def pair_named(
    names: Sequence[str], images_found: Sequence[Path], masks_found: Sequence[Path], *, names_file: Path
) -> tuple[Pair, ...]:
    """Return the pairs of files that a list names, in its order, and no others.

    Raises:
      UserError: an image or a mask in the list does not exist.
    """
    images_by_name = {normal_name(path.stem): path for path in images_found}
    masks_by_name = {normal_name(path.stem): path for path in masks_found}
    for kind, found, files in (("image", images_by_name, images_found), ("mask", masks_by_name, masks_found)):
        missing = [name for name in names if name not in found]
        if missing:
            folder = f" in {files[0].parent}" if files else ""
            raise UserError(
                f"{names_file}: no {kind} for {spell(missing)}{folder}; "
                "unpack the data set again, or remove the names from the list"
            )
    return tuple(Pair(str(images_by_name[name]), str(masks_by_name[name]), name) for name in names)


def by_stem(paths: Sequence[Path], *, root: Path | None = None) -> dict[str, Path]:
    """Return name -> file. A name is the file's stem; with `root`, it keeps the folders between: `video1/0001`.

    Raises:
      UserError: two files have one name.
    """
    found: dict[str, Path] = {}
    twins = []
    for path in paths:
        name = normal_name((path.with_suffix("").relative_to(root) if root else Path(path.stem)).as_posix())
        if name in found:
            twins.append(str(found[name]))
        found[name] = path
    if twins:
        raise UserError(
            f"{spell(twins)}: another file has the same name up to its suffix; rename or remove one of each pair"
        )
    return found
