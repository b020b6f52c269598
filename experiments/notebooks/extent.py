"""How large the notebooks' experiments are: as committed, or cut down so that tests can execute every cell."""

import os
from dataclasses import dataclass
from pathlib import Path

# Names the folder of the runs of the quick form; not set, the notebooks are executed in full.
QUICK = "DEEPLAB_JAX_NOTEBOOK_QUICK"


@dataclass(frozen=True)
class Extent:
    """How large the experiments are.

    Attributes:
      runs: folder of the run directories.
      steps: of a training.
      width: of the backbones; 1 is the published network.
      side: of the pictures that are trained on, in pixels.
      large_side: of larger ones, which some evaluations see.
      pictures: in each split; None: as many as the data set has.
      evaluated: of them at `side`, and a quarter at `large_side`.
    """

    runs: Path
    steps: int
    width: float
    side: int
    large_side: int
    pictures: int | None
    evaluated: int


def extent() -> Extent:
    """Return the extent that the environment asks for."""
    if folder := os.environ.get(QUICK):
        return Extent(Path(folder), steps=2, width=0.125, side=65, large_side=97, pictures=4, evaluated=4)
    runs = Path("runs/notebooks")
    return Extent(runs, steps=450, width=0.5, side=129, large_side=257, pictures=None, evaluated=128)
