"""What a fuzzing case is, and the families that make them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Damage = Callable[[random.Random], bytes]


class Case(NamedTuple):
    """A command line whose files are damaged.

    Attributes:
      words: of the command line.
      inputs: how many damaged files it reads.
      program: whose `main` it is, one of `PROGRAMS`.
    """

    words: list[str]
    inputs: int = 1
    program: str = "deeplab_jax"


class Family(NamedTuple):
    """Cases of one kind.

    Attributes:
      seeds: makes, once for each process, what the cases damage; returns what `make` takes first.
      make: `make(seeds, folder, rng)` writes damaged files into an empty folder. The same generator gives the same.
      share: of all damaged files, in percent.
      alone: whether a process of its own can run it: it needs no network of `tests.tiny`.
    """

    seeds: Callable[[Path], object]
    make: Callable[..., Case]
    share: float
    alone: bool = True


# Where `main` of each program stands.
PROGRAMS = {
    "deeplab_jax": "deeplab_jax.__main__",
    "report": "experiments.report.__main__",
    "tables": "experiments.run",
    "benchmarks": "experiments.benchmarks.__main__",
}


def families() -> dict[str, Family]:
    """Return all families by name."""
    from tests.fuzz import configs, datasets, images, records, runs, weights

    modules = (images, weights, configs, datasets, records, runs)
    return {name: family for module in modules for name, family in module.FAMILIES.items()}


def generator(family: str, seed: int, index: int) -> random.Random:
    """Return the random numbers of one case."""
    return random.Random(f"{family} {seed} {index}")
