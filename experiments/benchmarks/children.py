"""Runs measurements in a new process: those of memory, of a first compilation, and on one core."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from experiments import ROOT

MARK = "RESULT "


def run_child(part: str, *, on: Collection[int] | None = None, **arguments: Any) -> dict[str, Any]:
    """Run the function `child` of a part in a new process, and return its result.

    Args:
      part: name of the part in `CHILDREN`.
      on: numbers of the processors that the new process and its threads may use; None: those of this process.
      **arguments: arguments of the function, as JSON.

    Raises:
      RuntimeError: the process failed. The message has the last line of its output.
    """
    command = [sys.executable, "-m", "experiments.benchmarks", "--child", json.dumps({"part": part, **arguments})]
    with affinity(on):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not results:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise RuntimeError(f"the child process of {part} ended with {done.returncode}: {said}")
    return json.loads(results[-1].removeprefix(MARK))


@contextmanager
def affinity(processors: Collection[int] | None) -> Iterator[None]:
    """Restrict this thread, and the processes that it starts in this context, to some processors."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
