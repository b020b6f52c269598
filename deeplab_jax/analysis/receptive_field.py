"""Theoretical receptive fields of the maps of a network, in pixels of the image.

They come from the program that JAX traces. So a field is that of the network that runs, and not of a second description
of it; every tap of a kernel counts, whatever its weight. They are along the height of the image; the networks here are
the same along its width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.analysis.row_dependence import rows_seen

# Pairs of image heights. A field that is the same in both is local; one that grows with the image is a share of it.
# Each height is one more than a multiple of 1024, so that maps of all strides end on the last pixel.
HEIGHTS = ((3073, 4097), (12289, 16385))
WIDTH = 33
# Half-pixel resizes have other fractions at other heights, so a local field may differ by a few pixels.
TOLERANCE = 32


@dataclass(frozen=True)
class Field:
    """The part of the image that one sample of a map depends on, along its height.

    Attributes:
      pixels: from the first to the last row that an inner sample depends on; None if that grows with the image.
      stride: rows of the image per row of the map.
    """

    pixels: int | None
    stride: int


def receptive_fields(
    function: Callable[[Any, jax.Array], Mapping[str, jax.Array]],
    variables: Any,
    *,
    fit: Callable[[int], int] = lambda side: side,
    channels: int = 3,
) -> dict[str, Field]:
    """Return the receptive fields of maps; nothing is computed but row numbers.

    Args:
      function: `(variables, images [1, H, W, C]) -> {name: map [1, h, w, D]}` for any H.
      variables: a tree of arrays or of their shapes.
      fit: returns the smallest side of at least so many pixels that the function takes.
      channels: C.

    Returns:
      The field of every map: the largest field that ends before the padding, because samples differ after resizes.

    Raises:
      NotImplementedError: `rows_seen` has no rule for an operation; the message names it.
      ValueError: a map does not depend on the image.
    """
    fields: dict[str, Field] = {}
    for shorter, taller in HEIGHTS:
        # The fields do not depend on the width, so a small one saves time.
        less = _measure(function, variables, fit(shorter), fit(WIDTH), channels)
        more = _measure(function, variables, fit(taller), fit(WIDTH), channels)
        fields = {name: Field(_local(less[name].pixels, m.pixels), m.stride) for name, m in more.items()}
        # Taller images are for fields too large to end within these, unless even the first sample depends on the last
        # row.
        if all(m.everything or None not in (m.pixels, less[name].pixels) for name, m in more.items()):
            break
    return fields


def _local(at_shorter: int | None, at_taller: int | None) -> int | None:
    if at_shorter is None or at_taller is None or abs(at_taller - at_shorter) > TOLERANCE:
        return None
    return max(at_shorter, at_taller)


@dataclass(frozen=True)
class _Measured:
    """The results at one height: the largest field that ends before the padding, or None; whether even the first sample
    depends on the last row; and the stride.
    """

    pixels: int | None
    everything: bool
    stride: int


def _measure(function: Any, variables: Any, height: int, width: int, channels: int) -> dict[str, _Measured]:
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(variables, images)
    row = np.arange(height).reshape(1, height, 1, 1)
    results = rows_seen(traced, [None] * (len(traced.in_avals) - 1) + [np.stack([row, -row, 0 * row])])
    measured = {}
    for (name, shape), rows in zip(sorted(shapes.items()), results, strict=True):
        if rows is None:
            raise ValueError(f"{name}: does not depend on the image, so it has no receptive field")
        first, last, whole = rows.min(axis=(1, 3, 4)) * np.array([[1], [-1], [1]])
        inner = (whole == 0) & (first <= last)
        pixels = int((last - first + 1)[inner].max()) if inner.any() else None
        measured[name] = _Measured(pixels, bool(last[0] == height - 1), round(height / shape.shape[1]))
    return measured
