"""Taps of atrous kernels that read only padding on images of the training size.

At rates near the map's side a 3x3 kernel becomes a 1x1 kernel, its centre (DeepLabv3, sec. 3.3). Then no gradient
reaches the outer taps, so after training they still have their random start. On larger images they read samples for the
first time and add noise. So they start at zero, which does not change training and gives larger images the same 1x1
filter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.analysis.cost import Call
from deeplab_jax.ops.observe import Convolution


def reached_taps(convolution: Convolution) -> np.ndarray:
    """Return for each tap of a kernel, bool `[kh, kw]`, whether it reads a sample of the map anywhere."""
    rows, columns = (convolution.taps_on_map(axis).any(axis=0) for axis in (0, 1))
    return np.asarray(rows[:, None] & columns[None])


def reached_by_layer(calls: Iterable[Call]) -> dict[str, np.ndarray]:
    """Return the reached taps of every layer; if a layer is called more than once, those that any call reaches."""
    reached: dict[str, np.ndarray] = {}
    for call in calls:
        if not call.convolution.transposed:
            mask = reached_taps(call.convolution)
            reached[call.layer] = reached.get(call.layer, np.zeros_like(mask)) | mask
    return reached


def zero_unreached(params: Mapping[str, Any], calls: Iterable[Call]) -> dict[str, Any]:
    """Return the parameters with zeros in the taps that no convolution of a run reaches."""
    flat = flatten_dict(dict(params), sep="/")
    for layer, mask in reached_by_layer(calls).items():
        if not mask.all():
            for name in {f"{layer}/conv/kernel", f"{layer}/kernel"} & flat.keys():
                flat[name] = flat[name] * mask[:, :, None, None].astype(np.float32)
    return unflatten_dict(flat, sep="/")
