"""Oxford-IIIT Pet: 7349 photographs of cats and dogs with trimaps (pet, background, border)."""

import dataclasses
import shlex
from pathlib import Path

from deeplab_jax.data.holdout import held_out
from deeplab_jax.data.lists import read_names
from deeplab_jax.data.source import PairSource, choose_split, list_images, pair_named, require_folder
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.labels import IGNORE_LABEL, PET, LabelSet

LAYOUT = "images/*.jpg, annotations/trimaps/*.png and annotations/{trainval,test}.txt"
_LISTS = {"trainval": "trainval.txt", "test": "test.txt", "train": "trainval.txt", "val": "trainval.txt"}
_BORDERS = ("ignore", "class")


def open_pet(dir: str | Path, *, split: str, border: str = "ignore", val_fraction: float = 0.1) -> PairSource:
    """Return Oxford-IIIT Pet in the layout of its two archives (images.tar.gz, annotations.tar.gz).

    Args:
      dir: the folder that holds `images/` and `annotations/`.
      split: `trainval` and `test` as published, or `train` and `val`, which divide `trainval` by a hash of the name.
      border: `"ignore"` has the classes background and pet, with the border as 255; `"class"` makes the border a third
        class.
      val_fraction: the share of `trainval` that `val` takes.

    Raises:
      UserError: an unknown split or border, archives that are still packed, or files of the lists that do not exist.
    """
    choose_split(split, _LISTS, source="pet")
    if border not in _BORDERS:
        raise UserError(f"data set 'pet' has no border '{border}'; {did_you_mean(border, _BORDERS)}")
    root = Path(dir)
    _refuse_archives(root)
    images = require_folder(root / "images", source="pet", layout=LAYOUT)
    masks = require_folder(root / "annotations" / "trimaps", source="pet", layout=LAYOUT)
    names_file = root / "annotations" / _LISTS[split]
    names = read_names(names_file)
    if split in ("train", "val"):
        names = [name for name in names if held_out(name, val_fraction) == (split == "val")]
    pairs = pair_named(names, list_images(images), list_images(masks), names_file=names_file)
    # Some photographs have an alpha channel, which nobody uses.
    return PairSource("pet", _labels(border), pairs, channels=(0, 1, 2))


def _labels(border: str) -> LabelSet:
    if border == "ignore":
        return PET
    value_map = tuple((stored, 2 if class_id == IGNORE_LABEL else class_id) for stored, class_id in PET.value_map or ())
    return dataclasses.replace(
        PET, names=(*PET.names, "border"), palette=(*PET.palette, (255, 255, 255)), value_map=value_map
    )


def _refuse_archives(root: Path) -> None:
    packed = [
        f"{name}.tar.gz"
        for name in ("images", "annotations")
        if (root / f"{name}.tar.gz").is_file() and not (root / name).is_dir()
    ]
    if packed:
        commands = "; ".join(shlex.join(["tar", "-xzf", str(root / name), "-C", str(root)]) for name in packed)
        raise UserError(f"{root}: {' and '.join(packed)} not unpacked; run: {commands}")
