"""Effective kernels, output sizes and valid weights: the papers' numbers, and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.ops import geometry

# DeepLabv3, Fig. 4: the shares of the positions of a 65x65 map at which a 3x3 kernel of that rate has 9, 6, 4, 3, 2
# and 1 valid weights. The paper plots them; the numbers follow from its definition.
FIGURE_4 = {
    1: (0.939408, 0.059645, 0.000947, 0, 0, 0),
    6: (0.664852, 0.301065, 0.034083, 0, 0, 0),
    12: (0.397870, 0.465799, 0.136331, 0, 0, 0),
    18: (0.199053, 0.494201, 0.306746, 0, 0, 0),
    24: (0.068402, 0.386272, 0.545325, 0, 0, 0),
    32: (0.000237, 0.030296, 0.969467, 0, 0, 0),
    33: (0, 0, 0.969467, 0, 0.030296, 0.000237),
    36: (0, 0, 0.796213, 0, 0.192189, 0.011598),
    48: (0, 0, 0.273609, 0, 0.498935, 0.227456),
    64: (0, 0, 0.000947, 0, 0.059645, 0.939408),
    65: (0, 0, 0, 0, 0, 1),
    100: (0, 0, 0, 0, 0, 1),
}


@pytest.mark.parametrize(
    ("kernel_size", "rate", "expected"),
    [(1, 7, 1), (3, 1, 3), (3, 2, 5), (3, 6, 13), (3, 12, 25), (3, 18, 37), (5, 2, 9), (7, 1, 7), (2, 4, 5)],
)
def test_effective_kernel_size(kernel_size: int, rate: int, expected: int) -> None:
    assert geometry.effective_kernel_size(kernel_size, rate) == expected


@pytest.mark.parametrize(("kernel_size", "rate"), [(0, 1), (3, 0), (3, -2)])
def test_effective_kernel_size_refuses_nonsense(kernel_size: int, rate: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        geometry.effective_kernel_size(kernel_size, rate)


@pytest.mark.parametrize(("kernel_size", "rate", "expected"), [(1, 9, 0), (3, 1, 1), (3, 6, 6), (5, 2, 4), (7, 1, 3)])
def test_same_padding(kernel_size: int, rate: int, expected: int) -> None:
    assert geometry.same_padding(kernel_size, rate) == expected
    assert geometry.conv_output_size(40, kernel_size, rate=rate) == 40


@pytest.mark.parametrize(
    ("side", "scale", "expected"),
    # 512 * 1.75 + 1 = 897; 499 * 1.25 + 1 = 624.75 and 359 * 0.75 + 1 = 270.25 lose their fraction.
    [(513, 0.5, 257), (513, 1.75, 897), (513, 1.0, 513), (500, 1.25, 624), (360, 0.75, 270), (1, 2.0, 1)],
)
def test_a_side_seen_at_a_scale(side: int, scale: float, expected: int) -> None:
    assert geometry.scaled_side(side, scale) == expected


def test_an_even_kernel_has_no_same_padding() -> None:
    with pytest.raises(ValueError, match="even size 4"):
        geometry.same_padding(4, 1)
    with pytest.raises(ValueError, match="even size 2"):
        geometry.conv_output_size(8, 2)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "rate", "expected"),
    [
        (513, 7, 2, None, 1, 257),
        (224, 7, 2, None, 1, 112),
        (65, 3, 1, None, 6, 65),
        (65, 3, 1, 0, 6, 53),
        (64, 3, 2, 1, 2, 31),
        (5, 3, 2, 0, 1, 2),
        (5, 3, 1, 0, 2, 1),
        (4, 3, 1, 0, 2, 0),  # the effective kernel of 5 does not fit
        (1, 3, 2, 0, 5, 0),
        (8, 2, 2, 0, 1, 4),
    ],
)
def test_conv_output_size(
    size: int, kernel_size: int, stride: int, padding: int | None, rate: int, expected: int
) -> None:
    assert geometry.conv_output_size(size, kernel_size, stride=stride, padding=padding, rate=rate) == expected


def test_the_crop_of_513_halves_to_whole_samples() -> None:
    sizes = [513]
    for _ in range(5):
        sizes.append(geometry.conv_output_size(sizes[-1], 3, stride=2))
    assert sizes == [513, 257, 129, 65, 33, 17]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 9), st.integers(1, 6))
def test_conv_output_size_counts_the_places_where_the_kernel_fits(
    size: int, kernel_size: int, stride: int, padding: int, rate: int
) -> None:
    last_tap = (kernel_size - 1) * rate
    places = [p for p in range(0, size + 2 * padding, stride) if p + last_tap < size + 2 * padding]
    found = geometry.conv_output_size(size, kernel_size, stride=stride, padding=padding, rate=rate)
    assert found == len(places)


def test_valid_tap_counts_by_hand() -> None:
    assert geometry.valid_tap_counts(5, 3, 2).tolist() == [2, 2, 3, 2, 2]
    assert geometry.valid_tap_counts(5, 3, 4).tolist() == [2, 1, 1, 1, 2]
    assert geometry.valid_tap_counts(4, 1, 3).tolist() == [1, 1, 1, 1]
    assert geometry.valid_tap_counts(4, 5, 1).tolist() == [3, 4, 4, 3]


@pytest.mark.parametrize("rate", FIGURE_4)
def test_figure_4(rate: int) -> None:
    counts = geometry.valid_weight_counts(65, 3, rate)
    assert counts.shape == (9,)
    assert np.issubdtype(counts.dtype, np.integer)
    assert counts.sum() == 65 * 65
    shares = counts[[8, 5, 3, 2, 1, 0]] / 65**2
    np.testing.assert_array_equal(np.round(shares, 6), FIGURE_4[rate])
    assert counts[[4, 6, 7]].sum() == 0  # no product of two per-axis counts of 1 to 3 is 5, 7 or 8


@pytest.mark.parametrize("rate", [65, 66, 130])
def test_from_the_size_of_the_map_on_only_the_centre_is_valid(rate: int) -> None:
    assert geometry.valid_weight_counts(65, 3, rate).tolist() == [4225, 0, 0, 0, 0, 0, 0, 0, 0]


@given(st.integers(1, 9), st.sampled_from([1, 3, 5]), st.integers(1, 10))
def test_valid_weight_counts_equal_brute_force(size: int, kernel_size: int, rate: int) -> None:
    reach = [rate * (tap - kernel_size // 2) for tap in range(kernel_size)]
    expected = np.zeros(kernel_size**2, int)
    for row in range(size):
        for column in range(size):
            valid = sum(0 <= row + dy < size and 0 <= column + dx < size for dy in reach for dx in reach)
            expected[valid - 1] += 1
    np.testing.assert_array_equal(geometry.valid_weight_counts(size, kernel_size, rate), expected)


def shares_on_map(size: tuple[int, int], kernel_size: tuple[int, int], rate: int) -> tuple[float, float]:
    """Those of a convolution of stride 1 that keeps the size."""
    rows, columns = (geometry.same_padding(taps, rate) for taps in kernel_size)
    window = geometry.Window(rate, 1, ((rows, rows), (columns, columns)), 1)
    return window.shares_on_map(size, kernel_size)


def test_shares_on_the_map_by_hand() -> None:
    # At rate 18 each outer tap lies on a map of 33 at 33 - 18 = 15 positions.
    assert shares_on_map((33, 33), (3, 3), 18) == pytest.approx(((33 + 15 + 15) / 99,) * 2)
    assert shares_on_map((33, 33), (1, 1), 18) == (1.0, 1.0)
    assert shares_on_map((4, 7), (3, 1), 4) == pytest.approx((1 / 3, 1.0))


@given(st.integers(1, 12), st.sampled_from([1, 3, 5]), st.integers(1, 13))
def test_the_product_of_the_shares_is_the_mean_of_the_counts(size: int, kernel_size: int, rate: int) -> None:
    counts = geometry.valid_weight_counts(size, kernel_size, rate)
    mean = np.dot(counts, np.arange(1, kernel_size**2 + 1)) / (size * size * kernel_size**2)
    rows, columns = shares_on_map((size, size), (kernel_size, kernel_size), rate)
    assert rows * columns == pytest.approx(mean)


def test_valid_weights_are_of_a_kernel_with_a_centre() -> None:
    with pytest.raises(ValueError, match="even size 2 has no symmetric padding"):
        geometry.valid_weight_counts(5, 2, 1)
