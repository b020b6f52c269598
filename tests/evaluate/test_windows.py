"""Sliding windows: equal to a plain sum over the whole image, in the memory of a few windows."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.evaluate import inference, windows
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.inference import evaluate_large, predict_large, segment
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.evaluate.windows import mean_of_windows, window_starts, window_weights
from tests.support.tiny import MadeUp, tiny_model, tiny_models

CLASSES = 3


def made_up_probabilities(seen, sizes):
    """Probabilities that depend on each pixel, on its place in the window, and on the window's size on the image."""
    rows, columns = np.indices(seen.shape[1:3])
    mixed = seen[..., 0] * 0.37 + rows * 1.3 + columns * 0.7 + sizes.sum(-1)[:, None, None]
    logits = np.stack([np.sin(mixed * (k + 1)) for k in range(CLASSES)], axis=-1)
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def kept_whole(image, size, window, overlap, blend):
    """The mean of all windows, with sums as large as the image."""
    window = tuple(map(min, window, size))
    padded = np.zeros((*size, 1), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    sums, total = np.zeros((*size, CLASSES)), np.zeros((*size, 1))
    for top in window_starts(size[0], window[0], overlap):
        for left in window_starts(size[1], window[1], overlap):
            view = (slice(top, top + window[0]), slice(left, left + window[1]))
            inside = np.clip([[image.shape[0] - top, image.shape[1] - left]], 0, window)
            weights = window_weights(window, blend)
            sums[view] += made_up_probabilities(padded[None][:, view[0], view[1]], inside)[0] * weights
            total[view] += weights
    return (sums / total)[: image.shape[0], : image.shape[1]]


def put_together(tiles, shape):
    whole, times = np.zeros((*shape, CLASSES)), np.zeros(shape, int)
    for tile in tiles:
        whole[tile.place] = tile.probabilities
        times[tile.place] += 1
    assert (times == 1).all()
    return whole


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 90)),
    padding=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    window=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    overlap=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.8]),
    blend=st.sampled_from(windows.BLENDS),
    batch_size=st.integers(1, 4),
    narrow=st.booleans(),
)
def test_the_mean_is_that_of_all_windows_kept_whole(shape, padding, window, overlap, blend, batch_size, narrow) -> None:
    image = np.random.default_rng(0).integers(1, 256, (*shape, 1), np.uint8)
    size = (shape[0] + padding[0], shape[1] + padding[1])
    how = {"size": size, "window": window, "overlap": overlap, "blend": blend}
    with pytest.MonkeyPatch.context() as patch:
        if narrow:  # Many columns.
            patch.setattr(windows, "BAND_BYTES", 1)
            patch.setattr(windows, "FEWEST_STEPS", 1)
        tiles = mean_of_windows(image, made_up_probabilities, classes=CLASSES, batch_size=batch_size, **how)
        found = put_together(tiles, shape)
    np.testing.assert_allclose(found, kept_whole(image, size, window, overlap, blend), rtol=2e-6, atol=1e-6)


def test_all_windows_run_in_batches_of_one_shape_and_only_once_where_the_band_is_small() -> None:
    shapes = []

    def run(seen, sizes):
        shapes.append((seen.shape, sizes.tolist()))
        return made_up_probabilities(seen, sizes)

    image = np.ones((50, 70, 1), np.uint8)
    put_together(mean_of_windows(image, run, size=(50, 70), window=(20, 30), classes=CLASSES, batch_size=5), (50, 70))
    # 4 rows of 3 windows: (50 - 20) / 13 and (70 - 30) / 20, rounded up, plus 1. The last batch has 3 empty windows.
    assert [shape for shape, _ in shapes] == [(5, 20, 30, 1)] * 3
    assert shapes[-1][1] == [[20, 30]] * 2 + [[0, 0]] * 3


def test_a_band_never_holds_more_than_some_windows(monkeypatch) -> None:
    monkeypatch.setattr(windows, "BAND_BYTES", 4 * (CLASSES + 1) * 20 * 200)
    image = np.ones((60, 1000, 1), np.uint8)
    found = mean_of_windows(image, made_up_probabilities, size=(60, 1000), window=(20, 30), classes=CLASSES)
    widths = [tile.probabilities.shape[1] for tile in found]
    assert 180 <= max(widths) <= 200


def test_the_default_overlap_is_that_of_published_numbers() -> None:
    for window in range(1, 3000):
        step = max(1, window * 2 // 3)  # As before the overlap could be chosen.
        assert max(1, int(window * (1 - windows.OVERLAP) + 1e-6)) == step
    assert window_starts(1024, 513) == [0, 256, 511]
    assert window_starts(2048, 513, 0.5) == [0, 256, 512, 768, 1023, 1279, 1535]
    assert window_starts(10, 5, 0) == [0, 5] and window_starts(11, 5, 0) == [0, 3, 6]


def test_gaussian_weights_by_hand() -> None:
    # Standard deviations of 4 / 8 and 8 / 8 pixels; the centre lies between pixels.
    weights = window_weights((4, 8), "gaussian")[..., 0]
    np.testing.assert_allclose(weights[1, 3], np.exp(-0.5) * np.exp(-0.125), rtol=1e-6)
    np.testing.assert_allclose(weights[1, 1], np.exp(-0.5) * np.exp(-0.5 * 2.5**2), rtol=1e-6)
    assert weights[0, 0] == np.float32(1e-3)  # exp(-4.5) * exp(-6.125) is smaller.
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])
    assert (window_weights((3, 5), "uniform") == 1).all() and window_weights((33, 33), "gaussian")[16, 16] == 1


@pytest.mark.parametrize("blend", windows.BLENDS)
def test_constant_logits_have_no_seams(blend) -> None:
    def constant(seen, _):
        return np.broadcast_to(np.float32([0.2, 0.5, 0.3]), (*seen.shape[:3], 3))

    how = {"window": (33, 40), "overlap": 0.4, "blend": blend, "classes": CLASSES}
    found = put_together(mean_of_windows(np.ones((90, 130, 1), np.uint8), constant, size=(129, 257), **how), (90, 130))
    np.testing.assert_allclose(found, np.broadcast_to([0.2, 0.5, 0.3], found.shape), rtol=1e-6)


# With a network.


@pytest.fixture(scope="module")
def made():
    with tiny_models():
        return tiny_model()


def test_large_prediction_is_the_argmax_of_the_probabilities(made, tmp_path) -> None:
    image = MadeUp(((60, 90),))[0]["image"]
    how = {"window": (40, 48), "overlap": 0.5, "blend": "gaussian", "flip": True, "scales": (0.75, 1.0)}
    classes, probabilities = segment(*made, image, return_probabilities=True, **how)
    np.testing.assert_array_equal(segment(*made, image, **how), classes)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    np.testing.assert_array_equal(predict_large(*made, mapped, Protocol(mode="exact", **how)), classes)
    unknown = np.full(image.shape[:2], 255, np.uint8)
    found, _ = evaluate_large(*made, mapped, unknown, Protocol(mode="exact", **how), batch_size=3)
    assert found.dtype == np.uint8
    assert (found != classes).mean() < 0.001  # Batches round differently.
    uniform = segment(*made, image, window=(40, 48), return_probabilities=True)[1]
    assert np.abs(uniform - probabilities).max() > 1e-3


def test_an_evaluation_counts_every_pixel_of_large_images_once(made, monkeypatch) -> None:
    monkeypatch.setattr(inference, "COUNTED_AT_ONCE", 1000)
    source = MadeUp(((60, 90), (50, 70), (30, 30)))
    seen = {}
    protocol = Protocol(window=(40, 48), blend="gaussian")
    results = evaluate(*made, source, protocol, on_prediction=lambda e, ids: seen.update({e["name"]: ids}))
    expected = np.zeros((4, 4), int)
    for example in (source[index] for index in range(3)):
        valid = example["label"] != 255
        np.add.at(expected, (example["label"][valid], seen[example["name"]][valid]), 1)
    assert results["confusion_matrix"] == expected.tolist()
    assert results["protocol"]["overlap"] == 1 / 3 and results["protocol"]["blend"] == "gaussian"


MEASURED = """
import resource, sys
import jax, numpy as np
from deeplab_jax import create_model, fold_norm
from deeplab_jax.evaluate.inference import predict_large
from deeplab_jax.evaluate.protocol import Protocol

height, width = map(int, sys.argv[1:])
model = create_model("deeplabv3_mobilenet_v2", num_classes=20, width=0.125, output_stride=32)
variables = jax.jit(lambda key, x: model.init(key, x, train=False))(jax.random.key(0), np.zeros((1, 65, 65, 3)))
model, variables = fold_norm(model, variables)
protocol = Protocol(mode="exact", window=(513, 513))
predict_large(model, variables, np.zeros((600, 600, 3), np.uint8), protocol)  # Compiles.
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = np.zeros((height, width, 3), np.uint8)
for row in range(height):  # Each page is written, so that it is in memory.
    image[row] = row % 251
classes = predict_large(model, variables, image, protocol)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle, classes.shape, classes.dtype)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_the_image_its_ids_and_some_windows() -> None:
    """200 million pixels and 20 classes take less than 1.5 GiB more than the idle process; kept whole, the sums alone
    would take 16 GB.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "10000", "20000"], capture_output=True, text=True, check=True, timeout=3600
    )
    kibibytes, shape = done.stdout.split(maxsplit=1)
    assert shape.strip() == "(10000, 20000) uint8"
    assert int(kibibytes) < 1.5 * 2**20, done.stdout
