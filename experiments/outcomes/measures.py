"""The measures of a training's result, and of a row."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

BILLION = 1e9
# Measures that are means over some classes: CamVid's rare ones, and those of `scenes` that a lamp tells apart.
RARE = ("pole", "sign symbol", "pedestrian")
IOU_OF: Mapping[str, tuple[str, ...]] = {"rare_iou": RARE, "lamp_iou": ("water", "road", "boat", "car")}


def measure(entry: Mapping[str, Any], name: str) -> float | None:
    """Return a measure of one seed of a row in the units of `MEASURES`, None where it has none."""
    found: float | None
    if name == "multiply_adds":
        return None  # No seed changes it.
    if name.startswith("trimap_"):
        bands = {band["width"]: band["miou"] for band in entry["trimap"]["bands"]}
        found = bands.get(int(name.removeprefix("trimap_")))
    elif name in IOU_OF:
        found = iou_of(entry["per_class"], IOU_OF[name])
    else:
        found = entry[name]
    return None if found is None else _finite(100 * found)


def multiply_adds(content: Mapping[str, Any]) -> float:
    """Return the multiply-adds of a row in the papers' way, in 10^9."""
    return _finite(content["multiply_adds"]["space_to_batch"] / BILLION)


def iou_of(per_class: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> float | None:
    """Return the mean IoU of some classes, None where the data lack one."""
    ious = {one["name"]: one["iou"] for one in per_class}
    found = [ious.get(name) for name in classes]
    return None if None in found else fmean(value for value in found if value is not None)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} where a number should be")
    return value
