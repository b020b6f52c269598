"""Start several processes of one job on this machine, to test a job for a cluster or to use one process for each GPU.

    python -m experiments.launch.local --processes 2 --devices 2 -- train --config configs/scenes.py --workdir runs/two
    python -m experiments.launch.local --processes 4 --gpus -- train --config configs/voc.py --workdir runs/voc

With `--gpus`, process 0 has the first GPU, process 1 the second, and so on.

Every line of output gets the number of its process. When one process ends badly, the others get a few seconds to
notice it, and are then killed. The launcher passes Ctrl-C and SIGTERM on to all of them. If it is killed itself, they
get SIGTERM where the system has setpriv. The exit code is that of the first process that failed. It is 75 where that
process was killed by a signal; the same command then goes on from the newest checkpoint.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from deeplab_jax.commands import INTERRUPTED, PREEMPTED
from experiments.program import parser_of

TETHER = ("setpriv", "--pdeathsig", "TERM", "--") if shutil.which("setpriv") else ()
GRACE = 20.0  # seconds for the others to notice that one is gone; longer than they wait for each other at the end


class Job:
    """The processes of one command."""

    def __init__(self, words: Sequence[str], *, processes: int, devices: int, gpus: bool = False) -> None:
        address = f"127.0.0.1:{free_port()}"
        environment = dict(os.environ)
        if devices:
            environment["JAX_NUM_CPU_DEVICES"] = str(devices)
        self._readers: list[threading.Thread] = []
        self.processes: list[subprocess.Popen[str]] = []
        for index in range(processes):
            process = subprocess.Popen(
                [*TETHER, *command(words, address=address, processes=processes, index=index)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment | ({"JAX_LOCAL_DEVICE_IDS": str(index)} if gpus else {}),
                start_new_session=True,  # Ctrl-C reaches them once, through this process.
            )
            self.processes.append(process)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                assert source is not None
                reader = threading.Thread(target=pass_on, args=(source, target, f"[{index}] "), daemon=True)
                reader.start()
                self._readers.append(reader)

    def send(self, number: int) -> None:
        """Send a signal to the processes that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """Kill the processes that still run."""
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, signals: Sequence[int]) -> int:
        """Wait for all processes, and return 0, or the exit code of the first one that failed (negative for a signal).

        After a failure the others have `GRACE` seconds to end. `signals` may grow meanwhile: each signal is sent once
        to the processes that still run.
        """
        failure, deadline, sent = 0, float("inf"), 0
        while True:
            for number in signals[sent:]:
                self.send(number)
                sent += 1
            codes = [process.poll() for process in self.processes]
            if not failure and any(codes):
                failure, deadline = next(filter(None, codes)), time.monotonic() + GRACE
            if None not in codes:
                break
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(0.05)
        for reader in self._readers:
            reader.join()
        return failure


def command(words: Sequence[str], *, address: str, processes: int, index: int) -> list[str]:
    """Return the command line of a process. A single process needs no address."""
    several = [] if processes == 1 else ["--distributed", f"{address},{processes},{index}"]
    return [sys.executable, "-u", "-m", "deeplab_jax", *words, *several]


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def pass_on(source: IO[str], target: IO[str], prefix: str) -> None:
    """Copy lines, each with a prefix."""
    with source:
        for line in source:
            target.write(prefix + line)
            target.flush()


def run(words: Sequence[str], *, processes: int, devices: int, restarts: int, gpus: bool = False) -> int:
    """Start the command, start it again up to `restarts` times where it can go on, and return the exit code."""
    signals: list[int] = []  # The handler only notes them, so that none is lost between two starts or within one.

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    for start in range(restarts + 1):
        if signals:
            return PREEMPTED if signal.SIGTERM in signals else INTERRUPTED
        job = Job(words, processes=processes, devices=devices, gpus=gpus)
        try:
            code = job.wait(signals)
        finally:
            job.kill()
        can_go_on = code == PREEMPTED or code < 0  # It was preempted, lost a process, or was killed.
        if not can_go_on or signals or start == restarts:
            break
        print(f"ended with {code}; start {start + 2} of at most {restarts + 1}", file=sys.stderr, flush=True)
    return PREEMPTED if code < 0 else code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("launch.local", __doc__)
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("--devices", type=int, default=0, help="CPU devices of each process; 0: those that JAX finds")
    parser.add_argument("--gpus", action="store_true", help="give each process one GPU, in their order")
    parser.add_argument("--restarts", type=int, default=0, help="number of restarts after a loss or SIGTERM")
    parser.add_argument("words", nargs="+", metavar="-- VERB ...", help="verb and flags of python -m deeplab_jax")
    args = parser.parse_args(argv)
    if args.processes < 1 or args.devices < 0 or args.restarts < 0:
        parser.error("--processes has to be at least 1, --devices and --restarts at least 0")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher, and return the exit code; see the module."""
    args = parse(argv)
    return run(**vars(args))


if __name__ == "__main__":
    sys.exit(main())
