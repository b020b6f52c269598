"""What importers say of a network in the code base that an export goes to: how to build it, how to prepare images."""

from typing import Any

import numpy as np

from deeplab_jax.models.contexts.aspp import rates_at
from deeplab_jax.models.segmenter import Segmenter


def normalisation(model: Segmenter) -> str:
    """Return how the caller of such a network prepares images."""
    how = model.preprocessing
    low, high = how.value_range
    mean, std = (
        ", ".join(np.format_float_positional(value, trim="-") for value in values) for values in (how.mean, how.std)
    )
    bands = f"bands {', '.join(map(str, how.channels))} (from 0) of a file as " if how.channels else ""
    stored = (
        f", which stored values of {how.stored_range[0]} to {how.stored_range[1]} become" if how.stored_range else ""
    )
    return f"{bands}images of {low:g} to {high:g}{stored}, minus the mean ({mean}), divided by ({std})"


def rates_of(model: Segmenter) -> tuple[int, ...]:
    """Return the rates at the model's output stride, which is how others state them."""
    return rates_at(option_of(model, "aspp_rates"), model.output_stride)


def option_of(model: Segmenter, name: str) -> Any:
    """Return an option of a part as it is in the network, given or by default; None if no part has it."""
    parts = (model.backbone, model.context, model.decoder)
    return next((getattr(part, name) for part in parts if hasattr(part, name)), None)


def spelt(arguments: dict[str, Any]) -> str:
    """Return arguments as Python writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
