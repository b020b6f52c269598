"""The low-level channels of a trained DeepLabv3+ decoder."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.models.segmenter import Variables

FIRST_CONV = ("params", "decoder", "conv2_conv1", "conv", "kernel")


def with_strongest_channels(variables: Variables, *, channels: int, keep: int) -> Variables:
    """Return the variables of a DeepLabv3+ whose decoder reads only some of the reduced low-level channels.

    Args:
      variables: variables of a model with `low_level=("conv2",)` and dense decoder convolutions.
      channels: number of channels after the 1x1 convolution (`low_level_channels`).
      keep: number of channels that stay: those with the largest weights in the decoder's first 3x3 convolution, by the
        root of the summed squares. This convolution then ignores the others.
    """
    flat = flatten_dict(dict(variables))
    kernel = np.array(flat[FIRST_CONV])
    # The low-level features come after those of the context.
    low = kernel[:, :, -channels:]
    order = np.argsort(-np.sqrt(np.sum(low**2, axis=(0, 1, 3))), kind="stable")
    low[:, :, order[keep:]] = 0
    return unflatten_dict({**flat, FIRST_CONV: kernel})
