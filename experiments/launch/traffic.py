"""Bytes that data-parallel training sums over devices in a step: as the parameters say, and as the program does."""

import math
import re
from typing import Any

import jax

BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_ALL_REDUCE = re.compile(r"= (\([^)]*\)|\S+) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def summed_bytes(variables: Any) -> int:
    """Return the bytes of what has to be summed once: the gradient, and the statistics of batch norm."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))


def all_reduced_bytes(program: str) -> int:
    """Return the bytes that the all-reduces of a compiled program (`compiled.as_text()`) put out on each device."""
    arrays = [array for result in _ALL_REDUCE.findall(program) for array in _ARRAY.findall(result)]
    return sum(BYTES[kind] * math.prod(int(side) for side in sides.split(",") if side) for kind, sides in arrays)
