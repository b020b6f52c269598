"""Names to networks: one table of architectures, one of backbones, and `create_model`, which puts the two together.

The keyword arguments of the functions here are the options of `create_model`, and their defaults are those of the paper
in question.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import flax.linen as nn

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.deeplabv3plus_decoder import DeepLabV3PlusDecoder
from deeplab_jax.models.dilation import FirstUnitRate
from deeplab_jax.models.layers import LayerSettings, NormKind
from deeplab_jax.models.mobilenet_v2 import MobileNetV2
from deeplab_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing
from deeplab_jax.models.resnet import ResNet
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.ops.atrous import Lowering

Convs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Backbone:
    """A backbone's builder, the input it expects, and the defaults that its authors gave."""

    build: Callable[..., nn.Module]
    preprocessing: Preprocessing
    norm_epsilon: float
    multi_grid: tuple[int, ...] | None  # what DeepLabv3 uses on it; None where it has no meaning


@dataclass(frozen=True)
class Architecture:
    """An architecture's parts, default output stride, and backbones."""

    build: Callable[..., tuple[nn.Module | None, nn.Module | None]]
    output_stride: int
    backbones: tuple[str, ...]
    multi_grid: bool  # whether the paper uses the backbone's multi-grid


def _resnet(kind: str, units: tuple[int, int, int, int]) -> Callable[..., nn.Module]:
    def build(
        settings: LayerSettings,
        *,
        multi_grid: tuple[int, ...] | None = None,
        first_unit_rate: FirstUnitRate = "previous",
        width: float = 1.0,
        last_block: int = 4,
    ) -> nn.Module:
        grid = (1,) * units[3] if multi_grid is None else tuple(multi_grid)
        if len(grid) != units[3] or min(grid) < 1:
            raise UserError(
                f"multi_grid={grid}: this backbone's last block has {units[3]} units; give as many rates of at least 1"
            )
        if last_block not in (4, 5, 6, 7):
            raise UserError(f"last_block={last_block!r}: choose from 4, 5, 6, 7")
        _choice("first_unit_rate", first_unit_rate, get_args(FirstUnitRate))
        return ResNet(units, kind, grid, first_unit_rate, last_block, width, settings)  # type: ignore[arg-type]

    return build


def _mobilenet_v2(
    settings: LayerSettings, *, first_unit_rate: FirstUnitRate = "previous", width: float = 1.0
) -> nn.Module:
    _choice("first_unit_rate", first_unit_rate, get_args(FirstUnitRate))
    return MobileNetV2(width, first_unit_rate, settings)


def _deeplabv3(
    settings: LayerSettings,
    *,
    aspp_rates: tuple[int, ...] = (6, 12, 18),
    aspp_channels: int = 256,
    image_pooling: bool = True,
    head_convs: Convs = (),
    separable: bool = False,
    dropout: float = 0.0,
) -> tuple[nn.Module, None]:
    return ASPP(aspp_channels, aspp_rates, image_pooling, separable, head_convs, dropout, settings), None


def _deeplabv3plus(
    settings: LayerSettings,
    *,
    aspp_rates: tuple[int, ...] = (6, 12, 18),
    aspp_channels: int = 256,
    image_pooling: bool = True,
    head_convs: Convs = (),
    separable: bool = False,
    dropout: float = 0.0,
    low_level: tuple[str, ...] = ("conv2",),
    low_level_channels: int = 48,
    decoder_convs: Convs = ((3, 256), (3, 256)),
) -> tuple[nn.Module, nn.Module]:
    context = ASPP(aspp_channels, aspp_rates, image_pooling, separable, head_convs, dropout, settings)
    unknown = set(low_level) - {"conv2", "conv3"}
    if unknown or not low_level:
        raise UserError(f"low_level={low_level}: choose from 'conv2' and 'conv3'")
    return context, DeepLabV3PlusDecoder(low_level, low_level_channels, decoder_convs, separable, settings)


def _cascade(settings: LayerSettings) -> tuple[None, None]:
    return None, None


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")

BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(_resnet("basic", (2, 2, 2, 2)), IMAGENET, 1e-5, (1, 2)),
    "resnet34": Backbone(_resnet("basic", (3, 4, 6, 3)), IMAGENET, 1e-5, (1, 2, 4)),
    "resnet50": Backbone(_resnet("bottleneck", (3, 4, 6, 3)), IMAGENET, 1e-5, (1, 2, 4)),
    "resnet101": Backbone(_resnet("bottleneck", (3, 4, 23, 3)), IMAGENET, 1e-5, (1, 2, 4)),
    "mobilenet_v2": Backbone(_mobilenet_v2, SYMMETRIC, 1e-3, None),
}

ARCHITECTURES: dict[str, Architecture] = {
    "deeplabv3": Architecture(_deeplabv3, 16, (*RESNETS, "mobilenet_v2"), True),
    "deeplabv3plus": Architecture(_deeplabv3plus, 16, (*RESNETS, "mobilenet_v2"), True),
    "cascade": Architecture(_cascade, 16, ("resnet50", "resnet101"), False),
}


def model_names() -> list[str]:
    """List the `<architecture>_<backbone>` names that `create_model` takes."""
    return [
        f"{architecture}_{backbone}" for architecture, entry in ARCHITECTURES.items() for backbone in entry.backbones
    ]


def create_model(name: str, *, num_classes: int = 21, output_stride: int | None = None, **options: Any) -> Segmenter:
    """Build a segmentation network.

    Args:
      name: `<architecture>_<backbone>`, one of `model_names()`.
      num_classes: classes of the logits, at least 1.
      output_stride: input pixels per sample of the context's map; None is the architecture's own.
      **options: `multi_grid`, `first_unit_rate`, `width` and, for the cascade, `last_block` shape the backbone;
        `aspp_rates` (stated at output stride 16), `aspp_channels`, `image_pooling`, `head_convs`, `separable`,
        `dropout`, `low_level`, `low_level_channels` and `decoder_convs` the head; `norm`, `backbone_norm`,
        `norm_epsilon`, `norm_momentum`, `dtype`, `lowering` and `align_corners` the layers (see `LayerSettings`);
        `aux_head` adds torchvision's auxiliary FCN head on conv4; `value_range`, `mean` and `std` replace the
        backbone's preprocessing. Each is refused where it has no meaning.

    Returns:
      The module; `model.init(key, images, train=False)` makes its variables.

    Raises:
      UserError: an unknown name, option or value, naming what would be valid.
    """
    if name not in model_names():
        raise UserError(f"model {name!r} is not known: {did_you_mean(name, model_names())}")
    architecture_name, backbone_name = name.split("_", 1)
    architecture, backbone = ARCHITECTURES[architecture_name], BACKBONES[backbone_name]
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes}: at least 1")
    stride = architecture.output_stride if output_stride is None else output_stride
    given = {key: _frozen(value) for key, value in options.items()}

    context_options = _option_names(architecture.build)
    backbone_options = _option_names(backbone.build) - ({"last_block"} if architecture_name != "cascade" else set())
    known = (
        context_options
        | backbone_options
        | _option_names(_settings)
        | _option_names(_preprocessing)
        | {"backbone_norm", "aux_head"}
    )
    for option in given:
        if option not in known:
            raise UserError(f"option {option!r} has no meaning for {name}: {did_you_mean(option, sorted(known))}")

    settings = _settings(**_pick(given, {"norm_epsilon": backbone.norm_epsilon}, _option_names(_settings)))
    backbone_settings = replace(
        settings, norm=_choice("backbone_norm", given.get("backbone_norm", settings.norm), get_args(NormKind))
    )
    if architecture.multi_grid and "multi_grid" in backbone_options and given.get("multi_grid") is None:
        given["multi_grid"] = backbone.multi_grid
    try:
        model_backbone = backbone.build(backbone_settings, **_pick(given, {}, backbone_options))
        context, decoder = architecture.build(settings, **_pick(given, {}, context_options))
    except TypeError as error:
        raise UserError(
            f"{name}: an option has a value of another kind than it needs ({error}); see create_model"
        ) from None
    recipe = json.dumps(
        {"name": name, "num_classes": num_classes, "output_stride": stride, "options": options}, sort_keys=True
    )
    model = Segmenter(
        backbone=model_backbone,
        context=context,
        decoder=decoder,
        backbone_output=f"conv{given.get('last_block', 4) + 1}",
        num_classes=num_classes,
        output_stride=stride,
        preprocessing=_preprocessing(backbone.preprocessing, **_pick(given, {}, _option_names(_preprocessing))),
        settings=settings,
        aux_features="conv4" if given.get("aux_head", False) else None,
        recipe=recipe,
    )
    check_output_stride(model)
    return model


def describe(model: Segmenter) -> dict[str, Any]:
    """Return the name, class count, output stride and options from which `create_model` builds this model again.

    Of a clone, the class count and output stride are its own; other fields cannot be described once cloned.
    """
    return {**json.loads(model.recipe), "num_classes": model.num_classes, "output_stride": model.output_stride}


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
        raise _wrong_kind(error) from None


def _wrong_kind(error: TypeError) -> UserError:
    return UserError(f"an option of the model has a value of another kind than it needs ({error}); see create_model")


def _settings(
    *,
    norm: NormKind = "batch",
    norm_epsilon: float = 1e-5,
    norm_momentum: float = 0.9997,
    dtype: str = "float32",
    lowering: Lowering = "auto",
    align_corners: bool = True,
) -> LayerSettings:
    _choice("norm", norm, get_args(NormKind))
    _choice("dtype", dtype, ("float32", "bfloat16"))
    _choice("lowering", lowering, get_args(Lowering))
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


def _pick(given: Mapping[str, Any], defaults: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in {**defaults, **given}.items() if key in names}


def _choice(option: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise UserError(f"{option}={value!r}: {did_you_mean(str(value), choices)}")
    return value


def _frozen(value: Any) -> Any:
    """Turn lists, as configs and JSON hand them over, into tuples, so that modules stay hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
