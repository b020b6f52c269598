"""RefineNet: its units by hand, its size, and results at the resolution of conv2."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.decoders.refinenet import ChainedResidualPooling, RefineNetDecoder, ResidualConvUnit
from tests.support.kernels import pass_through
from tests.support.params import first_fast
from tests.support.traces import fill_variables, parameter_count, variable_shapes

TINY = {"width": 1 / 16, "decoder_channels": (8, 4, 4, 2)}


def centre(weight: float) -> jax.Array:
    return jnp.zeros((3, 3, 1, 1)).at[1, 1].set(weight)


def test_a_residual_unit_by_hand() -> None:
    """x + 2 relu(3 relu(x) - 4): the ReLUs come before the convolutions, and none after the sum."""
    params = {"conv1": {"kernel": centre(3), "bias": jnp.asarray([-4.0])}, "conv2": {"kernel": centre(2)}}
    x = jnp.asarray([-5.0, 1, 2, 3]).reshape(1, 1, 4, 1)
    assert ResidualConvUnit().apply({"params": params}, x).ravel().tolist() == [-5, 1, 6, 13]


def test_chained_pooling_by_hand() -> None:
    """Each of four links reaches two pixels further than the one before, which it pools; weights 1, 2, 3, 4 multiply
    along the chain. The ReLU comes first.
    """
    params = {f"conv{i}": {"kernel": centre(i)} for i in (1, 2, 3, 4)}
    x = jnp.full((1, 1, 21, 1), -1.0).at[0, 0, 10].set(1.0)
    y = ChainedResidualPooling().apply({"params": params}, x)[0, 0, :, 0]
    rings = [1 + 2 + 6 + 24, 2 + 6 + 24, 6 + 24, 24]
    right = [1 + rings[0], *[rings[0]] * 2, *[rings[1]] * 2, *[rings[2]] * 2, *[rings[3]] * 2, 0, 0]
    assert y.tolist() == [*right[:0:-1], *right]


def test_fusion_goes_from_coarse_to_fine() -> None:
    """Each block adds its own features to the coarser result; units whose kernels are zero hand their input on."""
    decoder = RefineNetDecoder((1, 1, 1, 1))
    sizes = {"conv2": 9, "conv3": 5, "conv4": 3, "conv5": 2}
    values = {"conv2": 4.0, "conv3": 3.0, "conv4": -5.0, "conv5": 1.0}
    features: Any = {name: (jnp.full((1, size, size, 1), values[name]), 0) for name, size in sizes.items()}
    x = features["conv5"][0]
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), x, features, train=False))["params"]
    params = {
        name: pass_through(tree) if name.endswith(("reduce", "fuse", "fuse_coarser")) else jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape), tree
        )
        for name, tree in shapes.items()
    }  # fmt: skip
    y = jax.jit(lambda params: decoder.apply({"params": params}, x, features, train=False))(params)
    # conv5: 1; conv4: relu(1 - 5) = 0; conv3: 0 + 3; conv2: 3 + 4.
    np.testing.assert_allclose(y[0, :, :, 0], np.full((9, 9), 7.0), rtol=1e-6)


def test_the_parameter_count() -> None:
    """Every 3x3 of the four blocks; biases only in the first convolution of a unit and in the classifier."""

    def block(inputs: int, channels: int, coarser: int) -> int:
        square = 9 * channels**2
        units, chain = 5 * (2 * square + channels), 4 * square
        return 9 * inputs * channels + units + chain + (square + 9 * coarser * channels if coarser else 0)

    head = block(2048, 512, 0) + block(1024, 256, 512) + block(512, 256, 256) + block(256, 256, 256)
    variables = variable_shapes(create_model("refinenet_resnet101", lowering="direct"), 1, 33, 33, 3)
    counts = {name: parameter_count(tree) for name, tree in variables["params"].items()}
    assert counts == {"backbone": 42_500_160, "decoder": head, "classifier": 9 * 256 * 21 + 21}
    assert set(variables["batch_stats"]) == {"backbone"}
    assert sum(counts.values()) == 118_052_437


@pytest.mark.parametrize("output_stride", first_fast([8, 32]))
def test_logits_have_stride_4_at_any_output_stride(output_stride: int) -> None:
    model = create_model("refinenet_resnet50", num_classes=3, output_stride=output_stride, **TINY)
    x = jax.ShapeDtypeStruct((1, 97, 66, 3), jnp.float32)
    variables = variable_shapes(model, 1, 33, 33, 3)
    assert jax.eval_shape(lambda v, x: model.apply(v, x, method="coarse_logits"), variables, x).shape == (1, 25, 17, 3)
    assert variables == variable_shapes(model.clone(output_stride=32), 1, 33, 33, 3)


@pytest.mark.slow
def test_at_output_stride_16_conv5_has_the_size_of_conv4() -> None:
    """The same weights, another map below: other logits, of the same size."""
    model = create_model("refinenet_resnet50", num_classes=2, **TINY)
    variables = fill_variables(model, 1, 65, 50, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 65, 50, 3)), jnp.float32)
    logits = jax.jit(lambda v, x: model.clone(output_stride=16).apply(v, x))(variables, x)
    assert logits.shape == (1, 65, 50, 2)
    assert np.all(np.isfinite(logits)) and float(jnp.std(logits)) > 1e-3
