"""JSON from files that anybody may have written: what is wrong with one is an OSError or a ValueError; and to files,
whole or not at all.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Levels of lists and objects; what walks over the content recurs as often."""
MAX_BYTES = 64 * 2**20
"""Of a file; a row of results or a run's configuration has some thousand."""


def read_json(file: Path, *, limit: int = MAX_BYTES) -> Any:
    """Read a file.

    Args:
      file: UTF-8.
      limit: bytes that it may have.

    Raises:
      OSError: it is missing, cannot be read, or is no regular file (which may have no end).
      ValueError: it is too large, not UTF-8, not JSON, or nested too deeply.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(file))
    if status.st_size > limit:
        raise ValueError(f"{status.st_size} bytes, and {limit} are the limit")
    return parse_json(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: Any) -> None:
    """Write a file so that it is either the old one or the new one, never half of it.

    Raises:
      OSError: it cannot be written.
    """
    temporary = temporary_of(file)
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def temporary_of(file: Path) -> Path:
    """Return where `write_json` writes until all is there; a process that was killed may leave it."""
    return file.with_suffix(".tmp")


def parse_json(text: str) -> Any:
    """Parse a text.

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
