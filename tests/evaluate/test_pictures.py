"""Pictures: colours by hand, sizes, and what marks the ignored pixels."""

import numpy as np
import pytest

from deeplab_jax.evaluate import pictures
from deeplab_jax.labels import LabelSet, colormap

PALETTE = ((0, 0, 0), (200, 100, 50), (10, 20, 250))
NAMES = ("ground", "road", "a class with quite a long name")


@pytest.mark.parametrize(
    ("size", "panel"),
    [((2048, 1024), (1024, 512)), ((16, 8), (256, 128)), ((2, 200), (10, 1000)), ((10, 5000), (2, 1024))],
)
def test_strips_are_neither_large_nor_tiny(size, panel) -> None:
    """Three panels of at most 1024 pixels a side, enlarged up to 256 rows."""
    collector = pictures.StripCollector(LabelSet(("a", "b"), colormap(2)), total=1, count=1)
    label = np.ones(size, np.uint8)
    collector({"image": np.zeros((*size, 3), np.uint8), "label": label, "name": "x"}, label)
    (strip,) = collector.strips
    assert strip.shape[1] == 3 * panel[1] + 2 * 4 and strip.shape[0] >= panel[0]
    title_and_legend = strip.shape[0] - panel[0]
    assert 0 < title_and_legend < 100


@pytest.mark.parametrize(
    ("total", "drawn"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3]), (8, [0, 2, 4, 6])]
)
def test_as_many_strips_as_there_can_be_are_spread_evenly(total: int, drawn: list[int]) -> None:
    collector = pictures.StripCollector(LabelSet(("a", "b"), colormap(2)), total=total, count=4)
    label = np.ones((8, 8), np.uint8)
    for index in range(total):
        collector({"image": np.zeros((8, 8, 3), np.uint8), "label": label, "name": str(index)}, label)
    assert [int(example["name"]) for example, _ in collector.drawn] == drawn


def test_colour_labels_by_hand() -> None:
    painted = pictures.colour_labels(np.array([[0, 1], [2, 1]]), PALETTE)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[0, 0, 0], [200, 100, 50]], [[10, 20, 250], [200, 100, 50]]]


def test_ignored_pixels_are_dark_with_diagonals() -> None:
    painted = pictures.colour_labels(np.full((16, 16), 255, np.uint8), PALETTE)
    assert (painted[0, 0] > painted[0, 1]).all()
    np.testing.assert_array_equal(painted[0, 0], painted[3, 5])
    assert painted.max() < 128


@pytest.mark.parametrize("bad", [3, -1, 254])
def test_ids_outside_of_the_palette_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="palette"):
        pictures.colour_labels(np.array([[0, bad]]), PALETTE)


def test_boundaries_by_hand() -> None:
    ids = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    assert pictures.boundaries(ids).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_overlay_mixes_and_leaves_its_arguments_alone() -> None:
    image = np.full((6, 6, 3), 100, np.uint8)
    ids = np.ones((6, 6), np.uint8)
    ids[:, 4:] = 255
    mixed = pictures.overlay(image, ids, PALETTE)
    assert mixed[0, 0].tolist() == [150, 100, 75]
    assert (mixed[:, 3] > mixed[:, 2]).all(), "the line between classes is light"
    assert (mixed[:, 4:] < 100).all(), "ignored pixels are darkened"
    assert (image == 100).all()
    with pytest.raises(ValueError, match="size"):
        pictures.overlay(image, ids[:5], PALETTE)


@pytest.mark.parametrize("size", [(33, 40), (129, 129), (300, 500)])
def test_prediction_strip(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    truth = rng.integers(0, 3, size).astype(np.uint8)
    truth[:5] = 255
    prediction = np.ones(size, np.int32)
    strip = pictures.prediction_strip(image, truth, prediction, PALETTE, names=NAMES)
    assert strip.dtype == np.uint8 and strip.shape[1] == 3 * size[1] + 8
    below = strip.shape[0] - size[0]
    top = next(top for top in range(below) if (strip[top : top + size[0], : size[1]] == image).all())
    np.testing.assert_array_equal(
        strip[top : top + size[0], size[1] + 4 : 2 * size[1] + 4], pictures.colour_labels(truth, PALETTE)
    )
    assert (strip[top : top + size[0], 2 * size[1] + 8 :] == PALETTE[1]).all()
    assert pictures.stack_strips([strip, strip[:, :9]]).shape == (2 * strip.shape[0] + 12, *strip.shape[1:])


def test_legend_breaks_lines() -> None:
    wide = pictures.legend([0, 1, 2, 255], PALETTE, NAMES, width=1000)
    narrow = pictures.legend([0, 1, 2, 255], PALETTE, NAMES, width=120)
    assert wide.shape[1] == 1000 and narrow.shape[1] == 120
    assert narrow.shape[0] >= 3 * wide.shape[0]
    assert (wide == np.array(PALETTE[1])).all(axis=-1).any()
    assert not (wide == np.array((48, 48, 48))).all()


@pytest.mark.parametrize("name", ["Straße", "Дорога", "δρόμος", "طريق"])
def test_a_legend_has_the_letters_of_a_name(name) -> None:
    """DejaVu Sans comes with matplotlib, so these scripts are drawn on any machine."""
    font = pictures._font(360)
    found = pictures.font_for(name, font)
    assert found is not None and pictures._has_letters(found, name)
    drawn = pictures.legend([0], colormap(1), [name], width=300)
    boxes = pictures.legend([0], colormap(1), ["\U0010ffff" * len(name)], width=300)
    assert drawn.shape != boxes.shape or (drawn != boxes).any()


def test_letters_of_no_font_become_the_number_of_the_class(monkeypatch) -> None:
    monkeypatch.setattr(pictures, "_FONTS", ())
    assert pictures.font_for("道路", pictures._font(360)) is None
    drawn = pictures.legend([1], colormap(2), ["a", "道路"], width=400)
    np.testing.assert_array_equal(
        drawn, pictures.legend([1], colormap(2), ["a", "class 1 (no font for its name)"], width=400)
    )
