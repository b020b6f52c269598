"""Metrics as by torchmetrics and by the evaluation script of Cityscapes."""

import numpy as np
import pytest

from deeplab_jax.evaluate.calibration import BINS, PARTS, count_confidences, summarize_confidences
from deeplab_jax.evaluate.per_image import areas, ious
from deeplab_jax.evaluate.results import summarize_confusion
from deeplab_jax.labels import CITYSCAPES, IGNORE_LABEL, LabelSet, colormap
from deeplab_jax.ops import metrics
from tests.evaluate.test_calibration import HALF, Kind
from tests.peers.parity import import_peer

CLASSES = 5


def example(seed=0, shape=(30, 40), classes=CLASSES):
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(classes), 255], shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.4, rng.integers(0, classes, shape), np.where(label < 255, label, 0))
    return label, predicted


def test_torchmetrics_has_the_same_ratios() -> None:
    torch, peer = import_peer("torch"), import_peer("torchmetrics.classification")
    label, predicted = example()
    confusion = np.asarray(metrics.confusion_matrix(label, predicted, num_classes=CLASSES))
    ours = summarize_confusion(confusion, LabelSet(tuple("abcde"), colormap(CLASSES)))

    def theirs(kind, average):
        metric = kind(num_classes=CLASSES, ignore_index=255, average=average)
        return metric(torch.from_numpy(predicted), torch.from_numpy(label.astype(np.int64))).numpy()

    for key, kind in (
        ("iou", peer.MulticlassJaccardIndex),
        ("precision", peer.MulticlassPrecision),
        ("recall", peer.MulticlassRecall),
        ("dice", peer.MulticlassF1Score),
    ):
        np.testing.assert_allclose([row[key] for row in ours["per_class"]], theirs(kind, None), rtol=1e-6)
    assert ours["miou"] == pytest.approx(float(theirs(peer.MulticlassJaccardIndex, "macro")), rel=1e-6)
    weighted = float(theirs(peer.MulticlassJaccardIndex, "weighted"))
    assert ours["frequency_weighted_iou"] == pytest.approx(weighted, rel=1e-6)


def test_torchmetrics_has_the_same_iou_of_each_image() -> None:
    torch, peer = import_peer("torch"), import_peer("torchmetrics.segmentation")
    images = [example(seed) for seed in range(3)]
    # It has no label to ignore.
    images = [(np.where(label == 255, 0, label), predicted) for label, predicted in images]
    ours = np.array([ious(areas(label, predicted, CLASSES)) for label, predicted in images])
    metric = peer.MeanIoU(num_classes=CLASSES, per_class=True, input_format="index")
    labels, predictions = (torch.from_numpy(np.stack(part).astype(np.int64)) for part in zip(*images, strict=True))
    np.testing.assert_allclose(ours.mean(0), metric(predictions, labels).numpy(), rtol=1e-6)


@pytest.mark.parametrize("norm", ["l1", "max"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_torchmetrics_has_the_same_calibration_error(activation, norm) -> None:
    torch, peer = import_peer("torch"), import_peer("torchmetrics.classification")
    rng = np.random.default_rng(0)
    if activation == "softmax":
        logits = 2 * rng.normal(size=(4000, CLASSES))
        probabilities = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
        labels, kind = rng.choice([*range(CLASSES), 255], 4000), Kind("softmax", CLASSES)
        metric = peer.MulticlassCalibrationError(CLASSES, n_bins=BINS, norm=norm, ignore_index=255)
        theirs = metric(torch.from_numpy(probabilities), torch.from_numpy(labels))
    else:
        probabilities = rng.random((4000, 1)).astype(np.float32)
        labels, kind = rng.choice([0, 1, 255], 4000), Kind("sigmoid", 1)
        metric = peer.BinaryCalibrationError(n_bins=BINS, norm=norm, ignore_index=255)
        theirs = metric(torch.from_numpy(probabilities[:, 0]), torch.from_numpy(labels))
    counts = count_confidences(kind, labels, probabilities.argmax(-1), probabilities)
    ours = summarize_confidences(np.asarray(counts, np.int64))["ece" if norm == "l1" else "mce"]
    assert ours == pytest.approx(float(theirs), abs=2 * HALF)
    assert pytest.approx(0.5 / BINS) == PARTS * HALF


def test_cityscapes_own_script_has_the_same_classes_and_iou(tmp_path) -> None:
    script = import_peer("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    helpers = import_peer("cityscapesscripts.helpers.labels")
    from deeplab_jax.data.images import write_mask

    trained = sorted((label for label in helpers.labels if not label.ignoreInEval), key=lambda label: label.trainId)
    assert CITYSCAPES.names == tuple(label.name for label in trained)
    assert CITYSCAPES.palette == tuple(label.color for label in trained)
    stored = {label.id: IGNORE_LABEL if label.ignoreInEval else label.trainId for label in helpers.labels}
    del stored[-1]  # The licence plate, which an 8-bit file can store only as 255.
    assert dict(CITYSCAPES.value_map) == {**stored, 255: IGNORE_LABEL}
    ids = np.zeros(256, np.uint8)  # 255 becomes 0, "unlabeled".
    ids[: len(trained)] = [label.id for label in trained]
    confusion, total = script.generateMatrix(script.args), np.zeros((len(trained),) * 2, np.int64)
    script.args.evalInstLevelScore = script.args.evalPixelAccuracy = False
    for seed in range(2):
        label, predicted = example(seed, (60, 80), len(trained))
        total += np.asarray(metrics.confusion_matrix(label, predicted, num_classes=len(trained)))
        for name, array in (("truth", label), ("found", predicted)):
            write_mask(tmp_path / f"{name}.png", ids[array], None)
        files = str(tmp_path / "found.png"), str(tmp_path / "truth.png")
        script.evaluatePair(*files, confusion, {}, {}, script.args)
    theirs = [script.getIouScoreForLabel(label.id, confusion, script.args) for label in trained]
    np.testing.assert_allclose(metrics.iou_per_class(total), theirs, rtol=1e-12)
