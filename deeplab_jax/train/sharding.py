"""Where arrays live: a mesh over the devices, batches split along it, parameters on all of them.

`jit` over arrays with a NamedSharding computes on the global batch, so that batch normalisation and the loss see all of
it, on one device or many.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplab_jax.errors import UserError


def make_mesh(devices: int = 0) -> Mesh:
    """Return a mesh with one axis, `data`, over the first `devices` devices; 0 takes all.

    Raises:
      UserError: there are not so many.
    """
    found = jax.devices()
    if not 0 <= devices <= len(found):
        raise UserError(
            f"config.train.devices={devices}: there are {len(found)}; choose 1 to {len(found)}, or 0 for all"
        )
    count = devices or len(found)
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=found[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch along its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Move this process's part of a batch (numpy leaves `[N, ...]`) to the devices as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise a UserError where a batch cannot be split evenly over micro-batches and devices."""
    parts = accumulate * mesh.size
    if batch_size < 1 or batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(
            f"config.train.batch_size={batch_size} does not split over {accumulate} micro-batches on {mesh.size} "
            f"devices; use {nearest}"
        )
