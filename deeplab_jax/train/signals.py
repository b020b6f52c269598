"""Signals: Ctrl-C, and SIGTERM, which schedulers send before they take a machine away.

The command line needs these before the rest of training is imported, so they stand apart from `faults`.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deeplab_jax.distributed import largest


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

    def hear(self) -> None:
        """Ask this process as Ctrl-C does."""
        self._heard = max(self._heard, CTRL_C)

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
