"""The place of arrays: a mesh over the devices of all processes, and each device's part of batches and state.

`jit` over arrays with a NamedSharding computes on the global batch, so batch normalisation and the loss read all of it,
on one device or many. Along the axis `data` devices hold different images, along `space` different rows of the same
images. XLA exchanges the neighbours' rows that a convolution reads.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplab_jax.errors import UserError
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter

DATA, SPACE = "data", "space"


def make_mesh(devices: int = 0, space: int = 1, *, among: Sequence[Any] = ()) -> Mesh:
    """Return a mesh of `devices` / `space` by `space` devices, with the axes `data` and `space`.

    Args:
      devices: how many, from the first; 0 takes all.
      space: how many devices share the rows of an image.
      among: devices to take them from, such as those of a topology; empty: all that there are.

    Raises:
      UserError: there are not so many devices, they do not divide, or several processes would not use all of theirs.
    """
    found = list(among) or jax.devices()
    processes = len({device.process_index for device in found})
    if not 0 <= devices <= len(found):
        raise UserError(
            f"config.train.devices={devices}: there are {len(found)}; choose 1 to {len(found)}, or 0 for all"
        )
    count = devices or len(found)
    if processes > 1 and count < len(found):
        raise UserError(f"config.train.devices={devices}: several processes use all of their devices; give 0")
    here = count // processes
    if space < 1 or here % space:
        fitting = [n for n in range(1, here + 1) if here % n == 0]
        raise UserError(
            f"config.train.space={space}: an image is split over devices of one process; choose from "
            f"{', '.join(map(str, fitting))}"
        )
    shape, axes, types = (count // space, space), (DATA, SPACE), (AxisType.Auto, AxisType.Auto)
    if space == 1:
        return jax.make_mesh(shape, axes, axis_types=types, devices=found[:count])
    # `jax.make_mesh` would let an image lie on devices of two processes, or find no place for such a mesh.
    by_process = sorted(found[:count], key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(by_process).reshape(shape), axes, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, *, split: bool) -> Any:
    """Return the place of each array of a training state, as a tree with the same structure.

    Args:
      state: arrays or their shapes.
      mesh: mesh of the run.
      split: whether each array is split over `data`, along its largest axis that divides. Then optimizer state and
        parameters take only a share of each device's memory, and XLA gathers parameters where a layer needs them.
        Otherwise every device holds all of them.
    """

    def of(leaf: Any) -> NamedSharding:
        parts = mesh.shape[DATA]
        fitting = [axis for axis, size in enumerate(leaf.shape) if size and size % parts == 0]
        if not split or not fitting:
            return replicated(mesh)
        largest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, DATA))

    return jax.tree.map(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: images over `data`, their rows over `space`."""
    return NamedSharding(mesh, PartitionSpec(DATA, SPACE))


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Return the indices of a batch's images on the devices of this process, ascending."""
    held = NamedSharding(mesh, PartitionSpec(DATA)).addressable_devices_indices_map((batch_size,))
    return sorted({row for part in held.values() if part is not None for row in range(*part[0].indices(batch_size))})


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Move this process's part of a batch (numpy leaves `[N, H, ...]`) to the devices as global arrays."""
    sharding = batch_sharding(mesh)

    def place(part: Any) -> jax.Array:
        part = np.asarray(part)
        shape = (len(part) * jax.process_count(), *part.shape[1:])
        return jax.make_array_from_process_local_data(sharding, part, shape)

    return jax.tree.map(place, batch)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise a UserError if a batch does not split evenly over micro-batches and devices."""
    devices = mesh.shape[DATA]
    parts = accumulate * devices
    if batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(
            f"config.train.batch_size={batch_size} does not split over {accumulate} micro-batches on {devices} "
            f"devices; use {nearest}"
        )


def check_crop_size(crop_size: Sequence[int], model: Segmenter, mesh: Mesh) -> None:
    """Raise a UserError if the crops are too small for any network, or do not split by rows so that every map splits
    too.
    """
    output_stride = model.output_stride
    start = f"config.data.crop_size={tuple(crop_size)}"
    if len(crop_size) != 2 or min(crop_size) < SMALLEST_SIDE:
        raise UserError(f"{start}: give a height and a width of at least {SMALLEST_SIDE} pixels")
    space, (height, width) = mesh.shape[SPACE], crop_size
    if space > 1 and model.valid:
        raise UserError(
            f"config.train.space={space}: the maps of a network without padding do not split by rows; set it to 1"
        )
    parts = space * output_stride
    if space > 1 and height % parts:
        nearest = max(-(-SMALLEST_SIDE // parts), round(height / parts)) * parts
        raise UserError(
            f"{start}: {height} rows do not split over {space} devices at output stride {output_stride}; use "
            f"{(nearest, width)}"
        )
