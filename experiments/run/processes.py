"""The process of a job, on the side of the runner and on its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


def start_job(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a job. It ends when this process ends: its standard input is a pipe that only this process holds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        words = [sys.executable, *command[1:], "--tethered"]
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # Several jobs may share one GPU.
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment)


def end_with_parent() -> None:
    """End this process when its standard input ends. That happens when the runner that started it ends."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # Without a buffer, whose lock would hold up the end of the process.
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep_to_cores(share: str) -> None:
    """Keep this process, and the threads that it is going to start, to a share of its cores.

    Args:
      share: `INDEX/COUNT`; empty: all of them.
    """
    if share and hasattr(os, "sched_setaffinity"):
        index, count = map(int, share.split("/"))
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index::count] or [cores[index % len(cores)]])
