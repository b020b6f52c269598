"""Convolutions as operations of JAX whose gradients are written by hand.

`jax.custom_vjp` also takes gradients written by hand, but does not allow forward mode (`jax.jvp`). So a convolution
here is the same as in JAX: an operation that is linear in the map and linear in the kernel. JAX then knows the forward
derivative, `conv(dx, w) + conv(x, dw)`. It asks only for the transposes of these two terms, which are the gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from deeplab_jax.ops.geometry import Window

Form = Callable[[jax.Array, jax.Array, Window], jax.Array]
# Takes the shape and dtype of one operand, the other operand, and the gradient of the result. Returns the gradient of
# the first operand.
InputGradient = Callable[[jax.ShapeDtypeStruct, jax.Array, jax.Array, Window], jax.Array]
KernelGradient = Callable[[jax.Array, jax.ShapeDtypeStruct, jax.Array, Window], jax.Array]


def convolution_primitive(
    name: str, form: Form, input_gradient: InputGradient, kernel_gradient: KernelGradient
) -> Form:
    """Return a function that computes the same as `form`, with both derivatives.

    Args:
      name: name of the operation in traces.
      form: convolves a map `[N, H, W, C]` with a kernel `[kh, kw, C / groups, D]`; linear in each of them.
      input_gradient: returns the gradient of the map.
      kernel_gradient: returns the gradient of the kernel.

    Returns:
      `form` as a compiled function, so that equal layers are traced once. Under `jax.vmap` over maps it computes one
      larger batch. Under `jax.vmap` over kernels its gradient is the one that JAX derives from `form`.
    """
    operation = Primitive(name)

    def compute(x: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
        return form(x, kernel, window)

    def result_type(x: ShapedArray, kernel: ShapedArray, *, window: Window) -> ShapedArray:
        size = window.output_size(x.shape[1:3], kernel.shape)
        return x.update(shape=(x.shape[0], *size, kernel.shape[3]), weak_type=False)

    def transpose_input(gradient: jax.Array, x: Any, kernel: jax.Array, *, window: Window) -> jax.Array:
        return input_gradient(jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype), kernel, gradient, window)

    def transpose_kernel(gradient: jax.Array, x: jax.Array, kernel: Any, *, window: Window) -> jax.Array:
        return kernel_gradient(x, jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype), gradient, window)

    def batched(operands: Sequence[jax.Array], axes: Sequence[Any], *, window: Window) -> tuple[jax.Array, int]:
        if axes[1] is not None:
            return jax.vmap(partial(compute, window=window), tuple(axes))(*operands), 0
        x, kernel = jnp.moveaxis(operands[0], axes[0], 0), operands[1]
        result = operation.bind(x.reshape(-1, *x.shape[2:]), kernel, window=window)
        return result.reshape(*x.shape[:2], *result.shape[1:]), 0

    operation.def_impl(compute)
    operation.def_abstract_eval(result_type)
    mlir.register_lowering(operation, mlir.lower_fun(compute, multiple_results=False))
    ad.defbilinear(operation, transpose_input, transpose_kernel)
    batching.primitive_batchers[operation] = batched

    @partial(jax.jit, static_argnums=2)
    def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
        result: jax.Array = operation.bind(x, kernel, window=window)
        return result

    return convolve


def gradient_by_jax(
    linear: Callable[[jax.Array], jax.Array], operand: jax.ShapeDtypeStruct, gradient: jax.Array
) -> jax.Array:
    """Return the gradient of a linear function with respect to its operand, as JAX derives it."""
    (result,) = jax.linear_transpose(linear, operand)(gradient)
    return result
