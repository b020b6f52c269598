"""Evaluation: what `metrics.json` holds, and what must not change it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate, summarize_confusion, write_results
from deeplab_jax.evaluate.inference import segment
from tests.tiny import MadeUp, tiny_model, tiny_models

SOURCE = MadeUp(((33, 47), (50, 50), (65, 40), (33, 47), (20, 25)))
PAD = {"pad_to": ((65, 65),)}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with tiny_models():
        yield tiny_model()


@pytest.fixture(scope="module")
def results(model: Any) -> Any:
    return evaluate(*model, SOURCE, split="val", **PAD)


def test_metrics_file_holds_the_contract(results: Any, tmp_path: Path) -> None:
    content = json.loads(write_results(results, tmp_path / "new" / "folder").read_text())
    keys = {"miou", "pixel_accuracy", "mean_accuracy", "per_class", "confusion_matrix", "protocol", "model", "versions"}
    assert keys | {"seconds"} <= content.keys()
    assert content["protocol"]["split"] == "val"
    assert content["protocol"]["images"] == 5
    assert content["protocol"]["output_stride"] == 16
    assert content["protocol"]["scales"] == [1.0]
    assert content["protocol"]["flip"] is False
    assert content["protocol"]["mode"] == "padded"
    assert content["protocol"]["sizes_run"] == [[65, 65]]
    assert content["model"]["name"] == "deeplabv3plus_tiny"
    assert {"jax", "flax", "device"} <= content["versions"].keys()
    assert {"name", "iou", "accuracy", "support"} == content["per_class"][0].keys()


def test_every_labelled_pixel_counts_once(results: Any) -> None:
    labels = [SOURCE[i]["label"] for i in range(len(SOURCE))]
    support = [sum(int(np.sum(label == k)) for label in labels) for k in range(4)]
    assert np.sum(results["confusion_matrix"], axis=1).tolist() == support
    assert [row["support"] for row in results["per_class"]] == support


def test_summary_by_hand() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    summary = summarize_confusion(confusion, MadeUp(((33, 33),), classes=3).labels)
    assert [row["iou"] for row in summary["per_class"]] == [3 / 4, 4 / 5, None]
    assert [row["accuracy"] for row in summary["per_class"]] == [3 / 4, 1.0, None]
    assert summary["miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert summary["pixel_accuracy"] == 7 / 8
    assert summary["mean_accuracy"] == pytest.approx((3 / 4 + 1) / 2)


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_batches_never_change_a_result(model: Any, results: Any, batch_size: int) -> None:
    other = evaluate(*model, SOURCE, split="val", batch_size=batch_size, **PAD)
    assert other["confusion_matrix"] == results["confusion_matrix"]


def test_exact_mode_is_the_model_on_each_image_alone(model: Any) -> None:
    results = evaluate(*model, SOURCE, split="val", mode="exact", batch_size=2)
    expected = np.zeros((4, 4), int)
    for index in range(len(SOURCE)):
        label, classes = SOURCE[index]["label"], segment(*model, SOURCE[index]["image"])
        np.add.at(expected, (label[label < 4], classes[label < 4]), 1)
    assert results["confusion_matrix"] == expected.tolist()
    assert results["protocol"]["sizes_run"] == [[33, 33], [33, 47], [50, 50], [65, 40]]


def test_predictions_are_handed_over_at_the_size_of_the_labels(model: Any) -> None:
    seen: dict[str, Any] = {}
    evaluate(
        *model,
        SOURCE,
        split="val",
        batch_size=2,
        on_prediction=lambda e, c: seen.__setitem__(e["name"], c.shape),
        **PAD,
    )
    assert seen == {SOURCE[i]["name"]: SOURCE[i]["label"].shape for i in range(len(SOURCE))}


def test_output_stride_and_views_are_free_and_recorded(model: Any, results: Any) -> None:
    other = evaluate(*model, SOURCE, split="val", output_stride=8, scales=(0.75, 1.0), flip=True, limit=2, **PAD)
    assert other["protocol"]["output_stride"] == 8
    assert other["protocol"]["scales"] == [0.75, 1.0]
    assert other["protocol"]["flip"] is True
    assert other["protocol"]["images"] == 2
    assert other["model"]["output_stride"] == 8


def test_a_window_is_recorded(model: Any) -> None:
    results = evaluate(*model, SOURCE, split="val", window=(33, 33), limit=1, **PAD)
    assert results["protocol"]["view"] == "sliding window"
    assert results["protocol"]["window"] == [33, 33]


def test_what_does_not_fit_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="4 classes, made up has 6"):
        evaluate(*model, MadeUp(((33, 33),), classes=6), split="val")
    with pytest.raises(UserError, match="did you mean padded"):
        evaluate(*model, SOURCE, split="val", mode="paded")
    with pytest.raises(UserError, match="positive"):
        evaluate(*model, SOURCE, split="val", scales=(0.0,))


def test_results_that_cannot_be_written_are_a_user_error(results: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        write_results(results, tmp_path / "file")
