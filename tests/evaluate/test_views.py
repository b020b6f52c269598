"""What of an example is evaluated."""

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.views import check_seen, seen
from tests.support.tiny import MadeUp, tiny_model, tiny_models


def example(height: int, width: int):
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return {"image": np.stack([label] * 3, -1), "label": label, "name": "a"}


def test_by_default_nothing_changes() -> None:
    given = example(3, 5)
    np.testing.assert_array_equal(seen(given)["label"], given["label"])


def test_the_centre_is_cut_from_image_and_label_alike() -> None:
    cut = seen(example(4, 6), crop=(2, 2))
    np.testing.assert_array_equal(cut["label"], [[8, 9], [14, 15]])
    np.testing.assert_array_equal(cut["image"][..., 0], cut["label"])
    assert seen(example(4, 6), crop=(10, 2))["label"].shape == (4, 2)


def test_the_shorter_side_is_resized_and_labels_are_not_mixed() -> None:
    resized = seen(example(4, 6), resize=2)
    # Every second pixel: the nearest to the centre of two is the right or lower one.
    np.testing.assert_array_equal(resized["label"], [[7, 9, 11], [19, 21, 23]])
    assert resized["image"].shape == (2, 3, 3)


def test_the_protocol_says_what_was_seen() -> None:
    source = MadeUp(((49, 65), (60, 60)))
    with tiny_models():
        results = evaluate(*tiny_model(), source, split="val", resize=40, crop=(40, 40), trimap=(1, 3))
    assert results["protocol"]["view"] == "centre crop 40x40"
    assert results["protocol"]["label_resolution"] == "shorter side 40"
    assert sum(map(sum, results["confusion_matrix"])) <= 2 * 40 * 40
    one, three = results["trimap"]["bands"]
    assert (one["width"], three["width"]) == (1, 3) and one["pixels"] <= three["pixels"]
    # Labels of single random pixels: all of them are beside another label.
    assert three["miou"] == pytest.approx(results["miou"])


@pytest.mark.parametrize(("resize", "crop", "key"), [(-1, (), "resize=-1"), (0, (3,), "crop"), (0, (0, 3), "crop")])
def test_sizes_that_make_no_sense_are_refused(resize, crop, key) -> None:
    with pytest.raises(UserError, match=f"config.evaluate.{key}"):
        check_seen(resize, crop)
