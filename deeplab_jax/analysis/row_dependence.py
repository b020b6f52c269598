"""The rows of the image that each row of a traced program's values depends on.

The program is read once, with one rule for each kind of operation. Every value carries, for each of its elements, the
first and the last row of the image that the element depends on.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from deeplab_jax.ops.atrous import direct

# An int64 array [3, ...]: the first row, minus the last, and -1 if part of the field lies on padding. So the union of
# two fields is a minimum. After the first axis it has the rank of the value. An axis of length 1 may replace a longer
# one, if nothing varies along it or, as with channels, if the union along it is enough.
Rows = np.ndarray
NOTHING = 1 << 40
EMPTY = np.array([NOTHING, NOTHING, 0])
PADDING = np.array([NOTHING, NOTHING, -1])
LARGEST = 2**26
"""Most facts about a result that are kept, 8 bytes each."""


class _Known:
    """A constant of the program, whose values matter: a zero in a matrix removes a dependence."""

    def __init__(self, value: Any) -> None:
        self.value = value


def rows_seen(traced: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Return the rows that the results of a traced program depend on.

    Args:
      traced: from `jax.make_jaxpr`.
      inputs: for each argument the rows of its elements, int `[3, ...]` (the first, minus the last, and 0), with the
        rank of the argument after the first axis; or None if it does not depend on the image.

    Returns:
      The same for each result, with -1 instead of 0 if a convolution's or pooling's window reached beyond the map.

    Raises:
      NotImplementedError: there is no rule for an operation; the message names it.
    """
    jaxpr = traced.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    values.update((var, _Known(const)) for var, const in zip(jaxpr.constvars, traced.consts, strict=True))

    def read(var: Any) -> Any:
        return _Known(var.val) if isinstance(var, Literal) else values[var]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(var) for var in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    results = [read(var) for var in jaxpr.outvars]
    return [rows if isinstance(rows, np.ndarray) else None for rows in results]


def _apply(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Return the known facts about the results of one operation."""
    name, count = equation.primitive.name, len(equation.outvars)
    if not any(isinstance(operand, np.ndarray) for operand in operands):
        values = [operand.value for operand in operands if isinstance(operand, _Known) and np.ndim(operand.value)]
        if name in OF_CONSTANTS and len(values) == len(operands):
            return [_Known(equation.primitive.bind(*values, **equation.params))]
        return [None] * count
    if name in CALLS:
        inner = next(equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params)
        return rows_seen(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), operands)
    if name in ELEMENTWISE:
        rank = len(_shape(equation.outvars[0]))
        rows = [rows if rows.ndim > 1 else rows.reshape(3, *(1,) * rank) for rows in operands if _varies(rows)]
        return [reduce(np.minimum, rows)] * count
    if name not in RULES:
        raise NotImplementedError(f"no rule for the receptive field of the operation {name!r}")
    results = RULES[name](equation, operands)
    return results if isinstance(results, list) else [results]


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _varies(operand: Any) -> bool:
    return isinstance(operand, np.ndarray)


def _only_first(equation: JaxprEqn, operands: list[Any]) -> Rows:
    if not _varies(operands[0]) or any(_varies(operand) for operand in operands[1:]):
        name = equation.primitive.name
        raise NotImplementedError(f"no rule for the operation {name!r} where more than its map depends on the image")
    return operands[0]


def _under_windows(rows: Rows, axis: int, size: int, taps: Sequence[int], *, stride: int, spread: int) -> Rows:
    """Return the union of the rows in windows along an axis, with `spread - 1` zeros between the samples: output i
    reads positions `i * stride + tap`.
    """
    length = (rows.shape[axis] - 1) * spread + 1
    shape = [size if each == axis else 1 for each in range(rows.ndim)]
    seen = []
    for tap in taps:
        position = np.arange(size) * stride + tap
        on_map = ((position >= 0) & (position < length)).reshape(shape)
        between = (position % spread != 0).reshape(shape)
        found = np.take(rows, np.clip(position // spread, 0, rows.shape[axis] - 1), axis=axis)
        seen.append(np.where(on_map, np.where(between, _like(EMPTY, rows), found), _like(PADDING, rows)))
    return reduce(np.minimum, seen)


def _like(field: np.ndarray, rows: Rows) -> Rows:
    return field.reshape(3, *(1,) * (rows.ndim - 1))


def _convolution(equation: JaxprEqn, operands: list[Any]) -> Rows:
    p, rows = equation.params, _only_first(equation, operands)
    dimensions = p["dimension_numbers"]
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    rows = rows.transpose(0, *(axis + 1 for axis in dimensions.lhs_spec)).min(axis=2, keepdims=True)
    for index, (before, _) in enumerate(p["padding"]):
        if rows.shape[3 + index] > 1:
            rate = p["rhs_dilation"][index]
            taps = [tap * rate - before for tap in range(kernel[dimensions.rhs_spec[2 + index]])]
            size, stride = out[dimensions.out_spec[2 + index]], p["window_strides"][index]
            rows = _under_windows(rows, 3 + index, size, taps, stride=stride, spread=p["lhs_dilation"][index])
    return rows.transpose(0, *(axis + 1 for axis in np.argsort(dimensions.out_spec)))


def _convolution_of_ops(equation: JaxprEqn, operands: list[Any]) -> list[Rows]:
    """A convolution of `ops` depends on the rows that XLA's own does, whichever lowering computes it."""
    types: list[Any] = [var.aval for var in equation.invars]
    x, kernel = (jax.ShapeDtypeStruct(one.shape, one.dtype) for one in types)
    return rows_seen(jax.make_jaxpr(partial(direct, **equation.params))(x, kernel), operands)


def _window(equation: JaxprEqn, operands: list[Any]) -> Rows:
    p, rows = equation.params, _only_first(equation, operands)
    for axis, window in enumerate(p["window_dimensions"]):
        if rows.shape[axis + 1] > 1:
            taps = [tap * p["window_dilation"][axis] - p["padding"][axis][0] for tap in range(window)]
            size, stride = _shape(equation.outvars[0])[axis], p["window_strides"][axis]
            rows = _under_windows(rows, axis + 1, size, taps, stride=stride, spread=p["base_dilation"][axis])
    return rows


def _pad(equation: JaxprEqn, operands: list[Any]) -> Rows:
    rows = _only_first(equation, operands)
    for axis, (before, _, between) in enumerate(equation.params["padding_config"]):
        if rows.shape[axis + 1] > 1:
            size = _shape(equation.outvars[0])[axis]
            rows = _under_windows(rows, axis + 1, size, [-before], stride=1, spread=between + 1)
    return rows


def _slice(equation: JaxprEqn, operands: list[Any]) -> Rows:
    p, rows = equation.params, operands[0]
    steps = p["strides"] or (1,) * len(p["start_indices"])
    cuts = [slice(*cut) for cut in zip(p["start_indices"], p["limit_indices"], steps, strict=True)]
    return rows[(slice(None), *(cut if n > 1 else slice(None) for cut, n in zip(cuts, rows.shape[1:], strict=True)))]


def _reverse(equation: JaxprEqn, operands: list[Any]) -> Rows:
    return np.flip(operands[0], tuple(axis + 1 for axis in equation.params["dimensions"]))


def _concatenate(equation: JaxprEqn, operands: list[Any]) -> Rows:
    axis = equation.params["dimension"] + 1
    varying = [rows for rows in operands if _varies(rows)]
    if all(rows.shape[axis] == 1 for rows in varying):
        return reduce(np.minimum, varying)
    shape = list(np.broadcast_shapes(*((*rows.shape[:axis], 1, *rows.shape[axis + 1 :]) for rows in varying)))
    parts = []
    for var, rows in zip(equation.invars, operands, strict=True):
        shape[axis] = _shape(var)[axis - 1]
        parts.append(np.broadcast_to(rows if _varies(rows) else _like(EMPTY, varying[0]), shape))
    return np.concatenate(parts, axis=axis)


def _stack(equation: JaxprEqn, operands: list[Any]) -> Rows:
    axis = equation.params["axis"] + 1
    varying = [np.expand_dims(rows, axis) for rows in operands if _varies(rows)]
    shape = np.broadcast_shapes(*(rows.shape for rows in varying))
    parts = [np.expand_dims(rows, axis) if _varies(rows) else _like(EMPTY, varying[0]) for rows in operands]
    return np.concatenate([np.broadcast_to(rows, shape) for rows in parts], axis=axis)


def _split(equation: JaxprEqn, operands: list[Any]) -> list[Rows]:
    axis, sizes = equation.params["axis"] + 1, equation.params["sizes"]
    if operands[0].shape[axis] == 1:
        return operands * len(sizes)
    return np.split(operands[0], np.cumsum(sizes)[:-1], axis)


def _transpose(equation: JaxprEqn, operands: list[Any]) -> Rows:
    return operands[0].transpose(0, *(axis + 1 for axis in equation.params["permutation"]))


def _squeeze(equation: JaxprEqn, operands: list[Any]) -> Rows:
    return operands[0].squeeze(tuple(axis + 1 for axis in equation.params["dimensions"]))


def _broadcast(equation: JaxprEqn, operands: list[Any]) -> Rows:
    shape = [3] + [1] * len(equation.params["shape"])
    for source, target in enumerate(equation.params["broadcast_dimensions"]):
        shape[target + 1] = operands[0].shape[source + 1]
    return operands[0].reshape(shape)


def _reshape(equation: JaxprEqn, operands: list[Any]) -> Rows:
    """Axes that are merged or split are written out; the others do not change."""
    rows, old, new = operands[0], _shape(equation.invars[0]), _shape(equation.outvars[0])
    shape, full, i, j = [3], [3], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[start_i:i]) != math.prod(new[start_j:j]):
            i, j = (i + 1, j) if math.prod(old[start_i:i]) < math.prod(new[start_j:j]) else (i, j + 1)
        here = rows.shape[start_i + 1 : i + 1]
        varies = any(length > 1 for length in here)
        full += old[start_i:i] if varies else here
        shape += new[start_j:j] if varies else [1] * (j - start_j)
    return np.broadcast_to(rows, full).reshape(shape)


def _reduction(equation: JaxprEqn, operands: list[Any]) -> Rows:
    return operands[0].min(axis=tuple(axis + 1 for axis in equation.params["axes"]))


def _cumulative(equation: JaxprEqn, operands: list[Any]) -> Rows:
    axis = equation.params["axis"] + 1
    turned = np.flip(operands[0], axis) if equation.params["reverse"] else operands[0]
    rows = np.minimum.accumulate(turned, axis)
    return np.flip(rows, axis) if equation.params["reverse"] else rows


def _product(equation: JaxprEqn, operands: list[Any]) -> Rows:
    """`dot_general`; its result has the batch axes, the other axes of the left side, and those of the right."""
    contracted, batched = equation.params["dimension_numbers"]
    ranks = [len(_shape(var)) for var in equation.invars]
    free = [[a for a in range(ranks[side]) if a not in (*contracted[side], *batched[side])] for side in (0, 1)]
    sides = []
    for side, rows in enumerate(operands):
        if not _varies(rows):
            continue
        rows = rows.transpose(0, *(axis + 1 for axis in (*batched[side], *free[side], *contracted[side])))
        kept = rows.shape[: 1 + len(batched[side]) + len(free[side])]
        other = operands[1 - side]
        if isinstance(other, _Known) and len(free[1 - side]) == len(contracted[side]) == 1:
            # [..., targets, sources]; the union over the batch's matrices.
            matrices = np.asarray(other.value).transpose(*batched[1 - side], *free[1 - side], *contracted[1 - side])
            rows = _through((matrices != 0).any(axis=tuple(range(len(batched[side])))), rows)
        else:
            rows = rows.reshape(*kept, -1).min(axis=-1).reshape(*kept, *[1] * len(free[1 - side]))
        if side == 1:
            order = list(range(rows.ndim))
            batch, own = 1 + len(batched[1]), len(free[1])
            rows = rows.transpose(order[:batch] + order[batch + own :] + order[batch : batch + own])
        sides.append(rows)
    if math.prod(np.broadcast_shapes(*(rows.shape for rows in sides))) > LARGEST:  # Such as those of an attention.
        raise NotImplementedError("the receptive field of a product of two maps is too large to be followed")
    return reduce(np.minimum, sides)


def _through(matrix: np.ndarray, rows: Rows) -> Rows:
    """Apply the matrix `[targets, sources]` to rows `[..., sources]`: a target depends on the sources of
    its nonzeros.
    """
    if rows.shape[-1] == 1:
        return rows
    targets, sources = np.nonzero(matrix)
    rows = np.moveaxis(rows, -1, 1)
    result = np.repeat(_like(EMPTY, rows) + np.zeros_like(rows[:, :1]), len(matrix), axis=1)
    for mine, theirs in zip(result, rows, strict=True):
        np.minimum.at(mine, targets, theirs[sources])
    return np.moveaxis(result, 1, -1)


CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
)
_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh div eq
erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul name ne neg
nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
OF_CONSTANTS = frozenset({"broadcast_in_dim", "convert_element_type", "transpose", "reshape", "squeeze"})
RULES: dict[str, Callable[[JaxprEqn, list[Any]], Rows | list[Rows]]] = {
    "conv_general_dilated": _convolution,
    **dict.fromkeys(("convolution_by_platform", "convolution_by_taps"), _convolution_of_ops),
    "pad": _pad,
    "slice": _slice,
    "rev": _reverse,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "dot_general": _product,
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), _window),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), _reduction),
    **dict.fromkeys(("argmax", "argmin"), _reduction),
}
