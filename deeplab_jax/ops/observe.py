"""Observing the convolutions that a network calls, to count its multiply-adds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from deeplab_jax.ops.geometry import Pads


@dataclass(frozen=True)
class Convolution:
    """One call of `conv2d` or `conv_transpose2d`.

    Attributes:
      inputs, kernel, outputs: shapes, `[N, H, W, C]`, HWIO and `[N, H', W', D]`.
      rate, stride: the arguments.
      padding: zeros `((top, bottom), (left, right))`.
      groups: 1, or the channels of a depthwise convolution.
      transposed: whether it is a transposed convolution, whose stride spreads the inputs.
    """

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    outputs: tuple[int, ...]
    rate: int
    stride: int
    padding: Pads
    groups: int
    transposed: bool = False


_observer: ContextVar[Callable[[Convolution], None] | None] = ContextVar("observer", default=None)


@contextmanager
def observe_convolutions(observer: Callable[[Convolution], None]) -> Iterator[None]:
    """Call `observer` with every convolution that this thread computes or traces within the context, in any lowering.

    Observers nest: only the innermost one is called.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def notify(convolution: Convolution) -> None:
    """Tell the observer, if there is one, about a convolution."""
    observer = _observer.get()
    if observer is not None:
        observer(convolution)
