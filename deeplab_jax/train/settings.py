"""What the sections of a config mean for the functions that training calls, and which values make no run."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.data.source import Source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.protocol import Protocol, split_section
from deeplab_jax.models.catalog import from_description
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter


def build_model(section: ConfigDict, *, num_classes: int, module: str = "") -> Segmenter:
    """Build the model that a config's `model` section describes, of parts in `config.module` too."""
    description = {"name": section.name, "num_classes": num_classes, "output_stride": section.output_stride or None}
    return from_description({**description, "options": section.options.to_dict(), "module": module})


def source_options(data: ConfigDict) -> dict[str, Any]:
    """Return what `open_source` takes from a config's `data` section."""
    return {"dir": data.dir or None, **data.options.to_dict()}


def loader_options(data: ConfigDict) -> dict[str, Any]:
    """Return what `training_batches` takes from a config's `data` section."""
    names = ("crop_size", "scale_range", "scale_step", "flip", "color_jitter", "threads", "workers")
    return {name: data[name] for name in names}


def evaluate_options(config: ConfigDict, **given: Any) -> tuple[Protocol, dict[str, Any]]:
    """Return the protocol of a config's `evaluate` section, and how `evaluate` runs it: on as many devices as train.
    What is given takes the place of the section's values.
    """
    section = {"devices": 0, **config.evaluate.to_dict(), **given}
    return split_section({**section, "devices": section["devices"] or config.train.devices})


def step_options(settings: ConfigDict) -> dict[str, Any]:
    """Return what `train_step` takes from a config's `train` section."""
    names = ("accumulate", "upsample_logits", "top_k", "aux_weight", "ema_decay", "space", "remat")
    return {"class_weights": tuple(settings.class_weights), **{name: settings[name] for name in names}}


def model_info(source: Source) -> dict[str, Any]:
    """Return the `info` of a model trained on a source."""
    return {
        "class_names": list(source.labels.names),
        "palette": [list(colour) for colour in source.labels.palette],
        "data": source.name,
    }


def check_settings(settings: ConfigDict, crop_size: Sequence[int]) -> None:
    """Raise a UserError for numbers of the `train` section, or a crop size, with which no run is possible."""
    for name in ("steps", "accumulate", "log_every", "evaluate_every", "checkpoint_every", "keep"):
        if settings[name] < 1:
            never = "; more than config.train.steps means only at the end" if name.endswith("_every") else ""
            raise UserError(f"config.train.{name}={settings[name]}: give at least 1{never}")
    for name in ("seed", "skip_nonfinite"):
        if settings[name] < 0:
            raise UserError(f"config.train.{name}={settings[name]}: give 0 or more")
    if settings.timeout <= 0:
        raise UserError(f"config.train.timeout={settings.timeout}: give seconds, more than config.data.timeout has")
    if not 0 < settings.top_k <= 1:
        raise UserError(f"config.train.top_k={settings.top_k}: give a share of the pixels, above 0 and up to 1")
    if not 0 <= settings.ema_decay < 1:
        raise UserError(f"config.train.ema_decay={settings.ema_decay}: give 0 (no average) to below 1, such as 0.999")
    if len(crop_size) != 2 or min(crop_size) < SMALLEST_SIDE:
        raise UserError(
            f"config.data.crop_size={tuple(crop_size)}: give a height and a width of at least {SMALLEST_SIDE} pixels"
        )


def check_class_weights(weights: Any, model: Segmenter) -> None:
    """Raise a UserError where the class weights are not one for each class."""
    if len(weights) not in (0, model.num_classes):
        raise UserError(
            f"config.train.class_weights has {len(weights)} values, the data has {model.num_classes} classes; give "
            "one for each"
        )
