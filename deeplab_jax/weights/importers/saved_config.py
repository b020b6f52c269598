"""Checks of what files state about a network, and its tensors do not show: `config.json` in a saved folder, and
`meta` in a file of mmsegmentation. The `apply_config` of each importer uses them.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.weights.formats.read import PROCESSOR_FILE, SAVED_CONFIG

Config = Mapping[str, Any]
META = "meta"
"""Under this key a configuration holds what mmsegmentation saves beside the tensors."""
# Before these the logits are the same. A class is chosen by its logit, so none of them changes it.
ACTIVATIONS = (None, "identity", "sigmoid", "softmax", "softmax2d", "logsoftmax", "tanh")
LARGEST_RATE = 4096
FLOAT32 = np.finfo(np.float32)

# The fields of the file that says how transformers prepares images.
OF_IMAGES = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# What the fields of mmsegmentation's config in `meta` begin with.
OF_NETWORK = ("backbone.", "decode_head.")


def mean_and_std(images: Config, mean: str, std: str, channels: int) -> dict[str, Any]:
    """Return our options for images of 0 to 1, from the fields with their mean and deviation."""
    means, deviations = (tuple(per_channel(images, field, 0.0, channels)) for field in (mean, std))
    for field, values, fit in ((mean, means, all(map(math.isfinite, means))), (std, deviations, min(deviations) > 0)):
        if not (fit and max(values) <= float(FLOAT32.max)):
            raise refused(field, images.get(field), "give finite numbers, of deviations above 0")
    return {"value_range": (0.0, 1.0), "mean": means, "std": deviations}


def per_channel(converter: Config, field: str, default: float, channels: int) -> list[float]:
    """Return a field that is one number, or one for each channel, as numbers of the channels."""
    stated = converter.get(field)
    values = [default if stated is None else stated] * channels if not isinstance(stated, list) else stated
    if len(values) != channels or not all(type(value) in (int, float) for value in values):
        raise refused(field, stated, f"give null, a number, or {channels} of them")
    try:
        return [float(value) for value in values]
    except OverflowError:  # A whole number of hundreds of digits.
        raise refused(field, stated, "give numbers that float32 can hold") from None


def rates_at_16(value: Any, output_stride: int, *, field: str = "decoder_atrous_rates") -> tuple[int, ...]:
    """Return rates at output stride 16, as ours are stated; theirs are the same at any."""
    whole = isinstance(value, list) and all(type(rate) is int and 0 < rate <= LARGEST_RATE for rate in value)
    if not whole or len(value) != 3:
        raise refused(field, value, f"give three whole numbers from 1 to {LARGEST_RATE}")
    if any(rate * output_stride % 16 for rate in value):
        raise refused(
            field,
            value,
            f"at output stride {output_stride} only multiples of {16 // output_stride} can be converted",
        )
    return tuple(rate * output_stride // 16 for rate in value)


def check_activation(value: Any, options: dict[str, Any], notes: list[str]) -> None:
    """Add to the options and notes of a network what its last activation means."""
    if value not in ACTIVATIONS:
        raise refused("activation", value, "only an activation that keeps the order of the logits can be converted")
    if value == "sigmoid":
        options["activation"] = "sigmoid"
    if value not in (None, "identity"):
        notes.append(f"theirs ends with {value}; ours returns the logits before it")


def dropout_of(stated: Config, field: str, options: Config) -> float:
    """Return the share of dropout that a field states, by default that of the options."""
    value = stated.get(field, options["dropout"])
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise refused(field, value, "give a number from 0 to 1")
    return float(value)


def expect(field: str, value: Any, wanted: Any) -> None:
    """Raise a UserError unless a field has the one value that fits the tensors."""
    if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
        raise refused(field, value, f"only {wanted!r} can be converted with these tensors")


def refused(field: str, value: Any, fix: str) -> UserError:
    """Return the error for a field of the file that has it."""
    file = PROCESSOR_FILE if field in OF_IMAGES else META if field.startswith(OF_NETWORK) else SAVED_CONFIG
    return UserError(f"{file}: {field} is {value!r:.100}; {fix}")
