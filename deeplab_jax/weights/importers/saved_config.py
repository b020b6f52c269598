"""What files state about a network, and its tensors do not show: `config.json` in a saved folder, of
segmentation_models_pytorch, timm, transformers and KerasHub, and `meta` in a file of mmsegmentation.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.preprocessing import Preprocessing
from deeplab_jax.weights.formats.read import PROCESSOR_FILE, SAVED_CONFIG, mapping_of
from deeplab_jax.weights.importers import mmsegmentation, smp
from deeplab_jax.weights.published import ENCODERS
from deeplab_jax.weights.tensor_map import TensorMap

Config = Mapping[str, Any]
META = "meta"
"""Under this key a configuration holds what mmsegmentation saves beside the tensors."""
# Before these the logits are the same. A class is chosen by its logit, so none of them changes it.
ACTIVATIONS = (None, "identity", "sigmoid", "softmax", "softmax2d", "logsoftmax", "tanh")
# What `smp.recognise` finds from the shapes, or what leaves the logits as they are.
SMP_KNOWN = ("encoder_weights", "aux_params", "decoder_aspp_dropout", "psp_dropout", "encoder_output_stride")
# Arguments of timm's `create_model` that leave the backbone as it is.
TIMM_KNOWN = ("num_classes", "in_chans", "global_pool")
LARGEST_RATE = 4096
FLOAT32 = np.finfo(np.float32)

# The fields of the file that says how transformers prepares images.
OF_IMAGES = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# What the fields of mmsegmentation's config in `meta` begin with.
OF_NETWORK = ("backbone.", "decode_head.")
# The default of `layer_norm_eps` in transformers' MobileNetV2, and what its segmentation head has in any case.
HF_EPSILON, HF_HEAD_EPSILON = 1e-3, 1e-5


def stated_stride(stated: Config) -> int | None:
    """Return the output stride that a configuration states.

    Raises:
      UserError: it is no whole number.
    """
    in_meta = _stages(mapping_of(mmsegmentation.network_of(stated).get("backbone")))[1]
    stride = stated.get("encoder_output_stride", stated.get("output_stride", in_meta))
    if stride is not None and type(stride) is not int:
        raise _refused("output_stride", stride, "give 8 or 16")
    return stride


def apply_config(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """Return a network as its `config.json` or its `meta` states it.

    Args:
      tensor_map: as recognised from the tensors, at the stated output stride or at another that was asked for.
      stated: content of `config.json`, and `meta` under its name; that of other code bases is ignored.

    Raises:
      UserError: a field that contradicts the tensors, or stands for something that this package cannot build.
    """
    of_kinds = {
        "smp": _smp,
        "imagenet": _timm,
        "transformers": _transformers,
        "keras_hub": _keras_hub,
        mmsegmentation.KIND: _mmsegmentation,
    }
    apply = of_kinds.get(tensor_map.kind)
    return apply(tensor_map, stated) if apply and stated else tensor_map


def _smp(tensor_map: TensorMap, stated: Config) -> TensorMap:
    architecture, encoder = tensor_map.name.split("_", 1)
    options, notes = dict(tensor_map.options), list(tensor_map.notes)
    depth = int(str(options.get("last_stage", "conv5"))[-1])
    facts: dict[str, Any] = {
        "_model_class": smp.CLASSES[architecture],
        "encoder_name": encoder,
        "encoder_depth": depth,
        "in_channels": options.get("in_channels", 3),
        "classes": tensor_map.num_classes,
        "decoder_attention_type": None,
        "decoder_interpolation": "nearest",
    }
    if architecture.startswith("deeplab"):
        facts |= {"decoder_channels": options["aspp_channels"], "decoder_aspp_separable": options["aspp_separable"]}
        stride = stated_stride(stated) or tensor_map.output_stride
        # None is the factor that leads to the image's size.
        facts["upsampling"] = 4 if architecture == "deeplabv3plus" else min(stride, 2**depth)
    elif architecture == "pspnet":
        facts |= {"psp_out_channels": options["context_channels"], "upsampling": 2**depth}
    else:
        facts["decoder_channels"] = list(options["decoder_channels"])
    checked: dict[str, Callable[[Any], None]] = {
        "activation": lambda value: _check_activation(value, options, notes),
        "decoder_use_norm": _check_norm,
        "decoder_use_batchnorm": _check_norm,
        "psp_use_batchnorm": _check_norm,
        "decoder_atrous_rates": lambda value: options.update(aspp_rates=_rates(value, tensor_map.output_stride)),
    }
    for field, value in stated.items():
        if field in ("preprocessor", META):  # Other programs write these: a file in the folder, and what they save.
            continue
        if field in facts:
            if not (field == "upsampling" and value is None):
                _expect(field, value, facts[field])
        elif field in checked:
            checked[field](value)
        elif field not in SMP_KNOWN:
            raise _refused(field, value, "it is not known here; remove the line if it changes no logits")
    if "dropout" in options:
        options["dropout"] = _number(
            stated, "psp_dropout" if architecture == "pspnet" else "decoder_aspp_dropout", options
        )
    if "decoder_atrous_rates" in stated:
        rates = ", ".join(map(str, stated["decoder_atrous_rates"]))
        notes = [f"rates {rates} at any output stride" if note.startswith("rates ") else note for note in notes]
    return replace(tensor_map, options=options, notes=tuple(notes))


def _timm(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """The images that a classifier was trained on. Its tensors tell the network, but for what has none of its own: the
    anti-aliased ResNets have exactly the tensors of the plain ones.
    """
    wanted = next(encoder for encoder, (network, _) in ENCODERS.items() if network == tensor_map.name)
    name = stated.get("architecture", wanted)
    if not re.fullmatch(rf"(tv_|ssl_|swsl_|gluon_)?{wanted}(_v1b)?", str(name)):
        raise _refused("architecture", name, f"only {wanted} can be converted with these tensors")
    for argument, value in mapping_of(stated.get("model_args")).items():
        if argument not in TIMM_KNOWN:
            raise _refused(f"model_args.{argument}", value, f"of these only {', '.join(TIMM_KNOWN)} can be converted")
    images, channels = mapping_of(stated.get("pretrained_cfg")), tensor_map.options.get("in_channels", 3)
    if not {"mean", "std"} <= images.keys():
        return tensor_map
    # The file has three channels, whatever the network has.
    found = Preprocessing(**_mean_and_std(images, "mean", "std", 3)).for_channels(channels)
    return replace(tensor_map, options={**tensor_map.options, **found.normalisation})


def _transformers(tensor_map: TensorMap, stated: Config) -> TensorMap:
    options = dict(tensor_map.options)
    facts = {"num_channels": options.get("in_channels", 3), "hidden_act": "relu6", "tf_padding": True}
    for field, value in (facts | {"depth_multiplier": options["width"]}).items():
        if field in stated:
            _expect(field, stated[field], value)
    # It is the backbone's; that of the head is fixed there.
    epsilon = stated.get("layer_norm_eps", HF_EPSILON)
    if epsilon == HF_HEAD_EPSILON:
        options["norm_epsilon"] = HF_HEAD_EPSILON
    elif epsilon != HF_EPSILON:
        raise _refused("layer_norm_eps", epsilon, f"only {HF_EPSILON} and {HF_HEAD_EPSILON} can be converted")
    if "classifier_dropout_prob" in stated:
        options["dropout"] = _number(stated, "classifier_dropout_prob", options)
    options |= _of_processor(mapping_of(stated.get("preprocessor")), options.get("in_channels", 3))
    names = _names(stated.get("id2label"), tensor_map.num_classes)
    return replace(tensor_map, options=options, info={**tensor_map.info, **names})


def _keras_hub(tensor_map: TensorMap, stated: Config) -> TensorMap:
    options, notes = dict(tensor_map.options), list(tensor_map.notes)
    backbone = _inside(stated)
    encoder = _inside(backbone.get("image_encoder"))
    last, low = int(options["last_stage"][-1]), int(options["low_level"][0][-1])
    size = backbone.get("upsampling_size", 2 ** (last - low))
    facts = {
        "spatial_pyramid_pooling_key": f"P{last}",
        "low_level_feature_key": f"P{low}",
        "projection_filters": options["low_level_channels"],
    }
    for field, value in facts.items():
        _expect(field, backbone.get(field, value), value)
    _expect("upsampling_size", size[0] if isinstance(size, list) and size[:1] == size[1:] else size, 2 ** (last - low))
    _expect("use_pre_activation", encoder.get("use_pre_activation", False), False)
    _expect("stackwise_num_strides", encoder.get("stackwise_num_strides", [1, 2, 2, 2]), [1, 2, 2, 2])
    if str(block := encoder.get("block_type")).endswith("_vd"):
        raise _refused("block_type", block, "only blocks that are not of the kind 'vd' can be converted")
    if "dilation_rates" in backbone:
        rates = backbone["dilation_rates"]
        options["aspp_rates"] = _rates(rates, tensor_map.output_stride, field="dilation_rates")
        notes = [f"rates {', '.join(map(str, rates))} at any output stride", *notes[1:]]
    _check_activation(_inside(stated.get("task")).get("activation"), options, notes)
    options |= _normalisation(_inside(stated.get("image_converter")), options.get("in_channels", 3))
    return replace(tensor_map, options=options, notes=tuple(notes))


def _mmsegmentation(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """The class names, and what the config that trained the network says; its rates are those at its own stride."""
    options, notes = dict(tensor_map.options), list(tensor_map.notes)
    network = mmsegmentation.network_of(stated)
    backbone, head = mapping_of(network.get("backbone")), mapping_of(network.get("decode_head"))
    stages, stride = _stages(backbone)
    if backbone:
        if stride is None:
            raise _refused("backbone.(strides, dilations)", stages, "only those of output strides 8 and 16 are known")
        _expect("backbone.style", backbone.get("style", "pytorch"), "pytorch")
        _expect("backbone.contract_dilation", backbone.get("contract_dilation", False), True)
        # These are the rates themselves; ours multiply that of the stage.
        _expect("backbone.multi_grid", backbone.get("multi_grid"), None)
    aligned = head.get("align_corners", False)
    if type(aligned) is not bool:
        raise _refused("decode_head.align_corners", aligned, "only True and False can be converted")
    if aligned:
        options["align_corners"] = True
        notes.remove(mmsegmentation.NOT_ALIGNED)
    if "dilations" in head and "aspp_rates" in options:
        stride, rates = stride or tensor_map.output_stride, head["dilations"]
        if isinstance(rates, tuple) and rates[:1] == (1,):  # That of the 1x1 convolution.
            rates = list(rates[1:])
        options["aspp_rates"] = _rates(rates, stride, field="decode_head.dilations")
        said = f"rates {', '.join(map(str, rates))} at output stride {stride}"
        notes = [said if note.startswith("rates ") else note for note in notes]
    return replace(
        tensor_map,
        options=options,
        notes=tuple(notes),
        info={**tensor_map.info, **mmsegmentation.labels_of(stated, tensor_map.num_classes)},
    )


def _stages(backbone: Config) -> tuple[Any, int | None]:
    """Return the strides and dilations of mmsegmentation's ResNet, and their output stride if it is known."""
    stages = backbone.get("strides", (1, 2, 2, 2)), backbone.get("dilations", (1, 1, 1, 1))
    return stages, next((stride for stride, known in mmsegmentation.STAGES.items() if known == stages), None)


def _of_processor(processor: Config, channels: int) -> dict[str, Any]:
    """Return our options for the images of transformers' MobileNetV2, whose processor makes -1 to 1 of them unless its
    file says otherwise.
    """
    for field in ("do_rescale", "do_normalize"):
        _expect(field, processor.get(field, True), True)
    factor = processor.get("rescale_factor", 1 / 255)
    if not (type(factor) is float and math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        raise _refused("rescale_factor", factor, "only 1/255 can be converted")
    if not {"image_mean", "image_std"} & processor.keys():
        return {}
    stated = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels, **processor}
    return _mean_and_std(stated, "image_mean", "image_std", channels)


def _mean_and_std(images: Config, mean: str, std: str, channels: int) -> dict[str, Any]:
    """Return our options for images of 0 to 1, from the fields with their mean and deviation."""
    means, deviations = (tuple(_per_channel(images, field, 0.0, channels)) for field in (mean, std))
    for field, values, fit in ((mean, means, all(map(math.isfinite, means))), (std, deviations, min(deviations) > 0)):
        if not (fit and max(values) <= float(FLOAT32.max)):
            raise _refused(field, images.get(field), "give finite numbers, of deviations above 0")
    return {"value_range": (0.0, 1.0), "mean": means, "std": deviations}


def _inside(saved: Any) -> Config:
    """Return the arguments of an object that Keras has written; {} if there are none."""
    return mapping_of(mapping_of(saved).get("config"))


def _normalisation(converter: Config, channels: int) -> dict[str, Any]:
    """Return our options for pixels (0 to 255) times a scale plus an offset, each None, a number or one per channel."""
    scale, offset = (
        _per_channel(converter, field, default, channels) for field, default in (("scale", 1.0), ("offset", 0.0))
    )
    std = tuple(1 / s / 255 if s else math.inf for s in scale)
    mean = tuple(-o * deviation for o, deviation in zip(offset, std, strict=True))
    for field, values, least in (("scale", std, float(FLOAT32.tiny)), ("offset", mean, 0)):
        if not all(least <= abs(value) <= float(FLOAT32.max) for value in values):  # False for NaN.
            raise _refused(field, converter.get(field), "give numbers, of scale other than 0, that float32 can hold")
    return {"value_range": (0.0, 1.0), "mean": mean, "std": std}


def _per_channel(converter: Config, field: str, default: float, channels: int) -> list[float]:
    stated = converter.get(field)
    values = [default if stated is None else stated] * channels if not isinstance(stated, list) else stated
    if len(values) != channels or not all(type(value) in (int, float) for value in values):
        raise _refused(field, stated, f"give null, a number, or {channels} of them")
    try:
        return [float(value) for value in values]
    except OverflowError:  # A whole number of hundreds of digits.
        raise _refused(field, stated, "give numbers that float32 can hold") from None


def _names(labels: Any, count: int) -> dict[str, Any]:
    """Return the class names of `id2label`; {} where transformers has numbered them itself."""
    if labels is None:
        return {}
    wanted = [str(index) for index in range(count)]
    if (
        not isinstance(labels, dict)
        or set(labels) != set(wanted)
        or not all(isinstance(v, str) and v.isprintable() for v in labels.values())
    ):
        raise _refused("id2label", labels, f"the tensors have {count} classes; give one name for each, from 0")
    names = [labels[key] for key in wanted]
    return {} if names == [f"LABEL_{key}" for key in wanted] else {"class_names": names}


def _rates(value: Any, output_stride: int, *, field: str = "decoder_atrous_rates") -> tuple[int, ...]:
    """Return rates at output stride 16, as ours are stated; theirs are the same at any."""
    whole = isinstance(value, list) and all(type(rate) is int and 0 < rate <= LARGEST_RATE for rate in value)
    if not whole or len(value) != 3:
        raise _refused(field, value, f"give three whole numbers from 1 to {LARGEST_RATE}")
    if any(rate * output_stride % 16 for rate in value):
        raise _refused(
            field,
            value,
            f"at output stride {output_stride} only multiples of {16 // output_stride} can be converted",
        )
    return tuple(rate * output_stride // 16 for rate in value)


def _check_activation(value: Any, options: dict[str, Any], notes: list[str]) -> None:
    if value not in ACTIVATIONS:
        raise _refused("activation", value, "only an activation that keeps the order of the logits can be converted")
    if value == "sigmoid":
        options["activation"] = "sigmoid"
    if value not in (None, "identity"):
        notes.append(f"theirs ends with {value}; ours returns the logits before it")


def _check_norm(value: Any) -> None:
    kind = value["type"] if isinstance(value, dict) and set(value) == {"type"} else value
    if kind not in (True, False, "batchnorm", "identity"):
        raise _refused("decoder_use_norm", value, "only batch norm and none can be converted")


def _number(stated: Config, field: str, options: Config) -> float:
    value = stated.get(field, options["dropout"])
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise _refused(field, value, "give a number from 0 to 1")
    return float(value)


def _expect(field: str, value: Any, wanted: Any) -> None:
    if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
        raise _refused(field, value, f"only {wanted!r} can be converted with these tensors")


def _refused(field: str, value: Any, fix: str) -> UserError:
    file = PROCESSOR_FILE if field in OF_IMAGES else META if field.startswith(OF_NETWORK) else SAVED_CONFIG
    return UserError(f"{file}: {field} is {value!r:.100}; {fix}")
