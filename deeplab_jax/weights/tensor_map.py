"""An importer's description of a foreign state dict: its network, and which tensor belongs to which of our variables.

An importer is a module with a function `recognise(shapes, *, output_stride) -> TensorMap | None` and tables of names.
The tables lead from our layers to theirs, so export can use them too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import Segmenter

Shapes = Mapping[str, tuple[int, ...]]
Names = tuple[str, str]  # A layer's convolution and its norm; "" if it has none.
# A pattern for the path of one of our layers, and its names there: fixed, or made from the numbers in the path.
Rule = tuple[str, Names | Callable[..., Names]]


@dataclass(frozen=True)
class Leaf:
    """One kind of tensor of a layer.

    Attributes:
      suffix: the part after the layer's name.
      axes: `theirs.transpose(axes)` is ours; None means no change.
    """

    suffix: str
    axes: tuple[int, ...] | None = None

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """Return their tensor in our layout."""
        return value if self.axes is None else value.transpose(self.axes)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """Return our variable in their layout."""
        return value if self.axes is None else value.transpose(np.argsort(self.axes))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape there of a variable of ours."""
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))


@dataclass(frozen=True)
class Layout:
    """A framework's names and layouts for what we call kernel, bias, scale, mean and var.

    Attributes:
      kernel: that of convolutions.
      depthwise: the kernel of depthwise convolutions.
      bias: that of convolutions.
      norm: our names to theirs, of a batch norm.
    """

    kernel: Leaf
    depthwise: Leaf
    bias: Leaf
    norm: Mapping[str, Leaf]


TORCH = Layout(
    kernel=Leaf(".weight", (2, 3, 1, 0)),
    depthwise=Leaf(".weight", (2, 3, 1, 0)),
    bias=Leaf(".bias"),
    norm={
        "scale": Leaf(".weight"),
        "bias": Leaf(".bias"),
        "mean": Leaf(".running_mean"),
        "var": Leaf(".running_var"),
    },
)
SLIM = Layout(
    kernel=Leaf("/weights"),
    depthwise=Leaf("/depthwise_weights", (0, 1, 3, 2)),
    bias=Leaf("/biases"),
    norm={
        "scale": Leaf("/gamma"),
        "bias": Leaf("/beta"),
        "mean": Leaf("/moving_mean"),
        "var": Leaf("/moving_variance"),
    },
)
KERAS = Layout(
    kernel=Leaf("/kernel"),
    depthwise=Leaf("/kernel", (0, 1, 3, 2)),
    bias=Leaf("/bias"),
    norm=SLIM.norm,
)


@dataclass(frozen=True)
class TensorMap:
    """How to turn a foreign state dict into a model folder.

    Attributes:
      name: the argument of `create_model`, as are the next two, the options and the module.
      num_classes: classes of the source.
      output_stride: output stride at which the peer runs.
      options: all values that differ from our defaults.
      module: path of the user's own file, if the network needs one.
      rules: our layers' names there; the first pattern that matches the whole path applies. A layer's path is that of
        its `ConvNorm` or `Conv`, such as "backbone/conv2_unit1/conv1". Without rules the names are ours.
      layout: layout of the tensors.
      unused: patterns of tensors that the network does not need (counters, an ImageNet classifier).
      inputs: for each of our layers whose inputs are concatenated in another order there, by its path: the index there
        of each of our input channels.
      absent: patterns of our variables' paths that the source does not have and that start at random.
      notes: the network's differences from the paper's, one sentence each.
      kind: name of the importer, which `convert` adds.
      info: other known facts: class names, palette.
      prepare: rewrites the tensors first, if some of ours are not equal to one of theirs; None changes nothing.
    """

    name: str
    num_classes: int
    output_stride: int
    rules: Sequence[Rule] = ()
    layout: Layout = TORCH
    options: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None

    def model(self, *, num_classes: int | None = None) -> Segmenter:
        """Return the network."""
        return create_model(
            self.name,
            num_classes=self.num_classes if num_classes is None else num_classes,
            output_stride=self.output_stride,
            module=self.module,
            **self.options,
        )


def their_name(variable: str, *, rules: Sequence[Rule], layout: Layout) -> tuple[str, Leaf]:
    """Return the name there of one of our variables, and its kind.

    Args:
      variable: path such as "params/backbone/conv1/norm/batch/scale".
      rules: see `TensorMap`.
      layout: see `Layout`.

    Raises:
      KeyError: there is no rule for its layer.
    """
    if not rules:
        return variable, Leaf("")
    leaf = variable.rsplit("/", 1)[1]
    layer = layer_of(variable)
    if "/norm/batch/" in variable:
        return _names(layer, rules)[1] + layout.norm[leaf].suffix, layout.norm[leaf]
    kernel = layout.depthwise if layer.endswith("depthwise") else layout.kernel  # A grey image's stem has its shape.
    kind = layout.bias if leaf == "bias" else kernel
    return _names(layer, rules)[0] + kind.suffix, kind


def first_are_last(first: int, inputs: int) -> tuple[int, ...]:
    """Return the order of a layer's inputs (see `TensorMap.inputs`) of which the `first` ones there are our last."""
    return (*range(first, inputs), *range(first))


def reorder_inputs(kernel: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return a kernel of ours with its inputs in another order; a depthwise kernel has them on its last axis."""
    return np.take(kernel, np.asarray(order), axis=3 if kernel.shape[2] == 1 else 2)


def path_of(variable: str) -> str:
    """Return the path of a variable within its collection."""
    return variable.split("/", 1)[1]


def layer_of(variable: str) -> str:
    """Return the path of the `ConvNorm`, or else the `Conv`, that a variable belongs to."""
    *path, _ = path_of(variable).split("/")
    if path[-2:] == ["norm", "batch"]:
        return "/".join(path[:-2])
    return "/".join(path[:-1] if path[-1] == "conv" and len(path) > 1 else path)


def _names(layer: str, rules: Sequence[Rule]) -> Names:
    for pattern, names in rules:
        match = re.fullmatch(pattern, layer)
        if match:
            return names(*[int(g) if g.isdigit() else g for g in match.groups()]) if callable(names) else names
    raise KeyError(f"no rule for the layer {layer!r}")
