"""The programs of a configuration, as training, evaluation and prediction jit them, and their lowering for devices that
need not be there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from deeplab_jax.analysis.compiled import argument_bytes
from deeplab_jax.evaluate.counts import count, wanted
from deeplab_jax.evaluate.inference import predict, predict_classes
from deeplab_jax.evaluate.protocol import Protocol, Size
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.batches import abstract_batch
from deeplab_jax.train.faults import Step
from deeplab_jax.train.from_config import build_mesh, build_optimizer, build_step, evaluate_options
from deeplab_jax.train.sharding import replicated, state_shardings
from deeplab_jax.train.state import TrainState, abstract_state, create_state

# By default XLA's schedule for a CPU runs early what depends on the parameters alone, and keeps a copy of every kernel
# until the gradient needs it. This one keeps less (18% for CamVid, 37% for ResNet-101), and a step takes 2% longer.
LITTLE_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class Program(NamedTuple):
    """The training program of a configuration.

    Attributes:
      initial: `create_state` of the model and the optimizer.
      shardings: the place of each array of the state.
      step: the jitted step of (state, batch), which takes the state's memory.
    """

    initial: Callable[..., TrainState]
    shardings: TrainState
    step: Any


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


def build_program(
    config: ConfigDict, model: Segmenter, mesh: Mesh, optimizer: optax.GradientTransformation, step: Step
) -> Program:
    """Return the program that `train` runs; `step` is from `build_step`."""
    size, ema = tuple(config.data.crop_size), config.train.ema_decay > 0
    initial = partial(create_state, model=model, optimizer=optimizer, size=size, ema=ema)
    state = jax.eval_shape(initial, jax.random.key(0))
    shardings = state_shardings(state, mesh, split=config.train.shard_state)
    jitted = jit_step(step, mesh.devices.flat[0], out_shardings=(shardings, replicated(mesh)))
    return Program(initial, shardings, jitted)


def jit_step(step: Step, device: Any, **how: Any) -> Any:
    """Return `jax.jit(step, **how)` for devices of this kind; it takes the memory of the state that it is given."""
    on_cpu = device.platform == "cpu"
    return jax.jit(step, donate_argnums=0, compiler_options=LITTLE_MEMORY if on_cpu else None, **how)


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
    protocol = dataclasses.replace(protocol, window=(), crf=False)
    folded: list[Segmenter] = []

    def fold(variables: Any) -> Any:
        small, variables = fold_norm(protocol.at_stride(model), variables)
        folded.append(small)
        return variables

    mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(fold, abstract_variables(protocol.at_stride(model))),
    )
    batch = {
        "images": jax.ShapeDtypeStruct(
            (images, *size, model.in_channels), model.preprocessing.stored_as, sharding=split
        ),
        "sizes": jax.ShapeDtypeStruct((images, 2), jnp.int32, sharding=split),
    }
    if labels:
        batch["labels"] = jax.ShapeDtypeStruct((images, *size, *model.label_axes), jnp.uint8, sharding=split)

    def run(variables: Any, batch: Any) -> Any:
        seen = folded[0], variables, batch["images"], batch["sizes"], protocol
        if not labels:
            return predict_classes(*seen)
        classes, probabilities = predict(*seen)
        return classes, count(model, batch["labels"], classes, probabilities, wanted=wanted(protocol))

    kinds = {"parameters": variables["params"], "batch statistics": variables.get("batch_stats"), "batch": batch}
    about = {
        "kind": "evaluation" if labels else "prediction",
        "images": images,
        "size": list(size),
        "devices": len(devices),
    }
    return Lowered(jax.jit(run).lower(variables, batch), _bytes(kinds), about)


def _bytes(kinds: Mapping[str, Any]) -> dict[str, int]:
    return {kind: total for kind, arrays in kinds.items() if (total := argument_bytes(arrays))}
