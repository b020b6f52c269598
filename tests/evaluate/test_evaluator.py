"""Evaluation: batches and padding change no result, and metrics.json keeps its contract."""

import dataclasses
import json

import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import inference
from deeplab_jax.evaluate.evaluator import WAITING, evaluate, grouped, part_of, summarize_confusion
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.files import save_json
from tests.support.tiny import MadeUp, tiny_model, tiny_models

SOURCE = MadeUp(((49, 65), (33, 47), (65, 50), (60, 60), (20, 25), (49, 65), (64, 33)))
BOX, EXACT = Protocol(pad_to=((65, 65),)), Protocol(mode="exact")


@pytest.fixture(scope="module")
def made():
    with tiny_models():
        return tiny_model()


def confusion_of(results):
    return np.array(results["confusion_matrix"])


def by_hand(source, predicted):
    """The confusion matrix of predictions by name."""
    confusion = np.zeros((source.classes, source.classes), np.int64)
    for index in range(len(source)):
        example = source[index]
        valid = example["label"] != 255
        np.add.at(confusion, (example["label"][valid], predicted[example["name"]][valid]), 1)
    return confusion


@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_the_batch_size_changes_nothing(made, batch_size) -> None:
    """Seven images: the last batch is never full."""
    one = evaluate(*made, SOURCE, BOX, split="val")
    many = evaluate(*made, SOURCE, BOX, split="val", batch_size=batch_size)
    assert one["confusion_matrix"] == many["confusion_matrix"]
    assert confusion_of(one).sum() == sum((SOURCE[i]["label"] != 255).sum() for i in range(len(SOURCE)))


def test_exact_is_the_model_on_each_image_alone(made) -> None:
    predicted = {}
    results = evaluate(
        *made,
        SOURCE,
        EXACT,
        split="val",
        on_prediction=lambda example, classes: predicted.update({example["name"]: np.asarray(classes)}),
    )
    for index in range(len(SOURCE)):
        example = SOURCE[index]
        assert predicted[example["name"]].shape == example["label"].shape
        np.testing.assert_array_equal(predicted[example["name"]], segment(*made, example["image"]))
    np.testing.assert_array_equal(confusion_of(results), by_hand(SOURCE, predicted))
    assert results["protocol"]["mode"] == "exact"
    # Images of one size share their program and their batch.
    assert results["protocol"]["sizes_run"] == [[33, 33], [33, 47], [49, 65], [60, 60], [64, 33], [65, 50]]


def test_exact_in_batches_is_exact(made) -> None:
    one, two = (evaluate(*made, SOURCE, EXACT, split="val", batch_size=size) for size in (1, 2))
    assert one["confusion_matrix"] == two["confusion_matrix"]


def test_few_images_wait_for_others_of_their_size() -> None:
    source = MadeUp(tuple((33 + side % 40, 33) for side in range(80)))
    read = []
    examples = (read.append(i) or source[i] for i in range(len(source)))
    done, names = 0, []
    for size, group in grouped(examples, 2, EXACT):
        assert {example["label"].shape for example in group} == {size} and 1 <= len(group) <= 2
        assert len(read) - done <= 2 * WAITING, "memory does not grow with the number of images"
        done += len(group)
        names += [example["name"] for example in group]
    assert sorted(names) == sorted(source.describe(i) for i in range(len(source)))


def test_padded_predictions_are_cut_back(made) -> None:
    predicted = {}
    results = evaluate(
        *made,
        SOURCE,
        BOX,
        split="val",
        batch_size=3,
        on_prediction=lambda example, classes: predicted.update({example["name"]: classes}),
    )
    assert {name: classes.shape for name, classes in predicted.items()} == {
        SOURCE.describe(i): size for i, size in enumerate(SOURCE.sizes)
    }
    np.testing.assert_array_equal(confusion_of(results), by_hand(SOURCE, predicted))


def test_padded_compiles_for_few_sizes(made) -> None:
    sizes = (*((34 + 3 * i, 120 - 5 * i) for i in range(14)), (200, 40))
    before = inference.jitted_classes_and_counts._cache_size()
    results = evaluate(*made, MadeUp(sizes), split="val", batch_size=2)
    assert results["protocol"]["sizes_run"] == [[129, 129], [257, 129]]
    assert inference.jitted_classes_and_counts._cache_size() - before == 2
    assert results["protocol"]["images"] == 15


def test_windows_and_views_run_in_batches(made) -> None:
    source = MadeUp(((60, 90), (50, 70), (60, 90)))
    protocol = Protocol(mode="exact", window=(40, 48), flip=True, scales=(0.75, 1.0))
    one = evaluate(*made, source, protocol)
    two = evaluate(*made, source, protocol, batch_size=2)
    assert one["confusion_matrix"] == two["confusion_matrix"]
    assert one["protocol"]["view"] == "sliding window" and one["protocol"]["window"] == [40, 48]


def test_metrics_keep_their_contract(made, tmp_path) -> None:
    seen = []
    protocol = deeplab_jax.Protocol(pad_to=((65, 65),), output_stride=8, flip=True)
    results = deeplab_jax.evaluate(*made, SOURCE, protocol, limit=3, progress=lambda *call: seen.append(call))
    file = save_json(tmp_path / "new" / "folder" / "metrics.json", results)
    read = json.loads(file.read_text())
    assert read == json.loads(json.dumps(results))
    assert set(read) == {
        *("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "per_class", "confusion_matrix"),
        "per_image",
        *("protocol", "model", "versions", "seconds"),
    }
    assert read["protocol"] == {
        "split": "val",
        "images": 3,
        "output_stride": 8,
        "scales": [1.0],
        "flip": True,
        "window": [],
        "overlap": None,
        "blend": None,
        "crf": None,
        "mode": "padded",
        "view": "whole image",
        "sizes_run": [[65, 65]],
        "label_resolution": "original",
        "ignore_label": 255,
        "data": "made up",
        "pad_to": [[65, 65]],
        "value_map": None,
    }
    assert read["model"]["name"] == "deeplabv3plus_tiny" and read["model"]["output_stride"] == 8
    assert {"jax", "flax", "python", "device"} <= set(read["versions"])
    assert [set(row) for row in read["per_class"]] == [
        {"name", "iou", "accuracy", "support", "precision", "recall", "dice"}
    ] * 4
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_numbers_follow_from_the_confusion_matrix() -> None:
    labels = MadeUp((), classes=3).labels
    results = summarize_confusion(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), labels)
    rows = results["per_class"]
    assert [row["iou"] for row in rows] == [pytest.approx(6 / 9), pytest.approx(3 / 6), None]
    assert [row["accuracy"] for row in rows] == [6 / 8, 3 / 4, None]
    assert [row["recall"] for row in rows] == [6 / 8, 3 / 4, None]
    assert [row["precision"] for row in rows] == [6 / 7, 3 / 5, None]
    # Twice the pixels that are right, over those labelled and those predicted: 8 + 7 of class 0, 4 + 5 of class 1.
    assert [row["dice"] for row in rows] == [12 / 15, 6 / 9, None]
    assert [row["support"] for row in rows] == [8, 4, 0]
    assert [row["name"] for row in rows] == ["class 0", "class 1", "class 2"]
    assert results["miou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert results["mean_accuracy"] == pytest.approx(0.75)
    assert results["frequency_weighted_iou"] == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)
    assert results["pixel_accuracy"] == pytest.approx(9 / 12)
    nothing = summarize_confusion(np.zeros((3, 3), int), labels)
    assert nothing["miou"] is nothing["pixel_accuracy"] is nothing["mean_accuracy"] is None
    json.dumps(nothing, allow_nan=False)


def test_the_output_stride_defaults_to_the_models_own(made) -> None:
    own, sixteen, eight = (
        evaluate(*made, SOURCE, dataclasses.replace(BOX, output_stride=stride), limit=1) for stride in (0, 16, 8)
    )
    assert own["protocol"]["output_stride"] == 16
    assert own["confusion_matrix"] == sixteen["confusion_matrix"] != eight["confusion_matrix"]


# What of an example is evaluated.


def example(height: int, width: int):
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return {"image": np.stack([label] * 3, -1), "label": label, "name": "a"}


def test_by_default_nothing_changes() -> None:
    given = example(3, 5)
    np.testing.assert_array_equal(part_of(given, Protocol())["label"], given["label"])


def test_the_centre_is_cut_from_image_and_label_alike() -> None:
    cut = part_of(example(4, 6), Protocol(crop=(2, 2)))
    np.testing.assert_array_equal(cut["label"], [[8, 9], [14, 15]])
    np.testing.assert_array_equal(cut["image"][..., 0], cut["label"])
    assert part_of(example(4, 6), Protocol(crop=(10, 2)))["label"].shape == (4, 2)


def test_the_shorter_side_is_resized_and_labels_are_not_mixed() -> None:
    resized = part_of(example(4, 6), Protocol(resize=2))
    # Every second pixel: the nearest to the centre of two is the right or lower one.
    np.testing.assert_array_equal(resized["label"], [[7, 9, 11], [19, 21, 23]])
    assert resized["image"].shape == (2, 3, 3)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit=0"),
        ({"batch_size": 0}, "config.evaluate.batch_size=0: give at least 1"),
        ({"batch_size": 2**16 + 1}, "at most 65536"),
        ({"devices": 1000}, "config.evaluate.devices=1000"),
        ({"protocol": Protocol(output_stride=7)}, "7"),
    ],
)
def test_options_that_make_no_sense_are_refused(made, options, message) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(*made, SOURCE, split="val", **options)


def test_other_classes_are_refused(made) -> None:
    with pytest.raises(UserError, match="the model has 4 classes, made up has 3; evaluate on the data it was"):
        evaluate(*made, dataclasses.replace(SOURCE, classes=3), split="val")


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(trimap=(2,))])
def test_labels_that_are_no_class_are_refused(made, protocol) -> None:
    class Foreign(MadeUp):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            example["label"][:2, :3] = 9
            return example

    with pytest.raises(UserError, match="label values 9 in 6 pixels are outside of classes 0 to 3"):
        evaluate(*made, Foreign(((40, 50),)), protocol, split="val")
