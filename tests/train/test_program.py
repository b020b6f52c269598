"""The program of a training step."""

import jax
import jax.numpy as jnp

from deeplab_jax.ops.atrous import conv2d
from deeplab_jax.train.program import jit_step


def descend(kernels: list[jax.Array], x: jax.Array) -> list[jax.Array]:
    def loss(kernels: list[jax.Array]) -> jax.Array:
        y = x
        for kernel in kernels:
            y = jax.nn.relu(conv2d(y, kernel))
        return jnp.sum(y)

    return jax.tree.map(lambda kernel, gradient: kernel - gradient, kernels, jax.grad(loss)(kernels))


def test_a_step_on_a_cpu_keeps_few_copies_of_kernels() -> None:
    """The gradient of a 1x1 convolution needs the transposed kernel. XLA's usual schedule copies all kernels first."""
    kernels, x = [jnp.zeros((1, 1, 256, 256))] * 12, jnp.zeros((1, 3, 3, 256))
    step = jit_step(descend, jax.devices("cpu")[0])
    memory = step.lower(kernels, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * sum(kernel.nbytes for kernel in kernels)
    assert memory.alias_size_in_bytes == sum(kernel.nbytes for kernel in kernels), "the step takes its state's memory"
