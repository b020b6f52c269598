"""`create_model`: names, options and what it refuses; descriptions that build the same model again; published sizes."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.errors import UserError
from deeplab_jax.models.architectures import ARCHITECTURES, BACKBONES, VARIANTS, Architecture
from deeplab_jax.models.backbones.mobilenet_v2 import MobileNetV2
from deeplab_jax.models.backbones.mobilenet_v2_variants import MobileNetV2Variant
from deeplab_jax.models.backbones.resnet import ResNet
from deeplab_jax.models.backbones.resnet_variants import ResNetVariant
from deeplab_jax.models.backbones.xception import Xception
from deeplab_jax.models.backbones.xception_variants import XceptionVariant
from deeplab_jax.models.catalog import create_model, describe, from_description, model_names, rebuildable
from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.contexts.aspp_variants import ASPPVariant
from deeplab_jax.models.contexts.pyramid_pooling import PyramidPooling
from deeplab_jax.models.contexts.pyramid_pooling_variants import PyramidPoolingVariant
from deeplab_jax.models.image_pyramid import ImagePyramid
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing
from deeplab_jax.models.segmenter import abstract_variables
from tests.support.params import first_fast
from tests.support.traces import parameter_count, variable_shapes

SMALL = {"width": 0.25, "aspp_channels": 8}


def test_names() -> None:
    names = model_names()
    assert {
        "deeplabv3_resnet18", "deeplabv3_resnet34", "deeplabv3_resnet50", "deeplabv3_resnet101",
        "deeplabv3_mobilenet_v2",
        "deeplabv3plus_resnet18", "deeplabv3plus_resnet101", "deeplabv3plus_mobilenet_v2",
        "cascade_resnet50", "cascade_resnet101",
    } <= set(names)  # fmt: skip
    assert len(set(names)) == len(names)
    assert deeplab_jax.create_model is create_model
    assert deeplab_jax.model_names is model_names


def test_the_names_of_the_literature() -> None:
    names = set(model_names())
    for architecture in ("deeplabv3", "deeplabv3plus"):
        backbones = (
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet50_beta", "resnet101_beta",
            "mobilenet_v2", "mobilenet_v3_large", "xception41", "xception65", "xception71",
        )  # fmt: skip
        assert {f"{architecture}_{backbone}" for backbone in backbones} <= names
    assert {
        "deeplabv2_vgg16", "deeplabv2_resnet101", "largefov_vgg16", "fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16",
        "fcn_resnet50", "fcn_resnet101", "lraspp_mobilenet_v3_large", "unet", "unet_resnet18", "segnet_vgg16",
        "refinenet_resnet101", "pspnet_resnet50", "pspnet_resnet101", "parsenet_vgg16", "spp_vgg16",
    } <= names  # fmt: skip


OUTPUT_STRIDES = {
    "deeplabv3": 16, "deeplabv3plus": 16, "cascade": 16, "deeplabv2": 8, "largefov": 8, "fcn32s": 32, "fcn16s": 32,
    "fcn8s": 32, "fcn": 8, "lraspp": 16, "segnet": 32, "refinenet": 32, "pspnet": 8, "parsenet": 8, "spp": 16,
}  # fmt: skip
PREPROCESSING = {
    "mobilenet_v2": SYMMETRIC,
    "xception": SYMMETRIC,
    "resnet50_beta": SYMMETRIC,
    "resnet101_beta": SYMMETRIC,
}
MULTI_GRIDS = {
    "resnet18": (1, 2),
    **dict.fromkeys(("resnet34", "resnet50", "resnet101", "resnet50_beta", "resnet101_beta"), (1, 2, 4)),
}
NORM_EPSILON = {"mobilenet": 1e-3, "xception": 1e-3}


def by_prefix(table: dict[str, Any], backbone: str, default: Any) -> Any:
    return next((value for prefix, value in table.items() if backbone.startswith(prefix)), default)


@pytest.mark.parametrize("name", [name for name in model_names() if not name.startswith("unet")])
def test_defaults_of_every_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts and defaults; what it computes is tested elsewhere."""
    monkeypatch.setattr("deeplab_jax.models.catalog.check_output_stride", lambda model, **_: None)
    model = create_model(name)
    architecture, backbone = name.split("_", 1)
    assert model.num_classes == 21
    assert model.output_stride == OUTPUT_STRIDES[architecture]
    assert model.preprocessing == by_prefix(PREPROCESSING, backbone, IMAGENET)
    assert model.settings.norm_epsilon == 1e-5
    assert model.backbone.settings.norm_epsilon == by_prefix(NORM_EPSILON, backbone, 1e-5)
    normalised = backbone != "vgg16" or architecture == "segnet"
    assert model.settings.norm == model.backbone.settings.norm == ("batch" if normalised else "none")
    assert model.settings.align_corners == (architecture not in ("fcn", "lraspp"))
    assert model.pyramid is None
    assert not model.valid
    assert (model.classifier_kernel == 0) == (architecture in ("deeplabv2", "fcn32s", "fcn16s", "fcn8s", "lraspp"))
    if backbone.startswith("resnet"):
        expected = MULTI_GRIDS[backbone] if architecture.startswith("deeplabv3") else None
        assert model.backbone.multi_grid == expected
        convention = "last_unit" if backbone.endswith("beta") or architecture == "cascade" else "previous"
        assert model.backbone.first_unit_rate == ("stage" if architecture in ("deeplabv2", "pspnet") else convention)
    if backbone == "vgg16":
        assert model.backbone.pool_window == (3 if OUTPUT_STRIDES[architecture] == 8 else 2)


def test_defaults_of_unet() -> None:
    published, on_encoder = create_model("unet"), create_model("unet_resnet18")
    assert (published.output_stride, on_encoder.output_stride) == (16, 32)
    assert (published.settings.norm, on_encoder.settings.norm) == ("none", "batch")
    assert (published.classifier_kernel, on_encoder.classifier_kernel) == (1, 3)
    valid = create_model("unet", padding="valid")
    assert valid.valid
    assert [published.fitting_side(side) for side in (1, 33, 200)] == [33, 33, 200]
    assert [valid.fitting_side(side) for side in (1, 188, 189, 572)] == [188, 188, 204, 572]


def test_an_epsilon_that_is_given_is_that_of_all_norms() -> None:
    model = create_model("deeplabv3_mobilenet_v2", norm_epsilon=0.5)
    assert model.settings.norm_epsilon == model.backbone.settings.norm_epsilon == 0.5


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("deeplabv3_resnet5", {}, "model 'deeplabv3_resnet5' is not known: did you mean deeplabv3_resnet50"),
        ("deeplabv4", {}, "did you mean deeplabv3_"),
        ("???", {}, "choose from deeplabv3_resnet18, "),
        ("cascade_mobilenet_v2", {}, "is not known"),
        (
            "deeplabv3_resnet18",
            {"asp_rates": (1, 2, 3)},
            "has no meaning for deeplabv3_resnet18: did you mean aspp_rates",
        ),
        ("deeplabv3_resnet18", {"low_level": ("conv2",)}, "option 'low_level' has no meaning for deeplabv3_resnet18"),
        ("cascade_resnet50", {"aspp_rates": (6,)}, "option 'aspp_rates' has no meaning for cascade_resnet50"),
        ("deeplabv3_resnet18", {"last_block": 5}, "option 'last_block' has no meaning"),
        ("cascade_resnet50", {"last_stage": "conv4"}, "option 'last_stage' has no meaning for cascade_resnet50"),
        ("deeplabv3_resnet18", {"last_stage": "conv2"}, "last_stage='conv2': did you mean"),
        (
            "deeplabv3_resnet18",
            {"last_stage": "conv3", "aux_head": True, "output_stride": 8},
            "aux_head: it needs conv4; leave out last_stage='conv3'",
        ),
        ("deeplabv3_resnet18", {"norm": "btach"}, "norm='btach': did you mean batch?"),
        (
            "deeplabv3_resnet18",
            {"backbone_norm": "instance"},
            "backbone_norm='instance': choose from batch, frozen, group, none",
        ),
        ("deeplabv3_resnet18", {"dtype": "float16"}, "dtype='float16': did you mean bfloat16, float32?"),
        ("deeplabv3_resnet18", {"dtype": jnp.bfloat16}, "choose from float32, bfloat16"),
        (
            "deeplabv3_resnet18",
            {"wdith": jnp.bfloat16},
            "option 'wdith' has no meaning for deeplabv3_resnet18: did you mean width",
        ),
        ("deeplabv3_resnet18", {"lowering": "tap"}, "lowering='tap': did you mean taps"),
        ("deeplabv3_resnet18", {"num_classes": 0}, "num_classes=0"),
        ("deeplabv3_resnet18", {"num_classes": "x"}, "num_classes='x': give a whole number"),
        ("deeplabv3plus_resnet18", {"low_level": ("conv1",)}, "low_level=('conv1',): choose from 'conv2' and 'conv3'"),
        ("deeplabv3plus_resnet18", {"low_level": ("conv2", "conv2")}, "choose from 'conv2' and 'conv3', each once"),
        ("deeplabv3_resnet18", {"image_pooling": "no"}, "image_pooling='no': choose from True, False"),
        ("deeplabv3_resnet18", {"dropout": 50}, "dropout=50: give a share from 0 to below 1"),
        ("deeplabv3_resnet18", {"aspp_channels": 0}, "aspp_channels=0: give whole numbers of at least 1"),
        ("deeplabv3_resnet18", {"aspp_channels": -1}, "aspp_channels=-1: give whole numbers of at least 1"),
        ("deeplabv3_resnet18", {"aspp_rates": (0, 6)}, "aspp_rates=(0, 6): give whole numbers of at least 1"),
        ("deeplabv3_resnet18", {"aspp_rates": ("6",)}, "aspp_rates=('6',): give tuple[int, ...], such as (6, 12, 18)"),
        ("deeplabv3_resnet18", {"head_convs": ((3, 256, 1),)}, "head_convs=((3, 256, 1),): give tuple[tuple[int, int]"),
        ("deeplabv3_resnet18", {"dropout": "a"}, "dropout='a': give float, such as 0.0"),
        ("deeplabv3_resnet18", {"width": "x"}, "width='x': give float, such as 1.0"),
        ("deeplabv3_resnet18", {"width": True}, "width=True: give float, such as 1.0"),
        ("deeplabv3_resnet18", {"norm_epsilon": True}, "norm_epsilon=True: give float, such as 1e-05"),
        ("deeplabv3_resnet18", {"multi_grid": (True, True)}, "multi_grid=(True, True): give tuple[int, ...] | None"),
        ("deeplabv3_resnet18", {"aux_head": "no"}, "aux_head='no': choose from True, False"),
        ("deeplabv3_resnet18", {"mean": 5}, "mean=5: give tuple[float, ...]"),
        ("deeplabv3_resnet18", {"output_stride": "8"}, "output_stride='8': give int, such as 16"),
        ("deeplabv3plus_resnet18", {"decoder_convs": (3, 256)}, "such as ((3, 256), (3, 256))"),
        ("deeplabv3plus_resnet18", {"decoder_convs": ((3, -4),)}, "decoder_convs=((3, -4),): give whole numbers of at"),
        ("deeplabv2_resnet101", {"fc_channels": True}, "fc_channels=True: give int, such as 0"),
        ("deeplabv2_vgg16", {"fc_channels": -1}, "fc_channels=-1: give whole numbers of at least 1"),
        ("deeplabv3_mobilenet_v2", {"last_channels": -1}, "last_channels=-1: give a number of channels, or 0"),
        ("lraspp_mobilenet_v3_large", {"context_channels": 1.5}, "context_channels=1.5: give int, such as 128"),
        ("refinenet_resnet50", {"decoder_channels": (1, 2, 3)}, "such as (512, 256, 256, 256)"),
        ("spp_vgg16", {"bins": 4}, "bins=4: give tuple[int, ...], such as (4, 2, 1)"),
        ("deeplabv3_resnet18", {"width": float("inf")}, "width=inf: give a number above 0"),
        ("deeplabv3_mobilenet_v2", {"width": 0}, "width=0: give a number above 0"),
        ("largefov_vgg16", {"width": -1.0}, "width=-1.0: give a number above 0"),
        ("deeplabv3plus_resnet18", {"low_level": ()}, "low_level=()"),
        ("fcn32s_vgg16", {"output_stride": 16}, "output_stride=16: FCN's upsampling is learned for 32 only"),
        ("segnet_vgg16", {"output_stride": 16}, "output_stride=16: SegNet unpools every pooling"),
        ("unet", {"output_stride": 8}, "output_stride=8: U-Net doubles the resolution at every step"),
        ("unet_resnet18", {"padding": "valid"}, "option 'padding' has no meaning for unet_resnet18"),
        ("unet", {"padding": "valid", "image_pyramid": (1.0, 0.5)}, "leave out image_pyramid and aux_head"),
        ("unet", {"padding": "valid", "aux_head": True}, "leave out image_pyramid and aux_head"),
        ("unet", {"skips": ("conv4", "conv3", "conv2", "conv9")}, "the backbone has no 'conv9'; choose from conv1"),
        ("segnet_vgg16", {"pool_window": 3}, "option 'pool_window' has no meaning for segnet_vgg16"),
        ("pspnet_resnet50", {"bins": (0,)}, "bins=(0,): give whole numbers of at least 1"),
        ("pspnet_resnet50", {"bins": (2, 2)}, "bins=(2, 2): give whole numbers of at least 1, each once"),
        ("deeplabv2_vgg16", {"aspp_rates": ()}, "aspp_rates=(): give whole numbers"),
        ("deeplabv3_resnet18", {"image_pyramid": (float("nan"),)}, "give factors above 0"),
        ("unet", {"padding": "vlaid"}, "padding='vlaid': did you mean valid?"),
        ("unet", {"decoder_channels": (4, 4)}, "one number for each of the 4 skips"),
        ("largefov_vgg16", {"fc_rate": 3, "output_stride": 16}, "fc_rate=3 (stated at output stride 8) gives no whole"),
        ("largefov_vgg16", {"fc_rate": -3}, "fc_rate=-3: give a whole number of at least 0"),
        ("deeplabv3_resnet18", {"fusion": "max"}, "without scales; give image_pyramid"),
        ("deeplabv3_resnet18", {"image_pyramid": (0.5, 1.0)}, "give different scales from fine to coarse"),
        ("deeplabv3_resnet18", {"image_pyramid": (1.0, -0.5)}, "give factors above 0"),
        ("deeplabv3_mobilenet_v2", {"first_unit_rate": "last_unit"}, "choose from previous, stage"),
        ("deeplabv3_xception41", {"multi_grid": (1, 2)}, "give tuple[int, int, int], such as (1, 1, 1)"),
        ("deeplabv3_resnet18", {"output_stride": 12}, "output_stride=12: this backbone offers 4, 8, 16, 32"),
        ("deeplabv3_resnet18", {"output_stride": 64}, "output_stride=64: this backbone offers 4, 8, 16, 32"),
        ("deeplabv3_mobilenet_v2", {"output_stride": 1}, "output_stride=1: this backbone offers 2, 4, 8, 16, 32"),
        (
            "deeplabv3_resnet18",
            {"output_stride": 32, "aspp_rates": (5,)},
            "aspp_rates=(5,) (stated at output stride 16)",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_nearest_that_can(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as error:
        create_model(name, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_aspp_beyond_32_is_refused_and_a_cascade_is_not() -> None:
    cascade = create_model("cascade_resnet50", width=1 / 16, last_block=7, output_stride=256)
    images = np.zeros((1, 257, 257, 3))
    variables = jax.eval_shape(lambda: cascade.init(jax.random.key(0), images))
    features = jax.eval_shape(
        lambda v: {name: x for name, (x, _) in cascade.apply(v, images, method="features").items()}, variables
    )
    assert {"conv8", "context"} <= {*features}
    assert features["context"].shape == features["conv8"].shape
    with pytest.raises(ValueError, match="gives no whole rates at output stride 256"):
        jax.eval_shape(lambda x: cascade.clone(context=ASPP(4)).init(jax.random.key(0), x), np.zeros((1, 65, 65, 3)))


@pytest.mark.parametrize(
    ("name", "num_classes", "options"),
    [
        (
            "deeplabv3plus_mobilenet_v2",
            11,
            {**SMALL, "low_level": ["conv2", "conv3"], "decoder_convs": [[3, 8]], "separable": True},
        ),
        (
            "deeplabv3_resnet18",
            2,
            {"multi_grid": (1, 4), "norm": "group", "dtype": "bfloat16", "mean": (0.0, 0.0, 0.0)},
        ),
        ("cascade_resnet50", 21, {"width": 1 / 16, "last_block": 6, "output_stride": 64}),
    ],
)
def test_a_description_builds_the_same_model(name: str, num_classes: int, options: dict[str, Any]) -> None:
    model = create_model(name, num_classes=num_classes, **options)
    description = json.loads(json.dumps(describe(model)))  # as a file holds it: tuples have become lists
    again = from_description(description)
    assert again == model
    assert hash(again) == hash(model)
    assert describe(again) == describe(model)


def test_the_description_of_a_clone_holds_its_own_stride() -> None:
    model = create_model("deeplabv3_resnet18", num_classes=5, width=1 / 16)
    clone = model.clone(output_stride=8)
    assert describe(clone)["output_stride"] == 8
    assert from_description(describe(clone)) == clone.clone(recipe=from_description(describe(clone)).recipe)
    assert describe(model)["output_stride"] == 16


def test_models_are_compared_and_hashed_by_value() -> None:
    options = {"width": 1 / 16, "multi_grid": [1, 2], "aspp_rates": [2, 4]}
    first = create_model("deeplabv3_resnet18", **options)
    second = create_model("deeplabv3_resnet18", output_stride=16, **options)
    assert first == second
    assert hash(first) == hash(second)
    assert first != first.clone(output_stride=8)
    assert len({first, second, first.clone(output_stride=8)}) == 2
    assert first.context.aspp_rates == (2, 4)


def test_options_reach_their_parts() -> None:
    model = create_model(
        "deeplabv3plus_mobilenet_v2", **SMALL, norm="group", backbone_norm="frozen", norm_epsilon=0.5,
        norm_momentum=0.9, lowering="direct", align_corners=False, dropout=0.1, image_pooling=False,
        aspp_rates=(2, 4), head_convs=((3, 4),), low_level_channels=6,
        decoder_convs=((3, 10),), separable=True, first_unit_rate="stage", aux_head=True,
        value_range=(0.0, 255.0), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0),
    )  # fmt: skip
    assert (model.settings.norm, model.backbone.settings.norm) == ("group", "frozen")
    assert model.settings.norm_epsilon == model.backbone.settings.norm_epsilon == 0.5
    assert model.settings.norm_momentum == 0.9
    assert (model.settings.lowering, model.settings.align_corners) == ("direct", False)
    assert (model.backbone.width, model.backbone.first_unit_rate) == (0.25, "stage")
    aspp, decoder = model.context, model.decoder
    assert (aspp.aspp_channels, aspp.aspp_rates, aspp.image_pooling, aspp.separable) == (8, (2, 4), False, True)
    assert (aspp.head_convs, aspp.dropout) == (((3, 4),), 0.1)
    assert (decoder.low_level_channels, decoder.decoder_convs, decoder.separable) == (6, ((3, 10),), True)
    assert model.aux_features == "conv4"
    assert model.preprocessing == Preprocessing((0.0, 255.0), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # torchvision's published numbers for deeplabv3_resnet50 and _resnet101, both with the auxiliary head, which is
        # 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21 = 2,365,205 of them.
        ("deeplabv3_resnet50", {"head_convs": ((3, 256),), "aux_head": True}, 42_004_074),
        ("deeplabv3_resnet50", {"head_convs": ((3, 256),)}, 42_004_074 - 2_365_205),
        ("deeplabv3_resnet101", {"head_convs": ((3, 256),), "aux_head": True, "output_stride": 8}, 60_996_202),
        # torchvision's other published numbers, all with the auxiliary head.
        ("fcn_resnet50", {"aux_head": True}, 35_322_218),
        ("fcn_resnet101", {"aux_head": True}, 54_314_346),
        # The paper's has no 3x3 after the pyramid: 9 * 256 * 256 + 2 * 256 = 590,336 less.
        ("deeplabv3_resnet50", {}, 42_004_074 - 2_365_205 - 590_336),
        # The decoder adds 256 * 48 + 2 * 48, 9 * 304 * 256 + 2 * 256 and 9 * 256 * 256 + 2 * 256.
        ("deeplabv3plus_resnet50", {}, 42_004_074 - 2_365_205 - 590_336 + 12_384 + 700_928 + 590_336),
        # The backbone and a classifier of 2048 * 21 + 21; each copy of block 4 has a first unit without a projection:
        # 3 * (2048 * 512 * 2 + 9 * 512 * 512 + 2 * (512 + 512 + 2048)).
        ("cascade_resnet50", {}, 23_508_032 + 43_029),
        ("cascade_resnet50", {"last_block": 5}, 23_508_032 + 43_029 + 3 * 4_462_592),
    ],
)  # fmt: skip
def test_published_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    assert parameter_count(abstract_variables(create_model(name, **options))["params"]) == count


@pytest.mark.parametrize("name", first_fast(["deeplabv3plus_resnet18", "deeplabv3plus_mobilenet_v2"]))
def test_variables_depend_neither_on_the_output_stride_nor_on_the_images(name: str) -> None:
    """Of whole networks; the tests of the backbones have each of them alone."""
    model = create_model(name, **SMALL, aux_head=True)
    trees = [variable_shapes(model.clone(output_stride=stride), 1, 65, 65, 3) for stride in (8, 32)]
    assert trees[0] == trees[1] == variable_shapes(model, 2, 40, 33, 3)


def test_separable_is_smaller() -> None:
    dense = parameter_count(abstract_variables(create_model("deeplabv3plus_resnet18"))["params"])
    separable = parameter_count(abstract_variables(create_model("deeplabv3plus_resnet18", separable=True))["params"])
    # Each 3x3 from C to 256 becomes 9 C + 2 C (a second norm) + 256 C: three at C = 512, one at 304, one at 256.
    assert dense - separable == sum(c * (9 * 256 - 9 - 2 - 256) for c in (512, 512, 512, 304, 256))


def classes_of(architecture: Architecture) -> list[Any]:
    parts = [part for part in (architecture.context, architecture.decoder) if part is not None]
    parts += [entry.module for entry in BACKBONES.values()]
    kinds = [part.func if isinstance(part, partial) else part for part in parts]
    return [*kinds, *(VARIANTS[kind] for kind in kinds if kind in VARIANTS)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_option_is_said_where_its_field_is(name: str) -> None:
    for kind in {*classes_of(ARCHITECTURES[name]), LayerSettings, ImagePyramid, Preprocessing}:
        text = "".join(base.__doc__ or "" for base in kind.__mro__ if base.__module__.startswith("deeplab_jax"))
        for field in dataclasses.fields(kind):
            if field.name not in ("parent", "name", "settings"):
                assert f"  {field.name}: " in text, (kind, field.name)


@pytest.mark.parametrize(
    ("name", "options", "part", "paper", "variant"),
    [
        ("deeplabv3_mobilenet_v2", {"pad_input": True}, "backbone", MobileNetV2, MobileNetV2Variant),
        ("deeplabv3_xception41", {"form": "rectified"}, "backbone", Xception, XceptionVariant),
        ("deeplabv3_resnet18", {"pool_padding": "same"}, "backbone", ResNet, ResNetVariant),
        ("deeplabv3_resnet18", {"depthwise_norm": False}, "context", ASPP, ASPPVariant),
        ("pspnet_resnet18", {"norm_single": False}, "context", PyramidPooling, PyramidPoolingVariant),
    ],
)
def test_a_variant_is_built_only_for_an_option_that_it_adds(
    name: str, options: dict[str, Any], part: str, paper: type, variant: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplab_jax.models.catalog.check_output_stride", lambda model, **_: None)
    assert type(getattr(create_model(name, width=0.5), part)) is paper
    assert type(getattr(create_model(name, width=0.5, **options), part)) is variant


def test_a_clone_at_another_output_stride_can_be_built_again() -> None:
    model = create_model("deeplabv3_resnet18", num_classes=3)
    described = {"name": "deeplabv3_resnet18", "num_classes": 3, "options": {}, "output_stride": 8}
    assert rebuildable(model.clone(output_stride=8)) == described
    assert rebuildable(model.clone(preprocessing=SYMMETRIC)) is None
