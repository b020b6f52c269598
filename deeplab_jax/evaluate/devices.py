"""The devices of one process in an evaluation: each runs images of its own, so that no number depends on how many."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax.errors import UserError

Devices = Sequence[jax.Device]


def local_devices(count: int) -> Devices:
    """Return the first `count` devices of this process; 0: all.

    Raises:
      UserError: there are not so many.
    """
    found = jax.local_devices()
    if not 0 <= count <= len(found):
        raise UserError(
            f"config.evaluate.devices={count}: there are {len(found)}; choose 1 to {len(found)}, or 0 for all"
        )
    return found[: count or len(found)]


def copy_to(devices: Devices, variables: Any) -> Any:
    """Copy arrays, whole on some device of this process, to every one of the devices."""
    return jax.device_put(jax.tree.map(_own, variables), _sharding(devices, PartitionSpec()))


def split_over(devices: Devices, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Split arrays along their first axis over the devices."""
    return jax.device_put(arrays, _sharding(devices, PartitionSpec("data")))


def _own(array: Any) -> Any:
    return array.addressable_data(0) if isinstance(array, jax.Array) else array


def _sharding(devices: Devices, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(devices), ("data",)), spec)
