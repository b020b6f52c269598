"""Image pyramids: views, fusion by hand, shared weights, and options that are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.image_pyramid import ImagePyramid
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.ops.resize import resize_bilinear
from tests.support.traces import fill_variables, variable_shapes

pytestmark = pytest.mark.usefixtures("tiny_networks")


def noise(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def logits(*values: Any) -> list[jax.Array]:
    return [jnp.asarray(value, jnp.float32)[None] for value in values]


@pytest.mark.parametrize("options", [{}, {"fusion": "max"}, {"pyramid": "laplacian"}])
def test_with_one_scale_it_is_the_bare_network(options: dict[str, Any]) -> None:
    bare = create_model("cascade_tiny", num_classes=3)
    model = create_model("cascade_tiny", num_classes=3, image_pyramid=(1.0,), **options)
    variables = fill_variables(bare, 1, 65, 50, 3)
    x = noise(2, 65, 50, 3)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x), jax.jit(bare.apply)(variables, x))


def test_views_are_the_image_at_each_scale() -> None:
    """A side of n pixels becomes (n - 1) s + 1, so that corners stay on corners; none falls below the smallest."""
    x = noise(2, 65, 49, 3)
    views = ImagePyramid((1.0, 0.75, 0.5)).views(x, smallest=33)
    assert [v.shape[1:3] for v in views] == [(65, 49), (49, 37), (33, 33)]
    np.testing.assert_array_equal(views[0], x)
    # Half of 64 steps: every second pixel.
    half = ImagePyramid((0.5,)).views(x, smallest=1)[0]
    np.testing.assert_allclose(half, x[:, ::2, ::2], atol=1e-6)
    assert [v.shape[1:3] for v in ImagePyramid((2.0, 1.0)).views(x, smallest=1)] == [(129, 97), (65, 49)]


@pytest.mark.parametrize("size", [(65, 49), (50, 71)])
def test_laplacian_bands_add_up_to_the_image(size: tuple[int, int]) -> None:
    """From coarse to fine: resize what is there and add the next band."""
    x = noise(1, *size, 3)
    bands = ImagePyramid((1.0, 0.5, 0.25), pyramid="laplacian").views(x, smallest=1)
    resized = ImagePyramid((1.0, 0.5, 0.25)).views(x, smallest=1)
    assert [b.shape for b in bands] == [r.shape for r in resized]
    np.testing.assert_array_equal(bands[-1], resized[-1])
    total = bands[-1]
    for band in bands[-2::-1]:
        total = resize_bilinear(total, band.shape[1:3], align_corners=True) + band
    np.testing.assert_allclose(total, x, atol=1e-6)
    # A flat image has nothing but its coarsest level.
    flat = ImagePyramid((1.0, 0.5), pyramid="laplacian").views(jnp.full((1, *size, 3), 7.0), smallest=1)
    assert float(jnp.max(jnp.abs(flat[0]))) < 1e-5
    assert float(jnp.min(flat[1])) == pytest.approx(7)


def test_laplacian_bands_of_nested_grids_may_all_be_resized_at_once() -> None:
    """For (n - 1) a multiple of 4, resizing in two steps of two is resizing once by four."""
    x = noise(1, 65, 49, 3)
    bands = ImagePyramid((1.0, 0.5, 0.25), pyramid="laplacian").views(x, smallest=1)
    total = sum(resize_bilinear(band, (65, 49), align_corners=True) for band in bands)
    np.testing.assert_allclose(total, x, atol=1e-5)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [("average", [[[2, 4], [1.5, 5], [1, 6]]]), ("max", [[[3, 8], [2, 8], [1, 8]]])],
)
def test_average_and_maximum_by_hand(fusion: Any, expected: Any) -> None:
    """The coarser logits 3, 1 and 0, 4 become 3, 2, 1 and 0, 2, 4 at the size of the finer ones."""
    fine, coarse = logits([[[1, 8], [1, 8], [1, 8]]], [[[3, 0], [1, 4]]])
    y = ImagePyramid((1.0, 0.5), fusion=fusion).apply({}, [fine, coarse], [fine, coarse])
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)


def test_attention_by_hand() -> None:
    """Two convolutions over the features of both scales; their softmax weighs the logits pixel by pixel."""
    fine, coarse = logits([[[1, 8], [1, 8], [1, 8]]], [[[3, 0], [1, 4]]])
    seen = logits([[[1], [0], [2]]], [[[1], [3]]])  # the coarser becomes 1, 2, 3
    first = jnp.zeros((3, 3, 2, 512)).at[1, 1, 0, 0].set(1).at[1, 1, 1, 1].set(1)
    second = jnp.zeros((1, 1, 512, 2)).at[0, 0, 0, 0].set(1).at[0, 0, 1, 1].set(1)
    params = {
        "attention1": {"kernel": first, "bias": jnp.zeros(512).at[1].set(-1.5)},
        "attention2": {"kernel": second, "bias": jnp.asarray([0.0, 0.5])},
    }
    y = ImagePyramid((1.0, 0.5), fusion="attention").apply({"params": params}, [fine, coarse], seen)
    # relu(1, 0, 2) against relu(1 - 1.5, 2 - 1.5, 3 - 1.5) + 0.5
    weights = np.exp([[1, 0.5], [0, 1.0], [2, 2.0]])
    weights /= weights.sum(-1, keepdims=True)
    expected = weights[:, :1] * [[1, 8]] * 1 + weights[:, 1:] * [[3, 0], [2, 2], [1, 4]]
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["average", "max", "attention"])
def test_weights_are_shared(fusion: str) -> None:
    """A pyramid adds nothing but its attention."""
    bare = variable_shapes(create_model("deeplabv3plus_tiny"), 1, 33, 33, 3)
    model = create_model("deeplabv3plus_tiny", image_pyramid=(1.0, 0.75, 0.5), fusion=fusion)
    variables = variable_shapes(model, 1, 33, 33, 3)
    added = variables["params"].pop("pyramid", None)
    assert variables == bare
    if fusion == "attention":
        assert added["attention1"]["kernel"].shape == (3, 3, 3 * 256, 512)
        assert added["attention2"]["kernel"].shape == (1, 1, 512, 3)
    else:
        assert added is None


def test_logits_are_fused_from_the_network_at_each_scale() -> None:
    """The same network on each resized image, one after the other, and the mean of its logits."""
    bare = create_model("cascade_tiny", num_classes=3)
    model = create_model("cascade_tiny", num_classes=3, image_pyramid=(1.0, 0.5))
    variables = fill_variables(bare, 1, 65, 65, 3)
    x = noise(2, 81, 97, 3)
    half = x[:, ::2, ::2]

    @jax.jit
    def both(variables: Any, x: jax.Array, half: jax.Array) -> Any:
        separate = [bare.apply(variables, view, method="coarse_logits") for view in (x, half)]
        return model.apply(variables, x, method="coarse_logits"), separate

    found, (fine, coarse) = both(variables, x, half)
    expected = (fine + resize_bilinear(coarse, fine.shape[1:3], align_corners=True)) / 2
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.max(jnp.abs(expected))))
    assert float(jnp.max(jnp.abs(found - fine))) > 0.1 * float(jnp.max(jnp.abs(fine)))


@pytest.mark.parametrize("fusion", ["average", "max", "attention"])
@pytest.mark.parametrize("pyramid", ["resized", "laplacian"])
@pytest.mark.parametrize("size", [(33, 33), (50, 71)])
def test_any_size(fusion: str, pyramid: str, size: tuple[int, int]) -> None:
    options: dict[str, Any] = {"image_pyramid": (1.0, 0.75, 0.5), "fusion": fusion, "pyramid": pyramid}
    model = create_model("cascade_tiny", num_classes=3, aux_head=True, **options)
    variables = variable_shapes(model, 1, 65, 65, 3)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits, sown = jax.eval_shape(lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables, x)
    assert logits.shape == (2, *size, 3)
    # One for each scale.
    assert [aux.shape for aux in sown["intermediates"]["aux"]] == [(2, *size, 3)] * 3


def test_the_first_scale_may_be_another_than_1() -> None:
    bare = create_model("cascade_tiny", num_classes=3)
    model = create_model("cascade_tiny", num_classes=3, image_pyramid=(0.5,))
    variables = fill_variables(bare, 1, 65, 65, 3)
    x = noise(1, 81, 97, 3)
    found = jax.jit(lambda v, x: model.apply(v, x, method="coarse_logits"))(variables, x)
    expected = jax.jit(lambda v, x: bare.apply(v, x, method="coarse_logits"))(variables, x[:, ::2, ::2])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert jax.eval_shape(model.apply, variables, x).shape == (1, 81, 97, 3)


@pytest.mark.parametrize("name", ["deeplabv2_vgg16", "lraspp_mobilenet_v3_large", "fcn32s_vgg16"])
def test_attention_reads_features_where_the_decoder_returns_the_logits(name: str) -> None:
    """So its kernels do not depend on the number of classes."""
    options = {"width": 0.05} if "vgg" in name else {}
    shapes = []
    for count in (2, 21):
        model = create_model(name, num_classes=count, image_pyramid=(1.0, 0.5), fusion="attention", **options)
        shapes.append(abstract_variables(model)["params"]["pyramid"]["attention1"]["kernel"].shape)
    assert shapes[0] == shapes[1]


def test_gradients_reach_the_attention() -> None:
    model = create_model("cascade_tiny", num_classes=3, image_pyramid=(1.0, 0.5), fusion="attention")
    variables = fill_variables(model, 1, 65, 65, 3)
    x = noise(2, 65, 65, 3)

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.mean(logits[..., 0] ** 2)

        return jax.grad(loss)(params)

    gradients = gradient(variables["params"])
    assert set(gradients) == {"backbone", "classifier", "pyramid"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


def test_attention_starts_with_nearly_equal_weights() -> None:
    pyramid = ImagePyramid((1.0, 0.5), fusion="attention")
    maps = logits([[[1.0], [0], [2]]], [[[1.0], [3]]])
    y, _ = jax.jit(lambda: pyramid.init_with_output(jax.random.key(0), maps, maps))()
    np.testing.assert_allclose(y.ravel(), [1, 1, 2.5], atol=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fusion": "max"}, "fusion='max', pyramid='resized': without scales; give image_pyramid="),
        ({"pyramid": "laplacian"}, "pyramid='laplacian': without scales"),
        ({"image_pyramid": (1.0, 0.5), "fusion": "mean"}, "fusion='mean': choose from average, max, attention"),
        ({"image_pyramid": (1.0, 0.5), "pyramid": "gaussian"}, "pyramid='gaussian': choose from resized, laplacian"),
        ({"image_pyramid": (1.0, 0.0)}, "image_pyramid=(1.0, 0.0): give factors above 0 and up to 4"),
        ({"image_pyramid": (1.0, -0.5)}, "above 0"),
        ({"image_pyramid": (8.0, 1.0)}, "up to 4"),
        ({"image_pyramid": (0.5, 1.0)}, "image_pyramid=(0.5, 1.0): give different scales from fine to coarse"),
        ({"image_pyramid": (1.0, 1.0)}, "different scales"),
        ({"image_pyramid": ("half",)}, "image_pyramid=('half',): give tuple[float, ...]"),
        ({"image_pyramid": 0.5}, "image_pyramid=0.5: give tuple[float, ...]"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        create_model("cascade_tiny", **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
