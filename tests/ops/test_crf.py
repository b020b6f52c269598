"""DenseCRF: equal to a mean field by brute force, and what can be said of it by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops import crf as ops_crf
from deeplab_jax.ops.crf import DenseCRF, mean_field
from tests.support.params import first_fast

# Wide enough in colour for random pictures to have neighbours.
WIDE = DenseCRF(iterations=3, position_bandwidth=5.0, colour_bandwidth=60.0, smoothness_bandwidth=1.5)
METHODS = ("exact", "fast")


def brute_force(probabilities, image, crf, mask=None):
    """The mean field in float64 with the kernels as N x N matrices, over the pixels of the mask alone."""
    height, width, classes = probabilities.shape
    inside = np.ones((height, width), bool) if mask is None else mask
    rows, columns = np.nonzero(inside)
    position = np.stack([rows, columns], -1).astype(np.float64)
    colour = image[inside].astype(np.float64)

    def square(x):
        return ((x[:, None] - x[None]) ** 2).sum(-1)

    kernels = (
        crf.appearance_weight
        * normalised(
            np.exp(-square(position) / (2 * crf.position_bandwidth**2) - square(colour) / (2 * crf.colour_bandwidth**2))
        ),
        crf.smoothness_weight * normalised(np.exp(-square(position) / (2 * crf.smoothness_bandwidth**2))),
    )
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-37))
    start = np.exp(logs) / np.exp(logs).sum(-1, keepdims=True)
    current = start[inside]
    for _ in range(crf.iterations):
        logits = logs[inside] + sum(kernel @ current for kernel in kernels)
        logits = np.exp(logits - logits.max(-1, keepdims=True))
        current = logits / logits.sum(-1, keepdims=True)
    result = start.copy()
    result[inside] = current
    return result.reshape(height, width, classes)


def normalised(kernel):
    norm = 1 / np.sqrt(kernel.sum(1))
    return norm[:, None] * kernel * norm


def random_inputs(height, width, classes, *, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(height, width, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    # Patches of colour with noise on them, so that the appearance kernel has something to join.
    patches = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3))
    image = np.repeat(np.repeat(patches, 4, 0), 4, 1)[:height, :width] + rng.integers(-4, 5, (height, width, 3))
    return probabilities.astype(np.float32), np.clip(image, 0, 255).astype(np.uint8)


def run(probabilities, image, crf, mask=None):
    mask = None if mask is None else jnp.asarray(mask)
    return np.asarray(mean_field(jnp.asarray(probabilities), jnp.asarray(image), mask, crf=crf))


# The exact form.


@pytest.mark.parametrize(
    ("size", "classes", "crf"),
    first_fast(
        [
            ((50, 47), 3, WIDE),  # More than one block of queries and sources.
            ((16, 23), 5, dataclasses.replace(WIDE, iterations=5)),
            ((1, 1), 3, WIDE),
            ((7, 5), 2, dataclasses.replace(WIDE, iterations=1)),
            ((20, 12), 12, DenseCRF()),
            ((9, 30), 4, dataclasses.replace(WIDE, colour_bandwidth=1.0, iterations=4)),
        ]
    ),
)
@pytest.mark.parametrize("method", METHODS)
def test_mean_field_is_that_of_brute_force(size, classes, crf, method) -> None:
    """Images this small have no far cells, so that the fast form is exact as well."""
    probabilities, image = random_inputs(*size, classes)
    result = run(probabilities, image, dataclasses.replace(crf, method=method))
    np.testing.assert_allclose(result, brute_force(probabilities, image, crf), atol=1e-4)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)


def test_extreme_colours_lose_no_precision() -> None:
    """Black and white, where |a|^2 + |b|^2 - 2 a.b cancels most, with a bandwidth of a quarter of a level."""
    probabilities, image = random_inputs(12, 12, 3)
    image = np.where(image > 127, 255, 0).astype(np.uint8)
    crf = dataclasses.replace(WIDE, colour_bandwidth=0.25, method="exact")
    np.testing.assert_allclose(run(probabilities, image, crf), brute_force(probabilities, image, crf), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_masked_pixels_are_left_out(method) -> None:
    probabilities, image = random_inputs(14, 17, 4)
    mask = np.random.default_rng(1).random((14, 17)) < 0.7
    result = run(probabilities, image, dataclasses.replace(WIDE, method=method), mask)
    np.testing.assert_allclose(result, brute_force(probabilities, image, WIDE, mask), atol=1e-4)
    np.testing.assert_allclose(result[~mask], probabilities[~mask], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(method) -> None:
    """80 x 85 pixels and, padded with whatever, 84 x 88: both are 64 cells, of which each has half near."""
    probabilities, image = random_inputs(80, 85, 3)
    crf = dataclasses.replace(WIDE, method=method)
    padded, painted = random_inputs(84, 88, 3, seed=1)
    padded[:80, :85], painted[:80, :85] = probabilities, image
    mask = np.zeros((84, 88), bool)
    mask[:80, :85] = True
    result = run(padded, painted, crf, mask)[:80, :85]
    np.testing.assert_allclose(result, run(probabilities, image, crf), atol=1e-4)


# The fast form.


def picture():
    """60 x 130 pixels of three soft areas with texture, and noisy logits of their classes."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:60, :130]
    area = (columns > 40 + 10 * np.sin(rows / 9)).astype(int) + (rows > 30 + columns / 8)
    image = np.array([[60, 90, 150], [120, 110, 90], [40, 120, 50]])[area] + 6 * rng.normal(size=(60, 130, 3))
    logits = 2.0 * (area[..., None] == np.arange(3)) + rng.normal(size=(60, 130, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return area, probabilities.astype(np.float32), np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_the_fast_form_is_near_the_exact_one(monkeypatch) -> None:
    """128 cells of 61 pixels, of which each sees 32 exactly; with all of them it is the exact form."""
    _, probabilities, image = picture()
    crf = DenseCRF(iterations=5)
    exact = run(probabilities, image, dataclasses.replace(crf, method="exact"))
    fast = run(probabilities, image, crf)
    changed = (exact.argmax(-1) != probabilities.argmax(-1)).mean()
    assert changed > 0.05 and (fast.argmax(-1) == exact.argmax(-1)).mean() > 0.998
    assert 1e-6 < np.abs(fast - exact).mean() < 5e-3
    monkeypatch.setattr(ops_crf, "NEAR_CELLS", 128)
    all_near = dataclasses.replace(crf, iterations=4)
    exact = run(probabilities, image, dataclasses.replace(all_near, method="exact"))
    np.testing.assert_allclose(run(probabilities, image, all_near), exact, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.4, 1.0])
def test_cells_hold_every_pixel_once(share) -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 5, (1000, 3)).astype(np.float32)  # With many ties.
    mask = rng.random(1000) < share
    members = np.asarray(ops_crf._cells(jnp.asarray(features), jnp.asarray(mask), 64))
    assert members.shape == (64, 16)
    np.testing.assert_array_equal(np.sort(members[members < 1000]), np.flatnonzero(mask))
    sizes = (members < 1000).sum(1)
    assert sizes.max() - sizes.min() <= 1


def test_cells_are_median_splits_of_the_longest_axis() -> None:
    features = np.array([[0, 0], [10, 1], [1, 5], [11, 0], [2, 0], [12, 7.0], [99, 99]], np.float32)
    mask = np.arange(7) < 6
    members = np.asarray(ops_crf._cells(jnp.asarray(features), jnp.asarray(mask), 4))
    # First at 10 of the first axis; 0, 2, 4 then by the second axis, and so are 1, 3, 5.
    assert [set(cell) - {7} for cell in members.tolist()] == [{0, 4}, {2}, {1, 3}, {5}]


# By hand.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("changes", [{"appearance_weight": 0.0, "smoothness_weight": 0.0}, {"iterations": 0}])
def test_nothing_to_do_leaves_the_probabilities(method, changes) -> None:
    probabilities, image = random_inputs(8, 9, 4)
    crf = dataclasses.replace(WIDE, method=method, **changes)
    np.testing.assert_allclose(run(probabilities, image, crf), probabilities, atol=1e-6)
    # Nor need they sum to 1.
    np.testing.assert_allclose(run(7 * probabilities, image, crf), probabilities, atol=1e-6)


def test_one_iteration_by_hand() -> None:
    """Two pixels of one colour, one apart: with e = exp(-1/2) / (1 + exp(-1/2)), message = (1 - e) own + e other."""
    probabilities = np.array([[[0.9, 0.1], [0.4, 0.6]]], np.float32)
    crf = DenseCRF(iterations=1, appearance_weight=0.0, smoothness_weight=3.0, smoothness_bandwidth=1.0)
    other = np.exp(-0.5) / (1 + np.exp(-0.5))
    message = (1 - other) * 0.9 + other * 0.4
    odds = 0.9 / 0.1 * np.exp(3 * (message - (1 - message)))
    result = run(probabilities, np.zeros((1, 2, 3), np.uint8), crf)
    np.testing.assert_allclose(result[0, 0], [odds / (1 + odds), 1 / (1 + odds)], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_without_appearance_the_image_does_not_matter(method) -> None:
    """The smoothness kernel alone removes one wrong pixel, whatever the colours."""
    probabilities = np.tile(np.float32([0.8, 0.2]), (11, 11, 1))
    probabilities[5, 5] = [0.3, 0.7]
    crf = dataclasses.replace(WIDE, appearance_weight=0.0, method=method)
    _, image = random_inputs(11, 11, 2)
    result = run(probabilities, image, crf)
    assert (result.argmax(-1) == 0).all()
    np.testing.assert_array_equal(result, run(probabilities, np.zeros_like(image), crf))
    np.testing.assert_allclose(result, result[::-1, ::-1].transpose(1, 0, 2), atol=1e-5)


def test_a_constant_image_makes_appearance_a_position_kernel() -> None:
    probabilities, image = random_inputs(13, 10, 3)
    kernel = {"iterations": 2, "smoothness_weight": 0.0, "appearance_weight": 2.5, "position_bandwidth": 2.0}
    appearance = dataclasses.replace(WIDE, **kernel)
    smoothness = DenseCRF(iterations=2, appearance_weight=0.0, smoothness_weight=2.5, smoothness_bandwidth=2.0)
    constant = np.full_like(image, 77)
    np.testing.assert_allclose(
        run(probabilities, constant, appearance), run(probabilities, constant, smoothness), atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_labels_snap_to_the_edge_of_two_colours(method) -> None:
    """Probabilities that change class three pixels left of the edge, with noise, and a slanted edge."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :48]
    edge = columns >= 20 + rows // 8
    likeliest = columns >= 17 + rows // 8
    confidence = np.clip(0.75 + 0.15 * rng.normal(size=edge.shape), 0.3, 0.95)
    confidence[likeliest != edge] = 0.55
    second = np.where(likeliest, confidence, 1 - confidence)
    probabilities = np.stack([1 - second, second], -1).astype(np.float32)
    image = np.where(edge[..., None], np.uint8([200, 180, 40]), np.uint8([30, 60, 90]))
    assert (probabilities.argmax(-1) != edge).mean() > 0.06
    result = run(probabilities, image, DenseCRF(iterations=5, method=method))
    np.testing.assert_array_equal(result.argmax(-1), edge)


@pytest.mark.parametrize("method", METHODS)
def test_permuting_the_classes_permutes_the_result(method) -> None:
    probabilities, image = random_inputs(12, 15, 5)
    crf = dataclasses.replace(WIDE, method=method)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(
        run(probabilities[..., order], image, crf), run(probabilities, image, crf)[..., order], atol=1e-5
    )


def test_probabilities_of_zero_stay_finite() -> None:
    probabilities, image = random_inputs(6, 6, 3)
    probabilities[..., 2] = 0
    probabilities[0, 0] = [1, 0, 0]
    result = run(probabilities, image, WIDE)
    assert np.isfinite(result).all() and (result[..., 2] < 1e-20).all() and result[0, 0, 0] == 1


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"colour_bandwidth": 0.0}, {"smoothness_bandwidth": -1.0}, {"iterations": -1}, {"method": "quick"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DenseCRF(**wrong)
    probabilities, image = random_inputs(6, 7, 3)
    for arguments in ((probabilities[:5], image), (probabilities, image, np.ones((7, 6), bool))):
        with pytest.raises(ValueError, match=r"expected \[H, W, K\]"):
            mean_field(*map(jnp.asarray, arguments))
