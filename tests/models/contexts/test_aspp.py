"""Atrous spatial pyramid pooling: rates by output stride, branches by hand, and its options."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.contexts.aspp import ASPP, rates_at
from deeplab_jax.models.contexts.aspp_variants import ASPPVariant
from deeplab_jax.models.layers import LayerSettings
from tests.support.traces import fill_variables, find_convolutions, variable_shapes

BARE = LayerSettings(norm="none", lowering="direct")


def params_of(**kernels: Any) -> dict[str, Any]:
    """Parameters of branches without a norm, with zero biases."""
    return {
        "params": {
            name: {"conv": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(np.shape(kernel)[-1])}}
            for name, kernel in kernels.items()
        }
    }


@pytest.mark.parametrize(
    ("output_stride", "expected"), [(4, (24, 48, 72)), (8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))]
)
def test_rates_scale_with_the_output_stride(output_stride: int, expected: tuple[int, ...]) -> None:
    assert rates_at((6, 12, 18), output_stride) == expected

    aspp, x = ASPP(2, settings=BARE), jax.ShapeDtypeStruct((1, 9, 9, 3), jnp.float32)

    def init(x: jax.Array) -> Any:
        return aspp.init_with_output(jax.random.key(0), x, output_stride=output_stride, train=False)

    found = find_convolutions(init, x)
    assert [c.rate for c in found if c.kernel[:2] == (3, 3)] == list(expected)


def test_rates_that_do_not_exist_raise() -> None:
    with pytest.raises(ValueError, match=r"aspp_rates=\(6, 12, 18\) .* gives no whole rates at output stride 64"):
        rates_at((6, 12, 18), 64)
    with pytest.raises(ValueError, match=r"aspp_rates=\(6, 13, 18\) .* no whole rates at output stride 32"):
        rates_at((6, 13, 18), 32)
    assert rates_at((), 16) == ()


def test_image_pooling_by_hand() -> None:
    """Two branches, 2 x and 3 mean(x), projected to 10 a + b."""
    aspp = ASPP(1, aspp_rates=(), settings=BARE)
    variables = params_of(branch_1x1=[[[[2]]]], image_pooling=[[[[3]]]], projection=[[[[10], [1]]]])
    x = jnp.asarray([[1, 2], [3, 4]], jnp.float32).reshape(1, 2, 2, 1)
    y = aspp.apply(variables, x, output_stride=16, train=False)
    assert y[0, :, :, 0].tolist() == [[27.5, 47.5], [67.5, 87.5]]


def test_an_atrous_branch_by_hand() -> None:
    """Rate 2 at output stride 16 sums every second pixel; at 8, rate 4 leaves a map of 3 only its centre."""
    aspp = ASPP(1, aspp_rates=(2,), image_pooling=False, settings=BARE)
    variables = params_of(branch_1x1=[[[[0]]]], branch_atrous1=np.ones((3, 3, 1, 1)), projection=[[[[0], [1]]]])
    x = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    y = aspp.apply(variables, x, output_stride=16, train=False)[0, :, :, 0]
    assert y.tolist() == [[20, 10, 20], [10, 5, 10], [20, 10, 20]]
    y = aspp.apply(variables, x, output_stride=8, train=False)
    assert y.ravel().tolist() == list(range(1, 10))


def test_branches_are_concatenated_in_order() -> None:
    """1x1, the rates as given, image pooling: the order of the projection's inputs, on which stored weights rely."""
    aspp = ASPP(1, aspp_rates=(1, 2), settings=BARE)
    one = np.zeros((3, 3, 1, 1))
    one[1, 1] = 1
    variables = params_of(
        branch_1x1=[[[[1]]]],
        branch_atrous1=one * 2,
        branch_atrous2=one * 3,
        image_pooling=[[[[4]]]],
        projection=np.asarray([1, 10, 100, 1000], float).reshape(1, 1, 4, 1),
    )
    y = aspp.apply(variables, jnp.ones((1, 3, 3, 1)), output_stride=16, train=False)
    np.testing.assert_array_equal(y, 4321)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"branch_1x1", "branch_atrous1", "branch_atrous2", "branch_atrous3", "image_pooling", "projection"}),
        ({"image_pooling": False, "aspp_rates": (6,)}, {"branch_1x1", "branch_atrous1", "projection"}),
        (
            {"aspp_rates": (), "head_convs": ((3, 5), (1, 7))},
            {"branch_1x1", "image_pooling", "projection", "head1", "head2"},
        ),
    ],
)
def test_options_shape_the_parameters(options: dict[str, Any], names: set[str]) -> None:
    params = variable_shapes(ASPP(4, **options), 1, 9, 9, 3, output_stride=16)["params"]
    assert set(params) == names
    branches = len(names - {"projection", "head1", "head2"})
    assert params["projection"]["conv"]["kernel"].shape == (1, 1, 4 * branches, 4)
    if "head2" in names:
        assert params["head1"]["conv"]["kernel"].shape == (3, 3, 4, 5)
        assert params["head2"]["conv"]["kernel"].shape == (1, 1, 5, 7)


def test_separable_branches_and_head() -> None:
    params = variable_shapes(ASPP(4, separable=True, head_convs=((3, 5),)), 1, 9, 9, 3, output_stride=16)["params"]
    assert params["branch_atrous3"]["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 3)
    assert params["branch_atrous3"]["pointwise"]["conv"]["kernel"].shape == (1, 1, 3, 4)
    assert params["head1"]["pointwise"]["conv"]["kernel"].shape == (1, 1, 4, 5)
    assert set(params["branch_1x1"]) == set(params["projection"]) == {"conv", "norm"}


def test_dropout_acts_in_training_only() -> None:
    aspp = ASPP(64, aspp_rates=(), image_pooling=False, dropout=0.5, settings=BARE)
    identity = np.eye(64)[None, None]
    variables = params_of(branch_1x1=identity, projection=identity)
    x = jnp.ones((1, 4, 4, 64))
    np.testing.assert_array_equal(aspp.apply(variables, x, output_stride=16, train=False), x)
    y = aspp.apply(variables, x, output_stride=16, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y).tolist()) == {0.0, 2.0}
    assert 0.4 < float(jnp.mean(y == 0)) < 0.6


def test_a_single_image_in_training_is_refused_where_it_is_pooled() -> None:
    def train(aspp: nn.Module, images: int) -> Any:
        x = jax.ShapeDtypeStruct((images, 9, 9, 3), jnp.float32)
        variables = variable_shapes(aspp, *x.shape, output_stride=16)
        return jax.eval_shape(
            lambda v, x: aspp.apply(v, x, output_stride=16, train=True, mutable=["batch_stats"]), variables, x
        )

    with pytest.raises(ValueError, match=r"image_pooling.*at least 2 images per batch"):
        train(ASPP(4), 1)
    assert train(ASPP(4), 2)
    assert train(ASPP(4, image_pooling=False), 1)
    assert train(ASPP(4, settings=LayerSettings(norm="frozen")), 1)
    assert train(ASPP(4, settings=LayerSettings(norm="group")), 1)


@pytest.mark.parametrize("channels", [4, 32, 64])
def test_group_norm_keeps_what_image_pooling_says(channels: int) -> None:
    """The pooled map has one value per channel. With a group for each, every image would get the same."""
    aspp = ASPP(channels, aspp_rates=(), settings=LayerSettings(norm="group"))
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(2, 3, 3, depth)), jnp.float32) for depth in (8, channels))
    params = fill_variables(aspp, *x.shape, output_stride=16)["params"]

    def weighted(kernel: jax.Array) -> jax.Array:
        pooling = {**params["image_pooling"], "conv": {"kernel": kernel}}
        changed = {"params": {**params, "image_pooling": pooling}}
        return jnp.sum(weights * aspp.apply(changed, x, output_stride=16, train=True))

    assert np.abs(jax.jit(jax.grad(weighted))(params["image_pooling"]["conv"]["kernel"])).max() > 0.01


@pytest.mark.parametrize("branches", [False, True])
def test_branches_and_head_may_differ_in_being_separable(branches: bool) -> None:
    aspp = ASPPVariant(4, head_convs=((3, 5),), separable=not branches, aspp_separable=branches, depthwise_norm=False)
    params = variable_shapes(aspp, 1, 9, 9, 3, output_stride=16)["params"]
    bare = {"depthwise", "pointwise"}
    assert set(params["branch_atrous1"]) == (bare if branches else {"conv", "norm"})
    assert set(params["head1"]) == ({"conv", "norm"} if branches else bare)
    assert set(params["branch_atrous1" if branches else "head1"]["depthwise"]) == {"kernel"}
