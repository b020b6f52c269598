"""The networks of the notebooks, trained on the generated scenes. Each takes two or three minutes on two CPU cores.

A second execution reads the trained networks from their run directories. A training that was interrupted goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.config import load_config
from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.tasks.training import train
from deeplab_jax.train.record import RECORD_FILE, records
from deeplab_jax.weights.folder import load
from experiments.notebooks.extent import Extent, extent
from experiments.outcomes.files import training_records

# A backbone that ends with conv3 has a receptive field of 99 pixels, which is smaller than the pictures. The pyramid's
# rates at output stride 8 are 4, 8, 12 and 18, on maps of 17x17 samples. With 4 most taps lie on the map, and with 18
# all outer taps lie beyond it. In these pictures only a lamp tells road from water.
_PYRAMID: Mapping[str, Any] = {"last_stage": "conv3", "aspp_rates": (2, 4, 6, 9)}
_BEYOND_THE_MAP: Mapping[str, Any] = {"last_stage": "conv3", "aspp_rates": (9,)}
_NO_POOLING: Mapping[str, Any] = {"image_pooling": False}
# The papers' rates 6, 12 and 18 are for maps of 33x33 samples; at output stride 16 these pictures give 9x9.
_RATES: Mapping[str, Any] = {"aspp_rates": (2, 4, 6)}


@dataclass(frozen=True)
class Training:
    """A network as changes to `configs/scenes.py`: the model's name, its options, its output stride (0: the model's
    default), and the lamp of the scenes.
    """

    model: str
    options: Mapping[str, Any]
    output_stride: int = 0
    lamp: str = "none"


TRAININGS: dict[str, Training] = {
    "pyramid": Training("deeplabv3_resnet18", _PYRAMID, 8, "on"),
    "pyramid_without_pooling": Training("deeplabv3_resnet18", {**_PYRAMID, **_NO_POOLING}, 8, "on"),
    "beyond_the_map": Training("deeplabv3_resnet18", _BEYOND_THE_MAP, 8, "on"),
    "beyond_the_map_without_pooling": Training("deeplabv3_resnet18", {**_BEYOND_THE_MAP, **_NO_POOLING}, 8, "on"),
    "deeplabv3": Training("deeplabv3_resnet18", _RATES),
    "deeplabv3plus": Training("deeplabv3plus_resnet18", _RATES),
}


def config_of(name: str, size: Extent) -> ConfigDict:
    """Return the configuration of a training."""
    training = TRAININGS[name]
    config = load_config([f"--config=configs/scenes.py:model={training.model},size={size.side}"])
    config.model.output_stride = training.output_stride
    with config.model.options.unlocked():
        config.model.options.update({**training.options, "width": size.width})
    config.data.options.update({"count": size.pictures, "lamp": training.lamp})
    config.train.update({"devices": 1, "steps": size.steps})
    return config


def trained(name: str) -> tuple[Segmenter, Variables]:
    """Return a network of `TRAININGS` and its weights, and print a line about its training. It is trained first where
    it has not been trained yet.
    """
    size = extent()
    config, workdir = config_of(name, size), size.runs / name
    train(config, workdir, console=Console(quiet=True))
    model, variables, info = load(workdir, checkpoint="newest")
    batch = config.train.batch_size
    # The median, since other programs may have slowed a part of the training. A logged 0 means "not measured".
    speeds = (record["train/images_per_second"] for record in training_records(records(workdir / RECORD_FILE)))
    speed = median(speed for speed in speeds if speed)
    print(
        f"{name}: {config.model.name} at output stride {model.output_stride}, {info['step']} steps of {batch} pictures "
        f"of {size.side}x{size.side}, {info['step'] * batch / speed:.0f} s at {speed:.0f} pictures/s; "
        f"validation mIoU {100 * info['metrics']['miou']:.1f}%"
    )
    return model, variables


def evaluated(
    model: Segmenter,
    variables: Variables,
    *,
    large: bool = False,
    lamp: str = "none",
    output_stride: int = 0,
    **protocol: Any,
) -> Results:
    """Evaluate on validation scenes with the side of the training, or on `large` ones. `lamp` is that of the scenes.
    `protocol` has fields of `Protocol`.
    """
    size = extent()
    side, count = (size.large_side, size.evaluated // 4) if large else (size.side, size.evaluated)
    source = Scenes("val", size=(side, side), count=count, lamp=lamp)
    return evaluate(
        model,
        variables,
        source,
        Protocol(pad_to=((side, side),), output_stride=output_stride, **protocol),
        batch_size=min(8, count),
    )
