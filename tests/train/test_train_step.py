"""One training step against its definition: loss, gradient, update, and every option that changes them."""

import importlib
import math
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from deeplab_jax.models.catalog import create_model
from deeplab_jax.ops.losses import LOSSES, mean_loss
from deeplab_jax.ops.resize import resize_labels
from deeplab_jax.train.optimizer import matches
from deeplab_jax.train.state import TrainState, create_state
from deeplab_jax.train.step import share_of_newest, summed_loss
from experiments.benchmarks.remat import kept_mib
from tests.support.losses import cross_entropy
from tests.support.params import first_fast
from tests.support.steps import optimizer_of, step_of
from tests.support.tiny import tiny_model, tiny_models

CLASSES = 4
RATE, DECAY = 0.1, 0.01


def make_batch(count=4, *, size=33, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES + 1, (count, size, size)).astype(np.uint8)
    label[label == CLASSES] = 255
    # Images with few labelled pixels must not weigh more.
    label[0, 4:] = 255
    return {"image": rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8), "label": label}


@cache
def network(name, **options):
    with tiny_models():
        return tiny_model(name, num_classes=CLASSES, **options)


@cache
def update_of(name, options, optimizer):
    """An optimizer for a network; the two settings are items of dictionaries."""
    settings = {"steps": 10, "learning_rate": RATE, "power": 0.0, "momentum": 0.0, "weight_decay": DECAY}
    _, variables = network(name, **dict(options))
    return optimizer_of(variables["params"], **settings | dict(optimizer))


def compile_step(model, transform, *, seed=7, **options):
    return jax.jit(step_of(model, transform, seed=seed, **options))


compile_step_once = cache(compile_step)


def set_up(name="cascade_tiny", *, ema=False, optimizer=None, fresh=False, **options):
    """A model, its state, and a step function of (state, batch) that takes the options of `step_of`.

    The tests share compiled steps; a `fresh` one is compiled at every call.
    """
    model, variables = network(name, **options)
    params = variables["params"]
    transform = update_of(name, tuple(options.items()), tuple((optimizer or {}).items()))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=transform.init(params),
        ema_params=params if ema else None,
    )

    compiled = compile_step if fresh else compile_step_once
    return model, state, lambda state, batch, **options: compiled(model, transform, **options)(state, batch)


@partial(jax.jit, static_argnums=0)
def forward(model, params, batch_stats, batch):
    """The coarse logits, the full logits and the new statistics of a batch in training."""
    variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
    images = model.preprocessing(batch["image"])
    coarse, updates = model.apply(
        variables, images, train=True, method="coarse_logits", mutable=["batch_stats", "intermediates"]
    )
    return coarse, model.resize(coarse, images), updates.get("batch_stats")


def reference(model, state, batch):
    return forward(model, state.params, state.batch_stats, jax.tree.map(jnp.asarray, batch))


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_close(left, right, **tolerance):
    for a, b in zip(leaves(left), leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_a_step_is_its_definition() -> None:
    model, state, step = set_up()
    batch = make_batch()

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            _, logits, _ = forward(model, params, state.batch_stats, batch)
            total, count = cross_entropy(logits, jnp.asarray(batch["label"]))
            return total / count

        return jax.value_and_grad(loss)(params)

    loss, gradient = loss_and_gradient(state.params)
    _, logits, batch_stats = reference(model, state, batch)
    new, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    squares = sum(float((g**2).sum()) for g in leaves(gradient))
    assert float(metrics["gradient_norm"]) == pytest.approx(squares**0.5, rel=1e-4)
    valid = batch["label"] != 255
    right = (np.asarray(logits).argmax(-1) == batch["label"])[valid].mean()
    assert float(metrics["pixel_accuracy"]) == pytest.approx(right, abs=1e-3)
    decayed = jax.tree_util.tree_map_with_path(
        lambda path, g, w: g + DECAY * w * (path[-1].key == "kernel"), gradient, state.params
    )
    assert_close(new.params, jax.tree.map(lambda w, g: w - RATE * g, state.params, decayed))
    assert_close(new.batch_stats, batch_stats)
    assert int(new.step) == 1


def test_ignored_pixels_do_not_matter() -> None:
    """A batch without labels has no loss and no gradient: only the decay is left."""
    _, state, step = set_up(norm="group")
    batch = make_batch()
    new, metrics = step(state, {**batch, "label": np.full_like(batch["label"], 255)})
    assert float(metrics["loss"]) == 0.0 and float(metrics["gradient_norm"]) == 0.0
    old = state.params["classifier"]["kernel"]
    np.testing.assert_allclose(new.params["classifier"]["kernel"], (1 - RATE * DECAY) * old, rtol=1e-5)


def test_accumulation_equals_the_whole_batch_without_batch_norm() -> None:
    _, state, step = set_up(norm="group")
    batch = make_batch(4)
    whole, split = step(state, batch), step(state, batch, accumulate=2)
    for name in whole[1]:
        assert float(split[1][name]) == pytest.approx(float(whole[1][name]), rel=1e-5), name
    assert_close(split[0].params, whole[0].params)


def test_a_loss_of_regions_is_the_mean_over_micro_batches() -> None:
    """Each weighs as many labelled pixels as it has."""
    _, state, step = set_up(norm="group")
    batch = make_batch(4)
    halves = [jax.tree.map(lambda x, start=start: x[start::2], batch) for start in (0, 1)]
    pixels = [np.sum(half["label"] != 255) for half in halves]
    losses = [float(step(state, half, loss=LOSSES["dice"])[1]["loss"]) for half in halves]
    _, metrics = step(state, batch, loss=LOSSES["dice"], accumulate=2)
    assert pixels[0] < 0.7 * pixels[1] and abs(losses[0] - losses[1]) > 1e-3
    assert float(metrics["loss"]) == pytest.approx(np.average(losses, weights=pixels), rel=1e-5)


def test_accumulation_updates_batch_statistics_once_for_each_micro_batch() -> None:
    model, state, step = set_up()
    batch = make_batch(4)
    expected = state.batch_stats
    for start in (0, 1):
        micro = jax.tree.map(lambda x, start=start: jnp.asarray(x[start::2]), batch)
        expected = forward(model, state.params, expected, micro)[2]
    assert_close(step(state, batch, accumulate=2)[0].batch_stats, expected)


def test_the_loss_on_labels_shrunk_to_the_logits() -> None:
    model, state, step = set_up()
    batch = make_batch()
    coarse, logits, _ = reference(model, state, batch)
    labels = resize_labels(jnp.asarray(batch["label"]), coarse.shape[1:3], align_corners=True)
    shrunk, full = (float(mean_loss(*cross_entropy(x, y))) for x, y in ((coarse, labels), (logits, batch["label"])))
    new, metrics = step(state, batch, upsample_logits=False)
    assert labels.shape == (4, 3, 3)
    assert float(metrics["loss"]) == pytest.approx(shrunk, rel=1e-5)
    assert float(metrics["loss"]) != pytest.approx(full, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in leaves(new.params))


def test_the_auxiliary_head_adds_its_weighted_loss() -> None:
    model, state, step = set_up(aux_head=True, fresh=True)
    batch = make_batch()

    def without_dropout(next_function, args, kwargs, context):
        return args[0] if isinstance(context.module, nn.Dropout) else next_function(*args, **kwargs)

    with nn.intercept_methods(without_dropout):
        plain, half = (step(state, batch, aux_weight=weight) for weight in (0.0, 0.5))
        images, collections = model.preprocessing(jnp.asarray(batch["image"])), ["intermediates", "batch_stats"]
        _, sown = model.apply(state.variables(), images, train=True, mutable=collections)
    own = mean_loss(*cross_entropy(sown["intermediates"]["aux"][0], jnp.asarray(batch["label"])))
    losses = [float(result[1]["loss"]) for result in (plain, half)]
    assert losses[1] - losses[0] == pytest.approx(0.5 * float(own), rel=1e-4)
    moved = [np.abs(result[0].params["aux_head"]["classifier"]["bias"]).max() for result in (plain, half)]
    assert moved[0] == 0.0 < moved[1]


def test_class_weights_scale_the_pixels_of_a_class() -> None:
    model, state, step = set_up()
    batch = make_batch()
    weights = (0.0, 1.0, 2.0, 0.5)
    _, logits, _ = reference(model, state, batch)
    expected = mean_loss(*cross_entropy(logits, jnp.asarray(batch["label"]), class_weights=jnp.asarray(weights)))
    metrics = step(state, batch, class_weights=weights)[1]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_hard_pixels_have_the_larger_loss() -> None:
    model, state, step = set_up()
    batch = make_batch()
    _, logits, _ = reference(model, state, batch)
    valid = batch["label"] != 255
    every = np.asarray(jax.nn.log_softmax(logits))[valid]
    losses = np.sort(-np.take_along_axis(every, batch["label"][valid][:, None].astype(int), axis=1)[:, 0])
    for share in (1.0, 0.25):
        hardest = losses[len(losses) - math.ceil(share * len(losses)) :].mean()
        assert float(step(state, batch, top_k=share)[1]["loss"]) == pytest.approx(hardest, rel=1e-4), share


def test_the_average_of_the_weights_by_hand() -> None:
    _, state, step = set_up(ema=True)
    new, _ = step(state, make_batch(), ema_decay=0.75)
    expected = jax.tree.map(lambda old, weight: 0.75 * old + 0.25 * weight, state.params, new.params)
    assert_close(new.ema_params, expected)
    assert new.variables()["params"] is new.ema_params
    without, _ = step(state.replace(ema_params=None), make_batch())
    assert_close(without.params, new.params)
    assert without.variables()["params"] is without.params


def test_the_debiased_average_is_adams_by_hand() -> None:
    """Started from zeros and divided by 1 - d^t, without the initial weights. Frozen ones stay bit for bit."""
    freeze = ("^backbone/stem",)
    _, state, step = set_up(ema=True, optimizer={"freeze": freeze})
    initial, total = state.params, jax.tree.map(jnp.zeros_like, state.params)
    for update in range(1, 5):
        state, _ = step(state, make_batch(seed=update), ema_decay=0.75, ema_debias=True, freeze=freeze)
        total = jax.tree.map(lambda old, weight: 0.75 * old + 0.25 * weight, total, state.params)
        expected = jax.tree.map(lambda one, t=update: one / (1 - 0.75**t), total)
        assert_close(state.ema_params, expected, rtol=1e-5, atol=1e-6)
    for old, new in zip(leaves(initial["backbone"]["stem"]), leaves(state.ema_params["backbone"]["stem"]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_newest_weights_share_of_the_debiased_average() -> None:
    """All of it after one update; of two (1 - d) / (1 - d^2) = 1 / (1 + d); in the end 1 - d."""
    for update, share in ((1, 1.0), (2, 1 / 1.999), (10**6, 0.001)):
        assert float(share_of_newest(jnp.asarray(update), 0.999)) == pytest.approx(share, rel=2e-6)


def test_rematerialisation_changes_memory_alone() -> None:
    _, state, step = set_up(aux_head=True)
    batch = make_batch()
    plain, again = (step(state, batch, remat=remat) for remat in (False, True))
    assert_close(plain, again, rtol=1e-5, atol=1e-6)
    # What the gradient is computed from: the convolutions' results, and not what follows them.
    model = create_model("deeplabv3_resnet18", num_classes=CLASSES, width=0.125, aspp_channels=8)
    assert kept_mib(model, 4, 65, remat=True) < 0.4 * kept_mib(model, 4, 65, remat=False)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run() -> None:
    def loss(number, *, fresh=False, **options):
        _, state, step = set_up(aux_head=True, fresh=fresh)
        return float(step(state.replace(step=jnp.asarray(number)), make_batch(), **options)[1]["loss"])

    assert loss(0) == loss(0, fresh=True)
    assert loss(0) != loss(1)
    assert loss(0) != loss(0, seed=8)


def test_frozen_parameters_stay_through_a_step() -> None:
    _, state, step = set_up(optimizer={"freeze": ("^backbone/stem", r"norm/batch/(scale|bias)$"), "momentum": 0.9})
    new, _ = step(state, make_batch())
    new, _ = step(new, make_batch(seed=1))
    np.testing.assert_array_equal(
        new.params["backbone"]["stem"]["conv"]["kernel"], state.params["backbone"]["stem"]["conv"]["kernel"]
    )
    deep, old = new.params["backbone"]["deep"], state.params["backbone"]["deep"]
    np.testing.assert_array_equal(deep["norm"]["batch"]["scale"], old["norm"]["batch"]["scale"])
    assert (np.asarray(deep["conv"]["kernel"]) != np.asarray(old["conv"]["kernel"])).any()


@pytest.mark.parametrize("remat", first_fast([True, False]))
def test_a_frozen_backbone_runs_as_in_inference(remat: bool) -> None:
    freeze = ("^backbone/",)
    _, state, step = set_up("deeplabv3plus_tiny", ema=True, optimizer={"freeze": freeze, "momentum": 0.9})
    new = state
    for seed in range(3):
        new, metrics = step(new, make_batch(seed=seed), freeze=freeze, ema_decay=0.9, remat=remat)
        assert float(metrics["loss"]) > 0
    for old_tree, new_tree in (
        (state.params, new.params),
        (state.batch_stats, new.batch_stats),
        (state.params, new.ema_params),
    ):
        for old, fresh in zip(leaves(old_tree["backbone"]), leaves(new_tree["backbone"]), strict=True):
            np.testing.assert_array_equal(old, fresh)
    # The other layers still learn, and follow their batches.
    moved = [
        (a != b).any()
        for a, b in zip(leaves(state.batch_stats["context"]), leaves(new.batch_stats["context"]), strict=True)
    ]
    assert all(moved)


def test_a_frozen_network_has_the_logits_of_inference() -> None:
    """With all of it frozen, the loss of a training step is that of the network in inference."""
    freeze = ("^(backbone|classifier)/",)
    model, state, step = set_up(optimizer={"freeze": freeze})
    stats = jax.tree.map(lambda value: value + 0.25, state.batch_stats)
    state, batch = state.replace(batch_stats=stats), make_batch()
    _, metrics = step(state, batch, freeze=freeze)
    logits = model.apply(state.variables(), model.preprocessing(jnp.asarray(batch["image"])), train=False)
    total, count = cross_entropy(logits, jnp.asarray(batch["label"]))
    assert float(metrics["loss"]) == pytest.approx(float(mean_loss(total, count)), rel=1e-5)
    _, unfrozen = step(state, batch)
    assert abs(float(unfrozen["loss"]) - float(metrics["loss"])) > 1e-3


def test_a_frozen_backbone_has_no_gradient(monkeypatch) -> None:
    """Nothing is computed for it, and the norm is that of the trained parameters, which is the one that is clipped."""
    freeze = ("^backbone/", r"norm/batch/(scale|bias)$")
    model, state, step = set_up("deeplabv3plus_tiny")
    batch = make_batch()

    def gradient():
        """The gradient of the summed loss by path, and the operations that it takes."""
        arguments = (state.params, state.batch_stats, batch, jax.random.fold_in(jax.random.key(7), 0))
        loss = partial(summed_loss, model=model, freeze=freeze)
        compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).compile()
        return flatten_dict(compiled(*arguments)[0], sep="/"), compiled.cost_analysis()["flops"]

    found, flops = gradient()
    _, metrics = step(state, batch, freeze=freeze)
    squares = sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in found.values())
    assert float(metrics["gradient_norm"]) == pytest.approx(squares**0.5 / (batch["label"] != 255).sum(), rel=1e-4)
    monkeypatch.setattr(importlib.import_module("deeplab_jax.train.step"), "constant", lambda params, _: params)
    whole, more = gradient()
    for path, leaf in found.items():
        if matches(freeze, path):
            assert not leaf.any()
        else:
            np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=1e-5)
    assert whole["backbone/stem/conv/kernel"].any()
    assert flops < 0.9 * more


def test_norms_with_a_trained_scale_follow_their_batches() -> None:
    _, state, step = set_up(optimizer={"freeze": ("bias$",)})
    new, _ = step(state, make_batch(), freeze=("bias$",))
    for old, fresh in zip(leaves(state.batch_stats), leaves(new.batch_stats), strict=True):
        assert (old != fresh).any()


def test_frozen_norm_keeps_its_statistics() -> None:
    _, state, step = set_up(norm="frozen")
    new, _ = step(state, make_batch())
    for a, b in zip(leaves(new.batch_stats), leaves(state.batch_stats), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_loss_falls_on_one_batch() -> None:
    """Every part of DeepLabv3+, fifteen steps on two images: the loss goes down by more than a third."""
    _, state, step = set_up("deeplabv3plus_tiny", optimizer={"name": "adam", "learning_rate": 0.01, "momentum": 0.9})
    batch = make_batch(2)
    batch["label"] = np.repeat(np.repeat(batch["label"][:, ::11, ::11], 11, 1), 11, 2)
    batch["label"][0] = np.where(batch["label"][0] == 255, 1, batch["label"][0])
    losses = []
    for _ in range(15):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 2 / 3 * losses[0]


@pytest.mark.slow
def test_a_network_that_sees_only_the_centre_learns_from_the_centre() -> None:
    """U-Net without padding: 188 pixels give 4; the labels around them do not count."""
    model = create_model("unet", num_classes=CLASSES, padding="valid", width=1 / 64, decoder_channels=(4, 4, 4, 4))
    optimizer = optax.sgd(RATE)
    make = partial(create_state, model=model, optimizer=optimizer, size=(188, 188), ema=False)
    state = jax.jit(make)(jax.random.key(0))
    batch = make_batch(2, size=188)
    batch["label"][:] = 3
    batch["label"][:, 92:96, 92:96] = 1
    batch["label"][0, 92] = 255
    step = jax.jit(step_of(model, optimizer))
    images = model.preprocessing(batch["image"])
    rng = {"dropout": jax.random.fold_in(jax.random.key(0), 0)}
    logits = jax.jit(lambda params: model.apply({"params": params}, images, train=True, rngs=rng))(state.params)
    assert logits.shape == (2, 4, 4, CLASSES)
    loss = -jax.nn.log_softmax(logits)[..., 1]
    expected = (loss[0, 1:].sum() + loss[1].sum()) / (12 + 16)
    _, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
