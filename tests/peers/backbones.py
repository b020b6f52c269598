"""What the comparisons of ImageNet backbones share: the features of each stage, at output stride 32."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deeplab_jax.models.catalog import describe, from_description
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.weights.folder import flatten_variables
from tests.peers.parity import LOGITS, run_peer

RESNET_STAGES = {"layer1": "conv2", "layer2": "conv3", "layer3": "conv4", "layer4": "conv5"}
STAGES: dict[str, dict[str, str]] = {
    "resnet18": RESNET_STAGES,
    "resnet34": RESNET_STAGES,
    "resnet50": RESNET_STAGES,
    "resnet101": RESNET_STAGES,
    "mobilenet_v2": {"1": "conv1", "3": "conv2", "6": "conv3", "13": "conv4", "17": "conv5"},
    "mobilenet_v3_large": {"2": "conv2", "4": "conv3", "7": "conv4", "16": "conv5"},
    "vgg16": {"4": "pool1", "9": "pool2", "16": "pool3", "23": "pool4", "30": "pool5"},
    "vgg16_bn": {"6": "pool1", "13": "pool2", "23": "pool3", "33": "pool4", "43": "pool5"},
}


def zeros(model: Segmenter, names: Sequence[str]) -> dict[str, np.ndarray]:
    """In place of initial values, whose program takes longer to compile than all else; the backbone needs none."""
    shapes = flatten_variables(abstract_variables(model))
    return {name: np.zeros(shapes[name].shape, np.float32) for name in names}


def assert_same_features(
    name: str, peer: Any, model: Segmenter, variables: Variables, images: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the stages of a backbone (a key of `STAGES`) with the peer's, and return both by our names.

    Ours is built without multi-grid, which classifiers do not have.
    """
    from torchvision.models._utils import IntermediateLayerGetter

    if "resnet" in name:
        described = describe(model)
        grid = (1,) * len(model.backbone.multi_grid)
        model = from_description({**described, "options": {**described["options"], "multi_grid": grid}})
    model = model.clone(output_stride=32)
    theirs = run_peer(IntermediateLayerGetter(peer if "resnet" in name else peer.features, STAGES[name]), images)
    apply: Callable[..., Any] = jax.jit(
        lambda v, x: {stage: array for stage, (array, _) in model.apply(v, x, method="features").items()}
    )
    ours = apply(variables, images)
    for stage, expected in theirs.items():
        _assert_same(ours[stage], expected)
    return theirs, ours


def assert_same_fc7(theirs: Any, ours: dict[str, Any], *, channels: int) -> None:
    """Compare what VGG-16's classifier computes of a map of 7x7 (`[1, C]`) with our kernels in the map's middle."""
    assert ours["context"].shape == (1, 7, 7, channels)
    _assert_same(ours["context"][:, 3:4, 3:4], theirs.detach().reshape(1, channels, 1, 1))


def _assert_same(ours: Any, theirs: Any) -> None:
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= LOGITS * np.abs(expected).max()
