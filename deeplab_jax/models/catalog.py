"""Names to networks: one table of backbones, one of architectures, and `create_model`, which puts the two together."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import flax.linen as nn

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models import parts
from deeplab_jax.models.contexts.pyramid_pooling import GlobalContext
from deeplab_jax.models.layers import SMALL_NORMAL, Conv, LayerSettings, NormKind
from deeplab_jax.models.parts import choice
from deeplab_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.ops.atrous import Lowering

Options = Mapping[str, Any]
HEAD_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Backbone:
    """A backbone's builder, the input it expects, and what its authors chose.

    Attributes:
      build: see `parts`.
      preprocessing: of images.
      norm_epsilon: of its own batch norms; heads have 1e-5, as in the authors' code and torchvision.
      multi_grid: what DeepLabv3 uses on it; None where it has no meaning.
      output: name of the features that a head sees.
      aux: name of the features under an auxiliary head.
      norm: normalisation of it, and of the heads on it.
      note: what sets it apart.
      output_stride: its own, where the architectures on it have no say in it.
    """

    build: Callable[..., nn.Module]
    preprocessing: Preprocessing
    note: str
    norm_epsilon: float = 1e-5
    multi_grid: tuple[int, ...] | None = None
    output: str = "conv5"
    aux: str = "conv4"
    norm: NormKind = "batch"
    output_stride: int | None = None


@dataclass(frozen=True)
class Architecture:
    """An architecture's head, its backbones, and its place in the literature.

    Attributes:
      build: see `parts`.
      output_stride: the paper's.
      backbones: names, each with the options whose defaults differ there.
      paper: where it is from.
      note: what sets it apart.
      defaults: options whose defaults differ from those of the backbone's and of the layers.
      multi_grid: whether it uses the backbone's multi-grid.
      backbone_options: which of `FOR_SOME` have a meaning under it.
    """

    build: Callable[..., parts.Head]
    output_stride: int
    backbones: Mapping[str, Options]
    paper: str
    note: str
    defaults: Options = field(default_factory=dict)
    multi_grid: bool = False
    backbone_options: tuple[str, ...] = ()


# Options of backbones that only some architectures understand: a last block or stage other than the usual, and the
# window of VGG-16's pooling, which heads that pool or unpool with it rely on.
FOR_SOME = {"last_block", "last_stage", "pool_window"}


def _on(*backbones: str, **defaults: Any) -> dict[str, Options]:
    return dict.fromkeys(backbones, defaults)


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(
        parts.resnet("basic", (2, 2, 2, 2)), IMAGENET, "units of two 3x3 convolutions", multi_grid=(1, 2)
    ),
    "resnet34": Backbone(
        parts.resnet("basic", (3, 4, 6, 3)), IMAGENET, "units of two 3x3 convolutions", multi_grid=(1, 2, 4)
    ),
    "resnet50": Backbone(
        parts.resnet("bottleneck", (3, 4, 6, 3)), IMAGENET, "the stride in a unit's 3x3", multi_grid=(1, 2, 4)
    ),
    "resnet101": Backbone(
        parts.resnet("bottleneck", (3, 4, 23, 3)), IMAGENET, "the stride in a unit's 3x3", multi_grid=(1, 2, 4)
    ),
    "resnet50_beta": Backbone(
        parts.resnet("bottleneck", (3, 4, 6, 3), stem="beta", default_first_unit_rate="last_unit"),
        SYMMETRIC, "the authors' form: three 3x3 in the stem, the stride at the end of a stage", multi_grid=(1, 2, 4),
    ),
    "resnet101_beta": Backbone(
        parts.resnet("bottleneck", (3, 4, 23, 3), stem="beta", default_first_unit_rate="last_unit"),
        SYMMETRIC, "the authors' form, whose multiply-adds the paper counts", multi_grid=(1, 2, 4),
    ),
    "mobilenet_v2": Backbone(parts.mobilenet_v2, SYMMETRIC, "inverted residuals; `width` scales it", norm_epsilon=1e-3),
    "mobilenet_v3_large": Backbone(
        parts.mobilenet_v3_large, IMAGENET, "squeeze-and-excitation, dilated as torchvision does",
        norm_epsilon=1e-3, aux="conv3",
    ),
    "xception41": Backbone(
        parts.xception(41), SYMMETRIC, "modified aligned Xception, 8 units in the middle", norm_epsilon=1e-3
    ),
    "xception65": Backbone(
        parts.xception(65), SYMMETRIC, "16 units in the middle", norm_epsilon=1e-3
    ),
    "xception71": Backbone(parts.xception(71), SYMMETRIC, "two more units at the entry", norm_epsilon=1e-3),
    "vgg16": Backbone(parts.vgg16, IMAGENET, "plain, no normalisation", output="pool5", norm="none"),
    "unet": Backbone(parts.unet_path, SYMMETRIC, "its own contracting path", norm="none", output_stride=16),
}  # fmt: skip

_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
_BETA = ("resnet50_beta", "resnet101_beta")
_DEEPLAB = _on(*(name for name in BACKBONES if name not in ("vgg16", "unet")))
_UNET_ON_ENCODER: Options = {
    "skips": ("conv4", "conv3", "conv2", "stem", ""),
    "decoder_channels": (256, 128, 64, 32, 16),
    "upsampling": "nearest",
    "dropout": 0.0,
}

ARCHITECTURES: dict[str, Architecture] = {
    "deeplabv3": Architecture(
        parts.deeplabv3, 16, _DEEPLAB, "1706.05587", "atrous spatial pyramid pooling, image-level features",
        multi_grid=True, backbone_options=("last_stage",),
    ),
    "deeplabv3plus": Architecture(
        parts.deeplabv3plus, 16, _DEEPLAB, "1802.02611", "DeepLabv3 and a decoder at stride 4",
        multi_grid=True, backbone_options=("last_stage",),
    ),
    "cascade": Architecture(
        parts.cascade, 16, _on(*_ENCODERS, *_BETA, first_unit_rate="last_unit"), "1706.05587",
        "DeepLabv3's other form: block 4 up to three times again (`last_block=7`), no pyramid",
        backbone_options=("last_block",),
    ),
    "deeplabv2": Architecture(
        parts.deeplabv2, 8,
        {"vgg16": {"fc_channels": 1024, "pool_window": 3}, "resnet101": {"first_unit_rate": "stage"}},
        "1606.00915", "logits at rates 6, 12, 18, 24, summed; DenseCRF after it by `--crf`",
        backbone_options=("pool_window",),
    ),
    "largefov": Architecture(
        parts.largefov(), 8, _on("vgg16", pool_window=3), "1412.7062", "DeepLabv1: fc6 as 3x3 at rate 12",
        backbone_options=("pool_window",),
    ),
    "fcn32s": Architecture(parts.fcn_skips(()), 32, _on("vgg16"), "1411.4038", "upsampling learned, in one step"),
    "fcn16s": Architecture(parts.fcn_skips(("pool4",)), 32, _on("vgg16"), "1411.4038", "adds the logits of pool4"),
    "fcn8s": Architecture(
        parts.fcn_skips(("pool4", "pool3")), 32, _on("vgg16"), "1411.4038", "adds the logits of pool4 and pool3"
    ),
    "fcn": Architecture(
        parts.fcn, 8, _on("resnet50", "resnet101"), "torchvision", "torchvision's FCN: one 3x3 on dilated features",
        defaults={"align_corners": False},
    ),
    "lraspp": Architecture(
        parts.lraspp, 16, _on("mobilenet_v3_large"), "1905.02244",
        "Lite R-ASPP: a gate of image-level features, logits at stride 8, as torchvision builds it",
        defaults={"align_corners": False},
    ),
    "unet": Architecture(
        parts.unet,
        32,
        {"unet": {}, **_on(*_ENCODERS, "mobilenet_v2", **_UNET_ON_ENCODER)},
        "1505.04597",
        "every skip concatenated; `padding=\"valid\"` is the published form",
        backbone_options=("last_stage",),
    ),
    "segnet": Architecture(
        parts.segnet, 32, _on("vgg16"), "1511.00561", "unpools by the encoder's maxima", defaults={"norm": "batch"}
    ),
    "refinenet": Architecture(
        parts.refinenet, 32, _on("resnet50", "resnet101"), "1611.06612", "refines from coarse to fine, chained pooling"
    ),
    "pspnet": Architecture(
        parts.pspnet, 8, _on(*_ENCODERS, "mobilenet_v2", first_unit_rate="stage"), "1612.01105",
        "averages over 1, 4, 9 and 36 regions", backbone_options=("last_stage",),
    ),
    "parsenet": Architecture(
        parts.largefov(GlobalContext), 8, _on("vgg16", pool_window=3), "1506.04579",
        "L2-normalised global average beside LargeFOV", backbone_options=("pool_window",),
    ),
    "spp": Architecture(
        parts.spp, 16, _on("vgg16"), "1406.4729", "the vector of spatial pyramid pooling beside every pixel"
    ),
}  # fmt: skip


def _names() -> dict[str, tuple[str, str]]:
    """Map every name to its architecture and backbone; U-Net's own path adds nothing to the name."""
    pairs = [(architecture, backbone) for architecture, entry in ARCHITECTURES.items() for backbone in entry.backbones]
    return {a if a == b else f"{a}_{b}": (a, b) for a, b in pairs}


def model_names() -> list[str]:
    """List the names that `create_model` takes: `<architecture>_<backbone>`, and `unet`."""
    return list(_names())


def _parts(name: str) -> tuple[Architecture, Backbone, Options]:
    """Return a name's architecture and backbone, and the options whose defaults differ for the two together."""
    names = _names()
    if name not in names:
        raise UserError(f"model {name!r} is not known: {did_you_mean(name, list(names))}")
    architecture, backbone = ARCHITECTURES[names[name][0]], names[name][1]
    return architecture, BACKBONES[backbone], architecture.backbones[backbone]


def default_output_stride(name: str) -> int:
    """Return the output stride that a model has where none is asked for."""
    architecture, backbone, _ = _parts(name)
    return backbone.output_stride or architecture.output_stride


def known_options(name: str) -> set[str]:
    """Return the options that `create_model` takes for a name."""
    architecture, backbone, _ = _parts(name)
    around: tuple[Callable[..., Any], ...] = (_settings, _preprocessing, parts.image_pyramid)
    return set().union(
        *_own_options(architecture, backbone), *map(_option_names, around), {"backbone_norm", "aux_head"}
    )


def _own_options(architecture: Architecture, backbone: Backbone) -> tuple[set[str], set[str]]:
    """Return the options of the head and those of the backbone."""
    head = _option_names(architecture.build)
    own = _option_names(backbone.build) - (FOR_SOME - set(architecture.backbone_options))
    return head if "padding" in own else head - {"padding"}, own


def create_model(name: str, *, num_classes: int = 21, output_stride: int | None = None, **options: Any) -> Segmenter:
    """Build a segmentation network.

    Args:
      name: `<architecture>_<backbone>`, one of `model_names()`.
      num_classes: classes of the logits, at least 1.
      output_stride: input pixels per sample of the context's map; None is the architecture's own.
      **options: those of the backbone and the head are the keyword arguments of their functions in `parts`, such as
        `multi_grid`, `first_unit_rate`, `width`, `aspp_rates`, `separable`, `low_level` or `padding`; `norm`,
        `backbone_norm`, `norm_epsilon`, `norm_momentum`, `dtype`, `lowering` and `align_corners` concern the layers
        (see `LayerSettings`); `image_pyramid`, `fusion` ("average", "max", "attention") and `pyramid` ("resized",
        "laplacian") put an image pyramid around the network; `aux_head` adds torchvision's auxiliary FCN head;
        `value_range`, `mean` and `std` replace the backbone's preprocessing. Each is refused where it has no meaning.

    Returns:
      The module; `model.init(key, images, train=False)` makes its variables.

    Raises:
      UserError: an unknown name, option or value, naming what would be valid.
    """
    architecture, backbone, own = _parts(name)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes={num_classes!r}: give a whole number of at least 1")
    stride = default_output_stride(name) if output_stride is None else output_stride

    head_options, backbone_options = _own_options(architecture, backbone)
    layer_options = _option_names(_settings)
    known = known_options(name)
    for option in options:
        if option not in known:
            raise UserError(f"option {option!r} has no meaning for {name}: {did_you_mean(option, sorted(known))}")

    defaults = {"norm": backbone.norm, **architecture.defaults, **own}
    given = {key: _frozen(value) for key, value in {**defaults, **options}.items()}
    if architecture.multi_grid and given.get("multi_grid") is None:
        given["multi_grid"] = backbone.multi_grid
    settings = _settings(**_pick(given, layer_options))
    backbone_settings = replace(
        settings,
        norm=choice("backbone_norm", given.get("backbone_norm", settings.norm), get_args(NormKind)),
        norm_epsilon=given.get("norm_epsilon", backbone.norm_epsilon),
    )
    try:
        model_backbone = backbone.build(backbone_settings, **_pick(given, backbone_options))
        head = architecture.build(settings, num_classes, **_pick(given, head_options))
        pyramid = parts.image_pyramid(settings, **_pick(given, _option_names(parts.image_pyramid)))
    except TypeError as error:
        raise UserError(
            f"{name}: an option has a value of another kind than it needs ({error}); see create_model"
        ) from error
    valid = given.get("padding") == "valid"
    if valid and (pyramid or given.get("aux_head")):
        raise UserError("padding='valid': its logits cover the centre only; leave out image_pyramid and aux_head")
    if given.get("aux_head") and given.get("last_stage", backbone.aux) < backbone.aux:
        raise UserError(f"aux_head: it needs {backbone.aux}; leave out last_stage={given['last_stage']!r}")
    output = f"conv{given['last_block'] + 1}" if "last_block" in given else given.get("last_stage", backbone.output)
    classifier = Conv(
        num_classes,
        head.classifier_kernel,
        use_bias=True,
        settings=settings,
        kernel_init=SMALL_NORMAL,
    )
    recipe = {"name": name, "num_classes": num_classes, "output_stride": stride, "options": options}
    model = Segmenter(
        backbone=model_backbone,
        context=head.context,
        decoder=head.decoder,
        classifier=classifier if head.classifier_kernel else None,
        pyramid=pyramid,
        backbone_output=output,
        num_classes=num_classes,
        output_stride=stride,
        preprocessing=_preprocessing(backbone.preprocessing, **_pick(given, _option_names(_preprocessing))),
        settings=settings,
        aux_features=backbone.aux if given.get("aux_head", False) else None,
        valid=valid,
        recipe=json.dumps(recipe, sort_keys=True),
    )
    check_output_stride(model)
    return model


def describe(model: Segmenter) -> dict[str, Any]:
    """Return the name, class count, output stride and options from which `create_model` builds this model again.

    Of a clone, the output stride is its own; other fields cannot be described once cloned.
    """
    return {**json.loads(model.recipe), "output_stride": model.output_stride}


def from_description(description: Mapping[str, Any]) -> Segmenter:
    """Build the model that `describe` wrote down."""
    return create_model(
        description["name"],
        num_classes=description["num_classes"],
        output_stride=description["output_stride"],
        **description["options"],
    )


def check_output_stride(model: Segmenter) -> None:
    """Raise a UserError where the model cannot run at its output stride, before anything is traced."""
    try:
        abstract_variables(model)
    except ValueError as error:
        raise UserError(str(error)) from None
    except TypeError as error:
        raise UserError(
            f"an option of the model has a value of another kind than it needs ({error}); see create_model"
        ) from error


def _settings(
    *,
    norm: NormKind = "batch",
    norm_epsilon: float = HEAD_NORM_EPSILON,
    norm_momentum: float = 0.9997,
    dtype: str = "float32",
    lowering: Lowering = "auto",
    align_corners: bool = True,
) -> LayerSettings:
    choice("norm", norm, get_args(NormKind))
    choice("dtype", dtype, ("float32", "bfloat16"))
    choice("lowering", lowering, get_args(Lowering))
    for option, value in (("norm_epsilon", norm_epsilon), ("norm_momentum", norm_momentum)):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{option}={value!r:.100}: give a number from 0 to 1")
    return LayerSettings(norm, norm_epsilon, norm_momentum, dtype, lowering, align_corners)


def _preprocessing(
    default: Preprocessing,
    *,
    value_range: tuple[float, float] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Preprocessing:
    return Preprocessing(
        default.value_range if value_range is None else value_range,
        default.mean if mean is None else mean,
        default.std if std is None else std,
    )


def _option_names(function: Callable[..., Any]) -> set[str]:
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def _pick(given: Options, names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key in names}


def _frozen(value: Any) -> Any:
    """Turn lists, as configs and JSON hand them over, into tuples, so that modules stay hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
