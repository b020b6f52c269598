"""Options to modules: one function per backbone and per architecture's head.

Their keyword-only arguments are the options of `create_model`, and the defaults are those of the paper in question;
where backbones differ in one, the catalog says so.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models.backbones.dilation import FirstUnitRate
from deeplab_jax.models.backbones.mobilenet_v2 import MobileNetV2
from deeplab_jax.models.backbones.mobilenet_v3 import MobileNetV3Large
from deeplab_jax.models.backbones.resnet import ResNet
from deeplab_jax.models.backbones.vgg import VGG
from deeplab_jax.models.backbones.xception import SIZES, Xception
from deeplab_jax.models.backbones.xception import Form as XceptionForm
from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.contexts.fully_connected import FullyConnected
from deeplab_jax.models.contexts.pyramid_pooling import PyramidPooling, SpatialPyramidContext
from deeplab_jax.models.decoders.deeplabv2 import SummedPyramid
from deeplab_jax.models.decoders.deeplabv3plus import DeepLabV3PlusDecoder
from deeplab_jax.models.decoders.fcn import FCNReduction, FCNSkips
from deeplab_jax.models.decoders.lraspp import LiteRASPP
from deeplab_jax.models.decoders.refinenet import RefineNetDecoder
from deeplab_jax.models.decoders.segnet import SegNetDecoder
from deeplab_jax.models.decoders.unet import UNetDecoder
from deeplab_jax.models.image_pyramid import Fusion, ImagePyramid, PyramidKind
from deeplab_jax.models.layers import LayerSettings

Convs = tuple[tuple[int, int], ...]
LAST_STAGES = ("conv3", "conv4", "conv5")


class Head(NamedTuple):
    """What follows a backbone. `classifier_kernel=0` means that the decoder's output are the logits."""

    context: nn.Module | None = None
    decoder: nn.Module | None = None
    classifier_kernel: int = 1


def resnet(
    kind: Literal["basic", "bottleneck"],
    units: tuple[int, int, int, int],
    *,
    stem: Literal["plain", "beta"] = "plain",
    default_first_unit_rate: FirstUnitRate = "previous",
) -> Callable[..., nn.Module]:
    """Return the builder of a ResNet."""

    def build(
        settings: LayerSettings,
        *,
        multi_grid: tuple[int, ...] | None = None,
        first_unit_rate: FirstUnitRate = default_first_unit_rate,
        width: float = 1.0,
        last_block: int = 4,
        last_stage: str = "conv5",
        pool_padding: str = "symmetric",
    ) -> nn.Module:
        grid = (1,) * units[3] if multi_grid is None else tuple(multi_grid)
        if len(grid) != units[3] or min(grid) < 1:
            raise UserError(
                f"multi_grid={grid}: this backbone's last block has {units[3]} units; give as many rates of at least 1"
            )
        if last_block not in (4, 5, 6, 7):
            raise UserError(f"last_block={last_block!r}: choose from 4, 5, 6, 7")
        choice("first_unit_rate", first_unit_rate, get_args(FirstUnitRate))
        choice("pool_padding", pool_padding, ("symmetric", "same"))
        if choice("last_stage", last_stage, LAST_STAGES) != "conv5":
            last_block = LAST_STAGES.index(last_stage) + 2
        return ResNet(
            units=units,
            kind=kind,
            stem=stem,
            multi_grid=grid,
            first_unit_rate=first_unit_rate,
            last_block=last_block,
            width=width,
            settings=settings,
            pool_padding=pool_padding,  # type: ignore[arg-type]
        )

    return build


def mobilenet_v2(
    settings: LayerSettings,
    *,
    first_unit_rate: FirstUnitRate = "previous",
    strided_padding: str = "symmetric",
    last_stage: str = "conv5",
    last_channels: int = 0,
    channel_divisor: int = 8,
    stem_padding: str = "same",
    pad_input: bool = False,
    width: float = 1.0,
) -> nn.Module:
    """Build MobileNetV2."""
    choice("first_unit_rate", first_unit_rate, ("previous", "stage", "next_stage"))
    choice("stem_padding", stem_padding, ("same", "valid"))
    choice("strided_padding", strided_padding, ("symmetric", "same"))
    choice("last_stage", last_stage, LAST_STAGES)
    positive("channel_divisor", (channel_divisor,))
    return MobileNetV2(
        width=width,
        channel_divisor=channel_divisor,
        first_unit_rate=first_unit_rate,
        strided_padding=strided_padding,  # type: ignore[arg-type]
        last_stage=last_stage,
        last_channels=last_channels,
        stem_padding=stem_padding,  # type: ignore[arg-type]
        pad_input=pad_input,
        settings=settings,
    )


def mobilenet_v3_large(
    settings: LayerSettings, *, first_unit_rate: FirstUnitRate = "stage", width: float = 1.0
) -> nn.Module:
    """Build MobileNetV3-Large."""
    choice("first_unit_rate", first_unit_rate, ("previous", "stage"))
    return MobileNetV3Large(width=width, first_unit_rate=first_unit_rate, settings=settings)  # type: ignore[arg-type]


def xception(size: int) -> Callable[..., nn.Module]:
    """Return the builder of a modified aligned Xception: 41, 65 or 71."""

    def build(
        settings: LayerSettings,
        *,
        multi_grid: tuple[int, int, int] | None = None,
        first_unit_rate: FirstUnitRate = "previous",
        depthwise_activation: bool | None = None,
        form: str = "aligned",
        width: float = 1.0,
    ) -> nn.Module:
        grid = (1, 1, 1) if multi_grid is None else multi_grid
        if len(grid) != 3 or min(grid) < 1:
            raise UserError(f"multi_grid={grid}: three rates of at least 1, for the last unit's convolutions")
        choice("first_unit_rate", first_unit_rate, ("previous", "stage"))
        choice("form", form, get_args(XceptionForm))
        if form == "original" and (grid != (1, 1, 1) or depthwise_activation):
            raise UserError("form='original': without multi_grid and depthwise_activation; leave them out")
        entry, middle_units = SIZES[size]
        return Xception(
            entry=entry,
            middle_units=middle_units,
            multi_grid=grid,
            first_unit_rate=first_unit_rate,  # type: ignore[arg-type]
            depthwise_activation=depthwise_activation,
            form=form,  # type: ignore[arg-type]
            width=width,
            settings=settings,
        )

    return build


def vgg16(settings: LayerSettings, *, pool_window: int = 2, width: float = 1.0) -> nn.Module:
    """Build VGG-16 without its classifier."""
    if pool_window not in (2, 3):
        raise UserError(f"pool_window={pool_window!r}: choose from 2, 3")
    return VGG(pool_window=pool_window, width=width, settings=settings)


def unet_path(settings: LayerSettings, *, padding: str = "same", width: float = 1.0) -> nn.Module:
    """Build U-Net's contracting path."""
    return VGG(
        units=(2,) * 5,
        channels=(64, 128, 256, 512, 1024),
        last_pool=False,
        padding=_padding(padding),
        width=width,
        settings=settings,
    )


def deeplabv3(
    settings: LayerSettings,
    num_classes: int,
    *,
    aspp_rates: tuple[int, ...] = (6, 12, 18),
    aspp_channels: int = 256,
    image_pooling: bool = True,
    head_convs: Convs = (),
    separable: bool = False,
    dropout: float = 0.0,
    aspp_separable: bool | None = None,
    depthwise_norm: bool = True,
) -> Head:
    """Build the head of DeepLabv3."""
    return Head(
        ASPP(
            channels=aspp_channels,
            rates=aspp_rates,
            image_pooling=image_pooling,
            separable=separable,
            head_convs=head_convs,
            dropout=dropout,
            aspp_separable=aspp_separable,
            depthwise_norm=depthwise_norm,
            settings=settings,
        )
    )


def deeplabv3plus(
    settings: LayerSettings,
    num_classes: int,
    *,
    aspp_rates: tuple[int, ...] = (6, 12, 18),
    aspp_channels: int = 256,
    image_pooling: bool = True,
    head_convs: Convs = (),
    separable: bool = False,
    dropout: float = 0.0,
    aspp_separable: bool | None = None,
    depthwise_norm: bool = True,
    low_level: tuple[str, ...] = ("conv2",),
    low_level_channels: int = 48,
    decoder_convs: Convs = ((3, 256), (3, 256)),
) -> Head:
    """Build the head of DeepLabv3+."""
    head = deeplabv3(
        settings,
        num_classes,
        aspp_rates=aspp_rates,
        aspp_channels=aspp_channels,
        image_pooling=image_pooling,
        head_convs=head_convs,
        separable=separable,
        dropout=dropout,
        aspp_separable=aspp_separable,
        depthwise_norm=depthwise_norm,
    )
    unknown = set(low_level) - {"conv2", "conv3"}
    if unknown or not low_level:
        raise UserError(f"low_level={low_level}: choose from 'conv2' and 'conv3'")
    decoder = DeepLabV3PlusDecoder(
        low_level=low_level,
        low_level_channels=low_level_channels,
        convs=decoder_convs,
        separable=separable,
        depthwise_norm=depthwise_norm,
        settings=settings,
    )
    return head._replace(decoder=decoder)


def cascade(settings: LayerSettings, num_classes: int) -> Head:
    """Build the head of DeepLabv3's cascade: its context is in the backbone."""
    return Head()


def deeplabv2(
    settings: LayerSettings,
    num_classes: int,
    *,
    aspp_rates: tuple[int, ...] = (6, 12, 18, 24),
    fc_channels: int = 0,
    dropout: float = 0.5,
) -> Head:
    """Build the head of DeepLabv2."""
    positive("aspp_rates", aspp_rates)
    decoder = SummedPyramid(num_classes, aspp_rates, fc_channels, dropout, settings)
    return Head(decoder=decoder, classifier_kernel=0)


def largefov(around: Callable[[FullyConnected], nn.Module] | None = None) -> Callable[..., Head]:
    """Return the builder of DeepLabv1's LargeFOV, or of a context around it (ParseNet)."""

    def build(
        settings: LayerSettings,
        num_classes: int,
        *,
        fc_kernel: int = 3,
        fc_rate: int = 12,
        fc_channels: int = 1024,
        dropout: float = 0.5,
    ) -> Head:
        positive("fc_channels", (fc_channels,))
        local = FullyConnected(fc_kernel, fc_channels, fc_rate, dropout, settings)
        return Head(local if around is None else around(local))

    return build


def fcn_skips(skips: tuple[str, ...]) -> Callable[..., Head]:
    """Return the builder of FCN-32s, 16s or 8s."""

    def build(settings: LayerSettings, num_classes: int, *, fc_channels: int = 4096, dropout: float = 0.5) -> Head:
        positive("fc_channels", (fc_channels,))
        context = FullyConnected(channels=fc_channels, dropout=dropout, settings=settings)
        return Head(context, FCNSkips(num_classes, skips, settings), 0)

    return build


def fcn(settings: LayerSettings, num_classes: int, *, dropout: float = 0.1) -> Head:
    """Build torchvision's FCN head."""
    return Head(FCNReduction(dropout, settings))


def lraspp(settings: LayerSettings, num_classes: int, *, context_channels: int = 128) -> Head:
    """Build Lite R-ASPP."""
    positive("context_channels", (context_channels,))
    return Head(decoder=LiteRASPP(num_classes, context_channels, settings=settings), classifier_kernel=0)


def unet(
    settings: LayerSettings,
    num_classes: int,
    *,
    padding: str = "same",
    skips: tuple[str, ...] = ("conv4", "conv3", "conv2", "conv1"),
    decoder_channels: tuple[int, ...] = (512, 256, 128, 64),
    upsampling: str = "transposed",
    dropout: float = 0.5,
) -> Head:
    """Build U-Net's expanding path."""
    choice("upsampling", upsampling, ("transposed", "nearest"))
    if len(skips) != len(decoder_channels):
        raise UserError(f"decoder_channels={decoder_channels}: one number for each of the {len(skips)} skips {skips}")
    decoder = UNetDecoder(
        skips=skips,
        channels=decoder_channels,
        upsampling=upsampling,  # type: ignore[arg-type]
        padding=_padding(padding),
        dropout=dropout,
        settings=settings,
    )
    return Head(decoder=decoder, classifier_kernel=1 if upsampling == "transposed" else 3)


def segnet(settings: LayerSettings, num_classes: int) -> Head:
    """Build SegNet's decoder."""
    return Head(decoder=SegNetDecoder(settings=settings), classifier_kernel=3)


def refinenet(
    settings: LayerSettings,
    num_classes: int,
    *,
    decoder_channels: tuple[int, int, int, int] = (512, 256, 256, 256),
    dropout: float = 0.5,
) -> Head:
    """Build RefineNet's four blocks."""
    if len(decoder_channels) != 4:
        raise UserError(f"decoder_channels={decoder_channels}: four numbers, of the blocks of conv5 to conv2")
    return Head(decoder=RefineNetDecoder(decoder_channels, dropout, settings), classifier_kernel=3)


def pspnet(
    settings: LayerSettings,
    num_classes: int,
    *,
    bins: tuple[int, ...] = (1, 2, 3, 6),
    context_channels: int = 512,
    context_kernel: int = 3,
    classifier_kernel: int = 1,
    norm_single: bool = True,
    dropout: float = 0.1,
) -> Head:
    """Build PSPNet's context."""
    positive("bins", bins)
    for option, size in (("context_kernel", context_kernel), ("classifier_kernel", classifier_kernel)):
        if size not in (1, 3):
            raise UserError(f"{option}={size!r}: choose from 1, 3")
    context = PyramidPooling(
        bins=bins,
        channels=context_channels,
        dropout=dropout,
        kernel_size=context_kernel,
        norm_single=norm_single,
        settings=settings,
    )
    return Head(context, classifier_kernel=classifier_kernel)


def spp(
    settings: LayerSettings, num_classes: int, *, bins: tuple[int, ...] = (4, 2, 1), context_channels: int = 512
) -> Head:
    """Build the context of the original spatial pyramid pooling."""
    positive("bins", bins)
    return Head(SpatialPyramidContext(bins, context_channels, settings))


def image_pyramid(
    settings: LayerSettings,
    *,
    image_pyramid: tuple[float, ...] = (),
    fusion: Fusion = "average",
    pyramid: PyramidKind = "resized",
) -> ImagePyramid | None:
    """Build the image pyramid around a network; None where no scales are given."""
    choice("fusion", fusion, get_args(Fusion))
    choice("pyramid", pyramid, get_args(PyramidKind))
    if not image_pyramid:
        if (fusion, pyramid) != ("average", "resized"):
            raise UserError(
                f"fusion={fusion!r}, pyramid={pyramid!r}: without scales; give image_pyramid=(1.0, 0.75, 0.5)"
            )
        return None
    if not all(0 < scale <= 4 for scale in image_pyramid):
        raise UserError(f"image_pyramid={image_pyramid}: give factors above 0 and up to 4")
    if list(image_pyramid) != sorted(set(image_pyramid), reverse=True):
        raise UserError(f"image_pyramid={image_pyramid}: give different scales from fine to coarse")
    return ImagePyramid(image_pyramid, fusion, pyramid, settings)


def choice(option: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Return the value of an option, or raise a UserError that names the choices."""
    if value not in choices:
        raise UserError(f"{option}={value!r}: {did_you_mean(str(value), choices)}")
    return value


def positive(option: str, values: tuple[int, ...]) -> None:
    """Raise a UserError unless an option holds different whole numbers of at least 1."""
    if not values or min(values) < 1 or len(set(values)) < len(values):
        raise UserError(f"{option}={values}: give whole numbers of at least 1, each once")


def _padding(padding: str) -> Any:
    return "VALID" if choice("padding", padding, ("same", "valid")) == "valid" else None
