"""Any folder of images and masks."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deeplab_jax.data.class_tables import BACKGROUNDS, ClassTable, find_classes, named_palette, rgb, with_background
from deeplab_jax.data.holdout import held_out, hold_out
from deeplab_jax.data.labelme import BACKGROUND, LabelmeMasks, ids_of, labels_in
from deeplab_jax.data.layouts import Files, label_folders, place_flags
from deeplab_jax.data.lists import Names, find_listed
from deeplab_jax.data.mask_formats import ChannelMasks, ClassFiles, Colour, ColourMasks, IdMasks, check_overlap
from deeplab_jax.data.source import Listing, Pair, PairSource, pair_by_name, value_map_flag, walk_files
from deeplab_jax.data.splits import IMAGES, MASKS, SplitFiles, find_split
from deeplab_jax.errors import UserError, did_you_mean, spell
from deeplab_jax.labels import IGNORE_LABEL, MAX_CLASSES, LabelSet, colormap

ValueMap = Mapping[int, int] | Mapping[str, int] | Sequence[tuple[int, int]]
VAL_RULES = ("share", "hash")


def open_folder(
    dir: str | Path,
    *,
    split: str,
    class_names: Sequence[str] = (),
    palette: str | Sequence[Sequence[int]] | None = None,
    images: str = IMAGES,
    masks: str = MASKS,
    mask_channel: int | None = None,
    overlap: str = "refuse",
    ignore_label: int | None = IGNORE_LABEL,
    value_map: ValueMap | None = None,
    split_lists: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
    val_fraction: float | None = None,
    val_rule: str = "share",
) -> PairSource:
    """Return a folder of images and masks as a source. An image and its mask have the same name without the suffix.

    The layout is found in the table of `layouts`, unless `images` or `masks` says another one. One of these, in this
    order, selects the examples of `split`: `split_lists`; folders of the splits; lists of the splits in the places
    that `layouts.LISTS` names; `val_fraction`; or `split` is `all`. Where only the training split has a folder or a
    list, `val_fraction` divides it.

    Args:
      dir: the folder.
      split: the part to open.
      class_names: one name per class id. Empty: those of `labelmap.txt`, `_classes.csv`, `labels.txt`,
        `class_names.txt` or `classes.txt`, of the outlines, of the files for each class, or of a named palette.
      palette: one (red, green, blue) per class id, or "voc", "cityscapes", or the path of a `labelmap.txt` relative to
        `dir`. Coloured masks are read by it. Default: that of `labelmap.txt`, or the PASCAL VOC colours for pictures
        only.
      images: a folder, or a glob, relative to `dir`. If the glob's last part has one `*`, the part that it matches
        is the example's name: `photos/*.jpg` with `masks/*_mask.png` pair `7.jpg` with `7_mask.png`. `{split}` stands
        for the split, by any name in `layouts.SPLIT_WORDS`.
      masks: the same for masks.
      mask_channel: the channel (0 red, 1 green, 2 blue) of coloured masks that holds the stored values.
      overlap: for masks of one file for each class, what becomes of pixels that two classes claim: "refuse", "ignore"
        (the ignore label) or "last" (the class with the larger id).
      ignore_label: the stored value that marks ignored pixels; None if there is none.
      value_map: stored value -> class id (or 255), a mapping or a sequence of pairs, for masks that do not store class
        ids (0/255 masks, for example). Values that it does not list are errors, except `ignore_label`. With a
        `palette` of triples, and no key beyond it, coloured masks store the number of their colour in it, from 0: so
        a class may have several colours, and a colour no class.
      split_lists: split -> path of a text file, relative to `dir`; a mapping or a sequence of pairs. Empty: lists are
        not looked for.
      val_fraction: share of the examples in `val`; the others are `train`.
      val_rule: "share" takes exactly that share, and looks for layouts and lists. "hash" is for older runs, whose
        `config.json` states no rule: every name by itself falls into the share or not, and only folders named here are
        looked for.

    Raises:
      UserError: no class names, a map to something that is not a class, missing or unpaired files, an unknown split,
        two layouts that fit.
    """
    if val_rule not in VAL_RULES:
        raise UserError(f"config.data.options.val_rule={val_rule!r}: {did_you_mean(val_rule, VAL_RULES)}")
    check_overlap(overlap)
    root = Path(dir)
    places = os.path.expanduser(images), os.path.expanduser(masks)
    found = find_split(root, split, *places, split_lists, val_fraction, finds=val_rule == "share")
    _check_folders(root, found.files, found.files.places or (images, masks))
    _check_names(class_names)
    table = _classes(root, found.files, tuple(class_names), palette)
    value_map = value_map or table.value_map or None
    _check_classes(table.names)
    mapped = _stored_values(table.names, ignore_label, value_map)
    listed = table.colours if palette and not isinstance(palette, str) else ()
    numbered = listed if value_map and _numbers_colours(mapped, listed, ignore_label) else ()
    labels = _labels(table.names, table.colours, mapped, numbered)
    if found.files.outlines or found.files.parts:  # Their readers return class ids.
        labels = labels.decoded()
    of_values = bool(value_map) and not numbered
    read_mask = _mask_reader(found.files, labels.names, table, overlap, mask_channel, mapped=of_values)
    listing = _paired(found, root, where=f"{root}: images='{images}'")
    lonely = listing.images_without_mask or listing.masks_without_image
    if found.keeps is not None and not (len(listing.pairs) < 2 and lonely):  # Those are the fault.
        listing = _divided(listing, found.keeps, val_fraction or 0.0, val_rule)
    if not listing.pairs and not listing.images_without_mask:
        raise UserError(f"{root}: split '{split}' has no example; add some, or change val_fraction or the list")
    note = f"found {found.files.layout}{found.how}{f'; classes from {table.origin}' if table.origin else ''}"
    is_share = found.keeps is not None
    return PairSource("folder", labels, *listing, is_share=is_share, takes_map=True, read_mask=read_mask, note=note)


def _check_folders(root: Path, files: Files, places: Sequence[str]) -> None:
    """Raise a UserError if each label has a folder of masks; `places` are the options that name the folders."""
    labels = label_folders(files)
    if not labels:
        return
    images, masks = places
    fix = place_flags(images, f"{masks}/{labels[0]}")
    if len(labels) > 1:
        fix = f'--config.data.name=multilabel "--config.data.options.class_names={labels!r}"'
        fix += "" if (images, masks) == (IMAGES, MASKS) else f" {place_flags(images, masks)}"
    raise UserError(f"{root}: {masks} has a folder of masks for each label ({spell(labels)}); give {fix}")


def _classes(
    root: Path, files: Files, class_names: tuple[str, ...], palette: str | Sequence[Sequence[int]] | None
) -> ClassTable:
    """Return what is known of the classes: from the options first, then from files."""
    if isinstance(palette, str) and palette:
        table = named_palette(palette, root)
    elif palette:
        table = ClassTable(class_names, rgb(palette))
    else:
        table = find_classes(root, files.folder)
    if files.outlines and (class_names or table.names):
        table, class_names = _with_outside(root, files, table, class_names)
    if not class_names:
        return table if table.names else _classes_of_masks(root, files, table)
    if not table.names or not (table.colours or table.value_map) or table.names == class_names:
        return dataclasses.replace(table, names=class_names, origin="" if table.names != class_names else table.origin)
    if sorted(table.names) != sorted(class_names):
        raise UserError(
            f"{root}: class_names is {class_names!r:.100}, but {table.origin or 'the palette'} has the classes "
            f"{table.names!r:.200}; give these in any order, or leave class_names out"
        )
    order = [table.names.index(name) for name in class_names]
    return dataclasses.replace(
        table,
        names=class_names,
        colours=tuple(table.colours[old] for old in order) if table.colours else (),
        extra=tuple((c, i if i == IGNORE_LABEL else order.index(i)) for c, i in table.extra),
        value_map=tuple((stored, order.index(i)) for stored, i in table.value_map),
    )


def _with_outside(
    root: Path, files: Files, table: ClassTable, class_names: tuple[str, ...]
) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the classes of outlines, of which the first is that of all pixels outside of them. A list in a file may
    name only what is drawn; then the background comes before it.

    Raises:
      UserError: the options name a class first that is drawn.
    """
    first = (class_names or table.names)[0]
    if first.lower() in BACKGROUNDS or first not in _drawn(root, files):
        return table, class_names
    names = with_background(class_names or table.names, called=BACKGROUND)
    if class_names or table.colours:
        raise UserError(
            f"{root}: the first class is that of all pixels outside of the outlines, and there are outlines of "
            f'{first!r}; name the background first: "--config.data.options.class_names={names!r}"'
        )
    return dataclasses.replace(table, names=names), class_names


def _drawn(root: Path, files: Files) -> tuple[str, ...]:
    """Return the labels of the outlines of all splits, the background first."""
    return labels_in(list(files.masks.values()), others=walk_files(root, suffixes=(".json",)))


def _classes_of_masks(root: Path, files: Files, table: ClassTable) -> ClassTable:
    """Return the table with the class names that the masks themselves tell, if they tell any."""
    if files.outlines:
        return dataclasses.replace(table, names=_drawn(root, files), origin="the outlines' labels")
    found = {name for parts in files.parts.values() for name, _ in parts}
    if not found:
        return table
    return dataclasses.replace(table, names=with_background(sorted(found)), origin="the names of the masks")


def _mask_reader(
    files: Files, names: tuple[str, ...], table: ClassTable, overlap: str, mask_channel: int | None, *, mapped: bool
) -> Callable[[str], np.ndarray]:
    """Return what reads a mask; `mapped`: a map is for the values of masks, and not for the numbers of colours."""
    if files.outlines:
        return LabelmeMasks(ids_of(names))
    if files.parts:
        return _class_files(files, names, overlap)
    if mask_channel is not None:
        return ChannelMasks(mask_channel)
    return ColourMasks(table.meanings) if table.colours and not mapped else IdMasks()


def _class_files(files: Files, names: tuple[str, ...], overlap: str) -> ClassFiles:
    """Return the reader of masks of one file for each class."""
    by_mask = {}
    for example, parts in files.parts.items():
        for name, path in parts:
            if name not in names:
                raise UserError(f"{path}: '{name}' is no class; {did_you_mean(name, names)}")
        by_mask[str(files.masks[example])] = tuple((names.index(name), str(path)) for name, path in parts)
    background = next((i for i, name in enumerate(names) if name.lower() in BACKGROUNDS), IGNORE_LABEL)
    return ClassFiles(by_mask, background, overlap)


def _paired(found: SplitFiles, root: Path, *, where: str) -> Listing:
    """Return the pairs of a split's files and what has no pair, or those that its list names and what it repeats."""
    files = found.files
    pairs = pair_by_name(files.images, files.masks, where=where)
    if found.names_file is None:
        return pairs
    listed = find_listed(found.names_file, Names(files.images, root), Names(files.masks, root))
    first = dict[str, int]()
    repeated = tuple(
        (image, f"{found.names_file}, line {line}")
        for image, _, line in listed
        if first.setdefault(image, line) != line
    )
    named = _listed(files, [(image, mask) for image, mask, _ in listed], found.names_file)
    return Listing(named, (), (), repeated)  # The list says which files count.


def _divided(listing: Listing, split: str, fraction: float, rule: str) -> Listing:
    """Return the part of a listing that `train` or `val` has."""
    names = [pair.name for pair in listing.pairs]
    held = hold_out(names, fraction) if rule == "share" else {name for name in names if held_out(name, fraction)}
    kept = held if split == "val" else set(names) - held
    return listing._replace(
        pairs=tuple(pair for pair in listing.pairs if pair.name in kept),
        repeated=tuple((name, line) for name, line in listing.repeated if name in kept),
    )


def _listed(files: Files, names: Sequence[tuple[str, str]], names_file: Path) -> tuple[Pair, ...]:
    """Return the pairs that a list names as (image, mask), in its order."""
    for image, mask in names:
        if mask not in files.masks:
            raise UserError(
                f"{names_file}: names {image}, which has no mask here; add the mask, or remove it from the list"
            )
    return tuple(Pair(str(files.images[image]), str(files.masks[mask]), image) for image, mask in names)


def _check_names(class_names: Sequence[str]) -> None:
    """Raise a UserError unless these are names, or nothing."""
    if not isinstance(class_names, list | tuple) or not all(isinstance(name, str) for name in class_names):
        raise _names_error(class_names)


def _names_error(class_names: Sequence[str]) -> UserError:
    return UserError(
        f"class_names is {class_names!r:.100}; give 1 to {MAX_CLASSES} names, one per class id: "
        "\"--config.data.options.class_names=('background','road')\""
    )


def _check_classes(class_names: tuple[str, ...]) -> None:
    """Raise a UserError unless these are the different names of two classes or more."""
    if not 1 <= len(class_names) <= MAX_CLASSES:
        raise _names_error(class_names)
    if twice := next((name for name in class_names if class_names.count(name) > 1), None):
        raise UserError(f"class_names is {class_names!r:.200}: two classes are called {twice!r}; rename one")
    if len(class_names) == 1:
        raise UserError(
            f"class_names is {class_names}: one class, and nothing to tell it from; name the background too: "
            f'"--config.data.options.class_names={("background", class_names[0])}"; if the masks hold 0 and 255, add '
            '"--config.data.options.value_map=((0,0),(255,1))"'
        )


def _stored_values(
    class_names: tuple[str, ...], ignore_label: int | None, value_map: ValueMap | None
) -> dict[int, int]:
    """Return stored value -> class id or 255; nothing where masks hold class ids, and 255 is ignored."""
    if ignore_label is not None and type(ignore_label) is not int:
        raise UserError(f"ignore_label is {ignore_label!r}; give a whole number, or None if no value is ignored")
    if value_map is None and ignore_label == IGNORE_LABEL:
        return {}
    count = len(class_names)
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
            pairs = [(int(stored), int(class_id)) for stored, class_id in entries]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"value_map {value_map!r:.100} is not pairs of integers; give pairs (stored value, class id): "
                '"--config.data.options.value_map=((0,0),(255,1))"'
            ) from error
        mapped = dict(pairs)
        for stored, class_id in pairs:
            if mapped[stored] != class_id:
                raise UserError(f"value_map sends {stored} to {class_id} and to {mapped[stored]}; give it once")
    if ignore_label is not None:
        mapped.setdefault(ignore_label, IGNORE_LABEL)
    for stored, class_id in mapped.items():
        if not 0 <= stored <= 65535 or not (0 <= class_id < count or class_id == IGNORE_LABEL):
            raise UserError(
                f"value_map sends {stored} to {class_id}; "
                f"map stored values (0 to 65535) to class ids 0 to {count - 1}, or to 255 to ignore"
            )
    return mapped


def _labels(
    class_names: tuple[str, ...],
    palette: tuple[Colour, ...],
    mapped: Mapping[int, int],
    numbered: tuple[Colour, ...],
) -> LabelSet:
    """Return the classes; `numbered` are the colours whose numbers are mapped, if the map is of colours."""
    count = len(class_names)
    colours = palette or colormap(count)
    if numbered:
        first = {mapped[i]: numbered[i] for i in reversed(range(len(numbered))) if i in mapped}
        colours = tuple(first.get(class_id, other) for class_id, other in enumerate(colormap(count)))
    _check_colours(colours, count)
    return LabelSet(class_names, colours, tuple(sorted(mapped.items())) or None)


def _numbers_colours(mapped: Mapping[int, int], listed: Sequence[Colour], ignore_label: int | None) -> bool:
    """Return whether a map can be one of the numbers of listed colours, from 0."""
    return 0 < len(listed) <= MAX_CLASSES and all(i < len(listed) or i == ignore_label for i in mapped)


def _check_colours(colours: Sequence[Colour], count: int) -> None:
    """Raise a UserError unless there is one colour for each class."""
    if len(colours) != count:
        fix = f"give {count} triples (red, green, blue) of 0 to 255"
        if count < len(colours) <= MAX_CLASSES:
            numbers = {i: i if i < count else IGNORE_LABEL for i in range(len(colours))}
            fix += f", or the class id of each of the {len(colours)} (255: ignored), here {value_map_flag(numbers)}"
        raise UserError(f"palette does not fit {count} classes; {fix}")
