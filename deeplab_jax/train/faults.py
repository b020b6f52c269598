"""Failures: no finished work is lost, and a failure can be examined later."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax.checkpoint import Checkpoints, DamagedCheckpoint
from deeplab_jax.data.faults import Skipped
from deeplab_jax.distributed import gathered, is_first, is_lost, listed, together
from deeplab_jax.errors import UserError
from deeplab_jax.train.signals import Interrupted
from deeplab_jax.train.state import TrainState, restore
from deeplab_jax.train.step import Metrics


def is_finite(metrics: Metrics) -> bool:
    """Whether a step's update was made; waits for the step."""
    return bool(np.isfinite(jax.device_get([metrics["loss"], metrics["gradient_norm"]])).all())


def describe_failure(number: int, metrics: Metrics) -> str:
    """Return `step 7: loss nan, gradient norm inf`."""
    return f"step {number}: loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}"


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
) -> tuple[TrainState | None, int]:
    """Return the newest state that can be read, and its step; report newer damaged ones and rename them. It is None
    and 0 where there is no checkpoint.

    A state that is damaged for one process counts as damaged on all of them.

    Raises:
      UserError: all are damaged (and keep their names), the system does not let a process read one, or the newest that
        can be read is of another network.
    """
    damaged: dict[int, str] = {}
    with together():
        found = checkpoints.steps() if is_first() else []
    steps = gathered(found)  # Other processes may see a shared folder as it was some seconds ago.
    if not steps:
        return None, 0
    for step in reversed(steps):
        own: list[str] = []
        with together():
            try:
                state = restore(checkpoints, step, initial, shardings)
            except DamagedCheckpoint as error:
                own = [error.reason or "cannot be read"]
        if reasons := listed(own):
            damaged[step] = reasons[0]
            continue
        for bad, reason in damaged.items():
            aside = checkpoints.set_aside(bad)
            say(f"the checkpoint of step {bad} is damaged ({reason}) and now called {aside.name}")
        return state, step
    why = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise UserError(
        f"{checkpoints.directory}: every checkpoint is damaged ({why}); bring one back from a backup, or give "
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
