"""Masks that do not store class ids: colours, a channel of an image, one file for each class.

Each reader is a function from the path of a pair's mask to its stored values. `IdMasks` is the one for masks of class
ids: `images.read_mask`, which also compares the palettes of the files.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.errors import UserError, did_you_mean, spell
from deeplab_jax.labels import IGNORE_LABEL, UNKNOWN

Colour = tuple[int, int, int]
OVERLAPS = ("refuse", "ignore", "last")
"""What becomes of pixels that two classes claim: an error, the ignore label, or the class with the larger id."""


class PalettesDifferError(UserError):
    """Two masks draw one index in different colours. No mask can be skipped for it: either of them may be wrong."""


@dataclasses.dataclass(frozen=True)
class IdMasks:
    """Reads masks of class ids, as `images.read_mask` does, and remembers in which colour each index was drawn first.

    Threads share what is remembered. A copy for another process begins anew.
    """

    first: dict[int, tuple[Colour, str]] = dataclasses.field(default_factory=dict, compare=False)

    def __call__(self, file: str) -> np.ndarray:
        """Return integers `[H, W]`, the stored values.

        Raises:
          UserError: the mask cannot be read.
          PalettesDifferError: it draws one of its indices in another colour than a mask that was read before.
        """
        return self.values(images.stored_mask(file), file)

    def values(self, stored: images.Stored, file: str) -> np.ndarray:
        """Return the result for the samples of a file."""
        values = images.mask_values(stored, name=file)
        if palette := index_colours(stored):
            used = np.zeros(256, bool)
            used[values] = True
            drawn = {index: palette[index] for index in np.nonzero(used)[0].tolist() if index in palette}
            if fault := palette_fault(self.first, drawn, file):
                raise PalettesDifferError(f"{file}: {fault[1]}")
        return values

    def __reduce__(self) -> tuple[type["IdMasks"], tuple[()]]:
        return IdMasks, ()


def index_colours(stored: images.Stored) -> dict[int, Colour]:
    """Return index -> colour of a palette, empty without one and for one that stands for greys."""
    if stored.palette is None or images.grey_palette(stored) is not None:
        return {}
    return {index: (int(c[0]), int(c[1]), int(c[2])) for index, c in enumerate(stored.palette)}


def palette_fault(
    first: dict[int, tuple[Colour, str]], drawn: Mapping[int, Colour], file: str
) -> tuple[int, str] | None:
    """Return an index that a mask draws in another colour than an earlier mask did, and what to say; None if there is
    none.

    Args:
      first: index -> its colour and the mask that drew it first; what is new in this mask is added.
      drawn: index -> colour of the indices that the mask uses.
      file: the mask.
    """
    for index, colour in sorted(drawn.items()):
        known, earlier = first.setdefault(index, (colour, file))
        if known != colour:
            return index, (
                f"palette index {index} is drawn {colour}, and {known} in {earlier}: one of them was probably saved "
                "anew by a program that orders colours, so its indices are not class ids; export the masks again "
                "with one palette, or as grey PNG of class ids"
            )
    return None


@dataclasses.dataclass(frozen=True)
class ColourMasks:
    """Reads masks whose colours mean classes; `meanings` holds pairs (colour, class id or 255).

    A grey mask keeps its values, and a palette image its indices unless each colour that it shows has a meaning.
    """

    meanings: tuple[tuple[Colour, int], ...]
    ids: IdMasks = dataclasses.field(default_factory=IdMasks)

    def __call__(self, file: str) -> np.ndarray:
        """Return uint8 `[H, W]` class ids.

        Raises:
          UserError: the mask cannot be read, or shows other colours; they are named with their numbers of pixels.
        """
        stored = images.stored_mask(file)
        if stored.palette is None and not images.holds_colours(stored):
            return images.mask_values(stored, name=file)
        pixels = images.mask_colours(stored, name=file).astype(np.int32)
        codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        ids = _ids_of_colours(self.meanings)[codes]
        is_strange = ids == UNKNOWN
        if not is_strange.any():
            return ids
        if stored.palette is not None:
            return self.ids.values(stored, file)
        strange, counts = np.unique(codes[is_strange], return_counts=True)
        found = [(int(strange[i]), counts[i]) for i in np.argsort(-counts, kind="stable")]
        spelled = spell([f"{(code >> 16, code >> 8 & 255, code & 255)} in {count} pixels" for code, count in found])
        raise UserError(
            f"{file}: {len(found)} colours have no class: {spelled}; correct the mask, or add them to the palette (of "
            "more colours than classes, config.data.options.value_map says the class id of each, or 255)"
        )


@functools.lru_cache(maxsize=2)
def _ids_of_colours(meanings: tuple[tuple[Colour, int], ...]) -> np.ndarray:
    """Return the class id or 255 of each colour, uint8 `[2**24]`; `UNKNOWN` for a colour without meaning."""
    ids = np.full(2**24, UNKNOWN, np.uint8)
    for (red, green, blue), class_id in meanings:
        ids[red << 16 | green << 8 | blue] = class_id
    return ids


@dataclasses.dataclass(frozen=True)
class ChannelMasks:
    """Reads masks whose values stand in one channel, 0 to 2, of an RGB image, such as the red one of CARLA."""

    channel: int

    def __post_init__(self) -> None:
        if self.channel not in (0, 1, 2):
            raise UserError(f"mask_channel is {self.channel!r}; give 0 (red), 1 (green) or 2 (blue)")

    def __call__(self, file: str) -> np.ndarray:
        """Return uint8 `[H, W]` stored values."""
        return np.ascontiguousarray(images.mask_colours(images.stored_mask(file), name=file)[..., self.channel])


@dataclasses.dataclass(frozen=True)
class ClassFiles:
    """Reads masks of one file for each class, in which every value but 0 marks the class.

    Attributes:
      files: the mask of a pair (a folder, or a common beginning of names) -> its (class id, file).
      rest: the class id of pixels that no file marks: that of the background, or 255.
      overlap: one of `OVERLAPS`.
    """

    files: Mapping[str, tuple[tuple[int, str], ...]]
    rest: int
    overlap: str

    def __post_init__(self) -> None:
        check_overlap(self.overlap)

    def __call__(self, mask: str) -> np.ndarray:
        """Return uint8 `[H, W]` class ids.

        Raises:
          UserError: a file cannot be read, or has another size than the others; two claim a pixel and `overlap` is
            "refuse".
        """
        inside = []
        for class_id, file in self.files[mask]:
            stored = images.stored_mask(file)
            if images.holds_colours(stored):
                inside.append((class_id, images.mask_colours(stored, name=file).any(axis=-1)))
            else:
                inside.append((class_id, images.mask_values(stored, name=file) != 0))
            if inside[-1][1].shape != inside[0][1].shape:
                raise UserError(f"{file}: another size than the masks of the other classes; export them again")
        return combine(inside, rest=self.rest, overlap=self.overlap, name=mask)


def check_overlap(overlap: str) -> None:
    """Raise a UserError unless `overlap` is one of `OVERLAPS`."""
    if overlap not in OVERLAPS:
        raise UserError(f"config.data.options.overlap={overlap!r}: {did_you_mean(overlap, OVERLAPS)}")


def combine(inside: Sequence[tuple[int, np.ndarray]], *, rest: int, overlap: str, name: str) -> np.ndarray:
    """Return uint8 `[H, W]` class ids from masks of single classes.

    Args:
      inside: (class id, bool `[H, W]`), at least one; a class may occur more than once.
      rest: the id of pixels in none of them.
      overlap: what becomes of pixels in those of two classes, one of `OVERLAPS`.
      name: of the mask, in messages.

    Raises:
      UserError: two classes claim a pixel, and `overlap` is "refuse".
    """
    label = np.full(inside[0][1].shape, rest, np.uint8)
    taken = np.zeros(label.shape, bool)
    twice = np.zeros(label.shape, bool)
    for class_id, marked in sorted(inside, key=lambda one: one[0]):
        twice |= marked & taken & (label != class_id)
        label[marked] = class_id
        taken |= marked
    if overlap == "refuse" and twice.any():
        raise UserError(
            f"{name}: two classes claim {int(twice.sum())} pixels; correct the masks, or give "
            "--config.data.options.overlap=ignore (no class) or --config.data.options.overlap=last (the larger id)"
        )
    if overlap == "ignore":
        label[twice] = IGNORE_LABEL
    return label
