"""Networks with sigmoids: one logit predicts and evaluates as the softmax of it and zero, and the thresholds are swept
in the one pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import read_mask, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.image_list import find_images
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.outputs import Outputs, label_set
from deeplab_jax.evaluate.page import PAGE, Page, measures
from deeplab_jax.evaluate.predictor import predict_files
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.evaluate.results import summarize_sigmoids
from deeplab_jax.labels import LabelSet, colormap
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.crf import DenseCRF
from deeplab_jax.terminal import class_table
from tests.support.tiny import MadeUp, make_variables, tiny_models

SOURCE = MadeUp(((49, 65), (33, 47), (49, 65)), classes=2)
IMAGE = SOURCE[0]["image"]
BOX = Protocol(pad_to=((65, 65),))


@pytest.fixture(scope="module")
def networks():
    """A network with one logit, and the one with the logits (0, z) for the same z."""
    with tiny_models():
        one, two = (create_model("cascade_tiny", num_classes=count) for count in (1, 2))
    variables = make_variables(one)
    layer = variables["params"]["classifier"]
    pair = {key: jnp.concatenate([0 * value, value], axis=-1) for key, value in layer.items()}
    return (one, variables), (two, {**variables, "params": {**variables["params"], "classifier": pair}})


@pytest.fixture(scope="module")
def several():
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=3, activation="sigmoid")
    return model, make_variables(model)


VIEWS = [{}, {"scales": (0.75, 1.0), "flip": True}, {"window": (33, 41)}, {"crf": DenseCRF(iterations=2)}]


@pytest.mark.parametrize("options", VIEWS)
def test_one_logit_predicts_as_a_softmax_of_it_and_zero(networks, options) -> None:
    (classes, probabilities), (expected, pair) = (
        segment(*made, IMAGE, return_probabilities=True, **options) for made in networks
    )
    assert probabilities.shape == (49, 65, 1) and classes.dtype == np.int32
    assert 100 < classes.sum() < classes.size - 100  # Both occur.
    np.testing.assert_allclose(probabilities[..., 0], pair[..., 1], atol=1e-5)
    # A probability of one half to the last digit may fall either way.
    assert np.mean(classes != expected) < 1e-3
    np.testing.assert_array_equal(classes, segment(*networks[0], IMAGE, **options))


def test_the_threshold_decides(networks) -> None:
    one, two = networks
    classes, probabilities = segment(*one, IMAGE, threshold=0.75, return_probabilities=True)
    np.testing.assert_array_equal(classes, probabilities[..., 0] > np.float32(0.75))
    assert classes.sum() < segment(*one, IMAGE).sum()
    with pytest.raises(UserError, match=r"threshold=0.75: the model has a softmax"):
        segment(*two, IMAGE, threshold=0.75)
    with pytest.raises(UserError, match=r"threshold=1.0: give a probability above 0 and below 1"):
        segment(*one, IMAGE, threshold=1.0)


@pytest.mark.parametrize("options", [{}, {"window": (33, 41)}])
def test_one_logit_evaluates_as_a_softmax_of_it_and_zero(networks, options) -> None:
    protocol = Protocol(pad_to=((65, 65),), trimap=(2,), **options)
    found, expected = (evaluate(*made, SOURCE, protocol, batch_size=2) for made in networks)
    total = sum((SOURCE[i]["label"] != 255).sum() for i in range(len(SOURCE)))
    confusion = np.asarray(found["confusion_matrix"])
    assert confusion.shape == (2, 2) and confusion.sum() == total
    assert np.abs(confusion - expected["confusion_matrix"]).sum() <= 1e-3 * total
    assert found["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    assert [row["name"] for row in found["per_class"]] == ["class 0", "class 1"]
    assert found["trimap"]["bands"][0]["miou"] == pytest.approx(expected["trimap"]["bands"][0]["miou"], abs=2e-3)
    assert found["protocol"]["threshold"] == 0.5 and "threshold" not in expected["protocol"]
    assert "thresholds" not in expected


def test_every_threshold_has_the_numbers_of_its_own_evaluation(networks) -> None:
    """One pass sweeps them; the protocol's own joins the table, and devices change nothing."""
    made, _ = networks
    swept = evaluate(*made, SOURCE, BOX)["thresholds"]
    assert [entry["name"] for entry in swept] == ["class 1"]
    table = {row["threshold"]: row for row in swept[0]["table"]}
    assert sorted(table) == pytest.approx([step / 20 for step in range(1, 20)])
    for threshold in (0.35, 0.62):
        own = evaluate(*made, SOURCE, Protocol(pad_to=((65, 65),), threshold=threshold), batch_size=2, devices=2)
        (row,) = [row for row in own["thresholds"][0]["table"] if row["threshold"] == threshold]
        assert table.get(threshold, row) == row
        of_object = own["per_class"][1]
        assert [row[key] for key in ("iou", "precision", "recall", "f1")] == [
            of_object[key] for key in ("iou", "precision", "recall", "dice")
        ]
    best = swept[0]["best"]
    assert best["iou"] == max(row["iou"] for row in swept[0]["table"])


def test_metrics_of_sigmoids_by_hand() -> None:
    """Two labels, a threshold of 0.5; each label's own row, and means over the rows."""
    labels = LabelSet(("wet", "cracked"), colormap(2))
    counts = np.asarray([[[6, 2], [1, 3]], [[8, 0], [0, 0]]])
    found = summarize_sigmoids(counts, labels, thresholds=(0.5,), threshold=0.5)
    wet, cracked = found["per_class"]
    assert (wet["name"], wet["iou"], wet["precision"], wet["recall"], wet["support"]) == ("wet", 3 / 6, 3 / 5, 3 / 4, 4)
    assert (cracked["iou"], cracked["recall"], cracked["support"]) == (None, None, 0)
    assert found["miou"] == 0.5 and found["mean_accuracy"] == 0.75
    assert found["pixel_accuracy"] == pytest.approx(17 / 20)
    assert found["confusion_matrix"] == [[[6, 2], [1, 3]], [[8, 0], [0, 0]]]
    assert found["thresholds"][0]["best"]["f1"] == pytest.approx(6 / 9)


@pytest.mark.parametrize("options", VIEWS)
def test_each_of_several_labels_is_a_network_of_one_logit(several, options) -> None:
    model, variables = several
    classes, probabilities = segment(model, variables, IMAGE, return_probabilities=True, **options)
    assert classes.shape == probabilities.shape == (49, 65, 3)
    with tiny_models():
        one = create_model("cascade_tiny", num_classes=1)
    k = 1
    layer = {key: value[..., k : k + 1] for key, value in variables["params"]["classifier"].items()}
    own = {**variables, "params": {**variables["params"], "classifier": layer}}
    expected, alone = segment(one, own, IMAGE, return_probabilities=True, **options)
    np.testing.assert_allclose(probabilities[..., k], alone[..., 0], atol=1e-5)
    assert np.mean(classes[..., k] != expected) < 1e-3


def test_batch_norm_folds_into_a_network_of_one_logit(networks) -> None:
    (model, variables), _ = networks
    folded = fold_norm(model, variables)
    assert isinstance(folded[0], Segmenter) and folded[0].activation == "sigmoid"
    images = jax.random.normal(jax.random.key(0), (1, 49, 65, 3))
    np.testing.assert_allclose(folded[0].apply(folded[1], images), model.apply(variables, images), rtol=1e-3, atol=1e-4)


def test_a_softmax_of_one_class_cannot_be_made() -> None:
    with pytest.raises(UserError, match=r"num_classes=1 with softmax.*activation='sigmoid'"):
        create_model("deeplabv3_resnet18", num_classes=1, activation="softmax")
    with pytest.raises(UserError, match=r"num_classes=1 with softmax"):
        Segmenter(backbone=create_model("deeplabv3_resnet18", num_classes=2).backbone, num_classes=1)
    with pytest.raises(UserError, match=r"activation='sigmoit'.*sigmoid"):
        create_model("deeplabv3_resnet18", num_classes=2, activation="sigmoit")


def test_other_classes_are_refused(networks) -> None:
    with pytest.raises(UserError, match=r"the model has 2 classes, made up has 4"):
        evaluate(*networks[0], MadeUp(((33, 33),)), BOX)


class Several(MadeUp):
    """The same images, whose pixels have any of three labels; each is unknown at some."""

    @property
    def labels(self):
        return dataclasses.replace(super().labels, multilabel=True)

    def __getitem__(self, index):
        example = super().__getitem__(index)
        rng = np.random.default_rng(index)
        label = rng.choice([0, 1, 255], (*example["label"].shape, 3)).astype(np.uint8)
        return {**example, "label": label}


@pytest.mark.parametrize("options", [{}, {"crop": (31, 40)}, {"resize": 40, "window": (33, 41)}])
def test_several_labels_are_counted_alone(several, options) -> None:
    seen = []
    source, protocol = Several(SOURCE.sizes, classes=3), Protocol(pad_to=((65, 65),), **options)
    results = evaluate(*several, source, protocol, batch_size=2, on_prediction=lambda *pair: seen.append(pair))
    expected = np.zeros((3, 2, 2), np.int64)
    for example, predicted in seen:
        assert predicted.shape == example["label"].shape
        for k in range(3):
            known = example["label"][..., k] != 255
            np.add.at(expected[k], (example["label"][..., k][known], predicted[..., k][known]), 1)
    assert results["confusion_matrix"] == expected.tolist()
    ious = expected[:, 1, 1] / (expected.sum((1, 2)) - expected[:, 0, 0])
    assert results["miou"] == pytest.approx(ious.mean())
    assert [row["iou"] for row in results["per_class"]] == pytest.approx(ious)


def test_one_class_a_pixel_is_no_data_for_several_labels(several) -> None:
    with pytest.raises(UserError, match="the model has several labels a pixel, made up has one class a pixel"):
        evaluate(*several, MadeUp(((33, 33),), classes=3), BOX)


def test_what_is_written_for_several_labels(tmp_path) -> None:
    labels = LabelSet(("wet", "worn/old"), ((255, 0, 0), (0, 0, 255)), multilabel=True)
    image = np.full((2, 2, 3), 100, np.uint8)
    classes = np.array([[[1, 1], [1, 0]], [[0, 1], [0, 0]]])
    probabilities = np.array([[[0.9, 0.6], [0.8, 0.3]], [[0.2, 1.0], [0.5, 0.0]]], np.float32)
    page = Page(tmp_path / PAGE, labels, title="t")
    Outputs(tmp_path, labels, "png", True, page=page).write("sub/a", image, classes, probabilities, truth=classes)
    np.testing.assert_array_equal(read_mask(tmp_path / "wet" / "sub" / "a.png"), classes[..., 0])
    np.testing.assert_array_equal(read_mask(tmp_path / "worn_old" / "sub" / "a.png"), classes[..., 1])
    assert sorted(file.name for file in (tmp_path / "sub").iterdir()) == [
        "a_confidence.png",
        "a_overlay.png",
        "a_probability_wet.png",
        "a_probability_worn_old.png",
    ]
    # The least certain decision of each pixel: 0.6, 0.7, 0.8 and 0.5.
    confidence = np.asarray(Image.open(tmp_path / "sub" / "a_confidence.png"))
    np.testing.assert_array_equal(confidence, np.rint(np.array([[0.6, 0.7], [0.8, 0.5]]) * 255))
    assert "worn/old" in page.write().read_text()


def test_measures_of_several_labels_by_hand() -> None:
    """Label 0: 1 of 2 pixels in either is right. Label 1 occurs nowhere. Class 0 of the page is no label."""
    labels = LabelSet(("wet", "worn"), colormap(3)[1:], multilabel=True)
    classes = np.array([[[1, 0], [1, 0], [0, 0], [1, 0]]])
    truth = np.array([[[1, 0], [0, 0], [0, 0], [255, 255]]])
    assert measures(classes, truth, labels) == {"miou": 0.5, "rows": [[1, 0.75, 0.5]]}


def test_one_logit_writes_the_probabilities_of_both_classes(networks, tmp_path) -> None:
    write_image(tmp_path / "a.png", IMAGE)
    model, variables = networks[0]
    outputs = Outputs(tmp_path / "out", label_set({}, model), "npy", confidence=True)
    assert [error for _, error in predict_files(model, variables, find_images([tmp_path / "a.png"]), outputs)] == [None]
    pair = np.load(tmp_path / "out" / "a_probabilities.npy")
    assert pair.shape == (49, 65, 2)
    np.testing.assert_allclose(pair.sum(axis=-1), 1, atol=1e-3)
    confidence = np.asarray(Image.open(tmp_path / "out" / "a_confidence.png"))
    assert confidence.min() >= 127


def test_several_labels_have_no_ids_of_a_data_set(several) -> None:
    with pytest.raises(UserError, match="--ids dataset: a pixel can have several labels"):
        label_set({}, several[0], dataset_ids=True)


def test_the_share_of_a_label_is_of_its_own_pixels() -> None:
    """Of 1000 pixels 100 have the first label, and 10 the second."""
    labels = LabelSet(("wet", "cracked"), colormap(2), multilabel=True)
    counts = np.array([[[900, 0], [0, 100]], [[990, 0], [0, 10]]])
    found = summarize_sigmoids(counts, labels, thresholds=(0.5,), threshold=0.5)
    assert list(class_table([found], ["val"]).columns[1].cells)[:2] == ["10.00", "1.00"]
