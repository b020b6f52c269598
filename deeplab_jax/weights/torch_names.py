"""Names that PyTorch code bases share: those of torchvision's backbones."""

from deeplab_jax.weights.recipe import Rule, Shapes

COUNTERS = r"num_batches_tracked$"
# Units of blocks 1 to 4, and whether they are bottlenecks.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


def resnet_rules(prefix: str = "") -> tuple[Rule, ...]:
    """Return the names of a ResNet under a prefix such as "backbone."."""
    return (
        (r"backbone/conv1", (f"{prefix}conv1", f"{prefix}bn1")),
        (
            r"backbone/conv(\d+)_unit(\d+)/conv(\d+)",
            lambda s, u, c: (f"{prefix}layer{s - 1}.{u - 1}.conv{c}", f"{prefix}layer{s - 1}.{u - 1}.bn{c}"),
        ),
        (
            r"backbone/conv(\d+)_unit(\d+)/shortcut",
            lambda s, u: (
                f"{prefix}layer{s - 1}.{u - 1}.downsample.0",
                f"{prefix}layer{s - 1}.{u - 1}.downsample.1",
            ),
        ),
    )


def which_resnet(shapes: Shapes, prefix: str = "") -> str | None:
    """Return the name of the ResNet whose units are there under a prefix, or None."""
    for name, (units, bottleneck) in RESNETS.items():
        last = [f"{prefix}layer{stage}.{count - 1}.conv1.weight" for stage, count in enumerate(units, 1)]
        beyond = [f"{prefix}layer{stage}.{count}.conv1.weight" for stage, count in enumerate(units, 1)]
        if (
            all(key in shapes for key in last)
            and not any(key in shapes for key in beyond)
            and (f"{prefix}layer1.0.conv3.weight" in shapes) == bottleneck
        ):
            return name
    return None
