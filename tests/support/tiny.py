"""A network that compiles in a second, and what tests of training and evaluation share.

`tiny_models` adds a backbone of two convolutions to the catalog, so that configs, the loop, the evaluator and the
command line run as they are: `cascade_tiny` is the backbone and the classifier, `deeplabv3plus_tiny` has every part.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.config import base
from deeplab_jax.data.source import Example
from deeplab_jax.labels import LabelSet, colormap
from deeplab_jax.models.architectures import ARCHITECTURES, BACKBONES, Backbone
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.layers import ConvNorm, LayerSettings
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.train.loop import train
from deeplab_jax.train.record import RECORD_FILE
from deeplab_jax.weights.folder import CHECKPOINTS

TIMES = ("train/images_per_second", "train/data_wait", "val/seconds")


class TinyBackbone(nn.Module):
    """Two convolutions: stride 4, then up to the output stride."""

    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, images: jax.Array, *, output_stride: int, train: bool) -> dict[str, tuple[jax.Array, int]]:
        if output_stride not in (4, 8, 16, 32):
            raise ValueError(f"output_stride={output_stride}: choose 4, 8, 16 or 32")
        stem = ConvNorm(8, 3, stride=4, settings=self.settings, name="stem")(images, train=train)
        deep = ConvNorm(16, 3, stride=output_stride // 4, settings=self.settings, name="deep")(stem, train=train)
        return {"conv2": (stem, 4), "conv4": (deep, output_stride), "conv5": (deep, output_stride)}


@contextmanager
def tiny_models() -> Iterator[None]:
    """Add the backbone `tiny`, on which DeepLabv3 and v3+ run, to the cascade as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", Backbone(TinyBackbone, IMAGENET, "two convolutions"))
        cascade = ARCHITECTURES["cascade"]
        more = dataclasses.replace(cascade, backbones={**cascade.backbones, "tiny": {}})
        patch.setitem(ARCHITECTURES, "cascade", more)
        yield


def tiny_config(**changes: Any) -> ConfigDict:
    """A config of six steps on five scenes of 33x33; `changes` such as `{"train.steps": 3}` replace entries."""
    config = base()
    config.model.name = "cascade_tiny"
    config.model.options = ConfigDict({"norm_momentum": 0.9})
    config.data.options = ConfigDict({"size": (33, 33), "count": 5})
    config.data.update({"crop_size": (33, 33), "threads": 2})
    config.optimizer.learning_rate = 0.1
    config.train.update(
        {"steps": 6, "batch_size": 2, "devices": 1, "log_every": 1, "evaluate_every": 3, "checkpoint_every": 3}
    )
    config.train.pictures = 1
    config.evaluate.update({"pad_to": ((33, 33),), "batch_size": 2})
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        part = config
        for word in filter(None, section.split(".")):
            part = part[word]
        part[name] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def quiet() -> Console:
    """A console that keeps what it is told."""
    return Console(quiet=True)


def run_training(workdir: Path, config: ConfigDict, **options: Any) -> Any:
    """`train` without output."""
    return train(config, workdir, console=quiet(), **options)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without those entries that depend on the clock."""
    lines = [json.loads(line) for line in (workdir / RECORD_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def read_checkpoint(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, of whatever kind of run."""
    folder = epath.Path(Checkpoints(workdir / CHECKPOINTS, read_only=True).directory / str(step))
    handler = ocp.StandardCheckpointHandler()
    trees = {name: handler.restore(folder / name) for name in ("variables", "optimizer")}
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Equal bit for bit."""
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


def make_variables(model: Segmenter, *, seed: int = 0) -> Variables:
    """Variables of a model whose predictions vary over an image."""
    side = model.fitting_side(65)
    images = np.zeros((1, side, side, model.in_channels), np.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
    # The classifier starts close to zero.
    kernel = variables["params"]["classifier"]["kernel"]
    variables["params"]["classifier"]["kernel"] = 100 * kernel
    return variables


def filled(model: Segmenter, value: float = 0) -> Variables:
    """Variables that all have one value, which no program computes."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), abstract_variables(model))


def tiny_model(
    name: str = "deeplabv3plus_tiny", *, num_classes: int = 4, **options: Any
) -> tuple[Segmenter, Variables]:
    """A model and variables; within `tiny_models`."""
    if name.startswith("deeplabv3plus"):
        options = {"aspp_channels": 4, "low_level_channels": 4, "decoder_convs": ((3, 4),), **options}
    model = create_model(name, num_classes=num_classes, **options)
    return model, make_variables(model)


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """A source of random images of given sizes (height, width), whose labels hold every class and 255."""

    sizes: tuple[tuple[int, int], ...]
    classes: int = 4
    name: str = "made up"
    names: tuple[str, ...] = ()  # of the classes

    @property
    def labels(self) -> LabelSet:
        return LabelSet(self.names or tuple(f"class {k}" for k in range(self.classes)), colormap(self.classes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng(index)
        height, width = self.sizes[index]
        # Patches of 9 pixels, so that a network sees something at its stride.
        coarse = rng.integers(0, 256, (-(-height // 9), -(-width // 9), 3), np.uint8)
        image = np.repeat(np.repeat(coarse, 9, 0), 9, 1)[:height, :width]
        label = rng.integers(0, self.classes + 1, (height, width)).astype(np.uint8)
        label[label == self.classes] = 255
        return {"image": image, "label": label, "name": self.describe(index)}

    def describe(self, index: int) -> str:
        return f"made.up.{index}"
