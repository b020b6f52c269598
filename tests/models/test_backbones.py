"""Backbones: strides that become rates, atrous consistency, and the networks that their names promise."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.architectures import ARCHITECTURES, BACKBONES
from deeplab_jax.models.backbones.dilation import Stage, dilate_stages, plan_units
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, scale_channels
from deeplab_jax.models.backbones.resnet import Unit
from deeplab_jax.models.catalog import build_part, create_model
from deeplab_jax.models.layers import LayerSettings
from tests.support.traces import fill_variables, find_convolutions, parameter_count, variable_shapes

DIRECT = LayerSettings(lowering="direct")
# Thin enough to be quick; the structure is that of the full network.
THIN = {"resnet18": 1 / 16, "resnet34": 1 / 16, "resnet50": 1 / 16, "resnet101": 1 / 16, "mobilenet_v2": 0.25}


def backbone(name: str, settings: LayerSettings = DIRECT, **options: Any) -> nn.Module:
    entry = BACKBONES[name]
    return build_part(entry.module, {**entry.defaults, **options}, settings=settings)


def spatial_convolutions(network: nn.Module, output_stride: int) -> list[Any]:
    """The convolutions of a network that are larger than 1x1, in order."""
    x = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = variable_shapes(network, *x.shape, output_stride=output_stride)

    def apply(variables: Any, x: jax.Array) -> Any:
        return network.apply(variables, x, output_stride=output_stride, train=False)["conv5"][0]

    return [c for c in find_convolutions(apply, variables, x) if c.kernel[0] > 1]


def test_units_by_hand() -> None:
    """Block 3 of a ResNet at output stride 16, before block 4 whose stride became a rate, and block 4."""
    third, fourth = Stage(2, 1, 1, 16), Stage(1, 2, 1, 16)
    assert plan_units(third, fourth, (1, 1, 1), first_unit_rate="previous") == [(2, 1, 1), (1, 1, 1), (1, 1, 1)]
    assert plan_units(fourth, None, (1, 2, 4), first_unit_rate="previous") == [(1, 1, 2), (1, 4, 4), (1, 8, 8)]
    # With the stride in its last unit, block 3 has none here, and that unit ends at the rate of block 4.
    last = Stage(1, 2, 2, 16)
    assert plan_units(third, last, (1, 1, 1), first_unit_rate="last_unit") == [(1, 1, 1), (1, 1, 1), (1, 1, 2)]
    assert plan_units(last, None, (1, 2, 4), first_unit_rate="last_unit") == [(1, 2, 2), (1, 4, 4), (1, 8, 8)]
    # A stage before one that keeps its stride has it in its last unit.
    assert plan_units(Stage(1, 1, 1, 4), third, (1, 1), first_unit_rate="last_unit") == [(1, 1, 1), (2, 1, 1)]


def test_dilate_stages_by_hand() -> None:
    resnet = {"strides": (1, 2, 2, 2), "start": 4, "first_unit_rate": "previous"}
    assert dilate_stages(**resnet, output_stride=32) == [
        Stage(1, 1, 1, 4), Stage(2, 1, 1, 8), Stage(2, 1, 1, 16), Stage(2, 1, 1, 32)
    ]  # fmt: skip
    assert dilate_stages(**resnet, output_stride=8) == [
        Stage(1, 1, 1, 4), Stage(2, 1, 1, 8), Stage(1, 2, 1, 8), Stage(1, 4, 2, 8)
    ]  # fmt: skip
    assert dilate_stages(**{**resnet, "first_unit_rate": "stage"}, output_stride=8) == [
        Stage(1, 1, 1, 4), Stage(2, 1, 1, 8), Stage(1, 2, 2, 8), Stage(1, 4, 4, 8)
    ]  # fmt: skip
    assert dilate_stages(**{**resnet, "first_unit_rate": "last_unit"}, output_stride=8) == [
        Stage(1, 1, 1, 4), Stage(2, 1, 1, 8), Stage(1, 2, 2, 8), Stage(1, 4, 4, 8)
    ]  # fmt: skip
    assert [s.rate for s in dilate_stages(**resnet, output_stride=4)] == [1, 2, 4, 8]


@pytest.mark.parametrize("output_stride", [1, 2, 12, 64])
def test_an_output_stride_that_the_stages_do_not_have_raises(output_stride: int) -> None:
    with pytest.raises(ValueError, match=f"output_stride={output_stride}: this backbone offers 4, 8, 16, 32"):
        dilate_stages((1, 2, 2, 2), start=4, output_stride=output_stride, first_unit_rate="previous")


# The property that the papers rest on: what was trained at one output stride runs at another.
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mobilenet_v2", "resnet34", "resnet50", "resnet101")),
    ],
)  # fmt: skip
def test_features_at_stride_4_subsampled_are_those_at_8_and_16(name: str) -> None:
    """The map is neither square nor a multiple of a stride; multi-grid is on where the paper has it."""
    grid = {} if name == "mobilenet_v2" else {"multi_grid": ARCHITECTURES["deeplabv3"].backbones[name]["multi_grid"]}
    network = backbone(name, width=THIN[name], **grid)
    variables = fill_variables(network, 1, 50, 37, 3, output_stride=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)
    dense = network.apply(variables, x, output_stride=4, train=False)
    assert dense["conv5"][1] == 4
    for output_stride in (8, 16):
        features = network.apply(variables, x, output_stride=output_stride, train=False)
        for stage in ("conv2", "conv3", "conv4", "conv5"):
            fine, fine_stride = dense[stage]
            coarse, stride = features[stage]
            step = stride // fine_stride
            scale = float(jnp.max(jnp.abs(coarse)))
            assert scale > 0.01
            np.testing.assert_allclose(
                fine[:, ::step, ::step], coarse, atol=1e-5 * scale, err_msg=f"{stage} at {stride}"
            )


def test_the_rate_of_the_stage_in_its_first_unit_loses_that_property() -> None:
    """The convention of some peers, for their weights: the same numbers at one stride, others at another."""
    network = backbone("resnet18", width=1 / 16, first_unit_rate="stage")
    variables = fill_variables(network, 1, 50, 37, 3, output_stride=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)
    fine = network.apply(variables, x, output_stride=8, train=False)["conv5"][0][:, ::2, ::2]
    coarse = network.apply(variables, x, output_stride=16, train=False)["conv5"][0]
    assert float(jnp.max(jnp.abs(fine - coarse))) > 0.05 * float(jnp.max(jnp.abs(coarse)))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_strides_that_are_reported_are_those_of_the_arrays(name: str, output_stride: int) -> None:
    network = backbone(name)
    height, width = 97, 66
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)

    def init(x: jax.Array) -> Any:
        features = network.init_with_output(jax.random.key(0), x, output_stride=output_stride, train=False)[0]
        strides.update({stage: stride for stage, (_, stride) in features.items()})
        return {stage: array for stage, (array, _) in features.items()}

    strides: dict[str, int] = {}
    arrays = jax.eval_shape(init, images)
    nominal = {"stem": 2, "conv1": 2, "conv2": 4, "conv3": 8, "conv4": 16, "conv5": 32}
    for stage, stride in strides.items():
        assert stride == min(nominal[stage], output_stride)
        assert arrays[stage].shape[:3] == (2, -(-height // stride), -(-width // stride))
    assert list(strides) == [s for s in nominal if s in strides]
    assert {"stem", "conv2", "conv3", "conv4", "conv5"} <= set(strides)


@pytest.mark.parametrize(("output_stride", "expected"), [(32, [1, 2, 4]), (16, [1, 4, 8]), (8, [2, 8, 16])])
def test_multi_grid_multiplies_the_rates_of_the_last_block(output_stride: int, expected: list[int]) -> None:
    """At output stride 16 the stage's rate is 2; its first unit, whose stride was removed, has the rate before it."""
    network = backbone("resnet50", width=1 / 16, multi_grid=(1, 2, 4))
    found = spatial_convolutions(network, output_stride)
    assert len(found) == 1 + 16
    assert [c.rate for c in found[-3:]] == expected
    assert {c.rate for c in found[:8]} == {1}  # the stem, conv2 and conv3


def test_multi_grid_with_the_rate_of_the_stage() -> None:
    network = backbone("resnet50", width=1 / 16, multi_grid=(1, 2, 4), first_unit_rate="stage")
    found = spatial_convolutions(network, 16)
    assert [c.rate for c in found[-3:]] == [2, 4, 8]


def test_the_beta_form_has_the_rates_of_the_paper() -> None:
    """Its stages stride in their last unit, so that every unit of block 4 comes after the stride that it lost."""
    network = backbone("resnet50_beta", width=1 / 16, multi_grid=(1, 2, 4))
    found = spatial_convolutions(network, 16)
    assert len(found) == 3 + 16
    assert [c.rate for c in found[-3:]] == [2, 4, 8]
    assert {c.rate for c in found[:-3]} == {1}
    # Blocks of 3, 4, 6 and 3 units.
    assert [c.stride for c in found] == [2, 1, 1, *[1, 1, 2], *[1, 1, 1, 2], *[1] * 6, *[1] * 3]
    assert [c.rate for c in spatial_convolutions(network, 8)[-9:]] == [2] * 6 + [4, 8, 16]
    found = spatial_convolutions(network, 32)
    assert [c.rate for c in found[-3:]] == [1, 2, 4]
    assert [c.stride for c in found[-9:]] == [1, 1, 1, 1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "multi_grid"),
    [("resnet18", (1, 2)), pytest.param("resnet50_beta", (1, 2, 4), marks=pytest.mark.slow)],
)
def test_features_are_consistent_with_the_stride_in_the_last_unit(name: str, multi_grid: tuple[int, ...]) -> None:
    network = backbone(name, width=1 / 16, multi_grid=multi_grid, first_unit_rate="last_unit")
    variables = fill_variables(network, 1, 50, 37, 3, output_stride=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)

    def run(output_stride: int) -> Any:
        strides: dict[str, int] = {}

        @jax.jit
        def apply(variables: Any, x: jax.Array) -> Any:
            features = network.apply(variables, x, output_stride=output_stride, train=False)
            strides.update({stage: stride for stage, (_, stride) in features.items()})
            return {stage: array for stage, (array, _) in features.items()}

        return apply(variables, x), strides

    dense, dense_strides = run(4)
    assert dense_strides["conv5"] == 4
    for output_stride in (8, 16, 32):
        features, strides = run(output_stride)
        assert strides["conv5"] == output_stride
        for stage, coarse in features.items():
            step = strides[stage] // dense_strides[stage]
            fine = dense[stage][:, ::step, ::step]
            scale = float(jnp.max(jnp.abs(coarse)))
            assert scale > 0.01
            np.testing.assert_allclose(fine, coarse, atol=1e-5 * scale, err_msg=f"{stage} at {output_stride}")


def test_the_beta_form_differs_from_the_plain_one_in_its_stem_only() -> None:
    """Three 3x3 convolutions instead of the 7x7, of which the first unit sees twice the channels."""
    plain, beta = (
        variable_shapes(backbone(n), 1, 33, 33, 3, output_stride=32)["params"] for n in ("resnet50", "resnet50_beta")
    )
    stem = {name: beta[name]["conv"]["kernel"].shape for name in beta if name.startswith("stem")}
    assert stem == {"stem_conv1": (3, 3, 3, 64), "stem_conv2": (3, 3, 64, 64), "stem_conv3": (3, 3, 64, 128)}
    assert set(plain) - {"conv1"} == set(beta) - set(stem)
    different = {name for name in set(plain) - {"conv1"} if plain[name] != beta[name]}
    assert different == {"conv2_unit1"}
    for layer, inputs in (("conv1", 128), ("shortcut", 128), ("conv2", 64)):
        assert beta["conv2_unit1"][layer]["conv"]["kernel"].shape[2] == inputs
    # The stem of 9536 parameters, norms included, becomes one of 112,832; 64 more channels go into 64 + 256.
    stem_plain, stem_beta = 7 * 7 * 3 * 64 + 2 * 64, 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128)
    assert parameter_count(beta) - parameter_count(plain) == stem_beta - stem_plain + 64 * (64 + 256)


@pytest.mark.parametrize("first_unit_rate", ["previous", "stage", "last_unit"])
def test_the_conventions_share_their_parameters(first_unit_rate: Any) -> None:
    trees = [
        variable_shapes(
            backbone("resnet50", width=1 / 16, first_unit_rate=convention), 1, 33, 33, 3, output_stride=stride
        )
        for convention, stride in (("previous", 32), (first_unit_rate, 32), (first_unit_rate, 8))
    ]
    assert trees[0] == trees[1] == trees[2]


def test_the_beta_forms_features_are_residual_branches_before_the_stride() -> None:
    """What the authors' decoder takes: of the last unit at the stage's own resolution, before its addition."""
    network = backbone("resnet50_beta", width=1 / 16)
    variables = fill_variables(network, 1, 33, 33, 3, output_stride=32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 33, 3)), jnp.float32)

    @jax.jit
    def run(variables: Any, x: jax.Array) -> Any:
        features, captured = network.apply(
            variables,
            x,
            output_stride=32,
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, Unit),
        )
        units = {name: value["__call__"][0] for name, value in captured["intermediates"].items()}
        return {stage: array for stage, (array, _) in features.items()}, units

    features, units = run(variables, x)
    for stage, unit in (("conv2", 2), ("conv3", 3), ("conv4", 5)):
        np.testing.assert_array_equal(features[stage], units[f"{stage}_unit{unit}"][1])
        assert float(jnp.min(features[stage])) < 0
    np.testing.assert_array_equal(features["conv5"], units["conv5_unit3"][0])
    assert [features[f"conv{i}"].shape[1] for i in (2, 3, 4, 5)] == [9, 5, 3, 2]


def test_rates_and_strides_of_a_basic_block() -> None:
    """Of two 3x3 convolutions the first carries the removed stride, so only it has the rate of the stage before."""
    found = spatial_convolutions(backbone("resnet18", width=1 / 16), 8)
    assert [c.stride for c in found] == [2, *[1] * 4, 2, *[1] * 11]
    assert [c.rate for c in found[-8:]] == [1, 2, 2, 2, 2, 4, 4, 4]


def test_rates_of_mobilenet_at_8() -> None:
    found = spatial_convolutions(backbone("mobilenet_v2", width=0.25), 8)
    rates = [c.rate for c in found]
    # The stem; then units of 1, 2, 3 (stride 8 reached), 4 of which the first lost its stride, 3, 3 likewise, 1.
    assert rates == [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4]
    assert [c.stride for c in found] == [2, 1, 2, 1, 2, *[1] * 13]
    assert all(c.groups == c.kernel[-1] for c in found[1:])


@pytest.mark.parametrize(
    ("width", "shortcuts"), [(1.0, set()), (0.25, {"conv1_unit1"}), (0.15, {"conv1_unit1", "conv4_unit5"})]
)
def test_a_thin_mobilenet_has_a_shortcut_wherever_the_channels_are_equal(width: float, shortcuts: set[str]) -> None:
    """Sec. 3.3: units without a stride whose input has as many channels as their output. A stage's first unit whose
    stride became a rate stays without one, so the weights compute the same at any output stride.
    """
    found = set()

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if isinstance(context.module, InvertedResidual) and context.method_name == "__call__":
            (x,), (y, _) = args, result
            if x.shape == y.shape and context.module.residual:
                found.add(context.module.name)
        return result

    network = backbone("mobilenet_v2", width=width)
    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda x: network.init(jax.random.key(0), x, output_stride=8, train=False), jnp.zeros((1, 65, 65, 3))
        )
    later = {"conv2_unit2", *(f"conv3_unit{i}" for i in (2, 3)), *(f"conv4_unit{i}" for i in (2, 3, 4, 6, 7))}
    assert found == {*later, "conv5_unit2", "conv5_unit3"} | shortcuts


def test_the_shortcut_of_a_thin_mobilenet_is_the_identity() -> None:
    """With a projection of nothing, its first unit hands the stem on."""
    network = backbone("mobilenet_v2", width=0.25)
    variables = fill_variables(network, 1, 33, 33, 3, output_stride=32)
    norm = variables["params"]["conv1_unit1"]["project"]["norm"]["batch"]
    norm.update(jax.tree.map(jnp.zeros_like, norm))

    @jax.jit
    def stem_and_first_unit(variables: Any, x: jax.Array) -> Any:
        features = network.apply(variables, x, output_stride=32, train=False)
        return features["stem"][0], features["conv1"][0]

    stem, first = stem_and_first_unit(variables, jnp.ones((1, 33, 33, 3)))
    assert float(jnp.max(stem)) > 0
    np.testing.assert_array_equal(first, stem)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # torchvision's published counts without the classifier (512 or 2048 to 1000 classes, with bias).
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
        # Without the classifier (1280 to 1000, with bias) and the last 1x1 (320 to 1280, with its norm).
        ("mobilenet_v2", 3_504_872 - 1_281_000 - 412_160),
    ],
)
def test_parameter_counts_of_the_published_networks(name: str, count: int) -> None:
    assert parameter_count(variable_shapes(backbone(name), 1, 33, 33, 3, output_stride=32)["params"]) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_parameters_do_not_depend_on_the_output_stride(name: str) -> None:
    trees = [variable_shapes(backbone(name), 1, 33, 33, 3, output_stride=stride) for stride in (4, 32)]
    assert trees[0] == trees[1]


def test_parameters_of_a_cascade_do_not_depend_on_the_output_stride() -> None:
    network = backbone("resnet50", width=1 / 16, last_block=7)
    trees = [variable_shapes(network, 1, 65, 65, 3, output_stride=stride) for stride in (16, 256)]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("output_stride", [16, 64, 256])
def test_a_cascade_goes_to_output_stride_256(output_stride: int) -> None:
    """DeepLabv3, Table 1: block 7 ends at stride 256; every block copies block 4."""
    network = backbone("resnet50", width=1 / 16, last_block=7)
    found: dict[str, int] = {}

    def init(x: jax.Array) -> Any:
        features = network.init_with_output(jax.random.key(0), x, output_stride=output_stride, train=False)[0]
        found.update({stage: stride for stage, (_, stride) in features.items()})
        return {stage: array for stage, (array, _) in features.items()}

    arrays = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 513, 513, 3), jnp.float32))
    assert found["conv8"] == output_stride
    assert list(found) == ["stem", *[f"conv{i}" for i in range(2, 9)]]
    assert arrays["conv8"].shape == (1, 512 // output_stride + 1, 512 // output_stride + 1, 128)
    assert [found[f"conv{i}"] for i in range(5, 9)] == [min(output_stride, s) for s in (32, 64, 128, 256)]


def test_a_cascade_is_consistent_over_output_strides() -> None:
    network = backbone("resnet50", width=1 / 16, last_block=6, multi_grid=(1, 2, 1))
    variables = fill_variables(network, 1, 70, 65, 3, output_stride=64)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 70, 65, 3)), jnp.float32)
    fine = network.apply(variables, x, output_stride=16, train=False)["conv7"][0]
    coarse = network.apply(variables, x, output_stride=64, train=False)["conv7"][0]
    np.testing.assert_allclose(fine[:, ::4, ::4], coarse, atol=1e-5 * float(jnp.max(jnp.abs(coarse))))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize(("last_stage", "deepest"), [("conv3", 8), ("conv4", 16)])
def test_a_backbone_may_end_early(name: str, last_stage: str, deepest: int) -> None:
    """What it keeps has the parameters and the strides of the whole one."""
    whole, cut = backbone(name, width=THIN[name]), backbone(name, width=THIN[name], last_stage=last_stage)
    trees = [variable_shapes(network, 1, 65, 65, 3, output_stride=8)["params"] for network in (whole, cut)]
    kept = {layer: tree for layer, tree in trees[0].items() if layer.split("_")[0] <= last_stage or layer == "stem"}
    assert trees[1] == kept
    assert kept != trees[0]
    with pytest.raises(ValueError, match=rf"output_stride={2 * deepest}: this backbone offers .*{deepest}(\n|$)"):
        variable_shapes(cut, 1, 65, 65, 3, output_stride=2 * deepest)


def test_mobilenet_v2_may_have_its_last_convolution() -> None:
    """1x1 from 320 to 1280 (Table 2), whatever the width; its output are the last features."""
    network = backbone("mobilenet_v2", last_channels=1280)
    shapes = variable_shapes(network, 1, 65, 65, 3, output_stride=32)
    assert shapes["params"]["last"]["conv"]["kernel"].shape == (1, 1, 320, 1280)
    x = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    apply = lambda v, x: network.apply(v, x, output_stride=32, train=False)["conv5"][0]  # noqa: E731
    assert jax.eval_shape(apply, shapes, x).shape == (1, 3, 3, 1280)


def test_a_residual_unit_by_hand() -> None:
    """The identity plus twice itself through two centred kernels, then the ReLU."""
    settings = LayerSettings(norm="none")
    unit = Unit(1, "basic", stride=1, rate=1, first_rate=1, settings=settings)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    variables = {
        "params": {
            "conv1": {"conv": {"kernel": centre, "bias": jnp.zeros(1)}},
            "conv2": {"conv": {"kernel": 2 * centre, "bias": jnp.asarray([-1.0])}},
        }
    }
    x = jnp.asarray([-2, 1, 3], jnp.float32).reshape(1, 1, 3, 1)
    # x + (2 relu(x) - 1), then relu
    output, branch = unit.apply(variables, x, train=False)
    assert output.ravel().tolist() == [0, 2, 8]
    assert branch.ravel().tolist() == [-1, 1, 5]


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (32, 1.0, 32),
        (32, 0.5, 16),
        (16, 0.5, 8),
        (24, 0.35, 8),
        (24, 0.5, 16),
        (24, 0.75, 24),
        (96, 1.4, 136),
        (320, 0.25, 80),
    ],
)
def test_widths_round_to_multiples_of_8(channels: int, width: float, expected: int) -> None:
    """24 * 0.5 = 12 rounds to 16; 24 * 0.75 = 18 would round to 16, which loses more than a tenth."""
    assert scale_channels(channels, width) == expected


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "deeplabv3_resnet18",
            {"multi_grid": (1, 2, 4)},
            "multi_grid=(1, 2, 4): the last block has 2 units",
        ),
        ("deeplabv3_resnet50", {"multi_grid": (1, 1.5, 4)}, "multi_grid=(1, 1.5, 4): give tuple[int, ...]"),
        ("deeplabv3_resnet50", {"multi_grid": (1, 0, 4)}, "rates of at least 1"),
        ("deeplabv3_mobilenet_v2", {"multi_grid": (1, 2, 4)}, "option 'multi_grid' has no meaning"),
        ("deeplabv3_resnet18", {"first_unit_rate": "stge"}, "first_unit_rate='stge': did you mean stage?"),
        ("cascade_resnet50", {"last_block": 8}, "last_block=8"),
        ("cascade_resnet50", {"last_block": 3}, "last_block=3"),
    ],
)
def test_bad_options_of_a_backbone_raise(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        create_model(name, **options)
    assert words in str(error.value)
