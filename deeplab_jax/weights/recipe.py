"""What an importer says of a foreign state dict: its network, and which of its tensors is which of ours.

An importer is a module with a function `recognise(shapes, *, output_stride) -> Recipe | None` and tables of names. The
tables lead from our layers to theirs, so that they serve export as well.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.weights.folder import flatten_variables

Shapes = Mapping[str, tuple[int, ...]]
Names = tuple[str, str]  # Of a layer's convolution and of its norm; "" where it has none.
# A pattern for the path of one of our layers, and its names there: as they are, or made from the pattern's numbers.
Rule = tuple[str, Names | Callable[..., Names]]

LISTED = 5


@dataclass(frozen=True)
class Leaf:
    """One kind of tensor of a layer.

    Attributes:
      suffix: what follows the layer's name there.
      axes: `theirs.transpose(axes)` is ours; None leaves them as they are.
    """

    suffix: str
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """How a framework calls and lays out what we call kernel, bias, scale, mean and var.

    Attributes:
      kernel: of convolutions.
      depthwise: of depthwise convolutions.
      bias: of convolutions.
      norm: ours to theirs, of a batch norm.
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


@dataclass(frozen=True)
class Recipe:
    """How to make a model folder of a foreign state dict.

    Attributes:
      kind: name of the importer.
      name: for `create_model`, as are the next three.
      num_classes: of the source.
      output_stride: at which the peer runs.
      options: whatever differs from our defaults.
      rules: our layers' names there; the first pattern that matches the whole path counts. A layer's path is that of
        its `ConvNorm` or `Conv`, such as "backbone/conv2_unit1/conv1". Without rules the names are ours.
      layout: of the tensors.
      unused: patterns of tensors that the network has no use for (counters, an ImageNet classifier).
      inputs: of a layer of ours whose inputs are concatenated in another order there, by its path: for each input
        channel of ours, which one it is there.
      absent: patterns of our variables' paths that the source does not have, and that start at random.
      notes: how the network differs from the paper's, a sentence each.
      info: what else is known: class names, palette.
      prepare: rewrites the tensors first where one of ours is not one of theirs; None leaves them as they are.
    """

    kind: str
    name: str
    num_classes: int
    output_stride: int
    rules: Sequence[Rule] = ()
    layout: Layout = TORCH
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None

    def model(self, *, num_classes: int | None = None) -> Segmenter:
        """Build the network."""
        return create_model(
            self.name,
            num_classes=self.num_classes if num_classes is None else num_classes,
            output_stride=self.output_stride,
            **self.options,
        )


def their_name(variable: str, shape: tuple[int, ...], *, rules: Sequence[Rule], layout: Layout) -> tuple[str, Leaf]:
    """Return the name there of one of our variables, and its kind.

    Args:
      variable: path such as "params/backbone/conv1/norm/batch/scale".
      shape: of it; tells a depthwise kernel.
      rules: see `Recipe`.
      layout: see `Layout`.

    Raises:
      KeyError: no rule for its layer.
    """
    if not rules:
        return variable, Leaf("")
    leaf = variable.rsplit("/", 1)[1]
    layer = _layer(variable)
    if "/norm/batch/" in variable:
        return _names(layer, rules)[1] + layout.norm[leaf].suffix, layout.norm[leaf]
    kernel = layout.depthwise if leaf == "kernel" and shape[2] == 1 < shape[3] else layout.kernel
    kind = layout.bias if leaf == "bias" else kernel
    return _names(layer, rules)[0] + kind.suffix, kind


def _layer(variable: str) -> str:
    """Return the path of the `ConvNorm`, or else the `Conv`, that a variable belongs to."""
    *path, _ = _path(variable).split("/")
    if path[-2:] == ["norm", "batch"]:
        return "/".join(path[:-2])
    return "/".join(path[:-1] if path[-1] == "conv" and len(path) > 1 else path)


def _names(layer: str, rules: Sequence[Rule]) -> Names:
    for pattern, names in rules:
        match = re.fullmatch(pattern, layer)
        if match:
            return names(*[int(g) if g.isdigit() else g for g in match.groups()]) if callable(names) else names
    raise KeyError(f"no rule for the layer {layer!r}")


def assemble(
    recipe: Recipe,
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    num_classes: int | None = None,
    reinit: str = "",
    strict: bool = True,
    seed: int = 0,
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Build the network of a recipe and give each of its variables the tensor that belongs there.

    Args:
      recipe: from an importer.
      tensors: name to array, all that the source holds.
      source: for messages.
      num_classes: of the model; None is the source's.
      reinit: "head" starts the classifiers anew, as another number of classes needs; "" is not asked for.
      strict: refuse missing, unexpected and mis-shaped tensors. Otherwise the variables concerned start at random, and
        `report` lists them.
      seed: of what starts at random.

    Returns:
      `(model, variables, report)`; the report says how many tensors were used, and names those left out and the
      variables that start at random.

    Raises:
      UserError: tensors that do not fit, listed; another class count without `reinit`; a value that is not finite.
    """
    if reinit not in ("", "head"):
        raise UserError(f"reinit={reinit!r}: only 'head' can start anew")
    tensors = recipe.prepare(tensors) if recipe.prepare else tensors
    classes = recipe.num_classes if num_classes is None else num_classes
    model = recipe.model(num_classes=classes)
    expected = {name: leaf.shape for name, leaf in flatten_variables(abstract_variables(model)).items()}
    absent = {name for name in expected if any(re.match(pattern, _path(name)) for pattern in recipe.absent)}
    heads = {name for name in expected if is_classifier(name)}
    if classes != recipe.num_classes and reinit != "head" and not heads <= absent:
        raise UserError(
            f"{source}: its classifier has {recipe.num_classes} classes, num_classes={classes} was asked for; "
            "add reinit='head' (--reinit head) to start the classifier at random"
        )
    anew = absent | (heads if reinit == "head" else set())
    found: dict[str, np.ndarray] = {}
    problems: list[tuple[str, str]] = []
    known: set[str] = set()
    used: set[str] = set()
    for name, shape in expected.items():
        if name in absent:
            continue
        theirs, leaf = their_name(name, shape, rules=recipe.rules, layout=recipe.layout)
        if theirs in known:
            raise KeyError(f"two of our tensors are called {theirs!r} there; the rules of {recipe.kind} are wrong")
        known.add(theirs)
        if name in anew:
            continue
        value = tensors.get(theirs)
        if value is None:
            problems.append((name, f"missing {theirs}"))
        elif value.ndim != len(shape) or (ours := _to_ours(value, leaf)).shape != shape:
            problems.append((name, f"{theirs} has shape {value.shape}, {name} needs {shape}"))
        else:
            order = recipe.inputs.get(_layer(name)) if name.endswith("/kernel") else None
            used.add(theirs)
            found[name] = np.asarray(ours if order is None else _reordered(ours, order), np.float32)
    unused = [name for name in tensors if name not in used]
    unexpected = [
        name for name in unused if name not in known and not any(re.search(pattern, name) for pattern in recipe.unused)
    ]
    texts = [text for _, text in problems] + [f"unexpected {name}" for name in unexpected]
    if texts and strict:
        more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
        raise UserError(
            f"{source}: read as {recipe.kind}'s {recipe.name}, but {'; '.join(texts[:LISTED])}{more}; give another "
            "kind=, or strict=False (--not_strict) to go on without them"
        )
    _check_finite(found, source)
    at_random = sorted(anew | {name for name, _ in problems})
    found.update(_random(model, at_random, seed))
    report = {
        "tensors": len(expected) - len(at_random),
        "unused": unused,
        "random": at_random,
        "mismatched": texts,
    }
    return model, unflatten_dict({name: jnp.asarray(found[name]) for name in expected}, sep="/"), report


def _path(variable: str) -> str:
    return variable.split("/", 1)[1]


def _to_ours(value: np.ndarray, leaf: Leaf) -> np.ndarray:
    return value if leaf.axes is None else value.transpose(leaf.axes)


def _reordered(kernel: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Put the inputs of a kernel into another order; a depthwise one has them on its last axis."""
    return np.take(kernel, np.asarray(order), axis=3 if kernel.shape[2] == 1 else 2)


def is_classifier(path: str) -> bool:
    """Tell whether a variable is of a layer whose output are scores of classes."""
    return any(part.startswith("classifier") for part in path.split("/"))


def _random(model: Segmenter, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    if not names:
        return {}
    side = model.fitting_side(65)

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        variables = flatten_variables(model.init(key, jnp.zeros((1, side, side, 3)), train=False))
        return {name: variables[name] for name in names}

    # Run once, so compiled in a hurry.
    values = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(seed))
    return {name: np.asarray(value) for name, value in values.items()}


def _check_finite(variables: Mapping[str, np.ndarray], source: str) -> None:
    for name, value in variables.items():
        if not np.isfinite(value).all():
            raise UserError(f"{source}: the tensor for {name} holds values that are not finite; the file is damaged")
