"""How long jobs are going to take, from those that were measured at the same scale; never from anything else."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from experiments.runner.jobs import Job

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Rates:
    """Means over what is finished, each also under the shorter keys that its own begins with.

    Attributes:
      steps: seconds of a training step, by model, output stride and batch size.
      evaluations: seconds of an evaluation, by its key and by the same.
    """

    steps: Mapping[Key, float]
    evaluations: Mapping[Key, float]

    def step(self, config: Mapping[str, Any]) -> float | None:
        """Return the seconds of a step of a training, None where nothing was measured."""
        return _nearest(self.steps, _network(config))

    def seconds(self, job: Job, *, steps: int, evaluations: Collection[str]) -> float | None:
        """Return the seconds that so many steps and these evaluations of a job take, None where none was measured."""
        network = _network(job.config)
        found = [_nearest(self.evaluations, (key, *network)) for key in evaluations]
        step = self.step(job.config)
        if step is None or None in found:
            return None
        return steps * step + sum(seconds for seconds in found if seconds is not None)


def rates(contents: Iterable[Mapping[str, Any]]) -> Rates:
    """Return the means over the rows of results."""
    # By training, and by training and evaluation: rows share them, and each counts once.
    steps: dict[Any, tuple[Key, float]] = {}
    evaluations: dict[Any, tuple[Key, float]] = {}
    for content in contents:
        network, length = _network(content["config"]), content["config"]["train"]["steps"]
        for entry in content["seeds"]:
            training = (content["training"], entry["seed"])
            steps[training] = (network, entry["seconds"]["training"] / length)
            evaluations[training, content["evaluation"]] = (
                (content["evaluation"], *network),
                entry["seconds"]["evaluation"],
            )
        before = content.get("pretraining")
        if before and before["seconds"]:  # 0 where its log is lost.
            steps[before["name"]] = (_network(before["config"]), before["seconds"] / before["config"]["train"]["steps"])
    return Rates(_means(steps.values()), _means(evaluations.values()))


def _network(config: Mapping[str, Any]) -> Key:
    model = (config["model"]["name"], config["model"]["output_stride"]) if "model" in config else ()
    return (*model, config["train"]["batch_size"])


def _means(found: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    values: dict[Key, list[float]] = {}
    for key, value in found:
        for beginning in _beginnings(key):
            values.setdefault(beginning, []).append(value)
    return {key: mean(several) for key, several in values.items()}


def _nearest(means: Mapping[Key, float], key: Key) -> float | None:
    return next((means[beginning] for beginning in _beginnings(key) if beginning in means), None)


def _beginnings(key: Key) -> Iterator[Key]:
    """Yield the key, and ever less of it, down to the empty one."""
    return (key[:length] for length in range(len(key), -1, -1))


def hours(seconds: float | None) -> str:
    """Return a time for a reader."""
    if seconds is None:
        return "unknown"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
