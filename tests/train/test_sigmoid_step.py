"""A training step of networks with sigmoids: one logit trains as the softmax of it and zero, and several labels a pixel
train as as many networks of one logit would.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.sharding import make_mesh, place_batch, replicated
from deeplab_jax.train.state import TrainState
from tests.support.losses import cross_entropy
from tests.support.params import first_fast
from tests.support.steps import optimizer_of, step_of
from tests.support.tiny import make_variables, tiny_models

OPTIONS = {"aux_head": True}


def make_batch(count=4, *, size=33, several=()):
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 255], (count, size, size, *several)).astype(np.uint8)
    label[0, 4:] = 255  # Images with few labelled pixels must not weigh more.
    return {"image": rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8), "label": label}


@cache
def networks():
    """A network with one logit, and the one with the logits (0, z) for the same z."""
    with tiny_models():
        one, two = (create_model("cascade_tiny", num_classes=count, **OPTIONS) for count in (1, 2))
    variables = make_variables(one)
    pair = jax.tree.map(lambda x: x, variables)
    for place in (pair["params"], pair["params"]["aux_head"]):
        layer = place["classifier"]
        place["classifier"] = {key: jnp.concatenate([0 * value, value], axis=-1) for key, value in layer.items()}
    return (one, variables), (two, pair)


def stepped(made: tuple[Segmenter, dict], batch, *, devices=1, **options):
    """The parameters after a step of plain gradient descent, and its metrics."""
    model, variables = made
    optimizer = optimizer_of(
        variables["params"], steps=10, learning_rate=1.0, power=0.0, momentum=0.0, weight_decay=0.0
    )
    params = variables["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
        ema_params=None,
    )
    mesh = make_mesh(devices)
    step = jax.jit(step_of(model, optimizer, **options))
    new, metrics = step(jax.device_put(state, replicated(mesh)), place_batch(batch, mesh))
    change = jax.tree.map(lambda before, after: np.asarray(after) - np.asarray(before), params, new.params)
    return change, {name: float(value) for name, value in metrics.items()}


def assert_same_change(one, two):
    """The classifier's column of z changes alike, that of zero the other way; all else changes alike."""
    one, two = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (one, two))
    for path, change in one.items():
        other = two[path]
        if any(key.key == "classifier" for key in path):
            np.testing.assert_allclose(other[..., :1], -change, rtol=1e-3, atol=1e-5)
            other = other[..., 1:]
        np.testing.assert_allclose(other, change, rtol=1e-3, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize(
    "options",
    first_fast(
        [{"class_weights": (0.5, 2.0), "accumulate": 2}, {"top_k": 0.4, "upsample_logits": False, "aux_weight": 0.7}]
    ),
)
def test_one_logit_trains_as_a_softmax_of_it_and_zero(options) -> None:
    one, two = networks()
    (change, metrics), (expected, expected_metrics) = (stepped(made, make_batch(), **options) for made in (one, two))
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=1e-5)
    assert metrics["pixel_accuracy"] == pytest.approx(expected_metrics["pixel_accuracy"], abs=1e-6)
    assert metrics["loss"] > 0.3  # It varies, so that the comparison means something.
    assert_same_change(change, expected)


@pytest.mark.slow
def test_eight_devices_train_one_logit_as_one_does() -> None:
    made, _ = networks()
    (one, metrics), (eight, other) = (stepped(made, make_batch(8), devices=devices) for devices in (1, 8))
    assert metrics["loss"] == pytest.approx(other["loss"], rel=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), one, eight)


def test_a_batch_without_labels_changes_nothing() -> None:
    made, _ = networks()
    batch = make_batch()
    change, metrics = stepped(made, {**batch, "label": np.full_like(batch["label"], 255)})
    assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(change))  # NaN counts as true


def test_several_labels_have_the_loss_of_all_labels() -> None:
    """The mean over every labelled pair of a pixel and a label, with one unknown for some."""
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=3, activation="sigmoid")
    made = model, make_variables(model)
    batch = make_batch(several=(3,))
    _, metrics = stepped(made, batch)
    images = model.preprocessing(jnp.asarray(batch["image"]))
    logits, _ = model.apply(made[1], images, train=True, mutable=["batch_stats"])
    total, count = cross_entropy(logits, jnp.asarray(batch["label"]))
    assert float(count) == np.sum(batch["label"] != 255)
    assert metrics["loss"] == pytest.approx(float(total / count), rel=1e-5)
    valid = batch["label"] != 255
    right = ((np.asarray(logits) > 0) == batch["label"])[valid].mean()
    assert metrics["pixel_accuracy"] == pytest.approx(right, abs=1e-3)
