"""FCN: upsampling that starts as bilinear interpolation, skips that land on the right pixels, torchvision's form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.contexts.fully_connected import FullyConnected
from deeplab_jax.models.decoders.fcn import FCNHead, FCNReduction, FCNSkips, bilinear_kernel
from deeplab_jax.models.layers import LayerSettings
from tests.support.kernels import pass_through
from tests.support.params import first_fast
from tests.support.traces import variable_shapes

BARE = LayerSettings(norm="none")
SKIPS = {"fcn32s": (), "fcn16s": ("pool4",), "fcn8s": ("pool4", "pool3")}
POOL_STRIDES = {"pool3": 8, "pool4": 16, "context": 32}


def upsample(skips: tuple[str, ...], maps: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
    """Logits from the initial upsampling, of maps that are themselves the logits of two classes."""
    decoder = FCNSkips(2, skips, BARE)
    features: Any = {name: (jnp.asarray(x, jnp.float32), POOL_STRIDES[name]) for name, x in maps.items()}
    features["image"] = (jnp.zeros((1, height, width, 3)), 1)

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        params = decoder.init(jax.random.key(0), x, features, train=False)["params"]
        for name in params:
            if not name.startswith("classifier_to"):
                params[name]["kernel"] = jnp.eye(2)[None, None]
        return decoder.apply({"params": params}, x, features, train=False)

    return np.asarray(run(features["context"][0]))


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_the_upsampling_kernel_is_the_closed_form(stride: int) -> None:
    """Tap i of 2s weighs 1 - |i - c| / s about c = s - 1/2; every class by itself."""
    kernel = np.asarray(bilinear_kernel(None, (2 * stride, 2 * stride, 3, 3)))
    taps = [1 - abs(i - (stride - 0.5)) / stride for i in range(2 * stride)]
    np.testing.assert_allclose(kernel[:, :, 1, 1], np.outer(taps, taps), rtol=1e-6)
    assert not kernel[:, :, ~np.eye(3, dtype=bool)].any()
    # Every pixel's weights sum to 1: taps that are a stride apart complement each other.
    across = kernel[:, :, 1, 1].reshape(2, stride, 2, stride).sum((0, 2))
    np.testing.assert_allclose(across, np.ones((stride, stride)), rtol=1e-5)
    if stride == 2:
        assert taps == [0.25, 0.75, 0.75, 0.25]


@pytest.mark.parametrize("name", SKIPS)
def test_a_linear_ramp_is_reproduced(name: str) -> None:
    """Sample i at stride s covers pixels s i to s i + s - 1, whose mean position it gives: summed over the maps, every
    pixel gives its own position as often as there are maps. So no skip is shifted, and constants stay constants.
    """
    height, width = 97, 77
    maps = {}
    for feature in ("context", *SKIPS[name]):
        stride = POOL_STRIDES[feature]
        rows, columns = (stride * np.arange(-(-side // stride)) + (stride - 1) / 2 for side in (height, width))
        maps[feature] = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)[None]
    logits = upsample(SKIPS[name], maps, height, width)
    assert logits.shape == (1, height, width, 2)
    # At the border the next sample is missing: for half a stride of each map on the way, 16 + 8 + 4 pixels.
    rows, columns = np.meshgrid(np.arange(28, 68), np.arange(28, 68), indexing="ij")
    np.testing.assert_allclose(logits[0, 28:68, 28:68, 0], len(maps) * rows, rtol=1e-5)
    np.testing.assert_allclose(logits[0, 28:68, 28:68, 1], len(maps) * columns, rtol=1e-5)


def test_a_constant_stays_constant_but_for_the_border() -> None:
    logits = upsample((), {"context": np.full((1, 3, 2, 2), 5.0)}, 96, 64)
    np.testing.assert_allclose(logits[0, 16:80, 16:48], 5, rtol=1e-5)
    # The outermost pixel is half a pixel inside of half a stride: (16.5 / 32) of the weight along each axis.
    np.testing.assert_allclose(logits[0, 0, 0], 5 * (16.5 / 32) ** 2, rtol=1e-5)
    np.testing.assert_allclose(logits[0, 40, 63], 5 * (16.5 / 32), rtol=1e-5)


@pytest.mark.parametrize("feature", ["pool4", "pool3"])
def test_an_impulse_in_a_skip_is_centred_on_its_pixels(feature: str) -> None:
    maps = {name: np.zeros((1, -(-96 // s), -(-80 // s), 2)) for name, s in POOL_STRIDES.items()}
    maps[feature][0, 3, 2, 1] = 1
    logits = upsample(SKIPS["fcn8s"], maps, 96, 80)[0]
    assert not logits[..., 0].any()
    stride = POOL_STRIDES[feature]
    rows, columns = np.mgrid[:96, :80]
    weights = logits[..., 1] / logits[..., 1].sum()
    assert (weights * rows).sum() == pytest.approx(3 * stride + (stride - 1) / 2, abs=1e-3)
    assert (weights * columns).sum() == pytest.approx(2 * stride + (stride - 1) / 2, abs=1e-3)


@pytest.mark.parametrize("name", SKIPS)
@pytest.mark.parametrize(("row", "column"), first_fast([(64, 22), (37, 41)]))
def test_a_bright_pixel_has_the_highest_logit_where_it_is(name: str, row: int, column: int) -> None:
    """Through VGG, poolings, fc6 and the skips, all of which hand the first channel on."""
    model = create_model(f"{name}_vgg16", num_classes=1, width=1 / 64, fc_channels=1)
    variables = pass_through(variable_shapes(model, 1, 97, 80, 3))
    for key, leaf in variables["params"]["decoder"].items():
        if key.startswith("classifier_to"):
            variables["params"]["decoder"][key] = bilinear_kernel(None, leaf.shape)
    logits = np.asarray(jax.jit(model.apply)(variables, jnp.zeros((1, 97, 80, 3)).at[0, row, column].set(1.0)))
    stride = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}[name]
    best = np.unravel_index(np.argmax(logits[0, :, :, 0]), (97, 80))
    assert (best[0] // stride, best[1] // stride) == (row // stride, column // stride)


@pytest.mark.parametrize("name", SKIPS)
@pytest.mark.parametrize("size", [(33, 33), (64, 96), (65, 127)])
def test_logits_have_the_size_of_any_image_without_a_resize(name: str, size: tuple[int, int]) -> None:
    model = create_model(f"{name}_vgg16", num_classes=3, width=1 / 64, fc_channels=2)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="coarse_logits"), variable_shapes(model, 1, 33, 33, 3), x
    )
    assert logits.shape == (2, *size, 3)


def test_fc6_sees_seven_samples_and_keeps_the_map() -> None:
    """The kernel is the classifier's 7x7 matrix, centred; at the border zeros stand for what is missing."""
    module = FullyConnected(fc_channels=1, settings=BARE)
    kernel = jnp.arange(1.0, 50).reshape(7, 7, 1, 1)
    layers = {
        "fc6": {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}},
        "fc7": {"conv": {"kernel": jnp.full((1, 1, 1, 1), 2.0), "bias": jnp.asarray([-10.0])}},
    }
    x = jnp.zeros((1, 9, 8, 1)).at[0, 4, 3].set(1.0)
    y = module.apply({"params": layers}, x, output_stride=32, train=False)[0, :, :, 0]
    assert y.shape == (9, 8)
    np.testing.assert_array_equal(y[1:8, :7], np.maximum(0, 2 * np.arange(49, 0, -1).reshape(7, 7) - 10))


@pytest.mark.parametrize("output_stride", [8, 16])
def test_other_output_strides_are_refused(output_stride: int) -> None:
    with pytest.raises(UserError, match=f"output_stride={output_stride}: FCN's upsampling is learned for 32 only") as e:
        create_model("fcn8s_vgg16", width=1 / 64, fc_channels=1, output_stride=output_stride)
    assert "\n" not in str(e.value)


def test_the_head_of_torchvision_by_hand() -> None:
    head = FCNReduction(settings=BARE)
    variables = {"params": {"conv": {"conv": {"kernel": jnp.ones((3, 3, 4, 1)), "bias": jnp.asarray([-30.0])}}}}
    y = head.apply(variables, jnp.ones((1, 3, 3, 4)), output_stride=8, train=False)
    assert y[0, :, :, 0].tolist() == [[0, 0, 0], [0, 6, 0], [0, 0, 0]]


def test_the_first_loss_of_the_auxiliary_head_is_that_of_a_uniform_guess() -> None:
    """21 classes: log 21 = 3.04. Logits of unit size, as He's kernels give them, would add half of their variance."""
    x = jnp.abs(jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 9, 64)), jnp.float32))
    head = FCNHead(21)
    variables = head.init(jax.random.key(0), x, train=False)
    logits, _ = head.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1))
    assert float(loss) == pytest.approx(np.log(21), abs=0.01)


def test_logits_of_bfloat16_are_upsampled_in_float32() -> None:
    """Halfway between 1 and its next bfloat16, 1.0078125, lies a value that bfloat16 does not have."""
    decoder = FCNSkips(2, (), LayerSettings(norm="none", dtype="bfloat16"))
    x = jnp.asarray([[1.0, 0.0], [1.0078125, 0.0]], jnp.bfloat16).reshape(1, 1, 2, 2)
    features: Any = {"context": (x, 32), "image": (jnp.zeros((1, 32, 64, 3)), 1)}
    params = decoder.init(jax.random.key(0), x, features, train=False)["params"]
    params["classifier_fc7"]["kernel"] = jnp.eye(2)[None, None]
    logits = decoder.apply({"params": params}, x, features, train=False)
    assert logits.dtype == jnp.float32
    # Pixels 31 and 32 have the weights 33/64 and 31/64 of the first sample, and row 16 has 63/64 of the only row.
    left, right = logits[0, 16, 31:33, 0]
    np.testing.assert_allclose(right - left, 63 / 64 * 0.0078125 / 32, rtol=1e-3)
