"""Further places for the record of a run, by the names in `config.train.trackers`.

Each is a package that is not installed with this one. Its own environment variables say where it writes, such as
`WANDB_PROJECT` and `MLFLOW_TRACKING_URI`. `TRACKERS` lists them.
"""

import importlib.util
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from flax.traverse_util import flatten_dict

from deeplab_jax.errors import UserError, did_you_mean, kind_and_text
from deeplab_jax.files import read_json, write_json

IDS_FILE = "trackers.json"
PROJECT = "deeplab_jax"
MOST_PARAMETERS, LONGEST_NAME = 100, 250  # MLflow takes no more at once, and no longer names.


class Tracker(Protocol):
    """A record of one run. `id` finds it again when the run goes on. Any method may fail."""

    id: str

    def __init__(self, id: str, workdir: Path, config: Mapping[str, Any]) -> None:
        """Open the record of that id, or begin one if the id is "". `config` is plain, as in `config.json`."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, file: Path) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Wandb(Tracker):
    """Weights & Biases. Its own step may never go back, as that of a killed run does, so the step is a value."""

    def __init__(self, id: str, workdir: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=id or uuid.uuid4().hex[:8],
            resume="allow",
            reinit="create_new",  # The program may have a run open, which is not ours to continue or to finish.
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
        )
        self.id = str(self._run.id)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, file: Path) -> None:
        self._run.log({"step": step, name: self._image(str(file))})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow(Tracker):
    """MLflow."""

    def __init__(self, id: str, workdir: Path, config: Mapping[str, Any]) -> None:
        # Its own 7 retries of 120 s take minutes if a server is gone, and the other processes wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
        if id:
            self.id = id
            self._client.update_run(id, status="RUNNING")
            return
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)).experiment_id
        self.id = self._client.create_run(experiment, run_name=workdir.name).info.run_id
        parameters = [mlflow.entities.Param(key, str(value)) for key, value in flatten_dict(config, sep=".").items()]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self.id, params=parameters[first : first + MOST_PARAMETERS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        named = {_mlflow_name(name): value for name, value in values.items()}
        self._client.log_batch(self.id, metrics=[self._metric(name, value, now, step) for name, value in named.items()])

    def picture(self, step: int, name: str, file: Path) -> None:
        self._client.log_artifact(self.id, str(file), name)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow takes: few signs, not too long, and a path without empty parts or dots alone.

    Only the first two of the slashes divide it, as in "val/iou/CLASS".
    """
    *folders, last = name.split("/", 2)
    last = re.sub(r"[^\w.\- :]", "_", last)
    return "/".join([*folders, last if last.strip(".") else f"_{last}"])[:LONGEST_NAME]


TRACKERS: Mapping[str, type[Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}
"""By the name of the package, which is that of the extra, too."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise a UserError for a tracker that is not known or not installed."""
    for name in names:
        what = f"config.train.trackers={tuple(names)}: "
        if name not in TRACKERS:
            raise UserError(f"{what}{did_you_mean(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{what}{name} is not installed; type pip install {name}, or leave it out")


class Trackers:
    """The trackers of a run. One that fails is closed and left out from then on, and training goes on.

    Args:
      names: of `TRACKERS`.
      workdir: the run directory, which keeps the trackers' ids.
      config: of the run, plain.
      say: receives a line about a tracker that fails.
    """

    def __init__(
        self, names: tuple[str, ...], workdir: Path, config: Mapping[str, Any], say: Callable[[str], Any]
    ) -> None:
        self._say, self._open = say, dict[str, Tracker]()
        file, ids = workdir / IDS_FILE, dict[str, str]()
        if names and file.is_file():
            with suppress(OSError, ValueError, TypeError):  # Without its id, a tracker begins a new record.
                ids = {name: str(id) for name, id in dict(read_json(file)).items()}
        for name in names:
            with self._without_failing(name):
                self._open[name] = TRACKERS[name](ids.get(name, ""), workdir, config)
                ids[name] = self._open[name].id
                write_json(file, ids)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step by name."""
        self._tell(lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, name: str, file: Path) -> None:
        """Write the picture of a step."""
        self._tell(lambda tracker: tracker.picture(step, name, file))

    def close(self, *, failed: bool) -> None:
        """End the records, as those of a run that failed or did not."""
        self._tell(lambda tracker: tracker.close(failed=failed))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._without_failing(name):
                call(tracker)

    @contextmanager
    def _without_failing(self, name: str) -> Iterator[None]:
        """Leave a tracker out that fails, whatever its package raises: a network, a full disk, a missing login."""
        try:
            yield
        except Exception as error:
            if (failed := self._open.pop(name, None)) is not None:
                with suppress(Exception):
                    failed.close(failed=True)
            self._say(f"note: {name}: {kind_and_text(error)[:300]}; it gets no more of this run, and training goes on")
