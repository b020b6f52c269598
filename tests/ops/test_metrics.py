"""Metrics: hand values, a second implementation in numpy, classes that do not occur, and counts that stay exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.ops import metrics

confusion_matrix = jax.jit(metrics.confusion_matrix, static_argnames="num_classes")
CONFUSION = np.asarray([[3, 1], [2, 4]])


def test_confusion_matrix_by_hand() -> None:
    labels = jnp.asarray([[0, 0, 1], [1, 255, 2]])
    predictions = jnp.asarray([[0, 2, 1], [0, 1, 2]])
    expected = [[1, 0, 1], [1, 1, 0], [0, 0, 1]]  # rows are labels
    assert metrics.confusion_matrix(labels, predictions, num_classes=3).tolist() == expected
    assert confusion_matrix(labels, predictions, num_classes=3).tolist() == expected


def test_ratios_by_hand() -> None:
    assert metrics.iou_per_class(CONFUSION).tolist() == pytest.approx([3 / 6, 4 / 7])
    assert metrics.accuracy_per_class(CONFUSION).tolist() == pytest.approx([3 / 4, 4 / 6])
    assert metrics.precision_per_class(CONFUSION).tolist() == pytest.approx([3 / 5, 4 / 5])
    assert metrics.dice_per_class(CONFUSION).tolist() == pytest.approx([6 / 9, 8 / 11])
    assert metrics.mean_iou(CONFUSION) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert metrics.mean_accuracy(CONFUSION) == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert metrics.pixel_accuracy(CONFUSION) == pytest.approx(7 / 10)


def test_a_class_in_neither_labels_nor_predictions_is_nan_and_left_out() -> None:
    confusion = np.zeros((4, 4), int)
    confusion[0, 0], confusion[0, 2] = 3, 1  # class 2 is predicted but never labelled; 1 and 3 do not occur
    np.testing.assert_array_equal(metrics.iou_per_class(confusion), [0.75, np.nan, 0, np.nan])
    np.testing.assert_array_equal(metrics.accuracy_per_class(confusion), [0.75, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(metrics.precision_per_class(confusion), [1, np.nan, 0, np.nan])
    np.testing.assert_array_equal(metrics.dice_per_class(confusion), [6 / 7, np.nan, 0, np.nan])
    assert metrics.mean_iou(confusion) == 0.375
    assert metrics.mean_accuracy(confusion) == 0.75


def test_without_a_labelled_pixel_everything_is_nan_and_nothing_warns() -> None:
    labels = jnp.full((2, 3), 255, jnp.uint8)
    confusion = np.asarray(confusion_matrix(labels, jnp.zeros_like(labels), num_classes=3))
    assert not confusion.any()
    assert np.isnan(metrics.iou_per_class(confusion)).all()
    for mean in (metrics.mean_iou, metrics.mean_accuracy, metrics.pixel_accuracy):
        assert np.isnan(mean(confusion))


@settings(max_examples=20)
@given(st.integers(1, 5), st.sampled_from([np.uint8, np.int32]), st.integers(0, 999))
def test_equals_a_second_implementation(num_classes: int, dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(num_classes), num_classes, 200, 255], (3, 4)).astype(dtype)
    predictions = rng.integers(0, num_classes, (3, 4)).astype(dtype)
    found = confusion_matrix(jnp.asarray(labels), jnp.asarray(predictions), num_classes=num_classes)
    assert found.dtype == jnp.int32
    expected = [
        [sum((labels == a) & (predictions == b), start=np.zeros(4, int)).sum() for b in range(num_classes)]
        for a in range(num_classes)
    ]
    np.testing.assert_array_equal(found, expected)

    known = labels < num_classes
    for c in range(num_classes):
        hit = np.sum(known & (labels == c) & (predictions == c))
        union = np.sum(known & ((labels == c) | (predictions == c)))
        of_class = np.sum(labels == c)
        np.testing.assert_equal(metrics.iou_per_class(found)[c], hit / union if union else np.nan)
        np.testing.assert_equal(metrics.accuracy_per_class(found)[c], hit / of_class if of_class else np.nan)
    if known.any():
        assert metrics.pixel_accuracy(found) == np.mean(labels[known] == predictions[known])


def test_negative_labels_are_not_counted() -> None:
    found = confusion_matrix(jnp.asarray([-1, -2, 1]), jnp.asarray([0, 1, 1]), num_classes=2)
    assert found.tolist() == [[0, 0], [0, 1]]


def test_all_of_255_classes_are_counted() -> None:
    ids = jnp.arange(256).astype(jnp.uint8)
    found = confusion_matrix(ids, ids, num_classes=255)
    np.testing.assert_array_equal(found, np.eye(255))


def test_counts_are_exact_where_float32_is_not() -> None:
    """float32 counters stop at 2**24."""
    pixels = 2**24 + 3
    labels = np.zeros(pixels, np.uint8)
    labels[-1] = 1
    found = confusion_matrix(labels, np.zeros(pixels, np.uint8), num_classes=2)
    assert found.tolist() == [[2**24 + 2, 0], [1, 0]]


def test_int32_counts_are_added_in_int64() -> None:
    confusion = np.full((2, 2), 2**31 - 1, np.int32)
    assert metrics.iou_per_class(confusion).tolist() == pytest.approx([1 / 3, 1 / 3])
    assert metrics.pixel_accuracy(confusion) == 0.5


def test_matrices_add_up_over_batches() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = (jnp.asarray(rng.integers(0, 3, (4, 5))) for _ in range(2))
    whole = confusion_matrix(labels, predictions, num_classes=3)
    parts = [confusion_matrix(labels[i], predictions[i], num_classes=3) for i in range(4)]
    np.testing.assert_array_equal(whole, sum(parts))


def test_threshold_counts_by_hand() -> None:
    """A probability equal to a threshold is not above it."""
    labels = jnp.asarray([[0, 1, 1, 255, 0]])
    probabilities = jnp.asarray([[0.25, 0.25, 0.5, 0.9, 0.75]])[..., None]
    counts = metrics.threshold_counts(labels, probabilities, thresholds=(0.25, 0.5))
    assert counts.tolist() == [[[1, 0, 1], [1, 1, 0]]]
    # Above 0.25: labels 1 (0.5) and 0 (0.75). Above 0.5: label 0 (0.75).
    assert metrics.confusion_at(counts).tolist() == [[[[1, 1], [1, 1]], [[1, 1], [2, 0]]]]


def test_confusion_at_thresholds_is_that_of_the_predictions() -> None:
    """Of several sigmoids, at several thresholds."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.choice([0, 1, 255], (2, 7, 5, 3)))
    probabilities = jnp.asarray(rng.integers(0, 21, labels.shape) / 20, jnp.float32)
    thresholds = tuple(step / 20 for step in range(1, 20))
    counts = jax.jit(metrics.threshold_counts, static_argnames="thresholds")(
        labels, probabilities, thresholds=thresholds
    )
    found = metrics.confusion_at(counts)
    assert found.shape == (3, 19, 2, 2)
    for k in range(3):
        for index, threshold in enumerate(thresholds):
            predicted = (probabilities[..., k] > threshold).astype(int)
            expected = confusion_matrix(labels[..., k], predicted, num_classes=2)
            np.testing.assert_array_equal(found[k, index], expected)
