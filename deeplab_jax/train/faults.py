"""Failures, and signals that ask to stop: no finished work is lost, and a failure can be examined later."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.checkpoint import Checkpoints, DamagedCheckpoint
from deeplab_jax.data.faults import Skipped
from deeplab_jax.distributed import is_lost, largest, listed
from deeplab_jax.errors import UserError
from deeplab_jax.train.state import TrainState, restore
from deeplab_jax.train.step import Metrics

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


# Ctrl-C, and SIGTERM, which schedulers send before they take a machine away.


class Interrupted(BaseException):
    """The run was asked to stop, and nothing is lost.

    Like KeyboardInterrupt it is not an Exception, so code that handles failures does not catch it. `preempted` is true
    if SIGTERM asked.
    """

    def __init__(self, message: str, *, preempted: bool) -> None:
        super().__init__(message)
        self.preempted = preempted


NOTHING, CTRL_C, SIGTERM = range(3)  # The largest is the one that all processes of a run adopt.


class Stop:
    """Whether a signal has asked the run to stop.

    Until `wait_for_step` there is nothing to save, so a signal ends the run at once. From then on the loop checks
    `asked` after every step, and the evaluation after every batch. Code that waits for data checks `heard`.
    """

    def __init__(self) -> None:
        self._heard = self._agreed = NOTHING
        self._waits = False

    def heard(self) -> bool:
        """Whether this process was asked; from then on `asked` returns True on all processes."""
        return self._heard != NOTHING

    def asked(self) -> bool:
        """Whether any process of the run was asked; all of them must call this at the same points."""
        self._agreed = largest(self._heard)
        return self._agreed != NOTHING

    def wait_for_step(self) -> None:
        """From now on, let the loop end the run."""
        self._waits = True

    def check(self, number: int, steps: int) -> None:
        """Raise Interrupted if a signal has asked to stop; the caller must save the state of step
        `number` of `steps`.
        """
        if self.asked():
            raise Interrupted(
                f"stopped at step {number} of {steps}, which is saved; the same command goes on from there",
                preempted=self._agreed == SIGTERM,
            )

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C does not wait for the step."""
        if number == signal.SIGINT and (self._heard != NOTHING or not self._waits):
            raise KeyboardInterrupt
        self._heard = max(self._heard, SIGTERM if number == signal.SIGTERM else CTRL_C)
        if not self._waits:
            raise Interrupted(
                "stopped before the first step; the same command starts again", preempted=self._heard == SIGTERM
            )


def end_on_sigterm(code: int) -> None:
    """Let SIGTERM end this process with an exit code outside `stop_on_signals`, where there is nothing to save."""

    def end(number: int, frame: FrameType | None) -> None:
        print("deeplab-jax: stopped by SIGTERM with nothing to save; the same command continues", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into requests to stop."""
    stop = Stop()
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop.handle)
    except ValueError:  # Not in the main thread, as in a notebook's worker: signals keep their handlers there.
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# Steps that are not finite.


def keep_finite(step: Step) -> Step:
    """Wrap a step so that it keeps the old state if the loss or the gradient's norm is not finite.

    On the host it would be too late, because the buffers of the old state are donated. `state.step` keeps its value
    too: the number of a step minus `state.step` after it is the number of updates skipped so far.
    """

    def guarded_train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state), metrics

    return guarded_train_step


def is_finite(metrics: Metrics) -> bool:
    """Whether a step's update was made; waits for the step."""
    return bool(np.isfinite(jax.device_get([metrics["loss"], metrics["gradient_norm"]])).all())


def describe_failure(number: int, metrics: Metrics) -> str:
    """Return `step 7: loss nan, gradient norm inf`."""
    return f"step {number}: loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}"


# Code around a step.


@contextmanager
def saving_first(save: Callable[[], None]) -> Iterator[None]:
    """Save the state before a failure or a request to stop ends the run."""
    try:
        yield
    except Interrupted:
        save()
        raise
    except Exception as error:
        if is_lost(error):  # A save needs all processes.
            raise
        with suppress(UserError):  # The first failure is the one to report.
            save()
        raise


@contextmanager
def saying_skipped(skipped: Skipped | None, images: int, say: Callable[[str], Any]) -> Iterator[None]:
    """However a run ends, list the training images that it could not read since this start.

    These are the images of all processes if all end in the same way. After a failure they are this process's, because
    others may still wait for something.
    """
    alike = False
    try:
        yield
        alike = True
    except Interrupted:
        alike = True
        raise
    finally:
        if skipped is not None:
            lines = listed(skipped.lines()) if alike else skipped.lines()
            say(f"{len(lines)} of {images} training images were skipped since this start")
            for line in lines:
                say(f"  {line}")


def restore_newest(
    checkpoints: Checkpoints,
    initial: Callable[[jax.Array], TrainState],
    shardings: TrainState,
    say: Callable[[str], Any],
) -> tuple[TrainState, int]:
    """Return the newest state that can be read, and its step; report newer damaged ones and rename them.

    A state that one process cannot read counts as damaged on all of them.

    Raises:
      UserError: all are damaged (and keep their names), or the newest that can be read is of another network.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps()):
        own: list[str] = []
        try:
            state = restore(checkpoints, step, initial, shardings)
        except DamagedCheckpoint as error:
            own = [error.reason or "cannot be read"]
        if found := listed(own):
            damaged[step] = found[0]
            continue
        for bad, reason in damaged.items():
            aside = checkpoints.set_aside(bad)
            say(f"the checkpoint of step {bad} is damaged ({reason}) and now called {aside.name}")
        return state, step
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise UserError(
        f"{checkpoints.directory}: every checkpoint is damaged ({reasons}); bring one back from a backup, or give "
        "another --workdir"
    )


@contextmanager
def recording(workdir: Path) -> Iterator[None]:
    """Turn an error that stops the record of a run, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: the record of the run cannot be written ({error.strerror or error}); free space, or "
            "check that the folder exists, then start again"
        ) from None


@contextmanager
def as_user_errors(workdir: Path) -> Iterator[None]:
    """Turn the file system's errors about a run directory into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot be used as run directory ({error.strerror or error}); give another --workdir"
        ) from None
