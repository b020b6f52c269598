"""Gives jobs to Slurm, by submitit."""

import ast
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.commands import USER_ERROR
from deeplab_jax.errors import UserError, in_one_line
from deeplab_jax.files import write_whole

FORGOTTEN = 3600.0  # seconds after which a job that Slurm knows nothing of counts as gone


class Slurm:
    """Submits jobs to Slurm. The nodes of Slurm must see the folder of the runs.

    The folder of submitit's logs also gets a file with the number of each job. So a later runner waits for a job that
    Slurm still has, and does not submit it again.

    Args:
      logs: folder of submitit's logs.
      given: parameters of submitit as `KEY=VALUE`, where a value is a Python literal or a word.

    Raises:
      UserError: submitit is not installed, or a parameter is wrong.
    """

    def __init__(self, logs: Path, given: Sequence[str]) -> None:
        parameters = dict(map(_parameter, given))
        try:
            submitit = importlib.import_module("submitit")
        except ImportError:
            raise UserError("--launcher slurm needs submitit: python -m pip install submitit") from None
        self._logs = logs
        self._known = submitit.SlurmJob
        with _slurm_errors():
            self._executor = submitit.AutoExecutor(folder=str(logs), cluster="slurm")
            self._executor.update_parameters(**parameters)

    def start(self, command: Sequence[str], log: Path) -> "SlurmJob":
        """Submit a job, which has the name of its log, or find it where Slurm still has it."""
        number = self._logs / f"{log.stem}.id"
        with contextlib.suppress(OSError):
            job = self._known(folder=str(self._logs), job_id=number.read_text(encoding="utf-8").strip())
            # Slurm's records lack a job that was submitted a moment ago, and one from long ago.
            forgotten = job.state.upper() == "UNKNOWN" and time.time() - number.stat().st_mtime > FORGOTTEN
            if not job.done(force_check=True) and not forgotten:
                return SlurmJob(job)
        with _slurm_errors():
            self._executor.update_parameters(name=log.stem)
            job = self._executor.submit(OnNode(command, log.resolve()))
        write_whole(number, lambda file: file.write_text(job.job_id, encoding="utf-8"))
        return SlurmJob(job)


class SlurmJob:
    """A job that was submitted to Slurm, with the methods of a process that the runner uses."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        """Return the job's exit code, None while Slurm has it."""
        if not self._job.done():
            return None
        if self._job.exception() is not None:
            print(f"Slurm's job {self._job.job_id} did not end as it should: {self._job.exception()}", file=sys.stderr)
            return USER_ERROR
        return int(self._job.result())

    def terminate(self) -> None:
        """Do nothing: the job goes on in Slurm."""

    def wait(self) -> None:
        """Do nothing: the runner does not wait for Slurm when it ends."""


class OnNode:
    """Runs a command on the machine that Slurm chose. A call returns the command's exit code.

    The output of the command goes to `log`, as for a job on this machine.

    Slurm sends SIGUSR2 before it ends or preempts a job. submitit then calls `checkpoint`, and lets Slurm start the job
    again. The signal also reaches the command, which must ignore it.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command, self._log = [sys.executable, *command[1:]], log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # The new process inherits this.
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as output:
                self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        finally:
            signal.signal(signal.SIGUSR2, handler)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Make the command save and end, and return the submission of its next start."""
        if self._process is not None:
            self._process.terminate()
            # Not `wait`: `__call__`, which this interrupts, holds the lock that `wait` needs.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        again = OnNode(self._command, self._log)
        return importlib.import_module("submitit").helpers.DelayedSubmission(again)


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise UserError(f"--slurm {text}: give KEY=VALUE, such as timeout_min=600")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


@contextlib.contextmanager
def _slurm_errors() -> Iterator[None]:
    """Turn submitit's errors on an unknown parameter, a missing srun or a refused job into a UserError."""
    try:
        yield
    except (NameError, RuntimeError) as error:
        raise UserError(f"--launcher slurm: {in_one_line(error)}; see --slurm, or use --commands") from error
