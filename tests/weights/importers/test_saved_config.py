"""`config.json` of saved folders: what is read from it, and what is refused by name."""

from typing import Any

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.convert import stated_stride
from deeplab_jax.weights.importers import imagenet, smp, transformers
from deeplab_jax.weights.tensor_map import TensorMap

SMP = TensorMap(
    name="deeplabv3plus_mobilenet_v2",
    num_classes=5,
    output_stride=16,
    options={"aspp_rates": (12, 24, 36), "aspp_channels": 256, "aspp_separable": True, "dropout": 0.5},
    notes=("rates 12, 24, 36 at any output stride, unless it was trained with others",),
)
# As version 0.6 writes it.
SAVED: dict[str, Any] = {
    "_model_class": "DeepLabV3Plus",
    "activation": None,
    "aux_params": None,
    "classes": 5,
    "decoder_aspp_dropout": 0.5,
    "decoder_aspp_separable": True,
    "decoder_atrous_rates": [12, 24, 36],
    "decoder_channels": 256,
    "encoder_depth": 5,
    "encoder_name": "mobilenet_v2",
    "encoder_output_stride": 16,
    "encoder_weights": "imagenet",
    "in_channels": 3,
    "upsampling": 4,
}
HF = TensorMap("deeplabv3_mobilenet_v2", 2, 8, options={"width": 1.0, "dropout": 0.8})


def test_smps_defaults_change_nothing() -> None:
    assert smp.apply_config(SMP, {**SAVED, "preprocessor": {"image_mean": [0, 0, 0]}}).options == SMP.options
    assert smp.apply_config(SMP, SAVED).options == SMP.options


@pytest.mark.parametrize(("stride", "rates"), [(16, (6, 12, 18)), (8, (3, 6, 9))])
def test_rates_are_stated_at_16(stride: int, rates: tuple[int, ...]) -> None:
    config = {**SAVED, "decoder_atrous_rates": [6, 12, 18], "encoder_output_stride": stride}
    assert stated_stride(config) == stride
    found = smp.apply_config(TensorMap(**{**vars(SMP), "output_stride": stride}), config)
    assert found.options["aspp_rates"] == rates
    assert found.notes == ("rates 6, 12, 18 at any output stride",)


def test_the_channels_are_those_of_the_first_convolution() -> None:
    four = TensorMap(**{**vars(SMP), "options": {**SMP.options, "in_channels": 4}})
    assert smp.apply_config(four, {**SAVED, "in_channels": 4}).options["in_channels"] == 4
    with pytest.raises(UserError, match="in_channels"):
        smp.apply_config(four, {**SAVED, "in_channels": 3})
    four = TensorMap(**{**vars(HF), "options": {**HF.options, "in_channels": 4}})
    assert transformers.apply_config(four, {"num_channels": 4}).options["in_channels"] == 4


def test_dropout_and_an_activation_after_the_logits() -> None:
    found = smp.apply_config(SMP, {**SAVED, "decoder_aspp_dropout": 0.25, "activation": "softmax"})
    assert found.options["dropout"] == 0.25
    assert "theirs ends with softmax; ours returns the logits before it" in found.notes
    assert "activation" not in found.options
    assert smp.apply_config(SMP, {**SAVED, "activation": "sigmoid"}).options["activation"] == "sigmoid"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_model_class", "Unet"),
        ("activation", "relu"),
        ("classes", 3),
        ("decoder_aspp_separable", False),
        ("decoder_atrous_rates", [6, 12]),
        ("decoder_atrous_rates", 12),
        ("decoder_channels", 128),
        ("decoder_attention_type", "scse"),
        ("decoder_interpolation", "bilinear"),
        ("decoder_use_norm", {"type": "layernorm"}),
        ("decoder_aspp_dropout", "half"),
        ("encoder_depth", 4),
        ("encoder_name", "resnet18"),
        ("encoder_output_stride", "8"),
        ("in_channels", 4),
        ("upsampling", 2),
        ("something_new", 1),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=r"^config\.json: (encoder_)?") as caught:
        config = {**SAVED, field: value}
        stated_stride(config)
        smp.apply_config(SMP, config)
    assert field.removeprefix("encoder_") in str(caught.value) and repr(value) in str(caught.value)


def test_odd_rates_have_no_equal_at_output_stride_8() -> None:
    config = {**SAVED, "decoder_atrous_rates": [3, 5, 7], "encoder_output_stride": 8}
    with pytest.raises(UserError, match=r"decoder_atrous_rates is \[3, 5, 7\]; at output stride 8 only multiples of 2"):
        smp.apply_config(TensorMap(**{**vars(SMP), "output_stride": 8}), config)


def test_transformers_names_epsilon_and_dropout() -> None:
    config = {"output_stride": 16, "id2label": {"0": "sky", "1": "crack"}, "layer_norm_eps": 1e-5, "num_channels": 3}
    found = transformers.apply_config(HF, {**config, "classifier_dropout_prob": 0.1, "torch_dtype": "float32"})
    assert stated_stride(config) == 16
    assert found.info == {"class_names": ["sky", "crack"]}
    assert (found.options["norm_epsilon"], found.options["dropout"]) == (1e-5, 0.1)
    # The default is the backbone's alone: the head has 1e-5 there, as ours has without the option.
    assert "norm_epsilon" not in transformers.apply_config(HF, {**config, "layer_norm_eps": 0.001}).options
    assert transformers.apply_config(HF, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}).info == {}


def test_timm_states_the_images_of_its_training() -> None:
    plain = TensorMap("deeplabv3plus_resnet34", 21, 32, options={})
    images = {"mean": [0.5, 0.5, 0.4], "std": [0.25, 0.5, 0.5]}
    stated = {"value_range": (0.0, 1.0), "mean": (0.5, 0.5, 0.4), "std": (0.25, 0.5, 0.5)}
    assert imagenet.apply_config(plain, {"architecture": "resnet34", "pretrained_cfg": images}).options == stated
    assert imagenet.apply_config(plain, {"architecture": "resnet34"}).options == {}
    grey = TensorMap("deeplabv3plus_resnet34", 21, 32, options={"in_channels": 1})
    found = imagenet.apply_config(grey, {"pretrained_cfg": {"mean": [0.3, 0.6, 0.9], "std": [0.5] * 3}}).options
    assert (found["mean"], found["std"]) == (pytest.approx((0.6,)), (0.5,))
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.5, "a"]):
        with pytest.raises(UserError, match=r"config\.json: std is "):
            imagenet.apply_config(plain, {"pretrained_cfg": {**images, "std": wrong}})


@pytest.mark.parametrize(
    ("network", "stated", "said"),
    [
        ("deeplabv3plus_resnet50", {"architecture": "resnetblur50"}, "architecture is 'resnetblur50'; only resnet50"),
        ("deeplabv3plus_resnet50", {"architecture": "resnetaa50"}, "architecture is 'resnetaa50'; only resnet50 can"),
        ("deeplabv3plus_resnet18", {"architecture": "resnetblur18"}, "only resnet18 can be converted with these"),
        ("deeplabv3plus_resnet50", {"architecture": None}, "architecture is None; only resnet50 can"),
        ("segnet_vgg16", {"architecture": "vgg16"}, "architecture is 'vgg16'; only vgg16_bn can"),
        (
            "deeplabv3plus_resnet50",
            {"architecture": "resnet50", "model_args": {"in_chans": 4, "aa_layer": "blur"}},
            "model_args.aa_layer is 'blur'; of these only num_classes, in_chans, global_pool can be converted",
        ),
    ],
)
def test_networks_of_timm_with_the_tensors_of_another_are_refused(network: str, stated: Any, said: str) -> None:
    with pytest.raises(UserError, match=r"^config\.json: ") as caught:
        imagenet.apply_config(TensorMap(network, 21, 16), stated)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["resnet50", "tv_resnet50", "ssl_resnet50", "swsl_resnet50", "gluon_resnet50_v1b"])
def test_timms_names_of_the_plain_network(name: str) -> None:
    plain = TensorMap("deeplabv3plus_resnet50", 21, 16)
    arguments = {"num_classes": 3, "in_chans": 3, "global_pool": "avg"}
    assert imagenet.apply_config(plain, {"architecture": name, "model_args": arguments}) == plain


def test_transformers_states_its_images_in_a_file_of_its_own() -> None:
    """Its own default is -1 to 1, which the network here has without options."""
    usual = {"do_normalize": True, "rescale_factor": 1 / 255}
    assert "mean" not in transformers.apply_config(HF, {"preprocessor": usual}).options
    own = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": {"shortest_edge": 544}}
    found = transformers.apply_config(HF, {"preprocessor": own}).options
    assert (found["value_range"], found["mean"], found["std"]) == ((0.0, 1.0), *map(tuple, list(own.values())[:2]))
    for field, value in (("do_normalize", False), ("do_rescale", False), ("rescale_factor", 1.0)):
        with pytest.raises(UserError, match=rf"preprocessor_config\.json: {field} is "):
            transformers.apply_config(HF, {"preprocessor": {field: value}})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "relu"),
        ("tf_padding", False),
        ("num_channels", 4),
        ("id2label", {"0": "sky"}),
        ("id2label", {"0": "sky", "1": "\x1b[2J"}),
        ("depth_multiplier", 0.5),
        ("layer_norm_eps", 0.01),
        ("layer_norm_eps", "small"),
    ],
)
def test_what_transformers_states_and_is_not_built(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {field} is "):
        transformers.apply_config(HF, {field: value})
