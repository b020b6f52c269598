"""The peers' own networks of the table's entries, by the entry's name, with random weights."""

from typing import Any

from deeplab_jax.weights.published import PUBLISHED
from tests.peers.parity import import_peer

OWNERS = ("torchvision", "timm", "smp", "google")
"""Those whose code is installed; `GOLDEN` of `published_tensors` has the others."""
NAMES = [name for name in PUBLISHED if name.partition("/")[0] in OWNERS]


def make(name: str) -> Any:
    """Return the network whose state dict the entry's file holds."""
    owner, _, model = name.partition("/")
    if owner == "timm":
        return import_peer("timm").create_model(model, pretrained=False)
    if owner == "google":
        transformers = import_peer("transformers")
        config = transformers.MobileNetV2Config(output_stride=8, num_labels=21, semantic_loss_ignore_index=255)
        return transformers.MobileNetV2ForSemanticSegmentation(config)
    models = import_peer("torchvision").models
    if model.endswith("_coco"):
        # With weights its builders add the auxiliary head, which LR-ASPP has not.
        options = {} if model.startswith("lraspp") else {"aux_loss": True}
        make_model = getattr(models.segmentation, model.removesuffix("_coco"))
        return make_model(weights=None, weights_backbone=None, num_classes=21, **options)
    # smp's files are torchvision's classifiers: its encoders drop "fc." and "classifier." of them.
    return getattr(models, model.partition(".")[0])(weights=None)
