"""A run: its directory, its record, its checkpoints, and when it ends."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.checkpoint import METRIC, Checkpoints
from deeplab_jax.config import state_val_rule, to_plain
from deeplab_jax.data.source import Source
from deeplab_jax.distributed import gathered, is_first, together, watch, whole
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.results import Results
from deeplab_jax.files import read_json, write_json
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.terminal import plain_console
from deeplab_jax.train.batches import Batches
from deeplab_jax.train.faults import (
    as_user_errors,
    describe_failure,
    is_finite,
    recording,
    restore_newest,
    saving_first,
    saying_skipped,
)
from deeplab_jax.train.given import NOTHING, ON_EVALUATION, ON_STEP, Calls, Given, is_own, spell_own
from deeplab_jax.train.patience import Evaluations
from deeplab_jax.train.record import RECORD_FILE, read_mious
from deeplab_jax.train.schedules import Schedule
from deeplab_jax.train.signals import stop_on_signals
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import Metrics
from deeplab_jax.train.trackers import check_trackers
from deeplab_jax.train.workdir import (
    CONFIG_FILE,
    check_class_names,
    lock_workdir,
    make_workdir,
    open_workdir,
    record_start,
)
from deeplab_jax.train.writers import Clock, NoWriters, Writers, report
from deeplab_jax.weights.by_name import origin_of
from deeplab_jax.weights.folder import CHECKPOINTS, INITIALISED, MODEL_FILE, write_description

POSTMORTEM, BATCH_FILE = "postmortem", "batch.npz"
# Called with the run, the number of a step and its state.
Evaluate = Callable[..., Results]


class Run:
    """A run directory while this process trains in it, and whether a signal asks it to stop.

    Call `open`, `restore` and `begin` once each, in this order. All processes of a run call every method; only the
    first one writes, prints and calls the user's functions. The end of the context closes the files and releases the
    lock.

    Args:
      workdir: the directory.
      given: its functions `on_step` and `on_evaluation` are called.
      allow_config_change: whether to resume in a directory with another configuration.
      console: where to print; None is standard output.
    """

    def __init__(
        self,
        workdir: Path,
        given: Given = NOTHING,
        *,
        allow_config_change: bool = False,
        console: Console | None = None,
    ) -> None:
        self.workdir, self._given, self._allow_config_change = workdir, given, allow_config_change
        self._console = (console or plain_console()) if is_first() else Console(quiet=True)
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self.stop = self._held.enter_context(stop_on_signals())
        self._call = Calls(self._given, self.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._held.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def open(self, config: ConfigDict) -> None:
        """Create the directory, or take that of an older run with the same configuration; keep other trainers out.

        Raises:
          UserError: it cannot be used, belongs to another process, or contains something else; or a tracker that is not
            known or not installed.
        """
        self.config, self.settings, self.clock = config, config.train, Clock(config.train.batch_size)
        check_trackers(config.train.trackers)
        state_val_rule(config.data, "share")
        if is_first():
            make_workdir(self.workdir)
            self._held.enter_context(lock_workdir(self.workdir, self.say))
            open_workdir(self.workdir, self.config, allow_config_change=self._allow_config_change)

    def restore(
        self, initial: Callable[[jax.Array], TrainState], shardings: TrainState
    ) -> tuple[TrainState | None, int]:
        """Return the state of the newest checkpoint that can be read, and its step; None and 0 if there is none."""
        self.checkpoints = Checkpoints(self.workdir / CHECKPOINTS, keep=self.settings.keep)
        state, step = restore_newest(self.checkpoints, initial, shardings, self.say)
        if state is None:
            return None, 0
        self.say(f"resuming from step {step} in {self.checkpoints.directory}")
        return state, step

    def begin(self, start: int, model: Segmenter, source: Source, schedule: Schedule) -> bool:
        """Return whether there is anything to do; if so, open the record of the steps after `start`.

        This start is recorded only if a step follows: finished weights keep their configuration, and what their classes
        mean.

        Args:
          start: the step that was restored, or 0.
          model, source: the model to train, and its data.
          schedule: of the learning rate, for the record.
        """
        self.start, self.model = start, model
        self.info = model_info(source) | self._origin()
        self._schedule = jax.jit(schedule)  # One small program, not one for each of its operations.
        evaluated: list[tuple[int, float]] = []
        with together():
            if is_first():
                if start and not self._allow_config_change:
                    check_class_names(self.workdir, source.labels.names)
                with recording(self.workdir):
                    evaluated = read_mious(self.workdir / RECORD_FILE, until=start)
        mious = dict(gathered(evaluated))
        self._evaluations = Evaluations(mious, patience=self.settings.patience, steps=self.settings.steps)
        if start >= self.settings.steps and not self.lacks_evaluation(start):
            self.say(f"{self.workdir}: already trained for {start} of {self.settings.steps} steps; nothing to do")
            return False
        if self._evaluations.exhausted() and not self.lacks_evaluation(start):
            self.say(f"{self.workdir}: {self._evaluations.why()}; nothing to do, unless with --config.train.patience=0")
            return False
        with together():
            if is_first() and start < self.settings.steps and not self._evaluations.exhausted():
                record_start(self.workdir, self.config)
                write_description(self.workdir, model, self.info, named=not is_own(self.config, "model"))
            self.writers = self._held.enter_context(
                Writers(self.workdir, start=start, steps=self.settings.steps, console=self._console, config=self.config)
                if is_first()
                else NoWriters(self.workdir)
            )
        if self.config.own:
            self.say(f"note: {spell_own(self.config.own)}; a start that goes on needs the same again")
        return True

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of the steps after `start`, until all are done, the evaluations get no better, or a
        function of the user's asks to end the run.
        """
        self._done = self.start
        while self._done < self.settings.steps and not self._evaluations.exhausted() and not self._call.ended_by:
            self._done += 1
            yield self._done
        if self._call.ended_by:
            self.writers.say(f"ended by {self._call.ended_by} after step {self._done} of {self.settings.steps}")
        elif self._done < self.settings.steps:
            self.writers.say(self._evaluations.why())

    def _origin(self) -> dict[str, Any]:
        """Return the entry of `info` on the weights that the run started from, as the start from step 0 found them."""
        if not self.config.init:
            return {}
        known: Any = None
        if self.start:
            with suppress(OSError, ValueError, KeyError, TypeError):
                known = read_json(self.workdir / MODEL_FILE)["info"][INITIALISED]
        return {INITIALISED: known or origin_of(self.config.init)}

    def has_evaluations(self) -> bool:
        """Whether some step of the run is evaluated."""
        return len(self._evaluations) > 0

    def is_due(self, number: int) -> bool:
        """Whether there is an evaluation after step `number`."""
        last = number >= self.settings.steps or self._call.ended_by == ON_STEP
        return last or number % self.settings.evaluate_every == 0

    def lacks_evaluation(self, start: int) -> bool:
        """Whether the evaluation of the restored step was cut short."""
        with together():
            return start > 0 and self.is_due(start) and not self.checkpoints.metrics(start)

    def catch_up(self, state: TrainState, evaluate: Evaluate) -> Results | None:
        """Evaluate the restored step if its evaluation was cut short, add the results to its checkpoint and return
        them.
        """
        if not self.lacks_evaluation(self.start):
            return None
        results = evaluate(self, self.start, state)
        self._evaluations.add(self.start, kept_metrics(results)[METRIC])
        self.checkpoints.add_metrics(self.start, kept_metrics(results))
        self._after_evaluation(self.start, results)
        return results

    def first_batch(self, batches: Iterator[Any]) -> Any:
        """Return the batch of the first step; the clock starts behind it."""
        with together():
            batch = next(batches, None)
        self.clock.restart()
        return batch

    def next_batch(self, number: int, state: TrainState, metrics: Metrics, batches: Iterator[Any]) -> Any:
        """Return the batch after that of step `number`, None after the last, once this step is done. What fails here
        costs no step.
        """
        self.stop.wait_for_step()  # Only now: the first step takes long to compile.
        with saving_first(partial(self.log_and_save, number, state, metrics)), together():
            batch = self.clock.fetch(batches)
            self.clock.wait_for_step(metrics)
        return batch

    def saying_skipped(self, batches: Batches) -> AbstractContextManager[None]:
        """Return a context at whose end the training images that could not be read are listed."""
        return saying_skipped(batches.skipped, len(batches.source), self.writers.say)

    def finish(self, number: int, state: TrainState, evaluate: Evaluate) -> Results | None:
        """Evaluate the state of a step and save it, each if it is time; return the results, or None without any.

        Raises:
          Interrupted: a signal asks to stop. The state is saved, and no evaluation begins.
        """
        results, due = None, self.is_due(number)
        if due and not self.stop.asked():
            with saving_first(partial(self.save, number, state)):
                results = evaluate(self, number, state)
        asked = self.stop.asked()
        if due or asked or number % self.settings.checkpoint_every == 0:
            self.save(number, state, results)
        if asked:
            self.stop.check(number, self.settings.steps)
        return results

    def log(self, number: int, state: TrainState, metrics: Metrics) -> None:
        """Record a step's numbers if it is time, and call `on_step` with them. What fails there costs no step."""
        with saving_first(partial(self.save, number, state)):
            if (values := self._record(number, state, metrics)) is not None:
                self._call(ON_STEP, number, values)
                self.clock.restart()  # The user's time is not the step's.

    def _record(self, number: int, state: TrainState, metrics: Metrics) -> dict[str, float] | None:
        """Record a step's numbers and return them, or return None if it is not time."""
        self.writers.step(number)
        watch(self.settings.timeout)  # Only now, after the first step has compiled.
        if number % self.settings.log_every and number not in (self.start + 1, self.settings.steps):
            return None
        with together():
            return report(number, int(state.step), metrics, self._schedule, self.clock, self.writers)

    def save(self, number: int, state: TrainState, results: Results | None = None) -> None:
        """Save a checkpoint, with the results of its evaluation if there was one; then call `on_evaluation`."""
        metrics = None if results is None else kept_metrics(results)
        if metrics is not None:
            self._evaluations.add(number, metrics[METRIC])
        self.checkpoints.save(number, state.variables(), state.extra(), metrics=metrics)
        self.clock.restart()  # Only steps and waiting for data count.
        if results is not None:
            self._after_evaluation(number, results)

    def _after_evaluation(self, number: int, results: Results) -> None:
        self._call(ON_EVALUATION, number, results)
        self.stop.check(number, self.settings.steps)

    def log_and_save(self, number: int, state: TrainState, metrics: Metrics) -> None:
        """Record a step's numbers and save its state before the run ends. If the step made no update, save the state
        before it: the next start decides again.
        """
        save = partial(self.save, number, state) if is_finite(metrics) else partial(self._save_before, number, state)
        with saving_first(save):
            self._record(number, state, metrics)
        save()

    def _save_before(self, number: int, state: TrainState) -> None:
        """Save the state before step `number`, if that is one of a step."""
        if number > 1:
            self.save(number - 1, state)

    def check_finite(self, number: int, state: TrainState, metrics: Metrics, batch: Any) -> None:
        """Continue without the update of a step that is not finite, or write a post-mortem, save the state before it
        and raise a UserError.

        Args:
          number, metrics, batch: of the step.
          state: the state after the step; if that is not finite, it is the state before it.
        """
        if is_finite(metrics):
            return
        skipped, what = number - int(state.step), describe_failure(number, metrics)
        if skipped <= self.settings.skip_nonfinite:
            with saving_first(partial(self.save, number, state)), together():
                self.writers.scalars(number, {"skipped_updates": skipped}, prefix="train")
            self.writers.say(f"{what}: update skipped, {skipped} of at most {self.settings.skip_nonfinite}")
            return
        folder = self.workdir / POSTMORTEM
        try:
            write_postmortem(folder, state, number, batch, config=self.config, model=self.model, info=self.info)
            saved = f"see python -m deeplab_jax replay {folder}"
        except UserError as error:
            saved = f"no post-mortem ({error})"
        with suppress(UserError):  # The step is the failure to report.
            self._save_before(number, state)
        newest = self.checkpoints.latest()
        raise UserError(
            f"{what}; {saved}; to go on{'' if newest is None else f' from step {newest}'}, start again with "
            f"--config.train.skip_nonfinite={skipped + 9}, which skips such updates, or with --allow_config_change and "
            "--config.optimizer.clip_norm=1 or a lower --config.optimizer.learning_rate"
        )

    def say_skipped_updates(self, state: TrainState) -> None:
        """At the end, say how many updates were skipped."""
        if skipped := self._done - int(state.step):
            self.writers.say(f"{skipped} of {self._done} updates were skipped: their loss or gradient was not finite")


def kept_metrics(results: Results) -> dict[str, float]:
    """Return what a checkpoint keeps of an evaluation."""
    return {METRIC: results["miou"] or 0.0}


def model_info(source: Source) -> dict[str, Any]:
    """Return the `info` of a model trained on a source."""
    return {
        **source.labels.info(),
        "value_map": None if source.labels.value_map is None else [list(pair) for pair in source.labels.value_map],
        "data": source.name,
    }


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
            write_description(folder, model, info, named=not is_own(config, "model"))
            np.savez_compressed(folder / BATCH_FILE, image=batch["image"], label=batch["label"])
    Checkpoints(folder / CHECKPOINTS).save(number - 1, state.variables(), state.extra())
