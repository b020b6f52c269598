"""Optimizers: the schedule by hand, one update by hand, and what patterns select."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.train.optimizer import make_optimizer, poly_schedule

PARAMS = {
    "backbone": {"conv": {"kernel": jnp.array([1.0, -2.0])}, "norm": {"scale": jnp.array([3.0])}},
    "classifier": {"kernel": jnp.array([4.0]), "bias": jnp.array([0.5])},
}
GRADIENT = jax.tree.map(lambda x: jnp.full_like(x, 0.1), PARAMS)


def after(params=PARAMS, gradient=GRADIENT, *, updates=1, **options):
    """The parameters after some updates with one gradient; no momentum and no decay unless asked for."""
    options = {"steps": 10, "learning_rate": 1.0, "power": 0.0, "momentum": 0.0, "weight_decay": 0.0, **options}
    optimizer, _ = make_optimizer(params, **options)
    state = optimizer.init(params)
    for _ in range(updates):
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
    return params


def test_poly_schedule_by_hand() -> None:
    schedule = poly_schedule(0.007, steps=100, power=0.9, warmup_steps=0)
    by_hand = {0: 0.007, 1: 0.007 * 0.99**0.9, 50: 0.007 * 0.5**0.9, 99: 0.007 * 0.01**0.9, 100: 0.0, 101: 0.0}
    for step, value in by_hand.items():
        assert float(schedule(step)) == pytest.approx(value, rel=1e-5, abs=1e-12)


def test_a_warm_up_changes_nothing_after_it() -> None:
    bare = poly_schedule(0.1, steps=20, power=0.9, warmup_steps=0)
    warmed = poly_schedule(0.1, steps=20, power=0.9, warmup_steps=4)
    assert float(warmed(0)) == 0.0
    assert float(warmed(1)) == pytest.approx(0.25 * float(bare(1)))
    assert float(warmed(3)) == pytest.approx(0.75 * float(bare(3)))
    for step in (4, 5, 19):
        assert float(warmed(step)) == float(bare(step))


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


def test_adam_decays_apart_from_the_gradient() -> None:
    params = after(name="adam", learning_rate=0.5, weight_decay=0.01)
    # Of one step, the bias-corrected moments are g and g * g.
    expected = 4.0 - 0.5 * (0.1 / (0.1 + 1e-8) + 0.01 * 4.0)
    assert float(params["classifier"]["kernel"][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam"])
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


@pytest.mark.parametrize("name", ["sgd", "adam"])
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
    optimizer, _ = make_optimizer(shapes, steps=3, freeze=("backbone",), multipliers=(("bias", 2.0),))
    assert jax.tree.leaves(optimizer.init(PARAMS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sdg"}, "config.optimizer.name='sdg': did you mean sgd"),
        ({"freeze": ("bakbone",)}, "pattern 'bakbone' of the optimizer matches no parameter"),
        ({"multipliers": (("nothing", 2.0),)}, "pattern 'nothing' of the optimizer matches no parameter"),
        ({"freeze": ("(",)}, r"pattern '\(' of the optimizer is not a regular expression"),
        ({"no_decay": ("[",)}, r"pattern '\[' of the optimizer is not a regular expression"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(PARAMS, steps=3, **options)


def test_the_message_names_a_parameter() -> None:
    with pytest.raises(UserError, match="a parameter is called 'backbone/conv/kernel'"):
        make_optimizer(PARAMS, steps=3, freeze=("x",))
