"""Names that PyTorch code bases share: those of torchvision's backbones."""

from collections.abc import Callable

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.mobilenet_v3 import ROWS, STEM_CHANNELS
from deeplab_jax.weights.tensor_map import Rule, Shapes

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
    """Return the name of the ResNet with these units under a prefix, or None."""
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


# The number in `features` of the last unit before each of our stages.
MOBILENET_V2_STAGES = {1: 0, 2: 1, 3: 3, 4: 6, 5: 13}


def mobilenet_v2_rules(
    prefix: str = "", *, features: Callable[[int], str] = lambda place: f"features.{place}"
) -> tuple[Rule, ...]:
    """Return the names of torchvision's MobileNetV2.

    Args:
      prefix: prefix of the names, such as "encoder.".
      features: names the entry at a place of its list of layers.
    """

    def entry(place: int) -> str:
        return f"{prefix}{features(place)}"

    def unit(stage: int, number: int) -> str:
        return f"{entry(MOBILENET_V2_STAGES[stage] + number)}.conv"

    # The first unit does not expand, so its other layers have a number less by one.
    return (
        (r"backbone/stem", (f"{entry(0)}.0", f"{entry(0)}.1")),
        (r"backbone/conv(\d)_unit(\d+)/expand", lambda s, u: (f"{unit(s, u)}.0.0", f"{unit(s, u)}.0.1")),
        (r"backbone/conv1_unit1/depthwise", (f"{unit(1, 1)}.0.0", f"{unit(1, 1)}.0.1")),
        (r"backbone/conv(\d)_unit(\d+)/depthwise", lambda s, u: (f"{unit(s, u)}.1.0", f"{unit(s, u)}.1.1")),
        (r"backbone/conv1_unit1/project", (f"{unit(1, 1)}.1", f"{unit(1, 1)}.2")),
        (r"backbone/conv(\d)_unit(\d+)/project", lambda s, u: (f"{unit(s, u)}.2", f"{unit(s, u)}.3")),
        (r"backbone/last", (f"{entry(18)}.0", f"{entry(18)}.1")),
    )


def mobilenet_v3_rules(prefix: str = "") -> tuple[Rule, ...]:
    """Return the names of torchvision's MobileNetV3-Large under a prefix such as "backbone."."""
    rules: list[Rule] = [(r"backbone/stem", (f"{prefix}0.0", f"{prefix}0.1"))]
    count: dict[str, int] = {}
    channels = STEM_CHANNELS
    for index, (_, expanded, narrow, squeeze, _, _, stage) in enumerate(ROWS, 1):
        count[stage] = count.get(stage, 0) + 1
        ours = f"backbone/{stage}_unit{count[stage]}"
        layers = ["expand"] * (expanded != channels) + ["depthwise"] + ["squeeze"] * squeeze + ["project"]
        for place, layer in enumerate(layers):
            theirs = f"{prefix}{index}.block.{place}"
            if layer == "squeeze":
                rules += [
                    (f"{ours}/squeeze/reduce", (f"{theirs}.fc1", "")),
                    (f"{ours}/squeeze/expand", (f"{theirs}.fc2", "")),
                ]
            else:
                rules.append((f"{ours}/{layer}", (f"{theirs}.0", f"{theirs}.1")))
        channels = narrow
    last = f"{prefix}{len(ROWS) + 1}"
    return (*rules, (r"backbone/conv5_last", (f"{last}.0", f"{last}.1")))


def is_mobilenet_v3(shapes: Shapes, prefix: str = "") -> bool:
    """Return whether torchvision's MobileNetV3-Large, of width 1, is under a prefix."""
    last = shapes.get(f"{prefix}{len(ROWS) + 1}.0.weight")
    return f"{prefix}1.block.0.0.weight" in shapes and last is not None and tuple(last[:2]) == (960, 160)


def xception_rules(prefix: str, *, units: int, bare: int) -> tuple[Rule, ...]:
    """Return the names that PyTorch code bases give Xception, without its last unit, which has no shortcut.

    Args:
      prefix: prefix of the names, such as "backbone.".
      units: number of units with a shortcut.
      bare: number of units, from the first, that do not begin with a ReLU.
    """

    def block(stage: int, unit: int) -> int:
        # Stages 2, 3 and 4 begin at units 1, 2 and 3; the middle flow belongs to stage 4, the last unit to stage 5.
        return units if stage == 5 else stage - 2 + unit

    def layer(stage: int, unit: int, conv: int) -> tuple[str, str]:
        number = block(stage, unit)
        position = 3 * conv - (3 if number <= bare else 2)
        root = f"{prefix}block{number}.rep."
        return f"{root}{position}", f"{root}{position + 1}"

    path = r"backbone/conv(\d)_unit(\d+)"
    return (
        (r"backbone/stem_conv(\d)", lambda i: (f"{prefix}conv{i}", f"{prefix}bn{i}")),
        (
            f"{path}/shortcut",
            lambda s, u: (f"{prefix}block{block(s, u)}.skip", f"{prefix}block{block(s, u)}.skipbn"),
        ),
        (
            rf"{path}/separable(\d)/depthwise",
            lambda s, u, c: (f"{layer(s, u, c)[0]}.conv1", f"{layer(s, u, c)[0]}.bn"),
        ),
        (
            rf"{path}/separable(\d)/pointwise",
            lambda s, u, c: (f"{layer(s, u, c)[0]}.pointwise", layer(s, u, c)[1]),
        ),
    )


def aspp_rules(root: str, *, inside: str = "") -> tuple[Rule, ...]:
    """Return the names that torchvision's ASPP has, and those of code bases made from it.

    Args:
      root: the name of the ASPP.
      inside: of a separable branch: what its two convolutions' names have before their numbers, such as "body.".
    """
    return (
        (r"context/branch_1x1", (f"{root}.convs.0.0", f"{root}.convs.0.1")),
        (r"context/branch_atrous(\d)", lambda i: (f"{root}.convs.{i}.0", f"{root}.convs.{i}.1")),
        (r"context/branch_atrous(\d)/depthwise", lambda i: (f"{root}.convs.{i}.0.{inside}0", "")),
        (r"context/branch_atrous(\d)/pointwise", lambda i: (f"{root}.convs.{i}.0.{inside}1", f"{root}.convs.{i}.1")),
        (r"context/image_pooling", (f"{root}.convs.4.1", f"{root}.convs.4.2")),
        (r"context/projection", (f"{root}.project.0", f"{root}.project.1")),
    )


def stride_of_8_or_16(asked: int | None, *, default: int, whose: str) -> int:
    """Return the output stride at which a code base that has only 8 and 16 runs a network.

    Raises:
      UserError: any other number.
    """
    if asked not in (None, 8, 16):
        raise UserError(f"output_stride={asked}: {whose} networks run at 8 or 16")
    return default if asked is None else asked
