"""How long jobs are going to take, from those that were measured at the same scale; never from anything else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from experiments.runner.jobs import Job


@dataclass(frozen=True)
class Rates:
    """Means over what is finished.

    Attributes:
      step: seconds of a training step, by the model's name.
      any_step: the same over all models; None where no training is finished.
      evaluation: seconds of an evaluation; None where none is finished.
    """

    step: Mapping[str, float]
    any_step: float | None
    evaluation: float | None

    def seconds(self, job: Job, *, steps: int, evaluations: int) -> float | None:
        """Return the seconds that so many steps and evaluations of a job take, None where nothing was measured."""
        step = self.step.get(job.config.model.name, self.any_step)
        if step is None or self.evaluation is None:
            return None
        return steps * step + evaluations * self.evaluation


def rates(contents: Iterable[Mapping[str, Any]]) -> Rates:
    """Return the means over the rows of results."""
    steps: dict[str, list[float]] = {}
    evaluations = []
    for content in contents:
        for entry in content["seeds"]:
            plain = content["config"]
            name = plain["model"]["name"] if "model" in plain else ""
            steps.setdefault(name, []).append(entry["seconds"]["training"] / plain["train"]["steps"])
            evaluations.append(entry["seconds"]["evaluation"])
    everything = [value for values in steps.values() for value in values]
    return Rates(
        {name: mean(values) for name, values in steps.items()},
        mean(everything) if everything else None,
        mean(evaluations) if evaluations else None,
    )


def hours(seconds: float | None) -> str:
    """Return a time for a reader."""
    if seconds is None:
        return "unknown"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
