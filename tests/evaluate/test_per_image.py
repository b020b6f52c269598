"""Single images: their mean IoU, the worst of them, and the bootstrap, worked out by hand or by a plain loop."""

import json

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import per_image
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.per_image import PerImage, areas, intervals
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.labels import LabelSet, colormap
from deeplab_jax.ops import metrics
from deeplab_jax.weights.folder import save
from tests.support.tiny import MadeUp, tiny_model, tiny_models

LABELS = LabelSet(("sky", "road", "tree"), colormap(3))


def image_of(seed):
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, 255], (4, 6), p=[0.4, 0.4, 0.1, 0.1]).astype(np.uint8)
    return label, np.where(rng.random((4, 6)) < 0.3, rng.integers(0, 3, (4, 6)), label % 3)


def confusion_of(label, predicted):
    confusion = np.zeros((3, 3), np.int64)
    np.add.at(confusion, (label[label != 255], predicted[label != 255]), 1)
    return confusion


def test_areas_by_hand() -> None:
    label = np.array([[0, 0, 1, 255], [1, 1, 2, 2]], np.uint8)
    predicted = np.array([[0, 1, 1, 2], [1, 0, 2, 0]])
    assert areas(label, predicted, 3).tolist() == [[1, 2, 1], [2, 3, 2], [3, 3, 1]]


def test_areas_of_several_labels_by_hand() -> None:
    """Label 0 is there in two of three known pixels, of which one is found; label 1 is found where it is not."""
    label = np.array([[[1, 0], [1, 255], [0, 0], [255, 1]]], np.uint8)
    predicted = np.array([[[1, 1], [0, 1], [0, 0], [1, 1]]])
    assert areas(label, predicted, 2).tolist() == [[1, 1], [2, 1], [1, 2]]


def test_the_mean_of_images_and_the_worst_by_hand() -> None:
    counted = PerImage(3)
    half = np.array([[0, 0, 1, 1]], np.uint8)
    counted.add("all", half, half)
    counted.add("none", half, 1 - half)
    counted.add("some", half, np.array([[0, 0, 0, 0]]))  # IoU 1 / 2 and 0.
    counted.add("void", np.full((1, 4), 255, np.uint8), half)
    found = counted.results(LABELS)["per_image"]
    assert found["miou"] == pytest.approx((1 + 0 + 0.25) / 3) and found["images"] == 3
    assert found["worst"] == [{"name": n, "miou": v} for n, v in (("none", 0.0), ("some", 0.25), ("all", 1.0))]


def test_an_image_has_the_mean_iou_of_its_confusion_matrix() -> None:
    for seed in range(4):
        counted = PerImage(3)
        counted.add("one", *image_of(seed))
        label, predicted = image_of(seed)
        assert counted.results(LABELS)["per_image"]["miou"] == metrics.mean_iou(confusion_of(label, predicted))


def test_every_image_by_hand() -> None:
    counted = PerImage(3, every=True)
    counted.add("b", np.array([[0, 0, 1, 255], [1, 1, 2, 2]], np.uint8), np.array([[0, 1, 1, 2], [1, 0, 2, 0]]))
    counted.add("a", np.array([[255, 1]], np.uint8), np.array([[0, 2]]))
    found = counted.results(LABELS)["per_image"]["every"]
    assert found == [
        {"name": "a", "right": [0, 0, 0], "labelled": [0, 1, 0], "predicted": [0, 0, 1]},
        {"name": "b", "right": [1, 2, 1], "labelled": [2, 3, 2], "predicted": [3, 3, 1]},
    ]
    assert "every" not in PerImage(3).results(LABELS)["per_image"]


def test_only_a_few_of_the_worst_are_named() -> None:
    counted = PerImage(3)
    for seed in range(9):
        counted.add(f"image {seed}", *image_of(seed))
    worst = counted.results(LABELS)["per_image"]["worst"]
    assert len(worst) == per_image.WORST
    assert [row["miou"] for row in worst] == sorted(row["miou"] for row in worst)


def test_without_an_image_there_is_nothing() -> None:
    found = PerImage(3, bootstrap=10).results(LABELS)
    assert found["per_image"] == {"miou": None, "images": 0, "worst": []}
    assert [row["iou"] for row in found["bootstrap"]["per_class"]] == [[None, None]] * 3
    json.dumps(found, allow_nan=False)


# Bootstrap.


def test_the_bootstrap_is_that_of_whole_confusion_matrices(monkeypatch) -> None:
    """A plain loop: each resample sums the matrices of the images it drew; percentiles of the metrics."""
    monkeypatch.setattr(per_image, "AT_ONCE", 7)
    images = [image_of(seed) for seed in range(6)]
    counted = PerImage(3, bootstrap=20)
    for seed, image in enumerate(images):
        counted.add(f"image {seed}", *image)
    found = counted.results(LABELS)["bootstrap"]
    rng = np.random.default_rng(per_image.SEED)
    drawn = np.concatenate([rng.multinomial(6, np.full(6, 1 / 6), size=size) for size in (7, 7, 6)])
    matrices = np.array([confusion_of(*image) for image in images])
    of_images = np.array([metrics.mean_iou(matrix) for matrix in matrices])
    by_hand = {
        name: [function(np.tensordot(times, matrices, 1)) for times in drawn]
        for name, function in (
            ("miou", metrics.mean_iou),
            ("mean_accuracy", metrics.mean_accuracy),
            ("pixel_accuracy", metrics.pixel_accuracy),
            ("frequency_weighted_iou", metrics.frequency_weighted_iou),
        )
    }
    by_hand["image_miou"] = [(times * of_images).sum() / 6 for times in drawn]
    assert set(found) == {*by_hand, "samples", "level", "seed", "per_class"}
    for name, values in by_hand.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist(), rel=1e-12), name
    roads = [metrics.iou_per_class(np.tensordot(times, matrices, 1))[1] for times in drawn]
    assert found["per_class"][1] == {
        "name": "road",
        "iou": pytest.approx(np.percentile(roads, [2.5, 97.5]).tolist(), rel=1e-12),
    }


def test_images_that_are_alike_leave_no_doubt() -> None:
    counts = np.repeat(areas(*image_of(3), 3)[None], 5, axis=0)
    found = intervals(counts, np.full(5, 0.5), LABELS, samples=30)
    assert found["image_miou"] == [0.5, 0.5] and found["miou"][0] == found["miou"][1]


def test_the_interval_shrinks_with_the_root_of_the_number_of_images() -> None:
    """Of the mean of images; the standard error of N images is that of one over the root of N."""
    rng = np.random.default_rng(0)
    widths = []
    for images in (100, 400):
        mious = rng.random(images)
        low, high = intervals(np.ones((images, 3, 3), np.int64), mious, LABELS, samples=2000)["image_miou"]
        widths.append(high - low)
        assert low < mious.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * mious.std() / images**0.5, rel=0.1)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)


def test_several_processes_have_the_numbers_of_one(monkeypatch) -> None:
    """The other process's images come in another order, as JSON."""
    whole, first, second = (PerImage(3, bootstrap=50) for _ in range(3))
    for seed in range(8):
        whole.add(f"image {seed}", *image_of(seed))
        (first, second)[seed % 2].add(f"image {seed}", *image_of(seed))
    expected = whole.results(LABELS)
    kept = [(name, counts.tolist()) for name, counts in second._rows]
    monkeypatch.setattr(per_image, "gathered", lambda items: json.loads(json.dumps([*kept, *items])))
    assert first.results(LABELS) == expected


def test_an_evaluation_has_both() -> None:
    source = MadeUp(((33, 47), (33, 33), (20, 25)))
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
    results = evaluate(model, variables, source, Protocol(pad_to=((65, 65),), bootstrap=40), batch_size=2)
    assert {row["name"] for row in results["per_image"]["worst"]} == {"made.up.0", "made.up.1", "made.up.2"}
    low, high = results["bootstrap"]["miou"]
    assert low <= results["miou"] <= high
    assert "bootstrap" not in evaluate(model, variables, source, Protocol(pad_to=((65, 65),)), limit=1)


def test_the_command_has_every_metric_on_request(tmp_path, capsys) -> None:
    """From the command line to metrics.json; keys of the configuration do the same."""
    (tmp_path / "tiny.py").write_text(
        "from tests.support.tiny import tiny_config\ndef get_config(arg=None):\n    return tiny_config()\n"
    )
    with tiny_models():
        save(tmp_path / "model", *tiny_model("cascade_tiny", num_classes=9), {})
        words = ["evaluate", "--model", str(tmp_path / "model"), "--config", str(tmp_path / "tiny.py")]
        flags = ["--bootstrap", "30", "--boundary", "--calibration"]
        assert main([*words, "--out", str(tmp_path / "flags"), *flags]) == 0
        said = capsys.readouterr().out
        keys = ["bootstrap=30", "boundary=True", "calibration=True"]
        assert main([*words, "--out", str(tmp_path / "keys"), *(f"--config.evaluate.{key}" for key in keys)]) == 0
    found, same = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("flags", "keys"))
    for name in ("per_image", "bootstrap", "boundary", "calibration"):
        assert found[name] == same[name], name
    low, high = found["bootstrap"]["miou"]
    assert f"95% of 30 resamples of the images: mean IoU {100 * low:.2f} to {100 * high:.2f}" in said
    assert (tmp_path / "flags" / "calibration.png").is_file()


def test_a_number_of_resamples_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match=r"^bootstrap=-1: give a number of resamples such as 1000"):
        Protocol(bootstrap=-1)
