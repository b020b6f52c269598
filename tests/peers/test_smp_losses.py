"""Losses of segmentation_models_pytorch and their gradients, against ours of the same definition."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops.losses import LOSSES, Loss, mean_loss
from tests.peers.parity import import_peer

smp = import_peer("segmentation_models_pytorch")

IGNORED = {"ignore_index": 255}


def make_batch(mode: str, *, ignore: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, H, W, K]` and labels; with ignored pixels, or without. A softmax has a class without a pixel."""
    rng = np.random.default_rng(0)
    size, classes = (3, 8, 7), {"multiclass": 4, "binary": 1, "multilabel": 3}[mode]
    values = [*range(3 if mode == "multiclass" else 2), *([255] if ignore else [])]
    labels = rng.choice(values, (*size, classes) if mode == "multilabel" else size)
    return 2 * rng.normal(size=(*size, classes)).astype(np.float32), labels.astype(np.uint8)


def assert_same(ours: Loss, theirs: Any, logits: np.ndarray, labels: np.ndarray, **how: Any) -> None:
    """The mean loss and its gradient are those of a function of PyTorch."""
    import torch

    tensor = torch.tensor(np.moveaxis(logits, -1, 1), requires_grad=True)
    target = torch.from_numpy(np.moveaxis(labels, -1, 1) if labels.ndim == 4 else labels).long()
    expected = theirs(tensor, target)
    expected.backward()

    def loss(logits: jax.Array) -> jax.Array:
        total, count, _ = ours(logits, jnp.asarray(labels), align_corners=True, **how)
        return mean_loss(total, count)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits))
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.moveaxis(tensor.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize(
    ("name", "peer", "options", "smooth"),
    [
        ("dice", "DiceLoss", {}, 0.0),
        ("dice", "DiceLoss", {}, 2.0),
        ("jaccard", "JaccardLoss", {}, 2.0),
        ("tversky", "TverskyLoss", {"alpha": 0.3, "beta": 0.7}, 0.0),
        ("tversky", "TverskyLoss", {"alpha": 0.9, "beta": 0.2}, 2.0),
    ],
)
def test_regions(mode: str, name: str, peer: str, options: dict[str, float], smooth: float) -> None:
    ours = partial(LOSSES[name], region_smooth=smooth, **{f"tversky_{key}": value for key, value in options.items()})
    theirs = getattr(smp.losses, peer)(mode, smooth=smooth, **IGNORED, **options)
    assert_same(ours, theirs, *make_batch(mode))


@pytest.mark.parametrize(("name", "peer"), [("dice", "DiceLoss"), ("jaccard", "JaccardLoss")])
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_regions_with_class_weights(mode: str, name: str, peer: str) -> None:
    logits, labels = make_batch(mode)
    weights = [0.5, 2.0, 1.0, 3.0][: logits.shape[-1]]
    theirs = getattr(smp.losses, peer)(mode, class_weights=weights, **IGNORED)
    assert_same(LOSSES[name], theirs, logits, labels, class_weights=jnp.asarray(weights))


def test_the_power_of_focal_tversky() -> None:
    """For one class, of which the mean is the class's own."""
    theirs = smp.losses.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=0.75, **IGNORED)
    assert_same(partial(LOSSES["tversky"], tversky_gamma=0.75), theirs, *make_batch("binary"))


@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_lovasz(mode: str) -> None:
    assert_same(LOSSES["lovasz"], smp.losses.LovaszLoss(mode, **IGNORED), *make_batch(mode))


def test_lovasz_of_several_labels_is_the_mean_over_them() -> None:
    """Where the peer sorts the pixels of all classes together."""
    one = smp.losses.LovaszLoss("binary", **IGNORED)

    def theirs(logits: Any, labels: Any) -> Any:
        return sum(one(logits[:, k], labels[:, k]) for k in range(3)) / 3

    assert_same(LOSSES["lovasz"], theirs, *make_batch("multilabel"))


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (1.5, 0.25)])
def test_focal(gamma: float, alpha: float | None) -> None:
    ours = partial(LOSSES["focal"], focal_gamma=gamma, focal_alpha=alpha or 0.0)
    theirs = partial(smp.losses.FocalLoss, gamma=gamma, alpha=alpha)
    assert_same(ours, theirs("binary", **IGNORED), *make_batch("binary"))
    assert_same(ours, theirs("multilabel"), *make_batch("multilabel", ignore=False))


def test_focal_of_a_softmax() -> None:
    from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

    assert_same(LOSSES["focal"], softmax_focal_loss_with_logits, *make_batch("multiclass", ignore=False))


def test_smoothed_labels() -> None:
    theirs = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=None)
    ours = partial(LOSSES["cross_entropy"], smoothing=0.1)
    logits, labels = make_batch("multiclass", ignore=False)
    import torch

    assert_same(ours, theirs, logits, labels)
    ignoring = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=255)
    assert_same(ours, ignoring, *make_batch("multiclass"))
    # Half of our share: the other half stays with the label's own value.
    theirs = smp.losses.SoftBCEWithLogitsLoss(smooth_factor=0.05, ignore_index=None)
    assert_same(ours, theirs, *make_batch("multilabel", ignore=False))
