"""The decoder of DeepLabv3+: what it computes by hand, and every knob that the paper turns (Tables 1 and 2)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.decoders.deeplabv3plus import DeepLabV3PlusDecoder
from deeplab_jax.models.layers import LayerSettings

BARE = LayerSettings(norm="none", lowering="direct")


def variables_and_output(decoder: DeepLabV3PlusDecoder, strides: tuple[int, int] = (4, 8)) -> tuple[Any, Any]:
    """Shapes, for a context at stride 16 and backbone features of 8 and 12 channels at strides 4 and 8."""
    x = jax.ShapeDtypeStruct((1, 3, 4, 16), jnp.float32)
    conv2 = jax.ShapeDtypeStruct((1, 9, 13, 8), jnp.float32)
    conv3 = jax.ShapeDtypeStruct((1, 5, 7, 12), jnp.float32)

    def init(x: jax.Array, conv2: jax.Array, conv3: jax.Array) -> Any:
        features = {"conv2": (conv2, strides[0]), "conv3": (conv3, strides[1])}
        return decoder.init_with_output(jax.random.key(0), x, features, train=False)

    y, variables = jax.eval_shape(init, x, conv2, conv3)
    return jax.tree.map(lambda a: a.shape, variables["params"]), y.shape


def test_by_hand() -> None:
    """The map is resized with aligned corners, put before the reduced features, and mixed by a 1x1."""
    decoder = DeepLabV3PlusDecoder(low_level_channels=1, decoder_convs=((1, 1),), settings=BARE)
    zero = jnp.zeros(1)
    variables = {
        "params": {
            "conv2_reduction": {"conv": {"kernel": jnp.full((1, 1, 1, 1), 2.0), "bias": zero}},
            "conv2_conv1": {"conv": {"kernel": jnp.asarray([10.0, 1.0]).reshape(1, 1, 2, 1), "bias": zero}},
        }
    }
    x = jnp.asarray([0, 4], jnp.float32).reshape(1, 1, 2, 1)
    low = jnp.asarray([1, 2, 3, 4, -5], jnp.float32).reshape(1, 1, 5, 1)
    y = decoder.apply(variables, x, {"conv2": (low, 4)}, train=False)
    # 10 * (0, 1, 2, 3, 4) + relu(2 * low)
    assert y.ravel().tolist() == [2, 14, 26, 38, 40]


def test_the_corner_alignment_is_that_of_the_settings() -> None:
    settings = LayerSettings(norm="none", align_corners=False)
    decoder = DeepLabV3PlusDecoder(low_level_channels=1, decoder_convs=(), settings=settings)
    kernel = {"conv": {"kernel": jnp.zeros((1, 1, 1, 1)), "bias": jnp.zeros(1)}}
    x = jnp.asarray([0, 4], jnp.float32).reshape(1, 1, 2, 1)
    low = jnp.zeros((1, 1, 4, 1))
    y = decoder.apply({"params": {"conv2_reduction": kernel}}, x, {"conv2": (low, 4)}, train=False)
    assert y[0, 0, :, 0].tolist() == [0, 1, 3, 4]


def test_the_paper_s_form() -> None:
    params, output = variables_and_output(DeepLabV3PlusDecoder())
    assert output == (1, 9, 13, 256)
    assert params["conv2_reduction"]["conv"]["kernel"] == (1, 1, 8, 48)
    assert params["conv2_conv1"]["conv"]["kernel"] == (3, 3, 16 + 48, 256)
    assert params["conv2_conv2"]["conv"]["kernel"] == (3, 3, 256, 256)
    assert set(params) == {"conv2_reduction", "conv2_conv1", "conv2_conv2"}


@pytest.mark.parametrize("channels", [8, 16, 32, 48, 64])
def test_table_1_channels_of_the_reduction(channels: int) -> None:
    params, output = variables_and_output(DeepLabV3PlusDecoder(low_level_channels=channels))
    assert params["conv2_reduction"]["conv"]["kernel"] == (1, 1, 8, channels)
    assert params["conv2_conv1"]["conv"]["kernel"] == (3, 3, 16 + channels, 256)
    assert output[-1] == 256


@pytest.mark.parametrize(
    "convs", [((3, 256),), ((3, 256), (3, 256), (3, 256)), ((3, 128),), ((1, 256),), ((3, 64), (1, 32)), ()]
)
def test_table_2_convolutions(convs: tuple[tuple[int, int], ...]) -> None:
    params, output = variables_and_output(DeepLabV3PlusDecoder(decoder_convs=convs))
    inputs = 16 + 48
    for index, (size, channels) in enumerate(convs):
        assert params[f"conv2_conv{index + 1}"]["conv"]["kernel"] == (size, size, inputs, channels)
        inputs = channels
    assert len(params) == len(convs) + 1
    assert output == (1, 9, 13, inputs)


@pytest.mark.parametrize("strides", [(4, 8), (4, 4)])  # At output stride 4 both levels have the same stride.
@pytest.mark.parametrize("low_level", [("conv2", "conv3"), ("conv3", "conv2")])
def test_two_levels_go_from_coarse_to_fine(low_level: tuple[str, ...], strides: tuple[int, int]) -> None:
    params, output = variables_and_output(DeepLabV3PlusDecoder(low_level=low_level, decoder_convs=((3, 10),)), strides)
    assert output == (1, 9, 13, 10)
    assert params["conv3_reduction"]["conv"]["kernel"] == (1, 1, 12, 48)
    assert params["conv3_conv1"]["conv"]["kernel"] == (3, 3, 16 + 48, 10)
    assert params["conv2_conv1"]["conv"]["kernel"] == (3, 3, 10 + 48, 10)


def test_conv3_alone_ends_at_its_stride() -> None:
    params, output = variables_and_output(DeepLabV3PlusDecoder(low_level=("conv3",)))
    assert output == (1, 5, 7, 256)
    assert "conv2_reduction" not in params


def test_separable_convolutions() -> None:
    params, _ = variables_and_output(DeepLabV3PlusDecoder(separable=True))
    assert params["conv2_conv1"]["depthwise"]["conv"]["kernel"] == (3, 3, 1, 16 + 48)
    assert params["conv2_conv1"]["pointwise"]["conv"]["kernel"] == (1, 1, 16 + 48, 256)
    assert params["conv2_reduction"]["conv"]["kernel"] == (1, 1, 8, 48)


def test_dtype() -> None:
    decoder = DeepLabV3PlusDecoder(
        low_level_channels=2, decoder_convs=((1, 2),), settings=LayerSettings("none", dtype="bfloat16")
    )
    x, low = jnp.zeros((1, 2, 2, 3), jnp.bfloat16), jnp.zeros((1, 3, 3, 2), jnp.bfloat16)
    y, variables = jax.eval_shape(
        lambda x, low: decoder.init_with_output(jax.random.key(0), x, {"conv2": (low, 4)}, train=False), x, low
    )
    assert y.dtype == jnp.bfloat16
    assert {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
