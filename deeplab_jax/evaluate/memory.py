"""Turns an out-of-memory error of the host or a device into a UserError that names a smaller window."""

import contextlib
from collections.abc import Iterator

import jax

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.evaluate.windows import Size

USUAL_WINDOW = (513, 513)
SMALLEST_WINDOW = 65
FLAG = "--window "


@contextlib.contextmanager
def names_what_fits(
    name: str, protocol: Protocol, size: Size | None = None, *, fewer: str = "", window: str = FLAG
) -> Iterator[None]:
    """Turn "out of memory" within the block into a UserError that names what was run and the flag that needs less.

    Args:
      name: the file, or what else was run.
      protocol: how it was run.
      size: (height, width) of its image; None while it is read.
      fewer: the flag with which images run alone, if several ran together. It changes no number, so it comes first.
      window: how the flag of a window begins.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(name, protocol, size, fewer, window) from None


def out_of_memory(name: str, protocol: Protocol, size: Size | None, fewer: str = "", window: str = FLAG) -> UserError:
    """Return the error that `names_what_fits` raises."""
    pixels = f" at {size[1]}x{size[0]} pixels" if size else ""
    return UserError(
        f"{name}: out of memory{pixels}; {f'give {fewer}' if fewer else what_fits(protocol, size, window)}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the host or a device has no memory left."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        text = str(error)
        return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower() or "bad_alloc" in text
    # OpenCV has an error of its own.
    return isinstance(error, MemoryError) or "Insufficient memory" in str(error)


def what_fits(protocol: Protocol, size: Size | None, window: str = FLAG) -> str:
    """Return the flag that needs less memory."""
    if size is None:
        return "give a smaller image, or a machine with more memory"
    if protocol.crf:
        return "leave out --crf, which keeps the probabilities of the whole image"
    if not protocol.window:
        fits = USUAL_WINDOW if max(size) > max(USUAL_WINDOW) else _half(size)
    else:
        fits = _half((protocol.window[0], protocol.window[1]))
    if fits is None:
        return "give a machine with more memory"
    return f"give {window}{fits[0]},{fits[1]}"


def _half(size: Size) -> Size | None:
    """Return about half of each side, as k * 16 + 1 pixels, or None if they are small already."""
    if max(size) <= SMALLEST_WINDOW:
        return None
    height, width = (max(SMALLEST_WINDOW, (side - 1) // 32 * 16 + 1) for side in size)
    return height, width
