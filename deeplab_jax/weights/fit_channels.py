"""Weights of a network fitted to images with another number of channels.

The rule is that of segmentation_models_pytorch (`change_conv_in_channels`): a single channel gets the sum of the
kernels of all old ones; else channel i gets that of the old channel i modulo their number, times old / new number. So
an image whose channels are all equal gives the same activations, if the old number divides the new one. The mean of the
old kernels in every channel would give them for any number. But then no channel would be told from another, and the
first three bands, which mostly are red, green and blue, would lose what their kernels have learned.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from deeplab_jax.models.catalog import describe, from_description
from deeplab_jax.models.preprocessing import Preprocessing
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.tensor_map import Shapes, TensorMap, their_name


def fit_kernel(kernel: np.ndarray, *, old: int, new: int) -> np.ndarray:
    """Return a kernel `[h, w, in, out]` whose last `old` inputs, the channels of the images, become `new` ones."""
    kept, seen = kernel[:, :, : kernel.shape[2] - old], kernel[:, :, kernel.shape[2] - old :]
    fitted = seen.sum(axis=2, keepdims=True) if new == 1 else seen[:, :, np.arange(new) % old] * np.float32(old / new)
    return np.concatenate([kept, fitted], axis=2)


def fit_channels(model: Segmenter, variables: Variables, in_channels: int) -> tuple[Segmenter, Variables]:
    """Return the network and its weights for images of `in_channels` channels.

    Every convolution that sees the images is fitted: the first one of the backbone, and those of a decoder that takes
    the images as features. Each channel has the average of the means; `Preprocessing.for_channels` says more.

    Args:
      model: from `load`, `convert` or `create_model`.
      variables: its variables.
      in_channels: at least 1; if the model has as many, nothing changes.

    Raises:
      UserError: a network that has no name because it was composed in Python; an impossible number.
    """
    if in_channels == model.in_channels:
        return model, variables
    described = describe(model)
    options = options_for(described["options"], model.preprocessing, in_channels)
    fitted = from_description({**described, "options": options})
    flat = flatten_variables(variables)
    for name, wanted in flatten_variables(abstract_variables(fitted)).items():
        if flat[name].shape != wanted.shape:
            kernel = fit_kernel(np.asarray(flat[name]), old=model.in_channels, new=in_channels)
            flat[name] = jnp.asarray(kernel)
    return fitted, unflatten_dict(flat, sep="/")


def said_of_channels(old: int, new: int) -> str:
    """Return a sentence about what `fit_channels` does."""
    how = "the sum of its kernels" if new == 1 else f"its kernels in turn, times {old}/{new}"
    return f"the first convolution took {old} channels; for {new} it starts from {how}"


def at_own_channels(tensor_map: TensorMap, shapes: Shapes) -> TensorMap:
    """Return a tensor map for as many channels as the source's first convolution has; importers describe RGB."""
    model = tensor_map.model()
    for name, leaf in flatten_variables(abstract_variables(model)).items():
        if not name.startswith("params/backbone/") or len(leaf.shape) != 4 or leaf.shape[2] != model.in_channels:
            continue
        theirs, kind = their_name(name, rules=tensor_map.rules, layout=tensor_map.layout)
        shape = shapes.get(theirs, ())
        if len(shape) == 4 and (found := shape[kind.axes[2] if kind.axes else 2]) != model.in_channels:
            return replace(tensor_map, options=options_for(dict(tensor_map.options), model.preprocessing, found))
    return tensor_map


def options_for(options: dict[str, object], preprocessing: Preprocessing, in_channels: int) -> dict[str, object]:
    """Return the options of a network for images of another number of channels; `preprocessing` is its own so far."""
    changed = preprocessing.for_channels(in_channels).normalisation
    kept = {key: changed.get(key, value) for key, value in options.items() if key != "channels"}
    return {**kept, "in_channels": in_channels}
