"""Batch normalisation in training: by hand, its gradient against differentiation by rule, and what it keeps."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.ops.batch_norm import batch_norm, moments, normalise

EPSILON = 1e-3


def arrays(shape: tuple[int, ...], dtype: str = "float32", *, seed: int = 0) -> tuple[jax.Array, ...]:
    """A map far from mean 0 and variance 1, scale, offset, and a gradient of the result."""
    rng = np.random.default_rng(seed)
    x = 3 + 2 * rng.standard_normal(shape) * rng.uniform(0.1, 2, shape[-1])
    scale, offset = rng.uniform(0.5, 1.5, shape[-1]), rng.standard_normal(shape[-1])
    as_float = partial(jnp.asarray, dtype=jnp.float32)
    return jnp.asarray(x, dtype), as_float(scale), as_float(offset), jnp.asarray(rng.standard_normal(shape), dtype)


def by_rule(x: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
    return normalise(x, *moments(x), scale, offset, EPSILON)


def gradients(function: Any, x: jax.Array, scale: jax.Array, offset: jax.Array, gradient: jax.Array) -> Any:
    return jax.jit(lambda *inputs: jax.vjp(function, *inputs)[1](gradient))(x, scale, offset)


def test_by_hand() -> None:
    x = jnp.asarray([[[[1.0, 0.0], [3.0, 0.0]]]])
    y, (mean, var) = batch_norm(x, jnp.asarray([2.0, 1.0]), jnp.asarray([5.0, 7.0]), 0.0 + 1e-12)
    chex.assert_trees_all_close(y[0, 0], jnp.asarray([[3.0, 7.0], [7.0, 7.0]]), atol=1e-5)
    assert mean.tolist() == [2.0, 0.0] and var.tolist() == [1.0, 0.0]


@settings(max_examples=5)  # Each compiles four programs.
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6), st.integers(1, 9)),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_definition(shape: Any, dtype: str, seed: int) -> None:
    x, scale, offset, gradient = arrays(shape, dtype, seed=seed)
    ours = lambda *inputs: batch_norm(*inputs, EPSILON)[0]  # noqa: E731
    exact = x.astype(jnp.float32)  # Differentiated in bfloat16, the definition itself is far off.
    found = ours(x, scale, offset), gradients(ours, x, scale, offset, gradient)
    wanted = by_rule(exact, scale, offset), gradients(by_rule, exact, scale, offset, gradient.astype(jnp.float32))
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [x.dtype, x.dtype, jnp.float32, jnp.float32]
    for got, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        bound = (2e-4 if dtype == "float32" else 1e-2) * float(jnp.abs(right).max())
        chex.assert_trees_all_close(got.astype(jnp.float32), right, rtol=0, atol=bound + 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_flax_has_it(dtype: str) -> None:
    x, scale, offset, gradient = arrays((2, 9, 8, 5), dtype)
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=EPSILON, dtype=dtype)
    statistics = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

    def theirs(x: jax.Array, scale: jax.Array, offset: jax.Array) -> Any:
        variables = {"params": {"scale": scale, "bias": offset}, "batch_stats": statistics}
        y, updates = layer.apply(variables, x, mutable=["batch_stats"])
        return y, (updates["batch_stats"]["mean"], updates["batch_stats"]["var"])

    ours = lambda *inputs: batch_norm(*inputs, EPSILON)  # noqa: E731
    chex.assert_trees_all_close(ours(x, scale, offset), theirs(x, scale, offset), rtol=1e-6, atol=1e-6)
    first = lambda function: lambda *inputs: function(*inputs)[0]  # noqa: E731
    tolerance = 1e-5 if dtype == "float32" else 0.02
    found, wanted = (gradients(first(function), x, scale, offset, gradient) for function in (ours, theirs))
    chex.assert_trees_all_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_computed_from_the_map_alone() -> None:
    x, scale, offset, _ = arrays((2, 9, 8, 5))
    kept = jax.eval_shape(lambda *inputs: jax.vjp(lambda *i: batch_norm(*i, EPSILON)[0], *inputs)[1], x, scale, offset)
    assert sum(leaf.shape == x.shape for leaf in jax.tree.leaves(kept)) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_mode_is_that_of_the_definition(dtype: str) -> None:
    """The first derivative (`jvp`), and the product of the second with a vector (`jvp` of `grad`)."""
    x, scale, offset, gradient = arrays((2, 9, 8, 5), dtype)
    tangents = arrays((2, 9, 8, 5), dtype, seed=1)[:3]
    ours = lambda *inputs: batch_norm(*inputs, EPSILON)[0]  # noqa: E731

    def derivatives(function: Any, dtype: Any) -> Any:
        inputs, moves = ((each[0].astype(dtype), *each[1:]) for each in ((x, scale, offset), tangents))
        pull = jax.grad(lambda *inputs: jnp.sum(function(*inputs).astype(jnp.float32) * gradient), (0, 1, 2))
        return jax.jit(lambda *both: (jax.jvp(function, *both), jax.jvp(pull, *both)))(inputs, moves)

    found, wanted = derivatives(ours, dtype), derivatives(by_rule, jnp.float32)
    for got, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        bound = (2e-4 if dtype == "float32" else 3e-2) * float(jnp.abs(right).max())
        chex.assert_trees_all_close(got.astype(jnp.float32), right, rtol=0, atol=bound + 1e-6)


def test_no_derivative_goes_through_the_statistics() -> None:
    x, scale, offset, _ = arrays((2, 3, 4, 5))
    statistics = lambda x: batch_norm(x, scale, offset, EPSILON)[1]  # noqa: E731
    (mean, var), tangents = jax.jvp(statistics, (x,), (x,))
    assert mean.any() and var.any() and not any(tangent.any() for tangent in tangents)
    assert not jax.grad(lambda x: sum(map(jnp.sum, statistics(x))))(x).any()
