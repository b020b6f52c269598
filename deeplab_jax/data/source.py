"""The interface of a source, and the most common source: a list of image files, each with its mask."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.errors import UserError, did_you_mean, spell
from deeplab_jax.labels import LabelSet, to_class_ids

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Example(TypedDict):
    """One example.

    `image` is `[H, W, C]`: uint8, or float32 in the same units, 0 to 255. C is 3 (RGB), or the number of bands that are
    read. `label` is uint8 `[H, W]` (class ids, 255 ignored), and `name` is stable and
    usable as a file name without suffix.
    """

    image: np.ndarray
    label: np.ndarray
    name: str


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
    """The contents of a folder: pairs, and the files without a partner."""

    pairs: tuple[Pair, ...]
    images_without_mask: Unpaired
    masks_without_image: Unpaired


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Examples read from pairs of files.

    The listing is made when the source is opened; reading an example opens only its two files. `channels` and
    `value_range` say how; see `images.read_image`.
    """

    name: str
    labels: LabelSet
    pairs: tuple[Pair, ...]
    images_without_mask: Unpaired = ()
    masks_without_image: Unpaired = ()
    channels: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()

    def require_pairs(self) -> None:
        """Raise a UserError that names the files without a partner, if there are any."""
        if self.images_without_mask:
            files = spell([file for _, file in self.images_without_mask])
            raise UserError(f"{files}: no mask of that name; add the masks or remove these images")
        if self.masks_without_image:
            files = spell([file for _, file in self.masks_without_image])
            raise UserError(f"{files}: no image of that name; add the images or remove these masks")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index]
        image = images.read_image(pair.image, channels=self.channels, value_range=self.value_range)
        label = decode_label(images.read_mask(pair.mask), self.labels, name=pair.mask)
        check_sizes(image, label, image_name=pair.image, mask_name=pair.mask)
        return {"image": image, "label": label, "name": pair.name}

    def describe(self, index: int) -> tuple[str, str]:
        pair = self.pairs[index]
        return pair.image, pair.mask


def read_as(source: Source, *, channels: Sequence[int], value_range: Sequence[float]) -> Source:
    """Return a source that reads its image files so (see `images.read_image`), or itself if it reads none."""
    if not (channels or value_range) or not hasattr(source, "value_range"):
        return source
    changes: dict[str, Any] = {"channels": tuple(channels), "value_range": tuple(value_range)}
    return dataclasses.replace(source, **changes)  # type: ignore[type-var]


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
        raise UserError(
            f"{name}: mask values {spell(unknown)} are none of those expected ({spell_ranges(labels.stored_values)}) "
            f"for the {labels.num_classes} classes; correct the mask, or map every stored value with data.value_map"
        )
    return label


def check_sizes(image: np.ndarray, label: np.ndarray, *, image_name: str, mask_name: str) -> None:
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
            f"{path}: no such folder; set data.dir to the folder of data set '{source}', which is laid out as {layout}"
        )
    return path


def list_images(folder: Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        names = sorted(
            e.name for e in entries if e.name.lower().endswith(tuple(suffixes)) and not e.name.startswith(".")
        )
    return [folder / name for name in names]


def pair_by_stem(images_found: Sequence[Path], masks_found: Sequence[Path], *, where: str) -> Listing:
    """Return the pairs of images and masks with equal names (without the suffix), sorted by name.

    Raises:
      UserError: no image was found, or two files have one name; the message names them.
    """
    return pair_by_name(_by_stem(images_found), _by_stem(masks_found), where=where)


def pair_by_name(images_found: Mapping[str, Path], masks_found: Mapping[str, Path], *, where: str) -> Listing:
    """Return the result of `pair_by_stem` for files whose names are already known (name -> path)."""
    if not images_found:
        raise UserError(f"{where}: no image found; check data.dir (files ending in {', '.join(IMAGE_SUFFIXES)} count)")
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
    images_by_name = {path.stem: path for path in images_found}
    masks_by_name = {path.stem: path for path in masks_found}
    for kind, found, files in (("image", images_by_name, images_found), ("mask", masks_by_name, masks_found)):
        missing = [name for name in names if name not in found]
        if missing:
            folder = f" in {files[0].parent}" if files else ""
            raise UserError(
                f"{names_file}: no {kind} for {spell(missing)}{folder}; "
                "unpack the data set again, or remove the names from the list"
            )
    return tuple(Pair(str(images_by_name[name]), str(masks_by_name[name]), name) for name in names)


def read_names(path: Path) -> list[str]:
    """Return the names in a split list: the stem of the first word of each line.

    It skips blank lines and lines that start with `#`.

    Raises:
      UserError: the list does not exist, is empty, or is not text.
    """
    try:
        if not path.is_file():  # A pipe may never have a writer.
            raise FileNotFoundError(path)
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the list of the split; add it (one name per line), or correct data.dir or data.split"
        ) from error
    words = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not words:
        raise UserError(f"{path}: the list names nothing; write one name per line")
    return [_stem(word) for word in words]


def held_out(name: str, fraction: float) -> bool:
    """Return whether the example called `name` belongs to the share `fraction` that is kept for validation.

    It depends on nothing else, so new files move no other file.

    Raises:
      UserError: the fraction is not between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"val_fraction is {fraction}; give a share between 0 and 1, such as 0.2")
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _stem(word: str) -> str:
    # Lists name files ("a.jpg", "/JPEGImages/a.jpg") or examples ("a", and also "scene.7"): only an image's suffix is
    # cut off.
    name = word.rsplit("/", 1)[-1]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    by_stem = {path.stem: path for path in paths}
    twins = [str(path) for path in paths if by_stem[path.stem] != path]
    if twins:
        raise UserError(
            f"{spell(twins)}: another file has the same name up to its suffix; rename or remove one of each pair"
        )
    return by_stem
