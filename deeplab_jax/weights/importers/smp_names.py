"""segmentation_models_pytorch's names for our layers, and the encoders that are known."""

from deeplab_jax.weights.importers.torch_names import aspp_rules, mobilenet_v2_rules, resnet_rules
from deeplab_jax.weights.tensor_map import Names, Rule

# Channels after each halving of the image's size.
CHANNELS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnet101": (64, 256, 512, 1024, 2048),
    "mobilenet_v2": (16, 24, 32, 96, 1280),
}
HEAD = "segmentation_head.0"
CLASSES = {"deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3Plus", "pspnet": "PSPNet", "unet": "Unet"}
"""Our architectures, and its classes of them."""


def _pair(block: str) -> Names:
    """Return the names of a block's convolution and of the norm after it."""
    return f"{block}.0", f"{block}.1"


# Of DeepLabV3: its ASPP, and the convolution and norm after it. Older versions numbered them.
DEEPLABV3 = ("decoder.aspp", "decoder.conv", "decoder.bn")
NUMBERED = ("decoder.0", "decoder.1", "decoder.2")
DECODERS: dict[str, tuple[Rule, ...]] = {
    "deeplabv3": (*aspp_rules(DEEPLABV3[0]), (r"context/head1", DEEPLABV3[1:])),
    "deeplabv3plus": (
        *aspp_rules("decoder.aspp.0"),
        (r"context/head1/depthwise", ("decoder.aspp.1.0", "")),
        (r"context/head1/pointwise", ("decoder.aspp.1.1", "decoder.aspp.2")),
        (r"decoder/conv2_reduction", _pair("decoder.block1")),
        (r"decoder/conv2_conv1/depthwise", ("decoder.block2.0.0", "")),
        (r"decoder/conv2_conv1/pointwise", ("decoder.block2.0.1", "decoder.block2.1")),
    ),
    "pspnet": (
        *((rf"context/bins{bins}", _pair(f"decoder.psp.blocks.{i}.pool.1")) for i, bins in enumerate((1, 2, 3, 6))),
        (r"context/projection", _pair("decoder.conv")),
    ),
    "unet": ((r"decoder/step(\d)_conv(\d)", lambda step, conv: _pair(f"decoder.blocks.{step - 1}.conv{conv}")),),
}


def rules_of(name: str) -> tuple[Rule, ...]:
    """Return smp's names for the layers of one of our models; none if smp has no such network."""
    architecture, _, encoder = name.partition("_")
    if architecture not in DECODERS or encoder not in CHANNELS:
        return ()
    names = mobilenet_v2_rules if encoder == "mobilenet_v2" else resnet_rules
    return (*names("encoder."), *DECODERS[architecture], (r"classifier", (HEAD, "")))


def older_rules(name: str) -> tuple[Rule, ...]:
    """Return the names of DeepLabV3's layers in older versions."""
    return (*aspp_rules(NUMBERED[0]), (r"context/head1", NUMBERED[1:]), *rules_of(name))
