"""Atrous convolution: values by hand, and every lowering against XLA's own convolution, values and gradients."""

import re
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from deeplab_jax.ops import geometry, lowerings
from deeplab_jax.ops.atrous import conv2d, explicit_padding
from deeplab_jax.ops.geometry import Window
from deeplab_jax.ops.lowerings import choose_on_cpu
from deeplab_jax.ops.observe import Convolution, observe_convolutions
from deeplab_jax.ops.taps import matrix_transpose
from deeplab_jax.ops.transposed import conv_transpose2d
from tests.support.params import first_fast

LOWERINGS = ("auto", "direct", "taps", "space_to_batch")


def line(*values: float) -> jax.Array:
    """A map of height 1."""
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def line_kernel(*values: float) -> jax.Array:
    return jnp.asarray(values, jnp.float32).reshape(1, -1, 1, 1)


def operations(function: Any, *args: Any) -> set[str]:
    """Names of the operations that a function hands to XLA."""
    return set(re.findall(r"stablehlo\.(\w+)", jax.jit(function).lower(*args).as_text()))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 1 x[i - 2] + 2 x[i] + 3 x[i + 2] on 1, 2, 3, 4, 5
        ({"rate": 2}, [11, 16, 22, 10, 13]),
        ({"rate": 2, "stride": 2}, [11, 22, 13]),
        ({"rate": 2, "padding": "VALID"}, [22]),
        ({"rate": 2, "padding": ((0, 0), (1, 0))}, [16, 22]),
        ({"rate": 2, "padding": "SAME"}, [11, 16, 22, 10, 13]),
        ({"rate": 4}, [17, 4, 6, 8, 11]),
        ({"rate": 5}, [2, 4, 6, 8, 10]),
    ],
)
def test_by_hand(lowering: Any, jit: bool, options: dict[str, Any], expected: list[float]) -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, lowering=lowering, **options)

    convolve = jax.jit(convolve) if jit else convolve
    assert convolve(line(1, 2, 3, 4, 5), line_kernel(1, 2, 3)).ravel().tolist() == expected


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_depthwise_by_hand(lowering: Any) -> None:
    x = jnp.concatenate([line(1, 2, 3, 4, 5), line(1, 1, 1, 1, 1)], axis=-1)
    kernel = jnp.concatenate([line_kernel(1, 2, 3), line_kernel(10, 20, 30)], axis=-1)
    y = conv2d(x, kernel, rate=2, stride=2, feature_group_count=2, lowering=lowering)
    assert y[0, 0].T.tolist() == [[11, 22, 13], [50, 60, 30]]


def test_padding_none_is_centred_and_same_is_not() -> None:
    x, kernel = line(1, 2, 3, 4), line_kernel(1, 2, 3)
    assert conv2d(x, kernel, stride=2).ravel().tolist() == [8, 20]  # samples at 0 and 2
    assert conv2d(x, kernel, stride=2, padding="SAME").ravel().tolist() == [14, 11]  # TensorFlow's, at 1 and 3


def test_the_kernel_is_not_turned() -> None:
    """A single 1 in the map shows the kernel mirrored about that pixel, `rate` pixels apart."""
    kernel = jnp.arange(1.0, 10).reshape(3, 3, 1, 1)
    x = jnp.zeros((1, 7, 7, 1)).at[0, 3, 3, 0].set(1)
    y = conv2d(x, kernel, rate=2)[0, :, :, 0]
    np.testing.assert_array_equal(y[1::2, 1::2], [[9, 8, 7], [6, 5, 4], [3, 2, 1]])
    assert float(jnp.sum(y)) == 45


@pytest.mark.parametrize("lowering", ["taps", "direct"])
def test_rate_65_on_65x65_is_a_1x1_convolution(lowering: Any) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-4, 5, (1, 65, 65, 2)), jnp.float32)
    kernel = jnp.asarray(rng.integers(-4, 5, (3, 3, 2, 3)), jnp.float32)
    expected = jnp.einsum("nhwc,cd->nhwd", x, kernel[1, 1])
    np.testing.assert_array_equal(conv2d(x, kernel, rate=65, lowering=lowering), expected)


@pytest.mark.parametrize("rate", [1, 24, 36, 65])
def test_a_map_of_ones_counts_the_valid_weights(rate: int) -> None:
    y = conv2d(jnp.ones((1, 65, 65, 1)), jnp.ones((3, 3, 1, 1)), rate=rate, lowering="taps")
    counts = np.bincount(np.asarray(y, int).ravel(), minlength=10)[1:]
    np.testing.assert_array_equal(counts, geometry.valid_weight_counts(65, 3, rate))


# Small integers make every sum exact, so that equal means equal whatever the order of the terms.
CASES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "height": st.integers(1, 11),
        "width": st.integers(1, 11),
        "kernel": st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 5])),
        "rate": st.integers(1, 6),
        "stride": st.integers(1, 3),
        "padding": st.sampled_from([None, "SAME", "VALID", ((0, 3), (2, 1)), ((7, 7), (13, 13))]),
        # (channels, groups, channels out): dense, depthwise, depthwise with two outputs each, grouped
        "channels": st.sampled_from([(3, 1, 2), (3, 3, 3), (2, 2, 4), (4, 2, 2)]),
        "lowering": st.sampled_from(["taps", "taps", "space_to_batch", "auto"]),
        "seed": st.integers(0, 99),
    }
)


def reference_padding(case: dict[str, Any]) -> Any:
    if case["padding"] is None:
        return [(case["rate"] * (k - 1) // 2,) * 2 for k in case["kernel"]]
    return case["padding"]


def fits(case: dict[str, Any]) -> bool:
    """Whether the convolution has a symmetric padding where it needs one, and at least one output."""
    if case["padding"] is None and any(k % 2 == 0 for k in case["kernel"]):
        return False
    pads = explicit_padding(
        (case["height"], case["width"]),
        case["kernel"],
        rate=case["rate"],
        stride=case["stride"],
        padding=case["padding"],
    )
    sizes = zip((case["height"], case["width"]), case["kernel"], pads, strict=True)
    return all(size + sum(pad) >= (k - 1) * case["rate"] + 1 for size, k, pad in sizes)


def compare_with_xla(case: dict[str, Any], dtype: Any, draw: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (ours, XLA's in float32, sum of magnitudes) for the values and both gradients."""
    inputs, groups, outputs = case["channels"]
    x = draw((case["batch"], case["height"], case["width"], inputs))
    kernel = draw((*case["kernel"], inputs // groups, outputs))

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(
            x,
            kernel,
            rate=case["rate"],
            stride=case["stride"],
            padding=case["padding"],
            feature_group_count=groups,
            lowering=case["lowering"],
        )

    def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (case["stride"],) * 2,
            reference_padding(case),
            rhs_dilation=(case["rate"],) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def value_and_gradients(function: Any, *args: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        *operands, cotangent = args
        y, pull = jax.vjp(function, *operands)
        return y, *pull(cotangent.astype(y.dtype))

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        low = (x.astype(dtype), kernel.astype(dtype), cotangent.astype(dtype))
        high = [a.astype(jnp.float32) for a in low]
        magnitudes = [jnp.abs(a) for a in high]
        return (
            value_and_gradients(ours, *low),
            value_and_gradients(xla, *high),
            value_and_gradients(xla, *magnitudes),
        )

    shape = jax.eval_shape(xla, jnp.asarray(x), jnp.asarray(kernel)).shape
    found, expected, magnitude = both(x, kernel, draw(shape))
    assert {a.dtype for a in found} == {jnp.dtype(dtype)}
    return [tuple(np.asarray(a, np.float32) for a in row) for row in zip(found, expected, magnitude, strict=True)]


@settings(max_examples=20)
@given(CASES.filter(fits))
def test_every_lowering_equals_xla_exactly(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    for found, expected, _ in compare_with_xla(case, jnp.float32, lambda s: rng.integers(-3, 4, s).astype(np.float32)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@settings(max_examples=8)
@given(CASES.filter(fits))
def test_every_lowering_is_near_xla_in_bfloat16(case: dict[str, Any]) -> None:
    """Eight bits of mantissa: each of up to 15 additions of taps rounds by at most 2**-8 of what has been added up."""
    rng = np.random.default_rng(case["seed"])
    normal = compare_with_xla(case, jnp.bfloat16, lambda s: rng.normal(size=s).astype(np.float32))
    for found, expected, magnitude in normal:
        assert np.all(np.abs(found - expected) <= 16 * 2.0**-8 * magnitude + 1e-6)


@pytest.mark.parametrize("depthwise", [False, True])
def test_taps_in_bfloat16_round_once(depthwise: bool) -> None:
    """The sum is in float32, so the result is the nearest bfloat16 of the sum: half of 2**-7 at most."""
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        for shape in ((1, 17, 17, 8), (5, 5, 1 if depthwise else 8, 8))
    )
    groups = 8 if depthwise else 1
    found = conv2d(x, kernel, rate=2, feature_group_count=groups, lowering="taps")
    wide = [one.astype(jnp.float32) for one in (x, kernel)]
    exact = conv2d(*wide, rate=2, feature_group_count=groups, lowering="direct")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2.0**-8 + 1e-4, atol=1e-4)


@pytest.mark.parametrize("lowering", ["auto", "taps"])
@pytest.mark.parametrize("kernel", [(1, 1, 8, 4), (3, 3, 8, 4), (3, 3, 1, 8)])
def test_float64_is_summed_in_float64(kernel: Any, lowering: Any) -> None:
    """Values and both gradients are those of XLA up to the roundings of float64, 2**-52."""
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        x, w = (jnp.asarray(rng.normal(size=shape)) for shape in ((1, 9, 9, 8), kernel))

        def derivatives(lowering: Any) -> Any:
            def total(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
                y = conv2d(x, w, rate=2, feature_group_count=8 // kernel[2], lowering=lowering)
                return jnp.sum(y**2), y

            return jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, w)

        for found, expected in zip(*map(jax.tree.leaves, map(derivatives, (lowering, "direct"))), strict=True):
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, expected, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("depthwise", [False, True])
def test_subsampling_commutes_with_the_stride(size: int, depthwise: bool) -> None:
    """With padding=None, what atrous consistency rests on."""
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.integers(-3, 4, (1, size, size + 3, 2)), jnp.float32)
    kernel = jnp.asarray(rng.integers(-3, 4, (3, 3, 1 if depthwise else 2, 2)), jnp.float32)
    groups = 2 if depthwise else 1
    full = conv2d(x, kernel, rate=2, feature_group_count=groups)
    np.testing.assert_array_equal(conv2d(x, kernel, rate=2, stride=2, feature_group_count=groups), full[:, ::2, ::2])
    # The next layer then sees at rate 1 on the coarse map what it sees at rate 2 on the fine one.
    coarse = conv2d(full[:, ::2, ::2], kernel, feature_group_count=groups)
    fine = conv2d(full, kernel, rate=2, feature_group_count=groups)
    np.testing.assert_array_equal(coarse, fine[:, ::2, ::2])


@pytest.mark.parametrize("stride", [1, 2])
def test_the_depthwise_derivatives_equal_finite_differences(stride: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 5, 4, 2), (3, 3, 1, 2)))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, rate=2, stride=stride, feature_group_count=2, lowering="taps")

    check_grads(convolve, (x, kernel), order=1, modes=["fwd", "rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("rate", "largest"), [(4, 15 * 13), (6, 19 * 5), (7, 7 * 5), (36, 7 * 5)])
def test_depthwise_taps_pad_for_the_taps_that_meet_the_map_alone(rate: int, largest: int, stride: int) -> None:
    """On a map of 7x5 the outer columns meet it up to rate 4, the outer rows up to rate 6."""
    x, kernel = whole_numbers((1, 7, 5, 2), (3, 3, 1, 2))

    def derivatives(lowering: Any) -> Any:
        def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return conv2d(x, kernel, rate=rate, stride=stride, feature_group_count=2, lowering=lowering)

        return jax.jit(jax.grad(lambda *inputs: jnp.sum(convolve(*inputs) ** 2), argnums=(0, 1)))

    found, expected = (derivatives(lowering)(x, kernel) for lowering in ("taps", "direct"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    text = derivatives("taps").lower(x, kernel).as_text()
    assert max(int(h) * int(w) for h, w in re.findall(r"tensor<1x(\d+)x(\d+)x2xf32>", text)) == largest


DERIVED = [  # Kernel and options of a convolution over 4 channels: dense, 1x1, strided, depthwise.
    ((3, 3, 4, 3), {"rate": 2}),
    ((1, 1, 4, 3), {"stride": 2}),
    ((3, 3, 4, 3), {"rate": 2, "stride": 2}),
    ((3, 3, 1, 4), {"rate": 3, "feature_group_count": 4}),
]


def whole_numbers(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-3, 4, shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("lowering", ["auto", "taps"])
@pytest.mark.parametrize(("kernel", "options"), DERIVED)
def test_forward_mode_equals_that_of_xla_exactly(kernel: Any, options: dict[str, int], lowering: Any) -> None:
    """The first derivative (`jvp`), and the product of the second with a vector (`jvp` of `grad`)."""
    x, w, dx, dw = whole_numbers((2, 9, 7, 4), kernel, (2, 9, 7, 4), kernel)

    def derivatives(lowering: Any) -> Any:
        def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
            return conv2d(x, w, lowering=lowering, **options)

        def total(x: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.sum(convolve(x, w) ** 2)

        @jax.jit
        def both(*args: jax.Array) -> Any:
            inputs, tangents = args[:2], args[2:]
            return jax.jvp(convolve, inputs, tangents), jax.jvp(jax.grad(total, (0, 1)), inputs, tangents)

        return both(x, w, dx, dw)

    chex.assert_trees_all_equal(derivatives(lowering), derivatives("direct"))


def test_forward_mode_of_one_operand_costs_one_convolution_more() -> None:
    x, w, dx = whole_numbers((1, 9, 9, 4), (3, 3, 4, 3), (1, 9, 9, 4))
    derivative = jax.make_jaxpr(lambda x, dx: jax.jvp(lambda x: conv2d(x, w, rate=2), (x,), (dx,))[1])(x, dx)
    assert str(derivative).count("convolution_by_platform[") == 2


@pytest.mark.parametrize("lowering", ["auto", "taps"])
@pytest.mark.parametrize("axes", first_fast([((0, None),), ((2, 1),), ((None, 0),), ((0, 0),)], fast=2))
@pytest.mark.parametrize(("kernel", "options"), first_fast(DERIVED[2:]))
def test_vmap_is_a_loop(kernel: Any, options: dict[str, int], axes: Any, lowering: Any) -> None:
    """Over maps, over kernels, and both; values, and gradients within and around."""
    x, w = whole_numbers((3, 2, 9, 7, 4), (3, *kernel))

    def total(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(conv2d(x, w, lowering=lowering, **options) ** 2)

    each = jax.jit(jax.value_and_grad(total, (0, 1)))
    operands = [a if axis is not None else a[0] for a, axis in zip((x, w), axes, strict=True)]
    loop = [each(*(a[i] if axis is not None else a for a, axis in zip(operands, axes, strict=True))) for i in range(3)]
    values, gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    moved = [a if axis is None else jnp.moveaxis(a, 0, axis) for a, axis in zip(operands, axes, strict=True)]
    found = jax.jit(jax.vmap(each, axes))(*moved)
    chex.assert_trees_all_equal(found, (values, gradients))
    around = jax.jit(jax.grad(lambda *inputs: jnp.sum(jax.vmap(total, axes)(*inputs)), (0, 1)))(*moved)
    for got, right, axis in zip(around, gradients, axes, strict=True):
        np.testing.assert_array_equal(got, jnp.sum(right, 0) if axis is None else jnp.moveaxis(right, 0, axis))


@pytest.mark.parametrize("kernel", [(3, 3, 4, 3), (3, 3, 1, 4)])
def test_the_direct_form_works_under_shard_map(kernel: Any) -> None:
    """Each device convolves its images; the kernel's gradient is the sum over the devices."""
    x, w = whole_numbers((4, 9, 7, 4), kernel)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def total(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(conv2d(x, w, rate=2, feature_group_count=4 // kernel[2], lowering="direct") ** 2)

    @partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec())
    def split(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(total(x, w), "data")

    found, expected = (jax.jit(jax.value_and_grad(function, (0, 1)))(x, w) for function in (split, total))
    chex.assert_trees_all_equal(found, expected)


def test_without_jit_the_values_are_the_same() -> None:
    x, w = whole_numbers((1, 9, 9, 4), (3, 3, 1, 4))
    with jax.disable_jit():
        found = conv2d(x, w, rate=2, feature_group_count=4)
    np.testing.assert_array_equal(found, conv2d(x, w, rate=2, feature_group_count=4, lowering="direct"))


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "expected"),
    [
        ((1, 65, 65, 64), (1, 1, 64, 256), {}, "taps"),  # a matrix product
        ((1, 65, 65, 64), (1, 1, 64, 256), {"stride": 2}, "taps"),
        ((1, 65, 65, 256), (3, 3, 1, 256), {"groups": 256}, "taps"),
        ((1, 65, 65, 256), (3, 3, 256, 256), {}, "direct"),
        ((1, 17, 17, 512), (3, 3, 512, 512), {}, "taps"),  # (1 - 2 / 51)^2 = 92.3% of it on the map
        ((1, 9, 9, 256), (3, 3, 256, 256), {}, "direct"),  # 48 million multiply-adds
        ((4, 33, 33, 256), (3, 3, 256, 256), {}, "direct"),
        ((4, 33, 33, 256), (3, 3, 256, 256), {"rate": 2}, "taps"),  # 92.1%
        ((4, 65, 65, 256), (3, 3, 256, 256), {"rate": 3}, "direct"),  # 93.9%
        ((1, 513, 513, 3), (7, 7, 3, 64), {"stride": 2}, "direct"),  # thin products
        ((1, 65, 65, 256), (3, 3, 256, 256), {"dtype": jnp.bfloat16}, "direct"),
        ((1, 65, 65, 256), (3, 3, 256, 256), {"dtype": jnp.bfloat16, "amx": True}, "taps"),  # XLA's own is float32
        ((1, 65, 65, 256), (3, 3, 256, 256), {"amx": True}, "direct"),
        ((1, 65, 65, 64), (3, 3, 64, 64), {"dtype": jnp.bfloat16, "amx": True}, "direct"),
        ((1, 9, 9, 256), (3, 3, 256, 256), {"dtype": jnp.bfloat16, "amx": True}, "direct"),
        ((1, 65, 65, 256), (3, 3, 256, 256), {"dtype": jnp.float16}, "direct"),
    ],
)
def test_the_choice_on_a_cpu(
    shape: Any, kernel: Any, options: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowerings, "multiplies_bfloat16", lambda: options.get("amx", False))
    rate, groups = options.get("rate", 1), options.get("groups", 1)
    pads = explicit_padding(shape[1:3], kernel[:2], rate=rate, stride=options.get("stride", 1), padding=None)
    window = Window(rate, options.get("stride", 1), pads, groups)
    assert choose_on_cpu(shape, kernel, window, options.get("dtype", jnp.float32)) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_bfloat16_a_transposed_matrix_is_a_copy(dtype: str) -> None:
    """XLA's product of bfloat16 is slow where it contracts the rows of its left operand or the columns of its right."""
    left, right = jnp.arange(12, dtype=dtype).reshape(4, 3), jnp.arange(8, dtype=dtype).reshape(4, 2)

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.matmul(matrix_transpose(left), right, preferred_element_type=jnp.float32)

    program = jax.jit(product).lower(left, right).compile()
    np.testing.assert_array_equal(program(left, right), [[84, 102], [96, 118], [108, 134]])
    assert ("lhs_contracting_dims={1}" in (program.as_text() or "")) == (dtype == "bfloat16")


def test_stacked_matrices_are_transposed_alike() -> None:
    stacked = jnp.arange(30, dtype=jnp.bfloat16).reshape(5, 2, 3)
    np.testing.assert_array_equal(matrix_transpose(stacked), stacked.swapaxes(1, 2))


@pytest.mark.parametrize("lowering", ["auto", "taps", "direct"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depthwise", [True, False])
def test_a_kernel_that_does_not_fit_gives_an_empty_map(lowering: Any, stride: int, depthwise: bool) -> None:
    options = {"padding": "VALID", "rate": 3, "stride": stride, "lowering": lowering}
    groups = 2 if depthwise else 1
    x, kernel = jnp.ones((1, 5, 9, 2)), jnp.ones((3, 3, 2 // groups, 2))

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, feature_group_count=groups, **options).sum()

    assert conv2d(x, kernel, feature_group_count=groups, **options).shape == (1, 0, -(-3 // stride), 2)
    of_map, of_kernel = jax.grad(total, (0, 1))(x, kernel)
    assert not of_map.any() and not of_kernel.any()
    assert of_map.shape == x.shape and of_kernel.shape == kernel.shape


def test_lowerings_are_what_they_say() -> None:
    x = jax.ShapeDtypeStruct((1, 9, 9, 4), jnp.float32)
    dense = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
    depthwise = jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)

    def found(kernel: Any, **options: Any) -> set[str]:
        return operations(lambda x, k: conv2d(x, k, rate=2, **options), x, kernel)

    assert "convolution" in found(dense, lowering="direct")
    assert "convolution" not in found(dense, lowering="taps")
    assert "convolution" not in found(dense, lowering="taps", stride=2)
    assert {"transpose", "reshape", "convolution"} <= found(dense, lowering="space_to_batch")
    assert "transpose" not in found(dense, lowering="space_to_batch", stride=2)  # not covered, so it falls back
    assert "convolution" in found(depthwise, feature_group_count=4, lowering="direct")
    assert "convolution" not in found(depthwise, feature_group_count=4, lowering="taps", stride=2)


@pytest.mark.parametrize("gradient", [False, True])
def test_auto_is_chosen_by_the_platform_that_runs_it(gradient: bool) -> None:
    """One traced program: a CPU gets no depthwise convolution, a GPU gets nothing else."""

    def function(x: jax.Array, kernel: jax.Array) -> Any:
        return conv2d(x, kernel, feature_group_count=4)

    if gradient:
        function = jax.grad(lambda x, k: jnp.sum(conv2d(x, k, feature_group_count=4) ** 2), argnums=(0, 1))
    traced = jax.jit(function).trace(
        jax.ShapeDtypeStruct((1, 9, 9, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
    )
    here, there = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
    assert "stablehlo.convolution" not in here
    assert there.count("stablehlo.convolution") == (3 if gradient else 1)


def test_bad_arguments_raise() -> None:
    x, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 2))
    with pytest.raises(ValueError, match="lowering='fast': choose from auto, direct"):
        conv2d(x, kernel, lowering="fast")
    with pytest.raises(ValueError, match="even size 2"):
        conv2d(x, kernel[:2])
    for wrong in ({"rate": 0}, {"stride": 0}, {"stride": -1, "padding": "VALID"}):
        for lowering in LOWERINGS:
            with pytest.raises(ValueError, match="give at least 1"):
                conv2d(x, kernel, lowering=lowering, **wrong)
    with pytest.raises(ValueError, match="padding='same': give None, 'SAME', 'VALID' or"):
        conv2d(x, kernel, padding="same")
    with pytest.raises(AssertionError):
        conv2d(x[0], kernel)
    with pytest.raises(AssertionError):
        conv2d(x, kernel[:, :, :1])


def test_a_transposed_convolution_by_hand() -> None:
    """Samples 1, 10 and 100, two pixels apart: 1 2 3 + (10 20 30 shifted by 2) + (100 200 300 shifted by 4)."""
    y = conv_transpose2d(line(1, 10, 100), line_kernel(1, 2, 3), stride=2)
    assert y.ravel().tolist() == [1, 2, 13, 20, 130, 200, 300]
    assert conv_transpose2d(line(1, 10), line_kernel(1), stride=3).ravel().tolist() == [1, 0, 0, 10]


TRANSPOSED = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)),
        "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "channels": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.integers(1, 4),
        "seed": st.integers(0, 99),
    }
)


@settings(max_examples=15)
@given(TRANSPOSED)
def test_a_transposed_convolution_adds_kernels(case: dict[str, Any]) -> None:
    """Against loops, and against the gradient of the convolution that it transposes; exact in small integers."""
    rng = np.random.default_rng(case["seed"])
    (n, height, width), (kh, kw), (inputs, outputs), s = (case[k] for k in ("size", "kernel", "channels", "stride"))
    x = rng.integers(-3, 4, (n, height, width, inputs)).astype(np.float32)
    kernel = rng.integers(-3, 4, (kh, kw, inputs, outputs)).astype(np.float32)
    expected = np.zeros((n, (height - 1) * s + kh, (width - 1) * s + kw, outputs), np.float32)
    for row in range(height):
        for column in range(width):
            patch = np.einsum("nc,ijcd->nijd", x[:, row, column], kernel)
            expected[:, row * s : row * s + kh, column * s : column * s + kw] += patch

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        def convolve(y: jax.Array) -> jax.Array:
            return conv2d(y, jnp.swapaxes(kernel, 2, 3), stride=s, padding="VALID", lowering="direct")

        (gradient,) = jax.vjp(convolve, jnp.zeros(expected.shape))[1](x)
        return conv_transpose2d(x, kernel, stride=s), gradient

    found, gradient = both(x, kernel)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(
    ("how", "lowering"), [*(("abstract", lowering) for lowering in LOWERINGS), ("jitted", "taps"), ("computed", "taps")]
)
def test_an_observer_sees_every_convolution_once(how: str, lowering: Any) -> None:
    """Whatever a lowering makes of it, the call as it was made, in order."""

    def network(x: jax.Array) -> jax.Array:
        x = conv2d(x, jnp.ones((3, 3, 2, 4)), rate=2, lowering=lowering)
        x = conv2d(x, jnp.ones((3, 3, 1, 4)), stride=2, feature_group_count=4, lowering=lowering)
        x = conv2d(x, jnp.ones((2, 2, 4, 1)), padding=((0, 1), (2, 0)), lowering=lowering)
        return conv_transpose2d(x, jnp.ones((4, 4, 1, 3)), stride=2)

    x = jnp.ones((1, 9, 6, 2))
    seen: list[Convolution] = []
    with observe_convolutions(seen.append):
        if how == "computed":
            network(x)
        elif how == "abstract":
            jax.eval_shape(network, x)
        else:
            jax.jit(network)(x)
    assert seen == [
        Convolution((1, 9, 6, 2), (3, 3, 2, 4), (1, 9, 6, 4), 2, 1, ((2, 2), (2, 2)), 1),
        Convolution((1, 9, 6, 4), (3, 3, 1, 4), (1, 5, 3, 4), 1, 2, ((1, 1), (1, 1)), 4),
        Convolution((1, 5, 3, 4), (2, 2, 4, 1), (1, 5, 4, 1), 1, 1, ((0, 1), (2, 0)), 1),
        Convolution((1, 5, 4, 1), (4, 4, 1, 3), (1, 12, 10, 3), 1, 2, ((0, 0), (0, 0)), 1, transposed=True),
    ]
    # Nothing once the context is closed.
    jax.eval_shape(network, x)
    assert len(seen) == 4


def test_observers_nest_and_are_removed_after_an_error() -> None:
    x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1, 1, 1))
    outer: list[Convolution] = []
    inner: list[Convolution] = []
    with observe_convolutions(outer.append):
        with pytest.raises(RuntimeError), observe_convolutions(inner.append):
            conv2d(x, kernel)
            raise RuntimeError
        conv2d(x, kernel)
        conv2d(x, kernel)
    assert (len(outer), len(inner)) == (2, 1)


@pytest.mark.parametrize("lowering", ["auto", "direct", "taps", "space_to_batch"])
def test_a_map_and_a_kernel_of_different_dtypes_are_refused(lowering: Any) -> None:
    with pytest.raises(TypeError, match="the map is float32 and the kernel bfloat16"):
        conv2d(jnp.ones((1, 9, 9, 16)), jnp.ones((3, 3, 16, 4), jnp.bfloat16), rate=2, lowering=lowering)


def test_one_rate_for_each_side_is_refused() -> None:
    with pytest.raises(TypeError, match=r"rate=\(1, 2\), stride=1: give each as one integer"):
        conv2d(jnp.ones((1, 9, 9, 1)), jnp.ones((3, 3, 1, 1)), rate=(1, 2))  # type: ignore[arg-type]
