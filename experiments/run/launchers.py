"""Launchers of jobs: on this machine, or on Slurm."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.commands import USER_ERROR
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole

Command = Sequence[str]
FORGOTTEN = 3600.0  # seconds after which a job that Slurm knows nothing of counts as gone


class LocalJob:
    """A job that is a process on this machine. It ends when this process ends: its standard input is a pipe that only
    this process holds.

    `LocalJob` and `SlurmJob` have the same two methods. `code` returns the exit code, None while the job runs. `stop`
    makes the job save and end.
    """

    def __init__(self, command: Command, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command[1:], "--tethered"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def code(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self.code()


class Local:
    """Starts jobs on this machine: one after another, or several at once, each on its own share of the cores.

    Small networks gain little from a second core. On two cores, two jobs at once end sooner than one after the other.

    Attributes:
      limit: largest number of jobs at once; 0: no limit, as on Slurm.
      left: message on the state of the jobs when the runner ends.
    """

    left = "The running jobs have saved their state."

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._running: dict[int, LocalJob] = {}

    def start(self, name: str, command: Command, log: Path) -> LocalJob:
        share = next(
            share
            for share in range(self.limit)
            if share not in self._running or self._running[share].code() is not None
        )
        cores = ["--cores", f"{share}/{self.limit}"] if self.limit > 1 else []
        self._running[share] = LocalJob([*command, *cores], log)
        return self._running[share]


def keep_to_cores(share: str) -> None:
    """Keep this process, and the threads that it is going to start, to a share of its cores.

    Args:
      share: `INDEX/COUNT`; empty: all of them.
    """
    if share and hasattr(os, "sched_setaffinity"):
        index, count = map(int, share.split("/"))
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index::count] or [cores[index % len(cores)]])


class OnNode:
    """Runs a command on the machine that Slurm chose. A call returns the command's exit code.

    The output of the command goes to `log`, as for a `LocalJob`.

    Slurm sends SIGUSR2 before it ends or preempts a job. submitit then calls `checkpoint`, and lets Slurm start the job
    again. The signal also reaches the command, which must ignore it.
    """

    def __init__(self, command: Command, log: Path) -> None:
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


class SlurmJob:
    """A job that was submitted to Slurm; see `LocalJob`."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def code(self) -> int | None:
        if not self._job.done():
            return None
        if self._job.exception() is not None:
            print(f"Slurm's job {self._job.job_id} did not end as it should: {self._job.exception()}", file=sys.stderr)
            return USER_ERROR
        return int(self._job.result())

    def stop(self) -> None:
        """Do nothing: the job goes on in Slurm."""


class Slurm:
    """Submits all jobs to Slurm at once. The nodes of Slurm must see the folder of the runs.

    The folder of submitit's logs also gets a file with the number of each job. So a later runner waits for a job that
    Slurm still has, and does not submit it again.

    Raises:
      UserError: submitit is not installed.
    """

    limit = 0
    left = "The submitted jobs stay with Slurm (scancel ends them)."

    def __init__(self, logs: Path, parameters: Mapping[str, Any]) -> None:
        try:
            submitit = importlib.import_module("submitit")
        except ImportError:
            raise UserError("--launcher slurm needs submitit: python -m pip install submitit") from None
        self._logs = logs
        self._known = submitit.SlurmJob
        with _slurm_errors():
            self._executor = submitit.AutoExecutor(folder=str(logs), cluster="slurm")
            self._executor.update_parameters(**parameters)

    def start(self, name: str, command: Command, log: Path) -> SlurmJob:
        number = self._logs / f"{name}.id"
        with contextlib.suppress(OSError):
            job = self._known(folder=str(self._logs), job_id=number.read_text(encoding="utf-8").strip())
            # Slurm's records lack a job that was submitted a moment ago, and one from long ago.
            forgotten = job.state.upper() == "UNKNOWN" and time.time() - number.stat().st_mtime > FORGOTTEN
            if not job.done(force_check=True) and not forgotten:
                return SlurmJob(job)
        with _slurm_errors():
            self._executor.update_parameters(name=name)
            job = self._executor.submit(OnNode(command, log.resolve()))
        write_whole(number, lambda file: file.write_text(job.job_id, encoding="utf-8"))
        return SlurmJob(job)


@contextlib.contextmanager
def _slurm_errors() -> Iterator[None]:
    """Turn submitit's errors on an unknown parameter, a missing srun or a refused job into a UserError."""
    try:
        yield
    except (NameError, RuntimeError) as error:
        raise UserError(f"--launcher slurm: {' '.join(str(error).split())}; see --slurm, or use --commands") from error


Launcher = Local | Slurm
