"""Several processes that work as one: how they start, fail together, and notice that one of them is gone.

All functions use small collectives, so every process has to make the same calls in the same order. A process that runs
alone need not wait.
"""

import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from deeplab_jax.errors import ToldElsewhere, UserError, in_one_line

Item = TypeVar("Item")

ALONE, DETECTED = "none", "auto"
LOST = 75  # Exit code if another process is gone: EX_TEMPFAIL, as after SIGTERM.
TIMEOUT = 900.0  # seconds; the default of `config.train.timeout`
JOINING = 300.0  # seconds for all processes to start
GOODBYE = 10.0  # seconds to wait for the others at the end
# JAX aborts a process that misses its heartbeats, with a stack trace; `_Watchdog` ends it long before.
HEARTBEAT = 24 * 3600
# Parts of JAX's errors after a collective has lost a process. Only the first has occurred in tests.
SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "coordination service")


def run_as_one(where: str, run: Callable[[], int]) -> int:
    """Run a function that returns an exit code, as one of several processes unless `where` is "none".

    Args:
      where: "none"; "auto": JAX finds the others itself (Slurm, Kubernetes, Open MPI, TPU pods); or
        "HOST:PORT,COUNT,INDEX": an address of the first process that the others can reach, the number of processes, and
        the index of this one, from 0.
      run: called once the other processes have started.

    Returns:
      The exit code, if this process is alone. Otherwise the process ends here: an interpreter that exits waits for
      threads that may hang, and a first process that ends early aborts the others.

    Raises:
      UserError: `where` is none of these, or no other processes were found.
    """
    if where == ALONE:
        return run()
    join(where)
    try:
        code = run()
    except BaseException as error:
        if is_lost(error):
            give_up(f"a collective failed ({in_one_line(error)})")
        traceback.print_exc()
        code = 1
    leave(code)


def join(where: str) -> None:
    """Wait until all processes have started; end this one with `LOST` if they do not in time. See `run_as_one`."""
    arguments: dict[str, Any] = (
        {} if where == DETECTED else {**explicit(where), "cluster_detection_method": "deactivate"}
    )
    jax.config.update("jax_enable_preemption_service", False)  # It would take SIGTERM away from us.
    failures: list[BaseException] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=int(2 * JOINING) + 60,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=int(6 * GOODBYE),
            )
        except BaseException as error:
            failures.append(error)

    # In a thread, because signals would have to wait for it, and JAX aborts the process after its own timeout.
    thread = threading.Thread(target=initialize, name="joining", daemon=True)
    thread.start()
    thread.join(JOINING)
    if thread.is_alive():
        print(
            f"deeplab-jax: --distributed {where}: not all processes were there within {JOINING:g} s; check that each "
            "was started and that HOST:PORT is an address of process 0, then start all of them again",
            file=sys.stderr,
        )
        _end(LOST)  # The thread hangs.
    for error in failures:
        if not isinstance(error, RuntimeError | ValueError):
            raise error
        raise UserError(
            f"--distributed {where}: the other processes were not found ({in_one_line(error)}); give "
            "HOST:PORT,COUNT,INDEX, the same HOST:PORT on all of them"
        ) from None
    _watchdog.start()


def explicit(where: str) -> dict[str, Any]:
    """Read "HOST:PORT,COUNT,INDEX" as the arguments of `jax.distributed.initialize`."""
    address, *numbers = where.split(",")
    try:
        count, index = map(int, numbers)
        fits = 0 <= index < count and address.rpartition(":")[2].isdecimal() and ":" in address[1:]
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"--distributed {where}: give none, auto, or HOST:PORT,COUNT,INDEX with INDEX from 0 to COUNT - 1, such as "
            "node1:12345,2,0"
        )
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def leave(code: int) -> NoReturn:
    """End this process when all are about to end, or after a few seconds."""
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(GOODBYE)
    _end(code)


def is_first() -> bool:
    """Whether this is the one process that writes and prints."""
    return jax.process_index() == 0


def largest(value: int) -> int:
    """Return the largest of the processes' numbers, int32."""
    return int(_gather(value).max())


def summed(counts: np.ndarray) -> np.ndarray:
    """Return the sum of the processes' int64 counts `[...]`, exactly."""
    if jax.process_count() == 1:
        return counts
    halves = counts.astype(np.int64).ravel().view(np.uint32)  # JAX would cut the numbers to 32 bits.
    rows = np.ascontiguousarray(multihost_utils.process_allgather(halves)).view(np.int64)
    return np.asarray(rows.sum(axis=0).reshape(counts.shape))


def listed(lines: Sequence[str]) -> list[str]:
    """Return the lines of all processes, one process after another."""
    if jax.process_count() == 1:
        return list(lines)
    text = np.frombuffer("\n".join(lines).encode(errors="surrogateescape"), np.uint8)
    padded = np.zeros(largest(text.size) + 1, np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    texts = [row.tobytes().rstrip(b"\0").decode(errors="surrogateescape") for row in rows]
    return [line for text in texts for line in text.split("\n") if line]


def gathered(items: list[Any]) -> list[Any]:
    """Return the items of all processes, which JSON can hold, one process after another."""
    return items if jax.process_count() == 1 else [json.loads(line) for line in listed([*map(json.dumps, items)])]


def own_share(total: int) -> range:
    """Return the part of `total` things, divided evenly, that belongs to this process."""
    return range(jax.process_index(), total, jax.process_count())


def in_step(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield items one by one, and empty lists after this process's last item while another process still has some."""
    while True:
        with together():
            item = list(itertools.islice(items, 1))
        if not largest(len(item)):
            return
        yield item


def whole(tree: Any) -> Any:
    """Return arrays that are spread over all processes as numpy arrays, complete on each of them."""
    return multihost_utils.process_allgather(tree, tiled=True)


@contextmanager
def together() -> Iterator[None]:
    """Fail on every process if a block fails on one. In the block no process may wait for another.

    Raises:
      ToldElsewhere: it failed on another process, where its own exception is raised.
    """
    if jax.process_count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        if is_lost(error):
            raise
        failure = error
    failed = np.flatnonzero(_gather(int(failure is not None)))
    if failed.size and failure is not None and failed[0] == jax.process_index():
        raise failure
    if failed.size:
        raise ToldElsewhere(f"process {failed[0]} of {jax.process_count()} failed, and says why") from failure


def is_lost(error: BaseException) -> bool:
    """Whether an exception means that another process is gone."""
    if not jax.distributed.is_initialized():
        return False
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    # Gloo's errors come as ValueError, others as RuntimeError.
    return any(
        isinstance(each, ValueError | RuntimeError)
        and not isinstance(each, UserError)
        and any(sign in str(each) for sign in SIGNS_OF_LOSS)
        for each in chain
    )


def give_up(why: str) -> NoReturn:
    """Report in one line that another process is gone, and end this process: what it waits for will never come."""
    print(
        f"deeplab-jax: process {jax.process_index()} of {jax.process_count()}: another process died or hangs: {why}; "
        "start all of them again to go on from the newest checkpoint",
        file=sys.stderr,
    )
    _end(LOST)


def watch(seconds: float) -> None:
    """Set how many seconds this process waits without a sign of the others (`config.train.timeout`)."""
    _watchdog.limit = seconds


class _Watchdog(threading.Thread):
    """Ends the process if the others show no sign of life: a collective with a lost process never returns."""

    def __init__(self) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.limit, self._silent = TIMEOUT, 0.0

    def heard(self) -> None:
        """Record that all processes are there now."""
        self._silent = 0.0

    def run(self) -> None:
        # Counts naps, not the clock: time during which the machine or this process was suspended must not count.
        while self._silent < self.limit:
            time.sleep(nap := min(1.0, self.limit / 4))
            self._silent += nap
        give_up(f"no sign of it for {self.limit:g} s (config.train.timeout)")


_watchdog = _Watchdog()


def _gather(value: int) -> np.ndarray:
    """Return the number of every process, int32 `[processes]`."""
    if jax.process_count() == 1:
        return np.asarray([value], np.int32)
    values = multihost_utils.process_allgather(np.asarray([value], np.int32), tiled=True)
    _watchdog.heard()
    return np.asarray(values)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
