"""Calibration: bins and gaps by hand, and the same counts whole, in windows and in batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.data.images import read_image
from deeplab_jax.evaluate.calibration import BINS, PARTS, count_confidences, draw, summarize_confidences
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.protocol import Protocol
from tests.support.tiny import MadeUp, tiny_model, tiny_models

HALF = 0.5 / (BINS * PARTS)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the counts ask of a model."""

    activation: str
    num_classes: int


def counts_of(kind, labels, classes, probabilities):
    counts = count_confidences(kind, jnp.asarray(labels), jnp.asarray(classes), jnp.asarray(probabilities))
    return np.asarray(counts, np.int64)


def plain_ece(confidence, right):
    """Guo et al., eq. 3, with float confidences: bins (k / 15, (k + 1) / 15]."""
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = [abs(right[which == k].sum() - confidence[which == k].sum()) for k in range(BINS)]
    return sum(gaps) / len(confidence)


def test_bins_by_hand() -> None:
    """Two pixels of 0.62, of which one is right, one of 0.9 that is right, and one without a label."""
    probabilities = np.array([[0.62, 0.38], [0.38, 0.62], [0.1, 0.9], [1.0, 0.0]], np.float32)
    counts = counts_of(Kind("softmax", 2), [0, 0, 1, 255], [0, 1, 1, 0], probabilities)
    assert counts.sum() == 3
    found = summarize_confidences(counts)
    assert [row["pixels"] for row in found["table"]] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0]
    assert found["table"][9] == {
        "above": 9 / 15,
        "up_to": 10 / 15,
        "pixels": 2,
        "confidence": pytest.approx(0.62, abs=HALF),
        "accuracy": 0.5,
    }
    assert found["table"][0]["confidence"] is None and found["table"][0]["accuracy"] is None
    assert found["ece"] == pytest.approx((2 * 0.12 + 0.1) / 3, abs=HALF)
    assert found["mce"] == pytest.approx(0.12, abs=HALF)


def test_the_ends_of_bins_belong_to_them() -> None:
    probabilities = np.array([[0.2], [0.2001], [0.0], [1.0]], np.float32)
    counts = counts_of(Kind("sigmoid", 1), [1, 0, 0, 1], [0, 0, 0, 1], probabilities)
    pixels = counts.sum(0).reshape(BINS, PARTS).sum(1)
    assert np.flatnonzero(pixels).tolist() == [0, 2, 3, 14]


def test_of_sigmoids_the_probability_of_the_object_counts() -> None:
    """Of several labels each counts alone, where it is known."""
    probabilities = np.array([[0.1, 0.7], [0.1, 0.9]], np.float32)
    counts = counts_of(Kind("sigmoid", 2), [[0, 1], [1, 255]], [[0, 1], [0, 1]], probabilities)
    found = summarize_confidences(counts)
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.1) + 0.3) / 3, abs=HALF)


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_the_papers_to_half_a_part(seed) -> None:
    rng = np.random.default_rng(seed)
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(2 * rng.normal(size=(500, 4)), jnp.float32)))
    labels, classes = rng.integers(0, 4, 500), probabilities.argmax(-1)
    found = summarize_confidences(counts_of(Kind("softmax", 4), labels, classes, probabilities))
    assert found["ece"] == pytest.approx(plain_ece(probabilities.max(-1), labels == classes), abs=HALF)


def test_without_a_labelled_pixel_there_is_none(tmp_path) -> None:
    found = summarize_confidences(np.zeros((2, BINS * PARTS), np.int64))
    assert found["ece"] is None and found["mce"] is None
    draw(found, tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (720, 600, 3)


def test_an_evaluation_has_it_on_request_in_batches_and_windows() -> None:
    source = MadeUp(((49, 65), (33, 47), (65, 50)))
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
    exact = Protocol(mode="exact", calibration=True)
    plain = evaluate(model, variables, source, dataclasses.replace(exact, calibration=False))
    assert "calibration" not in plain
    whole = evaluate(model, variables, source, exact)
    assert whole["confusion_matrix"] == plain["confusion_matrix"]
    found = whole["calibration"]
    assert sum(row["pixels"] for row in found["table"]) == np.sum(plain["confusion_matrix"])
    confidence, right = [], []
    for index in range(len(source)):
        example = source[index]
        classes, probabilities = segment(model, variables, example["image"], return_probabilities=True)
        counted = example["label"] != 255
        confidence.append(probabilities.max(-1)[counted])
        right.append((classes == example["label"])[counted])
    by_hand = plain_ece(np.concatenate(confidence), np.concatenate(right))
    assert found["ece"] == pytest.approx(by_hand, abs=2 * HALF)
    padded = Protocol(pad_to=((65, 65),), calibration=True)
    assert (
        evaluate(model, variables, source, padded, batch_size=2)["calibration"]
        == (evaluate(model, variables, source, padded)["calibration"])
    )
    # The counts of a large image come tile by tile.
    slid = evaluate(model, variables, source, dataclasses.replace(exact, window=(40, 48)))
    assert sum(row["pixels"] for row in slid["calibration"]["table"]) == np.sum(slid["confusion_matrix"])
    right = sum(row["pixels"] * (row["accuracy"] or 0) for row in slid["calibration"]["table"])
    assert right == pytest.approx(np.trace(slid["confusion_matrix"]))
