"""A folder of images whose pixels can have several labels: for each label a mask that says where it is."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deeplab_jax.data.class_tables import rgb
from deeplab_jax.data.sets.folder import ValueMap, open_folder
from deeplab_jax.data.source import Example, PairSource, check_sizes, decode_label
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.labels import IGNORE_LABEL, MAX_CLASSES, PRESENCE, LabelSet, colormap

MULTILABEL = "multilabel"


@dataclasses.dataclass(frozen=True)
class MultilabelSource:
    """Examples whose label is `[H, W, K]`: 0, 1 or 255 for each label.

    Attributes:
      labels: the names and colours of the labels.
      parts: for each label, the same images with the masks of that label.
      places: for each label, the folder or glob of its masks.
      channels, value_range, in_parts: how images are read; see `PairSource`.
    """

    labels: LabelSet
    parts: tuple[PairSource, ...]
    places: tuple[str, ...]
    channels: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()
    name: str = MULTILABEL
    in_parts: bool = False

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> Example:
        whole = dataclasses.replace(
            self.parts[0], channels=self.channels, value_range=self.value_range, in_parts=self.in_parts
        )
        first = whole[index]
        label = [first["label"]]
        for part in self.parts[1:]:
            pair = part.pairs[index]
            label.append(decode_label(part.read_mask(pair.mask), part.labels, name=pair.mask))
            check_sizes(first["image"], label[-1], image_name=pair.image, mask_name=pair.mask)
        return {**first, "label": np.stack(label, axis=-1)}

    def require_pairs(self) -> None:
        """Raise a UserError that names the files of a label without a partner, if there are any."""
        for place, part in zip(self.places, self.parts, strict=True):
            part.require_pairs(place)

    @property
    def repeated(self) -> tuple[tuple[str, str], ...]:
        """The lines that repeat a name; see `PairSource`."""
        return self.parts[0].repeated

    @property
    def is_share(self) -> bool:
        """Whether `val_fraction` chose the images among more; see `PairSource`."""
        return self.parts[0].is_share

    def describe(self, index: int) -> tuple[str, str]:
        return self.parts[0].describe(index)

    def mask_files(self, index: int) -> tuple[str, ...]:
        """Return the mask of each label."""
        return tuple(part.pairs[index].mask for part in self.parts)


def open_multilabel(
    dir: str | Path,
    *,
    split: str,
    class_names: Sequence[str] = (),
    palette: Sequence[Sequence[int]] | None = None,
    images: str = "images",
    masks: str = "masks",
    ignore_label: int | None = IGNORE_LABEL,
    value_map: ValueMap | None = None,
    split_lists: Mapping[str, str] | None = None,
    val_fraction: float | None = None,
    val_rule: str = "share",
) -> MultilabelSource:
    """Return a folder of images, with one folder of masks for each label, as a source.

    Args:
      dir: the folder.
      split: the part to open; `open_folder` says how it is chosen.
      class_names: the names of the labels, at least two.
      palette: one (red, green, blue) for each label; default: the PASCAL VOC colours without black.
      masks: the folder that holds a folder of masks with each label's name (`masks/NAME/7.png` for `images/7.jpg`), or
        a folder or glob with `{class}` in the place of the name.
      ignore_label: the stored value where it is not known whether the label is there; None if there is none.
      value_map: stored value -> 0 (absent), 1 (present) or 255 (not known), for masks that store other values.
      images, split_lists, val_fraction, val_rule: see `open_folder`.

    Raises:
      UserError: see `open_folder`; fewer than two names; a label without a folder.
    """
    named = masks if "{class}" in masks else f"{masks}/{{class}}"
    labels = _labels(class_names, palette, named)
    _check_folders(Path(dir), named, labels.names)
    places = tuple(named.replace("{class}", name) for name in labels.names)
    parts = tuple(
        open_folder(
            dir,
            split=split,
            class_names=PRESENCE.names,
            images=images,
            masks=place,
            ignore_label=ignore_label,
            value_map=value_map,
            split_lists=split_lists,
            val_fraction=val_fraction,
            val_rule=val_rule,
        )
        for place in places
    )
    by_label = dict(zip(labels.names, parts, strict=True))
    lonely = {name: {file for _, file in part.masks_without_image} for name, part in by_label.items()}
    paired = set[str].intersection(*({pair.name for pair in part.pairs} for part in parts))
    kept = []
    for name, part in by_label.items():
        # A glob of one label may also match the masks of another whose name ends with it: crack, and wet_crack.
        taken = {
            file
            for file in lonely[name]
            for other in labels.names
            if other != name and file not in lonely[other] and Path(file).match(_pattern(named, other))
        }
        left = tuple(one for one in part.masks_without_image if one[1] not in taken)
        pairs = tuple(pair for pair in part.pairs if pair.name in paired)
        kept.append(dataclasses.replace(part, pairs=pairs, masks_without_image=left))
    return MultilabelSource(labels, tuple(kept), places)


def _check_folders(root: Path, named: str, names: Sequence[str]) -> None:
    """Raise a UserError for a label without a folder, where every label has one beside those of the others."""
    above, _, rest = named.partition("{class}")
    if rest or not above.endswith("/") or not (root / above).is_dir():
        return
    folders = sorted(path.name for path in (root / above).iterdir() if path.is_dir() and path.name[0] != ".")
    for name in names:
        if folders and not (root / above / name).is_dir():
            near = did_you_mean(name, folders)
            raise UserError(f"{root / above / name}: no such folder; correct the label in class_names: {near}")


def _pattern(named: str, name: str) -> str:
    """Return what the path of a label's mask matches in any split."""
    return named.replace("{class}", name).replace("{split}", "*")


def _labels(names: Sequence[str], palette: Sequence[Sequence[int]] | None, named: str) -> LabelSet:
    good = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if good and len(names) == 1:
        flags = ["name=folder", f"options.class_names={('background', names[0])}"]
        flags += [f"options.masks={named.replace('{class}', names[0])}"]
        raise UserError(
            f"class_names is {tuple(names)}: one label, which data set 'folder' reads beside the background: "
            f"{shlex.join(f'--config.data.{flag}' for flag in flags)}"
        )
    if not good or not 2 <= len(names) < MAX_CLASSES or len(set(names)) < len(names):
        raise UserError(
            f"class_names is {names!r:.100}; give 2 to {MAX_CLASSES - 1} different names of labels that a pixel can "
            "have: ('wet', 'cracked')"
        )
    colours = colormap(len(names) + 1)[1:] if palette is None else rgb(palette)
    if len(colours) != len(names):
        raise UserError(
            f"palette does not fit {len(names)} labels; give {len(names)} triples (red, green, blue) of 0 to 255"
        )
    return LabelSet(tuple(names), colours, multilabel=True)
