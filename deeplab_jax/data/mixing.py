"""Training crops made of several: mosaic and copy-paste.

What is mixed are whole training crops, each augmented by itself. So a crop that stays alone is the one that it would be
without mixing, and every pixel keeps its place, its colour and its label. The other crops come from positions of the
same endless sequence that no training reaches. So they are other crops, augmented on their own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from deeplab_jax.config_keys import Augment
from deeplab_jax.data.faults import NOT_REPLACED
from deeplab_jax.data.sampling import ClassSampling
from deeplab_jax.data.source import Source
from deeplab_jax.data.transforms import Arrays, Size
from deeplab_jax.errors import UserError, spell

Crop = Mapping[str, np.ndarray]

AWAY = 10**12 + 39
"""Position of the first of the other crops; no training gets that far. Each crop has four positions there. It is no
multiple of a power of two: Grain takes the seed of each round modulo one, so the order could be that of the beginning.
"""
_OTHERS = 4


class Plan(NamedTuple):
    """How the crop at a position is made.

    Attributes:
      positions: of all crops that are read for it; its own is the first.
      centre: (row, column) at which the first four of them meet in a mosaic; None: there is none.
      pastes: whether pixels of the last one are pasted.
    """

    positions: tuple[int, ...]
    centre: Size | None
    pastes: bool


def name_classes(more: Augment, source: Source, sampling: ClassSampling | None) -> Augment:
    """Return the augmentation with the classes to paste: those that it names, else those that the sampling prefers.

    Raises:
      UserError: a class that the source does not have, or classes without a probability; or no class is named, and the
        sampling is missing or prefers none.
    """
    if not more.copy_paste:
        if more.copy_paste_classes:
            raise UserError(
                "config.data.augment.copy_paste_classes: nothing is pasted; add --config.data.augment.copy_paste=0.5, "
                "or leave the classes out"
            )
        return more
    name, count = "config.data.augment.copy_paste_classes", source.labels.num_classes
    if unknown := [class_id for class_id in more.copy_paste_classes if class_id >= count]:
        raise UserError(f"{name}: {source.name} has no class {spell(unknown)}; give class ids from 0 to {count - 1}")
    found = more.copy_paste_classes or (() if sampling is None else sampling.preferred)
    if not found:
        why, instead = "all classes are equally frequent", ""
        if sampling is None:
            why = "which classes are rare is not known"
            instead = "; or draw images by their classes: --config.data.class_temperature=0.01"
        raise UserError(
            f"config.data.augment.copy_paste={more.copy_paste}: {why}; name the ids of those to paste, such as "
            f"--{name}={count - 1}{instead}"
        )
    return dataclasses.replace(more, copy_paste_classes=found)


def mixed(
    indices: grain.MapDataset, crops: grain.MapDataset, *, seed: int, crop_size: Size, more: Augment
) -> tuple[grain.MapDataset, grain.MapDataset]:
    """Return the endless sequences of the examples that are read for each crop, and of the mixed crops.

    Args:
      indices: of the example of each crop.
      crops: `image`, `label`, and as `replaced` the index of an example that could not be read, or `NOT_REPLACED`.
      seed: of what is mixed; it depends on this and the position alone.
      crop_size: (height, width).
      more: `mosaic`, `copy_paste`, and the classes to paste.

    Returns:
      Lists of indices; and crops whose `replaced` has a number for each that may have been read.
    """

    def plan(position: int) -> Plan:
        return make_plan(np.random.default_rng((seed, position)), position, crop_size=crop_size, more=more)

    plans = grain.MapDataset.range(AWAY).map(plan)
    read = plans.map(lambda one: [indices[position] for position in one.positions])
    return read, plans.map(lambda one: _mix(one, [crops[position] for position in one.positions], more))


def make_plan(rng: np.random.Generator, position: int, *, crop_size: Size, more: Augment) -> Plan:
    """Return how the crop at a position is made. The centre of a mosaic lies in the middle half of each side."""
    joins, pastes = rng.random(2) < (more.mosaic, more.copy_paste)
    row, column = (int(rng.integers(max(1, side // 4), max(1, side - side // 4) + 1)) for side in crop_size)
    *others, last = range(AWAY + _OTHERS * position, AWAY + _OTHERS * (position + 1))
    positions = (position, *(others if joins else ()), *((last,) if pastes else ()))
    return Plan(positions, (row, column) if joins else None, bool(pastes))


def _mix(plan: Plan, crops: Sequence[Crop], more: Augment) -> dict[str, np.ndarray]:
    image, label = crops[0]["image"], crops[0]["label"]
    if plan.centre is not None:
        image, label = (mosaic([crop[name] for crop in crops[:4]], plan.centre) for name in ("image", "label"))
    if plan.pastes:
        image, label = paste(image, label, crops[-1]["image"], crops[-1]["label"], classes=more.copy_paste_classes)
    replaced = np.full(1 + _OTHERS, NOT_REPLACED)
    replaced[: len(crops)] = [crop["replaced"] for crop in crops]
    return {"image": image, "label": label, "replaced": replaced}


def mosaic(four: Sequence[np.ndarray], centre: Size) -> np.ndarray:
    """Return one crop of four: its upper left part is that of the first, then upper right, lower left, lower right.

    Four images that share one training crop are YOLOv4's mosaic (Bochkovskiy et al. 2020, section 3.3), here for labels
    of pixels. The crops are not moved, so what is mostly above or below stays there.

    Args:
      four: images or labels, `[H, W, ...]`, of one size.
      centre: the (row, column) of the first pixel of the lower right part.
    """
    row, column = centre
    a, b, c, d = four
    upper = np.concatenate([a[:row, :column], b[:row, column:]], axis=1)
    return np.concatenate([upper, np.concatenate([c[row:, :column], d[row:, column:]], axis=1)])


def paste(
    image: np.ndarray, label: np.ndarray, other: np.ndarray, other_label: np.ndarray, *, classes: Sequence[int]
) -> Arrays:
    """Return a crop in which the pixels of some classes of another one replace those at their places.

    This is Simple Copy-Paste (Ghiasi et al. 2021, section 3) without instances: all pixels of the classes are pasted,
    and no edge is blended. Pixels of the ignore label are never pasted, but may be covered.

    Args:
      image, other: `[H, W, C]`.
      label, other_label: uint8 `[H, W]`, or `[H, W, K]` where a pixel can have several labels. Then a pixel that has
        one of the classes is pasted with all its labels.
      classes: ids of the classes.
    """
    if label.ndim == 3:
        chosen = (other_label[..., list(classes)] == 1).any(axis=-1, keepdims=True)
        return np.where(chosen, other, image), np.where(chosen, other_label, label)
    chosen = np.isin(other_label, classes)
    return np.where(chosen[..., None], other, image), np.where(chosen, other_label, label)
