"""torchvision's segmentation models, and its ImageNet classifiers as backbones (timm's ResNets have the same names)."""

from deeplab_jax.labels import VOC
from deeplab_jax.weights.recipe import TORCH, Recipe, Rule, Shapes
from deeplab_jax.weights.torch_names import COUNTERS, resnet_rules, which_resnet

VOC_INFO = {"class_names": list(VOC.names), "palette": [list(colour) for colour in VOC.palette]}

HEADS: dict[str, tuple[Rule, ...]] = {
    "deeplabv3": (
        (r"context/branch_1x1", ("classifier.0.convs.0.0", "classifier.0.convs.0.1")),
        (r"context/branch_atrous(\d)", lambda i: (f"classifier.0.convs.{i}.0", f"classifier.0.convs.{i}.1")),
        (r"context/image_pooling", ("classifier.0.convs.4.1", "classifier.0.convs.4.2")),
        (r"context/projection", ("classifier.0.project.0", "classifier.0.project.1")),
        (r"context/head1", ("classifier.1", "classifier.2")),
        (r"classifier", ("classifier.4", "")),
    ),
    "fcn": (
        (r"context/conv", ("classifier.0", "classifier.1")),
        (r"classifier", ("classifier.4", "")),
    ),
}
AUX: tuple[Rule, ...] = (
    (r"aux_head/conv", ("aux_classifier.0", "aux_classifier.1")),
    (r"aux_head/classifier", ("aux_classifier.4", "")),
)


def recognise(shapes: Shapes, *, output_stride: int | None) -> Recipe | None:
    """Describe a state dict of deeplabv3_resnet50/101 or fcn_resnet50/101; None where it is of something else."""
    backbone = which_resnet(shapes, "backbone.")
    classifier = shapes.get("classifier.4.weight")
    if backbone is None or classifier is None:
        return None
    stride = 8 if output_stride is None else output_stride
    architecture = "deeplabv3" if "classifier.0.project.0.weight" in shapes else "fcn"
    options: dict[str, object] = {"align_corners": False}
    notes = ["bilinear resizes do not align corners"]
    if architecture == "deeplabv3":
        # The rates are 12, 24, 36 at any output stride; ours are stated at 16.
        rates = tuple(rate * stride // 16 for rate in (12, 24, 36))
        options |= {"multi_grid": (1, 1, 1), "aspp_rates": rates, "head_convs": ((3, 256),), "dropout": 0.5}
        notes += ["rates 12, 24, 36", "one more 3x3 convolution after the pyramid", "no multi-grid"]
    return Recipe(
        kind="torchvision",
        name=f"{architecture}_{backbone}",
        num_classes=classifier[0],
        output_stride=stride,
        options=options | {"aux_head": "aux_classifier.4.weight" in shapes, "norm_momentum": 0.9},
        rules=(*resnet_rules("backbone."), *HEADS[architecture], *AUX),
        layout=TORCH,
        unused=(COUNTERS,),
        notes=tuple(notes),
        info=VOC_INFO if classifier[0] == 21 else {},
    )
