"""What is unlike between the files of a data set: bands, bit depths, palettes."""

import collections
from collections.abc import Sequence

from deeplab_jax.data.check.example import Colour, Seen
from deeplab_jax.data.check.report import Finding
from deeplab_jax.data.mask_formats import palette_fault


def compare_kinds(seen: Sequence[Seen]) -> list[Finding]:
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


def compare_palettes(seen: Sequence[Seen]) -> list[Finding]:
    """Return a finding for each mask whose palette gives an index that it uses another colour than an earlier mask."""
    first: dict[int, tuple[Colour, str]] = {}
    findings = []
    for one in seen:
        if fault := palette_fault(first, one.palette, one.mask_file):
            index, message = fault
            findings.append(Finding("error", "palettes differ", one.mask_file, str(index), message))
    return findings
