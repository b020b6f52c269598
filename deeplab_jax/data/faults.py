"""Faults of reading: examples that cannot be read, and readers that die or hang."""

import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from deeplab_jax.data.mask_formats import PalettesDifferError
from deeplab_jax.data.source import Example, Source
from deeplab_jax.errors import StuckError, UserError, spell

Item = TypeVar("Item")

NOT_REPLACED = -1
GLANCE = 1.0  # seconds between checks while it waits
END = object()


class Read(NamedTuple):
    """An example, and the index of the one that it replaces, or `NOT_REPLACED`."""

    example: Example
    replaced: int


@dataclasses.dataclass(frozen=True)
class Replacing:
    """A source that replaces each unreadable example by the next readable one, by index.

    So what is read depends only on the files, not on the time or the process.
    """

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Read:
        for offset in range(len(self)):
            try:
                example = self.source[(index + offset) % len(self)]
            except PalettesDifferError:
                raise
            except UserError:
                continue
            return Read(example, index if offset else NOT_REPLACED)
        raise UserError(f"{self.source.name}: not one of {len(self)} examples can be read; see check-data")


class Skipped:
    """The unreadable examples of a source so far; raises a UserError if they become too many.

    Args:
      source: the source of the examples.
      share: share of the examples that may be skipped, 0 to 1.
    """

    def __init__(self, source: Source, share: float) -> None:
        self._source, self._share = source, share
        self._reasons: dict[int, str] = {}

    def add(self, index: int) -> None:
        """Count an example."""
        if index in self._reasons:
            return
        try:
            self._source[index]
            self._reasons[index] = f"{self._source.describe(index)}: could not be read before, and now can"
        except UserError as error:
            self._reasons[index] = str(error)
        if len(self._reasons) > self._share * len(self._source):
            raise UserError(
                f"{len(self._reasons)} of {len(self._source)} examples of {self._source.name} cannot be read, more "
                f"than config.data.max_skipped={self._share} allows: {spell(list(self._reasons.values()))}"
            )

    def lines(self) -> list[str]:
        """Return the fault of each, in the order of their indices."""
        return [self._reasons[index] for index in sorted(self._reasons)]


def never() -> bool:
    """Return False: there is no reason to stop."""
    return False


def within(
    items: Callable[[], Iterator[Item]],
    seconds: float,
    *,
    what: Callable[[int], str],
    workers: int = 0,
    stopped: Callable[[], bool] = never,
) -> Iterator[Item]:
    """Yield the items of an iterator, each of which must arrive within a time.

    Args:
      items: returns the iterator; both run in a separate thread.
      seconds: how long to wait for an item.
      what: returns a phrase for what item number n (from 0) is read from.
      workers: number of processes that supply the items in turn; 0: threads.
      stopped: returns whether no more items are wanted; checked while one is waited for; ends the iterator.

    Raises:
      StuckError: an item did not arrive, because the reader hangs.
      UserError: a worker process died.
    """
    arrivals, number = Arrivals(items), 0
    try:
        while True:
            reader = f"worker process {number % workers + 1} of {workers}" if workers else "a thread"
            try:
                item, error = arrivals.next(seconds, stopped)
            except queue.Empty:
                kill_workers()
                raise StuckError(
                    f"no data for {seconds:g} s: {reader} hangs in reading {what(number)}; check that these "
                    f"files can be read, or wait longer: --config.data.timeout={2 * seconds:g}"
                ) from None
            if item is END:
                return
            if error is not None:
                if not workers or isinstance(error, UserError) or "terminated unexpectedly" not in str(error):
                    raise error
                raise UserError(
                    f"{reader} died ({error.args[0].split('.')[0]}), reading ahead from {what(number)}; if "
                    "memory is short use fewer config.data.workers, then start again"
                ) from None
            yield item
            number += 1
    finally:
        arrivals.close()


class Arrivals:
    """Runs an iterator in a thread, which computes one item ahead until `close`."""

    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items
        self._channel: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        # A daemon thread: the interpreter would wait for another kind, and this one may hang. Grain starts its threads
        # from it, so they are daemons too.
        threading.Thread(target=self._run, name="reading", daemon=True).start()

    def next(self, seconds: float, stopped: Callable[[], bool]) -> tuple[Any, BaseException | None]:
        """Return the next item, `END` after the last one or once `stopped` returns True; or None and the iterator's
        error.

        Raises:
          queue.Empty: none arrived within the time.
        """
        deadline = time.monotonic() + seconds
        while not stopped():
            try:
                return self._channel.get(timeout=max(0.0, min(GLANCE, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise
        return END, None

    def close(self) -> None:
        """Let the thread end after the item that it is at."""
        self._closed.set()

    def _run(self) -> None:
        try:
            for item in self._items():
                self._offer(item)
                if self._closed.is_set():
                    return
            self._offer(END)
        except BaseException as error:
            self._offer(None, error)

    def _offer(self, item: Any, error: BaseException | None = None) -> None:
        while not self._closed.is_set():
            try:
                return self._channel.put((item, error), timeout=1)
            except queue.Full:
                continue


def kill_workers() -> None:
    """End this process's worker processes at once: the batches are divided among them, so the others are useless once
    one has stopped.
    """
    for process in multiprocessing.active_children():
        if process.name.startswith("grain-"):
            process.kill()


def start_worker(index: int, count: int) -> None:
    """Prepare a worker process: it leaves signals to the trainer, and ends if the trainer has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="parent", daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
