"""The size of the notebooks' experiments: as committed, or tiny, so that tests can execute every cell."""

import os
from dataclasses import dataclass
from pathlib import Path

# This variable has the folder of the runs at the tiny size. Without it, the notebooks are executed in full.
QUICK = "DEEPLAB_JAX_NOTEBOOK_QUICK"


@dataclass(frozen=True)
class Extent:
    """The size of the experiments.

    Attributes:
      runs: folder of the run directories.
      steps: steps of a training.
      width: width of the backbones; 1 is the published network.
      side: side of the training pictures, in pixels.
      large_side: side of the larger pictures in some evaluations, in pixels.
      pictures: pictures in each split; None: all of the data set.
      evaluated: pictures that an evaluation at `side` sees; at `large_side` it sees a quarter of them.
    """

    runs: Path
    steps: int
    width: float
    side: int
    large_side: int
    pictures: int | None
    evaluated: int


def extent() -> Extent:
    """Return the extent that the environment variable `QUICK` sets."""
    if folder := os.environ.get(QUICK):
        return Extent(Path(folder), steps=2, width=0.125, side=65, large_side=97, pictures=4, evaluated=4)
    runs = Path("runs/notebooks")
    return Extent(runs, steps=450, width=0.5, side=129, large_side=257, pictures=None, evaluated=128)
