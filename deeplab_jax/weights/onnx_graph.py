"""From a function of JAX to an ONNX graph: values, the layout of each, and the walk over the traced operations.

`onnx_operations` has the table of operations. No node only moves axes: each value remembers the order in which its axes
are stored. A convolution stores its result as ONNX has it, [N, C, H, W], and what follows works on it as it lies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import UserError, spell

OPSET = 18  # Of 2022; `Reduce*` take their axes as inputs from here on.
IR_VERSION = 9
INPUT = "images"
# Operations that only call another traced function, by the parameter that holds it, and those that change nothing.
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
CALLERS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")


@dataclass(frozen=True)
class Value:
    """An array of the traced function.

    Attributes:
      shape: its shape there; sides are numbers, or symbols such as b.
      dtype: its type.
      name: of the tensor in the graph; "" for a constant that is in no node yet.
      constant: the tensor, if it is known now.
      order: the axis of `shape` that each axis of the tensor holds.
      sides: the tensor's shape. A side of 1 may stand for a larger one of `shape`, which is broadcast where needed.
    """

    shape: tuple[Any, ...]
    dtype: np.dtype
    name: str = ""
    constant: np.ndarray | None = None
    order: tuple[int, ...] = ()
    sides: tuple[Any, ...] = ()

    @property
    def broadcast(self) -> bool:
        """Whether the tensor is smaller than the array."""
        return any(a != b for a, b in zip(self.sides, (self.shape[axis] for axis in self.order), strict=True))

    @property
    def plain(self) -> np.ndarray | None:
        """A constant with its axes in the order of the traced function; None if it is no constant."""
        if self.constant is None:
            return None
        return self.constant.transpose([self.order.index(axis) for axis in range(len(self.order))])


class Graph:
    """Nodes and constants of an ONNX graph that grows."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names: dict[int, tuple[str, np.ndarray]] = {}
        self._count = 0

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output, and return the output's name."""
        from onnx import helper

        self._count += 1
        name = f"{operation}_{self._count}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return name

    def keep(self, array: np.ndarray) -> str:
        """Add a constant, and return its name; the same array is kept once."""
        from onnx import numpy_helper

        if id(array) not in self._names:
            self._names[id(array)] = (f"constant_{len(self._names)}", array)
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), self._names[id(array)][0]))
        return self._names[id(array)][0]

    def numbers(self, values: Sequence[int]) -> str:
        """Add whole numbers, such as axes."""
        return self.keep(np.asarray(values, np.int64))

    def constant(self, array: np.ndarray) -> Value:
        """Return a constant as a value."""
        return Value(array.shape, array.dtype, "", array, tuple(range(array.ndim)), array.shape)

    def result(self, name: str, like: Any, order: Sequence[int] | None = None) -> Value:
        """Return the value of a node's output; `like` has the shape and type, `order` is that of the axes as stored."""
        order = tuple(range(len(like.shape))) if order is None else tuple(order)
        sides = tuple(like.shape[axis] for axis in order)
        return Value(tuple(like.shape), np.dtype(like.dtype), name, None, order, sides)

    def stored(self, value: Value, order: Sequence[int] | None = None, *, whole: bool = False) -> str:
        """Return the name of a value's tensor with its axes in some order; by default in that of the traced function.

        Args:
          value: scalars have no axes and stay as they are.
          order: the axis of the array that each axis of the tensor shall hold.
          whole: whether all sides must be as long as those of the array.
        """
        order = tuple(range(len(value.shape))) if order is None else tuple(order)
        if value.order != order:
            axes = tuple(value.order.index(axis) for axis in order)
            sides = tuple(value.sides[axis] for axis in axes)
            if value.constant is not None:
                value = replace(value, constant=value.constant.transpose(axes), order=order, sides=sides)
            else:
                name = self.add("Transpose", value.name, perm=axes)
                value = replace(value, name=name, order=order, sides=sides)
        name = value.name if value.constant is None else self.keep(value.constant)
        return self._expanded(name, value) if whole and value.broadcast else name

    def _expanded(self, name: str, value: Value) -> str:
        wanted = [value.shape[axis] for axis in value.order]
        if all(isinstance(a, int) or a == b for a, b in zip(wanted, value.sides, strict=True)):
            # A side of 1 asks for no change, also where the batch is free.
            return self.add("Expand", name, self.numbers([side if isinstance(side, int) else 1 for side in wanted]))
        batch = self.add("Shape", INPUT, start=0, end=1)
        parts = [self.numbers([side]) if isinstance(side, int) else batch for side in wanted]
        return self.add("Expand", name, self.add("Concat", *parts, axis=0))


Operation = Callable[[Graph, Any, list[Value]], Value]


def trace(function: Callable[..., Any], images: jax.ShapeDtypeStruct, table: dict[str, Operation], name: str) -> Any:
    """Return the traced function, all of whose operations are in the table.

    Raises:
      UserError: an operation that has no form in ONNX here.
    """
    traced = jax.make_jaxpr(function)(images)
    missing = sorted({eqn.primitive.name for eqn in _all(traced.jaxpr)} - table.keys())
    if missing:
        raise UserError(
            f"{name}: its operations {spell(missing)} have no form in ONNX here; use --format stablehlo or tflite"
        )
    return traced


def convert(graph: Graph, traced: Any, inputs: list[Value], table: dict[str, Operation]) -> list[Value]:
    """Add a traced function's operations to the graph, and return its results."""
    inner = getattr(traced, "jaxpr", traced)
    consts = [graph.constant(np.asarray(const)) for const in getattr(traced, "consts", ())]
    known = dict(zip((*inner.constvars, *inner.invars), (*consts, *inputs), strict=True))

    def read(variable: Any) -> Value:
        if hasattr(variable, "val"):  # A number in the text.
            return graph.constant(np.asarray(variable.val, variable.aval.dtype))
        return known[variable]

    for eqn in inner.eqns:
        arguments = [read(variable) for variable in eqn.invars]
        if (called := _called(eqn)) is not None:
            results = convert(graph, called, arguments, table)
        elif eqn.primitive.name != "broadcast_in_dim" and all(map(_is_known, arguments)):
            # Starts of slices, say, which are numbers that no image changes.
            results = [graph.constant(np.asarray(eqn.primitive.bind(*[v.plain for v in arguments], **eqn.params)))]
        else:
            results = [table[eqn.primitive.name](graph, eqn, arguments)]
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in inner.outvars]


def _is_known(value: Value) -> bool:
    return value.constant is not None and not value.broadcast


def _called(eqn: Any) -> Any:
    if eqn.primitive.name not in CALLERS:
        return None
    return next(eqn.params[key] for key in CALLS if key in eqn.params)


def _all(inner: Any) -> Any:
    for eqn in inner.eqns:
        called = _called(eqn)
        if called is None:
            yield eqn
        else:
            yield from _all(getattr(called, "jaxpr", called))
