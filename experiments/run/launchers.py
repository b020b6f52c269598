"""Where jobs run: on this machine one after another, on Slurm, or wherever the user takes their commands."""

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
    """A process that ends with this one: its standard input is a pipe that only this one holds.

    Jobs on this machine and on Slurm have the same two methods. `code` returns the exit code, None while the job runs.
    `stop` has the job save and end.
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

    Small networks gain little by a second core: two jobs on a core each end sooner than one after the other on both.

    Attributes:
      limit: of jobs at once; 0: none, as on Slurm.
      left: says what becomes of the jobs when the runner ends.
    """

    left = "What ran has saved its state."

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
    """A command on the machine that Slurm chose; called, it returns the command's exit code.

    What it prints goes to `log`, as on this machine.

    Slurm sends SIGUSR2 before it ends or preempts a job. submitit then calls `checkpoint` and has Slurm start the job
    again. The signal reaches the command, too, and would end it.
    """

    def __init__(self, command: Command, log: Path) -> None:
        self._command, self._log = [sys.executable, *command[1:]], log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # A new process ignores it, too.
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as output:
                self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        finally:
            signal.signal(signal.SIGUSR2, handler)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Have the command save and end, and return its next start."""
        if self._process is not None:
            self._process.terminate()
            # This interrupts `__call__`, which waits for the process and holds the lock that `wait` needs.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        again = OnNode(self._command, self._log)
        return importlib.import_module("submitit").helpers.DelayedSubmission(again)


class SlurmJob:
    """A job that submitit knows."""

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
        """Leave it in Slurm's hands."""


class Slurm:
    """Submits all jobs at once. The nodes of Slurm must see the folder of the runs.

    A file beside submitit's own keeps the number of each job. So a later runner waits for a job that Slurm still has,
    and does not submit it again.

    Raises:
      UserError: submitit is not installed.
    """

    limit = 0
    left = "What was submitted stays with Slurm (scancel ends it)."

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
            # Slurm's records do not know a job that was just submitted, nor one from long ago.
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
    """Turn what submitit says of an unknown parameter, a missing srun or a refused job into a UserError."""
    try:
        yield
    except (NameError, RuntimeError) as error:
        raise UserError(f"--launcher slurm: {' '.join(str(error).split())}; see --slurm, or use --commands") from error


Launcher = Local | Slurm
