"""Runs the worker, watches it from outside, and starts it again after a case that killed it or hung."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.cases import PROGRAMS, Case
from tests.fuzz.worker import MAX_PIXELS
from tests.support.memory import status

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10  # That a case may take.
START_SECONDS = 300  # That a worker may take to import and compile everything and to make its seeds.
TICK = 0.25
WORKER = "tests.fuzz.worker"
CLOCK = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": "",
    "MPLBACKEND": "agg",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "DEEPLAB_JAX_MAX_PIXELS": str(MAX_PIXELS),
    "COLUMNS": "120",
}


class Outcome(NamedTuple):
    """How one case ended; `fault` is "" where it ended well, `saved` is where its files lie otherwise."""

    family: str
    index: int
    inputs: int
    code: int
    fault: str
    words: list[str]
    saved: Path | None = None


def outcomes(family: str, seed: int, first: int, last: int, keep: Path) -> Iterator[Outcome]:
    """Run the cases `first` to `last` of a family.

    Args:
      family: name.
      seed: of all cases.
      first, last: the cases.
      keep: folder to which the files of failing cases go.

    Yields:
      Every case's outcome.
    """
    while first < last:
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(_one_worker(family, seed, first, last, Path(folder))) as found,
        ):
            for outcome in found:
                first = outcome.index + 1
                yield _kept(outcome, Path(folder), keep / f"{family}_{seed}_{outcome.index}")


def _kept(outcome: Outcome, folder: Path, target: Path) -> Outcome:
    """Keep the files of a case that failed."""
    if not outcome.fault:
        return outcome
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(folder / str(outcome.index), target)
    (target / "fault.txt").write_text(f"{outcome.words}\n{outcome.fault}\n", "utf-8", "replace")
    return outcome._replace(saved=target)


class Ended(NamedTuple):
    """How a process of its own ended: its exit code, what it printed, the seconds and bytes that it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    memory: int


def alone(case: Case, *, tiny: bool, seconds: float = START_SECONDS) -> Ended:
    """Run a case as a process of its own, which is killed when it takes too long.

    Args:
      case: what to run.
      tiny: whether it needs the networks of `tests.support.tiny`.
      seconds: that it may take.
    """
    module = PROGRAMS[case.program]
    start = ["tests.fuzz.own", module] if tiny else [module.removesuffix(".__main__")]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", *start, *case.words],
            env={**os.environ, **ENVIRONMENT},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        clock, memory = Clock(process.pid), 0
        while process.poll() is None and clock.seconds < seconds:
            time.sleep(TICK / 5)
            clock.tick(TICK / 5)
            with suppress(KeyError):  # One that has just ended has none.
                memory = max(memory, status("VmHWM", process.pid))
        process.kill()
        code = process.wait()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Ended(code, *texts, clock.seconds, memory)


def _one_worker(family: str, seed: int, first: int, last: int, folder: Path) -> Iterator[Outcome]:
    """Run cases until all are done, or one kills the worker."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", WORKER, family, seed, first, last, folder, writing]
    with (folder / "start").open("w") as start:
        worker = subprocess.Popen(
            list(map(str, command)),
            pass_fds=[writing],
            env={**os.environ, **ENVIRONMENT},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=start,
        )
    os.close(writing)
    begun: dict[str, Any] | None = None
    limit = START_SECONDS
    try:
        with os.fdopen(reading, "rb", buffering=0) as channel:  # A buffer would hide lines from `select`.
            while line := _next_line(channel, worker, limit):
                content: dict[str, Any] = json.loads(line)
                if "ready" in content:
                    limit = SECONDS
                    continue
                if "begin" in content:
                    begun = content
                    continue
                yield Outcome(
                    family, content["end"], begun["inputs"], content["code"], content["fault"], begun["words"]
                )
                begun = None
        code = worker.wait(START_SECONDS)
    finally:
        worker.kill()
        worker.wait()
    if begun is None and code:
        files = [file for file in (folder / "start", folder / "stderr") if file.exists()]
        text = "".join(file.read_text("utf-8", "replace")[-3000:] for file in files)
        raise RuntimeError(f"the worker of {family} ended with {code} between cases: {text}")
    if begun is not None:
        trace = (folder / "stderr").read_text("utf-8", "replace")[-5000:]
        fault = f"the process ended with {code}, or hung: {trace}"
        yield Outcome(family, begun["begin"], begun["inputs"], code, fault, begun["words"])


class Clock:
    """The time of a process: that in which it computes or waits for something.

    Not that in which it is stopped or waits for a processor, so that limits hold on a busy machine as well.
    """

    def __init__(self, pid: int) -> None:
        self.seconds = self._used = 0.0
        self._pid = pid

    def tick(self, seconds: float) -> str:
        """Look again after so many seconds; return the state of the process, "Z" where it has ended."""
        state, *numbers = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(numbers[10]) + int(numbers[11])) / CLOCK
        if used > self._used:
            self.seconds += min(seconds, used - self._used)
        elif state in ("S", "D"):
            self.seconds += seconds
        self._used = used
        return state


def _next_line(channel: Any, worker: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the worker's next line, none where it died or hung."""
    clock = Clock(worker.pid)
    while clock.seconds < seconds:
        ready, _, _ = select.select([channel], [], [], TICK)
        if ready or clock.tick(TICK) == "Z":
            return channel.readline()
    worker.send_signal(signal.SIGABRT)  # faulthandler then says where it is.
    time.sleep(1)
    worker.kill()
    return b""
