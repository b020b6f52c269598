"""The check of one example: is its image complete, and is its mask valid?"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.check.bands import Tally
from deeplab_jax.data.check.report import Finding
from deeplab_jax.data.image_files import read_bytes
from deeplab_jax.data.levels import RANGE, spell_range, suggest_range, to_levels, viewed, without_opaque_alpha
from deeplab_jax.data.mask_formats import Colour, IdMasks, index_colours
from deeplab_jax.data.source import Source, reads_files, spell_ranges, value_map_flag
from deeplab_jax.data.stored import decode_stored
from deeplab_jax.errors import UserError, spell
from deeplab_jax.labels import IGNORE_LABEL, LabelSet, to_class_ids

NARROW = 0.05
"""An image that uses less than this share of the range of its values gets a warning."""


@dataclasses.dataclass
class Seen:
    """The result for one example.

    Attributes:
      findings: what is wrong with it.
      size: (width, height) of the image; None if it could not be read.
      values: the stored values of the mask; empty if it could not be read.
      unknown: the stored values that have no meaning.
      pixels: `[256]` pixels of each class id, the ignore label included.
      known: `[K]` pixels of which it is known whether they have each of several labels; empty for one class a pixel.
      image_file, mask_file: the files; empty for an example without.
      bands: number of bands of the image as a viewer shows them, without an opaque alpha; 0 if it could not be read.
      depth: what a sample of the image is, such as "16 bits".
      image_turned, mask_turned: whether an EXIF orientation turns the file.
      palette: index -> colour of the indices that the mask uses; empty without a palette.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    values: frozenset[int] = frozenset()
    unknown: tuple[int, ...] = ()
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    known: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    image_file: str = ""
    mask_file: str = ""
    bands: int = 0
    depth: str = ""
    image_turned: bool = False
    mask_turned: bool = False
    palette: dict[int, Colour] = dataclasses.field(default_factory=dict)


def inspect_example(source: Source, index: int, tally: Tally) -> Seen:
    """Return the result for one index of a source; the values of its image are added to `tally`.

    Where the source reads image files, this one's is inspected; else the image that the source returns.
    """
    described = source.describe(index)
    image_file, name = ("", described) if isinstance(described, str) else described
    masks: Sequence[str] = source.mask_files(index) if hasattr(source, "mask_files") else ()
    of_image = Seen()
    if reads_files(source):
        of_image = _inspect_image(image_file, tally, source.channels, source.value_range)
        if any(finding.severity == "error" for finding in of_image.findings):
            return of_image
    try:
        example = source[index]
    except UserError as error:
        at_fault = next((mask for mask in masks if str(error).startswith(f"{mask}: ")), name)
        of_image.findings.append(_from_error("unreadable example", at_fault, error))
        return of_image
    if not reads_files(source):
        of_image.size = _size(example["image"])
        tally.add(example["image"])
    if source.labels.multilabel:
        of_labels = _inspect_several(example["label"], source.labels.names, name, masks)
    else:  # A source returns class ids, whatever its files store.
        of_labels = _inspect_values(example["label"], source.labels.decoded(), name, {}, takes_map=False)
    seen = _joined(of_image, of_labels)
    _compare_sizes(seen, example["label"], name)
    return seen


def _joined(of_image: Seen, of_labels: Seen, **more: Any) -> Seen:
    """Return the result for an image and its labels; `more` are other attributes."""
    return dataclasses.replace(
        of_image,
        findings=of_image.findings + of_labels.findings,
        values=of_labels.values,
        unknown=of_labels.unknown,
        pixels=of_labels.pixels,
        known=of_labels.known,
        **more,
    )


def _inspect_several(label: np.ndarray, class_names: Sequence[str], name: str, masks: Sequence[str]) -> Seen:
    """Return the result for labels `[H, W, K]`; the pixels of a class are those that have it. `masks` are the files of
    the labels, if they have files.
    """
    seen = Seen(values=frozenset(np.unique(label).tolist()))
    seen.pixels[: label.shape[2]] = np.sum(label == 1, axis=(0, 1))
    seen.known = np.sum(label != IGNORE_LABEL, axis=(0, 1))
    seen.pixels[IGNORE_LABEL] = np.sum(label == IGNORE_LABEL)
    if seen.values == {IGNORE_LABEL}:
        message = "every label of every pixel is ignored; label the image or remove it"
        seen.findings.append(Finding("warning", "all ignored", name, str(IGNORE_LABEL), message))
        return seen
    for k, class_name in enumerate(class_names):
        if set(np.unique(label[..., k]).tolist()) == {0, IGNORE_LABEL}:
            message = f"0/255 mask of {class_name}: 255 is the ignore label, so this label is never present"
            if masks:  # The masks of other labels may hold 0 and 1.
                message += f"; if 255 is your object, give {value_map_flag({0: 0, 1: 1, 255: 1})}"
            seen.findings.append(Finding("warning", "0/255 mask", masks[k] if masks else name, class_name, message))
    return seen


def inspect_files(
    image_file: str,
    mask_file: str,
    labels: LabelSet,
    tally: Tally,
    *,
    read_mask: Callable[[str], np.ndarray],
    channels: Sequence[int] = (),
    value_range: Sequence[float] = (),
    takes_map: bool = True,
) -> Seen:
    """Return the result for an image file and its mask file; the values of the image are added to `tally`.

    Args:
      image_file: path.
      mask_file: path.
      labels: explains the mask's stored values.
      tally: of all images.
      read_mask: returns the stored values of a mask.
      channels, value_range: how images are read; see `images.read_image`.
      takes_map: whether the data set has the option `value_map`.
    """
    of_image = _inspect_image(image_file, tally, channels, value_range)
    holds_ids = isinstance(read_mask, IdMasks)
    try:
        stored = images.stored_mask(mask_file) if holds_ids else None
        values = images.mask_values(stored, name=mask_file) if stored else read_mask(mask_file)
    except UserError as error:
        fault = _mask_error(mask_file, labels, error) if holds_ids else _from_error("unreadable mask", mask_file, error)
        of_image.findings.append(fault)
        return of_image
    palette = index_colours(stored) if stored else {}
    seen = _inspect_values(values, labels, mask_file, palette, takes_map=takes_map)
    if stored and stored.white_is_zero:
        message = (
            "a TIFF in which 0 is white, so a viewer shows the ids the other way around; the stored ids are read: if "
            "that is wrong, save it as PNG"
        )
        seen.findings.append(Finding("warning", "0 is white", mask_file, "0", message))
    used = {value: palette[value] for value in seen.values if value in palette}
    turned = stored is not None and stored.orientation > 1
    seen = _joined(of_image, seen, mask_file=mask_file, mask_turned=turned, palette=used)
    _compare_sizes(seen, values, mask_file)
    return seen


def _inspect_image(file: str, tally: Tally, channels: Sequence[int], value_range: Sequence[float]) -> Seen:
    """Return the result for an image file alone."""
    try:
        stored = decode_stored(read_bytes(file, "image"), name=file)
    except UserError as error:
        return Seen([_from_error("unreadable image", file, error)])
    bands = viewed(stored)
    samples = without_opaque_alpha(bands)
    tally.add(samples)
    depth = f"{bands.top.bit_length()} bits" if bands.top else samples.dtype.name
    seen = Seen(image_file=file, size=_size(samples), bands=samples.shape[2], depth=depth)
    seen.image_turned = stored.orientation > 1
    try:
        to_levels(stored, channels=channels, value_range=value_range, name=file)
    except UserError as error:
        seen.findings.append(_from_error("unreadable image", file, error))
        return seen
    full = value_range[1] - value_range[0] if value_range else bands.top or 0
    low, high = float(samples.min()), float(samples.max())
    if high - low < NARROW * full:
        fix = "check how it was exported"
        if samples.dtype != np.uint8:
            fix = f"state the range of all images, which check-data suggests, here {RANGE}="
            fix += spell_range(suggest_range(low, high, samples.dtype))
        message = f"values from {low:g} to {high:g}, {(high - low) / full:.1%} of the range of {full:g}; {fix}"
        seen.findings.append(Finding("warning", "narrow range", file, f"{low:g} to {high:g}", message))
    return seen


def _compare_sizes(seen: Seen, mask: np.ndarray, name: str) -> None:
    size = _size(mask)
    if seen.size is None or seen.size == size:
        return
    spelled = "mask of {}x{} pixels for an image of {}x{}".format(*size, *seen.size)
    fix = "give both the same size (masks are resized with nearest neighbour)"
    if size == seen.size[::-1]:
        fix = "turn one of them by 90 degrees (a camera's rotation flag was probably applied to one only)"
    seen.findings.append(Finding("error", "sizes differ", name, f"{size[0]}x{size[1]}", f"{spelled}; {fix}"))


def _inspect_values(
    stored: np.ndarray, labels: LabelSet, name: str, palette: dict[int, Colour], *, takes_map: bool
) -> Seen:
    ids, unknown = to_class_ids(stored, labels)
    values, counts = np.unique(stored, return_counts=True)
    amount = dict(zip(values.tolist(), counts.tolist(), strict=True))
    seen = Seen(values=frozenset(amount), pixels=np.bincount(ids.ravel(), minlength=256)[:256], unknown=tuple(unknown))
    add = seen.findings.append
    object_is = meaning(labels, IGNORE_LABEL)
    if takes_map and set(amount) == {0, IGNORE_LABEL} and object_is in (None, IGNORE_LABEL):
        harm = "stops training" if object_is is None else "is neither learned nor evaluated"
        message = (
            f"0/255 mask: 255 is the ignore label and no class, so what covers {amount[IGNORE_LABEL]} pixels {harm}; "
            f"if 255 is your object, give {value_map_flag({0: 0, IGNORE_LABEL: 1})}"
        )
        add(Finding("error" if object_is is None else "warning", "0/255 mask", name, "255", message))
    elif unknown:
        spelled = spell(
            [f"{value} ({amount[value]} pixels{_colour_hint(value, palette, labels)})" for value in unknown]
        )
        expected = spell_ranges(labels.stored_values)
        fix = "correct the mask"
        if takes_map:
            fix += ", or say with --config.data.options.value_map what they are (255: ignore)"
        message = f"holds {spelled}, where {expected} are expected; {fix}"
        add(Finding("error", "unknown values", name, spell(unknown), message))
    elif (ids == IGNORE_LABEL).all():
        message = f"all pixels are ignored (stored values {spell(sorted(amount))}); label the image or remove the pair"
        add(Finding("warning", "all ignored", name, spell(sorted(amount)), message))
    elif len(amount) == 1:
        class_id = int(ids.flat[0])
        message = (
            f"every pixel is class {class_id} ({labels.names[class_id]}); if that is not so, export the mask again"
        )
        add(Finding("warning", "single class", name, str(values[0]), message))
    shuffled = _shuffled_index(values.tolist(), palette, labels)
    if shuffled is not None:
        index, other = shuffled
        message = (
            f"palette index {index} is drawn in the colour of class {other} ({labels.names[other]}): the indices are "
            f"probably not class ids; turn colours into ids, here {palette[index]} into {other}"
        )
        add(Finding("warning", "palette order", name, str(index), message))
    return seen


def meaning(labels: LabelSet, stored: int) -> int | None:
    """Return the class id that a stored value means, or None for an unknown one."""
    ids, unknown = to_class_ids(np.array([stored]), labels)
    return None if unknown else int(ids[0])


def _colour_hint(value: int, palette: dict[int, Colour], labels: LabelSet) -> str:
    colour = palette.get(value)
    if colour is None:
        return ""
    if colour in labels.palette:
        class_id = labels.palette.index(colour)
        return f", drawn in the colour of class {class_id} {labels.names[class_id]}"
    return f", drawn {colour}"


def _shuffled_index(values: Sequence[int], palette: dict[int, Colour], labels: LabelSet) -> tuple[int, int] | None:
    """Return (index, class) of an index in another class's colour, if all used colours are those of classes."""
    classes = [
        (value, class_id) for value in values if (class_id := meaning(labels, value)) not in (None, IGNORE_LABEL)
    ]
    if not palette or any(palette.get(value) not in labels.palette for value, _ in classes):
        return None
    for value, class_id in classes:
        if class_id is not None and palette[value] != labels.palette[class_id]:
            return value, labels.palette.index(palette[value])
    return None


def _mask_error(file: str, labels: LabelSet, error: UserError) -> Finding:
    """Return which of the usual reasons explains that a mask could not be read as numbers."""
    try:
        stored = images.stored_mask(file)
    except UserError:
        return _from_error("unreadable mask", file, error)
    if stored.is_jpeg:
        return _from_error("JPEG mask", file, error)
    if not images.holds_colours(stored):
        return _from_error("unreadable mask", file, error)
    try:
        pixels = images.mask_colours(stored, name=file).astype(np.uint32)
    except UserError:  # Other bands than RGB.
        return _from_error("colour mask", file, error)
    packed, counts = np.unique(pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2], return_counts=True)
    codes = packed[np.argsort(-counts, kind="stable")].tolist()
    found: list[Colour] = [(code >> 16, code >> 8 & 255, code & 255) for code in codes]
    if len(found) > 256:
        fix = (
            "is it a photograph, or resized with interpolation? Export the original mask, resize with nearest neighbour"
        )
    elif all(r == g == b for r, g, b in found):
        fix = (
            f"its channels are equal (values {spell(sorted(colour[0] for colour in found))}): give "
            "--config.data.options.mask_channel=0, which reads the first, or save one of them"
        )
    elif len(found) == labels.num_classes:
        order = labels.palette if {*found} == {*labels.palette} else tuple(sorted(found))
        flag = f'"--config.data.options.palette={order}"'.replace(" ", "")
        meant = [f"{colour} is {i} {labels.names[i]}" for i, colour in enumerate(order)]
        fix = f"give {flag} if {spell(meant)}; else give these colours in the order of the classes"
    else:
        hints = [
            f"{colour} is {labels.palette.index(colour)} {labels.names[labels.palette.index(colour)]}"
            if colour in labels.palette
            else f"{colour} is no class's colour"
            for colour in found
        ]
        fix = "say with --config.data.options.palette which colour each class has, or save class ids as grey PNG: "
        fix += spell(hints)
    message = f"{stored.kind} mask with {len(found)} colours, where class ids are needed; {fix}"
    return Finding("error", "colour mask", file, stored.kind, message)


def _from_error(kind: str, file: str, error: UserError) -> Finding:
    message = str(error).removeprefix(f"{file}: ")
    return Finding("error", kind, file, message.partition(";")[0], message)


def _size(array: np.ndarray) -> tuple[int, int]:
    return array.shape[1], array.shape[0]
