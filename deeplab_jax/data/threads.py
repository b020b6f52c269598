"""One function of many items, in threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each item."""


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None = None
) -> list[Result]:
    """Return the results for the items, in order. Decoding an image releases the interpreter lock.

    Raises:
      Exception: the first that `function` raises, in the order of the items; what has not begun then is not computed.
    """
    results: list[Result] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for result in pool.map(function, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # An interrupt does not wait for the rest.
    return results
