"""Modified aligned Xception: the published counts, its rates, where activations stand, where the decoder attaches."""

import math
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.architectures import BACKBONES
from deeplab_jax.models.backbones.xception import Unit, Xception
from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.ops.observe import Convolution
from tests.support.params import first_fast
from tests.support.traces import calls_of, fill_variables, louder, parameter_count, variable_shapes

DIRECT = LayerSettings(norm_epsilon=1e-3, lowering="direct")


def xception(depth: int, **options: Any) -> Xception:
    return BACKBONES[f"xception{depth}"].module(**options)


def thin(depth: int, **options: Any) -> Xception:
    return xception(depth, **{"width": 1 / 32, "settings": DIRECT, **options})


def apply(network: nn.Module, variables: Any, x: jax.Array, output_stride: int) -> Any:
    return network.apply(variables, x, output_stride=output_stride, train=False)


def separable_parameters(inputs: int, outputs: int) -> int:
    """3x3 depthwise, pointwise, and a scale and offset for every channel after each."""
    return 9 * inputs + 2 * inputs + inputs * outputs + 2 * outputs


def unit_parameters(inputs: int, channels: tuple[int, int, int], *, projection: bool) -> int:
    total, width = 0, inputs
    for outputs in channels:
        total += separable_parameters(width, outputs)
        width = outputs
    return total + (inputs * width + 2 * width if projection else 0)


@pytest.mark.parametrize(
    ("depth", "entry", "middle_units", "published"),
    first_fast(
        [
            (65, (64, 128, 256, 728), 16, 37_867_312),
            (41, (64, 128, 256, 728), 8, 24_920_560),
            (71, (64, 128, 256, 256, 728, 728), 16, 40_289_736),
        ]
    ),
)
def test_parameter_counts(depth: int, entry: tuple[int, ...], middle_units: int, published: int) -> None:
    """Derived from the layout, and those of the ImageNet networks (26.97, 39.92 and 42.34 million with 2048 x 1000)."""
    expected = (9 * 3 * 32 + 64) + (9 * 32 * 64 + 128)  # the stem
    expected += sum(unit_parameters(inputs, (outputs,) * 3, projection=True) for inputs, outputs in pairwise(entry))
    expected += middle_units * unit_parameters(728, (728,) * 3, projection=False)
    expected += unit_parameters(728, (728, 1024, 1024), projection=True)
    expected += unit_parameters(1024, (1536, 1536, 2048), projection=False)
    tree = variable_shapes(xception(depth), 1, 33, 33, 3, output_stride=32)["params"]
    assert parameter_count(tree) == expected == published


@pytest.mark.parametrize("depth", [41, 65, 71])
def test_the_name_counts_the_stem_and_the_separable_convolutions(depth: int) -> None:
    assert len([c for c in calls_of(thin(depth), 32) if c.kernel[0] == 3]) == depth


def multiply_adds(convolutions: list[Convolution], *, padded: bool) -> int:
    """`padded` counts an atrous convolution of a map of side n at rate * ceil(n / rate), as TensorFlow computes it."""
    total = 0
    for c in convolutions:
        rows, columns = (math.ceil(n / c.rate) * c.rate if padded else n for n in c.outputs[1:3])
        total += rows * columns * math.prod(c.kernel)
    return total


@pytest.mark.parametrize(
    ("output_stride", "exact", "padded", "paper"), [(16, 64.92, 67.85, 68.00), (8, 227.04, 240.67, 240.85)]
)
def test_multiply_adds_of_deeplabv3plus_table_5(output_stride: int, exact: float, padded: float, paper: float) -> None:
    """Xception-65, ASPP and the classifier at 513x513, without a decoder, in billions."""
    side = 512 // output_stride + 1
    found = calls_of(xception(65), output_stride, size=513)
    found += calls_of(ASPP(), output_stride, size=side, channels=2048)
    classifier = side * side * 256 * 21
    assert (multiply_adds(found, padded=False) + classifier) / 1e9 == pytest.approx(exact, abs=0.005)
    assert (multiply_adds(found, padded=True) + classifier) / 1e9 == pytest.approx(padded, abs=0.005)
    assert (multiply_adds(found, padded=True) + classifier) / 1e9 == pytest.approx(paper, rel=0.005)


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    # Units: entry (strides 2, 2, 2), middle, exit 1 (stride 2), exit 2. One that lost its stride keeps the rate before.
    [
        (32, [1, 1, 1, *[1] * 8, 1, 1]),
        (16, [1, 1, 1, *[1] * 8, 1, 2]),
        (8, [1, 1, 1, *[2] * 8, 2, 4]),
        (4, [1, 1, 2, *[4] * 8, 4, 8]),
    ],
)
def test_rates(output_stride: int, expected: list[int]) -> None:
    depthwise = [c for c in calls_of(thin(41), output_stride) if c.groups > 1]
    assert [c.rate for c in depthwise] == [rate for rate in expected for _ in range(3)]
    assert {c.kernel[:2] for c in depthwise} == {(3, 3)}
    assert {c.padding for c in depthwise} == {((r, r), (r, r)) for r in expected}


@pytest.mark.parametrize(
    ("depth", "output_stride", "first_unit_rate", "expected"),
    [(71, 4, "previous", [1, 1, 1, 2, 2, *[4] * 16, 4, 8]), (41, 8, "stage", [1, 1, 2, *[2] * 8, 4, 4])],
)
def test_rates_of_the_longer_entry_flow_and_of_the_other_convention(
    depth: int, output_stride: int, first_unit_rate: Any, expected: list[int]
) -> None:
    found = calls_of(thin(depth, first_unit_rate=first_unit_rate), output_stride)
    assert [c.rate for c in found if c.groups > 1] == [rate for rate in expected for _ in range(3)]


@pytest.mark.parametrize(("output_stride", "expected"), [(32, [1, 2, 4]), (16, [2, 4, 8]), (8, [4, 8, 16])])
def test_multi_grid_multiplies_the_rates_of_the_last_unit(output_stride: int, expected: list[int]) -> None:
    depthwise = [c for c in calls_of(thin(41, multi_grid=(1, 2, 4)), output_stride) if c.groups > 1]
    assert [c.rate for c in depthwise[-3:]] == expected
    assert len({c.rate for c in depthwise[-6:-3]}) == 1


@pytest.mark.parametrize(("depth", "striding"), [(41, [3, 6, 9, 36]), (65, [3, 6, 9, 60]), (71, [3, 9, 15, 66])])
def test_only_convolutions_stride(depth: int, striding: list[int]) -> None:
    """The third separable convolution of four units, and the stem's first: together they make all of the output stride
    of 32, so nothing is left for a max pooling. Shortcuts stride along.
    """
    found = calls_of(thin(depth), 32)
    spatial = [c for c in found if c.kernel[0] == 3]
    assert [i for i, c in enumerate(spatial) if c.stride == 2] == [0, *[1 + n for n in striding]]
    shortcuts = [c for c in found if c.kernel[0] == 1 and c.stride == 2]
    assert len(shortcuts) == 4
    assert {c.stride for c in found} == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("depth", [41, 65, 71])
def test_features_at_stride_4_subsampled_are_those_at_8_16_and_32(depth: int) -> None:
    network = thin(depth)
    variables = louder(fill_variables(network, 1, 50, 37, 3, output_stride=16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)
    dense = apply(network, variables, x, 4)
    assert [stride for _, stride in dense.values()] == [2, 4, 4, 4, 4]
    for output_stride in (8, 16, 32):
        features = apply(network, variables, x, output_stride)
        assert list(features) == list(dense)
        for stage, (coarse, stride) in features.items():
            fine, fine_stride = dense[stage]
            step = stride // fine_stride
            scale = float(jnp.max(jnp.abs(coarse)))
            assert scale > 0.01
            np.testing.assert_allclose(fine[:, ::step, ::step], coarse, atol=1e-5 * scale, err_msg=f"{stage}, {stride}")


@pytest.mark.slow
def test_the_rate_of_the_stage_loses_that_property() -> None:
    network = thin(41, first_unit_rate="stage", middle_units=1)
    variables = louder(fill_variables(network, 1, 50, 37, 3, output_stride=16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)
    fine = apply(network, variables, x, 8)["conv4"][0][:, ::2, ::2]
    coarse = apply(network, variables, x, 16)["conv4"][0]
    assert float(jnp.max(jnp.abs(fine - coarse))) > 0.05 * float(jnp.max(jnp.abs(coarse)))


@pytest.mark.parametrize("depth", first_fast([71, 65, 41]))
@pytest.mark.parametrize("output_stride", [2, 8, 32])
def test_strides_and_channels_of_the_features(depth: int, output_stride: int) -> None:
    height, width = 97, 66
    strides: dict[str, int] = {}

    def init(x: jax.Array) -> Any:
        features, _ = xception(depth, middle_units=1).init_with_output(
            jax.random.key(0), x, output_stride=output_stride, train=False
        )
        strides.update({stage: stride for stage, (_, stride) in features.items()})
        return [array for array, _ in features.values()]

    arrays = jax.eval_shape(init, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
    nominal = {"stem": (2, 64), "conv2": (4, 256), "conv3": (8, 728), "conv4": (16, 728), "conv5": (32, 2048)}
    assert list(strides) == list(nominal)
    for array, (stage, stride) in zip(arrays, strides.items(), strict=True):
        assert stride == min(nominal[stage][0], output_stride)
        assert array.shape == (2, -(-height // stride), -(-width // stride), nominal[stage][1])


def test_an_output_stride_beyond_32_raises() -> None:
    with pytest.raises(ValueError, match="output_stride=64: this backbone offers 2, 4, 8, 16, 32"):
        variable_shapes(thin(41), 1, 65, 65, 3, output_stride=64)


def test_parameters_depend_neither_on_the_output_stride_nor_on_the_activations() -> None:
    network = xception(71, middle_units=1)
    trees = [variable_shapes(network, 1, 33, 33, 3, output_stride=stride) for stride in (2, 32)]
    trees.append(variable_shapes(network.clone(depthwise_activation=False), 1, 33, 33, 3, output_stride=16))
    assert all(tree == trees[0] for tree in trees)


def test_units_are_named_after_the_stride_at_which_they_end() -> None:
    short = ["stem_conv1", "stem_conv2", "conv2_unit1", "conv3_unit1"]
    exit_flow = ["conv5_unit1", "conv5_unit2"]
    names = variable_shapes(thin(41), 1, 33, 33, 3, output_stride=16)["params"]
    assert set(names) == {*short, *[f"conv4_unit{i}" for i in range(1, 10)], *exit_flow}
    assert set(names["conv3_unit1"]) == {"separable1", "separable2", "separable3", "shortcut"}
    assert set(names["conv4_unit2"]) == {"separable1", "separable2", "separable3"}
    assert set(names["conv5_unit2"]["separable1"]) == {"depthwise", "pointwise"}
    names = variable_shapes(thin(71), 1, 33, 33, 3, output_stride=16)["params"]
    assert set(names) == {
        *short, "conv2_unit2", "conv3_unit2", *[f"conv4_unit{i}" for i in range(1, 18)], *exit_flow
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("depth", [pytest.param(41, marks=pytest.mark.slow), 71])
@pytest.mark.parametrize(
    ("stage", "unit"), [pytest.param("conv2", "conv3_unit1", marks=pytest.mark.slow), ("conv3", "conv4_unit1")]
)
def test_the_decoder_attaches_before_the_relu_of_the_striding_convolution(depth: int, stage: str, unit: str) -> None:
    """An offset of the unit's second pointwise norm arrives unrectified; what comes after it does not arrive at all."""
    network = thin(depth, middle_units=1)
    variables = fill_variables(network, 1, 33, 33, 3, output_stride=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 33, 3)), jnp.float32)
    before = apply(network, variables, x, 16)[stage][0]
    params = variables["params"][unit]
    shifted = jax.tree.map(lambda leaf: leaf, variables)
    norm = shifted["params"][unit]["separable2"]["pointwise"]["norm"]["batch"]
    norm["bias"] = norm["bias"] - 100.0
    for later in ("separable3", "shortcut"):
        shifted["params"][unit][later] = jax.tree.map(lambda leaf: 3 * leaf, params[later])
    np.testing.assert_allclose(apply(network, shifted, x, 16)[stage][0], before - 100.0, atol=1e-4)


def toy_unit(shortcut: Any, *, pointwise: float, offset: float, depthwise_activation: bool) -> list[list[float]]:
    """Output and second separable convolution of a unit that maps every pixel on its own, for the pixels -1 and 5.

    Each depthwise convolution computes 2 - y, each pointwise one `pointwise` * y + `offset`.
    """
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    separable = {
        "depthwise": {"conv": {"kernel": -centre, "bias": jnp.asarray([2.0])}},
        "pointwise": {"conv": {"kernel": jnp.full((1, 1, 1, 1), pointwise), "bias": jnp.asarray([offset])}},
    }
    params = {f"separable{i}": separable for i in (1, 2, 3)}
    if shortcut == "projection":
        params["shortcut"] = {"conv": {"kernel": jnp.full((1, 1, 1, 1), 2.0), "bias": jnp.asarray([0.5])}}
    unit = Unit((1, 1, 1), shortcut, 1, (1, 1, 1), depthwise_activation, LayerSettings(norm="none"))
    x = jnp.asarray([-1, 5], jnp.float32).reshape(1, 1, 2, 1)
    return [y.ravel().tolist() for y in unit.apply({"params": params}, x, train=False)]


def test_activations_of_a_residual_unit_by_hand() -> None:
    """-1 becomes 0, then 2 - 0, then -2, at every separable convolution; the sum is not rectified. 5 becomes -3.

    With the paper's ReLU that is 0, then 2 -> -2, 2 -> -2. Without it, 3, then 2 - 3 = -1 -> 1, then 2 - 1 = 1 -> -1.
    """
    toy = {"pointwise": -1.0, "offset": 0.0}
    assert toy_unit("identity", **toy, depthwise_activation=True) == [[-1 - 2, 5 - 2], [-2, -2]]
    assert toy_unit("identity", **toy, depthwise_activation=False) == [[-1 - 2, 5 - 1], [-2, 1]]
    # The shortcut sees the input as it is: 2x + 0.5.
    assert toy_unit("projection", **toy, depthwise_activation=True)[0] == [-1.5 - 2, 10.5 - 2]


@pytest.mark.parametrize("depthwise_activation", [True, False])
def test_activations_of_the_last_unit_by_hand(depthwise_activation: bool) -> None:
    """No ReLU before, one after each convolution, in both forms.

    -1: 3, 2; 0, relu(-1) = 0; 2, 1. And 5: relu(-3) = 0, relu(-1) = 0; 2, 1; 1, 0.
    """
    toy = toy_unit("none", pointwise=1.0, offset=-1.0, depthwise_activation=depthwise_activation)
    assert toy == [[1, 0], [0, 1]]


def test_the_two_forms_and_the_relu_in_the_whole_network() -> None:
    """The last features are rectified, the sums before them are not."""
    network = thin(41, middle_units=1)
    variables = fill_variables(network, 1, 33, 33, 3, output_stride=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 33, 3)), jnp.float32)
    compiled = jax.jit(apply, static_argnums=(0, 3))
    paper = compiled(network, variables, x, 16)
    code = compiled(network.clone(depthwise_activation=False), variables, x, 16)
    np.testing.assert_array_equal(paper["stem"][0], code["stem"][0])
    for stage in ("conv2", "conv3", "conv4", "conv5"):
        assert float(jnp.max(jnp.abs(paper[stage][0] - code[stage][0]))) > 0.01
    for features in (paper, code):
        assert float(features["conv4"][0].min()) < 0
        assert float(features["conv5"][0].min()) == 0
