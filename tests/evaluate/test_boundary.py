"""Trimaps: distances and bands worked out by hand."""

import numpy as np
import pytest

from deeplab_jax.evaluate.boundary import FAR, Trimap, boundary_distance

TWO = np.array([[0, 0, 0, 1, 1]] * 3, np.uint8)


def by_search(label, around):
    """The definition: the nearest void pixel, or the nearest pixel of another label, in steps of a king."""
    rows, columns = np.indices(label.shape)
    found = np.full(label.shape, FAR, np.int32)
    for y, x in np.ndindex(*label.shape):
        steps = np.maximum(abs(rows - y), abs(columns - x))
        wanted = label == 255 if around == "void" else label != label[y, x]
        if wanted.any():
            found[y, x] = steps[wanted].min()
    return found


def test_both_sides_of_a_change_of_label_are_one_step_away() -> None:
    np.testing.assert_array_equal(boundary_distance(TWO), [[3, 2, 1, 1, 2]] * 3)


def test_void_is_at_distance_zero_and_diagonals_are_one_step() -> None:
    label = np.zeros((4, 5), np.uint8)
    label[1, 1] = 255
    expected = [[1, 1, 1, 2, 3], [1, 0, 1, 2, 3], [1, 1, 1, 2, 3], [2, 2, 2, 2, 3]]
    np.testing.assert_array_equal(boundary_distance(label, around="void"), expected)


def test_without_a_boundary_all_is_far() -> None:
    for around in ("void", "labels"):
        assert (boundary_distance(np.zeros((3, 4), np.uint8), around=around) == FAR).all()


@pytest.mark.parametrize("around", ["labels", "void"])
@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_the_definition(around, seed) -> None:
    rng = np.random.default_rng(seed)
    label = np.kron(rng.choice([0, 1, 2, 255], (3, 4)), np.ones((5, 5))).astype(np.uint8)
    np.testing.assert_array_equal(boundary_distance(label, around=around), by_search(label, around))


def test_bands_nest_and_leave_void_out() -> None:
    """Rows 0 0 0 1 1: the band of 1 holds columns 2 and 3, that of 2 columns 1 to 4."""
    label, predicted = TWO.copy(), TWO.copy()
    predicted[0, 2] = 1  # Wrong beside the boundary,
    predicted[:, 0] = 1  # and wrong where neither band reaches.
    label[2] = 255
    trimap = Trimap((2, 1), num_classes=2, around="labels")
    trimap.add(label[:2], predicted[:2])
    found = trimap.results()
    assert found["around"] == "labels"
    assert [(band["width"], band["pixels"]) for band in found["bands"]] == [(1, 4), (2, 8)]
    # Band 1: class 0 has 1 of 2 pixels right, class 1 gets one too many. Band 2: 3 of 4, and 4 of 5.
    assert found["bands"][0]["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["bands"][1]["miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    trimap.add(label, predicted)  # Its third row is void, but the second row now has a neighbour of another label.
    assert trimap.results()["bands"][0]["pixels"] == 4 + 2 + 5


def test_images_without_a_boundary_count_nowhere() -> None:
    trimap = Trimap((4,), num_classes=2, around="void")
    trimap.add(TWO, TWO)
    assert trimap.results() == {"around": "void", "bands": [{"width": 4, "miou": None, "pixels": 0}]}
