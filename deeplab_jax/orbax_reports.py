"""What a user sees of the reports of Orbax and TensorStore: one line for each warning."""

import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable
from functools import cache, partial
from types import TracebackType
from typing import Any

# Files that the reports come from, as their paths have them.
OF_ORBAX = re.compile(r"[\\/](orbax|tensorstore)[\\/]")


@cache
def hush() -> None:
    """Show little of what Orbax and TensorStore report, for the rest of the process: some of it comes late. Whatever
    comes from elsewhere passes.

    Orbax reports every phase of every save through absl. Only its warnings are shown. Its errors come once for each of
    its threads; they are raised, too. asyncio reports the reads that Orbax no longer waited for.
    """
    logging.getLogger("asyncio").addFilter(lambda record: not is_of_orbax(record))
    logging.getLogger("absl").addFilter(OneLineWarnings())
    sys.unraisablehook = partial(report_unraisable, otherwise=sys.unraisablehook)


def is_of_orbax(record: logging.LogRecord) -> bool:
    """Whether Orbax or TensorStore logged a record, or asyncio about their code."""
    places = [record.pathname, *(_files(record.exc_info[2]) if record.exc_info else ())]
    if record.name == "asyncio":
        places.append(record.getMessage())  # It says where a coroutine stands.
    return any(map(OF_ORBAX.search, places))


def _files(trace: TracebackType | None) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(trace)]


class OneLineWarnings(logging.Filter):
    """Pass on each of Orbax's warnings once, on one line, and nothing else of Orbax."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not is_of_orbax(record):
            return True
        if record.levelno != logging.WARNING:
            return False
        text = " ".join(record.getMessage().split())
        if text in self._shown:
            return False
        self._shown.add(text)
        record.msg, record.args = text, ()
        return True


def report_unraisable(report: Any, *, otherwise: Callable[[Any], Any]) -> None:
    """Pass on errors that cannot be raised, except those of a checkpoint's other reads after one has failed.

    TensorStore sends a message to a loop that is closed, and Orbax answers the end of its coroutine with an error.
    Where Python code sent the message, such as a `__del__`, the report names its function.
    """
    ended = isinstance(getattr(report.exc_value, "__cause__", None), GeneratorExit)
    if ended and any(map(OF_ORBAX.search, _files(report.exc_traceback))):
        return
    if str(report.exc_value) == "Event loop is closed" and not inspect.isfunction(report.object):
        return
    otherwise(report)
