"""torchvision's segmentation models (its ImageNet classifiers: `imagenet`)."""

from dataclasses import replace
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.weights.importers.torch_names import (
    COUNTERS,
    aspp_rules,
    is_mobilenet_v3,
    mobilenet_v3_rules,
    resnet_rules,
    which_resnet,
)
from deeplab_jax.weights.peer_networks import spelt
from deeplab_jax.weights.tensor_map import Rule, Shapes, TensorMap

PREFIX = "backbone."
# Name to the output stride at which torchvision runs it.
NETWORKS = {
    "deeplabv3_resnet50": 8,
    "deeplabv3_resnet101": 8,
    "deeplabv3_mobilenet_v3_large": 16,
    "fcn_resnet50": 8,
    "fcn_resnet101": 8,
    "lraspp_mobilenet_v3_large": 16,
}
RATES = (12, 24, 36)  # The same at any output stride; ours are stated at 16.

HEADS: dict[str, tuple[Rule, ...]] = {
    "deeplabv3": (
        *aspp_rules("classifier.0"),
        (r"context/head1", ("classifier.1", "classifier.2")),
        (r"classifier", ("classifier.4", "")),
    ),
    "fcn": (
        (r"context/conv", ("classifier.0", "classifier.1")),
        (r"classifier", ("classifier.4", "")),
    ),
    "lraspp": (
        (r"decoder/reduction", ("classifier.cbr.0", "classifier.cbr.1")),
        (r"decoder/gate", ("classifier.scale.1", "")),
        (r"decoder/classifier_(\w+)", lambda level: (f"classifier.{level}_classifier", "")),
    ),
}
AUX: tuple[Rule, ...] = (
    (r"aux_head/conv", ("aux_classifier.0", "aux_classifier.1")),
    (r"aux_head/classifier", ("aux_classifier.4", "")),
)


def rules_of(name: str) -> tuple[Rule, ...]:
    """Return torchvision's names for the layers of one of our models; none if it has no such network."""
    if name not in NETWORKS:
        return ()
    architecture, backbone = name.split("_", 1)
    names = mobilenet_v3_rules if backbone == "mobilenet_v3_large" else resnet_rules
    return (*names(PREFIX), *HEADS[architecture], *AUX)


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of one of `NETWORKS`; return None for any other.

    People exchange the classifier of a published network, and keep its auxiliary head with 21 classes. Inference does
    not need that head, so it is left out then.
    """
    backbone = which_resnet(shapes, PREFIX)
    if backbone is None and is_mobilenet_v3(shapes, PREFIX):
        backbone = "mobilenet_v3_large"
    if "classifier.0.project.0.weight" in shapes:
        architecture = "deeplabv3"
    else:
        architecture = "lraspp" if "classifier.cbr.0.weight" in shapes else "fcn"
    name = f"{architecture}_{backbone}"
    logits = shapes.get("classifier.low_classifier.weight" if architecture == "lraspp" else "classifier.4.weight")
    if name not in NETWORKS or not logits:
        return None
    aux = shapes.get("aux_classifier.4.weight")
    same = aux is not None and aux[:1] == logits[:1]
    found = network(name, num_classes=logits[0], output_stride=output_stride, aux_head=same)
    if aux is None or same:
        return found
    note = f"without the auxiliary head, which has {aux[0]} classes" if aux else "without the auxiliary head"
    return replace(found, unused=(*found.unused, r"^aux_classifier\."), notes=(*found.notes, note))


def how_to_build(model: Segmenter) -> str:
    """Return the call that builds torchvision's network."""
    described = describe(model)
    arguments: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": model.num_classes}
    if not described["name"].startswith("lraspp"):
        arguments["aux_loss"] = model.aux_features is not None
    return f"torchvision.models.segmentation.{described['name']}({spelt(arguments)})"


def network(name: str, *, num_classes: int, output_stride: int | None = None, aux_head: bool = False) -> TensorMap:
    """Describe one of torchvision's networks.

    Args:
      name: one of `NETWORKS`.
      num_classes: classes of the network.
      output_stride: None is torchvision's; other values act like its `replace_stride_with_dilation`.
      aux_head: whether it has the auxiliary head.

    Raises:
      UserError: an output stride at which we have no equal rates.
    """
    stride = NETWORKS[name] if output_stride is None else output_stride
    architecture, backbone = name.split("_", 1)
    options: dict[str, object] = {"align_corners": False}
    notes = ["bilinear resizes do not align corners"]
    if architecture == "deeplabv3":
        if any(rate * stride % 16 for rate in RATES):
            raise UserError(f"output_stride={stride}: torchvision's rates {RATES} fit 4, 8, 16 and 32 only")
        rates = tuple(rate * stride // 16 for rate in RATES)
        options |= {"aspp_rates": rates, "head_convs": ((3, 256),), "dropout": 0.5}
        notes += [f"rates {RATES[0]}, {RATES[1]}, {RATES[2]}", "one more 3x3 convolution after the pyramid"]
        if backbone.startswith("resnet"):
            options["multi_grid"] = (1, 1, 1)
            notes += ["no multi-grid"]
    if architecture == "lraspp":
        notes += ["the gate averages the whole map"]
    else:
        options["aux_head"] = aux_head
    if backbone == "mobilenet_v3_large":
        notes += [
            "every convolution of the dilated stage dilated",
            "running statistics decay by 0.99 in the heads too, torchvision's there by 0.9",
        ]
    return TensorMap(
        name=name,
        num_classes=num_classes,
        output_stride=stride,
        options=options | {"norm_momentum": 0.99 if backbone == "mobilenet_v3_large" else 0.9},
        rules=rules_of(name),
        unused=(COUNTERS,),
        notes=tuple(notes),
    )
