"""Times functions ("contestants") that take turns, so that other work of the machine slows all of them alike."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Contestant = Callable[[], Any]

# A sample has this many seconds at least: a short function is called several times, up to `MOST_CALLS`.
LEAST, MOST_CALLS = 0.005, 1000
PAUSE = 0.01  # Seconds before each sample, in which the threads of the previous contestant go to sleep.


@dataclass(frozen=True)
class Race:
    """The result of a race.

    Attributes:
      seconds: seconds of one call, by contestant, one number for each round.
      errors: first line of the error of each contestant that failed in its first calls, and was left out.
      slow: seconds of one call of each contestant that was left out as too slow.
    """

    seconds: dict[str, list[float]]
    errors: dict[str, str] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)


def race(
    contestants: Mapping[str, Contestant],
    *,
    rounds: int,
    too_slow: float = math.inf,
    keep: Collection[str] = (),
) -> Race:
    """Time contestants in turns: A B C A B C ...

    Args:
      contestants: functions that return when their work is done, also on an accelerator.
      rounds: samples of each contestant, at least 1.
      too_slow: a contestant is left out if its call takes longer than this multiple of the fastest one's, and longer
        than `LEAST`. The first call of each does not count.
      keep: contestants that are never left out as too slow.

    Raises:
      ValueError: `rounds` is less than 1.
      Exception: a contestant raises it after its first calls.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: give at least 1")
    once: dict[str, float] = {}
    errors: dict[str, str] = {}
    for name, call in contestants.items():
        try:
            call()
            once[name] = min(_seconds(call, 1) for _ in range(2))
        except Exception as error:
            errors[name] = first_line(error)
    limit = max(LEAST, too_slow * min(once.values(), default=0.0))
    slow = {name: seconds for name, seconds in once.items() if seconds > limit and name not in keep}
    calls = {
        name: min(MOST_CALLS, max(1, math.ceil(LEAST / max(seconds, 1e-9))))
        for name, seconds in once.items()
        if name not in slow
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, count in calls.items():
            time.sleep(PAUSE)
            seconds[name].append(_seconds(contestants[name], count))
    return Race(seconds, errors, slow)


def _seconds(call: Contestant, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def summarize(result: Race, *, ours: str = "ours") -> dict[str, Any]:
    """Return a race as JSON: the times of each contestant, and the ratios of the others' times to ours.

    A ratio above 1 means that ours is faster. For the ratio `of_rounds`, the two times of each round are divided; it is
    the median over the rounds.

    Raises:
      RuntimeError: ours failed in its first calls.
    """
    if ours in result.errors:
        raise RuntimeError(result.errors[ours])
    others = [name for name in result.seconds if name != ours]
    return {
        "times": {name: statistics(samples) for name, samples in result.seconds.items()},
        "ratios": {name: ratio(result.seconds[name], result.seconds[ours]) for name in others},
        **({"errors": result.errors} if result.errors else {}),
        **({"slow": {name: significant(value) for name, value in result.slow.items()}} if result.slow else {}),
    }


def statistics(samples: Sequence[float]) -> dict[str, Any]:
    """Return the median, the spread (interquartile range divided by the median) and the samples themselves."""
    low, middle, high = np.percentile(np.asarray(samples), (25, 50, 75))
    return {
        "median": significant(middle),
        "spread": significant((high - low) / middle) if middle else 0.0,
        "seconds": [significant(value) for value in samples],
    }


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Return the ratio of two contestants of one race; see `summarize`."""
    return {"of_rounds": significant(np.median(np.asarray(theirs) / np.asarray(ours)))}


def per_second(result: Mapping[str, Any], work: float) -> dict[str, float]:
    """Return by contestant how much of the work of one call a summarized race has done in a second."""
    return {name: significant(work / times["median"]) for name, times in result["times"].items()}


def significant(value: float) -> float:
    """Return a number, rounded to five significant digits."""
    return float(f"{float(value):.5g}")


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its text. Paths in it lose their folders."""
    lines = str(error).strip().splitlines() or [""]
    words = (word.rsplit("/", 1)[-1] if word.count("/") > 1 else word for word in lines[0].split())
    return f"{type(error).__name__}: {' '.join(words)}"[:300]
