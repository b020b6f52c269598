"""Folded batch norm: the same logits, from a network that a description builds."""

import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.catalog import create_model, describe, from_description, model_names
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.layers import BatchNorm
from deeplab_jax.models.segmenter import Segmenter, abstract_variables, trace
from deeplab_jax.weights.folder import load, save
from tests.models.test_every_name import thin
from tests.support.params import first_fast
from tests.support.traces import fill_variables

FAST = ("deeplabv3plus_mobilenet_v2",)
EVERY_NAME = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in model_names()]
BOUND = 1e-5


def make(name: str, **options: Any) -> Segmenter:
    # Compiled faster than the shifted products that a CPU gets by default.
    return create_model(name, num_classes=3, lowering="direct", **{**thin(name), **options})


def images_of(model: Segmenter, *, batch: int = 1) -> jax.Array:
    side = model.fitting_side(66)
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, 3)), jnp.float32)


def logits_of(model: Segmenter, variables: Any, images: jax.Array) -> np.ndarray:
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def batch_norms(model: Segmenter) -> int:
    """Count the batch norms that the network runs, whatever made them."""
    seen = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        seen.append(isinstance(context.module, BatchNorm))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        trace(model)
    return sum(seen)


def assert_folds(model: Segmenter, variables: Any, *, bound: float = BOUND) -> tuple[Segmenter, Any]:
    folded, folded_variables = fold_norm(model, variables)
    assert batch_norms(folded) == 0 and "batch_stats" not in folded_variables
    assert shapes(folded_variables) == shapes(abstract_variables(folded))
    images = images_of(model)
    before, after = logits_of(model, variables, images), logits_of(folded, folded_variables, images)
    assert np.abs(before - after).max() <= bound * np.abs(before).max()
    return folded, folded_variables


@pytest.mark.parametrize("name", EVERY_NAME)
def test_the_logits_stay(name: str) -> None:
    model = make(name)
    images = images_of(model)
    assert_folds(model, fill_variables(model, *images.shape))


@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_folded_network_is_described_and_fits_its_variables(name: str) -> None:
    """At full width, on shapes alone."""
    model = create_model(name, num_classes=3, lowering="direct")
    shaped = abstract_variables(model)
    networks = {}

    def fold(variables: Any) -> Any:
        networks["folded"], folded = fold_norm(model, variables)
        return folded

    variables = jax.eval_shape(fold, shaped)
    folded = networks["folded"]
    assert from_description(describe(folded)) == folded
    assert batch_norms(folded) == 0
    assert shapes(variables) == shapes(abstract_variables(folded))
    assert (folded is model) == ("batch_stats" not in shaped)


@pytest.mark.parametrize(
    ("name", "options"),
    first_fast(
        [
            ("deeplabv3_resnet18", {"norm": "batch", "backbone_norm": "frozen", "norm_epsilon": 0.3}),
            ("deeplabv3_resnet18", {"norm": "none", "backbone_norm": "batch"}),
            ("deeplabv3_resnet18", {"aux_head": True}),
            ("deeplabv3_resnet18", {"norm": "frozen"}),
            ("deeplabv3_resnet18", {"backbone_norm": "none"}),
            ("largefov_vgg16", {"norm": "batch", "pool_window": 2}),
            ("deeplabv3_resnet18", {"image_pyramid": (1.0, 0.5), "fusion": "attention"}),
            ("unet", {"padding": "valid", "norm": "batch"}),
        ],
        fast=2,
    ),
)
def test_parts_and_surroundings(name: str, options: Any) -> None:
    model = make(name, **options)
    variables = fill_variables(model, *images_of(model).shape)
    folded, _ = assert_folds(model, variables)
    assert folded.aux_features == model.aux_features
    assert folded.valid == model.valid


@pytest.mark.slow
def test_the_auxiliary_head_is_folded_too() -> None:
    model = make("deeplabv3_resnet18", aux_head=True)
    images = images_of(model)
    results = []
    for network, variables in (made := (model, fill_variables(model, *images.shape)), fold_norm(*made)):
        _, sown = network.apply(variables, images, mutable=["intermediates"])
        results.append(np.asarray(sown["intermediates"]["aux"][0]))
    assert np.abs(results[0] - results[1]).max() <= BOUND * np.abs(results[0]).max()


@pytest.mark.parametrize(
    ("norms", "folded_norms"),
    [
        ({"norm": "batch", "backbone_norm": "group"}, {"norm": "none", "backbone_norm": "group"}),
        pytest.param(
            {"norm": "group", "backbone_norm": "batch"},
            {"norm": "group", "backbone_norm": "none"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_group_norm_stays(norms: Any, folded_norms: Any) -> None:
    model = make("deeplabv3_resnet18", **norms)
    folded, variables = assert_folds(model, fill_variables(model, *images_of(model).shape))
    options = describe(folded)["options"]
    assert {key: options[key] for key in norms} == folded_norms
    assert "group" in json.dumps(shapes(variables), default=str)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn32s_vgg16", {}),
        ("deeplabv3_resnet18", {"norm": "group"}),
        ("deeplabv3_resnet18", {"norm": "none"}),
        # Its decoder has no norm: "batch" is all talk there.
        ("refinenet_resnet50", {"norm": "batch", "backbone_norm": "none"}),
    ],
)
def test_a_network_without_batch_norm_is_returned_as_it_is(name: str, options: Any) -> None:
    model = make(name, **options)
    variables = fill_variables(model, 1, 65, 65, 3)
    folded, same = fold_norm(model, variables)
    assert folded is model
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_folding_twice_changes_nothing() -> None:
    model = make("deeplabv3plus_mobilenet_v2")
    once = fold_norm(model, fill_variables(model, 1, 65, 65, 3))
    twice = fold_norm(*once)
    assert twice[0] is once[0]
    jax.tree.map(np.testing.assert_array_equal, twice[1], once[1])


def test_the_variables_given_are_not_changed() -> None:
    model = make("deeplabv3_resnet18")
    variables = fill_variables(model, 1, 65, 65, 3)
    before = jax.tree.map(np.array, variables)
    fold_norm(model, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


@pytest.mark.slow
def test_bfloat16_is_folded_in_float32() -> None:
    """Both round their activations; folded, the network is as close to float32 as it was."""
    exact, coarse = make("deeplabv3_resnet18"), make("deeplabv3_resnet18", dtype="bfloat16")
    variables = fill_variables(exact, 1, 66, 66, 3)
    images = images_of(exact)
    expected = logits_of(exact, variables, images)
    folded, folded_variables = fold_norm(coarse, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded_variables)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, folded_variables, fold_norm(exact, variables)[1])
    before = np.abs(logits_of(coarse, variables, images) - expected).mean()
    after = np.abs(logits_of(folded, folded_variables, images) - expected).mean()
    assert 0 < after < 1.5 * before


def test_a_clone_keeps_what_it_changed() -> None:
    model = make("deeplabv3_resnet18").clone(output_stride=8)
    folded, _ = assert_folds(model, fill_variables(model, 1, 65, 65, 3))
    assert folded.output_stride == 8 and describe(folded)["output_stride"] == 8


def test_a_folded_network_is_saved_and_loaded(tmp_path: Any) -> None:
    model = make("deeplabv3plus_mobilenet_v2")
    folded, variables = fold_norm(model, fill_variables(model, 1, 65, 65, 3))
    save(tmp_path, folded, variables, {})
    loaded, read, _ = load(tmp_path)
    assert loaded == folded
    jax.tree.map(np.testing.assert_array_equal, read, variables)
