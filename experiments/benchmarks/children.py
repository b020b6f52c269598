"""Measurements that need a process of their own: of memory, of a first compilation, on one core."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from experiments.benchmarks.machine import ROOT

MARK = "RESULT "


def run_child(part: str, arguments: Mapping[str, Any], *, on: Collection[int] | None = None) -> dict[str, Any]:
    """Run a part's `child` in a new process and return what it does.

    Args:
      part: its name in the table of children.
      arguments: JSON.
      on: numbers of the processors that the process may use, its threads included; None is those of this one.

    Raises:
      RuntimeError: the process failed; with the last line that it said.
    """
    command = [sys.executable, "-m", "experiments.benchmarks", "--child", json.dumps({"part": part, **arguments})]
    with affinity(on):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not results:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise RuntimeError(f"the child process of {part} ended with {done.returncode}: {said}")
    return json.loads(results[-1].removeprefix(MARK))


def print_result(result: Mapping[str, Any]) -> None:
    """Hand a child's result to its parent."""
    print(MARK + json.dumps(result), flush=True)


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
