"""A run directory: who may write to it, when a second start may resume it, and what it records."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.checkpoint import METRIC, Checkpoints
from deeplab_jax.config import base, differences, state_val_rule, to_plain, with_defaults
from deeplab_jax.config_keys import FREE
from deeplab_jax.data.source import Source
from deeplab_jax.distributed import is_first, listed, together, watch, whole
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import TEMPORARY, locked, read_json, write_json
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.provenance import git_commit, versions
from deeplab_jax.train.allocator import keep_freed_memory
from deeplab_jax.train.faults import as_user_errors, describe_failure, recording, restore_newest
from deeplab_jax.train.patience import Evaluations, read_mious
from deeplab_jax.train.schedules import Schedule
from deeplab_jax.train.signals import stop_on_signals
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import Metrics
from deeplab_jax.train.writers import METRICS_FILE, Clock, NoWriters, Writers, report
from deeplab_jax.weights.folder import CHECKPOINTS, write_description

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
LOCK_FILE = ".lock"
POSTMORTEM, BATCH_FILE = "postmortem", "batch.npz"


class Run:
    """A run directory while this process trains in it, and whether a signal asks it to stop.

    Call `open`, `restore` and `begin` once each, in this order. All processes of a run call every method; only the
    first one writes and prints. The end of the context closes the files and releases the lock.
    """

    def __init__(self, workdir: Path, console: Console) -> None:
        self.workdir = workdir
        keep_freed_memory()  # Before the next line starts JAX's threads.
        self._console = console if is_first() else Console(quiet=True)
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self.stop = self._held.enter_context(stop_on_signals())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._held.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def open(self, config: ConfigDict, *, allow_config_change: bool) -> None:
        """Create the directory, or take that of an older run with the same configuration; keep other trainers out.

        Raises:
          UserError: it cannot be used, belongs to another process, or contains something else.
        """
        self.config, self.settings, self.clock = config, config.train, Clock(config.train.batch_size)
        state_val_rule(config.data, "share")
        if is_first():
            make_workdir(self.workdir)
            self._held.enter_context(lock_workdir(self.workdir, self.say))
            open_workdir(self.workdir, self.config, allow_config_change=allow_config_change)

    def restore(
        self, initial: Callable[[jax.Array], TrainState], shardings: TrainState
    ) -> tuple[TrainState | None, int]:
        """Return the state of the newest checkpoint that can be read, and its step; None and 0 if there is none."""
        self.checkpoints = self._held.enter_context(Checkpoints(self.workdir / CHECKPOINTS, keep=self.settings.keep))
        if self.checkpoints.latest() is None:
            return None, 0
        state, step = restore_newest(self.checkpoints, initial, shardings, self.say)
        self.say(f"resuming from step {step} in {self.checkpoints.directory}")
        return state, step

    def begin(self, start: int, model: Segmenter, source: Source, schedule: Schedule) -> bool:
        """Record this start, open the record of the steps after `start`, and return whether there is anything to do.

        Args:
          start: the step that was restored, or 0.
          model, source: the model to train, and its data.
          schedule: of the learning rate, for the record.
        """
        self.start, self.model, self.info = start, model, model_info(source)
        self._schedule = jax.jit(schedule)  # One small program, not one for each of its operations.
        evaluated: list[str] = []
        with together():
            if is_first():
                record_start(self.workdir, self.config)
                write_description(self.workdir, model, self.info)
                with recording(self.workdir):
                    evaluated = read_mious(self.workdir / METRICS_FILE, until=start)
        mious = {int(step): float(miou) for step, miou in map(str.split, listed(evaluated))}
        self._evaluations = Evaluations(mious, patience=self.settings.patience, steps=self.settings.steps)
        if start >= self.settings.steps and not self.lacks_evaluation(start):
            self.say(f"{self.workdir}: already trained for {start} of {self.settings.steps} steps; nothing to do")
            return False
        if self._evaluations.exhausted() and not self.lacks_evaluation(start):
            self.say(f"{self.workdir}: {self._evaluations.why()}; nothing to do, unless with --config.train.patience=0")
            return False
        with together():
            self.writers = self._held.enter_context(
                Writers(self.workdir, start=start, steps=self.settings.steps, console=self._console)
                if is_first()
                else NoWriters(self.workdir)
            )
        return True

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of the steps after `start`, until all are done or the evaluations get no better."""
        self._done = self.start
        while self._done < self.settings.steps and not self._evaluations.exhausted():
            self._done += 1
            yield self._done
        if self._done < self.settings.steps:
            self.writers.say(self._evaluations.why())

    def is_due(self, number: int) -> bool:
        """Whether there is an evaluation after step `number`."""
        return number % self.settings.evaluate_every == 0 or number >= self.settings.steps

    def lacks_evaluation(self, start: int) -> bool:
        """Whether the evaluation of the restored step was cut short."""
        return start > 0 and self.is_due(start) and not self.checkpoints.metrics(start)

    def log(self, number: int, state: TrainState, metrics: Metrics) -> None:
        """Record a step's numbers if it is time."""
        self.writers.step(number)
        watch(self.settings.timeout)  # Only now, after the first step has compiled.
        if number % self.settings.log_every == 0 or number in (self.start + 1, self.settings.steps):
            with together():
                report(number, int(state.step), metrics, self._schedule, self.clock, self.writers)
            self.clock.restart()

    def save(self, number: int, state: TrainState, results: dict[str, Any] | None = None) -> None:
        """Save a checkpoint, with the results of its evaluation if there was one."""
        if results is not None:
            self._evaluations.add(number, kept_metrics(results)[METRIC])
        self.checkpoints.save(
            number, state.variables(), state.extra(), metrics=None if results is None else kept_metrics(results)
        )
        self.clock.restart()  # Only steps and waiting for data count.

    def log_and_save(self, number: int, state: TrainState, metrics: Metrics) -> None:
        """Do both before the run ends."""
        self.log(number, state, metrics)
        self.save(number, state)

    def add_evaluation(self, number: int, results: dict[str, Any]) -> None:
        """Add the results of an evaluation to a checkpoint that has none."""
        self._evaluations.add(number, kept_metrics(results)[METRIC])
        self.checkpoints.add_metrics(number, kept_metrics(results))

    def stop_or_skip(self, number: int, state: TrainState, batch: Any, metrics: Metrics) -> None:
        """Continue without the update of a step that is not finite, or write a post-mortem and raise a UserError.

        Args:
          number, batch, metrics: of the step.
          state: the state before the step; see `keep_finite`.
        """
        skipped, what = number - int(state.step), describe_failure(number, metrics)
        if skipped <= self.settings.skip_nonfinite:
            with together():
                self.writers.scalars(number, {"skipped_updates": skipped}, prefix="train")
            self.writers.say(f"{what}: update skipped, {skipped} of at most {self.settings.skip_nonfinite}")
            return
        folder = self.workdir / POSTMORTEM
        try:
            write_postmortem(folder, state, number, batch, config=self.config, model=self.model, info=self.info)
            saved = f"see python -m deeplab_jax replay {folder}"
        except UserError as error:
            saved = f"no post-mortem ({error})"
        raise UserError(
            f"{what}; {saved}; lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or set "
            "config.train.skip_nonfinite to skip such updates, and start again from the last checkpoint"
        )

    def say_skipped_updates(self, state: TrainState) -> None:
        """At the end, say how many updates were skipped."""
        if skipped := self._done - int(state.step):
            self.writers.say(f"{skipped} of {self._done} updates were skipped: their loss or gradient was not finite")


def kept_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return what a checkpoint keeps of an evaluation."""
    return {METRIC: results["miou"] or 0.0}


def model_info(source: Source) -> dict[str, Any]:
    """Return the `info` of a model trained on a source."""
    return {
        **source.labels.info(),
        "value_map": None if source.labels.value_map is None else [list(pair) for pair in source.labels.value_map],
        "data": source.name,
    }


def make_workdir(workdir: Path) -> None:
    """Create a run directory, or check an existing one: empty, of a run, or left by a start that wrote nothing.

    Raises:
      UserError: it cannot be created, or contains something else.
    """
    try:
        str(workdir.resolve()).encode("utf-8")
    except UnicodeEncodeError:  # Orbax and TensorBoard need a text, which this locale cannot make of the name.
        raise UserError(
            f"{str(workdir)!a}: a name that the locale cannot spell; set LC_ALL=C.UTF-8, or give another --workdir"
        ) from None
    with as_user_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in workdir.iterdir() if path.suffix != TEMPORARY}
        if found - {LOCK_FILE} and not found & {CONFIG_FILE, RUN_FILE}:
            raise UserError(
                f"{workdir}: is not empty and holds no {CONFIG_FILE}, so it is no run to resume; "
                "give an empty --workdir"
            )


def open_workdir(workdir: Path, config: Any, *, allow_config_change: bool) -> None:
    """Record the configuration of a new run, or check that it equals an older run's. The directory exists and is
    locked.

    Raises:
      UserError: it cannot be written, or contains a run of another configuration.
    """
    file = workdir / CONFIG_FILE
    with as_user_errors(workdir):
        if file.exists():
            _check_same(file, to_plain(config), allow_config_change)
        else:
            write_json(file, to_plain(config))


def record_start(workdir: Path, config: Any) -> None:
    """Record the configuration with which the run continues, and this start: command, git commit, versions, device.

    It is called after the state is restored: a configuration that does not fit the checkpoints overwrites no record.

    Raises:
      UserError: the directory cannot be written.
    """
    file = workdir / RUN_FILE
    with as_user_errors(workdir):
        write_json(workdir / CONFIG_FILE, to_plain(config))
        try:
            starts = read_json(file) if file.exists() else []
        except ValueError:  # Only a record: nothing depends on it.
            starts = []
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        starts = starts if isinstance(starts, list) else []
        starts.append({"time": now, "command": sys.argv, "commit": git_commit(), "versions": versions()})
        write_json(file, starts)


def lock_workdir(workdir: Path, say: Callable[[str], Any]) -> AbstractContextManager[None]:
    """Keep other trainers out of an existing run directory; otherwise as `locked`."""
    busy = f"{workdir}: another process trains in this directory; wait for it, or give another --workdir"
    return locked(workdir / LOCK_FILE, busy, option="--workdir", say=say)


def write_postmortem(
    folder: Path, state: TrainState, number: int, batch: Any, *, config: Any, model: Segmenter, info: dict[str, Any]
) -> None:
    """Write what `replay` needs to run step `number` again; replace an older post-mortem there.

    The folder is a run directory of one checkpoint, and a batch.

    Args:
      folder: created if it does not exist.
      state: the state before the step.
      number: number of the step, from 1.
      batch: the step's input.
      config, model, info: of the run.

    Raises:
      UserError: it cannot be written.
    """
    batch = whole(batch)
    with together(), as_user_errors(folder):
        if is_first():
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            write_json(folder / CONFIG_FILE, to_plain(config))
            write_description(folder, model, info)
            np.savez_compressed(folder / BATCH_FILE, image=batch["image"], label=batch["label"])
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(number - 1, state.variables(), state.extra())


def _check_same(file: Path, plain: dict[str, Any], allow_config_change: bool) -> None:
    try:
        stored = dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: is damaged ({error}); give an empty --workdir, or delete the file to go on with this "
            "configuration"
        ) from None
    # Options that are new since that run started had their defaults then.
    stored = with_defaults(stored, to_plain(base()))
    state_val_rule(stored["data"], "hash")
    changed = [line for line in differences(stored, plain) if line.split(":")[0] not in FREE]
    if changed and not allow_config_change:
        raise UserError(
            f"{file.parent}: holds a run of another configuration ({spell(changed, limit=4, separator='; ')}); "
            "give another --workdir, or --allow_config_change to go on with the new one"
        )
