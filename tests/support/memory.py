"""The memory of a process, as Linux counts it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def status(field: str, process: int | str = "self") -> int:
    """Return a figure of a process's memory, in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def reset_peak() -> int:
    """Let this process's peak, `VmHWM`, begin again at what is in use; return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


@contextmanager
def grows_by_less_than(limit: int) -> Iterator[None]:
    """Fail where this process ever has `limit` bytes or more beyond what it has at the start of the block."""
    before = reset_peak()
    yield
    assert status("VmHWM") - before < limit
