"""MobileNetV3-Large: torchvision's counts and rates, the squeeze-and-excitation, and what it does to consistency."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, SqueezeExcitation
from deeplab_jax.models.backbones.mobilenet_v3 import MobileNetV3Large
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.models.segmenter import abstract_variables
from tests.support.traces import calls_of, fill_variables, louder, parameter_count, variable_shapes

DIRECT = LayerSettings(norm_epsilon=1e-3, lowering="direct")


def thin(**options: Any) -> MobileNetV3Large:
    return MobileNetV3Large(**{"width": 0.25, "settings": DIRECT, **options})


def apply(network: nn.Module, variables: Any, x: jax.Array, output_stride: int) -> Any:
    return network.apply(variables, x, output_stride=output_stride, train=False)


def test_parameter_count_of_the_published_network() -> None:
    """torchvision's 5,483,032 without its classifier: 960 to 1280 to 1000, with biases."""
    classifier = (960 * 1280 + 1280) + (1280 * 1000 + 1000)
    count = parameter_count(variable_shapes(MobileNetV3Large(), 1, 33, 33, 3, output_stride=32)["params"])
    assert count == 5_483_032 - classifier == 2_971_952


def test_parameter_count_of_torchvisions_deeplabv3() -> None:
    """One more 3x3 convolution after the ASPP, and the auxiliary head on conv3."""
    model = create_model("deeplabv3_mobilenet_v3_large", head_convs=((3, 256),), aux_head=True)
    params = abstract_variables(model)["params"]
    assert parameter_count(params) == 11_029_328
    assert parameter_count(params["aux_head"]) == (40 * 10 * 9 + 2 * 10) + (10 * 21 + 21)


def test_multiply_adds_at_224() -> None:
    """The paper's 219 million (Table 3), of which the classifier has 960 * 1280 + 1280 * 1000."""
    found = calls_of(MobileNetV3Large(), 32, size=224)
    total = sum(math.prod(c.outputs[1:3]) * math.prod(c.kernel) for c in found) + 960 * 1280 + 1280 * 1000
    assert total / 1e6 == pytest.approx(219, rel=0.02)


KERNELS = [3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5]


@pytest.mark.parametrize(
    ("output_stride", "first_unit_rate", "rates", "strides"),
    [
        (32, "stage", [1] * 15, [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]),
        # What torchvision calls dilated.
        (16, "stage", [*[1] * 12, 2, 2, 2], [1, 2, 1, 2, 1, 1, 2, *[1] * 8]),
        (16, "previous", [*[1] * 12, 1, 2, 2], [1, 2, 1, 2, 1, 1, 2, *[1] * 8]),
        (8, "stage", [*[1] * 6, 2, 2, 2, 2, 2, 2, 4, 4, 4], [1, 2, 1, 2, *[1] * 11]),
        (8, "previous", [*[1] * 6, 1, 2, 2, 2, 2, 2, 2, 4, 4], [1, 2, 1, 2, *[1] * 11]),
        (4, "stage", [1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8], [1, 2, *[1] * 13]),
    ],
)
def test_kernels_rates_and_strides(
    output_stride: int, first_unit_rate: Any, rates: list[int], strides: list[int]
) -> None:
    found = calls_of(thin(first_unit_rate=first_unit_rate), output_stride)
    assert (found[0].kernel[:2], found[0].stride) == ((3, 3), 2)
    depthwise = [c for c in found if c.groups > 1]
    assert [c.kernel[0] for c in depthwise] == KERNELS
    assert [c.rate for c in depthwise] == rates
    assert [c.stride for c in depthwise] == strides
    assert all(c.padding == (((c.kernel[0] - 1) * c.rate // 2,) * 2,) * 2 for c in depthwise)


@pytest.mark.parametrize("output_stride", [2, 4, 8, 16, 32])
def test_strides_and_channels_of_the_features(output_stride: int) -> None:
    height, width = 97, 66
    strides: dict[str, int] = {}

    def init(x: jax.Array) -> Any:
        features, _ = MobileNetV3Large().init_with_output(
            jax.random.key(0), x, output_stride=output_stride, train=False
        )
        strides.update({stage: stride for stage, (_, stride) in features.items()})
        return [array for array, _ in features.values()]

    arrays = jax.eval_shape(init, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
    nominal = {"stem": (2, 16), "conv2": (4, 24), "conv3": (8, 40), "conv4": (16, 80), "conv5": (32, 960)}
    assert list(strides) == list(nominal)
    for array, (stage, stride) in zip(arrays, strides.items(), strict=True):
        assert stride == min(nominal[stage][0], output_stride)
        assert array.shape == (2, -(-height // stride), -(-width // stride), nominal[stage][1])


def test_parameters_do_not_depend_on_the_output_stride_and_units_are_named_after_stages() -> None:
    trees = [variable_shapes(thin(), 1, 33, 33, 3, output_stride=stride) for stride in (4, 32)]
    assert trees[0] == trees[1]
    units = {"conv2": 2, "conv3": 2, "conv4": 3, "conv5": 8}
    names = {f"{stage}_unit{i + 1}" for stage, count in units.items() for i in range(count)}
    assert set(trees[0]["params"]) == {"stem", *names, "conv5_last"}


def test_squeeze_and_excitation_by_hand() -> None:
    """Averages (2, -1) of a 1x2 map; 8 reduced channels, of which one is 2 + 1 and the others are negative; then the
    hard sigmoids of 3 - 2 and -3 - 1.
    """
    reduce_kernel = jnp.zeros((1, 1, 2, 8)).at[0, 0, :, 0].set(jnp.asarray([1.0, -1.0]))
    expand_kernel = jnp.ones((1, 1, 8, 2)).at[0, 0, 0].set(jnp.asarray([1.0, -1.0]))
    params = {
        "reduce": {"kernel": reduce_kernel, "bias": jnp.full(8, -5.0).at[0].set(0.0)},
        "expand": {"kernel": expand_kernel, "bias": jnp.asarray([-2.0, -1.0])},
    }
    x = jnp.asarray([[1, -3], [3, 1]], jnp.float32).reshape(1, 1, 2, 2)
    gated = SqueezeExcitation().apply({"params": params}, x)
    # (3 - 2 + 3) / 6 = 2/3, and (-3 - 1 + 3) / 6 < 0, so 0.
    np.testing.assert_allclose(gated.ravel(), [2 / 3, 0, 2, 0], rtol=1e-6)


@pytest.mark.parametrize(("channels", "reduced"), [(72, 24), (120, 32), (480, 120), (672, 168), (960, 240)])
def test_the_gate_has_a_quarter_of_the_channels_in_multiples_of_8(channels: int, reduced: int) -> None:
    """18 rounds down to 16, which loses more than a tenth, so 24; 30 rounds up to 32."""
    x = jax.ShapeDtypeStruct((1, 3, 3, channels), jnp.float32)
    tree = jax.eval_shape(lambda x: SqueezeExcitation().init(jax.random.key(0), x), x)["params"]
    assert tree["reduce"]["kernel"].shape == (1, 1, channels, reduced)
    assert tree["expand"]["bias"].shape == (channels,)


def test_a_unit_by_hand() -> None:
    """No expansion, a centred depthwise kernel and hard swish (3 -> 3, 1 -> 2/3, -4 -> 0), times 6, plus the input."""
    unit = InvertedResidual(
        kernel_size=3,
        expanded=1,
        channels=1,
        activation="hard_swish",
        stride=1,
        residual=True,
        settings=LayerSettings(norm="none"),
    )
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = {
        "depthwise": {"conv": {"kernel": centre, "bias": jnp.zeros(1)}},
        "project": {"conv": {"kernel": jnp.full((1, 1, 1, 1), 6.0), "bias": jnp.zeros(1)}},
    }
    x = jnp.asarray([3, 1, -4], jnp.float32).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(unit.apply({"params": params}, x, train=False)[0].ravel(), [21, 5, -4], rtol=1e-6)


def relative_differences(network: nn.Module, variables: Any) -> dict[str, float]:
    """Between each stage's features at output stride 4, subsampled, and at 16."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)
    dense, sparse = (apply(network, variables, x, output_stride) for output_stride in (4, 16))
    differences = {}
    for stage, (coarse, stride) in sparse.items():
        fine, fine_stride = dense[stage]
        step = stride // fine_stride
        differences[stage] = float(jnp.max(jnp.abs(fine[:, ::step, ::step] - coarse)) / jnp.max(jnp.abs(coarse)))
    return differences


def with_constant_gates(variables: Any) -> Any:
    """The same variables with gates that no average moves."""

    def still(path: Any, leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if jax.tree_util.keystr(path).endswith("['squeeze']['expand']['kernel']") else leaf

    return jax.tree_util.tree_map_with_path(still, variables)


@pytest.mark.slow
def test_features_at_stride_4_subsampled_are_those_at_16_but_for_the_averages() -> None:
    """Exactly where the gates are constant and the rates are the previous ones; the averages move it; torchvision's
    rates move it even without them.
    """
    previous, stage = thin(first_unit_rate="previous"), thin(first_unit_rate="stage")
    variables = louder(fill_variables(previous, 1, 50, 37, 3, output_stride=16))
    constant = with_constant_gates(variables)
    assert max(relative_differences(previous, constant).values()) < 1e-5
    moved = relative_differences(previous, variables)
    assert moved["conv2"] < 1e-5  # before the first gate
    assert moved["conv5"] > 0.05
    assert relative_differences(stage, constant)["conv5"] > 0.05
