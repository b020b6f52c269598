"""Context from pooled regions, by hand: PSPNet's pyramid, ParseNet's global vector, the original spatial pyramid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.contexts.pyramid_pooling import (
    GlobalContext,
    L2Normalisation,
    PyramidPooling,
    SpatialPyramidContext,
)
from deeplab_jax.models.contexts.pyramid_pooling_variants import PyramidPoolingVariant
from deeplab_jax.models.layers import LayerSettings
from tests.support.traces import parameter_count, variable_shapes

BARE = LayerSettings(norm="none")


def layer(kernel: Any, bias: float = 0.0) -> dict[str, Any]:
    kernel = jnp.asarray(kernel, jnp.float32)
    return {"conv": {"kernel": kernel, "bias": jnp.full(kernel.shape[-1], bias)}}


def test_pyramid_pooling_by_hand() -> None:
    """Two channels over bins 1 and 2, so one channel from each level, beside the map: 4 in all, in that order."""
    first = np.asarray([[1, 2, 3, 4]] * 4, np.float32)
    second = np.asarray([[1, 1, 3, 3], [1, 1, 3, 3], [5, 5, 7, 7], [5, 5, 7, 7]], np.float32)
    x = jnp.asarray(np.stack([first, second], -1)[None])
    params = {
        "bins1": layer(np.asarray([2, 0]).reshape(1, 1, 2, 1)),
        "bins2": layer(np.asarray([0, 1]).reshape(1, 1, 2, 1), bias=-2.0),
        "projection": layer(np.zeros((3, 3, 4, 4))),
    }
    params["projection"]["conv"]["kernel"] = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    y = PyramidPooling((1, 2), 4, settings=BARE).apply({"params": params}, x, output_stride=8, train=False)[0]
    np.testing.assert_allclose(y[..., 0], first)
    np.testing.assert_allclose(y[..., 1], second)
    np.testing.assert_allclose(y[..., 2], np.full((4, 4), 5.0), rtol=1e-6)
    # The quadrants' 1, 3, 5, 7 less 2, after the ReLU 0, 1, 3, 5, spread with their corners on the map's.
    rows, columns = np.meshgrid(np.arange(4) / 3, np.arange(4) / 3, indexing="ij")
    expected = columns * (1 - rows) + 3 * rows * (1 - columns) + 5 * rows * columns
    np.testing.assert_allclose(y[..., 3], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(33, 33), (65, 97)])
def test_pspnet_keeps_the_size_of_the_map(size: tuple[int, int]) -> None:
    model = create_model("pspnet_resnet50", width=1 / 16, context_channels=8)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="coarse_logits"), variable_shapes(model, 1, 33, 33, 3), x
    )
    assert logits.shape == (2, *(-(-side // 8) for side in size), 21)


def test_parameters_of_pspnet() -> None:
    """Four levels of 512 channels from 2048, then 3x3 from 4096 to 512, each with its norm."""
    params = variable_shapes(create_model("pspnet_resnet50", lowering="direct"), 1, 33, 33, 3)["params"]
    assert parameter_count(params["context"]) == 4 * (2048 * 512 + 2 * 512) + 9 * 4096 * 512 + 2 * 512
    assert parameter_count(params["classifier"]) == 512 * 21 + 21


def test_the_level_of_one_region_may_have_no_norm() -> None:
    context = PyramidPoolingVariant((1, 2), 5, context_kernel=1, norm_single=False)
    params = variable_shapes(context, 1, 9, 9, 4, output_stride=8)["params"]
    assert (set(params["bins1"]), set(params["bins1"]["conv"])) == ({"conv"}, {"kernel", "bias"})
    assert set(params["bins2"]) == {"conv", "norm"}
    assert params["projection"]["conv"]["kernel"].shape == (1, 1, 8, 5)


@pytest.mark.parametrize("option", ["context_kernel", "classifier_kernel"])
def test_kernels_of_pspnet(option: str) -> None:
    model = create_model("pspnet_resnet18", width=1 / 16, context_channels=8, **{option: 3})
    params = variable_shapes(model, 1, 33, 33, 3)["params"]
    layer = params["context"]["projection"]["conv"] if option == "context_kernel" else params["classifier"]
    assert layer["kernel"].shape[:2] == (3, 3)
    with pytest.raises(UserError, match=f"{option}=5: choose from 1, 3"):
        create_model("pspnet_resnet18", **{option: 5})


def test_unit_length_times_scale_by_hand() -> None:
    x = jnp.asarray([[3, 4], [0, -2], [0, 0]], jnp.float32).reshape(1, 1, 3, 2)
    y = L2Normalisation().apply({"params": {"scale": jnp.asarray([10.0, 5.0])}}, x)
    np.testing.assert_allclose(y[0, 0], [[6, 4], [0, -5], [0, 0]], rtol=1e-5)
    assert L2Normalisation().init(jax.random.key(0), x)["params"]["scale"].tolist() == [10, 10]


def test_the_gradient_of_a_zero_vector_is_finite() -> None:
    module = L2Normalisation()
    variables = {"params": {"scale": jnp.ones(2)}}
    gradient = jax.grad(lambda x: jnp.sum(module.apply(variables, x)))(jnp.zeros((1, 1, 1, 2)))
    assert np.all(np.isfinite(gradient))


def test_the_global_vector_is_at_every_pixel() -> None:
    """fc7 hands the map on: locally 10 x / |x|, globally 10 m / |m| of the mean m = (6, 8)."""
    module = GlobalContext(1, 2, settings=BARE)
    identity = layer(np.eye(2).reshape(1, 1, 2, 2))
    scale = {"scale": jnp.full(2, 10.0)}
    params = {"local": {"fc6": identity, "fc7": identity}, "norm_local": scale, "norm_global": scale}
    x = jnp.asarray([[12, 0], [0, 16], [9, 12], [3, 4]], jnp.float32).reshape(1, 2, 2, 2)
    y = module.apply({"params": params}, x, output_stride=8, train=False)
    local = [[10, 0], [0, 10], [6, 8], [6, 8]]
    np.testing.assert_allclose(y.reshape(4, 4), np.concatenate([local, [[6, 8]] * 4], -1), rtol=1e-5)


def test_parsenet_doubles_the_channels_of_fc7() -> None:
    params = variable_shapes(create_model("parsenet_vgg16", lowering="direct"), 1, 33, 33, 3)["params"]
    largefov = variable_shapes(create_model("largefov_vgg16", lowering="direct"), 1, 33, 33, 3)["params"]
    assert params["context"]["local"] == largefov["context"]
    assert params["backbone"] == largefov["backbone"]
    assert parameter_count(params["context"]) == parameter_count(largefov["context"]) + 2 * 1024
    assert params["classifier"]["kernel"].shape == (1, 1, 2048, 21)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 12)])
def test_the_vector_of_the_spatial_pyramid_is_at_every_pixel(size: tuple[int, int]) -> None:
    """One fully connected layer reads 21 maxima per channel; here it hands the last on, the maximum of the map."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (2, *size, 3)), jnp.float32)
    module = SpatialPyramidContext(context_channels=2, settings=BARE)
    shapes = variable_shapes(module, *x.shape, output_stride=16)["params"]
    assert shapes["vector"]["conv"]["kernel"].shape == (1, 1, 21 * 3, 2)
    params = {
        "vector": layer(np.zeros((1, 1, 63, 2))),
        "projection": layer(np.zeros((1, 1, 5, 2))),
    }
    # Of the vector's last region channel 2; then the map's channel 0 and what the vector said.
    params["vector"]["conv"]["kernel"] = params["vector"]["conv"]["kernel"].at[0, 0, 62, 0].set(1)
    params["projection"]["conv"]["kernel"] = jnp.zeros((1, 1, 5, 2)).at[0, 0, (0, 3), (0, 1)].set(1)
    y = module.apply({"params": params}, x, output_stride=16, train=False)
    np.testing.assert_allclose(y[..., 0], x[..., 0], rtol=1e-6)
    highest = np.broadcast_to(np.max(x[..., 2], axis=(1, 2))[:, None, None], (2, *size))
    np.testing.assert_allclose(y[..., 1], highest, rtol=1e-6)


def test_the_spatial_pyramid_takes_any_image() -> None:
    model = create_model("spp_vgg16", num_classes=3, width=1 / 16, context_channels=4)
    variables = variable_shapes(model, 1, 65, 65, 3)
    for size in ((33, 33), (50, 97)):
        x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, x).shape == (1, *size, 3)
