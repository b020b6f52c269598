"""An exported file that differs from the model by more than the bound is not handed out."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.check_export import check, check_int8

IMAGES = [np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32)]
LARGEST = 8.0


def checked(error: float, *, precision: str = "float32") -> str:
    return check(
        lambda x: np.where(x == 0, x, x + np.float32(error)).astype(np.float32),
        lambda x: x + np.where(x == 0, 0, 0).astype(np.float32),
        [IMAGES[0], IMAGES[1] * LARGEST],
        precision=precision,
        runtime="it",
    )


def test_the_largest_difference_is_said_with_its_bound() -> None:
    assert checked(0) == (
        "compared in it, on batches of 2, 1 images: the logits differ by at most 0, which is 0% of the largest "
        "(bound 0.01%)"
    )
    assert "at most 0.08, which is 1% of the largest (bound 2.00%)" in checked(0.08, precision="float16")


@pytest.mark.parametrize("error", [0.01, -0.01, np.nan, np.inf])
def test_a_larger_difference_in_any_batch_fails(error: float) -> None:
    with pytest.raises(
        UserError, match=r"it: the logits differ by at most .*, more than 0.01% for float32; nothing is"
    ):
        checked(error)


def test_class_ids_are_counted() -> None:
    ids = np.arange(1000, dtype=np.uint8).reshape(1, 1000)
    one = ids.copy()
    one[0, 0] += 1
    two = one.copy()
    two[0, 1] += 1

    def against(found: np.ndarray) -> str:
        return check(lambda x: found, lambda x: ids, [ids], precision="float32", runtime="it")

    assert "0.100% of the pixels have another class (bound 0.10%)" in against(one)
    with pytest.raises(UserError, match="0.200% of the pixels have another class, more than 0.10%"):
        against(two)
    with pytest.raises(UserError, match="it returns int64 of shape"):
        against(ids.astype(np.int64))


SOFTMAX = SimpleNamespace(activation="softmax", multilabel=False)
ONE_LOGIT = SimpleNamespace(activation="sigmoid", multilabel=False)
LABELS = SimpleNamespace(activation="sigmoid", multilabel=True)


def on_classes(
    own: np.ndarray, found: np.ndarray, *, model: Any = SOFTMAX, threshold: float = 0.5, returns: Any = None, **how: Any
) -> str:
    how |= {"returns": np.dtype(returns or found.dtype), "model": model, "threshold": threshold}
    return check_int8(lambda x: found, lambda x: own, [own], **how, runtime="it")


def leading(*leads: float) -> np.ndarray:
    """Logits of two classes: class 1 leads by so much; the range is 100."""
    logits = np.zeros((1, len(leads) + 1, 2), np.float32)
    logits[0, :-1, 1], logits[0, -1, 1] = leads, 100
    return logits


def test_int8_may_change_classes_that_are_not_clear() -> None:
    own = leading(*[6.0] * 98, *[4.0] * 101)
    other = own.copy()
    other[0, 98:199, 0] = 9
    assert on_classes(own, other) == (
        "compared in it, on batches of 1 images: 49.50% of the pixels have the same class, and 100.00% of the 50% "
        "whose class leads by 5% of the range of the logits (bound 98%)"
    )
    # Of 100 clear ones, two are within the bound.
    own, other = leading(*[6.0] * 99), leading(*[6.0] * 99)
    other[0, :2, 0] = 9
    assert "98.00% of the 100%" in on_classes(own, other)
    other[0, 2, 0] = 9
    with pytest.raises(
        UserError, match=r"97.00% of the 100% .* logits, less than 98%; nothing is written; calibrate with images such"
    ):
        on_classes(own, other)


def test_logits_may_be_off_if_the_classes_are_not() -> None:
    own = leading(*[6.0] * 9)
    assert "100.00% of the 100%" in on_classes(own, 0.7 * own + 5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail_whatever_their_classes_are(value: float) -> None:
    own = -leading(*[6.0] * 9)
    broken = own.copy()
    broken[..., 0] = value
    with pytest.raises(UserError, match=r"it: 0\.00% of the pixels have the same class"):
        on_classes(own, broken)


def test_class_ids_of_int8_are_compared_where_our_logits_are_clear() -> None:
    own = leading(6, 4)
    assert "66.67% of the pixels have the same class, and 100.00%" in on_classes(own, np.array([[1, 0, 1]], np.uint8))
    with pytest.raises(UserError, match="less than 98%"):
        on_classes(own, np.array([[0, 0, 1]], np.uint8))
    with pytest.raises(UserError, match=r"it returns uint8 of shape \(3,\), the model uint8 of \(1, 3\)"):
        on_classes(own, np.array([1, 0, 1], np.uint8))


def test_of_sigmoids_the_distance_from_the_threshold_is_clear() -> None:
    """The logit of the probability 0.9 is 2.197."""
    own = np.array([[[10.0], [-10.0], [2.5], [1.9]]], np.float32)
    ids = np.array([[1, 0, 0, 1]], np.uint8)
    assert "50.00% of the pixels have the same class, and 100.00% of the 50%" in on_classes(
        own, ids, model=ONE_LOGIT, threshold=0.9
    )
    with pytest.raises(UserError, match="less than 98%"):  # At 0.5, both are clear.
        on_classes(own, ids, model=ONE_LOGIT)
    own, ids = own.reshape(1, 2, 2), ids.reshape(1, 2, 2)
    assert "50.00% of the pixels have the same class" in on_classes(own, ids, model=LABELS, threshold=0.9)


@pytest.mark.parametrize(
    ("found", "returns"),
    [(np.array([[1, 0, 1]]), np.uint8), (np.array([[True, False, True]]), np.uint8), (leading(6, 4), np.uint8)],
    ids=["int64", "bool", "logits"],
)
def test_an_int8_file_returns_what_was_asked_for(found: np.ndarray, returns: Any) -> None:
    with pytest.raises(UserError, match=r"it returns .*, the model uint8 of \(1, 3\); nothing is written"):
        on_classes(leading(6, 4), found, returns=returns)


def test_with_few_clear_pixels_there_is_nothing_to_compare() -> None:
    own = np.zeros((1, 4, 3), np.float32)
    own[..., 0] = -np.arange(4)
    with pytest.raises(UserError, match="0.00% of the 0% .* these pixels are fewer than 10%; nothing is written"):
        on_classes(own, own)
    one = leading(*[1.0] * 99)  # One pixel of a hundred leads by the whole range.
    with pytest.raises(UserError, match="100.00% of the 1% .* these pixels are fewer than 10%"):
        on_classes(one, one)
    assert "100.00% of the 1%" in on_classes(one, one, refuse=False)


def test_batches_are_compared_by_the_range_of_all() -> None:
    small, large = leading(6, 6)[:, :2], leading(*[60.0] * 3)
    how = {"returns": np.dtype(np.float32), "model": SOFTMAX, "threshold": 0.5, "runtime": "it"}
    found = check_int8(lambda x: x, lambda x: x, [small, large], **how)
    assert "100.00% of the pixels" in found and "100% whose class" in found
    assert "of the 67% whose class" in check_int8(lambda x: x, lambda x: x, [small, 2 * large], **how)
