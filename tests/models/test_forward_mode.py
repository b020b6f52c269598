"""`jax.jvp` through a whole network, against finite differences and against the gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import tree

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.layers import ACTIVATIONS
from tests.support.params import first_fast
from tests.support.tiny import tiny_models

OPTIONS: dict[str, Any] = {"aspp_channels": 4, "decoder_convs": ((3, 8),), "separable": True, "dropout": 0.0}


@pytest.mark.parametrize("train", first_fast([True, False]))
def test_forward_mode_through_a_model(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense, depthwise and 1x1 convolutions, at several rates, with batch norm; a smooth activation stands in for the
    ReLU, whose corner finite differences would blur.
    """
    monkeypatch.setitem(ACTIVATIONS, "relu", jnp.tanh)
    with tiny_models():
        model = create_model("deeplabv3plus_tiny", num_classes=3, **OPTIONS)
    rng = np.random.default_rng(0)
    normal = lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32)  # noqa: E731
    images = normal(np.zeros((2, 33, 33, 3)))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    params = jax.tree.map(lambda a: normal(a) / 3, variables["params"])
    statistics = jax.tree.map(lambda a: jnp.ones(a.shape), variables["batch_stats"])
    direction, weights = jax.tree.map(normal, params), normal(images)

    def logits(params: Any) -> jax.Array:
        inputs = {"params": params, "batch_stats": statistics}
        found: jax.Array = model.apply(inputs, images, train=train, mutable=["batch_stats"])[0]
        return found

    @jax.jit
    def compare(params: Any, direction: Any, step: float) -> tuple[jax.Array, ...]:
        _, forward = jax.jvp(logits, (params,), (direction,))
        gradient = jax.grad(lambda params: jnp.vdot(logits(params), weights))(params)
        ahead, behind = (logits(tree.add_scale(params, signed, direction)) for signed in (step, -step))
        return forward, (ahead - behind) / (2 * step), jnp.vdot(forward, weights), tree.vdot(gradient, direction)

    forward, difference, along, backward = compare(params, direction, 1e-3)
    size = float(jnp.linalg.norm(forward))
    assert size > 1
    assert float(jnp.linalg.norm(forward - difference)) < 0.01 * size
    np.testing.assert_allclose(along, backward, atol=1e-5 * size * float(jnp.linalg.norm(weights)))
