"""Files that other people wrote, and files that must be whole: reading JSON, writing, locking, checksums."""

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError

CHECKSUMS = "checksums.json"
TEMPORARY = ".tmp"
"""How the names of files end that are not whole yet."""
DEEPEST = 64
"""Levels of lists and objects; what walks over the content recurs as often."""
MAX_BYTES = 64 * 2**20
"""Of a file; a row of results or a run's configuration has some thousand."""


def read_json(file: Path, *, limit: int = MAX_BYTES) -> Any:
    """Return what a JSON file holds, which anybody may have written.

    Args:
      file: UTF-8.
      limit: bytes that it may have.

    Raises:
      OSError: it is missing, cannot be read, or is no regular file (which may have no end).
      ValueError: it is too large, not UTF-8, not JSON, or nested too deeply.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    if status.st_size > limit:
        raise ValueError(f"{status.st_size} bytes, and {limit} are the limit")
    return parse_json(file.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
      ValueError: it is not JSON, nested more than `DEEPEST` levels deep, or holds half a surrogate pair.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        inner = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in inner if isinstance(item, dict | list)]
    if level:
        raise ValueError("nested too deeply")
    if "\\ud" in text.lower():  # Half a pair of these makes a text that cannot be written anywhere.
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path beside `file` to write to, and put what was written there in its place at once.

    So `file` is the old one or the new one, never half of it; where the block fails, it is the old one. A process that
    was killed may leave the other file, whose name ends in `TEMPORARY`.

    Raises:
      OSError: it cannot be written.
    """
    fresh = file.with_name(f"{file.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield fresh
        os.replace(fresh, file)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Any) -> None:
    """Write a file, whole or not at all, and on the disk when this returns.

    Raises:
      OSError: it cannot be written.
    """
    with replacing(file) as fresh, fresh.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file, whole or not at all, for a user who named it; its folder is made where missing.

    Raises:
      UserError: it cannot be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as fresh:
            write(fresh)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror or error}); free space or choose another"
        ) from None
    return file


@contextmanager
def locked(file: Path, busy: str, *, option: str, say: Callable[[str], Any] = print) -> Iterator[None]:
    """Hold a lock that the system lets go of when this process ends, however it ends.

    It is one call of the system. The package filelock looks again and again where it should wait, and on a file system
    without locks it leaves a file that keeps the next process out when this one was killed.

    Args:
      file: made where it is not there, with its folder.
      busy: the message where another process holds it; "" to wait until it lets go.
      option: of the command line, by which another folder is given.
      say: gets a line where the file system has no locks; what is locked goes on without one.

    Raises:
      UserError: another process holds it, or the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); give another {option}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError as error:  # Some network file systems have none.
            say(
                f"note: {file.parent} cannot be locked ({error.strerror}), so nothing keeps a second process out; "
                "see to it that there is none"
            )
        yield


def write_checksums(folder: Path, parts: Iterable[str]) -> None:
    """Write `checksums.json`, the SHA-256 of every file in some sub-folders by its path, whole or not at all.

    Raises:
      OSError: a file cannot be read, or this one not be written.
    """
    sums = {name: digest for part in parts for name, digest in _sums(folder, part).items()}
    write_json(folder / CHECKSUMS, sums)


def damage(folder: Path, part: str) -> str:
    """Return in a few words which files of a sub-folder are not what was written, "" where all are.

    It is "" without sums, too: a process may have been killed before it wrote them.
    """
    try:
        wanted = {name: digest for name, digest in read_json(folder / CHECKSUMS).items() if name.startswith(f"{part}/")}
        found = _sums(folder, part)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as error:
        return f"{CHECKSUMS}: {error}"
    changed = [name for name, digest in wanted.items() if found.get(name) != digest]
    return f"not what was written: {changed[0]}, {len(changed)} of {len(wanted)} files" if changed else ""


def _sums(folder: Path, part: str) -> dict[str, str]:
    files = sorted(file for file in (folder / part).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): _digest(file) for file in files}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
