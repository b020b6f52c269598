"""VGG-16: its features, poolings whose stride becomes a rate, and the published size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.vgg import VGG
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.layers import LayerSettings
from tests.support.params import first_fast
from tests.support.traces import fill_variables, parameter_count, variable_shapes

BARE = LayerSettings(norm="none")
STRIDES = {
    "conv1": 1, "pool1": 2, "conv2": 2, "pool2": 4, "conv3": 4, "pool3": 8, "conv4": 8, "pool4": 16, "conv5": 16,
    "pool5": 32,
}  # fmt: skip


def run(network: nn.Module, variables: Any, x: jax.Array, output_stride: int) -> Any:
    strides: dict[str, int] = {}

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> Any:
        features = network.apply(variables, x, output_stride=output_stride, train=False)
        strides.update({name: stride for name, (_, stride) in features.items()})
        return {name: array for name, (array, _) in features.items()}

    return apply(variables, x), strides


@pytest.mark.parametrize("output_stride", [1, 8, 16, 32])
def test_features_have_the_promised_strides_and_sizes(output_stride: int) -> None:
    """A pooling rounds up; the size is odd at every stage."""
    found: dict[str, int] = {}

    def init(x: jax.Array) -> Any:
        network = VGG(settings=BARE)
        features = network.init_with_output(jax.random.key(0), x, output_stride=output_stride, train=False)[0]
        found.update({name: stride for name, (_, stride) in features.items()})
        return {name: array for name, (array, _) in features.items()}

    arrays = jax.eval_shape(init, jax.ShapeDtypeStruct((2, 97, 67, 3), jnp.float32))
    assert list(found) == list(STRIDES)
    for name, stride in STRIDES.items():
        stride = min(stride, output_stride)
        assert found[name] == stride
        channels = {"1": 64, "2": 128, "3": 256}.get(name[-1], 512)
        assert arrays[name].shape == (2, -(-97 // stride), -(-67 // stride), channels)


@pytest.mark.parametrize("pool_window", first_fast([3, 2]))
def test_features_at_stride_8_subsampled_are_those_at_16_and_32(pool_window: int) -> None:
    network = VGG(pool_window=pool_window, width=1 / 64, settings=BARE)
    variables = fill_variables(network, 1, 50, 37, 3, output_stride=32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)
    dense, dense_strides = run(network, variables, x, 8)
    assert dense["pool5"].shape[1:3] == (7, 5)
    for output_stride in (16, 32):
        features, strides = run(network, variables, x, output_stride)
        for name, coarse in features.items():
            step = strides[name] // dense_strides[name]
            scale = float(jnp.max(coarse))
            assert scale > 1e-3
            fine = dense[name][:, ::step, ::step]
            np.testing.assert_allclose(fine, coarse, atol=1e-5 * scale, err_msg=f"{name} at {output_stride}")


def test_one_convolution_and_pooling_by_hand() -> None:
    network = VGG(units=(1,), channels=(1,), settings=BARE)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(2.0)
    variables = {"params": {"conv1_1": {"conv": {"kernel": kernel, "bias": jnp.asarray([-3.0])}}}}
    x = jnp.asarray([[1, 2, 5], [4, 3, 0]], jnp.float32)[None, :, :, None]
    features = network.apply(variables, x, output_stride=2, train=False)
    assert features["conv1"][0][0, :, :, 0].tolist() == [[0, 1, 7], [5, 3, 0]]
    assert features["pool1"][0][0, :, :, 0].tolist() == [[5, 7]]


def test_without_the_last_pooling_it_is_the_contracting_path_of_unet() -> None:
    network = VGG((2,) * 5, (64, 128, 256, 512, 1024), last_pool=False, settings=BARE)
    x = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    features = jax.eval_shape(
        lambda x: {
            n: a
            for n, (a, _) in network.init_with_output(jax.random.key(0), x, output_stride=16, train=False)[0].items()
        },
        x,
    )
    assert set(features) == set(STRIDES) - {"pool5"}
    assert features["conv5"].shape == (1, 3, 3, 1024)


def test_the_published_parameter_counts() -> None:
    """Of torchvision's vgg16, 138,357,544 parameters, all but the last layer's 4,097,000 are FCN's."""
    features, fc6, fc7 = 14_714_688, 102_764_544, 16_781_312
    assert features + fc6 + fc7 == 138_357_544 - 4_097_000
    tree = variable_shapes(VGG(settings=BARE), 1, 33, 33, 3, output_stride=32)
    assert set(tree) == {"params"}
    assert parameter_count(tree) == features
    model = variable_shapes(create_model("fcn32s_vgg16"), 1, 33, 33, 3)["params"]
    counts = {name: parameter_count(model["context"][name]) for name in model["context"]}
    assert counts == {"fc6": fc6, "fc7": fc7}
    assert parameter_count(model["backbone"]) == features


def test_parameters_do_not_depend_on_the_output_stride() -> None:
    trees = [variable_shapes(VGG(width=1 / 16), 1, 33, 33, 3, output_stride=stride) for stride in (1, 32)]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("value", [0, 1, 4, "2"])
def test_another_window_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=f"pool_window={value!r}: choose from 2, 3"):
        create_model("largefov_vgg16", pool_window=value)
