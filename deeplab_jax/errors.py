"""The one exception for any fault that the user can fix."""

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NoReturn

MOST_CHOICES = 6  # That a message names where a command lists all.


class UserError(ValueError):
    """A mistake of the user.

    The message is one line: it names the file or option, the wrong value, and the fix. The command line prints it to
    stderr and exits with code 2. Every other exception is a fault of the program and keeps its traceback.
    """


class DamagedFile(UserError):
    """A file from outside whose content is wrong. Another copy of it may be right."""


class StuckError(UserError):
    """A thread hangs in a call that does not return. Only `end_process` can end it, with the whole process."""

    raised = False  # Ever, in this process.

    def __init__(self, message: str) -> None:
        super().__init__(message)
        StuckError.raised = True


class ToldElsewhere(UserError):
    """Another process of a job has failed and tells the user why; this one ends without a message."""


def end_process(code: int) -> NoReturn:
    """End this process with an exit code; at once if a thread hangs, because the interpreter would wait for it."""
    if StuckError.raised:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def optional(what: str, *modules: str, install: str) -> list[ModuleType]:
    """Return modules of packages that only some users need.

    Args:
      what: the file or option that needs them.
      modules: their dotted names.
      install: the packages, as pip takes them.

    Raises:
      UserError: one of them is not installed.
    """
    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        missing = error.name or modules[0]
        raise UserError(f"{what}: needs {missing}, which is not installed; type pip install {install}") from None


def did_you_mean(word: str, choices: Iterable[object], *, listed_by: str = "", prefix: str = "") -> str:
    """Return a phrase that names the choices nearest to `word`, or all of them if none is near.

    Args:
      word: what the user wrote.
      choices: the valid words.
      listed_by: the command that lists them all; then the phrase names it, and `MOST_CHOICES` of them at most.
      prefix: stands before each of the nearest.

    Returns:
      `"did you mean a, b?"` or `"choose from a, b, c"`.
    """
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    some = spell(names, limit=MOST_CHOICES if listed_by else len(names))
    phrase = f"did you mean {', '.join(prefix + name for name in near)}?" if near else f"choose from {some}"
    return f"{phrase} (all: {listed_by})" if listed_by else phrase


def printable(text: str) -> str:
    """Return a text in which `?` replaces every character that cannot be printed, such as a line break or a terminal
    code.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def in_one_line(error: BaseException) -> str:
    """Return another library's message on one short line, or its type if it has none."""
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__


def kind_and_text(error: BaseException) -> str:
    """Return the type and the text of an error in a user's own code, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


def spell(values: Sequence[object], *, limit: int = 5, separator: str = ", ") -> str:
    """Return `1, 2, 3 and 7 more`: at most `limit` values of a list, for a message."""
    shown = separator.join(str(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"
