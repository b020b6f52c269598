"""`jax.jvp` through a whole network, against finite differences and against the gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import tree

from deeplab_jax import create_model


@pytest.mark.parametrize("train", [False, True])
def test_forward_mode_through_a_model(train: bool) -> None:
    """Depthwise, 1x1 and atrous convolutions, batch norm, dropout-free, at rates of output stride 8."""
    model = create_model("deeplabv3plus_mobilenet_v2", num_classes=3, output_stride=8, width=0.25)
    rng = np.random.default_rng(0)
    normal = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    images = normal((2, 33, 33, 3))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    fans = lambda shape: max(1, np.prod(shape[:-1]))  # noqa: E731
    params = jax.tree.map(lambda a: normal(a.shape) / fans(a.shape) ** 0.5, variables["params"])
    statistics = jax.tree.map(lambda a: jnp.ones(a.shape), variables.get("batch_stats", {}))
    direction, weights = jax.tree.map(lambda a: normal(a.shape), params), normal((2, 33, 33, 3))

    def logits(params: Any) -> jax.Array:
        found, _ = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return found

    @jax.jit
    def compare(params: Any, step: float) -> tuple[jax.Array, ...]:
        moved = jax.tree.map(lambda d, p: d * jnp.linalg.norm(p), direction, params)
        _, derivative = jax.jvp(logits, (params,), (moved,))
        gradient = jax.grad(lambda params: jnp.vdot(logits(params), weights))(params)
        ahead, behind = (logits(tree.add_scale(params, signed, moved)) for signed in (step, -step))
        return derivative, (ahead - behind) / (2 * step), jnp.vdot(derivative, weights), tree.vdot(gradient, moved)

    derivative, difference, forward, backward = compare(params, 1e-4)
    scale = float(jnp.linalg.norm(derivative))
    assert scale > 0
    assert float(jnp.linalg.norm(derivative - difference)) < 0.02 * scale
    np.testing.assert_allclose(forward, backward, atol=1e-4 * scale * float(jnp.linalg.norm(weights)))
