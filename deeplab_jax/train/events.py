"""The event file for TensorBoard.

tensorboardX's `SummaryWriter` writes one in a thread. A full disk ends that thread without a message, the thread's
queue fills up, and training waits for ever. So this module writes the records in the caller's thread, and raises the
errors.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _without_torch() -> Iterator[None]:
    """Make an import of PyTorch fail in this context, unless it is imported already."""
    absent: Any = None  # Makes an import fail.
    sys.modules.setdefault("torch", absent)
    try:
        yield
    finally:
        if sys.modules["torch"] is None:
            del sys.modules["torch"]


with _without_torch():  # tensorboardX imports it, which takes seconds, although nothing here uses it.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar


class EventFile:
    """A new event file.

    Args:
      folder: created if it does not exist.
      start: step after which the run resumes; TensorBoard hides what older files say of later ones.

    Raises:
      OSError: the file cannot be written; the methods raise it too.
    """

    def __init__(self, folder: Path, *, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.3f}.{socket.gethostname()}"
        self._records = RecordWriter(str(folder.absolute() / name))
        self._write(file_version="brain.Event:2")
        # It hides its own step, too, and does so from the second such record on. So the first file has one as well.
        self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))
        self._records.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step by name."""
        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))
        self._records.flush()

    def picture(self, step: int, name: str, file: Path) -> None:
        """Write the picture of a step, from a PNG file."""
        content = file.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # A PNG begins with 8 bytes, a length and "IHDR".
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
