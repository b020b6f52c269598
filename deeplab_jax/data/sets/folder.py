"""Any folder of images and masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from deeplab_jax.data.source import (
    IMAGE_SUFFIXES,
    Listing,
    Pair,
    PairSource,
    held_out,
    list_images,
    pair_by_name,
    pair_by_stem,
    read_names,
)
from deeplab_jax.errors import UserError, did_you_mean, spell
from deeplab_jax.labels import IGNORE_LABEL, MAX_CLASSES, LabelSet, colormap

ValueMap = Mapping[int, int] | Mapping[str, int] | Sequence[tuple[int, int]]


def open_folder(
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
) -> PairSource:
    """Return a folder of images and masks as a source. An image and its mask have the same name without the suffix.

    One of these, in this order, selects the examples of `split`: `split_lists` names a text file per split, with one
    name per line; `val_fraction` keeps that share for validation, chosen by a hash of the name, so that new examples do
    not move others; `images` and `masks` contain `{split}`; both folders have a subfolder called `split`; or `split` is
    `all`.

    Args:
      dir: the folder.
      split: the part to open.
      class_names: one name per class id.
      palette: one (red, green, blue) per class id; default: the PASCAL VOC colours.
      images: a subfolder, or a glob, relative to `dir`. If the glob's last part has one `*`, the part that it matches
        is the example's name: `photos/*.jpg` with `masks/*_mask.png` pair `7.jpg` with `7_mask.png`.
      masks: the same for masks.
      ignore_label: the stored value that marks ignored pixels; None if there is none.
      value_map: stored value -> class id (or 255), a mapping or a sequence of pairs, for masks that do not store class
        ids (0/255 masks, for example). Values that it does not list are errors, except `ignore_label`.
      split_lists: split -> path of a text file, relative to `dir`.
      val_fraction: share of the examples in `val`; the others are `train`.

    Raises:
      UserError: no class names, a map to something that is not a class, missing or unpaired files, an unknown split.
    """
    labels = _labels(class_names, palette, ignore_label, value_map or None)
    root = Path(dir)
    if split_lists is None and val_fraction is None:
        images, masks = _locate_split(root, images, masks, split)
    listing = _list(root, images, masks)
    pairs = listing.pairs
    if split_lists is not None:
        pairs = _listed(pairs, root, split, split_lists)
    elif val_fraction is not None:
        pairs = _held_out(pairs, split, val_fraction)
    if not pairs and not listing.images_without_mask:
        raise UserError(f"{root}: split '{split}' has no example; add some, or change val_fraction or the list")
    return PairSource("folder", labels, pairs, listing.images_without_mask, listing.masks_without_image)


def _labels(
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]] | None,
    ignore_label: int | None,
    value_map: ValueMap | None,
) -> LabelSet:
    if (
        not isinstance(class_names, list | tuple)
        or not 1 <= len(class_names) <= MAX_CLASSES
        or not all(isinstance(name, str) for name in class_names)
    ):
        raise UserError(
            f"class_names is {class_names!r:.100}; give 1 to {MAX_CLASSES} names, one per class id: "
            "('background', 'road')"
        )
    if len(class_names) == 1:
        raise UserError(
            f"class_names is {tuple(class_names)}: one class, and nothing to tell it from; name the background too: "
            f'"--config.data.options.class_names={("background", class_names[0])}"; if the masks hold 0 and 255, add '
            '"--config.data.options.value_map=((0,0),(255,1))"'
        )
    count = len(class_names)
    if palette is not None and (
        len(palette) != count or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in palette)
    ):
        raise UserError(f"palette does not fit {count} classes; give {count} triples (red, green, blue) of 0 to 255")
    colours = colormap(count) if palette is None else tuple((int(r), int(g), int(b)) for r, g, b in palette)
    if value_map is None and ignore_label == IGNORE_LABEL:
        return LabelSet(tuple(class_names), colours)
    if value_map is None:
        if ignore_label is not None and 0 <= ignore_label < count:
            raise UserError(
                f"ignore_label {ignore_label} is the id of class '{class_names[ignore_label]}' too; "
                "list the stored values in value_map"
            )
        mapped = {class_id: class_id for class_id in range(count)}
    else:
        # A ConfigDict has items() as well, but is not a Mapping; its keys are strings.
        entries = value_map.items() if hasattr(value_map, "items") else value_map
        try:
            mapped = {int(stored): int(class_id) for stored, class_id in entries}
        except (TypeError, ValueError) as error:
            raise UserError(
                f"value_map {value_map!r} is not pairs of integers; give {{stored value: class id}}"
            ) from error
    if ignore_label is not None:
        mapped.setdefault(ignore_label, IGNORE_LABEL)
    for stored, class_id in mapped.items():
        if not 0 <= stored <= 65535 or not (0 <= class_id < count or class_id == IGNORE_LABEL):
            raise UserError(
                f"value_map sends {stored} to {class_id}; "
                f"map stored values (0 to 65535) to class ids 0 to {count - 1}, or to 255 to ignore"
            )
    return LabelSet(tuple(class_names), colours, tuple(sorted(mapped.items())))


def _locate_split(root: Path, images: str, masks: str, split: str) -> tuple[str, str]:
    if "{split}" in images + masks:
        return images.replace("{split}", split), masks.replace("{split}", split)
    if split == "all":
        return images, masks
    if "*" not in images + masks and (root / images / split).is_dir() and (root / masks / split).is_dir():
        return f"{images}/{split}", f"{masks}/{split}"
    raise UserError(
        f"{root}: nothing says which examples are '{split}'; set val_fraction (0.2, say) or split_lists, "
        f"or make {images}/{split} and {masks}/{split}; split 'all' takes everything"
    )


def _list(root: Path, images: str, masks: str) -> Listing:
    if "*" in images or "*" in masks:
        where = f"{root}: images='{images}'"
        return pair_by_name(_glob(root, images), _glob(root, masks), where=where)
    for option, name in (("images", images), ("masks", masks)):
        if not (root / name).is_dir():
            raise UserError(
                f"{root / name}: no such folder; correct data.dir, or set data.{option} to a subfolder or glob"
            )
    return pair_by_stem(list_images(root / images), list_images(root / masks), where=str(root / images))


def _glob(root: Path, pattern: str) -> dict[str, Path]:
    if "*" not in pattern:
        pattern = f"{pattern}/*"
    absolute = PurePosixPath(pattern).is_absolute()
    base, relative = (Path("/"), pattern.lstrip("/")) if absolute else (root, pattern)
    last = PurePosixPath(pattern).name
    before, star, after = last.partition("*")
    has_one_star = star and not set(after) & set("*?[") and not set(before) & set("?[")
    found: dict[str, Path] = {}
    for path in sorted(base.glob(relative)):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        name = path.name[len(before) : len(path.name) - len(after)] if has_one_star and after else path.stem
        if name in found:
            raise UserError(
                f"{path}: also called '{name}', like {found[name]}; rename one, or narrow the glob '{pattern}'"
            )
        found[name] = path
    return found


def _listed(pairs: tuple[Pair, ...], root: Path, split: str, split_lists: Mapping[str, str]) -> tuple[Pair, ...]:
    if split not in split_lists:
        raise UserError(f"split_lists has no split '{split}'; {did_you_mean(split, split_lists)}")
    by_name = {pair.name: pair for pair in pairs}
    names_file = root / split_lists[split]
    names = read_names(names_file)
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(
            f"{names_file}: names {spell(missing)}, which is no image here; correct the list or add the files"
        )
    return tuple(by_name[name] for name in names)


def _held_out(pairs: tuple[Pair, ...], split: str, fraction: float) -> tuple[Pair, ...]:
    if split == "all":
        return pairs
    if split not in ("train", "val"):
        raise UserError(f"val_fraction makes no split '{split}'; {did_you_mean(split, ('train', 'val', 'all'))}")
    return tuple(pair for pair in pairs if held_out(pair.name, fraction) == (split == "val"))
