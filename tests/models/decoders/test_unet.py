"""U-Net: the published network and its sizes, skips that are aligned, mirrored borders, other encoders."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.decoders.unet import UNetDecoder, UpConvolution, next_valid_side
from deeplab_jax.models.segmenter import extend_by_mirroring
from tests.support.kernels import pass_through
from tests.support.traces import fill_variables, parameter_count, variable_shapes

TINY = {"width": 1 / 64, "decoder_channels": (1, 1, 1, 1), "num_classes": 1}
PUBLISHED = {"border": 92, "fit": next_valid_side}


def follow(source: int, shapes: Any) -> Any:
    """Variables by which a network hands on one of two things: the way up (0), or the skips (1), which follow the one
    channel of the former in every concatenation; an upsampling repeats pixels.
    """
    variables = pass_through(shapes)
    for name, layer in variables["params"]["decoder"].items():
        if name.endswith("_up"):
            layer["kernel"] = jnp.ones_like(layer["kernel"]).at[:, :, 1:].set(0)
        elif name.endswith("_conv1"):
            kernel = layer["conv"]["kernel"]
            layer["conv"]["kernel"] = jnp.zeros_like(kernel).at[1, 1, source].set(1)
    return variables


def ramp(height: int, width: int, axis: int) -> jax.Array:
    """An image whose pixels are their own positions along an axis."""
    positions = jnp.arange(1.0, (height, width)[axis] + 1)
    shape = (1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1)
    return jnp.broadcast_to(positions.reshape(shape), (1, height, width, 3))


def test_as_published_572_pixels_become_388() -> None:
    """1 channel in, 2 classes out, 31,030,658 parameters: 23 convolutions, each with a bias."""
    model = create_model("unet", num_classes=2, padding="valid", lowering="direct", in_channels=1)
    variables = variable_shapes(model, 1, 572, 572, 1)
    assert set(variables) == {"params"}
    assert parameter_count(variables) == 31_030_658
    assert (
        parameter_count(variable_shapes(create_model("unet", num_classes=2, in_channels=1), 1, 572, 572, 1))
        == 31_030_658
    )
    sizes: dict[str, tuple[int, ...]] = {}

    def run(variables: Any, x: jax.Array) -> Any:
        sizes.update({name: a.shape[1:] for name, (a, _) in model.apply(variables, x, method="features").items()})
        return model.apply(variables, x)

    assert jax.eval_shape(run, variables, jnp.zeros((1, 572, 572, 1))).shape == (1, 388, 388, 2)
    # Fig. 1
    assert sizes == {
        "conv1": (568, 568, 64), "pool1": (284, 284, 64), "conv2": (280, 280, 128), "pool2": (140, 140, 128),
        "conv3": (136, 136, 256), "pool3": (68, 68, 256), "conv4": (64, 64, 512), "pool4": (32, 32, 512),
        "conv5": (28, 28, 1024), "context": (28, 28, 1024),
    }  # fmt: skip


def test_up_convolutions_start_with_the_deviation_of_the_paper() -> None:
    kernel = UpConvolution(128).init(jax.random.key(0), jnp.zeros((1, 1, 1, 64)))["params"]["kernel"]
    assert float(jnp.std(kernel)) == pytest.approx(np.sqrt(2 / 64), rel=0.03)


@pytest.mark.parametrize("size", [(33, 33), (47, 34), (65, 97)])
@pytest.mark.parametrize("name", ["unet", "unet_resnet18"])
def test_padded_logits_have_the_size_of_any_image(name: str, size: tuple[int, int]) -> None:
    channels = (4,) * (4 if name == "unet" else 5)
    model = create_model(name, num_classes=3, width=1 / 16, decoder_channels=channels)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="coarse_logits"), variable_shapes(model, 1, 33, 33, 3), x
    )
    assert logits.shape == (2, *size, 3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("padding", "size", "border"), [("valid", (220, 188), 92), ("same", (53, 47), 0)])
def test_positions_survive_the_way_down_and_up(padding: str, size: tuple[int, int], border: int, axis: int) -> None:
    """Along the skips a pixel arrives where it was, counted from the border that is lost; through the bottom, what
    arrives is the highest position of the 16 pixels that share its sample.
    """
    model = create_model("unet", padding=padding, **TINY)
    shapes = variable_shapes(model, 1, 188, 188, 3)
    x = ramp(*size, axis)
    logits = jax.jit(model.apply)
    inside = slice(border, size[0] - border), slice(border, size[1] - border)
    expected = x[0, *inside, 0]
    by_skip = logits(follow(1, shapes), x)[0, :, :, 0]
    np.testing.assert_array_equal(by_skip, expected)
    position = np.asarray(expected) - 1
    highest = np.minimum(position // 16 * 16 + 16, size[axis])
    if padding == "valid":
        # Ahead of the first sample at the bottom: each stage's convolutions lose two of its own samples.
        lost = 2 + 4 + 8 + 16 + 32
        highest = (position - lost) // 16 * 16 + 16 + lost
    np.testing.assert_array_equal(logits(follow(0, shapes), x)[0, :, :, 0], highest)


def test_up_convolution_by_hand() -> None:
    """Each sample becomes 2x2 pixels, a weight for each, and the bias once."""
    params = {"kernel": jnp.asarray([[1.0, 2], [3, 4]])[:, :, None, None], "bias": jnp.asarray([0.5])}
    y = UpConvolution(1).apply({"params": params}, jnp.asarray([[1.0, 10]])[None, :, :, None])
    assert y[0, :, :, 0].tolist() == [[1.5, 2.5, 10.5, 20.5], [3.5, 4.5, 30.5, 40.5]]


def test_nearest_upsampling_repeats_pixels_before_the_skip() -> None:
    """The channels of the way up come first; what is a pixel too many is cut off at the end."""
    decoder = UNetDecoder(("conv2",), (1,), "nearest")
    x = jnp.asarray([[1.0, 2], [3, 4]])[None, :, :, None]
    skip = 10 * jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    features: Any = {"context": (x, 4), "conv2": (skip, 2)}
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), x, features, train=False))
    variables = pass_through(shapes)
    norms = {"norm": {"batch": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}}
    for layer in variables["params"].values():
        layer.update(norms)
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    for statistics in variables["batch_stats"].values():
        statistics["norm"]["batch"]["mean"] = jnp.zeros(1)
    variables["params"]["step1_conv1"]["conv"]["kernel"] = jnp.zeros((3, 3, 2, 1)).at[1, 1, 0].set(1)
    y = decoder.apply(variables, x, features, train=False)[0, :, :, 0]
    np.testing.assert_allclose(y, [[1, 1, 2], [1, 1, 2], [3, 3, 4]], rtol=1e-4)
    variables["params"]["step1_conv1"]["conv"]["kernel"] = jnp.zeros((3, 3, 2, 1)).at[1, 1, 1].set(1)
    y = decoder.apply(variables, x, features, train=False)
    np.testing.assert_allclose(y, skip, rtol=1e-4)


@pytest.mark.parametrize("size", [(33, 50), (36, 20), (189, 572)])
def test_mirrored_images_cover_themselves(size: tuple[int, int]) -> None:
    """A size 16 b + 124 of which 92 pixels at the start and at least as many at the end are added."""
    extend = partial(extend_by_mirroring, **PUBLISHED)
    extended = jax.eval_shape(extend, jnp.zeros((1, *size, 3))).shape[1:3]
    for side, whole in zip(size, extended, strict=True):
        assert whole % 16 == 124 % 16
        assert 0 <= whole - 184 - side < 16


def test_mirroring_repeats_the_border() -> None:
    extended = extend_by_mirroring(ramp(40, 37, 1), **PUBLISHED)
    assert extended[0, 100, 88:96, 0].tolist() == [4, 3, 2, 1, 1, 2, 3, 4]
    assert extended[0, 100, 92 + 34 : 92 + 40, 0].tolist() == [35, 36, 37, 37, 36, 35]
    np.testing.assert_array_equal(extended[:, 92 : 92 + 40, 92 : 92 + 37], ramp(40, 37, 1))


@pytest.mark.slow
def test_logits_of_whole_images_of_the_published_form() -> None:
    """They cover an image of odd size; where no mirrored pixel is seen they are those of the plain network.

    Pixel p is p + 92 of the mirrored image; the crop starts at 4, so that both are pooled alike (4 + 92 = 6 * 16).
    """
    model = create_model("unet", padding="valid", num_classes=2, width=1 / 16, decoder_channels=(8, 4, 4, 4))
    variables = fill_variables(model, 1, 188, 188, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 205, 199, 3)), jnp.float32)
    whole = jax.jit(lambda v, x: model.apply(v, x, method="coarse_logits_of_whole"))(variables, x)
    assert whole.shape == (1, 205, 199, 2)
    plain = jax.jit(model.apply)(variables, x[:, 4 : 4 + 188, 4 : 4 + 188])
    assert plain.shape == (1, 4, 4, 2)
    scale = float(jnp.max(jnp.abs(whole)))
    assert float(jnp.std(plain)) > 1e-3 * scale
    np.testing.assert_allclose(whole[:, 96:100, 96:100], plain, atol=1e-5 * scale)


def test_logits_of_whole_images_of_the_padded_form() -> None:
    model = create_model("unet", **TINY)
    variables = pass_through(variable_shapes(model, 1, 33, 33, 3))
    x = ramp(35, 33, 0)
    whole, logits = (
        jax.jit(lambda v, x, m=method: model.apply(v, x, method=m))(variables, x)
        for method in ("coarse_logits_of_whole", "coarse_logits")
    )
    assert whole.shape == (1, 35, 33, 1)
    np.testing.assert_array_equal(whole, logits)


def test_the_published_form_takes_sizes_that_halve_at_every_pooling() -> None:
    model = create_model("unet", padding="valid", **TINY)
    variables = variable_shapes(model, 1, 188, 188, 3)
    for height, fitting in ((187, 188), (189, 204)):
        words = rf"images of {height}x188: this network takes 188, 204, \.\.\. pixels .*; {fitting}x188 would fit"
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, height, 188, 3), jnp.float32))
    assert jax.eval_shape(model.apply, variables, jnp.zeros((1, 188, 204, 3))).shape == (1, 4, 20, 1)


def test_unet_on_resnet18_has_the_peers_parameters() -> None:
    """segmentation_models_pytorch's Unet("resnet18", classes=1)."""
    model = create_model("unet_resnet18", num_classes=1)
    variables = variable_shapes(model, 1, 64, 64, 3)
    assert parameter_count(variables["params"]) == 14_328_209
    decoder = variables["params"]["decoder"]
    assert decoder["step1_conv1"]["conv"]["kernel"].shape == (3, 3, 512 + 256, 256)
    assert decoder["step5_conv1"]["conv"]["kernel"].shape == (3, 3, 32, 16)  # no skip


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unet_resnet18", {"padding": "valid"}, "option 'padding' has no meaning for unet_resnet18"),
        ("unet", {"upsampling": "bilinear"}, "upsampling='bilinear': choose from transposed, nearest"),
        ("unet_resnet18", {"output_stride": 16}, "output_stride=16: U-Net doubles the resolution at every step"),
        ("unet", {"decoder_channels": (8, 8, 8)}, "decoder_channels=(8, 8, 8): one number for each of the 4 skips"),
    ],
)
def test_bad_options_are_refused_in_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        create_model(name, width=1 / 16, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
