"""Inference on any image: equal to the model on the image alone, mirrored, at several scales, and by windows."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.data.images import read_mask, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.image_list import find_images
from deeplab_jax.evaluate.inference import pad_images, predict, predict_classes, segment
from deeplab_jax.evaluate.outputs import Outputs, label_set
from deeplab_jax.evaluate.predictor import predict_files
from deeplab_jax.evaluate.protocol import Protocol, View
from deeplab_jax.evaluate.views import classes_and_probabilities, preprocess, view_logits
from deeplab_jax.evaluate.windows import window_starts
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.image_pyramid import ImagePyramid
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.ops.crf import DenseCRF, mean_field
from deeplab_jax.ops.resize import resize_bilinear
from tests.support.tiny import MadeUp, make_variables, tiny_model, tiny_models


@pytest.fixture(scope="module")
def made():
    with tiny_models():
        return tiny_model()


def image_of(height, width):
    return MadeUp(((height, width),))[0]["image"]


def alone(made, image, run):
    """What a function of preprocessed images makes of one image at its own size."""
    model, variables = made
    images, sizes = pad_images([image], (max(image.shape[0], 33), max(image.shape[1], 33)))
    found = jax.jit(lambda v, x, s: run(model, v, preprocess(model, x, s)))(variables, images, sizes)
    return np.asarray(found)[0, : image.shape[0], : image.shape[1]]


def logits_of(made, image, *, scale=1.0, mirrored=False):
    """The logits of one image at its own size."""
    return alone(made, image, partial(view_logits, view=View(scale, mirrored)))


def probabilities_of(made, image, **options):
    """The class probabilities of one image at its own size."""
    views = Protocol(**options).views
    return alone(made, image, lambda *inputs: classes_and_probabilities(*inputs, views)[1])


# The image alone.


@pytest.mark.parametrize("size", [(33, 47), (100, 333), (65, 65)])
def test_segment_is_the_model_on_the_image_alone(made, size) -> None:
    model, variables = made
    image = image_of(*size)
    run = jax.jit(lambda v, x: model.apply(v, model.preprocessing(x), train=False))
    logits = run(variables, jnp.asarray(image[None]))
    classes = segment(model, variables, image)
    assert classes.shape == size and classes.dtype == np.int32
    np.testing.assert_allclose(logits_of(made, image), np.asarray(logits[0]), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(classes, np.argmax(logits[0], -1))
    assert len(np.unique(classes)) > 1


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (32, 33)])
def test_images_below_33_pixels_are_padded_to_them(made, size) -> None:
    classes = segment(*made, image_of(*size))
    assert classes.shape == size and classes.dtype == np.int32


def test_segment_refuses_what_is_no_rgb_image(made) -> None:
    image = image_of(40, 40)
    for wrong in (image.astype(np.float64), image[..., 0], image[..., :2], image[None], image.astype(np.int32)):
        words = rf"{wrong.dtype}: expected \[H, W, 3\] of uint8.* such as image\.astype\('float32'\)$"
        with pytest.raises(UserError, match=words):
            segment(*made, wrong)
    np.testing.assert_array_equal(segment(*made, image), segment(*made, np.asfortranarray(image)))
    for same in (image.astype(np.float32), image.astype(np.uint16) * 257):
        np.testing.assert_array_equal(segment(*made, image), segment(*made, same))


def test_segment_warns_of_levels_in_another_range(made) -> None:
    image = image_of(40, 50)
    for other in (image.astype(np.float32) / 255, image.astype(np.uint16) * 16):
        with pytest.warns(UserWarning, match=r"its largest level is \S+ of 255; give uint8, or floats from 0 to 255"):
            segment(*made, other)
    segment(*made, np.zeros_like(image, np.float32))  # Black.
    ranged = made[0].clone(preprocessing=dataclasses.replace(made[0].preprocessing, stored_range=(0, 4095)))
    segment(ranged, made[1], image.astype(np.uint16) * 16)


@pytest.mark.parametrize("options", [{"scales": ()}, {"scales": 0.5}, {"scales": (0.0,)}, {"window": (0, 33)}], ids=str)
def test_segment_refuses_views_that_make_no_sense(made, options) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))}="):
        segment(*made, image_of(40, 40), **options)


def test_padding_becomes_the_mean(made) -> None:
    model, _ = made
    images, sizes = pad_images([image_of(20, 30), image_of(40, 10)], (40, 48), count=3)
    assert images.shape == (3, 40, 48, 3) and sizes.tolist() == [[20, 30], [40, 10], [0, 0]]
    padded = np.asarray(preprocess(model, jnp.asarray(images), jnp.asarray(sizes)))
    np.testing.assert_array_equal(padded[0, 20:], 0)
    np.testing.assert_array_equal(padded[0, :, 30:], 0)
    np.testing.assert_array_equal(padded[2], 0)
    np.testing.assert_array_equal(padded[1, :, :10], model.preprocessing(jnp.asarray(image_of(40, 10))))


# Views.


def test_a_mirrored_image_gives_the_mirrored_prediction(made) -> None:
    image = image_of(49, 71)
    straight = probabilities_of(made, image, flip=True)
    mirrored = probabilities_of(made, image[:, ::-1], flip=True)
    np.testing.assert_allclose(mirrored, straight[:, ::-1], rtol=1e-5, atol=1e-6)
    # Without the flip it does not: the network itself is not symmetric.
    assert np.abs(logits_of(made, image[:, ::-1]) - logits_of(made, image)[:, ::-1]).max() > 1e-2


def test_scales_below_33_pixels_stop_there(made) -> None:
    """At a scale of 0.1 both sides have 33 pixels."""
    model, variables = made
    image = image_of(40, 50)
    preprocessed = model.preprocessing(jnp.asarray(image[None]))
    small = resize_bilinear(preprocessed, (33, 33), align_corners=True)
    logits = model.apply(variables, small, method="coarse_logits_of_whole")
    expected = resize_bilinear(logits, (40, 50), align_corners=model.settings.align_corners)[0]
    np.testing.assert_allclose(logits_of(made, image, scale=0.1), expected, rtol=1e-4, atol=1e-5)


class Identity(nn.Module):
    """A network whose logits are its images."""

    settings: LayerSettings

    def coarse_logits_of_whole(self, images):
        return images


@pytest.mark.parametrize("scale", [0.75, 1.75, 2.0])
@pytest.mark.parametrize("align_corners", [True, False])
def test_each_pixel_gets_back_its_own_logits(align_corners, scale) -> None:
    """Two resizes hand a ramp through. With different corners it would move by up to (scale - 1) / 2 pixels."""
    network = Identity(LayerSettings(align_corners=align_corners))
    ramp = jnp.broadcast_to(
        jnp.arange(65.0)[None, :, None, None] + jnp.arange(97.0)[None, None, :, None], (1, 65, 97, 1)
    )
    logits = view_logits(network, {}, ramp, View(scale, mirrored=False))
    inside = (0, slice(2, -2), slice(2, -2))  # At the border, half-pixel centres repeat the last sample.
    np.testing.assert_allclose(logits[inside], ramp[inside], atol=2e-4)
    levels = ImagePyramid((2.0, 1.0), settings=network.settings).views(ramp, smallest=33)
    back = resize_bilinear(levels[0], (65, 97), align_corners=align_corners)
    np.testing.assert_allclose(back[inside], levels[1][inside], atol=2e-4)


@pytest.mark.parametrize("output_stride", [8, 32])
def test_the_output_stride_is_free(made, output_stride) -> None:
    model, variables = made
    image = image_of(49, 71)
    other = segment(model.clone(output_stride=output_stride), variables, image)
    expected = logits_of((model.clone(output_stride=output_stride), variables), image).argmax(-1)
    np.testing.assert_array_equal(other, expected)
    assert (other != segment(model, variables, image)).any()


# Probabilities.


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_segment_returns_the_mean_of_the_views_softmaxes(made) -> None:
    """By hand: the network on each resized and mirrored image, and its logits turned back and resized."""
    model, variables = made
    image, total = image_of(49, 71), np.zeros((49, 71, 4))
    whole = model.preprocessing(jnp.asarray(image[None]))
    coarse = jax.jit(partial(model.apply, method="coarse_logits"))
    for scale, size in ((0.75, (37, 53)), (1.0, (49, 71))):
        assert size == (int(48 * scale) + 1, int(70 * scale) + 1)
        view = resize_bilinear(whole, size, align_corners=True)
        for turn in (1, -1):
            logits = coarse(variables, view[:, :, ::turn])[:, :, ::turn]
            total += softmax(resize_bilinear(logits, (49, 71), align_corners=True))[0]
    options = {"scales": (0.75, 1.0), "flip": True}
    classes, probabilities = segment(model, variables, image, **options, return_probabilities=True)
    assert (probabilities.shape, probabilities.dtype, classes.dtype) == ((49, 71, 4), np.float32, np.int32)
    np.testing.assert_allclose(probabilities, total / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(classes, probabilities.argmax(-1))
    np.testing.assert_array_equal(classes, segment(model, variables, image, **options))


@pytest.mark.parametrize("size", [(49, 71), (20, 40)])
def test_the_probabilities_of_one_view_are_the_softmax_of_its_logits(made, size) -> None:
    image = image_of(*size)
    classes, probabilities = segment(*made, image, return_probabilities=True)
    np.testing.assert_allclose(probabilities, softmax(logits_of(made, image)), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(classes, segment(*made, image))


def test_a_crf_refines_the_probabilities_that_segment_returns(made) -> None:
    image = image_of(49, 71)
    _, plain = segment(*made, image, return_probabilities=True)
    classes, refined = segment(*made, image, crf=CRF, return_probabilities=True)
    np.testing.assert_allclose(refined, mean_field(jnp.asarray(plain), jnp.asarray(image), crf=CRF), atol=1e-4)
    np.testing.assert_array_equal(classes, segment(*made, image, crf=CRF))
    assert np.abs(refined - plain).max() > 0.1


# Windows.


def test_a_window_that_holds_the_image_is_the_whole_image(made) -> None:
    image = image_of(49, 71)
    whole = segment(*made, image)
    for window in ((49, 71), (513, 513)):
        np.testing.assert_array_equal(segment(*made, image, window=window), whole)


def test_windows_sum_the_probabilities_of_each_pixel(made) -> None:
    model, variables = made
    image = image_of(60, 90)
    preprocessed = model.preprocessing(jnp.asarray(image[None]))
    total = np.zeros((60, 90, 4))
    run = jax.jit(lambda v, x: jax.nn.softmax(view_logits(model, v, x, View(1.0, False))))
    for top in window_starts(60, 40):
        for left in window_starts(90, 50):
            view = (slice(top, top + 40), slice(left, left + 50))
            total[view] += np.asarray(run(variables, preprocessed[:, view[0], view[1]]))[0]
    np.testing.assert_array_equal(segment(model, variables, image, window=(40, 50)), total.argmax(-1))
    _, probabilities = segment(model, variables, image, window=(40, 50), return_probabilities=True)
    np.testing.assert_allclose(probabilities, total / total.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_windows_with_several_views_sum_the_mean_of_their_softmaxes(made) -> None:
    model, variables = made
    image = image_of(60, 60)
    preprocessed = model.preprocessing(jnp.asarray(image[None]))
    views, total = Protocol(flip=True).views, np.zeros((60, 60, 4))
    run = jax.jit(lambda v, x: sum(jax.nn.softmax(view_logits(model, v, x, view)) for view in views) / 2)
    for left in window_starts(60, 40):
        total[:, left : left + 40] += np.asarray(run(variables, preprocessed[:, :, left : left + 40]))[0]
    _, found = segment(model, variables, image, window=(60, 40), flip=True, return_probabilities=True)
    np.testing.assert_allclose(found, total / total.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


@given(size=st.integers(1, 3000), window=st.integers(1, 1000))
def test_windows_cover_every_pixel_and_overlap(size, window) -> None:
    starts = window_starts(size, window)
    assert starts[0] == 0 and starts == sorted(set(starts))
    if size <= window:
        assert starts == [0]
        return
    assert starts[-1] == size - window
    steps = np.diff(starts)
    # A third of a window, up to the rounding of positions.
    assert (steps <= max(1, window * 2 // 3) + 1).all() and (steps <= window).all()


# The fully connected CRF.

# Strong enough to change many labels of the tiny network.
CRF = DenseCRF(iterations=2, appearance_weight=6.0, smoothness_bandwidth=2.0)
VIEWS = [{}, {"flip": True}, {"scales": (0.75, 1.5)}, {"window": (40, 50), "flip": True}]


@pytest.mark.parametrize("view", VIEWS)
def test_probabilities_lead_to_the_predicted_classes(made, view) -> None:
    images, sizes = pad_images([image_of(60, 90), image_of(65, 71)], (65, 97))
    classes, probabilities = map(np.asarray, predict(*made, images, sizes, Protocol(**view)))
    assert probabilities.shape == (2, 65, 97, 4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), classes)
    if "window" not in view:
        np.testing.assert_array_equal(classes, predict_classes(*made, images, sizes, Protocol(**view)))


@pytest.mark.parametrize("view", [VIEWS[0], *(pytest.param(view, marks=pytest.mark.slow) for view in VIEWS[1:])])
def test_the_crf_sees_each_image_at_its_true_size(made, view) -> None:
    """By hand from the padded probabilities: cut to the image and refined alone; an empty image costs nothing."""
    pictures = [image_of(60, 90), image_of(65, 71)]
    images, sizes = pad_images(pictures, (65, 97), count=3)
    probabilities = np.asarray(predict(*made, images, sizes, Protocol(**view))[1])
    classes = np.asarray(predict_classes(*made, images, sizes, Protocol(**view, crf=CRF)))
    assert classes.shape == (3, 65, 97)
    for index, picture in enumerate(pictures):
        inside = (slice(picture.shape[0]), slice(picture.shape[1]))
        alone = mean_field(jnp.asarray(probabilities[index][inside]), jnp.asarray(picture), crf=CRF)
        # Sums of other lengths round otherwise.
        assert (classes[index][inside] == np.argmax(alone, -1)).mean() > 0.999
        assert (classes[index][inside] != probabilities[index][inside].argmax(-1)).mean() > 0.01


@pytest.mark.slow
def test_segment_takes_a_crf(made) -> None:
    """True takes the published parameters."""
    picture = image_of(40, 50)
    probabilities = jax.nn.softmax(jnp.asarray(logits_of(made, picture)))
    for crf, parameters in ((CRF, CRF), (True, DenseCRF())):
        refined = segment(*made, picture, crf=crf)
        assert refined.shape == (40, 50) and refined.dtype == np.int32
        expected = np.argmax(mean_field(probabilities, jnp.asarray(picture), crf=parameters), -1)
        assert (refined == expected).mean() > 0.999
    np.testing.assert_array_equal(segment(*made, picture, crf=DenseCRF(iterations=0)), segment(*made, picture))


@pytest.mark.parametrize("mode", ["padded", pytest.param("exact", marks=pytest.mark.slow)])
def test_evaluate_counts_what_the_crf_predicts(made, mode) -> None:
    source = MadeUp(((60, 60), (49, 65), (60, 60)))
    predicted = {}
    protocol = Protocol(mode=mode, pad_to=((65, 65),))
    results = evaluate(
        *made,
        source,
        dataclasses.replace(protocol, crf=CRF),
        batch_size=2,
        on_prediction=lambda e, classes: predicted.update({e["name"]: classes}),
    )
    assert results["protocol"]["crf"] == dataclasses.asdict(CRF)
    assert results["protocol"]["crf"]["method"] == "fast"
    counts = np.zeros((4, 4), int)
    for index in range(3):
        example = source[index]
        valid = example["label"] != 255
        np.add.at(counts, (example["label"][valid], predicted[example["name"]][valid]), 1)
    np.testing.assert_array_equal(results["confusion_matrix"], counts)
    without = evaluate(*made, source, protocol, batch_size=2)
    assert without["protocol"]["crf"] is None and without["confusion_matrix"] != results["confusion_matrix"]
    if mode == "exact":
        for index in range(3):
            example = source[index]
            assert (predicted[example["name"]] == segment(*made, example["image"], crf=CRF)).mean() > 0.999


def test_predict_files_takes_a_crf(made, tmp_path) -> None:
    picture = image_of(49, 71)
    write_image(tmp_path / "one.png", picture)
    protocol, made_labels = Protocol(mode="exact", crf=CRF), label_set({}, made[0])
    done = list(
        predict_files(*made, find_images([tmp_path / "one.png"]), Outputs(tmp_path / "out", made_labels), protocol)
    )
    assert [error for _, error in done] == [None]
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "one.png"), segment(*made, picture, crf=CRF))


@pytest.mark.slow
def test_a_network_that_sees_only_the_centre_segments_whole_images() -> None:
    """U-Net without padding continues the image by mirroring; scales and flips work as for any other."""
    model = create_model("unet", num_classes=3, padding="valid", width=1 / 64, decoder_channels=(4, 4, 4, 4))
    variables = make_variables(model)
    image = np.random.default_rng(0).integers(0, 256, (41, 52, 3)).astype(np.uint8)
    assert segment(model, variables, image).shape == (41, 52)
    assert segment(model, variables, image, scales=(1.0, 1.5), flip=True).shape == (41, 52)
    pads = ((0, 0), (92, 188 + 48 - 41 - 92), (92, 188 + 48 - 52 - 92), (0, 0))
    mirrored = np.pad(np.asarray(model.preprocessing(image[None])), pads, mode="symmetric")
    logits = jax.jit(partial(model.apply, train=False))(variables, mirrored)
    np.testing.assert_array_equal(segment(model, variables, image), np.argmax(logits, -1)[0, :41, :52])
