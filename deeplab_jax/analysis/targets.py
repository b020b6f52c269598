"""The accelerators that a program can be compiled for, and the devices that stand for them.

XLA compiles for TPUs without one: the package `libtpu` holds the compiler, and a topology describes the chips.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from math import prod
from typing import Any

import jax

from deeplab_jax.errors import UserError, did_you_mean

LARGEST_SLICE = 4096  # chips


@dataclass(frozen=True)
class Chip:
    """One chip of a TPU.

    Attributes:
      hbm_gib: memory that XLA lets a program use. It is a little less than the chip has.
      flops: bfloat16 operations a second; a multiply-add is two.
      bandwidth: bytes a second between the chip and its memory.
      flops_per_cycle: bfloat16 operations a cycle, by its matrix units.
      sides: number of sides of a slice, 2 or 3.
      chips_a_host: along three sides, of a host with several.
      chip_config: of `get_topology_desc`; with "megacore" both cores of a chip are one device.
    """

    hbm_gib: float
    flops: float
    bandwidth: float
    flops_per_cycle: int
    sides: int
    chips_a_host: tuple[int, int, int] = (2, 2, 1)
    chip_config: str = "default"

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.flops / self.flops_per_cycle


# FLOP/s and bytes/s: https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. FLOPs a cycle: matrix units by sides, such
# as 4 x 128 x 128 x 2 of a v5e; with XLA's cycles, a product of two 4096 x 4096 matrices does 87 to 97% of that.
# Memory: what libtpu 0.0.50 names where a program is too large ("exceeds available HBM").
CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 8 * 128 * 128 * 2, sides=3, chip_config="megacore"),
    "v5e": Chip(15.75, 197e12, 819e9, 4 * 128 * 128 * 2, sides=2),
    "v5p": Chip(95.73, 459e12, 2765e9, 8 * 128 * 128 * 2, sides=3),
    "v6e": Chip(31.24, 918e12, 1640e9, 4 * 256 * 256 * 2, sides=2),
}
HERE = ("cpu", "gpu")


@dataclass(frozen=True)
class Target:
    """Where a program is to run.

    Attributes:
      name: as the user wrote it, such as "v5e:2x2" or "cpu".
      shape: chips along each side of a slice; () for the devices of this machine.
    """

    name: str
    shape: tuple[int, ...] = ()

    @property
    def chip(self) -> Chip | None:
        """The chip; None for devices of this machine."""
        return CHIPS[self.name.split(":")[0]] if self.shape else None


def parse_target(text: str) -> Target:
    """Return the target that a text such as `v5e:4x4`, `v4:2x2x1`, `cpu` or `gpu` names.

    Raises:
      UserError: there is no such target.
    """
    if text in HERE:
        return Target(text)
    kind, _, sides = text.partition(":")
    if kind not in CHIPS:
        raise UserError(
            f"--target {text}: {did_you_mean(text, (*(f'{name}:{_example(name)}' for name in CHIPS), *HERE))}"
        )
    shape = tuple(int(side) for side in sides.split("x")) if re.fullmatch(r"\d{1,4}(x\d{1,4})*", sides) else ()
    chip = CHIPS[kind]
    if len(shape) != chip.sides or not 1 <= prod(shape) <= LARGEST_SLICE or _bounds(chip, shape) is None:
        raise UserError(
            f"--target {text}: a slice of {kind} has {chip.sides} sides, one chip alone or even sides, and at most "
            f"{LARGEST_SLICE} chips; give {kind}:{_example(kind, one=True)}, {kind}:{_example(kind)} or "
            f"{kind}:{'x'.join(['4'] * chip.sides)}"
        )
    return Target(text, shape)


def devices_of(target: Target) -> Sequence[Any]:
    """Return the devices of a target: those of this machine, or stand-ins for the chips of a slice.

    Raises:
      UserError: the target needs a package or a device that is not there.
    """
    if target.chip is None:
        try:
            return jax.devices(target.name)
        except RuntimeError:
            raise UserError(f"--target {target.name}: JAX sees no such device here; give --target v5e:2x2") from None
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--target {target.name}: the package libtpu is missing, which compiles for TPUs; install it: "
            "pip install 'deeplab_jax[tpu-compile]'"
        )
    from jax.experimental import topologies

    # Before libtpu starts: it would look for a TPU, and for the server that describes a machine with one.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    kind = target.name.split(":")[0]
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{kind}:{'x'.join(map(str, target.shape))}",
            chips_per_host_bounds=_bounds(target.chip, target.shape),
            chip_config_name=target.chip.chip_config,
        )
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--target {target.name}: libtpu refuses it ({first}); give {kind}:{_example(kind)}") from None
    return found.devices


def start_without_accelerator(target: Target) -> None:
    """Keep JAX from starting the accelerators of this machine. It has no effect once JAX has started."""
    if target.name != "gpu":
        jax.config.update("jax_platforms", "cpu")


def compiler_version(target: Target) -> str:
    """Return the version of the compiler for a target."""
    package = "libtpu" if target.chip else "jaxlib"
    return f"{package} {metadata.version(package)}"


def _bounds(chip: Chip, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return the chips of a host along three sides; None where the slice does not divide into hosts."""
    whole = (*shape, 1, 1)[:3]
    if whole == (1, 1, 1):
        return whole
    host = chip.chips_a_host
    return host if all(side % part == 0 for side, part in zip(whole, host, strict=True)) else None


def _example(kind: str, *, one: bool = False) -> str:
    sides = CHIPS[kind].sides
    return "x".join((["1"] if one else ["2", "2"] + ["1"] * (sides - 2)) * (sides if one else 1))
