"""The operations of our networks as ONNX has them, by their names in JAX."""

import string
from dataclasses import replace
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.weights.onnx_graph import Graph, Operation, Value


def _elementwise(operation: str) -> Operation:
    def add(graph: Graph, eqn: Any, values: list[Value]) -> Value:
        out = eqn.outvars[0].aval
        # As the largest operand lies; others are small, or lie so, too.
        order = next((v.order for v in values if v.constant is None and not v.broadcast and v.order), None)
        order = order or next((v.order for v in values if v.constant is None and v.order), tuple(range(len(out.shape))))
        names = [
            graph.stored(value, order) if value.shape and value.order else graph.stored(value, ()) for value in values
        ]
        return _joined(graph.add(operation, *names), out, order, values)

    return add


def _joined(name: str, out: Any, order: tuple[int, ...], values: list[Value]) -> Value:
    """Return the result of an elementwise node, some of whose operands may be smaller than the array."""
    sides: list[Any] = [1] * len(order)
    for value in values:
        for axis, side in zip(value.order, value.sides, strict=True):
            if side != 1:
                sides[order.index(axis)] = side
    return Value(tuple(out.shape), np.dtype(out.dtype), name, None, order, tuple(sides))


def _maximum(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """A maximum with 0 is a ReLU, which runtimes join with the convolution before it."""
    for value, other in (values, values[::-1]):
        if value.constant is not None and not value.constant.any() and other.constant is None and not other.broadcast:
            return graph.result(graph.add("Relu", other.name), eqn.outvars[0].aval, other.order)
    return _elementwise("Max")(graph, eqn, values)


def _unchanged(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    return values[0]


def _broadcast(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """Insert sides of 1; nothing is repeated before a node needs it."""
    value, places = values[0], eqn.params["broadcast_dimensions"]
    shape = tuple(eqn.outvars[0].aval.shape)
    if value.shape and len(places) == len(shape):
        return replace(value, shape=shape)
    sides: list[Any] = [1] * len(shape)
    for axis, place in enumerate(places):
        sides[place] = value.sides[value.order.index(axis)]
    order = tuple(range(len(shape)))
    if (plain := value.plain) is not None:
        return Value(shape, value.dtype, "", plain.reshape(sides), order, tuple(sides))
    name = graph.add("Reshape", graph.stored(value), graph.numbers(_lengths(sides)))
    return Value(shape, value.dtype, name, None, order, tuple(sides))


def _lengths(sides: Any) -> list[int]:
    """Return sides for `Reshape`, which finds the one that is free."""
    return [side if isinstance(side, int) else -1 for side in sides]


def _reshape(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    (value, *_), out = values, eqn.outvars[0].aval
    name = graph.add("Reshape", graph.stored(value, whole=True), graph.numbers(_lengths(out.shape)))
    return graph.result(name, out)


def _transpose(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    (value,), places = values, list(eqn.params["permutation"])
    order = tuple(places.index(axis) for axis in value.order)
    return Value(tuple(eqn.outvars[0].aval.shape), value.dtype, value.name, value.constant, order, value.sides)


def _convolution(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """Add a convolution with its strides, rates and groups; its result lies as the node gives it, [N, C, H, W]."""
    (images, kernel), p = values, eqn.params
    lhs, rhs, result = p["dimension_numbers"]
    padding = p["padding"]
    if p["batch_group_count"] != 1 or min(map(min, padding)) < 0:
        raise UserError("a convolution of cropped maps has no form in ONNX here; use --format stablehlo or tflite")
    if any(side != 1 for side in p["lhs_dilation"]):
        return _transposed_convolution(graph, eqn, values)
    name = graph.add(
        "Conv",
        graph.stored(images, lhs, whole=True),
        graph.stored(kernel, rhs, whole=True),
        strides=list(p["window_strides"]),
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
        pads=[low for low, _ in padding] + [high for _, high in padding],
    )
    return graph.result(name, eqn.outvars[0].aval, result)


def _transposed_convolution(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """A convolution over a map with zeros between its samples, as `ConvTranspose`, which flips the kernel."""
    (images, kernel), p = values, eqn.params
    lhs, (out, into, *sides), result = p["dimension_numbers"]
    plain = kernel.plain
    ones = (*p["window_strides"], *p["rhs_dilation"], p["feature_group_count"])
    if plain is None or any(one != 1 for one in ones):
        raise UserError("this transposed convolution has no form in ONNX here; use --format stablehlo or tflite")
    lengths = [plain.shape[side] for side in sides]
    pads = [length - 1 - pad[end] for end in (0, 1) for length, pad in zip(lengths, p["padding"], strict=True)]
    if min(pads) < 0:
        raise UserError("a padded transposed convolution has no form in ONNX here; use --format stablehlo or tflite")
    flipped = np.flip(plain.transpose(into, out, *sides), (2, 3))
    name = graph.add(
        "ConvTranspose",
        graph.stored(images, lhs, whole=True),
        graph.keep(flipped),
        strides=list(p["lhs_dilation"]),
        pads=pads,
    )
    return graph.result(name, eqn.outvars[0].aval, result)


def _product(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """A product over some axes, such as a bilinear resize with its matrix, as `Einsum`; axes stay as they lie."""
    (left_axes, right_axes), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    letters = iter(string.ascii_lowercase)
    left = [next(letters) for _ in values[0].shape]
    right = [next(letters) for _ in values[1].shape]
    for ours, theirs in ((left_axes, right_axes), (left_batch, right_batch)):
        for a, b in zip(ours, theirs, strict=True):
            right[b] = left[a]
    out = [left[axis] for axis in left_batch]
    out += [letter for axis, letter in enumerate(left) if axis not in (*left_axes, *left_batch)]
    out += [letter for axis, letter in enumerate(right) if axis not in (*right_axes, *right_batch)]
    terms = ["".join(names[axis] for axis in value.order) for names, value in ((left, values[0]), (right, values[1]))]
    names = [graph.stored(value, value.order, whole=True) for value in values]
    name = graph.add("Einsum", *names, equation=f"{','.join(terms)}->{''.join(out)}")
    return graph.result(name, eqn.outvars[0].aval)


def _concatenate(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    order = next((value.order for value in values if value.constant is None), values[0].order)
    names = [graph.stored(value, order, whole=True) for value in values]
    name = graph.add("Concat", *names, axis=order.index(eqn.params["dimension"]))
    return graph.result(name, eqn.outvars[0].aval, order)


def _slice(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    (value,), p = values, eqn.params
    steps = p["strides"] or (1,) * len(value.shape)
    cut = [
        axis
        for axis, side in enumerate(value.shape)
        if p["start_indices"][axis] != 0 or p["limit_indices"][axis] != side or steps[axis] != 1
    ]
    if not cut:
        return value
    numbers = [
        [p["start_indices"][axis] for axis in cut],
        [p["limit_indices"][axis] for axis in cut],
        [value.order.index(axis) for axis in cut],
        [steps[axis] for axis in cut],
    ]
    name = graph.add("Slice", graph.stored(value, value.order, whole=True), *map(graph.numbers, numbers))
    return graph.result(name, eqn.outvars[0].aval, value.order)


def _gather(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """Cut one piece from a known place, as `x[..., :4]` does where the batch is free."""
    (value, starts), p = values, eqn.params
    numbers, places = p["dimension_numbers"], starts.plain
    if places is None or places.ndim != 1 or numbers.operand_batching_dims:
        raise UserError("an index that depends on the image has no form in ONNX here; use --format stablehlo")
    axes, out = numbers.start_index_map, eqn.outvars[0].aval
    cut = [
        [int(place) for place in places],
        [int(place) + p["slice_sizes"][axis] for place, axis in zip(places, axes, strict=True)],
        [value.order.index(axis) for axis in axes],
    ]
    name = graph.add("Slice", graph.stored(value, value.order, whole=True), *map(graph.numbers, cut))
    gone = numbers.collapsed_slice_dims
    if gone:
        name = graph.add("Squeeze", name, graph.numbers([value.order.index(axis) for axis in gone]))
    kept = [axis for axis in range(len(value.shape)) if axis not in gone]
    return graph.result(name, out, [kept.index(axis) for axis in value.order if axis in kept])


def _known_only(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    raise UserError(f"{eqn.primitive.name} of an image has no form in ONNX here; use --format stablehlo or tflite")


def _pad(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    (value, fill), config = values, eqn.params["padding_config"]
    if any(interior for _, _, interior in config):
        raise UserError("padding between pixels has no form in ONNX; use --format stablehlo")
    ordered = [config[axis] for axis in value.order]
    pads = graph.numbers([low for low, _, _ in ordered] + [high for _, high, _ in ordered])
    name = graph.add("Pad", graph.stored(value, value.order, whole=True), pads, graph.stored(fill))
    return graph.result(name, eqn.outvars[0].aval, value.order)


def _reduction(operation: str) -> Operation:
    def add(graph: Graph, eqn: Any, values: list[Value]) -> Value:
        (value,), axes = values, eqn.params["axes"]
        places = graph.numbers([value.order.index(axis) for axis in axes])
        name = graph.add(operation, graph.stored(value, value.order, whole=True), places, keepdims=0)
        kept = [axis for axis in range(len(value.shape)) if axis not in axes]
        return graph.result(name, eqn.outvars[0].aval, [kept.index(axis) for axis in value.order if axis in kept])

    return add


def _argmax(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    (value,), (axis,) = values, eqn.params["axes"]
    out = eqn.outvars[0].aval
    name = graph.stored(value, value.order, whole=True)
    name = graph.add("ArgMax", name, axis=value.order.index(axis), keepdims=0)
    order = [a - (a > axis) for a in value.order if a != axis]
    return graph.result(graph.add("Cast", name, to=element_type(out.dtype)), out, order)


def _cast(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    (value,), dtype = values, np.dtype(eqn.params["new_dtype"])
    if value.constant is not None:
        return Value(value.shape, dtype, "", value.constant.astype(dtype), value.order, value.sides)
    if value.dtype == dtype:
        return value
    return Value(
        value.shape, dtype, graph.add("Cast", value.name, to=element_type(dtype)), None, value.order, value.sides
    )


def element_type(dtype: Any) -> int:
    """Return the number by which ONNX knows a type."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _power(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    exponent = graph.constant(np.asarray(eqn.params["y"], values[0].dtype))
    return _elementwise("Pow")(graph, eqn, [values[0], exponent])


def _inverse_root(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    root = _elementwise("Sqrt")(graph, eqn, values)
    return replace(root, name=graph.add("Reciprocal", root.name))


def _square(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    return _elementwise("Mul")(graph, eqn, [values[0], values[0]])


def _clamp(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    low, value, high = values
    between = _elementwise("Max")(graph, eqn, [value, low])
    return _elementwise("Min")(graph, eqn, [between, high])


def _select(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    which, otherwise, chosen = values
    return _elementwise("Where")(graph, eqn, [which, chosen, otherwise])


OPERATIONS: dict[str, Operation] = {
    **{ours: _elementwise(theirs) for ours, theirs in {
        "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "pow": "Pow",
        "exp": "Exp", "log": "Log", "logistic": "Sigmoid", "tanh": "Tanh", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs",
        "and": "And", "or": "Or", "not": "Not",
        "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal",
    }.items()},
    **dict.fromkeys(("name", "copy", "copy_p", "stop_gradient", "sharding_constraint"), _unchanged),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "max": _maximum,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "concatenate": _concatenate,
    "slice": _slice,
    "gather": _gather,
    "iota": _known_only,
    "rev": _known_only,
    "pad": _pad,
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "argmax": _argmax,
    "convert_element_type": _cast,
    "integer_pow": _power,
    "rsqrt": _inverse_root,
    "square": _square,
    "clamp": _clamp,
    "select_n": _select,
}  # fmt: skip
