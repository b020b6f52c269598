"""Layers: convolutions and norms by hand, what training changes and what it must not."""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeCollectionNotFound, ScopeParamShapeError
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deeplab_jax.checks import CheckedModule
from deeplab_jax.errors import UserError
from deeplab_jax.models.layers import Conv, ConvNorm, LayerSettings, Norm, SeparableConvNorm, norm_groups, spatial_conv
from deeplab_jax.models.separable_variants import BareSeparableConvNorm
from tests.support.traces import variable_shapes

BATCH = jnp.asarray([[1, 10], [3, 30], [5, 20], [7, 40]], jnp.float32).reshape(2, 2, 1, 2)
MEAN, VARIANCE = np.asarray([4.0, 25.0]), np.asarray([5.0, 125.0])


class Checked(CheckedModule):
    kind: Literal["a", "b"] = "a"
    flag: bool | None = None
    convs: tuple[tuple[int, int], ...] = ((3, 8),)
    share: float = 0.5
    count: int = 1
    name_of: str = "x"
    settings: Any = None


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "b", "flag": True, "share": 1, "count": -2, "name_of": "", "settings": object()},
        {"flag": None, "convs": (), "share": np.float64(0.25)},
        {"convs": ((3, 8), (1, 4))},
    ],
)
def test_values_of_their_fields_types_are_taken(values: dict[str, Any]) -> None:
    assert all(getattr(Checked(**values), name) is value for name, value in values.items())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("kind", "bb", "kind='bb': did you mean b?"),
        ("kind", 1, "kind=1: choose from a, b"),
        ("flag", 1, "flag=1: give bool | None"),
        ("convs", (3, 8), "convs=(3, 8): give tuple[tuple[int, int], ...], such as ((3, 8),)"),
        ("convs", ((3, 8, 1),), "convs=((3, 8, 1),): give tuple[tuple[int, int], ...], such as ((3, 8),)"),
        ("convs", ((3, True),), "convs=((3, True),): give"),
        ("convs", [[3, 8]], "convs=[[3, 8]]: give"),
        ("share", True, "share=True: give float, such as 0.5"),
        ("share", "0.5", "share='0.5': give float, such as 0.5"),
        ("count", 1.0, "count=1.0: give int, such as 1"),
        ("name_of", None, "name_of=None: give str, such as 'x'"),
    ],
)
def test_a_value_of_another_type_than_its_fields_is_refused(option: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        Checked(**{option: value})
    assert str(error.value).startswith(words)


def test_types_that_are_texts_are_checked_too() -> None:
    """`from __future__ import annotations` makes texts of them. A name that is not there checks nothing."""
    scope: dict[str, Any] = {"__name__": __name__}
    exec(
        """
from __future__ import annotations
from deeplab_jax.checks import CheckedModule
class Texts(CheckedModule):
    kind: Literal["a", "b"] = "a"
class Unknown(CheckedModule):
    kind: Nowhere = "a"
""",
        scope,
    )
    with pytest.raises(UserError, match="kind='zzz': choose from a, b"):
        scope["Texts"](kind="zzz")
    assert scope["Unknown"](kind="zzz").kind == "zzz"


def norm_variables(scale: float = 2.0, bias: float = 1.0) -> dict[str, Any]:
    """A norm of two channels whose running mean is (1, 2) and variance (4, 9)."""
    return {
        "params": {"batch": {"scale": jnp.full(2, scale), "bias": jnp.full(2, bias)}},
        "batch_stats": {"batch": {"mean": jnp.asarray([1.0, 2.0]), "var": jnp.asarray([4.0, 9.0])}},
    }


def test_conv_by_hand() -> None:
    kernel = jnp.asarray([[0, 0, 0], [1, 2, 3], [0, 0, 0]], jnp.float32).reshape(3, 3, 1, 1)
    x = jnp.broadcast_to(jnp.arange(1.0, 6)[None, None, :, None], (1, 1, 5, 1))
    conv = Conv(1, 3, rate=2, use_bias=True)
    y = conv.apply({"params": {"kernel": kernel, "bias": jnp.asarray([100.0])}}, x)
    assert y.ravel().tolist() == [111, 116, 122, 110, 113]


@pytest.mark.parametrize(
    ("conv", "kernel", "output"),
    [
        (Conv(8, 7, stride=2), (7, 7, 4, 8), (1, 17, 12, 8)),
        (Conv(8, 3, rate=18), (3, 3, 4, 8), (1, 33, 24, 8)),
        (Conv(8), (1, 1, 4, 8), (1, 33, 24, 8)),
        (Conv(4, 3, stride=2, depthwise=True), (3, 3, 1, 4), (1, 17, 12, 4)),
    ],
)
def test_conv_shapes(conv: Conv, kernel: tuple[int, ...], output: tuple[int, ...]) -> None:
    x = jnp.zeros((1, 33, 24, 4))
    y, variables = jax.eval_shape(lambda x: conv.init_with_output(jax.random.key(0), x), x)
    assert y.shape == output
    assert jax.tree.map(lambda a: a.shape, variables) == {"params": {"kernel": kernel}}


def test_a_kernel_that_is_there_is_used_without_its_initialiser() -> None:
    calls = []

    def initialiser(*arguments: Any) -> jax.Array:
        calls.append(arguments[1])
        return jnp.zeros(*arguments[1:])

    conv, x = Conv(3, 3, kernel_init=initialiser), jnp.ones((1, 5, 5, 2))
    variables = conv.init(jax.random.key(0), x)
    assert calls == [(3, 3, 2, 3)]
    conv.apply(variables, x)
    assert len(calls) == 1
    with pytest.raises(ScopeParamShapeError, match=r"expected .*\(3, 3, 4, 3\)"):
        conv.apply(variables, jnp.ones((1, 5, 5, 4)))
    with pytest.raises(ScopeCollectionNotFound):
        conv.apply({}, x)


def test_kernels_start_he_normal_by_fan_in() -> None:
    kernel = Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 3, 3, 32)))["params"]["kernel"]
    assert float(jnp.std(kernel)) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.03)
    assert abs(float(jnp.mean(kernel))) < 0.003


def test_batch_norm_uses_the_batch_in_training_and_updates_the_running_statistics() -> None:
    norm = Norm(LayerSettings(norm_epsilon=1e-12, norm_momentum=0.75))
    y, updates = norm.apply(norm_variables(), BATCH, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        y, 2 * (BATCH - MEAN[None, None, None]) / np.sqrt(VARIANCE)[None, None, None] + 1, rtol=1e-5
    )
    # Running = 0.75 * running + 0.25 * batch, with the variance that divides by the number of values.
    np.testing.assert_allclose(updates["batch_stats"]["batch"]["mean"], [1.75, 7.75], rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["batch"]["var"], [4.25, 38.0], rtol=1e-6)


@pytest.mark.parametrize(("kind", "train"), [("batch", False), ("frozen", False), ("frozen", True)])
def test_running_statistics_are_used_and_kept(kind: Any, train: bool) -> None:
    norm = Norm(LayerSettings(norm=kind, norm_epsilon=1.0))
    y, updates = norm.apply(norm_variables(), BATCH, train=train, mutable=["batch_stats"])
    expected = 2 * (np.asarray(BATCH).reshape(4, 2) - [1, 2]) / np.sqrt([5, 10]) + 1
    np.testing.assert_allclose(y.reshape(4, 2), expected, rtol=1e-6)
    chex.assert_trees_all_equal(updates["batch_stats"], norm_variables()["batch_stats"])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("norm_epsilon", 0.0, "norm_epsilon=0.0: give a number above 0 and up to 1"),
        ("norm_epsilon", 1.5, "norm_epsilon=1.5: give a number above 0 and up to 1"),
        ("norm_momentum", 1.0, "norm_momentum=1.0: give a share from 0 to below 1"),
        ("norm_momentum", -0.1, "norm_momentum=-0.1: give a share from 0 to below 1"),
        ("norm_momentum", float("nan"), "norm_momentum=nan: give a share from 0 to below 1"),
    ],
)
def test_numbers_of_norms_that_make_no_sense_are_refused(option: str, value: float, words: str) -> None:
    """A constant channel has variance 0, and running statistics with a decay of 1 never change."""
    with pytest.raises(UserError, match=words):
        LayerSettings(**{option: value})  # type: ignore[arg-type]


def test_a_sharded_batch_is_normalised_as_a_whole() -> None:
    devices = len(jax.devices())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(devices, 2, 1, 2)), jnp.float32)
    norm = Norm(LayerSettings(norm_momentum=0.0))

    @jax.jit
    def apply(x: jax.Array) -> Any:
        return norm.apply(norm_variables(), x, train=True, mutable=["batch_stats"])

    y, updates = apply(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    np.testing.assert_allclose(updates["batch_stats"]["batch"]["mean"], np.mean(x, axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["batch"]["var"], np.var(x, axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.mean(y, axis=(0, 1, 2)), 1, atol=1e-5)


def test_one_value_per_channel_cannot_be_normalised_by_its_own_statistics() -> None:
    norm, x = Norm(LayerSettings()), jnp.ones((1, 1, 1, 2))
    with pytest.raises(ValueError, match="at least 2 images per batch, or with norm='group' or norm='frozen'"):
        norm.apply(norm_variables(), x, train=True, mutable=["batch_stats"])
    assert norm.apply(norm_variables(), x, train=False).shape == x.shape
    frozen = Norm(LayerSettings(norm="frozen"))
    assert frozen.apply(norm_variables(), x, train=True).shape == x.shape
    assert jax.eval_shape(lambda x: norm.init(jax.random.key(0), x, train=True), x)  # initialising is no training


def test_group_norm_by_hand() -> None:
    """Two channels make one group, normalised over its own pixels of one image, in training and out of it."""
    norm = Norm(LayerSettings(norm="group", norm_epsilon=1e-12))
    variables = {"params": {"group": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}}
    for train in (False, True):
        y = norm.apply(variables, BATCH, train=train)
        # Of 1, 10, 3 and 30 the mean is 11 and the variance 131.5; of 5, 20, 7 and 40 they are 18 and 194.5.
        np.testing.assert_allclose(y[0].reshape(2, 2), np.array([[-10, -1], [-8, 19]]) / 131.5**0.5, rtol=1e-5)
        np.testing.assert_allclose(y[1].reshape(2, 2), np.array([[-13, 2], [-11, 22]]) / 194.5**0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (4, 2), (24, 8), (32, 16), (48, 16), (64, 32), (304, 16), (2048, 32)]
)
def test_groups_of_group_norm(channels: int, groups: int) -> None:
    assert norm_groups(3, 1, channels) == groups and norm_groups(1, 1, channels) == 1


@pytest.mark.parametrize("channels", [24, 32, 48, 256])
def test_group_norm_takes_any_number_of_channels(channels: int) -> None:
    variables = variable_shapes(Norm(LayerSettings(norm="group")), 1, 3, 3, channels)
    assert set(variables) == {"params"}
    assert variables["params"]["group"]["scale"].shape == (channels,)


@pytest.mark.parametrize(
    ("norm", "collections", "conv", "rest"),
    [
        ("batch", {"params", "batch_stats"}, {"kernel"}, {"conv", "norm"}),
        ("frozen", {"params", "batch_stats"}, {"kernel"}, {"conv", "norm"}),
        ("group", {"params"}, {"kernel"}, {"conv", "norm"}),
        ("none", {"params"}, {"kernel", "bias"}, {"conv"}),
    ],
)
def test_a_bias_replaces_the_norm(norm: Any, collections: set[str], conv: set[str], rest: set[str]) -> None:
    variables = variable_shapes(ConvNorm(4, 3, settings=LayerSettings(norm=norm)), 1, 5, 5, 2)
    assert set(variables) == collections
    assert set(variables["params"]["conv"]) == conv
    assert set(variables["params"]) == rest


@pytest.mark.parametrize(("activation", "expected"), [("relu", [0, 4, 9]), ("relu6", [0, 4, 6]), ("none", [-5, 4, 9])])
def test_activations_by_hand(activation: Any, expected: list[float]) -> None:
    layer = ConvNorm(1, activation=activation, settings=LayerSettings(norm="none"))
    variables = {"params": {"conv": {"kernel": jnp.full((1, 1, 1, 1), 2.0), "bias": jnp.ones(1)}}}
    x = jnp.asarray([-3, 1.5, 4]).reshape(1, 1, 3, 1)
    assert layer.apply(variables, x, train=False).ravel().tolist() == expected


def test_separable_by_hand() -> None:
    """Depthwise, ReLU, pointwise, ReLU: the first ReLU stops the negative channel before it is mixed."""
    layer = SeparableConvNorm(1, 3, rate=1, settings=LayerSettings(norm="none"))
    depthwise = jnp.zeros((3, 3, 1, 2)).at[1, 1, 0].set(jnp.asarray([1.0, -1.0])).at[1, 2, 0, 0].set(1.0)
    variables = {
        "params": {
            "depthwise": {"conv": {"kernel": depthwise, "bias": jnp.zeros(2)}},
            "pointwise": {"conv": {"kernel": jnp.asarray([10.0, -1.0]).reshape(1, 1, 2, 1), "bias": jnp.zeros(1)}},
        }
    }
    x = jnp.asarray([[1, 5], [2, 7], [4, -9]], jnp.float32).reshape(1, 1, 3, 2)
    # First channel: x[i] + x[i + 1] = 3, 6, 4; second: -x = -5, -7, 9, after the ReLU 0, 0, 9.
    assert layer.apply(variables, x, train=False).ravel().tolist() == [30, 60, 31]


def test_separable_has_a_norm_after_each_part() -> None:
    params = variable_shapes(SeparableConvNorm(6, 3, rate=2), 1, 9, 9, 4)["params"]
    assert params["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 4)
    assert params["depthwise"]["norm"]["batch"]["scale"].shape == (4,)
    assert params["pointwise"]["conv"]["kernel"].shape == (1, 1, 4, 6)
    assert params["pointwise"]["norm"]["batch"]["scale"].shape == (6,)


def test_nothing_between_depthwise_and_pointwise() -> None:
    """Neither norm nor ReLU: the negative channel reaches the pointwise convolution."""
    layer = BareSeparableConvNorm(1, 1, settings=LayerSettings(norm="none"))
    variables = {
        "params": {
            "depthwise": {"kernel": jnp.asarray([1.0, -1.0]).reshape(1, 1, 1, 2)},
            "pointwise": {"conv": {"kernel": jnp.asarray([10.0, -1.0]).reshape(1, 1, 2, 1), "bias": jnp.zeros(1)}},
        }
    }
    x = jnp.asarray([[1, 5], [-2, 21]], jnp.float32).reshape(1, 1, 2, 2)
    assert layer.apply(variables, x, train=False).ravel().tolist() == [15, 1]
    params = variable_shapes(BareSeparableConvNorm(6, 3), 1, 9, 9, 4)["params"]
    assert set(params["depthwise"]) == {"kernel"}
    assert params["pointwise"]["norm"]["batch"]["scale"].shape == (6,)


def test_a_1x1_convolution_is_never_separable() -> None:
    settings = LayerSettings()
    assert isinstance(spatial_conv(4, 1, separable=True, settings=settings, name="a"), ConvNorm)
    assert isinstance(spatial_conv(4, 3, separable=False, settings=settings, name="a"), ConvNorm)
    assert isinstance(spatial_conv(4, 3, separable=True, settings=settings, name="a"), SeparableConvNorm)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_bfloat16_activations_have_float32_parameters(norm: Any) -> None:
    layer = ConvNorm(4, 3, settings=LayerSettings(norm=norm, dtype="bfloat16"))
    y, variables = jax.eval_shape(
        lambda x: layer.init_with_output(jax.random.key(0), x, train=False), jnp.zeros((1, 5, 5, 2))
    )
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_statistics_stay_float32_in_bfloat16() -> None:
    """A mean of 300 + 1 pixels in bfloat16 would lose the 1."""
    norm = Norm(LayerSettings(dtype="bfloat16", norm_momentum=0.0))
    x = jnp.full((1, 20, 20, 2), 1.0078125, jnp.bfloat16)
    _, updates = norm.apply(norm_variables(), x, train=True, mutable=["batch_stats"])
    assert updates["batch_stats"]["batch"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updates["batch_stats"]["batch"]["mean"], 1.0078125, rtol=1e-6)
