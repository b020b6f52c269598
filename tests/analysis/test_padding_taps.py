"""Taps of atrous kernels that no training image reaches: they start at zero, and nothing else changes for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.analysis.cost import Call, record
from deeplab_jax.analysis.padding_taps import reached_by_layer, zero_unreached
from deeplab_jax.models.catalog import create_model
from deeplab_jax.ops.geometry import taps_on_map
from deeplab_jax.ops.observe import Convolution
from deeplab_jax.train.state import create_state
from tests.support.steps import step_of
from tests.support.tiny import tiny_models


@pytest.fixture(autouse=True)
def models():
    with tiny_models():
        yield


@pytest.mark.parametrize(
    ("side", "rate", "stride", "expected"),
    [
        (17, 12, 1, [True, True, True]),  # Rows 12 to 16 see row 0 and on.
        (17, 17, 1, [False, True, False]),
        (17, 16, 1, [True, True, True]),
        (9, 6, 2, [True, True, True]),
        (3, 2, 2, [True, True, True]),
        (2, 1, 2, [False, True, True]),  # One output, at row 0, whose lower neighbour is row 1.
    ],
)
def test_by_hand(side, rate, stride, expected) -> None:
    outputs = -(-side // stride)
    assert taps_on_map(side, outputs, 3, stride=stride, rate=rate, before=rate).any(axis=0).tolist() == expected


def make(size):
    # Output stride 16 of 65x49 pixels is a map of 5x4: rates 2, 4 and 6.
    parts = {"aspp_rates": (2, 4, 6), "aspp_channels": 8, "low_level_channels": 4, "decoder_convs": ((3, 4),)}
    model = create_model("deeplabv3plus_tiny", num_classes=3, **parts)
    create = partial(create_state, model=model, optimizer=optax.sgd(0.1), size=size, ema=True)
    return model, jax.jit(create)(jax.random.key(0))


def outer_taps(state, branch):
    kernel = np.asarray(state.params["context"][f"branch_atrous{branch}"]["conv"]["kernel"])
    return {(i, j): bool(kernel[i, j].any()) for i in range(3) for j in range(3)}


def test_they_start_at_zero() -> None:
    _, state = make((65, 49))
    assert all(outer_taps(state, 1).values())
    assert outer_taps(state, 2) == {(i, j): j == 1 for i in range(3) for j in range(3)}  # 4 < 5 rows, not < 4 columns.
    assert outer_taps(state, 3) == {(i, j): (i, j) == (1, 1) for i in range(3) for j in range(3)}
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    _, large = make((129, 129))
    assert all(outer_taps(large, 3).values())


def test_parameters_of_other_names_are_left_alone() -> None:
    """A user's part may call `conv2d` with any parameter."""
    call = Call("own", Convolution((1, 5, 5, 1), (3, 3, 1, 1), (1, 5, 5, 1), 7, 1, ((7, 7), (7, 7)), 1))
    for name, centre_alone in (("kernel", True), ("taps", False)):
        (found,) = zero_unreached({"own": {name: np.ones((3, 3, 1, 1))}}, [call])["own"].values()
        assert found.sum() == (1 if centre_alone else 9)


@pytest.mark.slow
def test_training_is_the_same_and_larger_images_see_less_noise() -> None:
    """The gradient of such taps is exactly zero, so a step changes neither them nor anything through them."""
    model, state = make((65, 49))
    initialise = jax.jit(lambda key: model.init({"params": key}, jnp.zeros((1, 65, 49, 3)), train=False))
    initial = initialise(jax.random.key(0))["params"]
    random_taps = state.replace(params=initial, ema_params=jax.tree.map(jnp.copy, initial))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 65, 49, 3), np.uint8),
        "label": rng.integers(0, 3, (4, 65, 49), np.uint8),
    }
    step = jax.jit(step_of(model, optax.sgd(0.1), seed=1))
    (ours, metrics), (theirs, their_metrics) = (step(s, batch) for s in (state, random_taps))
    assert metrics["loss"] == their_metrics["loss"]

    masks = {path: mask for path, mask in reached_by_layer(record(model, 65, 49).calls).items() if not mask.all()}
    assert set(masks) == {"context/branch_atrous2", "context/branch_atrous3"}

    def compare(path, one, other, start):
        name = "/".join(str(key.key) for key in path)
        mask = masks.get(name.removesuffix("/conv/kernel"))
        reached = np.ones(one.shape, bool) if mask is None else np.broadcast_to(mask[:, :, None, None], one.shape)
        np.testing.assert_array_equal(np.asarray(one)[reached], np.asarray(other)[reached])
        np.testing.assert_array_equal(np.asarray(one)[~reached], 0)
        np.testing.assert_array_equal(np.asarray(other)[~reached], np.asarray(start)[~reached])

    jax.tree_util.tree_map_with_path(compare, ours.params, theirs.params, initial)
    # On a larger image the random taps show.
    large = jnp.asarray(rng.normal(size=(1, 129, 129, 3)), jnp.float32)
    one, other = (model.apply(s.variables(), large, train=False) for s in (ours, theirs))
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()
