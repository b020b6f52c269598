"""The programs of training, evaluation and prediction, lowered for devices that need not be there."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from deeplab_jax.analysis.compiled import argument_bytes
from deeplab_jax.evaluate.counts import counted
from deeplab_jax.evaluate.inference import jitted_classes, jitted_classes_and_counts
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.evaluate.windows import Size
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.batches import abstract_batch
from deeplab_jax.train.from_config import build_mesh, build_optimizer, build_step, evaluate_options
from deeplab_jax.train.program import build_program
from deeplab_jax.train.sharding import replicated
from deeplab_jax.train.state import abstract_state


class Lowered(NamedTuple):
    """A program that XLA can compile.

    Attributes:
      lowered: of `jax.jit(...).lower(...)`.
      arguments: bytes on each device by kind.
      about: what the program is, JSON: its kind, the images of a call, their size and the number of devices.
    """

    lowered: Any
    arguments: Mapping[str, int]
    about: dict[str, Any]


def lower_training(config: ConfigDict, model: Segmenter, devices: Sequence[Any]) -> Lowered:
    """Return the step of `train` on these devices.

    Raises:
      UserError: the batch or its crops do not split over the devices.
    """
    mesh = build_mesh(config, model, among=devices)
    optimizer, _ = build_optimizer(config, model)
    program = build_program(config, model, mesh, optimizer, build_step(config, model, optimizer))
    state, batch = abstract_state(program.initial, program.shardings), abstract_batch(config, model, mesh)
    kinds = {
        "parameters": state.params,
        "batch statistics": state.batch_stats,
        "optimizer": state.opt_state,
        "average": state.ema_params,
        "batch": batch,
    }
    about = {
        "kind": "training",
        "images": config.train.batch_size,
        "size": list(config.data.crop_size),
        "devices": mesh.size,
    }
    return Lowered(program.step.lower(state, batch), _bytes(kinds), about)


def lower_evaluation(config: ConfigDict, model: Segmenter, devices: Sequence[Any]) -> Lowered:
    """Return the classes and the counts of one padded batch on the devices of one process, which each have
    their own images. A CRF is left out. With a window, it is that of images that are as large as the window.
    """
    protocol, how = evaluate_options(config)
    height, width = protocol.window or max(
        protocol.pad_to, key=prod, default=protocol.run_size(tuple(config.data.crop_size))
    )
    first = [device for device in devices if device.process_index == devices[0].process_index]
    used = first[: config.evaluate.devices or config.train.devices or len(first)]
    return _lower_inference(model, protocol, how["batch_size"] * len(used), (height, width), used, labels=True)


def lower_prediction(model: Segmenter, size: Size, device: Any, *, images: int = 1) -> Lowered:
    """Return the classes of images of a size on one device, as `predict` computes them with its defaults."""
    protocol = Protocol()
    return _lower_inference(model, protocol, images, protocol.run_size(size), [device], labels=False)


def _lower_inference(
    model: Segmenter, protocol: Protocol, images: int, size: Size, devices: Sequence[Any], *, labels: bool
) -> Lowered:
    mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
    model, variables = _folded(protocol.at_stride(model), mesh)
    batch = _batch(model, images, size, mesh, labels=labels)
    if labels:
        lowered = jitted_classes_and_counts.lower(
            model, variables, *batch, protocol.views, protocol.threshold, counted(protocol)
        )
    else:
        lowered = jitted_classes.lower(model, variables, *batch, protocol.views, protocol.threshold)
    kinds = {"parameters": variables["params"], "batch statistics": variables.get("batch_stats"), "batch": batch}
    about = {
        "kind": "evaluation" if labels else "prediction",
        "images": images,
        "size": list(size),
        "devices": len(devices),
    }
    return Lowered(lowered, _bytes(kinds), about)


def _folded(model: Segmenter, mesh: Mesh) -> tuple[Segmenter, Any]:
    """Return a model without its batch norms, and the shapes of its variables on every device."""
    folded: list[Segmenter] = []

    def fold(variables: Any) -> Any:
        small, variables = fold_norm(model, variables)
        folded.append(small)
        return variables

    shapes = jax.eval_shape(fold, abstract_variables(model))
    place = replicated(mesh)
    return folded[0], jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def _batch(model: Segmenter, images: int, size: Size, mesh: Mesh, *, labels: bool) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of images, their labels if wanted, and their sizes, split over the devices."""
    place = NamedSharding(mesh, PartitionSpec("data"))
    shapes: list[tuple[tuple[int, ...], Any]] = [((images, *size, model.in_channels), model.preprocessing.stored_as)]
    shapes += [((images, *size, *model.label_axes), jnp.uint8)] if labels else []
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in (*shapes, ((images, 2), jnp.int32))]


def _bytes(kinds: Mapping[str, Any]) -> dict[str, int]:
    return {kind: total for kind, arrays in kinds.items() if (total := argument_bytes(arrays))}
