"""Taps of atrous kernels that see nothing but padding on images of the training size.

At rates near the map's side a 3x3 kernel degenerates to its centre (DeepLabv3, sec. 3.3). No gradient reaches the outer
taps then, so after training they still hold their random start; on larger images they meet samples for the first time
and add noise. They start at zero instead, which leaves training as it is and gives larger images the same 1x1 filter.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.models.layers import Conv

# Path of a convolution to a bool array `[k, k]`: whether a tap meets a sample of the map anywhere.
Reached = dict[str, np.ndarray]


class TapWatcher:
    """Note which taps of symmetrically padded convolutions are reached, while a network is initialised or applied.

    Use as `with nn.intercept_methods(watcher): ...`. Of a convolution that is called more than once, a tap counts as
    reached where any call reaches it.
    """

    def __init__(self) -> None:
        self.reached: Reached = {}

    def __call__(self, next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_function(*args, **kwargs)
        conv = context.module
        if isinstance(conv, Conv) and conv.padding is None and context.method_name == "__call__":
            rows, columns = (
                taps_reached(
                    args[0].shape[axis], output.shape[axis], conv.kernel_size, stride=conv.stride, rate=conv.rate
                )
                for axis in (1, 2)
            )
            path = "/".join(conv.path)
            mask = rows[:, None] & columns[None]
            self.reached[path] = self.reached.get(path, np.zeros_like(mask)) | mask
        return output


def taps_reached(side: int, outputs: int, kernel_size: int, *, stride: int, rate: int) -> np.ndarray:
    """Return for each tap along an axis, bool `[kernel_size]`, whether it meets a sample of a map of `side` samples."""
    offsets = rate * (np.arange(kernel_size) - (kernel_size - 1) // 2)
    positions = stride * np.arange(outputs)[:, None] + offsets[None]
    return np.asarray(((positions >= 0) & (positions < side)).any(axis=0))


def zero_unreached(params: Mapping[str, Any], reached: Reached) -> dict[str, Any]:
    """Return the parameters with zeros in the taps that were not reached."""
    flat = flatten_dict(dict(params), sep="/")
    for path, mask in reached.items():
        if not mask.all():
            kernel = flat[f"{path}/kernel"]
            flat[f"{path}/kernel"] = kernel * mask[:, :, None, None].astype(np.float32)
    return unflatten_dict(flat, sep="/")
