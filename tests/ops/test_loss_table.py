"""Every loss of the table `LOSSES`: hand values, ignored pixels, missing classes, bands of rows, devices, memory."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from deeplab_jax.evaluate.boundary import boundary_distance
from deeplab_jax.ops.loss_lovasz import jaccard_weights
from deeplab_jax.ops.losses import LOSSES, Loss, mean_loss, near_boundary, pixel_losses, weighted_sum
from deeplab_jax.ops.resize import resize_bilinear
from tests.support.params import first_fast

LN2, LN3, LN4 = np.log(2), np.log(3), np.log(4)
# Softmax (1/4, 3/4) at each of four pixels of one image. The logits' last column alone has the sigmoid 3/4.
LOGITS = jnp.broadcast_to(jnp.asarray([0.0, LN3], jnp.float32), (1, 1, 4, 2))
LABELS = jnp.asarray([[[0, 1, 255, 0]]], jnp.uint8)
RIGHT, WRONG = LN4 - LN3, LN4  # Cross-entropy of label 1, and of label 0.

# One of each kind, with numbers that matter on small maps. The sum has the cross-entropy and Dice.
TABLE: dict[str, Loss] = {
    "boundary_cross_entropy": partial(LOSSES["boundary_cross_entropy"], top_k=0.5, smoothing=0.2, boundary_width=1),
    "focal": partial(LOSSES["focal"], focal_gamma=0.5),
    "ohem": partial(LOSSES["ohem"], ohem_min_kept=7),
    "tversky": partial(LOSSES["tversky"], tversky_gamma=0.75, region_smooth=1.0),
    "lovasz": LOSSES["lovasz"],
    "sum": partial(weighted_sum, [(1.0, LOSSES["cross_entropy"]), (0.5, LOSSES["dice"])]),
}
FORMS = ("softmax", "one_logit", "several")


def make_batch(form: str, size: tuple[int, int, int] = (2, 6, 5), *, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Random logits and labels, of which some are ignored; class 3 of a softmax is nowhere."""
    rng = np.random.default_rng(seed)
    classes = {"softmax": 4, "one_logit": 1, "several": 3}[form]
    logits = rng.normal(size=(*size, classes)) * 2
    shape = size if form != "several" else (*size, classes)
    labels = rng.choice([0, 1, 2, 255] if form == "softmax" else [0, 1, 255], shape)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.uint8)


@cache
def programs(*, names: tuple[str, ...] = tuple(TABLE), **options: Any) -> Any:
    """One program of the values and gradients of several losses."""

    def value(logits: jax.Array, labels: jax.Array, loss: Loss) -> jax.Array:
        total, count, _ = loss(logits, labels, align_corners=True, **options)
        return mean_loss(total, count)

    return jax.jit(lambda x, y: {name: jax.value_and_grad(value)(x, y, TABLE[name]) for name in names})


def run(loss: Loss, logits: jax.Array, labels: jax.Array, **options: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One program compiles faster than its operations one by one."""
    return jax.jit(partial(loss, align_corners=True, **options))(logits, labels)


@pytest.mark.parametrize(
    ("name", "options", "softmax", "one_logit"),
    [
        ("cross_entropy", {}, (2 * WRONG + RIGHT) / 3, (2 * WRONG + RIGHT) / 3),
        # Each label costs 0.9 of its own, and 0.1 of the other.
        ("cross_entropy", {"smoothing": 0.2}, (1.9 * WRONG + 1.1 * RIGHT) / 3, (1.9 * WRONG + 1.1 * RIGHT) / 3),
        ("focal", {}, (2 * 9 / 16 * WRONG + RIGHT / 16) / 3, (2 * 9 / 16 * WRONG + RIGHT / 16) / 3),
        ("focal", {"focal_gamma": 0.0}, (2 * WRONG + RIGHT) / 3, (2 * WRONG + RIGHT) / 3),
        ("focal", {"focal_gamma": 1.0, "focal_alpha": 0.25}, None, (2 * 0.75 * 0.75 * WRONG + RIGHT / 16) / 3),
        ("ohem", {"ohem_threshold": 0.5, "ohem_min_kept": 1}, WRONG, WRONG),
        ("ohem", {"ohem_threshold": 0.8, "ohem_min_kept": 1}, (2 * WRONG + RIGHT) / 3, (2 * WRONG + RIGHT) / 3),
        # Two are as hard as the hardest; then there are fewer than four labelled ones.
        ("ohem", {"ohem_threshold": 0.1, "ohem_min_kept": 1}, WRONG, WRONG),
        ("ohem", {"ohem_threshold": 0.1, "ohem_min_kept": 4}, (2 * WRONG + RIGHT) / 3, (2 * WRONG + RIGHT) / 3),
        # The first two pixels touch.
        (
            "boundary_cross_entropy",
            {"boundary_width": 1, "boundary_weight": 3.0},
            (3 * WRONG + 3 * RIGHT + WRONG) / 3,
            (3 * WRONG + 3 * RIGHT + WRONG) / 3,
        ),
        # With (TP, found, there) = (1/2, 3/4, 2) of class 0, and (3/4, 9/4, 1) of class 1.
        ("dice", {}, 1 - (4 / 11 + 6 / 13) / 2, 1 - 6 / 13),
        ("dice", {"region_smooth": 1.0}, 1 - (1.5 / 2.375 + 1.75 / 2.625) / 2, 1 - 1.75 / 2.625),
        ("jaccard", {}, 1 - (2 / 9 + 3 / 10) / 2, 1 - 3 / 10),
        ("tversky", {}, 1 - (4 / 13 + 6 / 11) / 2, 1 - 6 / 11),
        ("tversky", {"tversky_gamma": 2.0}, ((9 / 13) ** 2 + (5 / 11) ** 2) / 2, (5 / 11) ** 2),
        ("tversky", {"tversky_alpha": 0.0, "tversky_beta": 1.0}, 1 - (0.25 + 0.75) / 2, 1 - 0.75),
        # Errors of class 0: 3/4 and 3/4 on it, 1/4 beside it; the Jaccard loss goes 1/2, 1, 1.
        # Errors of class 1: 3/4 and 3/4 beside it, 1/4 on it; the Jaccard loss goes 1/2, 2/3, 1.
        # The hinge of the label 1 is 0, since ln 3 is more than 1.
        ("lovasz", {}, (3 / 4 + 7 / 12) / 2, (1 + LN3) * 2 / 3),
    ],
)
def test_by_hand(name: str, options: dict[str, Any], softmax: float | None, one_logit: float) -> None:
    for logits, expected in ((LOGITS, softmax), (LOGITS[..., 1:], one_logit)):
        if expected is not None:
            total, count, right = run(LOSSES[name], logits, LABELS, **options)
            assert total.dtype == count.dtype == jnp.float32 and total.shape == count.shape == ()
            assert float(total / count) == pytest.approx(expected, rel=1e-5)
            assert right.tolist() == [[[False, True, False, False]]]


@pytest.mark.parametrize(("name", "of_classes"), [("dice", (7 / 11, 7 / 13)), ("lovasz", (3 / 4, 7 / 12))])
def test_class_weights_make_a_weighted_mean_of_classes(name: str, of_classes: tuple[float, float]) -> None:
    weights = jnp.asarray([3.0, 1.0])
    total, count, _ = run(LOSSES[name], LOGITS, LABELS, class_weights=weights)
    assert float(total / count) == pytest.approx((3 * of_classes[0] + of_classes[1]) / 4, rel=1e-5)
    one, two = (run(LOSSES[name], LOGITS[..., 1:], LABELS, class_weights=given)[0] for given in (weights, None))
    assert float(one) == float(two)


def test_class_weights_do_not_change_which_pixels_are_hard() -> None:
    how = {"ohem_threshold": 0.5, "ohem_min_kept": 1}
    total, count, _ = run(LOSSES["ohem"], LOGITS, LABELS, class_weights=jnp.asarray([0.1, 9.0]), **how)
    assert float(total) == pytest.approx(0.2 * WRONG, rel=1e-5) and float(count) == 2


def test_a_class_without_a_pixel_costs_nothing() -> None:
    """In a region's mean it counts, as in segmentation_models_pytorch; in that of Lovász-softmax it does not."""
    labels = jnp.zeros_like(LABELS)
    expected = {"dice": (1 - 2 / 5) / 2, "jaccard": (1 - 1 / 4) / 2, "lovasz": 3 / 4}
    for name, value in expected.items():
        total, count, _ = run(LOSSES[name], LOGITS, labels)
        assert float(total / count) == pytest.approx(value, rel=1e-5), name
    # Without an object: nothing, or the largest hinge.
    for name, value in {"dice": 0.0, "lovasz": 1 + LN3}.items():
        total, count, _ = run(LOSSES[name], LOGITS[..., 1:], labels)
        assert float(total / count) == pytest.approx(value, rel=1e-5), name


def test_a_sum_is_that_of_the_means() -> None:
    """Also where a loss counts some of the pixels only."""
    loss = partial(weighted_sum, [(2.0, LOSSES["cross_entropy"]), (0.5, LOSSES["dice"])])
    total, count, right = run(loss, LOGITS, LABELS, top_k=1 / 3)
    assert float(count) == 3 and right.shape == LABELS.shape
    assert float(total / count) == pytest.approx(2 * WRONG + 0.5 * (1 - (4 / 11 + 6 / 13) / 2), rel=1e-5)


def test_focal_losses_are_those_of_optax() -> None:
    logits, labels = make_batch("several")
    labels = jnp.where(labels == 255, 0, labels)
    for gamma, alpha in ((2.0, 0.25), (0.5, 0.0)):
        total, count, _ = run(LOSSES["focal"], logits, labels, focal_gamma=gamma, focal_alpha=alpha)
        expected = optax.sigmoid_focal_loss(logits, labels.astype(jnp.float32), alpha=alpha or None, gamma=gamma)
        assert float(total) == pytest.approx(float(expected.sum()), rel=1e-5)
        assert float(count) == labels.size


def test_smoothed_labels_are_those_of_optax() -> None:
    logits, labels = make_batch("softmax")
    target = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.1)
    expected = jnp.where(labels == 255, 0, optax.softmax_cross_entropy(logits, target))
    np.testing.assert_allclose(pixel_losses(logits, labels, smoothing=0.1), expected, rtol=1e-5, atol=1e-6)
    logits, labels = make_batch("several")
    target = optax.smooth_labels(jax.nn.one_hot(labels, 2), 0.1)[..., 1]
    expected = optax.sigmoid_binary_cross_entropy(logits, target)
    expected = jnp.where(labels == 255, 0, expected)
    np.testing.assert_allclose(pixel_losses(logits, labels, smoothing=0.1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", first_fast(FORMS))
def test_logits_of_ignored_pixels_do_not_matter(form: str) -> None:
    """Wild ones change no loss, and get no gradient."""
    logits, labels = make_batch(form)
    labels = labels.at[:, 4:].set(255)
    ignored = np.broadcast_to(labels if form == "several" else labels[..., None], logits.shape) == 255
    wild = jnp.where(ignored, 50 * np.random.default_rng(1).normal(size=logits.shape).astype(np.float32), logits)
    found, expected = programs()(wild, labels), programs()(logits, labels)
    for name in TABLE:
        (value, gradient), (other, wild_gradient) = expected[name], found[name]
        assert float(value) > 0 and np.any(np.asarray(gradient)) and ignored.mean() > 1 / 3
        assert float(other) == pytest.approx(float(value), rel=1e-6), name
        np.testing.assert_allclose(wild_gradient, gradient, atol=1e-7, err_msg=name)
        assert not np.any(np.asarray(wild_gradient)[ignored]), name


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_an_ignored_border_equals_the_crop(form: str) -> None:
    logits, labels = make_batch(form)
    border = [(0, 0), (3, 2), (1, 4)]
    wide = jnp.pad(logits, [*border, (0, 0)], constant_values=50)
    wide_labels = jnp.pad(labels, [*border, *[(0, 0)] * (labels.ndim - 3)], constant_values=255)
    found = programs()(wide, wide_labels)
    for name, (value, gradient) in programs()(logits, labels).items():
        assert float(found[name][0]) == pytest.approx(float(value), rel=1e-5), name
        np.testing.assert_allclose(found[name][1][:, 3:-2, 1:-4], gradient, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_for_empty_images_and_classes(form: str) -> None:
    """Without a labelled pixel a loss and its gradient are 0, even with logits whose softmax is 0 or 1."""
    logits, labels = make_batch(form)
    for empty in (jnp.full_like(labels, 255), labels.at[0].set(255), jnp.zeros_like(labels), jnp.ones_like(labels)):
        for scale in (1.0, 1e4):
            for name, (value, gradient) in programs()(scale * logits, empty).items():
                assert np.isfinite(float(value)) and np.isfinite(np.asarray(gradient)).all(), (name, scale)
                if empty.min() == 255:
                    assert float(value) == 0 and not np.any(np.asarray(gradient)), name


def test_a_perfect_prediction_costs_nothing() -> None:
    labels = jnp.asarray([[[0, 1, 1, 0]]], jnp.uint8)
    logits = jnp.where(jax.nn.one_hot(labels, 2) == 1, 60.0, -60.0)
    for form in (logits, logits[..., 1:]):
        for name in ("focal", "dice", "lovasz"):
            total, count, _ = run(LOSSES[name], form, labels)
            assert float(total / count) == pytest.approx(0, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_finite_differences(form: str) -> None:
    logits, labels = make_batch(form, (1, 2, 3))
    logits = logits / 4  # Away from where the probabilities are flat.

    @jax.jit
    def loss(x: jax.Array) -> jax.Array:
        names = ("focal", "tversky", "lovasz")
        return sum(mean_loss(*TABLE[name](x, labels, align_corners=True)[:2]) for name in names)

    check_grads(loss, (logits,), order=1, modes=["rev"], atol=1e-2, rtol=2e-2, eps=1e-3)


@pytest.mark.parametrize(
    ("form", "names"),
    [("softmax", ("ohem", "tversky", "lovasz"))]
    + [pytest.param(form, tuple(TABLE), marks=pytest.mark.slow) for form in FORMS],
)
def test_bands_on_several_devices_give_the_losses_of_the_whole(form: str, names: tuple[str, ...]) -> None:
    """The sums and the ranks are those of the global batch and of all bands, also if an image has no label. Images and
    their rows are split over the devices.
    """
    devices = len(jax.devices())
    parts = 2 if devices % 2 == 0 else 1
    coarse, _ = make_batch(form, (devices, 6, 3))
    _, labels = make_batch(form, (devices, 130, 5), seed=1)
    labels = labels.at[0].set(255)
    mesh = jax.make_mesh((devices // parts, parts), ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    places = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec("data", "space"))
    found = programs(names=names, parts=parts)(*jax.device_put((coarse, labels), places))
    resized, back = jax.vjp(lambda x: resize_bilinear(x, (130, 5), align_corners=True), coarse)
    for name, (value, gradient) in programs(names=names)(resized, labels).items():
        assert float(found[name][0]) == pytest.approx(float(value), rel=1e-5), name
        np.testing.assert_allclose(found[name][1], back(gradient)[0], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_bands_on_one_device_give_the_losses_of_the_whole(form: str) -> None:
    coarse, _ = make_batch(form, (2, 6, 5))
    _, labels = make_batch(form, (2, 130, 17), seed=1)
    resized, back = jax.vjp(lambda x: resize_bilinear(x, (130, 17), align_corners=True), coarse)
    found = programs()(coarse, labels)
    for name, (value, gradient) in programs()(resized, labels).items():
        assert float(found[name][0]) == pytest.approx(float(value), rel=1e-5), name
        np.testing.assert_allclose(found[name][1], back(gradient)[0], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_every_loss_falls_along_its_gradient(form: str) -> None:
    coarse, _ = make_batch(form, (2, 6, 5))
    _, labels = make_batch(form, (2, 6, 5), seed=1)
    for name, (before, gradient) in programs()(coarse, labels).items():
        step = 0.1 * gradient / jnp.linalg.norm(gradient)
        assert float(programs()(coarse - step, labels)[name][0]) < float(before), name


def test_near_a_boundary_by_hand() -> None:
    """An ignored pixel is no other label, and one behind it is still seen."""
    labels = jnp.asarray([[[0, 0, 0, 1, 1, 255, 1, 255, 0]]], jnp.uint8)
    near = [near_boundary(labels, width=width)[0, 0].astype(int).tolist() for width in (1, 2)]
    assert near == [[0, 0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize("width", [1, 3])
def test_near_is_within_the_distance_of_the_evaluation(width: int) -> None:
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (3, 3)), np.ones((7, 6))).astype(np.uint8)
    expected = boundary_distance(labels) <= width
    several = np.stack([labels == k for k in range(3)], -1).astype(np.uint8)
    np.testing.assert_array_equal(near_boundary(jnp.asarray(labels[None]), width=width)[0], expected)
    for k in range(3):
        np.testing.assert_array_equal(
            near_boundary(jnp.asarray(several[None]), width=width)[0, ..., k],
            boundary_distance(several[..., k]) <= width,
        )


def test_the_weights_of_lovasz_keep_their_digits() -> None:
    """Of many pixels: they sum to 1, and are positive down to the last pixel of the class. Differences of float32
    Jaccard losses have few digits.
    """
    rng = np.random.default_rng(0)
    errors, there = rng.random(100_000, np.float32), rng.random(100_000) < 0.3
    weights = np.asarray(jaccard_weights(jnp.asarray(errors), jnp.asarray(there), jnp.ones(errors.shape, bool)))
    assert weights.sum(dtype=np.float64) == pytest.approx(1, rel=1e-5)
    order = np.lexsort((~there, -errors))  # A few errors are equal: there the pixels of the class come first.
    last = np.flatnonzero(there[order])[-1]
    assert weights[order][: last + 1].min() > 0 and not weights[order][last + 1 :].any()
    sorted_there = there[order].astype(np.float64)
    losses = 1 - (sorted_there.sum() - sorted_there.cumsum()) / (sorted_there.sum() + (1 - sorted_there).cumsum())
    np.testing.assert_allclose(weights[order], np.diff(losses, prepend=0), rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("name", ["dice", "lovasz", pytest.param("boundary_cross_entropy", marks=pytest.mark.slow)])
def test_a_loss_holds_less_than_one_full_resolution_tensor(name: str) -> None:
    classes, size = 21, (513, 513)
    coarse = jax.ShapeDtypeStruct((2, 33, 33, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, *size), jnp.uint8)
    gradient = jax.grad(lambda x, y: LOSSES[name](x, y, align_corners=True)[0])
    program = jax.jit(gradient).lower(coarse, labels).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2 * size[0] * size[1] * classes * 4


@pytest.mark.parametrize("name", LOSSES)
def test_a_misspelt_option_is_refused(name: str) -> None:
    logits, labels = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4), jnp.uint8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'region_smoth'"):
        LOSSES[name](logits, labels, align_corners=True, class_weights=None, top_k=1.0, parts=1, region_smoth=30.0)
