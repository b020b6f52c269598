"""Boundary IoU and boundary F-score: by hand, against the papers' definitions written down again, and invariances."""

import json
import math

import cv2
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import contours
from deeplab_jax.evaluate.contours import Contours, contour, f_scores, inner_areas, inner_distance
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.labels import LabelSet, colormap
from tests.support.tiny import MadeUp, tiny_model, tiny_models

TWO = LabelSet(("left", "right"), colormap(2))


def halves(border, *, height=10, width=20):
    """Class 0 left of a border, class 1 right of it."""
    return np.repeat((np.arange(width) >= border)[None], height, axis=0).astype(np.uint8)


def blobs(seed, side=40, classes=3):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((side, side, classes)), (0, 0), 4)
    return noise.argmax(-1).astype(np.uint8)


def test_inner_distance_by_hand() -> None:
    """The image's edge is outside, too."""
    expected = [[1, 1, 1, 1, 1, 1], [1, 2, 2, 1, 1, 1], [1, 2, 2, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert inner_distance(halves(4, height=4, width=6)).tolist() == expected


def test_boundary_iou_by_hand() -> None:
    """At 10x20 pixels d is 1 (2% of 22.4 are 0.4). The border is shifted by one column, from 10 to 11.

    Class 0: rings of 10x10 and 10x11 pixels, 36 and 38, share the left column and the rows of columns 0 to 9, 28.
    """
    both, theirs, ours = inner_areas(halves(10), halves(11), 2)
    assert (both[0], theirs[0], ours[0]) == (28, 36, 38)
    assert (both[1], theirs[1], ours[1]) == (26, 36, 34)
    counted = Contours(2)
    counted.add(halves(10), halves(11))
    found = counted.results(TWO)
    assert [row["iou"] for row in found["per_class"]] == [pytest.approx(28 / 46), pytest.approx(26 / 44)]
    assert found["iou"] == pytest.approx((28 / 46 + 26 / 44) / 2)


@pytest.mark.parametrize("side", [20, 40, 150])
def test_boundary_iou_is_the_papers_definition(side) -> None:
    """A mask less its erosion by a 3x3 square, d times, in an image with a border of zeros."""

    def boundary(mask):
        steps = max(1, round(0.02 * math.sqrt(2 * side**2)))
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)
        return (padded - eroded)[1:-1, 1:-1].astype(bool)

    label, predicted = blobs(0, side), blobs(1, side)
    expected = []
    for k in range(3):
        theirs, ours = boundary(label == k), boundary(predicted == k)
        expected.append([(theirs & ours).sum(), theirs.sum(), ours.sum()])
    assert inner_areas(label, predicted, 3).T.tolist() == expected


def test_contours_by_hand() -> None:
    """The contour runs along the last column of the left class, for both classes."""
    expected = np.zeros((10, 20), bool)
    expected[:, 6] = True
    for k in (0, 1):
        np.testing.assert_array_equal(contour(halves(7), k), expected)
    assert not contour(halves(7), 5).any()
    void = halves(7)
    void[:, 7:] = 255
    assert not contour(void, 0).any()


@pytest.mark.parametrize(("shift", "score"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_a_contour_that_is_near_is_right(shift, score) -> None:
    """At 120x240 pixels the tolerance is 3, 0.75% of 268.3 rounded up; at half the size it is 2."""
    label, predicted = (halves(border, height=60, width=120) for border in (50, 50 + shift))
    assert list(f_scores(label, predicted, 2)) == [score, score]
    label, predicted = (halves(border, height=120, width=240) for border in (50, 50 + shift))
    assert list(f_scores(label, predicted, 2)) == [1.0, 1.0]


def test_f_scores_by_hand() -> None:
    """All of the true contour is found; the prediction has a second one of the same length far away."""
    label, predicted = halves(5, width=40), halves(5, width=40)
    predicted[:, 20:] = 0
    scores = list(f_scores(label, predicted, 3))
    assert scores == [pytest.approx(2 * 0.5 * 1 / 1.5)] * 2 + [None]
    assert list(f_scores(label, np.zeros_like(label), 2)) == [0.0, 0.0]  # Only one of them has a contour.
    assert list(f_scores(np.ones_like(label), np.ones_like(label), 2)) == [None, None]


@pytest.mark.parametrize("side", [40, 120])
def test_f_scores_are_those_of_davis_with_its_tolerance(side, monkeypatch) -> None:
    """Its evaluation dilates contours by a disk of 0.8% of the diagonal, rounded up."""
    monkeypatch.setattr(contours, "TOLERANCE", 0.008)

    def contour_of(mask):
        east, south, south_east = (np.zeros_like(mask) for _ in range(3))
        east[:, :-1], south[:-1], south_east[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
        found = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
        found[-1], found[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
        found[-1, -1] = False
        return found

    radius = math.ceil(0.008 * math.hypot(side, side))
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(np.uint8)
    label, predicted = blobs(0, side), blobs(1, side)
    for k, score in enumerate(f_scores(label, predicted, 3)):
        theirs, ours = contour_of(label == k), contour_of(predicted == k)
        wide_theirs, wide_ours = (cv2.dilate(one.astype(np.uint8), disk).astype(bool) for one in (theirs, ours))
        precision, recall = (ours & wide_theirs).sum() / ours.sum(), (theirs & wide_ours).sum() / theirs.sum()
        assert score == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)


def test_a_right_prediction_has_1_whatever_stands_where_there_is_no_label() -> None:
    label = blobs(0)
    label[10:20, 5:30] = 255
    counted = Contours(3)
    counted.add(label, np.where(label == 255, blobs(5), label).astype(np.int32))
    found = counted.results(LabelSet(("a", "b", "c"), colormap(3)))
    assert (found["iou"], found["f1"], found["images"]) == (1.0, 1.0, 1)


def test_several_images_and_processes(monkeypatch) -> None:
    """Inner boundaries are summed; F-scores are a mean over images, in which one without contours does not count."""
    whole, first, second = (Contours(2) for _ in range(3))
    for number, (border, found) in enumerate([(10, 10), (10, 3), (20, 20), (5, 6)]):
        whole.add(halves(border), halves(found))
        (first, second)[number % 2].add(halves(border), halves(found))
    results = whole.results(TWO)
    assert results["f1"] == pytest.approx((1 + 0 + 1) / 3) and results["images"] == 3
    other, scores = second._inner, second._scores
    monkeypatch.setattr(contours, "summed", lambda counts: counts + other)
    monkeypatch.setattr(contours, "gathered", lambda items: json.loads(json.dumps([*scores, *items])))
    assert first.results(TWO) == results


def test_an_evaluation_has_them_on_request() -> None:
    source = MadeUp(((33, 47), (33, 33)))
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        several, more = tiny_model("cascade_tiny", activation="sigmoid")
    protocol = Protocol(pad_to=((65, 65),), boundary=True)
    found = evaluate(model, variables, source, protocol)["boundary"]
    assert 0 < found["iou"] < 1 and 0 < found["f1"] < 1 and found["images"] == 2 and len(found["per_class"]) == 4
    sigmoids = MadeUp(((33, 47),))
    monkeyed = LabelSet(sigmoids.labels.names, sigmoids.labels.palette, multilabel=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MadeUp, "labels", monkeyed)
        with pytest.raises(UserError, match="config.evaluate.boundary=True: a pixel can have several labels here"):
            evaluate(several, more, sigmoids, protocol)
