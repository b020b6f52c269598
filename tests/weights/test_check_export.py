"""An exported file that differs from the model by more than the bound is not handed out."""

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.check_export import check

IMAGES = [np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32)]
LARGEST = 8.0


def checked(error: float, *, precision: str = "float32", bound: float | None = None) -> str:
    return check(
        lambda x: np.where(x == 0, x, x + np.float32(error)).astype(np.float32),
        lambda x: x + np.where(x == 0, 0, 0).astype(np.float32),
        [IMAGES[0], IMAGES[1] * LARGEST],
        precision=precision,
        runtime="it",
        bound=bound,
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


def test_another_bound_takes_the_place_of_the_usual_one() -> None:
    assert checked(4.0, precision="int8", bound=1e9).endswith("which is 50% of the largest")
    with pytest.raises(UserError, match=r"more than 20.00% for int8"):
        checked(4.0, precision="int8", bound=0.2)


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
