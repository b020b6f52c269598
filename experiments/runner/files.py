"""JSON files that are whole or not there, and locks that die with their process."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.weights.whole_file import write_whole


def write_json(file: Path, content: Any) -> None:
    """Write a file at once, its folder too.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(content, indent=1) + "\n"
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


class Unreadable(ValueError):
    """A file holds something else than it should; the message says what is wrong with it."""


def read_json(file: Path, *, needs: tuple[str, ...]) -> dict[str, Any] | None:
    """Read an object that has certain keys; None where there is no file.

    Raises:
      Unreadable: half a file, or another one.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable(str(error)) from None
    missing = [key for key in needs if not isinstance(content, dict) or key not in content]
    if missing:
        raise Unreadable(f"it has no {missing[0]!r}")
    return dict(content)


@contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Hold a lock that the system lets go of when this process ends, however it ends.

    Raises:
      UserError: another process holds it (`busy` is the message), or it cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("w")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); give another --runs") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(busy) from None
        yield
