"""What a fuzzing case is, and the families that make them."""

import random
from collections.abc import Callable, Iterator
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

    @property
    def call(self) -> str:
        """The program and its verb."""
        return " ".join([self.program, *(word for word in self.words[:1] if not word.startswith("-"))])


class Family(NamedTuple):
    """Cases of one kind.

    Attributes:
      seeds: makes, once for each process, what the cases damage; returns what `make` takes first.
      make: `make(seeds, folder, rng)` writes damaged files into an empty folder. The same generator gives the same.
      share: of all damaged files, in percent.
      alone: whether the program itself can run it: it needs no network of `tests.support.tiny`.
    """

    seeds: Callable[[Path], object]
    make: Callable[..., Case]
    share: float
    alone: bool = True


# Where `main` of each program stands.
PROGRAMS = {
    "deeplab_jax": "deeplab_jax.cli",
    "report": "experiments.report.__main__",
    "tables": "experiments.run.__main__",
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


class Sound(random.Random):
    """Choices of a case in which nothing gets damaged."""


def sound_cases(family: Family, seeds: object, folder: Path) -> Iterator[Case]:
    """Make a case of every verb that a family calls, on files that are whole: what the damaged ones compare with."""
    calls = set()
    for index in range(30):
        place = folder / f"sound{index}"
        place.mkdir(parents=True)
        case = family.make(seeds, place, Sound(index))
        if case.call not in calls:
            calls.add(case.call)
            yield case
