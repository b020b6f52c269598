"""Multiply-adds of a network, counted where its modules call convolutions.

One abstract run of the network at a given size returns every convolution with its shapes. So the counts are those of
the network that runs, in any lowering, and not of a second description of it.

Only convolutions count, as in the papers: no normalisation, activation, pooling, bilinear resize or bias. An auxiliary
head counts too, as a separate part; inference leaves it out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.ops.observe import Convolution, observe_convolutions

Counting = Literal["exact", "valid", "space_to_batch"]


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of one forward pass.

    Attributes:
      total: sum over all layers.
      layers: (name, count) in the order of the first calls; the calls of a layer add up.
    """

    total: int
    layers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Call:
    """A convolution and the module that called it, such as "backbone/conv4_unit3/conv2"."""

    layer: str
    convolution: Convolution


def multiply_adds(model: Segmenter, height: int, width: int, *, counting: Counting = "exact") -> MultiplyAdds:
    """Return the multiply-adds for one image, from the convolutions that the modules call.

    Args:
      model: from `create_model`; its weights are not needed.
      height: height of the image in pixels, a size that `model.fitting_side` returns.
      width: its width.
      counting: "exact" counts every tap at every output sample, on the map or on padding. "valid" counts only the taps
        on the map (DeepLabv3, sec. 3.3). "space_to_batch" computes an atrous convolution of rate r on a map of n
        samples as TensorFlow does, on `r * ceil(n / r)` of them per side; the papers' numbers are of this kind.

    Raises:
      UserError: an unknown counting, or an image that is too small.
    """
    return count(record(model, height, width).calls, counting=counting)


def count(calls: Iterable[Call], *, counting: Counting = "exact") -> MultiplyAdds:
    """Return the sum of recorded calls; see `multiply_adds`."""
    if counting not in get_args(Counting):
        raise UserError(f"counting={counting!r}: {did_you_mean(str(counting), get_args(Counting))}")
    layers: dict[str, int] = {}
    for call in calls:
        layers[call.layer] = layers.get(call.layer, 0) + products(call.convolution, counting=counting)
    return MultiplyAdds(sum(layers.values()), tuple(layers.items()))


def products(convolution: Convolution, *, counting: Counting = "exact") -> int:
    """Return the multiply-adds of one convolution.

    A transposed convolution multiplies every input sample with its whole kernel, and all of these products lie on the
    map. So its three counts are the same.
    """
    c = convolution
    images, channels = c.inputs[0], c.kernel[2] * c.kernel[3]
    if c.transposed:
        return images * c.inputs[1] * c.inputs[2] * c.kernel[0] * c.kernel[1] * channels
    pairs = [_output_taps(c, axis, counting) for axis in (0, 1)]
    return images * pairs[0] * pairs[1] * channels


def _output_taps(c: Convolution, axis: int, counting: Counting) -> int:
    """Return the number of pairs of an output sample and a tap along one axis."""
    if counting == "valid":
        return int(np.sum(c.taps_on_map(axis)))
    outputs = c.outputs[axis + 1]
    if counting == "space_to_batch" and c.rate > 1 and c.stride == 1:
        outputs = c.rate * -(-outputs // c.rate)
    return outputs * c.kernel[axis]


@dataclass(frozen=True)
class Record:
    """The record of one abstract run of a network.

    Attributes:
      calls: its convolutions, in order.
      variables: shapes and dtypes of the model's variables.
      stages: names in the order of the run; see `stage_of`.
      shapes: output shapes of the stages, and of "logits".
    """

    calls: tuple[Call, ...]
    variables: Variables
    stages: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]


def record(model: Segmenter, height: int, width: int) -> Record:
    """Run a network abstractly on one image; nothing is computed.

    Raises:
      UserError: the image is too small.
    """
    fitting = (model.fitting_side(height), model.fitting_side(width))
    if fitting != (height, width):
        raise UserError(f"size {height}x{width}: this network does not take it; {fitting[0]}x{fitting[1]} would fit")
    watcher = Watcher()

    def run(images: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        logits, variables = model.init_with_output(jax.random.key(0), images, train=False)
        variables = {name: tree for name, tree in variables.items() if name in ("params", "batch_stats")}
        return variables, {**watcher.outputs, "logits": jnp.asarray(logits)}

    images = jax.ShapeDtypeStruct((1, height, width, model.in_channels), jnp.float32)
    with watcher.watch():
        variables, outputs = jax.eval_shape(run, images)
    shapes = {name: leaf.shape for name, leaf in outputs.items()}
    return Record(tuple(watcher.calls), variables, tuple(watcher.stages), shapes)


def stage_of(path: Sequence[str]) -> str:
    """Return the stage of a module or parameter: in a backbone the name of its features, otherwise the part ("context",
    "decoder", "classifier", "aux_head", "pyramid").
    """
    if path[0] == "backbone" and len(path) > 1:
        # A plain ResNet's only convolution before its stages has its name from the paper.
        return "stem" if path[1] == "conv1" else path[1].split("_")[0]
    return path[0]


class Watcher:
    """Records the convolutions of a run, its stages, and what they return at the first call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.stages: dict[str, None] = {}
        self.outputs: dict[str, jax.Array] = {}
        self._paths: list[tuple[str, ...]] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record what this thread runs within the context."""
        with observe_convolutions(self._note_call), nn.intercept_methods(self._note_method):
            yield

    def _note_call(self, convolution: Convolution) -> None:
        # `ConvNorm` calls its convolution by this name, which tells nothing.
        path = self._paths[-1][:-1] if self._paths[-1][-1] == "conv" else self._paths[-1]
        self.calls.append(Call("/".join(path), convolution))

    def _note_method(self, method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        self._paths.append(path)
        try:
            result = method(*args, **kwargs)
        finally:
            self._paths.pop()
        # A subclass may call its base's method.
        if context.method_name != "__call__" or not path or path in self._paths:
            return result
        if path == ("backbone",):
            for name, (features, _) in result.items():
                self.outputs.setdefault(name, features)
            return result
        self.stages.setdefault(stage_of(path))
        if len(path) == 1:
            self.outputs.setdefault(path[0], result)
        return result
