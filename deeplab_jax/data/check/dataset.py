"""Checks of a data set, before training spends any time on it.

The most frequent faults of users' own data sets: masks that hold other numbers than class ids (0 and 255, colours, JPEG
noise), masks of another size, files without a partner, and damaged files. The checks are needed because JAX neither
stops on a label outside the classes nor reports it. They continue past bad files and report all of them; nothing here
prints.
"""

import bisect
import collections
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from deeplab_jax.data.check.bands import BandStatistics, Tally
from deeplab_jax.data.check.example import Seen, inspect_example, inspect_files, meaning
from deeplab_jax.data.check.report import MAX_PER_KIND, Finding, Report, median_frequency_weights
from deeplab_jax.data.levels import suggest_range
from deeplab_jax.data.mask_formats import Colour, palette_fault
from deeplab_jax.data.sets.multilabel import MultilabelSource
from deeplab_jax.data.source import PairSource, Source, check_limit, reads_files, suggest_value_map
from deeplab_jax.data.threads import Progress, in_threads
from deeplab_jax.errors import UserError, spell
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

# A class this many times rarer than the most frequent one gets a warning.
_RARE = 100


def check_source(
    source: Source,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    others: Mapping[str, Source] = MappingProxyType({}),
    split: str = "this split",
    for_training: bool = True,
) -> Report:
    """Return a report of what is wrong with the examples of a source, after reading them.

    Args:
      source: any source; of a `PairSource` the files are checked, of another one the examples that it returns.
      limit: number of examples to check, evenly spread over the source; None: all.
      progress: called with (examples done, examples to do).
      others: split -> source of other splits, which should share no image with this one.
      split: the name of this one, for messages.
      for_training: whether it is trained on, so that the report suggests class weights.

    Raises:
      UserError: a limit below 1.
    """
    check_limit(limit)
    total = len(source)
    chosen = _spread(total, limit)
    of_files = [*_shared(source, split, others), *_repeated(getattr(source, "repeated", ()))]
    for place, part in _parts(source):
        without = (dict(getattr(part, name, ())) for name in ("images_without_mask", "masks_without_image"))
        of_files += _unpaired(*without, place=place)
    tally = Tally()
    takes_map = getattr(source, "takes_map", False)
    if isinstance(source, PairSource):
        pairs = [source.describe(i) for i in chosen]
        inspect = partial(
            inspect_files,
            labels=source.labels,
            tally=tally,
            read_mask=source.read_mask,
            channels=source.channels,
            value_range=source.value_range,
            takes_map=takes_map,
        )
        seen = in_threads(lambda pair: inspect(*pair), pairs, progress)
    else:
        seen = in_threads(lambda i: inspect_example(source, i, tally), chosen, progress)
    unlike = [*of_files, *_compare_palettes(seen), *_compare_kinds(seen)]
    bands = tally.statistics()
    # The images of other sources are levels already, and not what files store.
    value_range = _suggest_value_range(bands) if reads_files(source) and not source.value_range else None
    return _report(
        source.name,
        source.labels,
        seen,
        unlike,
        total,
        bands=bands,
        value_range=value_range,
        takes_map=takes_map,
        for_training=for_training,
    )


def check_labels(label: np.ndarray, num_classes: int, *, name: str) -> None:
    """Raise a UserError for labels that are neither a class nor ignored; fast enough for the first batches of a run.

    Args:
      label: integers of any shape.
      num_classes: ids 0 to `num_classes - 1` are valid, and 255.
      name: the array's name in the message, for example its files.

    Raises:
      UserError: names the values, their number of pixels, and the fix.
    """
    bad = label[((label < 0) | (label >= num_classes)) & (label != IGNORE_LABEL)]
    if bad.size:
        values = [int(value) for value in np.unique(bad)]
        raise UserError(
            f"{name}: label values {spell(values)} in {bad.size} pixels are outside of classes 0 to {num_classes - 1} "
            f"and not {IGNORE_LABEL} (ignored); correct the number of classes, the masks or "
            "config.data.options.value_map, and run check-data"
        )


def _spread(total: int, limit: int | None) -> Sequence[int]:
    """Return all indices, or `limit` of them at even distances."""
    return range(total) if limit is None or limit >= total else [i * total // limit for i in range(limit)]


def _shared(source: Source, split: str, others: Mapping[str, Source]) -> list[Finding]:
    """Return a finding for each other split that has an image of this one."""
    findings = []
    ours = _image_files(source) if others else set()
    for other, theirs in others.items():
        names = [Path(file).stem for file in sorted(ours & _image_files(theirs))]
        if names:
            are, them = ("image is", "it") if len(names) == 1 else ("images are", "them")
            message = (
                f"{len(names)} {are} in {other} and {split} ({spell(names)}); leave {them} in one of the two, or the "
                "results are those of images that were learned"
            )
            findings.append(Finding("warning", "images in two splits", source.name, str(len(names)), message))
    return findings


def _image_files(source: Source) -> set[str]:
    """Return the image files of a source; none if it has names only, which may be those of any images."""
    if not len(source) or isinstance(source.describe(0), str):
        return set()
    return {source.describe(i)[0] for i in range(len(source))}


def _repeated(lines: Sequence[tuple[str, str]]) -> list[Finding]:
    return [
        Finding("warning", "listed twice", place, name, f"{name} is listed twice and counts double; remove the line")
        for name, place in lines
    ]


def _parts(source: Source) -> list[tuple[str, Source]]:
    """Return what may have files without a partner: a source, or its part for each label with the masks' place."""
    if isinstance(source, MultilabelSource):
        return list(zip(source.places, source.parts, strict=True))
    return [("", source)]


def _unpaired(by_name: dict[str, str], masks_by_name: dict[str, str], *, place: str) -> list[Finding]:
    findings = []
    there = f" in {place}" if place else ""
    lonely_masks = sorted(masks_by_name.keys() - by_name.keys())
    for name in sorted(by_name.keys() - masks_by_name.keys()):
        # Among the names after `name`, in order, those that begin with it come first: 7_mask for 7.
        at = bisect.bisect_left(lonely_masks, name)
        near = lonely_masks[at] if at < len(lonely_masks) and lonely_masks[at].startswith(name) else None
        fix = "add the mask or remove the image"
        if near:
            flags = "--config.data.options.images, --config.data.options.masks"
            fix = f"if {Path(masks_by_name[near]).name} is it, give both one name or use globs ({flags})"
        message = f"no mask is called '{name}'{there}; {fix}"
        findings.append(Finding("error", "image without mask", by_name[name], name, message))
    for name in lonely_masks:
        message = f"no image is called '{name}'; add the image or remove the mask"
        findings.append(Finding("error", "mask without image", masks_by_name[name], name, message))
    return findings


def _compare_kinds(seen: Sequence[Seen]) -> list[Finding]:
    """Return a finding for each image of other bands or bits than most. Grey images among RGB ones of the same bits are
    read as RGB, so they are none.
    """
    read = [(one, (3 if one.bands == 1 else one.bands, one.depth)) for one in seen if one.bands]
    kinds = collections.Counter(kind for _, kind in read)
    if len(kinds) < 2:
        return []
    usual = kinds.most_common(1)[0][0]
    spelled = "{} bands of {}".format(*usual)
    return [
        Finding(
            "warning",
            "images of different kinds",
            one.image_file,
            f"{one.bands} x {one.depth}",
            f"has {one.bands} bands of {one.depth}, and most images have {spelled}; export all images in one way, or "
            "remove those that do not belong here",
        )
        for one, kind in read
        if kind != usual
    ]


def _compare_palettes(seen: Sequence[Seen]) -> list[Finding]:
    """Return a finding for each mask whose palette gives an index that it uses another colour than an earlier mask."""
    first: dict[int, tuple[Colour, str]] = {}
    findings = []
    for one in seen:
        if fault := palette_fault(first, one.palette, one.mask_file):
            index, message = fault
            findings.append(Finding("error", "palettes differ", one.mask_file, str(index), message))
    return findings


def _report(
    name: str,
    labels: LabelSet,
    seen: Sequence[Seen],
    findings: list[Finding],
    total: int,
    *,
    bands: tuple[BandStatistics, ...],
    value_range: tuple[float, float] | None,
    takes_map: bool,
    for_training: bool,
) -> Report:
    count = labels.num_classes
    pixels, (present, known, where_present) = np.zeros(256, np.int64), np.zeros((3, count), np.int64)
    read = [one for one in seen if one.values]
    for one in read:
        pixels += one.pixels
        shown = one.pixels[:count] > 0
        present += shown
        of_image = one.known if one.known.size else one.pixels[:count].sum()
        known += of_image
        where_present += shown * of_image
    findings = [*findings, *(finding for one in seen for finding in one.findings)]
    findings = _escalate(findings, len(read))
    shares = pixels[:count] / np.maximum(known, 1)
    if read:
        rare = "consider the class weights below" if for_training else "its results are those of few pixels"
        findings += _class_findings(name, labels, pixels[:count], shares, len(read), rare=rare)
    order = {"error": 0, "warning": 1}
    findings.sort(key=lambda finding: order[finding.severity])
    counts = collections.Counter(finding.kind for finding in findings)
    listed: collections.Counter[str] = collections.Counter()
    kept = []
    for finding in findings:
        listed[finding.kind] += 1
        if listed[finding.kind] <= MAX_PER_KIND:
            kept.append(finding)
    weights = median_frequency_weights(pixels[:count], where_present) if for_training else np.zeros(0)
    sizes = [one.size for one in seen if one.size is not None]
    return Report(
        name=name,
        class_names=labels.names,
        checked=len(seen),
        total=total,
        findings=tuple(kept),
        counts=dict(counts),
        class_pixels=tuple(pixels[:count].tolist()),
        class_shares=tuple(shares.tolist()),
        class_images=tuple(present.tolist()),
        ignored_pixels=int(pixels[IGNORE_LABEL]),
        smallest=(min(w for w, _ in sizes), min(h for _, h in sizes)) if sizes else None,
        largest=(max(w for w, _ in sizes), max(h for _, h in sizes)) if sizes else None,
        class_weights=tuple(weights.tolist()),
        value_map=_suggest_value_map(labels, read) if takes_map else None,
        bands=bands,
        turned_images=sum(one.image_turned for one in seen),
        turned_masks=sum(one.mask_turned for one in seen),
        value_range=value_range,
    )


def _escalate(findings: list[Finding], masks: int) -> list[Finding]:
    """Return the findings with some raised to errors. What one mask may intend is a fault if most masks (0/255) or all
    masks (a single class, all ignored) show it.
    """
    counts = collections.Counter(finding.kind for finding in findings)
    faults = {kind for kind in ("single class", "all ignored") if masks > 1 and counts[kind] == masks}
    if 2 * counts["0/255 mask"] >= masks:
        faults.add("0/255 mask")
    return [dataclasses.replace(f, severity="error") if f.kind in faults else f for f in findings]


def _class_findings(
    name: str, labels: LabelSet, pixels: np.ndarray, shares: np.ndarray, masks: int, *, rare: str
) -> list[Finding]:
    """Return a finding for each class that is absent or rare; `rare` ends the message about a rare one."""
    findings = []
    for i, class_name in enumerate(labels.names):
        if pixels[i] == 0:
            message = (
                f"class {i} ({class_name}) is in none of the {masks} masks checked; it cannot be learned from them: "
                "add examples, or (data set 'folder') drop the class"
            )
            findings.append(Finding("warning", "absent class", name, class_name, message))
        elif pixels[i] * _RARE < pixels.max():
            message = (
                f"class {i} ({class_name}) has {shares[i]:.3%} of the pixels, {pixels.max() / pixels[i]:.0f} times "
                f"fewer than the most frequent class; {rare}"
            )
            findings.append(Finding("warning", "rare class", name, class_name, message))
    return findings


def _suggest_value_map(labels: LabelSet, read: Sequence[Seen]) -> dict[int, int] | None:
    values = frozenset[int]().union(*(one.values for one in read))
    if values == {0, IGNORE_LABEL} and labels.num_classes == 2 and meaning(labels, 255) in (None, IGNORE_LABEL):
        return {0: 0, IGNORE_LABEL: 1}
    return suggest_value_map(labels, values)


def _suggest_value_range(bands: Sequence[BandStatistics]) -> tuple[float, float] | None:
    """Return a range that all bands of more than 8 bits fit, or None if there is none or it is the full one."""
    deep = [band for band in bands if band.kind != "uint8"]
    if not deep:
        return None
    kind = np.dtype(deep[0].kind)
    found = suggest_range(min(band.minimum for band in deep), max(band.maximum for band in deep), kind)
    return None if found == (0.0, 65535.0) else found
