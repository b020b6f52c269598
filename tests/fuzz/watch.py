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
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.cases import PROGRAMS, Case
from tests.fuzz.worker import MAX_PIXELS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10  # That a case may take.
START_SECONDS = 300  # That a worker may take to import everything, make its seeds and run its first case.
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


def alone(case: Case) -> tuple[int, str, str]:
    """Run a case as a process of its own; return its exit code and what it prints to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", PROGRAMS[case.program].removesuffix(".__main__"), *case.words],
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


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
                if "begin" in content:
                    begun = content
                    continue
                yield Outcome(
                    family, content["end"], begun["inputs"], content["code"], content["fault"], begun["words"]
                )
                begun, limit = None, SECONDS
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


def _next_line(channel: Any, worker: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the worker's next line, none where it died or hung.

    Time in which it waited for something counts, time in which it was stopped or waited for a processor does not.
    """
    left, before = seconds, 0.0
    while left > 0:
        ready, _, _ = select.select([channel], [], [], TICK)
        if ready:
            return channel.readline()
        state, *numbers = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(numbers[10]) + int(numbers[11])) / CLOCK
        if used > before:
            left -= min(TICK, used - before)
        elif state in ("S", "D"):
            left -= TICK
        elif state == "Z":
            return channel.readline()
        before = used
    worker.send_signal(signal.SIGABRT)  # faulthandler then says where it is.
    time.sleep(1)
    worker.kill()
    return b""
