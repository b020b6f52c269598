"""Count the bytes that data-parallel training sums over devices in a step, from the parameters and from the program."""

import math
import re
from typing import Any

import jax

BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_ALL_REDUCE = re.compile(r"= (\([^)]*\)|\S+) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def summed_bytes(variables: Any) -> int:
    """Return the bytes that each step must sum: one gradient, and the statistics of batch norm."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))


def all_reduced(program: str) -> tuple[int, int]:
    """Return the number of all-reduces in a compiled program (`compiled.as_text()`), and the bytes of their results on
    each device.
    """
    results = _ALL_REDUCE.findall(program)
    arrays = [array for result in results for array in _ARRAY.findall(result)]
    sizes = (BYTES[kind] * math.prod(int(side) for side in sides.split(",") if side) for kind, sides in arrays)
    return len(results), sum(sizes)
