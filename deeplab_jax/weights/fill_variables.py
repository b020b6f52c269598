"""From a tensor map and a state dict to variables: every tensor is used exactly once, or listed."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from deeplab_jax.errors import UserError, spell
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.tensor_map import Leaf, TensorMap, layer_of, path_of, reorder_inputs, their_name


def fill_variables(
    tensor_map: TensorMap,
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    num_classes: int | None = None,
    reinit: str = "",
    strict: bool = True,
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Return the network of a tensor map, with each variable filled from its tensor.

    Args:
      tensor_map: from an importer.
      tensors: name to array, all of the source.
      source: its name for messages.
      num_classes: classes of the model; None means as many as the source has.
      reinit: "head" starts the classifiers at random, as another number of classes needs; "" does not.
      strict: whether to refuse missing, unexpected and mis-shaped tensors. Otherwise their variables start at random,
        and `report` lists them.

    Returns:
      `(model, variables, report)`. The report counts the tensors used, and lists those left out and the variables that
      start at random.

    Raises:
      UserError: tensors that do not fit, with a list of them; another class count without `reinit`; a value that is not
        finite.
    """
    if reinit not in ("", "head"):
        raise UserError(f"reinit={reinit!r}: give 'head', or leave it out")
    tensors = tensor_map.prepare(tensors) if tensor_map.prepare else tensors
    classes = tensor_map.num_classes if num_classes is None else num_classes
    model = tensor_map.model(num_classes=classes)
    expected = {name: leaf.shape for name, leaf in flatten_variables(abstract_variables(model)).items()}
    places = _places(tensor_map, expected)
    absent, heads = expected.keys() - places.keys(), {name for name in expected if is_classifier(name)}
    if classes != tensor_map.num_classes and reinit != "head" and not heads <= absent:
        raise UserError(
            f"{source}: its classifier has {tensor_map.num_classes} classes, num_classes={classes} was asked for; "
            "add reinit='head' (--reinit head) to start the classifier at random"
        )
    anew = absent | (heads if reinit == "head" else set())
    taken, problems = _take(tensor_map, tensors, {name: p for name, p in places.items() if name not in anew}, expected)
    used = {places[name][0] for name in taken}
    unused = [name for name in tensors if name not in used]
    unexpected = _unexpected(tensor_map, unused, known={theirs for theirs, _ in places.values()})
    texts = [text for _, text in problems] + [f"unexpected {name}" for name in unexpected]
    if texts and strict:
        raise UserError(
            f"{source}: read as {tensor_map.kind}'s {tensor_map.name}, but {spell(texts, separator='; ')}; "
            "give another kind=, or strict=False (--not_strict) to go on without them"
        )
    _check_finite(taken, source)
    at_random = sorted(anew | {name for name, _ in problems})
    found = {**taken, **_random(model, at_random)}
    report = {"tensors": len(taken), "unused": unused, "random": at_random, "mismatched": texts}
    return model, unflatten_dict({name: jnp.asarray(found[name]) for name in expected}, sep="/"), report


def _places(tensor_map: TensorMap, names: Iterable[str]) -> dict[str, tuple[str, Leaf]]:
    """Return the name in the source, and its kind, of each of our variables that the source has."""
    there = [name for name in names if not any(re.match(pattern, path_of(name)) for pattern in tensor_map.absent)]
    return {name: their_name(name, rules=tensor_map.rules, layout=tensor_map.layout) for name in there}


def _unexpected(tensor_map: TensorMap, unused: Iterable[str], *, known: Collection[str]) -> list[str]:
    """Return the unused tensors that the network should not have: no variable is made of them, and the importer does
    not know that they are left out.
    """
    patterns = tensor_map.unused
    return [name for name in unused if name not in known and not any(re.search(one, name) for one in patterns)]


def _take(
    tensor_map: TensorMap,
    tensors: Mapping[str, np.ndarray],
    places: Mapping[str, tuple[str, Leaf]],
    expected: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Return our variables in our layout, and the faults of the others, by their names."""
    taken: dict[str, np.ndarray] = {}
    problems: list[tuple[str, str]] = []
    for name, (theirs, leaf) in places.items():
        shape, value = expected[name], tensors.get(theirs)
        if value is None:
            problems.append((name, f"missing {theirs}"))
        elif not jax.dtypes.issubdtype(value.dtype, np.floating):  # The scale of integers is not known.
            problems.append((name, f"{theirs} holds {value.dtype}, and weights are floating-point numbers"))
        elif value.ndim != len(shape) or (ours := leaf.to_ours(value)).shape != shape:
            problems.append((name, f"{theirs} has shape {value.shape}, {name} needs {shape}"))
        else:
            order = tensor_map.inputs.get(layer_of(name)) if name.endswith("/kernel") else None
            taken[name] = np.asarray(ours if order is None else reorder_inputs(ours, order), np.float32)
    return taken, problems


def is_classifier(path: str) -> bool:
    """Return whether a variable belongs to a layer that returns logits of classes."""
    return any(part.startswith("classifier") for part in path.split("/"))


def _random(model: Segmenter, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not names:
        return {}
    side = model.fitting_side(65)

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        variables = flatten_variables(model.init(key, jnp.zeros((1, side, side, model.in_channels)), train=False))
        return {name: variables[name] for name in names}

    # It runs once, so it is compiled quickly.
    values = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
    return {name: np.asarray(value) for name, value in values.items()}


def _check_finite(variables: Mapping[str, np.ndarray], source: str) -> None:
    for name, value in variables.items():
        if not np.isfinite(value).all():
            raise UserError(f"{source}: the tensor for {name} holds values that are not finite; the file is damaged")
        if name.endswith("/var") and value.min(initial=0.0) < 0:
            raise UserError(f"{source}: the tensor for {name} holds a variance below 0; the file is damaged")
