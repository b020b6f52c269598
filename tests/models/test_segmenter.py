"""Whole networks: any size, what training changes, auxiliary logits, dtypes, and inference that treats images alone."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.decoders.fcn import FCNHead
from deeplab_jax.models.layers import LayerSettings
from tests.support.traces import fill_variables, variable_shapes

TINY = {"width": 1 / 16, "aspp_channels": 4, "low_level_channels": 3, "decoder_convs": ((3, 4),)}
TINY_V3 = {"width": 1 / 16, "aspp_channels": 4}


def images(*size: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*size, 3)), jnp.float32)


def output(model: Any, variables: Any, x: Any, **options: Any) -> Any:
    """The shape and dtype of a call's results; nothing is computed."""
    return jax.eval_shape(lambda v, x: model.apply(v, x, **options), variables, x)


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A thin DeepLabv3+ on ResNet-18, its variables, and its compiled inference and training calls."""
    model = create_model("deeplabv3plus_resnet18", num_classes=5, **TINY, dropout=0.5, aux_head=True, norm_momentum=0.5)
    variables = fill_variables(model, 1, 33, 35, 3)

    @jax.jit
    def infer(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables, x, train=False)

    @jax.jit
    def train(variables: Any, x: jax.Array, key: jax.Array) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats", "intermediates"], rngs={"dropout": key})

    return model, variables, infer, train


@pytest.mark.parametrize(
    "name",
    ["deeplabv3_resnet18", "deeplabv3plus_mobilenet_v2", pytest.param("cascade_resnet50", marks=pytest.mark.slow)],
)
def test_logits_have_the_size_of_any_image(name: str) -> None:
    model = create_model(name, num_classes=5, width=0.25)
    variables = variable_shapes(model, 1, 65, 65, 3)
    for height, width in [(33, 33), (34, 47), (101, 64)]:
        x = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        logits = output(model, variables, x, train=False)
        assert (logits.shape, logits.dtype) == ((2, height, width, 5), jnp.float32)


def test_images_below_33_pixels_are_refused() -> None:
    model = create_model("deeplabv3_resnet18", **TINY_V3)
    variables = variable_shapes(model, 1, 33, 33, 3)
    for shape in [(1, 32, 40, 3), (1, 40, 32, 3), (40, 40, 3)]:
        with pytest.raises(ValueError, match="H and W of at least 33"):
            output(model, variables, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("name", ["deeplabv3plus_resnet18", "deeplabv3plus_mobilenet_v2"])
def test_bfloat16_gives_float32_logits_and_keeps_float32_variables(name: str) -> None:
    model = create_model(name, dtype="bfloat16", width=0.25, aux_head=True)
    variables = variable_shapes(model, 1, 33, 33, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((2, 33, 41, 3), jnp.float32)
    logits, sown = output(model, variables, x, train=False, mutable=["intermediates"])
    assert logits.dtype == jnp.float32
    assert sown["intermediates"]["aux"][0].dtype == jnp.float32
    # Inside, activations are bfloat16.
    features = jax.eval_shape(
        lambda v, x: {n: a for n, (a, _) in model.apply(v, x, method="features").items()}, variables, x
    )
    assert {a.dtype for a in features.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_bfloat16_is_near_float32(tiny: Any) -> None:
    _, variables, infer, _ = tiny
    rough = create_model("deeplabv3plus_resnet18", num_classes=5, **TINY, aux_head=True, dtype="bfloat16")
    x = images(2, 33, 35)
    exact, found = infer(variables, x), jax.jit(rough.apply)(variables, x)
    assert 0 < float(jnp.max(jnp.abs(found - exact))) < 0.05 * float(jnp.std(exact))


def test_features_are_named_and_carry_their_strides(tiny: Any) -> None:
    model, variables, _, _ = tiny
    found: dict[str, int] = {}

    def features(variables: Any, x: jax.Array) -> Any:
        result = model.apply(variables, x, train=False, method="features")
        found.update({name: stride for name, (_, stride) in result.items()})
        return {name: array for name, (array, _) in result.items()}

    arrays = jax.eval_shape(features, variables, images(1, 65, 49))
    assert found == {"stem": 2, "conv2": 4, "conv3": 8, "conv4": 16, "conv5": 16, "context": 16}
    assert arrays["context"].shape == (1, 5, 4, 4)
    assert arrays["conv2"].shape == (1, 17, 13, 4)


def test_coarse_logits_come_before_the_resize(tiny: Any) -> None:
    model, variables, _, _ = tiny
    coarse = output(model, variables, jax.ShapeDtypeStruct((1, 65, 49, 3), jnp.float32), method="coarse_logits")
    assert (coarse.shape, coarse.dtype) == ((1, 17, 13, 5), jnp.float32)


def test_an_image_in_a_batch_gets_the_logits_that_it_gets_alone(tiny: Any) -> None:
    _, variables, infer, _ = tiny
    x = images(2, 33, 35)
    both = infer(variables, x)
    for index in (0, 1):
        alone = infer(variables, x[index : index + 1])[0]
        np.testing.assert_allclose(both[index], alone, atol=1e-5 * float(jnp.max(jnp.abs(alone))))
    # Zeros fill up a last batch; they must not reach the others.
    filled = infer(variables, x.at[1].set(0.0))
    np.testing.assert_allclose(filled[0], both[0], atol=1e-6)


def test_training_updates_the_running_statistics_and_inference_does_not(tiny: Any) -> None:
    model, variables, _, train = tiny
    x = images(2, 33, 35)
    _, updates = train(variables, x, jax.random.key(0))
    chex.assert_trees_all_equal_shapes(updates["batch_stats"], variables["batch_stats"])
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), updates["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed))
    # The first norm by hand: half of the running mean, half of the mean of the first convolution's output.
    stem = variables["params"]["backbone"]["conv1"]["conv"]["kernel"]
    y = jax.lax.conv_general_dilated(x, stem, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    before, after = (tree["batch_stats"]["backbone"]["conv1"]["norm"]["batch"]["mean"] for tree in (variables, updates))
    np.testing.assert_allclose(after, 0.5 * before + 0.5 * np.mean(y, axis=(0, 1, 2)), atol=1e-6)
    # Inference asks for no collection to be writable: it would raise if it wrote one.
    assert output(model, variables, x, train=False).shape == (2, 33, 35, 5)


def test_dropout_depends_on_the_key_in_training_only(tiny: Any) -> None:
    _, variables, infer, train = tiny
    x = images(2, 33, 35)
    first, again, other = (train(variables, x, jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.max(jnp.abs(first - other))) > 1e-3
    np.testing.assert_array_equal(infer(variables, x), infer(variables, x))


def test_auxiliary_logits_are_sown_at_the_size_of_the_image(tiny: Any) -> None:
    model, variables, _, train = tiny
    x = images(2, 33, 35)
    _, updates = train(variables, x, jax.random.key(0))
    (aux,) = updates["intermediates"]["aux"]
    assert (aux.shape, aux.dtype) == ((2, 33, 35, 5), jnp.float32)
    assert variables["params"]["aux_head"]["conv"]["conv"]["kernel"].shape == (3, 3, 16, 4)
    assert variables["params"]["aux_head"]["classifier"]["kernel"].shape == (1, 1, 4, 5)
    # It does not reach the main logits, and a call that does not ask for it gets them alone.
    assert not isinstance(output(model, variables, x, train=False), tuple)
    plain = create_model("deeplabv3plus_resnet18", num_classes=5, **TINY)
    with_aux = jax.tree.map(lambda a: a.shape, variables["params"])
    without = jax.eval_shape(lambda x: plain.init(jax.random.key(0), x), x)["params"]
    assert jax.tree.map(lambda a: a.shape, without) == {k: v for k, v in with_aux.items() if k != "aux_head"}


def test_the_fcn_head_by_hand() -> None:
    head = FCNHead(2, settings=LayerSettings(norm="none"))
    variables = {
        "params": {
            "conv": {"conv": {"kernel": jnp.ones((3, 3, 4, 1)), "bias": jnp.asarray([-30.0])}},
            "classifier": {"kernel": jnp.asarray([1.0, -1.0]).reshape(1, 1, 1, 2), "bias": jnp.asarray([0.0, 5.0])},
        }
    }
    # Three by three ones of four channels: 36 in the centre, 16 and 24 around it; 30 less, then the ReLU.
    y = head.apply(variables, jnp.ones((1, 3, 3, 4)), train=False)
    assert y[0, :, :, 0].tolist() == [[0, 0, 0], [0, 6, 0], [0, 0, 0]]
    assert y[0, 1, 1].tolist() == [6, -1]


def test_frozen_norms_keep_their_statistics_in_training(tiny: Any) -> None:
    _, variables, infer, _ = tiny
    frozen = create_model("deeplabv3plus_resnet18", num_classes=5, **TINY, aux_head=True, norm="frozen")
    x = images(2, 33, 35)

    @jax.jit
    def train(variables: Any, x: jax.Array) -> Any:
        return frozen.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    logits, updates = train(variables, x)
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    # Without dropout in its pyramid the second stage starts from exactly what inference computes.
    np.testing.assert_allclose(logits, infer(variables, x), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "collections"),
    [
        ({"norm": "batch"}, {"params", "batch_stats"}),
        ({"norm": "frozen"}, {"params", "batch_stats"}),
        ({"norm": "group"}, {"params"}),
        ({"norm": "none"}, {"params"}),
    ],
)
def test_collections_by_norm(options: dict[str, Any], collections: set[str]) -> None:
    model = create_model("deeplabv3plus_resnet18", **TINY, **options)
    variables = variable_shapes(model, 1, 33, 33, 3)
    assert set(variables) == collections
    x = jax.ShapeDtypeStruct((2, 33, 33, 3), jnp.float32)
    _, updates = output(model, variables, x, train=True, mutable=["batch_stats"])
    assert set(updates) == collections - {"params"}


def test_head_and_backbone_may_differ_in_their_norm() -> None:
    model = create_model("deeplabv3_resnet18", **TINY_V3, norm="group", backbone_norm="frozen")
    variables = variable_shapes(model, 1, 33, 33, 3)
    assert set(variables["batch_stats"]) == {"backbone"}
    assert "group" in variables["params"]["context"]["projection"]["norm"]


def test_one_image_in_training_is_refused_with_batch_norm() -> None:
    """The image-level features are one value per channel; normalised by itself it would be a constant."""
    model = create_model("deeplabv3_resnet18", **TINY_V3)
    variables = variable_shapes(model, 1, 65, 65, 3)
    one, two = (jax.ShapeDtypeStruct((n, 65, 65, 3), jnp.float32) for n in (1, 2))
    with pytest.raises(UserError, match=r"image_pooling.*train with at least 2 images per batch"):
        output(model, variables, one, train=True, mutable=["batch_stats"])
    assert output(model, variables, two, train=True, mutable=["batch_stats"])
    assert output(model, variables, one, train=False)


def test_the_same_weights_run_at_another_output_stride() -> None:
    """Without image pooling, whose average sees another number of samples, even the logits agree.

    The pyramid's rates double as the stride halves, so every tap lands on the same pixel.
    """
    model = create_model("deeplabv3_resnet18", num_classes=3, **TINY_V3, image_pooling=False, aspp_rates=(2, 4))
    variables = fill_variables(model, 1, 65, 49, 3)
    x = images(1, 65, 49)
    coarse, fine = (
        jax.jit(partial(network.apply, train=False, method="coarse_logits"))(variables, x)
        for network in (model, model.clone(output_stride=8))
    )
    assert coarse.shape == (1, 5, 4, 3)
    assert fine.shape == (1, 9, 7, 3)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-5 * float(jnp.max(jnp.abs(coarse))))


def test_gradients_reach_every_parameter(tiny: Any) -> None:
    model, variables, _, _ = tiny

    @jax.jit
    def gradient(params: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, updates = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats", "intermediates"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.mean(logits[..., 0] ** 2) + jnp.mean(updates["intermediates"]["aux"][0] ** 2)

        return jax.grad(loss)(params)

    gradients = gradient(variables["params"], images(2, 33, 35))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


def test_the_classifier_starts_small() -> None:
    """Logits near zero: the first loss is that of a uniform guess."""
    model = create_model("deeplabv3_resnet18", num_classes=7, **{**TINY_V3, "aspp_channels": 400})
    initialise = jax.jit(lambda key: model.init(key, jnp.zeros((1, 33, 33, 3)))["params"]["classifier"]["kernel"])
    kernel = initialise(jax.random.key(0))
    assert kernel.shape == (1, 1, 400, 7)
    assert float(jnp.std(kernel)) == pytest.approx(0.01, rel=0.1)
