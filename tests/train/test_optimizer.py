"""Optimizers: updates by hand and as in optax, what patterns select, and the backbone's stages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.train.optimizer import NAMES, stage_factors
from tests.support.steps import optimizer_of

PARAMS = {
    "backbone": {"conv": {"kernel": jnp.array([1.0, -2.0])}, "norm": {"scale": jnp.array([3.0])}},
    "classifier": {"kernel": jnp.array([4.0]), "bias": jnp.array([0.5])},
}
GRADIENT = jax.tree.map(lambda x: jnp.full_like(x, 0.1), PARAMS)


def after(params=PARAMS, gradient=GRADIENT, *, updates=1, **options):
    """The parameters after some updates with one gradient; no momentum and no decay unless asked for."""
    momentum = {"momentum": 0.0} if options.get("name", "sgd") == "sgd" else {}
    options = {"steps": 10, "learning_rate": 1.0, "power": 0.0, "weight_decay": 0.0, **momentum, **options}
    optimizer = optimizer_of(params, **options)
    state = optimizer.init(params)
    for _ in range(updates):
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
    return params


def test_the_schedule_counts_updates() -> None:
    params = after(updates=3, steps=4, learning_rate=0.1, power=1.0)
    expected = 4.0 - 0.1 * 0.1 * (1 + 0.75 + 0.5)
    assert float(params["classifier"]["kernel"][0]) == pytest.approx(expected, rel=1e-6)


def test_sgd_by_hand() -> None:
    """Decay is added to the gradient before the momentum: v = 0.9 v + g + d w; w -= rate v."""
    params = after(updates=2, learning_rate=0.5, momentum=0.9, weight_decay=0.01)
    weight, velocity = 4.0, 0.0
    for _ in range(2):
        velocity = 0.9 * velocity + 0.1 + 0.01 * weight
        weight -= 0.5 * velocity
    assert float(params["classifier"]["kernel"][0]) == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_decays_apart_from_the_gradient(name) -> None:
    params = after(name=name, learning_rate=0.5, weight_decay=0.01)
    # Of one step, the bias-corrected moments are g and g * g.
    expected = 4.0 - 0.5 * (0.1 / (0.1 + 1e-8) + 0.01 * 4.0)
    assert float(params["classifier"]["kernel"][0]) == pytest.approx(expected, rel=1e-5)


def test_lamb_by_hand() -> None:
    """Adam's update of one step is the gradient's sign; with decay it is scaled to the norm of the parameters."""
    params = after(name="lamb", learning_rate=0.1, weight_decay=0.01)
    update = np.array([1 + 0.01 * 1.0, 1 - 0.01 * 2.0])
    expected = np.array([1.0, -2.0]) - 0.1 * update * np.sqrt(5) / np.sqrt((update**2).sum())
    np.testing.assert_allclose(params["backbone"]["conv"]["kernel"], expected, rtol=1e-4)
    # Neither decay nor that scale in the tensors of `no_decay`, whose norm is 3 and 0.5.
    np.testing.assert_allclose(params["backbone"]["norm"]["scale"], [2.9], rtol=1e-4)
    np.testing.assert_allclose(params["classifier"]["bias"], [0.4], rtol=1e-4)


def test_lion_by_hand() -> None:
    """The sign of 0.9 m + 0.1 g, where m = 0.99 m + 0.01 g; the decay is beside it."""
    turned = jax.tree.map(lambda g: -2 * g, GRADIENT)
    optimizer = optimizer_of(PARAMS, steps=9, name="lion", learning_rate=0.1, power=0.0, weight_decay=0.01)
    state, weight, mean, params = optimizer.init(PARAMS), 4.0, 0.0, PARAMS
    for gradient, value in ((GRADIENT, 0.1), (GRADIENT, 0.1), (turned, -0.2)):
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        weight -= 0.1 * (np.sign(0.9 * mean + 0.1 * value) + 0.01 * weight)
        mean = 0.99 * mean + 0.01 * value
    assert float(params["classifier"]["kernel"][0]) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-6])  # Beside the smaller one, the epsilon of the moments counts.
@pytest.mark.parametrize(("name", "whole"), [("adamw", optax.adamw), ("lamb", optax.lamb), ("lion", optax.lion)])
def test_without_exceptions_it_is_the_optimizer_of_optax(name, whole, size) -> None:
    gradient = jax.tree.map(lambda g: size * g, GRADIENT)
    params = after(
        gradient=gradient, name=name, updates=3, weight_decay=0.02, no_decay=(), betas=(0.8, 0.95), learning_rate=0.1
    )
    optimizer, expected = whole(0.1, b1=0.8, b2=0.95, weight_decay=0.02), PARAMS
    state = optimizer.init(expected)
    for _ in range(3):
        update, state = optimizer.update(gradient, state, expected)
        expected = optax.apply_updates(expected, update)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lamb"])
def test_no_decay_spares_scales_and_biases(name) -> None:
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    params = after(gradient=still, name=name, weight_decay=0.1)
    np.testing.assert_allclose(params["backbone"]["conv"]["kernel"], [0.9, -1.8], rtol=1e-6)
    np.testing.assert_array_equal(params["backbone"]["norm"]["scale"], PARAMS["backbone"]["norm"]["scale"])
    np.testing.assert_array_equal(params["classifier"]["bias"], PARAMS["classifier"]["bias"])
    spared = after(gradient=still, name=name, weight_decay=0.1, no_decay=("classifier",))
    np.testing.assert_array_equal(spared["classifier"]["kernel"], PARAMS["classifier"]["kernel"])
    assert float(spared["backbone"]["norm"]["scale"][0]) == pytest.approx(2.7)


def test_multipliers_scale_the_rate_and_the_first_match_counts() -> None:
    params = after(multipliers=(("classifier/kernel", 10.0), ("classifier", 2.0)))
    moved = jax.tree.map(lambda new, old: float((old - new)[0]), params, PARAMS)
    assert moved["classifier"]["kernel"] == pytest.approx(1.0, rel=1e-5)
    assert moved["classifier"]["bias"] == pytest.approx(0.2, rel=1e-5)
    assert moved["backbone"]["norm"]["scale"] == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("deeplabv3plus_resnet18", ["conv1", "conv2_unit2", "conv3_unit1", "conv4_unit1", "conv5_unit2"]),
        ("cascade_resnet50_beta", ["stem_conv3", "conv2_unit1", "conv3_unit1", "conv4_unit6", "conv5_unit1"]),
        ("deeplabv3_mobilenet_v2", ["stem", "conv1_unit1", "conv2_unit1", "conv3_unit3", "conv4_unit7", "conv5_unit4"]),
        ("deeplabv3_mobilenet_v3_large", ["stem", "conv2_unit1", "conv3_unit1", "conv4_unit1", "conv5_last"]),
        ("deeplabv3plus_xception65", ["stem_conv2", "conv2_unit1", "conv3_unit1", "conv4_unit16", "conv5_unit2"]),
        ("fcn8s_vgg16", ["conv1_1", "conv2_2", "conv3_3", "conv4_1", "conv5_3"]),
    ],
)
def test_layer_decay_follows_the_stages_of_the_backbone(model, stages) -> None:
    """In each network the stages are named from the stem on; the last has the factor once, what follows has 1."""
    params = abstract_variables(create_model(model, num_classes=2))["params"]
    factors = stage_factors(list(flatten_dict(params, sep="/")), 0.5)
    for number, stage in enumerate(reversed(stages), start=1):
        found = {factor for path, factor in factors.items() if path.startswith(f"backbone/{stage}/")}
        assert found == {0.5**number}, stage
    assert {factor for path, factor in factors.items() if not path.startswith("backbone/")} == {1.0}
    assert len(set(factors.values())) == len(stages) + 1


def test_the_last_convolution_of_mobilenet_belongs_to_its_last_stage() -> None:
    params = abstract_variables(create_model("deeplabv3_mobilenet_v2", num_classes=2, last_channels=32))["params"]
    factors = stage_factors(list(flatten_dict(params, sep="/")), 0.5)
    last = {factor for path, factor in factors.items() if path.startswith(("backbone/last/", "backbone/conv5_"))}
    assert last == {0.5}


def test_layer_decay_and_multipliers_scale_together() -> None:
    params = {"backbone": {"stem": {"kernel": jnp.array([1.0])}, "conv2_unit1": {"bias": jnp.array([1.0])}}}
    params["classifier"] = {"kernel": jnp.array([1.0]), "bias": jnp.array([1.0])}
    still = jax.tree.map(jnp.ones_like, params)
    new = after(params, still, learning_rate=0.1, layer_decay=0.5, multipliers=(("bias", 2.0),))
    moved = jax.tree.map(lambda after, before: round(float((before - after)[0]), 6), new, params)
    assert moved["backbone"] == {"stem": {"kernel": 0.025}, "conv2_unit1": {"bias": 0.1}}
    assert moved["classifier"] == {"kernel": 0.1, "bias": 0.2}


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_do_not_move_at_all(name) -> None:
    options = {"momentum": 0.9, "weight_decay": 0.1, "no_decay": (), "multipliers": (("kernel", 3.0),)}
    params = after(updates=3, name=name, freeze=("^backbone/", "bias$"), **options)
    for part in ("backbone",):
        jax.tree.map(np.testing.assert_array_equal, params[part], PARAMS[part])
    np.testing.assert_array_equal(params["classifier"]["bias"], PARAMS["classifier"]["bias"])
    assert float(params["classifier"]["kernel"][0]) != 4.0


def test_clipping_is_by_the_global_norm_of_what_is_trained() -> None:
    gradient = {**GRADIENT, "classifier": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
    params = after(gradient=gradient, clip_norm=1.0, freeze=("^backbone",))
    # The norm is 5, whatever the gradient of the frozen parameters is.
    assert float(params["classifier"]["kernel"][0]) == pytest.approx(4.0 - 0.6, rel=1e-5)
    assert float(params["classifier"]["bias"][0]) == pytest.approx(0.5 - 0.8, rel=1e-5)
    small = after(clip_norm=100.0)
    assert float(small["classifier"]["bias"][0]) == pytest.approx(0.4, rel=1e-6)


def test_only_paths_matter() -> None:
    shapes = jax.eval_shape(lambda: PARAMS)
    optimizer = optimizer_of(shapes, steps=3, freeze=("backbone",), multipliers=(("bias", 2.0),))
    assert jax.tree.leaves(optimizer.init(PARAMS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sdg"}, "config.optimizer.name='sdg': did you mean sgd"),
        ({"name": "lionn"}, "config.optimizer.name='lionn': did you mean lion"),
        ({"name": "lion", "betas": (0.9,)}, r"config.optimizer.betas=\(0.9,\): give two, such as \(0.9,0.95\)"),
        ({"name": "adam", "momentum": 0.5}, r"momentum=0\.5: adam has none; leave it at 0\.9, and set .*\.betas$"),
        ({"betas": (0.9, 0.99)}, r"betas=\(0.9, 0.99\): sgd has none; set config.optimizer.momentum"),
        ({"layer_decay": 0.5}, "backbone/conv/kernel shows no stage of the backbone.*config.optimizer.multipliers"),
        (
            {"freeze": ("bakbone",)},
            "^config.optimizer.freeze: 'bakbone' matches no parameter; one is called 'backbone",
        ),
        ({"multipliers": (("nothing", 2.0),)}, "^config.optimizer.multipliers: 'nothing' matches no parameter"),
        ({"freeze": ("(",)}, r"pattern '\(' of the optimizer is not a regular expression"),
        ({"no_decay": ("[",)}, r"pattern '\[' of the optimizer is not a regular expression"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        optimizer_of(PARAMS, steps=3, **options)


def test_the_message_names_a_parameter() -> None:
    with pytest.raises(UserError, match="one is called 'backbone/conv/kernel', for instance"):
        optimizer_of(PARAMS, steps=3, freeze=("x",))


@pytest.mark.parametrize("name", NAMES)
def test_options_without_a_state_do_not_move_the_state(name) -> None:
    def structure(**options):
        return jax.tree.structure(optimizer_of(PARAMS, steps=10, learning_rate=1.0, name=name, **options).init(PARAMS))

    usual = structure()
    assert usual.num_leaves > 4
    for options in ({"clip_norm": 1.0}, {"weight_decay": 0.0}, {"multipliers": (("^backbone", 0.1),)}):
        assert structure(**options) == usual
