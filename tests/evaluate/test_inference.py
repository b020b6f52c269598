"""Inference: any size, padded and exact, views, windows."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import inference
from deeplab_jax.evaluate.inference import (
    check_views,
    class_scores,
    evaluate_batch,
    pad_images,
    padded_size,
    preprocess,
    run_size,
    segment,
    window_starts,
)
from tests.tiny import MadeUp, tiny_model, tiny_models


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with tiny_models():
        yield tiny_model()


def photo(height: int, width: int, index: int = 0) -> np.ndarray:
    return MadeUp(((height, width),) * (index + 1))[index]["image"]


@pytest.mark.parametrize("size", [(33, 47), (100, 333), (65, 65), (20, 40), (1, 1)])
def test_segment_takes_any_size(model: Any, size: tuple[int, int]) -> None:
    classes = segment(*model, photo(*size))
    assert classes.shape == size
    assert classes.dtype == np.int32
    assert classes.min() >= 0
    assert classes.max() < 4


def test_segment_is_the_model_on_the_image_alone(model: Any) -> None:
    image = photo(50, 71)
    network, variables = model
    logits = network.apply(variables, network.preprocessing(jnp.asarray(image[None])), train=False)
    np.testing.assert_array_equal(segment(*model, image), np.argmax(logits[0], -1))
    assert len(np.unique(segment(*model, image))) > 1


@pytest.mark.parametrize(
    "image", [np.zeros((40, 40, 3), np.float32), np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8)]
)
def test_segment_refuses_what_is_no_uint8_rgb_image(model: Any, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        segment(*model, image)


def test_padding_is_the_mean_exactly(model: Any) -> None:
    images, sizes = pad_images([photo(33, 40)], (65, 65))
    ready = np.asarray(preprocess(model[0], jnp.asarray(images), jnp.asarray(sizes)))
    assert np.all(ready[0, 33:] == 0)
    assert np.all(ready[0, :, 40:] == 0)
    np.testing.assert_allclose(ready[0, :33, :40], model[0].preprocessing(jnp.asarray(photo(33, 40))), atol=1e-6)


def test_one_view_gives_logits_and_several_give_probabilities(model: Any) -> None:
    network, variables = model
    x = network.preprocessing(jnp.asarray(photo(65, 65)[None]))
    logits = class_scores(network, variables, x, scales=(1.0,), flip=False)
    np.testing.assert_allclose(logits, network.apply(variables, x, train=False), atol=1e-5)
    both = class_scores(network, variables, x, scales=(1.0,), flip=True)
    np.testing.assert_allclose(jnp.sum(both, -1), 1.0, atol=1e-5)
    mirrored = network.apply(variables, x[:, :, ::-1], train=False)[:, :, ::-1]
    by_hand = (jax.nn.softmax(logits) + jax.nn.softmax(mirrored)) / 2
    np.testing.assert_allclose(both, by_hand, atol=1e-5)


def test_with_flip_a_mirrored_image_gives_the_mirrored_prediction(model: Any) -> None:
    # Of a width of k * 16 + 1, since others put the samples of a stride elsewhere in the mirror.
    image = photo(49, 65)
    straight = segment(*model, image, scales=(0.75, 1.0), flip=True)
    np.testing.assert_array_equal(
        segment(*model, np.ascontiguousarray(image[:, ::-1]), scales=(0.75, 1.0), flip=True), straight[:, ::-1]
    )


@pytest.mark.parametrize(("size", "window"), [(100, 33), (65, 65), (64, 65), (66, 65), (1000, 129), (34, 1)])
def test_windows_cover_everything_and_overlap(size: int, window: int) -> None:
    starts = window_starts(size, window)
    covered = np.zeros(size, int)
    for start in starts:
        assert 0 <= start <= max(0, size - window)
        covered[start : start + window] += 1
    assert covered.min() >= 1
    if window > 2:
        steps = np.diff(starts)
        assert np.all(steps <= -(-window * 2 // 3))


def test_a_window_as_large_as_the_image_is_the_whole_image(model: Any) -> None:
    image = photo(65, 80)
    np.testing.assert_array_equal(segment(*model, image, window=(65, 80)), segment(*model, image))
    np.testing.assert_array_equal(segment(*model, image, window=(513, 513)), segment(*model, image))


def test_a_sliding_window_averages_the_windows(model: Any) -> None:
    """By hand for two windows side by side."""
    network, variables = model
    image = photo(33, 50)
    total = np.zeros((33, 50, 4))
    assert window_starts(50, 33) == [0, 17]
    for left in (0, 17):
        x = network.preprocessing(jnp.asarray(image[None, :, left : left + 33]))
        total[:, left : left + 33] += np.asarray(jax.nn.softmax(network.apply(variables, x, train=False)))[0]
    found = segment(network, variables, image, window=(33, 33))
    assert np.mean(found == np.argmax(total, -1)) == 1.0


def test_evaluate_batch_counts_what_it_predicts(model: Any) -> None:
    source = MadeUp(((40, 40), (33, 50)))
    images, sizes = pad_images([source[0]["image"], source[1]["image"]], (65, 65), count=3)
    labels = np.full((3, 65, 65), 255, np.uint8)
    labels[0, :40, :40], labels[1, :33, :50] = source[0]["label"], source[1]["label"]
    classes, counts = evaluate_batch(*model, images, labels, sizes)
    expected = np.zeros((4, 4), int)
    valid = labels < 4
    np.add.at(expected, (labels[valid], classes[valid]), 1)
    np.testing.assert_array_equal(counts, expected)


def test_padded_sizes() -> None:
    assert padded_size((375, 500), ((513, 513),)) == (513, 513)
    assert padded_size((375, 500), ((513, 513), (385, 513))) == (385, 513)
    assert padded_size((600, 400), ((513, 513),)) == (641, 513)
    assert padded_size((20, 129), ()) == (129, 129)
    assert run_size((375, 500), mode="exact", pad_to=((513, 513),)) == (375, 500)
    assert run_size((3, 500), mode="exact", pad_to=()) == (33, 500)


def test_padded_mode_compiles_once_for_many_sizes(model: Any) -> None:
    before = inference._classes._cache_size()
    for height, width in [(33, 40), (50, 61), (64, 64), (70, 71), (97, 97)]:
        images, sizes = pad_images([photo(height, width)], run_size((height, width), mode="padded", pad_to=((97, 97),)))
        inference.predict_classes(*model, images, sizes, scales=(1.0,), flip=False, window=None)
    assert inference._classes._cache_size() - before == 1


def test_scales_and_windows_that_make_no_sense_are_refused() -> None:
    for scales, window in [((), ()), ((0.0,), ()), ((-1.0, 1.0), ()), ((1.0,), (513,)), ((1.0,), (0, 5))]:
        with pytest.raises(UserError):
            check_views(scales, window)
    check_views((0.5, 1.0), (513, 513))
