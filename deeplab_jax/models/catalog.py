"""From names to networks: `create_model` builds the parts in the tables of `architectures`, and composes them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from deeplab_jax.checks import check_value
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.extensions import allow, own_errors, own_table
from deeplab_jax.models.architectures import (
    ARCHITECTURES,
    BACKBONES,
    FIXED,
    VARIANTS,
    Architecture,
    Backbone,
    Options,
    Part,
)
from deeplab_jax.models.image_pyramid import ImagePyramid
from deeplab_jax.models.layers import LayerSettings, NormKind
from deeplab_jax.models.preprocessing import Preprocessing, preprocessing_with
from deeplab_jax.models.segmenter import Segmenter, abstract_variables

LISTS_MODELS = "python -c 'import deeplab_jax; print(*deeplab_jax.model_names())'"
# Fields of modules that are not options.
NOT_OPTIONS = {"settings", "num_classes", "name", "parent"}


def create_model(
    name: str, *, num_classes: int = 21, output_stride: int | None = None, module: str = "", **options: Any
) -> Segmenter:
    """Build a segmentation network.

    Args:
      name: `<architecture>_<backbone>`, one of `model_names()`.
      num_classes: number of logits at each pixel, at least 1. One logit divides two classes: the object is where its
        sigmoid is large.
      output_stride: input pixels per sample of the context's map; None is the architecture's own.
      module: path of your own Python file. The file is run, and its tables `BACKBONES` and `ARCHITECTURES` extend those
        of `architectures`, which says how to write them.
      **options: fields of the backbone, the context and the decoder in the tables, such as `multi_grid`,
        `first_unit_rate`, `width`, `aspp_rates`, `separable`, `low_level` or `padding`. If several parts have a field,
        each receives the value. The fields of `LayerSettings` (`norm`, `dtype`, `lowering`, ...) apply to all layers;
        `backbone_norm` is the backbone's own `norm`. Those of `ImagePyramid` (`image_pyramid`, `fusion`, `pyramid`) put
        one around the network. `aux_head` adds torchvision's auxiliary FCN head. `activation="sigmoid"` lets a pixel
        have several labels; see `Segmenter`. Those of `Preprocessing` (`value_range`, `mean`, `std`, `channels`,
        `stored_range`) replace the backbone's. `in_channels` is the number of channels of the images, 3 by default;
        with another number, each channel has the average of the backbone's means unless `mean` is given. None means
        the default.

    Returns:
      The module; `model.init(key, images, train=False)` makes its variables.

    Raises:
      UserError: an unknown name, option or value; the message names the valid ones.
    """
    allow(module)
    return _create(name, num_classes, output_stride, module, options)


def model_names(*, module: str = "") -> list[str]:
    """List the names that `create_model` takes: `<architecture>_<backbone>`, and `unet`.

    Args:
      module: path of your own file; see `create_model`.
    """
    allow(module)
    return list(_entries(module))


def known_options(name: str, *, module: str = "") -> set[str]:
    """Return the options that `create_model` takes for a name."""
    entry = _entry(name, module)
    known = {"backbone_norm", "aux_head", "activation", "in_channels"}.union(
        *(_fields(_variant(part)) for part in entry.parts if part is not None),
        *map(_fields, (LayerSettings, Preprocessing, ImagePyramid)),
    )
    return known - {option for option, default in entry.defaults.items() if default is FIXED}


def default_output_stride(name: str) -> int:
    """Return the output stride of a model if none is given."""
    return int(_entry(name, "").defaults["output_stride"])


def describe(model: Segmenter) -> dict[str, Any]:
    """Return the name, class count, output stride and options from which `create_model` builds this model again.

    The output stride is that of a clone, too. Other fields that a clone changed cannot be described.

    Raises:
      UserError: the model has no name, because it was composed in Python.
    """
    if not model.recipe:
        raise UserError(
            "a network that is composed in Python has no name; put its parts into tables of a file, and build it by "
            "create_model(name, module=FILE)"
        )
    return {**json.loads(model.recipe), "output_stride": model.output_stride}


def rebuildable(model: Segmenter) -> dict[str, Any] | None:
    """Return what `describe` does; None for a network that `from_description` does not build again from it."""
    if not model.recipe:
        return None
    built = from_description(describe(model)).clone(recipe=model.recipe)  # A clone's recipe keeps the first stride.
    return describe(model) if built == model else None


def from_description(description: Mapping[str, Any], *, module: str = "") -> Segmenter:
    """Build the model that `describe` wrote down.

    Args:
      description: of a model. If it names a user's own file, that is no permission to run the file.
      module: path of the user's own file, which is run instead of the one in the description.
    """
    allow(module)
    return _create(
        description["name"],
        description["num_classes"],
        description["output_stride"],
        module or description.get("module", ""),
        description["options"],
    )


def check_output_stride(model: Segmenter, *, module: str = "") -> None:
    """Raise a UserError if the model cannot run at its output stride, if a layer has no channels, or if a user's own
    file has a mistake.
    """
    try:
        with own_errors(module):
            variables = abstract_variables(model)
    except UserError:
        raise
    except (ValueError, OverflowError) as error:
        raise UserError(str(error)) from None
    for path, leaf in flatten_dict(variables.get("params", {}), sep="/").items():
        if 0 in leaf.shape:
            raise UserError(f"{path} of shape {leaf.shape}: an option gives this layer 0 channels; give at least 1")


def _create(name: str, num_classes: int, output_stride: int | None, module: str, options: Options) -> Segmenter:
    """Do what `create_model` does, but do not permit the user's own file to run."""
    entry = _entry(name, module)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes={num_classes!r}: give a whole number of at least 1")
    if not isinstance(options, Mapping):
        raise UserError(f"options={options!r:.100}: give a mapping of names to values")
    known = known_options(name, module=module)
    for option in options:
        if option not in known:
            raise UserError(f"option {option!r} has no meaning for {name}: {did_you_mean(option, sorted(known))}")
    stride = entry.defaults["output_stride"] if output_stride is None else output_stride
    recipe = {"name": name, "num_classes": num_classes, "output_stride": stride, "options": options}
    if module:
        recipe["module"] = module
    defaults = {key: value for key, value in entry.defaults.items() if value is not FIXED}
    given = {**defaults, **{key: _frozen(value) for key, value in options.items() if value is not None}}
    width = given.get("width", 1)
    if not module and isinstance(width, int | float) and not 0 < width < math.inf:  # A user's part may mean another.
        raise UserError(f"width={width}: give a number above 0, the factor of all channel counts")
    try:
        model = _compose(entry, num_classes, stride, given, recipe)
        check_output_stride(model, module=module)
    except TypeError as error:
        if not module:
            raise
        raise UserError(
            f"{module}: a part does not take the arguments that it is called with, or an option has a value of the "
            f"wrong type ({error}); see deeplab_jax/models/README.md"
        ) from error
    return model


@dataclass(frozen=True)
class _Entry:
    """What the tables say of a name, with all of its other defaults."""

    backbone: Backbone
    architecture: Architecture
    defaults: Options

    @property
    def parts(self) -> tuple[Part | None, ...]:
        return self.backbone.module, self.architecture.context, self.architecture.decoder


def _compose(entry: _Entry, num_classes: int, output_stride: int, given: Options, recipe: Options) -> Segmenter:
    """Build the parts with the given options, and put them together."""
    kind = entry.backbone.module
    own: LayerSettings = getattr(_class(kind), "settings", LayerSettings())
    settings = build_part(LayerSettings, {"norm": own.norm, **given})
    backbone_norm = given.get("backbone_norm", settings.norm)
    check_value("backbone_norm", backbone_norm, NormKind)
    check_value("aux_head", given.get("aux_head", False), bool)
    backbone_epsilon = given.get("norm_epsilon", own.norm_epsilon)
    aux = entry.backbone.aux if given.get("aux_head") else None
    if aux and given.get("last_stage", aux) < aux:
        raise UserError(f"aux_head: it needs {aux}; leave out last_stage={given['last_stage']!r}")
    pyramid = build_part(ImagePyramid, given, settings=settings)
    # A part of the user's own may have a field `channels` of another meaning.
    of_parts = {field for part in entry.parts if part is not None for field in _fields(part)}
    return Segmenter(
        backbone=build_part(kind, given, settings=replace(settings, norm=backbone_norm, norm_epsilon=backbone_epsilon)),
        num_classes=num_classes,
        output_stride=output_stride,
        context=build_part(entry.architecture.context, given, settings=settings),
        decoder=build_part(entry.architecture.decoder, given, settings=settings, num_classes=num_classes),
        pyramid=pyramid if pyramid.image_pyramid else None,
        preprocessing=preprocessing_with(
            entry.backbone.preprocessing,
            {key: given[key] for key in (_fields(Preprocessing) | {"in_channels"}) & given.keys() - of_parts},
        ),
        settings=settings,
        aux_features=aux,
        activation=given.get("activation", "sigmoid" if num_classes == 1 else "softmax"),
        recipe=json.dumps(recipe, sort_keys=True),
    )


def build_part(part: Part | None, given: Options, **around: Any) -> Any:
    """Build a part, or its variant, from the values that it has fields for."""
    if part is None:
        return None
    if given.keys() & (_fields(_variant(part)) - _fields(part)):
        part = _variant(part)
    names = _fields(part) | ({entry.name for entry in fields(_class(part))} & around.keys())
    return part(**{key: value for key, value in {**given, **around}.items() if key in names})


def _entry(name: str, module: str) -> _Entry:
    entries = _entries(module)
    if name not in entries:
        own = "" if module else "; for a model of your own, give --module the path of its file"
        raise UserError(f"model {name!r} is not known: {did_you_mean(name, entries, listed_by=LISTS_MODELS)}{own}")
    for part in filter(None, entries[name].parts):
        if not (isinstance(_class(part), type) and issubclass(_class(part), nn.Module)):
            raise UserError(f"{module}: {_class(part)!r} of {name} is no class of modules; derive it from nn.Module")
    return entries[name]


def _entries(module: str) -> dict[str, _Entry]:
    """Return what the tables here, and those of a user's own file, say of each name."""
    backbones = {**BACKBONES, **_own(module, "BACKBONES", Backbone)}
    found = {}
    for name, architecture in {**ARCHITECTURES, **_own(module, "ARCHITECTURES", Architecture)}.items():
        all_atrous: dict[str, Options] = {
            key: {} for key, entry in backbones.items() if entry.atrous and architecture.on_all_atrous
        }
        for key, own in {**all_atrous, **architecture.backbones}.items():
            if key not in backbones:
                raise UserError(f"{module}: ARCHITECTURES[{name!r}]: backbone {key!r}: {did_you_mean(key, backbones)}")
            backbone, stride = backbones[key], {"output_stride": architecture.output_stride}
            defaults = {**stride, **backbone.defaults, **architecture.defaults, **own}
            # U-Net's own path adds nothing to the name.
            found[name if name == key else f"{name}_{key}"] = _Entry(backbone, architecture, defaults)
    return found


def _own(module: str, table: str, kind: type) -> Mapping[str, Any]:
    entries = own_table(module, table)
    if not isinstance(entries, Mapping) or not all(isinstance(entry, kind) for entry in entries.values()):
        raise UserError(f"{module}: {table} is no table of names to {kind.__name__}(...); see models/architectures.py")
    return entries


def _class(part: Part) -> Any:
    """Return the class of a part, without the fields that a `partial` fixes."""
    return part.func if isinstance(part, partial) else part


def _variant(part: Part) -> Part:
    """Return the variant of a part with the same fixed fields, or the part itself if it has no variant."""
    return partial(VARIANTS.get(_class(part), _class(part)), **getattr(part, "keywords", {}))


def _fields(part: Part) -> set[str]:
    """Return the fields of a part that are options."""
    return {entry.name for entry in fields(_class(part))} - NOT_OPTIONS - {*getattr(part, "keywords", {})}


def _frozen(value: Any) -> Any:
    """Turn lists, as they come from configs and JSON, into tuples, so that modules stay hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
