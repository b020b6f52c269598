"""Cross-entropy over labelled pixels: hand values, ignored pixels, weights, hard-pixel mining, gradients, sigmoids."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from deeplab_jax.ops.losses import (
    LOSSES,
    mean_loss,
    pixelwise,
    sum_hardest,
    upsampled_losses,
    valid_pixels,
)
from deeplab_jax.ops.resize import resize_bilinear
from tests.support.losses import cross_entropy
from tests.support.params import first_fast

# One program for each shape compiles faster than its operations one by one.
jit_cross_entropy = jax.jit(cross_entropy, static_argnames="top_k")
LN2, LN3, LN4 = np.log(2), np.log(3), np.log(4)
# Softmax (1/4, 3/4) at every pixel: label 0 costs ln 4, label 1 costs ln 4/3.
LOGITS = jnp.broadcast_to(jnp.asarray([0.0, LN3], jnp.float32), (4, 2))
LABELS = jnp.asarray([0, 1, 255, 0])


def random_batch(size: tuple[int, ...] = (2, 6, 5), classes: int = 4, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(*size, classes)) * 2, jnp.float32)
    return logits, jnp.asarray(rng.integers(0, classes, size), jnp.int32)


def with_border(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Surround a batch by ignored pixels whose logits are wild."""
    n, height, width, classes = logits.shape
    wide = np.random.default_rng(1).normal(size=(n, height + 5, width + 5, classes)).astype(np.float32) * 50
    ignored = np.full((n, height + 5, width + 5), 255, np.int32)
    wide[:, 3:-2, 1:-4], ignored[:, 3:-2, 1:-4] = logits, labels
    return jnp.asarray(wide), jnp.asarray(ignored)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("options", "total", "count"),
    [
        ({}, 2 * LN4 + (LN4 - LN3), 3),
        ({"class_weights": jnp.asarray([2.0, 0.5])}, 4 * LN4 + 0.5 * (LN4 - LN3), 3),
        ({"top_k": 1 / 3}, LN4, 1),
        ({"top_k": 0.5}, 2 * LN4, 2),  # half of 3 labelled pixels, rounded up
        ({"top_k": 1.0}, 2 * LN4 + (LN4 - LN3), 3),
        # The weighted losses are ranked: ln 4 / 10 < ln 4/3.
        ({"top_k": 0.3, "class_weights": jnp.asarray([0.1, 1.0])}, LN4 - LN3, 1),
    ],
)
def test_by_hand(jit: bool, options: dict[str, Any], total: float, count: int) -> None:
    def loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return cross_entropy(logits, labels, **options)

    found, pixels = (jax.jit(loss) if jit else loss)(LOGITS, LABELS)
    assert found.dtype == pixels.dtype == jnp.float32
    assert float(found) == pytest.approx(total, rel=1e-6)
    assert float(pixels) == count


def test_valid_pixels() -> None:
    assert valid_pixels(LABELS).tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_the_dtype_of_the_labels_does_not_matter(dtype: Any) -> None:
    total, count = cross_entropy(LOGITS, LABELS.astype(dtype))
    assert float(total) == pytest.approx(2 * LN4 + LN4 - LN3, rel=1e-6)
    assert float(count) == 3


@pytest.mark.parametrize("top_k", [1.0, 0.25])
def test_an_ignored_border_equals_the_crop(top_k: float) -> None:
    logits, labels = random_batch()
    weights = jnp.asarray([1.0, 2.0, 0.0, 0.5])
    total, count = jit_cross_entropy(logits, labels, class_weights=weights, top_k=top_k)
    padded = with_border(logits, labels)
    padded_total, padded_count = jit_cross_entropy(*padded, class_weights=weights, top_k=top_k)
    assert float(padded_count) == float(count) == np.ceil(top_k * labels.size)
    assert float(padded_total) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize("top_k", [1.0, 0.25])
def test_ignored_pixels_get_no_gradient(top_k: float) -> None:
    logits, labels = random_batch()
    padded_logits, padded_labels = with_border(logits, labels)

    @jax.jit
    @jax.grad
    def gradient(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return mean_loss(*cross_entropy(logits, labels, top_k=top_k))

    inner, outer = gradient(logits, labels), gradient(padded_logits, padded_labels)
    np.testing.assert_allclose(outer[:, 3:-2, 1:-4], inner, atol=1e-7)
    assert not np.any(np.asarray(outer)[np.asarray(padded_labels) == 255])


@pytest.mark.parametrize("top_k", [1.0, 0.25])
def test_a_batch_without_labels_gives_zero_and_a_finite_gradient(top_k: float) -> None:
    logits, labels = random_batch()

    def loss(logits: jax.Array) -> jax.Array:
        return mean_loss(*cross_entropy(logits, jnp.full_like(labels, 255), top_k=top_k))

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert float(value) == 0
    assert not np.any(np.asarray(gradient))  # NaN counts as true


def test_the_gradient_by_hand() -> None:
    """Softmax minus one-hot, times the class weight, at labelled pixels."""
    weights = jnp.asarray([2.0, 0.5])
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, LABELS, class_weights=weights)[0]))(LOGITS)
    np.testing.assert_allclose(gradient, [[-1.5, 1.5], [0.125, -0.125], [0, 0], [-1.5, 1.5]], atol=1e-6)


def test_mined_pixels_alone_get_a_gradient() -> None:
    logits = jnp.asarray([[0, 0], [0, 5], [5, 0], [0, 1]], jnp.float32)  # losses ln 2, about 5, about 0.007, about 1.3
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, jnp.zeros(4, int), top_k=0.5)[0]))(logits)
    assert np.any(np.asarray(gradient) != 0, axis=1).tolist() == [False, True, False, True]


def test_the_gradient_equals_finite_differences() -> None:
    logits, labels = random_batch((2, 3))
    labels = labels.at[0, 1].set(255)
    weights = jnp.asarray([1.0, 2.0, 0.5, 3.0])

    @jax.jit
    def loss(logits: jax.Array) -> jax.Array:
        return mean_loss(*cross_entropy(logits, labels, class_weights=weights, top_k=0.7))

    check_grads(loss, (logits,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.asarray([[1e4, -1e4], [-1e4, 1e4]], jnp.float32)
    assert float(cross_entropy(logits, jnp.asarray([0, 1]))[0]) == 0
    assert float(cross_entropy(logits, jnp.asarray([1, 1]))[0]) == 2e4


def test_bfloat16_logits_are_added_in_float32() -> None:
    """A sum in bfloat16 would stop growing at 256 ln 2."""
    total, count = jit_cross_entropy(jnp.zeros((40, 50, 2), jnp.bfloat16), jnp.zeros((40, 50), jnp.uint8))
    assert total.dtype == jnp.float32
    assert float(total) == pytest.approx(2000 * LN2, rel=1e-5)
    assert float(count) == 2000


def test_sums_and_counts_add_up_over_parts() -> None:
    logits, labels = random_batch()
    labels = labels.at[0, :, 2].set(255)
    whole = jit_cross_entropy(logits, labels)
    parts = [jit_cross_entropy(logits[i], labels[i]) for i in (0, 1)]
    assert float(whole[0]) == pytest.approx(sum(float(p[0]) for p in parts), rel=1e-6)
    assert float(whole[1]) == sum(float(p[1]) for p in parts)


@pytest.mark.parametrize("top_k", [1.0, 0.25])
def test_a_sharded_batch_gives_the_loss_of_the_whole(top_k: float) -> None:
    """The hardest pixels are those of the global batch, not of each device's share."""
    devices = len(jax.devices())
    logits, labels = random_batch((devices, 4, 3))
    labels = labels.at[0].set(255)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    batch = NamedSharding(mesh, PartitionSpec("data"))

    total, count = jit_cross_entropy(*jax.device_put((logits, labels), batch), top_k=top_k)
    expected, pixels = jit_cross_entropy(logits, labels, top_k=top_k)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert float(count) == float(pixels)


def test_mean_loss_by_hand() -> None:
    assert float(mean_loss(jnp.asarray(6.0), jnp.asarray(4.0))) == 1.5
    assert float(mean_loss(jnp.asarray(0.0), jnp.asarray(0.0))) == 0


def test_shapes_that_do_not_fit_raise() -> None:
    with pytest.raises(AssertionError):
        cross_entropy(jnp.zeros((2, 3, 4)), jnp.zeros((3, 2), int))


WEIGHTS = {"class_weights": jnp.asarray([2.0, 0.5, 1.0, 3.0])}


@pytest.mark.parametrize("size", first_fast([((65, 33),), ((6, 5),), ((17, 17),), ((129, 65),), ((200, 9),)]))
@pytest.mark.parametrize(
    ("options", "align_corners"),
    first_fast(
        [({}, True), ({"top_k": 0.3}, False), (WEIGHTS, True), ({}, False), ({"top_k": 0.3}, True), (WEIGHTS, False)],
        fast=3,
    ),
)
def test_losses_in_bands_are_those_of_the_resized_logits(
    size: tuple[int, int], options: dict[str, Any], align_corners: bool
) -> None:
    coarse, _ = random_batch((2, 6, 5))
    _, labels = random_batch((2, *size), seed=1)
    labels = labels.at[:, :2].set(255)
    top_k, weights = options.get("top_k", 1.0), options.get("class_weights")

    def at_once(coarse: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = resize_bilinear(coarse, size, align_corners=align_corners)
        return cross_entropy(logits, labels, **options)[0], jnp.argmax(logits, -1) == labels

    def in_bands(coarse: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, right = upsampled_losses(coarse, labels, align_corners=align_corners, class_weights=weights)
        return sum_hardest(losses, valid_pixels(labels), top_k=top_k)[0], right

    (expected, right), gradient = jax.jit(jax.value_and_grad(at_once, has_aux=True))(coarse)
    (found, found_right), found_gradient = jax.jit(jax.value_and_grad(in_bands, has_aux=True))(coarse)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    # A pixel whose logits of two classes are alike to the last digit may fall either way.
    assert np.mean(np.asarray(right != found_right)) < 1e-3
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-4, atol=1e-4)


def test_the_loss_of_resized_logits_holds_less_than_one_full_resolution_tensor() -> None:
    classes, size = 21, (513, 513)
    coarse = jax.ShapeDtypeStruct((2, 33, 33, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, *size), jnp.uint8)

    def loss(coarse: jax.Array, labels: jax.Array) -> jax.Array:
        losses, _ = upsampled_losses(coarse, labels, align_corners=True)
        return sum_hardest(losses, valid_pixels(labels))[0]

    program = jax.jit(jax.grad(loss)).lower(coarse, labels).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2 * size[0] * size[1] * classes * 4


@pytest.mark.parametrize(("height", "parts"), first_fast([(132, 4), (96, 3), (64, 2), (200, 2)], fast=2))
def test_bands_of_parts_give_what_bands_of_the_whole_give(height, parts) -> None:
    """A pixel's loss does not depend on the band that it is in."""
    rng = np.random.default_rng(0)
    coarse = jnp.asarray(rng.normal(size=(2, 9, 5, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, (2, height, 17)), jnp.uint8)
    labels = jnp.where(labels == 3, 255, labels)
    whole, split = (
        jax.jit(partial(upsampled_losses, align_corners=True, **options))(coarse, labels)
        for options in ({}, {"parts": parts})
    )
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
        assert one.shape == labels.shape


def test_rows_that_do_not_split_are_one_part() -> None:
    """Labels that were resized to logits can have an odd number of rows."""
    rng = np.random.default_rng(0)
    coarse = jnp.asarray(rng.normal(size=(1, 3, 3, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, (1, 5, 5)), jnp.int32)
    whole, split = (upsampled_losses(coarse, labels, align_corners=True, parts=parts) for parts in (1, 2))
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_of_the_table_is_cross_entropy_on_resized_logits() -> None:
    logits, _ = random_batch((2, 5, 5))
    labels = with_border(*random_batch((2, 6, 8)))[1]
    weights = jnp.asarray([1.0, 2.0, 0.5, 3.0])
    resized = resize_bilinear(logits, labels.shape[1:3], align_corners=True)
    for options in ({}, {"top_k": 0.3}, {"class_weights": weights}):
        total, count, right = jax.jit(partial(LOSSES["cross_entropy"], align_corners=True, **options))(logits, labels)
        expected = jit_cross_entropy(resized, labels, **options)
        np.testing.assert_allclose((total, count), expected, rtol=1e-5)
        np.testing.assert_array_equal(right, jnp.argmax(resized, -1) == labels)


def test_any_loss_of_pixels_makes_a_loss() -> None:
    """Here one that counts wrong pixels."""
    logits, labels = random_batch()
    wrong = partial(pixelwise, lambda logits, labels, class_weights: (jnp.argmax(logits, -1) != labels) * 1.0)
    total, count, right = wrong(logits, labels, align_corners=True)
    assert count == labels.size and total == count - right.sum()


# Sigmoids: one logit for two classes, and several labels a pixel.


@pytest.mark.parametrize(
    ("options", "total", "count"),
    [
        ({}, 2 * LN4 + (LN4 - LN3), 3),
        ({"class_weights": jnp.asarray([2.0, 0.5])}, 4 * LN4 + 0.5 * (LN4 - LN3), 3),
        ({"top_k": 1 / 3}, LN4, 1),
    ],
)
def test_one_logit_by_hand(options: dict[str, Any], total: float, count: int) -> None:
    """The sigmoid is 3/4 at every pixel: label 0 costs ln 4, label 1 costs ln 4/3."""
    found, pixels = cross_entropy(LOGITS[:, 1:], LABELS, **options)
    assert float(found) == pytest.approx(total, rel=1e-6)
    assert float(pixels) == count


def test_several_labels_by_hand() -> None:
    """Two pixels with two labels each; the sigmoids are 3/4 and 1/2, and one label is unknown."""
    logits = jnp.broadcast_to(jnp.asarray([LN3, 0.0], jnp.float32), (2, 2))
    labels = jnp.asarray([[1, 0], [0, 255]])
    total, count = cross_entropy(logits, labels)
    assert float(total) == pytest.approx((LN4 - LN3) + LN2 + LN4, rel=1e-6)
    assert float(count) == 3
    weighted, _ = cross_entropy(logits, labels, class_weights=jnp.asarray([2.0, 10.0]))
    assert float(weighted) == pytest.approx(2 * (LN4 - LN3) + 10 * LN2 + 2 * LN4, rel=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_sigmoids_cost_what_optax_says(several: bool) -> None:
    logits, _ = random_batch(classes=3 if several else 1)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 2, logits.shape), jnp.uint8)
    expected = optax.sigmoid_binary_cross_entropy(logits, labels)
    total, count = jit_cross_entropy(logits, labels if several else labels[..., 0])
    assert float(total) == pytest.approx(float(expected.sum()), rel=1e-6)
    assert float(count) == labels.size


@pytest.mark.parametrize("options", [{}, {"top_k": 0.3}, {"class_weights": jnp.asarray([2.0, 0.5])}])
def test_one_logit_is_a_softmax_of_it_and_zero(options: dict[str, Any]) -> None:
    """In bands, too; the loss, its gradient, and which pixels are right."""
    coarse, _ = random_batch((2, 6, 5), classes=1)
    labels = jnp.asarray(np.random.default_rng(1).choice([0, 1, 255], (2, 129, 65)), jnp.uint8)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def one(z: jax.Array) -> tuple[jax.Array, Any]:
        total, *rest = LOSSES["cross_entropy"](z, labels, align_corners=True, **options)
        return total, rest

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def two(z: jax.Array) -> tuple[jax.Array, Any]:
        pair = jnp.concatenate([jnp.zeros_like(z), z], axis=-1)
        total, *rest = LOSSES["cross_entropy"](pair, labels, align_corners=True, **options)
        return total, rest

    (total, (count, right)), gradient = one(coarse)
    (expected, (pixels, expected_right)), expected_gradient = two(coarse)
    assert float(total) == pytest.approx(float(expected), rel=1e-6) and float(count) == float(pixels)
    np.testing.assert_array_equal(right, expected_right)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_each_of_several_labels_is_one_logit() -> None:
    """In bands of parts; unknown labels of one class do not touch the others."""
    coarse, _ = random_batch((2, 6, 5), classes=3)
    labels = jnp.asarray(np.random.default_rng(1).choice([0, 1, 255], (2, 132, 17, 3)), jnp.uint8)
    losses, right = jax.jit(partial(upsampled_losses, align_corners=True, parts=2))(coarse, labels)
    assert losses.shape == right.shape == labels.shape
    for k in range(3):
        alone = upsampled_losses(coarse[..., k : k + 1], labels[..., k], align_corners=True)
        np.testing.assert_allclose(losses[..., k], alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(right[..., k], alone[1])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_sigmoids_without_labels_have_a_gradient_of_zero(shape: tuple[int, ...]) -> None:
    logits = 1e4 * jnp.ones((4, 5, 1 if len(shape) == 2 else 3))

    def loss(logits: jax.Array) -> jax.Array:
        return mean_loss(*cross_entropy(logits, jnp.full(shape, 255)))

    value, gradient = jax.value_and_grad(loss)(logits)
    assert float(value) == 0 and not np.any(np.asarray(gradient))  # NaN counts as true


def test_a_confident_sigmoid_keeps_its_digits() -> None:
    """Of a logit of 20, label 1 costs exp(-20); a difference of two large numbers would be 0."""
    assert float(cross_entropy(jnp.asarray([[20.0]]), jnp.asarray([1]))[0]) == pytest.approx(np.exp(-20), rel=1e-5)
    assert float(cross_entropy(jnp.asarray([[-1e4]]), jnp.asarray([1]))[0]) == 1e4


def test_one_logit_in_bands_holds_no_full_resolution_tensor_more() -> None:
    """Than the softmax of two: the labels, the losses and which are right."""
    size = (513, 513)
    labels = jax.ShapeDtypeStruct((2, *size), jnp.uint8)

    def memory(classes: int) -> int:
        def loss(coarse: jax.Array, labels: jax.Array) -> jax.Array:
            losses, _ = upsampled_losses(coarse, labels, align_corners=True)
            return sum_hardest(losses, valid_pixels(labels))[0]

        coarse = jax.ShapeDtypeStruct((2, 33, 33, classes), jnp.float32)
        return int(jax.jit(jax.grad(loss)).lower(coarse, labels).compile().memory_analysis().temp_size_in_bytes)

    assert memory(1) <= memory(2)
