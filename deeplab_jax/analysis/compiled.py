"""What a compiled program needs of each device: memory, operations, and the time that XLA's estimates come to.

Times are estimates of one version of the compiler. They are no measurements: they leave out the time that
the chips wait for each other, and the host. They compare two forms of one program.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from deeplab_jax.analysis.program_text import COLLECTIVES, ProgramText, read_program, result_bytes
from deeplab_jax.analysis.targets import Chip

PADDING, RESULTS, TEMPORARIES, CODE = "padding of arrays", "results", "temporaries", "code"


@dataclass(frozen=True)
class Compiled:
    """What a program needs of each device.

    Attributes:
      memory: bytes by kind: those of `argument_bytes`, what the arrays' layouts add, results that take no argument's
        place, temporaries (activations and gradients), code.
      flops: operations that XLA counts; a multiply-add is two.
      bytes_accessed: bytes that XLA counts between its operations.
      collectives: number and bytes of the results, by kind.
      cycles_by_kind, cycles_by_layer: cycles that XLA estimates; both empty where it gives none. Only TPUs' does.
    """

    memory: Mapping[str, int]
    flops: float
    bytes_accessed: float
    collectives: Mapping[str, Mapping[str, int]]
    cycles_by_kind: Mapping[str, int]
    cycles_by_layer: Mapping[str, int]

    @property
    def total_memory(self) -> int:
        """Bytes of each device."""
        return sum(self.memory.values())

    @property
    def cycles(self) -> int:
        """Cycles that XLA estimates, in all; 0 where it gives none."""
        return sum(self.cycles_by_kind.values())

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Return the seconds that the operations, the bytes and the estimated cycles take, each alone."""
        found = {"flops": self.flops / chip.flops, "bytes": self.bytes_accessed / chip.bandwidth}
        return {**found, "cycles": self.cycles / chip.clock} if self.cycles else found

    def to_json(self) -> dict[str, Any]:
        """Return all of it, and the sums."""
        return {**asdict(self), "total_memory": self.total_memory, "cycles": self.cycles}


def read_compiled(compiled: Any, arguments: Mapping[str, int]) -> Compiled:
    """Return what a program needs.

    Args:
      compiled: of `jax.jit(...).lower(...).compile()`.
      arguments: bytes on each device by kind; see `argument_bytes`.
    """
    text, costs = read_program(compiled.as_text()), compiled.cost_analysis() or {}
    return Compiled(
        memory=memory_by_kind(compiled.memory_analysis(), arguments),
        flops=float(costs.get("flops", 0)),
        bytes_accessed=float(costs.get("bytes accessed", 0)),
        collectives=count_collectives(text),
        cycles_by_kind=sum_cycles(text, text.kind),
        cycles_by_layer=sum_cycles(text, text.layer),
    )


def memory_by_kind(stats: Any, arguments: Mapping[str, int]) -> dict[str, int]:
    """Return bytes by kind from a program's `memory_analysis()`."""
    return {
        **arguments,
        PADDING: max(0, stats.argument_size_in_bytes - sum(arguments.values())),
        RESULTS: max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes),
        TEMPORARIES: stats.temp_size_in_bytes,
        CODE: stats.generated_code_size_in_bytes,
    }


def argument_bytes(arrays: Any) -> int:
    """Return the bytes on each device of a tree of `ShapeDtypeStruct` with a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)
    )


def count_collectives(text: ProgramText) -> dict[str, dict[str, int]]:
    """Return how many collectives run, and the bytes of their results on each device, by kind."""
    found: dict[str, dict[str, int]] = {}
    for one, times in text.runs:
        for part in [] if one.opcode.endswith(("-done", "-update")) else text.inside(one):
            kind = part.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                tally = found.setdefault(kind, {"count": 0, "bytes": 0})
                tally["count"] += times
                tally["bytes"] += times * result_bytes(part)
    return found


def sum_cycles(text: ProgramText, key: Callable[[Any], str]) -> dict[str, int]:
    """Return the estimated cycles by what `key` says of an instruction, the most first."""
    sums: Counter[str] = Counter()
    for one, times in text.runs:
        if one.cycles:
            sums[key(one)] += one.cycles * times
    return dict(sums.most_common())
