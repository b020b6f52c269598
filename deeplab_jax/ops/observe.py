"""Observing the convolutions that a network calls, to count its multiply-adds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from deeplab_jax.ops.geometry import Pads, taps_on_map


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

    def taps_on_map(self, axis: int) -> np.ndarray:
        """Return which taps lie on the map, bool `[outputs, taps]`, along the rows (axis 0) or the columns (1)."""
        size, outputs, taps = self.inputs[axis + 1], self.outputs[axis + 1], self.kernel[axis]
        return taps_on_map(size, outputs, taps, stride=self.stride, rate=self.rate, before=self.padding[axis][0])


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
