"""Run a failed step again, and look at every tensor on its way."""

import dataclasses
import itertools
import math
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.config import read_config
from deeplab_jax.data.image_files import LIMIT, MAX_BYTES, MAX_PIXELS
from deeplab_jax.errors import UserError, kind_and_text
from deeplab_jax.train.faults import describe_failure
from deeplab_jax.train.from_config import build_optimizer, build_step
from deeplab_jax.train.given import require_named
from deeplab_jax.train.program import build_program
from deeplab_jax.train.run import BATCH_FILE
from deeplab_jax.train.sharding import check_batch_size, check_crop_size, make_mesh, place_batch
from deeplab_jax.train.state import restore
from deeplab_jax.train.step import mean_gradient
from deeplab_jax.train.workdir import CONFIG_FILE
from deeplab_jax.weights.folder import CHECKPOINTS, read_description


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a step: its root mean square, its largest absolute value, and how many values are not finite."""

    kind: str  # "before" (parameters and statistics), "output" (of a layer), "gradient"
    name: str
    rms: float
    largest: float
    not_finite: int

    def __str__(self) -> str:
        note = f"  {self.not_finite} not finite" if self.not_finite else ""
        return f"{self.kind:8}  rms {self.rms:10.3e}  largest {self.largest:10.3e}  {self.name}{note}"


@dataclasses.dataclass(frozen=True)
class Replay:
    """A replayed step: a line about it, and its tensors in the order of computation."""

    summary: str
    tensors: tuple[Tensor, ...]

    @property
    def first_not_finite(self) -> Tensor | None:
        """The first tensor that is not finite, or None if the step is finite this time."""
        return next((tensor for tensor in self.tensors if tensor.not_finite), None)


def replay(folder: str | Path) -> Replay:
    """Run the step of a post-mortem again, from the same state on the same batch. Use as many devices as training
    would, if they exist here and the batch splits over them.

    Raises:
      UserError: the folder is not a post-mortem.
    """
    folder = Path(folder)
    batch = read_batch(folder / BATCH_FILE)
    config = read_config(folder / CONFIG_FILE)
    require_named(
        config, "model", "loss", "optimizer", "schedule", fix="only what a configuration names can be replayed"
    )
    model, _ = read_description(folder)
    model.preprocessing.check(batch["image"], name=str(folder / BATCH_FILE))
    size, t = tuple(config.data.crop_size), config.train
    if (found := batch["label"].shape) != (expected := (t.batch_size, *size, *model.label_axes)):
        raise UserError(
            f"{folder / BATCH_FILE}: labels {found}, and {CONFIG_FILE} beside it says {expected}; give a postmortem/ "
            "folder as it was written"
        )
    mesh = make_mesh(_fitting_devices(t.devices, t.batch_size // t.accumulate))
    check_batch_size(t.batch_size, t.accumulate, mesh)
    check_crop_size(size, model, mesh)

    optimizer, _ = build_optimizer(config, model)
    step = build_step(config, model, optimizer)
    initial, shardings, _ = build_program(config, model, mesh, optimizer, step)
    shared = {name: step.keywords[name] for name in ("objective", "key", "accumulate")}
    checkpoints = Checkpoints(folder / CHECKPOINTS, read_only=True)
    before = checkpoints.find("newest")
    state = restore(checkpoints, before, initial, shardings)
    rows: dict[int, tuple[str, np.ndarray]] = {}
    with nn.intercept_methods(partial(_tap, rows, itertools.count())):
        gradient, _, metrics = jax.jit(partial(mean_gradient, **shared))(state, place_batch(batch, mesh))
        jax.block_until_ready(metrics)
        jax.effects_barrier()
    tensors = [
        *_leaves("before", {"params": state.params, "batch_stats": state.batch_stats}),
        *(_tensor("output", name, values) for _, (name, values) in sorted(rows.items())),
        *_leaves("gradient", gradient),
    ]
    return Replay(describe_failure(before + 1, metrics), tuple(tensors))


def _tap(
    rows: dict[int, tuple[str, np.ndarray]], order: Iterator[int], call: Any, args: Any, kwargs: Any, context: Any
) -> Any:
    """Measure the output of a layer wherever the program runs it; `order` counts layers as they are traced."""
    output = call(*args, **kwargs)
    first = output[0] if isinstance(output, tuple) else output  # Units of backbones return a second map.
    if context.method_name == "__call__" and isinstance(first, jax.Array):
        index, name = next(order), "/".join(context.module.path)

        def store(values: np.ndarray) -> None:
            seen = rows.get(index, (name, values))[1]  # The worst of several micro-batches.
            rows[index] = name, np.maximum(seen, values)

        jax.debug.callback(store, _measure(first))
    return output


def _measure(x: jax.Array) -> jax.Array:
    """Return root mean square, largest absolute value and the count of values that are not finite, float32 `[3]`."""
    x = x.astype(jnp.float32)
    bad = jnp.sum(~jnp.isfinite(x), dtype=jnp.float32)
    return jnp.stack([jnp.sqrt(jnp.mean(x * x)), jnp.max(jnp.abs(x)), bad])


def _tensor(kind: str, name: str, values: Any) -> Tensor:
    rms, largest, bad = np.asarray(values).tolist()
    return Tensor(kind, name, rms, largest, int(bad))


def _leaves(kind: str, tree: Any) -> list[Tensor]:
    measured = jax.jit(lambda tree: jax.tree.map(_measure, tree))(tree)
    return [_tensor(kind, name, values) for name, values in flatten_dict(measured, sep="/").items()]


def _fitting_devices(wanted: int, images: int) -> int:
    """Return the largest number of devices that divides `images`, at most `wanted` (0: any) and those here."""
    here = jax.device_count()
    return max(n for n in range(1, min(wanted or here, here) + 1) if images % n == 0)


def read_batch(file: Path) -> dict[str, np.ndarray]:
    """Read the batch of a post-mortem: `image` uint8 or float32 `[N, H, W, C]`, `label` uint8 `[N, H, W]`, or
    `[N, H, W, K]` where a pixel can have several labels.

    Raises:
      UserError: the batch cannot be read, or is of another form.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError("not a regular file")
        with zipfile.ZipFile(file) as archive:
            image = _read_array(archive, "image", (4,), (np.uint8, np.float32))
            label = _read_array(archive, "label", (3, 4), (np.uint8,))
        if image.shape[:3] != label.shape[:3]:
            raise ValueError(f"image {image.shape}, label {label.shape}")
        return {"image": image, "label": label}
    except Exception as error:  # `zipfile` raises almost every built-in exception on damaged files.
        raise UserError(
            f"{file}: no batch to replay ({kind_and_text(error):.200}); give the postmortem/ folder of a run directory"
        ) from None


def _read_array(archive: zipfile.ZipFile, name: str, axes: tuple[int, ...], dtypes: tuple[Any, ...]) -> np.ndarray:
    """Read an array of such axes and dtypes from an `.npz` file; its shape is checked before memory is taken for it."""
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(stream)
        if version != (1, 0) or transposed or dtype not in dtypes:
            raise ValueError(f"{name} is {dtype}, not as numpy.savez writes it")
        if len(shape) not in axes or min(shape, default=0) < 1:
            raise ValueError(f"{name} is {shape}")
        if math.prod(shape[:3]) > MAX_PIXELS or math.prod(shape) * dtype.itemsize > MAX_BYTES:
            raise ValueError(f"{name} is {shape}, and {MAX_PIXELS} pixels are the limit; {LIMIT} sets another")
        return np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
