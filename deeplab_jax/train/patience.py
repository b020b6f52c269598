"""When a run ends: after its steps, or when its evaluations get no better."""

import math
from collections.abc import Mapping
from fractions import Fraction

from ml_collections import ConfigDict

from deeplab_jax.config_values import check
from deeplab_jax.errors import UserError


def with_steps(config: ConfigDict, examples: int) -> ConfigDict:
    """Return a configuration whose `train.steps` are those of its `train.epochs`, if it has some.

    Args:
      config: it stays as it is.
      examples: number of training images.

    Raises:
      UserError: there would be no step, or more than a run can count.
    """
    if not config.train.epochs:
        return config
    config = config.copy_and_resolve_references()
    # As decimal fractions: in floating point 1.1 epochs of 10 images are more than 11.
    steps = math.ceil(Fraction(str(config.train.epochs)) * examples / config.train.batch_size)
    if not 1 <= steps < 2**31:
        raise UserError(
            f"config.train.epochs={config.train.epochs:g}: {steps} steps of {config.train.batch_size} for {examples} "
            "training images; give a number for which these are 1 to 2147483647"
        )
    config.train.steps = steps
    check(config)
    return config


class Evaluations:
    """The validation mIoU of each evaluated step of a run, and whether they get better.

    Args:
      mious: by step.
      patience: after so many evaluations without a larger mIoU the run ends; 0: it does not.
      steps: of the whole run.
    """

    def __init__(self, mious: Mapping[int, float], *, patience: int, steps: int) -> None:
        self._mious, self._patience, self._steps = dict(mious), patience, steps

    def __len__(self) -> int:
        return len(self._mious)

    def add(self, step: int, miou: float) -> None:
        """Add an evaluation, or replace that of the same step."""
        self._mious[step] = miou

    def best(self) -> int:
        """Return the first step with the largest mIoU; there has to be one."""
        return max(self._mious, key=lambda step: (self._mious[step], -step))

    def exhausted(self) -> bool:
        """Whether the run ends before its last step."""
        return (
            bool(self._patience and self._mious) and sum(step > self.best() for step in self._mious) >= self._patience
        )

    def why(self) -> str:
        """Return in words why the run ends."""
        best, count = self.best(), f"{self._patience} evaluation{'s' * (self._patience > 1)}"
        return (
            f"ended early after step {max(self._mious)} of {self._steps}: {count} without a better mIoU than "
            f"{self._mious[best]:.4f} of step {best}"
        )
