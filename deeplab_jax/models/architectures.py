"""Two tables: backbones, and the architectures of the literature that use them.

    image -> backbone -> context -> decoder -> classifier -> resize to the image

A model's name is `<architecture>_<backbone>`. A row names the classes of its parts. The fields of these classes are the
options of `create_model`. The classes explain the options and set their defaults; a row states only other defaults.

To add a part, write its module and a row here. Or put both into your own file, without a change to the package, and
name the file in `config.module`, `--module` or `create_model(name, module=FILE)`:

    BACKBONES = {"convnext": Backbone(ConvNeXt)}  # deeplabv3_convnext, deeplabv3plus_convnext
    ARCHITECTURES = {"mine": Architecture(16, {"convnext": {}}, decoder=MyDecoder)}  # mine_convnext

`segmenter.Segmenter` says what the modules take and return. A field `settings: LayerSettings` receives the options of
layers. A decoder's field `num_classes` receives the number of classes. Every other field is an option.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn

from deeplab_jax.models.backbones.mobilenet_v2 import MobileNetV2
from deeplab_jax.models.backbones.mobilenet_v2_variants import MobileNetV2Variant
from deeplab_jax.models.backbones.mobilenet_v3 import MobileNetV3Large
from deeplab_jax.models.backbones.resnet import ResNet
from deeplab_jax.models.backbones.resnet_variants import ResNetVariant
from deeplab_jax.models.backbones.vgg import VGG
from deeplab_jax.models.backbones.xception import ENTRY_41, ENTRY_71, Xception
from deeplab_jax.models.backbones.xception_variants import XceptionVariant
from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.contexts.aspp_variants import ASPPVariant
from deeplab_jax.models.contexts.fully_connected import FullyConnected, LargeFOV
from deeplab_jax.models.contexts.pyramid_pooling import GlobalContext, PyramidPooling, SpatialPyramidContext
from deeplab_jax.models.contexts.pyramid_pooling_variants import PyramidPoolingVariant
from deeplab_jax.models.decoders.deeplabv2 import SummedPyramid
from deeplab_jax.models.decoders.deeplabv3plus import DeepLabV3PlusDecoder
from deeplab_jax.models.decoders.deeplabv3plus_variants import DeepLabV3PlusDecoderVariant
from deeplab_jax.models.decoders.fcn import FCNReduction, FCNSkips
from deeplab_jax.models.decoders.fcn_variants import FCNReductionVariant
from deeplab_jax.models.decoders.lraspp import LiteRASPP
from deeplab_jax.models.decoders.refinenet import RefineNetDecoder
from deeplab_jax.models.decoders.segnet import SegNetDecoder
from deeplab_jax.models.decoders.unet import UNetDecoder
from deeplab_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing

Options = Mapping[str, Any]
# A class of modules, or a `partial` of one: the fields that it fixes are no options.
Part = Callable[..., Any]


@dataclass(frozen=True)
class Backbone:
    """A backbone, and the input that it expects.

    Attributes:
      module: its class.
      preprocessing: what it expects of images.
      note: how it differs from the others.
      aux: name of the features under an auxiliary head.
      atrous: whether DeepLabv3 and v3+ can use it: it runs at any output stride from 8 to 32 and has "conv2" at stride
        4.
      defaults: options whose defaults differ from those of its class.
    """

    module: Part
    preprocessing: Preprocessing = IMAGENET
    note: str = ""
    aux: str = "conv4"
    atrous: bool = True
    defaults: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """The parts on top of a backbone, the backbones that they fit, and the paper.

    Attributes:
      output_stride: the paper's.
      backbones: their names, each with the options that have another default there or are `FIXED`.
      paper: where it is from.
      note: how it differs from the others.
      context: class of the context, if any.
      decoder: class of the decoder, if any.
      defaults: options that have another default on every backbone.
      on_all_atrous: whether it also runs on every backbone that is `atrous`.
    """

    output_stride: int
    backbones: Mapping[str, Options]
    paper: str = ""
    note: str = ""
    context: Part | None = None
    decoder: Part | None = None
    defaults: Options = field(default_factory=dict)
    on_all_atrous: bool = False


# Instead of a default: the architecture needs the field's own default, so the field is no option there.
FIXED = object()


def _on(*backbones: str, **defaults: Any) -> dict[str, Options]:
    return dict.fromkeys(backbones, defaults)


_BASIC = partial(ResNet, kind="basic", stem="plain")
_BOTTLENECK = partial(ResNet, kind="bottleneck", stem="plain")
_BETA = partial(ResNet, kind="bottleneck", stem="beta")
_LAST_UNIT = {"first_unit_rate": "last_unit"}

BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(partial(_BASIC, units=(2, 2, 2, 2)), IMAGENET, "units of two 3x3 convolutions"),
    "resnet34": Backbone(partial(_BASIC, units=(3, 4, 6, 3)), IMAGENET, "units of two 3x3 convolutions"),
    "resnet50": Backbone(partial(_BOTTLENECK, units=(3, 4, 6, 3)), IMAGENET, "the stride in a unit's 3x3"),
    "resnet101": Backbone(partial(_BOTTLENECK, units=(3, 4, 23, 3)), IMAGENET, "the stride in a unit's 3x3"),
    "resnet50_beta": Backbone(
        partial(_BETA, units=(3, 4, 6, 3)), SYMMETRIC,
        "the authors' form: three 3x3 in the stem, the stride at the end of each stage", defaults=_LAST_UNIT,
    ),
    "resnet101_beta": Backbone(
        partial(_BETA, units=(3, 4, 23, 3)), SYMMETRIC,
        "the authors' form, whose multiply-adds the paper counts", defaults=_LAST_UNIT,
    ),
    "mobilenet_v2": Backbone(MobileNetV2, SYMMETRIC, "inverted residuals; `width` scales it"),
    "mobilenet_v3_large": Backbone(
        MobileNetV3Large, IMAGENET, "squeeze-and-excitation, dilated as torchvision does", aux="conv3"
    ),
    "xception41": Backbone(
        partial(Xception, entry=ENTRY_41, middle_units=8), SYMMETRIC,
        "modified aligned Xception, 8 units in the middle",
    ),
    "xception65": Backbone(
        partial(Xception, entry=ENTRY_41, middle_units=16), SYMMETRIC, "16 units in the middle"
    ),
    "xception71": Backbone(
        partial(Xception, entry=ENTRY_71, middle_units=16), SYMMETRIC, "two more units at the entry"
    ),
    "vgg16": Backbone(
        partial(VGG, units=(2, 2, 3, 3, 3), channels=(64, 128, 256, 512, 512), last_pool=True, padding="same"),
        IMAGENET, "plain, no normalisation", atrous=False,
    ),
    "unet": Backbone(
        partial(VGG, units=(2, 2, 2, 2, 2), channels=(64, 128, 256, 512, 1024), last_pool=False, pool_window=2),
        SYMMETRIC, "its own contracting path", atrous=False,
    ),
}  # fmt: skip

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
_BETAS = ("resnet50_beta", "resnet101_beta")
# The best multi-grid of DeepLabv3's Table 5 (sec. 4.3). ResNet-18 has two units in block 4, so this project gives them
# the first two rates.
_DEEPLAB: dict[str, Options] = {
    **_on("resnet18", multi_grid=(1, 2), last_block=FIXED),
    **_on("resnet34", "resnet50", "resnet101", *_BETAS, multi_grid=(1, 2, 4), last_block=FIXED),
}
_UNET_ON_ENCODER: Options = {
    "skips": ("conv4", "conv3", "conv2", "stem", ""),
    "decoder_channels": (256, 128, 64, 32, 16),
    "upsampling": "nearest",
    "dropout": 0.0,
    "padding": FIXED,
    "last_block": FIXED,
}
_FCN = partial(FullyConnected, fc_kernel=7, fc_rate=0)

ARCHITECTURES: dict[str, Architecture] = {
    "deeplabv3": Architecture(
        16, _DEEPLAB, "1706.05587", "atrous spatial pyramid pooling, image-level features",
        context=ASPP, on_all_atrous=True,
    ),
    "deeplabv3plus": Architecture(
        16, _DEEPLAB, "1802.02611", "DeepLabv3 and a decoder at stride 4",
        context=ASPP, decoder=DeepLabV3PlusDecoder, on_all_atrous=True,
    ),
    "cascade": Architecture(
        16, _on(*_RESNETS, *_BETAS, first_unit_rate="last_unit", last_stage=FIXED), "1706.05587",
        "DeepLabv3's other form: block 4 up to three times again (`last_block=7`), no pyramid",
    ),
    "deeplabv2": Architecture(
        8,
        {
            "vgg16": {"fc_channels": 1024, "pool_window": 3},
            "resnet101": {"first_unit_rate": "stage", "last_block": FIXED, "last_stage": FIXED},
        },
        "1606.00915", "logits at rates 6, 12, 18, 24, summed; DenseCRF after it by `--crf`", decoder=SummedPyramid,
    ),
    "largefov": Architecture(
        8, _on("vgg16", pool_window=3), "1412.7062", "DeepLabv1: fc6 as 3x3 at rate 12", context=LargeFOV
    ),
    "fcn32s": Architecture(
        32, _on("vgg16", pool_window=FIXED), "1411.4038", "upsampling learned, in one step",
        context=_FCN, decoder=partial(FCNSkips, skips=()),
    ),
    "fcn16s": Architecture(
        32, _on("vgg16", pool_window=FIXED), "1411.4038", "adds the logits of pool4",
        context=_FCN, decoder=partial(FCNSkips, skips=("pool4",)),
    ),
    "fcn8s": Architecture(
        32, _on("vgg16", pool_window=FIXED), "1411.4038", "adds the logits of pool4 and pool3",
        context=_FCN, decoder=partial(FCNSkips, skips=("pool4", "pool3")),
    ),
    "fcn": Architecture(
        8, _on("resnet50", "resnet101", last_block=FIXED, last_stage=FIXED), "torchvision",
        "torchvision's FCN: one 3x3 on dilated features", context=FCNReduction, defaults={"align_corners": False},
    ),
    "lraspp": Architecture(
        16, _on("mobilenet_v3_large"), "1905.02244",
        "Lite R-ASPP: a gate of image-level features, logits at stride 8, as torchvision builds it",
        decoder=LiteRASPP, defaults={"align_corners": False},
    ),
    "unet": Architecture(
        32,
        {"unet": {"output_stride": 16}, **_on(*_RESNETS, "mobilenet_v2", **_UNET_ON_ENCODER)},
        "1505.04597", "every skip concatenated; `padding=\"valid\"` is the published form", decoder=UNetDecoder,
    ),
    "segnet": Architecture(
        32, _on("vgg16", pool_window=FIXED), "1511.00561", "unpools by the encoder's maxima",
        decoder=SegNetDecoder, defaults={"norm": "batch"},
    ),
    "refinenet": Architecture(
        32, _on("resnet50", "resnet101", last_block=FIXED, last_stage=FIXED), "1611.06612",
        "refines from coarse to fine, chained pooling", decoder=RefineNetDecoder,
    ),
    "pspnet": Architecture(
        8, _on(*_RESNETS, "mobilenet_v2", first_unit_rate="stage", last_block=FIXED), "1612.01105",
        "averages over 1, 4, 9 and 36 regions", context=PyramidPooling,
    ),
    "parsenet": Architecture(
        8, _on("vgg16", pool_window=3), "1506.04579", "L2-normalised global average beside LargeFOV",
        context=GlobalContext,
    ),
    "spp": Architecture(
        16, _on("vgg16", pool_window=FIXED), "1406.4729",
        "the vector of spatial pyramid pooling beside every pixel", context=SpatialPyramidContext,
    ),
}  # fmt: skip

# For each of the paper's networks, a variant with what only the weights of other code bases need. `create_model` builds
# it if one of the options that it adds is given.
VARIANTS: dict[Any, type[nn.Module]] = {
    ASPP: ASPPVariant,
    DeepLabV3PlusDecoder: DeepLabV3PlusDecoderVariant,
    FCNReduction: FCNReductionVariant,
    MobileNetV2: MobileNetV2Variant,
    PyramidPooling: PyramidPoolingVariant,
    ResNet: ResNetVariant,
    Xception: XceptionVariant,
}
