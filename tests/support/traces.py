"""What the tests of the networks share: variables without random initialisers, and the convolutions of a trace."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.ops.observe import Convolution as Call
from deeplab_jax.ops.observe import observe_convolutions


class Convolution(NamedTuple):
    """One convolution in a trace. Depthwise ones have `groups` above 1."""

    kernel: tuple[int, ...]
    rate: int
    stride: int
    groups: int


def _fill(path: Any, leaf: Any) -> jax.Array:
    """Values that no layer is indifferent to: norms that are not the identity, biases that are not zero."""
    name = jax.tree_util.keystr(path)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.normal(size=leaf.shape)
    if name.endswith("['kernel']"):
        values = noise * np.sqrt(1.0 / np.prod(leaf.shape[:-1]))
    elif name.endswith("['scale']"):
        values = 1 + 0.2 * noise
    elif name.endswith("['var']"):
        values = np.exp(0.3 * noise)
    else:
        values = 0.1 * noise
    return jnp.asarray(values, leaf.dtype)


def fill_variables(model: nn.Module, *shape: int, **options: Any) -> dict[str, Any]:
    """Return variables of the right shapes with fixed random values, for inputs of one shape.

    A random initialiser costs a compilation for every shape of parameter, more than the rest of most tests.
    """
    return jax.tree_util.tree_map_with_path(_fill, variable_shapes(model, *shape, **options))


def variable_shapes(model: nn.Module, *shape: int, **options: Any) -> dict[str, Any]:
    """Return the shapes and dtypes of a module's variables; nothing is computed."""
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **{"train": False, **options}), inputs)


def parameter_count(tree: Any) -> int:
    """Return the number of elements of a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def louder(variables: Any) -> Any:
    """Return larger kernels, so that deep features vary over the map rather than follow the offsets of the norms."""

    def scale(path: Any, leaf: jax.Array) -> jax.Array:
        return 1.5 * leaf if jax.tree_util.keystr(path).endswith("['conv']['kernel']") else leaf

    return jax.tree_util.tree_map_with_path(scale, variables)


def calls_of(network: nn.Module, output_stride: int, *, size: int = 65, channels: int = 3) -> list[Call]:
    """Return every call of `conv2d` in a network, in order; nothing is computed."""
    found: list[Call] = []
    with observe_convolutions(found.append):
        variable_shapes(network, 1, size, size, channels, output_stride=output_stride)
    return found


def find_convolutions(function: Callable[..., Any], *args: Any) -> list[Convolution]:
    """Trace a function and return its convolutions in order (those that are not lowered to something else)."""

    def walk(jaxpr: Any) -> list[Convolution]:
        found = []
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                p = equation.params
                found.append(
                    Convolution(
                        equation.invars[1].aval.shape,
                        p["rhs_dilation"][0],
                        p["window_strides"][0],
                        p["feature_group_count"],
                    )
                )
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    found += walk(inner)
        return found

    return walk(jax.make_jaxpr(function)(*args).jaxpr)
