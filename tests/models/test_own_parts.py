"""Parts of a user's own: composed in Python, and named by a config from a file outside the package."""

import json
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax import extensions
from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import describe, model_names
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.layers import ConvNorm, LayerSettings
from deeplab_jax.models.segmenter import Segmenter
from tests.support.traces import fill_variables

PARTS = '''
import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.architectures import Architecture, Backbone
from deeplab_jax.models.backbones.dilation import dilate_stages
from deeplab_jax.models.layers import Conv, ConvNorm, LayerSettings
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.ops.resize import resize_bilinear


class ConvNeXt(nn.Module):
    """Depthwise 7x7, layer norm, and two 1x1 around a GELU, added to the input (arXiv 2201.03545)."""

    widths: tuple[int, ...] = (8, 12, 16, 24)
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x, *, output_stride, train):
        s, features = self.settings, {}
        stages = dilate_stages((1, 2, 2, 2), start=4, output_stride=output_stride, first_unit_rate="stage")
        for index, (width, stage) in enumerate(zip(self.widths, stages, strict=True)):
            stride = stage.stride if index else 4
            x = Conv(width, 3, stride=stride, use_bias=True, settings=s, name=f"conv{index + 2}_down")(x)
            y = Conv(width, 7, rate=stage.rate, depthwise=True, settings=s, name=f"conv{index + 2}_depthwise")(x)
            y = nn.LayerNorm(name=f"conv{index + 2}_norm")(y)
            y = Conv(4 * width, use_bias=True, settings=s, name=f"conv{index + 2}_expand")(y)
            x = x + Conv(width, settings=s, name=f"conv{index + 2}_project")(jax.nn.gelu(y))
            features[f"conv{index + 2}"] = (x, stage.output_stride)
        return features


class SumDecoder(nn.Module):
    """Every stage as wide as the next, resized to conv2 and added up."""

    decoder_width: int = 16
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x, features, *, train):
        size, total = features["conv2"][0].shape[1:3], 0.0
        for name in ("conv2", "conv3", "conv4", "conv5"):
            y = ConvNorm(self.decoder_width, settings=self.settings, name=name)(features[name][0], train=train)
            total = total + resize_bilinear(y, size, align_corners=True)
        return jnp.asarray(total)


BACKBONES = {"convnext": Backbone(ConvNeXt, IMAGENET)}
ARCHITECTURES = {"sum": Architecture(16, {"convnext": {}}, decoder=SumDecoder)}
'''
CONFIG = """
from deeplab_jax.config import base


def get_config(arg=None):
    config = base()
    config.data.options = {{"size": (33, 33), "count": 4}}
    config.data.crop_size = (33, 33)
    config.train.update({{"steps": 2, "batch_size": 2, "devices": 1, "pictures": 1}})
    config.module = {module!r}
    config.model.name = "sum_convnext"
    config.model.options = {{"decoder_width": 8}}
    return config
"""


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch):
    """Forget which files the user has named in this process."""
    return lambda: monkeypatch.setattr(extensions, "_allowed", {})


def write_parts(folder: Path) -> tuple[Path, Path]:
    parts, config = folder / "my_parts.py", folder / "my_config.py"
    parts.write_text(PARTS)
    config.write_text(CONFIG.format(module=str(parts)))
    return parts, config


def test_it_trains_saves_and_predicts_from_a_file_outside_the_package(tmp_path: Path, forget, capsys) -> None:
    assert len(PARTS.strip().splitlines()) < 60
    parts, config = write_parts(tmp_path)
    run, image, out = tmp_path / "run", tmp_path / "image.png", tmp_path / "out"
    Image.fromarray(np.zeros((33, 33, 3), np.uint8)).save(image)
    forget()
    assert main(["train", f"--config={config}", f"--workdir={run}"]) == 0
    assert json.loads((run / "model.json").read_text())["model"]["module"] == str(parts)

    # A run directory is no leave to run the file that it asks for; its JSON config neither.
    for words in (
        ["predict", f"--model={run}", f"--out={out}", str(image)],
        ["evaluate", f"--model={run}", f"--out={out}"],
        ["summarize", str(run)],
        ["train", f"--config={run / 'config.json'}", f"--workdir={tmp_path / 'other'}"],
    ):
        forget()
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"give --module {parts}" in line
    with pytest.raises(UserError, match="give --module"):
        deeplab_jax.load(run)

    assert main(["predict", f"--model={run}", f"--out={out}", f"--module={parts}", str(image)]) == 0
    with Image.open(out / "image.png") as prediction:
        assert prediction.size == (33, 33)
    forget()
    assert main(["evaluate", f"--model={run}", f"--out={out}", f"--config={config}"]) == 0
    forget()
    model, variables, info = deeplab_jax.load(run, module=str(parts))
    assert describe(model)["options"] == {"decoder_width": 8}
    deeplab_jax.save(tmp_path / "folder", model, variables, info)
    again, same, _ = deeplab_jax.load(tmp_path / "folder", module=str(parts))
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, variables, same)


def test_tables_of_ones_own_stand_beside_the_packages(tmp_path: Path, forget) -> None:
    """An atrous backbone comes under DeepLabv3 and v3+ by its one line; fields of the parts are options."""
    parts, _ = write_parts(tmp_path)
    with pytest.raises(UserError, match="model 'sum_convnext' is not known: .*own, give --module"):
        deeplab_jax.create_model("sum_convnext")
    names = model_names(module=str(parts))
    assert {*names} - {*model_names()} == {"sum_convnext", "deeplabv3_convnext", "deeplabv3plus_convnext"}
    model = deeplab_jax.create_model(
        "deeplabv3plus_convnext", module=str(parts), num_classes=3, aspp_channels=4, widths=[4, 4, 8, 8]
    )
    assert model.backbone.widths == (4, 4, 8, 8)
    assert deeplab_jax.multiply_adds(model, 65, 65).total > 0
    with pytest.raises(UserError, match="option 'wdiths' has no meaning for sum_convnext: did you mean widths"):
        deeplab_jax.create_model("sum_convnext", module=str(parts), wdiths=(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no Python file is there"),
        ("1 / 0", "it cannot be run (ZeroDivisionError: division by zero)"),
        ("BACKBONE = {}", "it has none of the tables BACKBONES, ARCHITECTURES, LOSSES, SOURCES"),
        ("\n1 / 0", ", line 2: it cannot be run (ZeroDivisionError"),
        ("BACKBONES = {'mine': 3}", "BACKBONES is no table of names to Backbone(...)"),
        (
            "from deeplab_jax.models.architectures import Architecture\n"
            "ARCHITECTURES = {'mine': Architecture(16, {'resnet5': {}})}",
            "ARCHITECTURES['mine']: backbone 'resnet5': did you mean resnet50",
        ),
    ],
)
def test_what_is_wrong_with_the_file_is_said_in_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as error:
        deeplab_jax.create_model("mine_resnet50", module=str(file))
    assert words in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("rate=stage.rate", "dilation=2", "my_parts.py, line 26: TypeError: Conv.__init__() got an unexpected keyword"),
        ("x + Conv", "x[:, 1:] + Conv", "my_parts.py, line 29: TypeError: add got incompatible shapes"),
        ("return features", "return x", "ConvNeXt: a backbone has to return {name: (map, stride)}"),
        ("(x, stage.output_stride)", "x", "ConvNeXt: a backbone has to return {name: (map, stride)}"),
        ("output_stride, train", "output_stride", "my_parts.py: a part does not take the arguments"),
        ("SumDecoder(nn.Module)", "SumDecoder", "SumDecoder'> of sum_convnext is no class of modules"),
        ('f"conv{index + 2}"]', 'f"stage{index + 2}"]', "needs the features 'conv2'; the backbone has stage2, stage3"),
    ],
)
def test_a_mistake_in_a_part_is_told_in_one_line(tmp_path: Path, right: str, wrong: str, words: str) -> None:
    parts, _ = write_parts(tmp_path)
    assert right in PARTS
    parts.write_text(PARTS.replace(right, wrong))
    with pytest.raises(UserError) as error:
        deeplab_jax.create_model("sum_convnext", module=str(parts))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backbone_without_low_level_features_cannot_carry_deeplabv3plus(tmp_path: Path, capsys) -> None:
    parts, _ = write_parts(tmp_path)
    parts.write_text(PARTS.replace('f"conv{index + 2}"]', 'f"stage{index + 2}"]'))
    assert main(["summarize", "deeplabv3plus_convnext", f"--module={parts}"]) == 2
    assert main(["summarize", "deeplabv3plus_convnext"]) == 2
    line, unnamed = capsys.readouterr().err.splitlines()
    assert unnamed.endswith("; for a model of your own, give --module the path of its file")
    assert "the decoder needs the features 'conv2'; the backbone has stage2, stage3, stage4, stage5" in line


def test_an_edited_file_is_run_again_once_it_is_named_again(tmp_path: Path) -> None:
    parts, _ = write_parts(tmp_path)
    before = deeplab_jax.create_model("sum_convnext", module=str(parts))
    assert deeplab_jax.create_model("sum_convnext", module=str(parts)) == before
    parts.write_text(PARTS.replace("decoder_width: int = 16", "decoder_width: int = 128"))
    assert describe(before)["name"] == "sum_convnext"
    assert deeplab_jax.create_model("sum_convnext", module=str(parts)).decoder.decoder_width == 128


def test_a_run_of_ones_own_parts_is_converted(tmp_path: Path, capsys) -> None:
    parts, _ = write_parts(tmp_path)
    model = deeplab_jax.create_model("sum_convnext", module=str(parts), num_classes=3)
    variables = fill_variables(model, 1, 33, 33, 3)
    deeplab_jax.save(tmp_path / "folder", model, variables, {})
    words = ["convert", str(tmp_path / "folder"), f"--out={tmp_path / 'converted'}", f"--module={parts}"]
    assert main(words) == 0, capsys.readouterr().err
    again, same, _ = deeplab_jax.load(tmp_path / "converted", module=str(parts))
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, variables, same)


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (0, "an option gives this layer 0 channels; give at least 1"),
        ("8", "my_parts.py, line 44: TypeError"),
        ({8}, "my_parts.py: a part does not take the arguments that it is called with, or an option has a value"),
    ],
)
def test_a_bad_value_of_an_option_of_ones_own_is_one_line(tmp_path: Path, width: object, words: str) -> None:
    """The field of a plain `nn.Module` is not checked; what fails with it is."""
    parts, _ = write_parts(tmp_path)
    with pytest.raises(UserError) as error:
        deeplab_jax.create_model("sum_convnext", module=str(parts), decoder_width=width)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["module", "options"])
def test_a_model_folder_does_not_run_code(tmp_path: Path, where: str, forget) -> None:
    """Whether it names the file where it belongs, or among the options."""
    forget()
    harm = tmp_path / "harm.py"
    harm.write_text(f"open({str(tmp_path / 'done')!r}, 'w')")
    model = {"name": "deeplabv3_resnet18", "num_classes": 3, "output_stride": 16, "options": {}}
    model |= {"module": str(harm)} if where == "module" else {"options": {"module": str(harm)}}
    content = {"format": 1, "model": model, "preprocessing": {}, "info": {}}
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.json: .*module"):
        deeplab_jax.load(tmp_path)
    assert not (tmp_path / "done").exists()


class Mean(nn.Module):
    """A backbone of one pooling; plain flax, without settings."""

    @nn.compact
    def __call__(self, images, *, output_stride, train):
        return {"pool": (nn.avg_pool(images, (16, 16), (16, 16), "SAME"), 16)}


def test_a_network_is_composed_of_ones_own_modules() -> None:
    """A backbone is all that is needed; what has no name is not saved."""
    model = Segmenter(Mean(), num_classes=5)
    images = np.zeros((1, 40, 50, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert model.apply(variables, images).shape == (1, 40, 50, 5)
    assert deeplab_jax.segment(model, variables, np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)
    assert deeplab_jax.multiply_adds(model, 40, 50).total == 3 * 4 * 3 * 5
    with pytest.raises(UserError, match=r"composed in Python has no name.*create_model\(name, module=FILE\)"):
        describe(model)


class Mixed(nn.Module):
    """A backbone whose second layer does not have the network's settings."""

    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, images, *, output_stride, train):
        x = ConvNorm(4, 3, 4, settings=self.settings, name="follows")(images, train=train)
        x = ConvNorm(4, 3, 4, settings=replace(self.settings, norm="batch"), name="keeps")(x, train=train)
        return {"conv": (x, 16)}


def test_a_layer_with_settings_of_its_own_keeps_its_batch_norm() -> None:
    model = Segmenter(Mixed(), num_classes=3)
    variables = fill_variables(model, 1, 33, 33, 3)
    images = np.random.default_rng(0).normal(size=(1, 33, 33, 3)).astype(np.float32)
    folded, folded_variables = fold_norm(model, variables)
    before, after = (
        np.asarray(jax.jit(m.apply)(v, images)) for m, v in ((model, variables), (folded, folded_variables))
    )
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    layers = folded_variables["params"]["backbone"]
    assert {name: sorted(layers[name]) for name in layers} == {"follows": ["conv"], "keeps": ["conv", "norm"]}
    assert {*folded_variables["batch_stats"]["backbone"]} == {"keeps"}
    assert fold_norm(folded, folded_variables)[0] is folded
    assert deeplab_jax.segment(model, variables, np.zeros((33, 33, 3), np.uint8)).shape == (33, 33)


class Same(nn.Module):
    """A backbone that hands the images on."""

    @nn.compact
    def __call__(self, images, *, output_stride, train):
        return {"conv": (images, 1)}


class Centre(nn.Module):
    """A decoder that loses 10 pixels on each side, and takes multiples of 8."""

    border: int = 10
    classifier_kernel = 0

    def fitting_side(self, side):
        return -(-side // 8) * 8

    def __call__(self, x, features, *, train):
        return x[:, 10:-10, 10:-10]


def test_a_decoder_that_loses_a_border_says_which() -> None:
    """Its logits of a whole image are not shifted. They were taken for those of U-Net, which loses 92 pixels."""
    model = Segmenter(Same(), decoder=Centre(), num_classes=3)
    images = np.random.default_rng(0).normal(size=(1, 40, 45, 3)).astype(np.float32)
    whole = model.apply({}, images, method="coarse_logits_of_whole")
    np.testing.assert_array_equal(whole, images)
    assert model.apply({}, images[:, :, :40]).shape == (1, 20, 20, 3)
    with pytest.raises(UserError, match="images of 40x45: this network takes 40, 48, ... pixels .*; 40x48 would fit"):
        model.apply({}, images)
    wrong = Segmenter(Same(), decoder=Centre(border=8), num_classes=3)
    with pytest.raises(UserError, match=r"Centre.border=8: .* of images of 40x40 have to be 24x24, not 20x20"):
        wrong.apply({}, images[:, :, :40])
    with pytest.raises(UserError, match="leave out image_pyramid and aux_head"):
        Segmenter(Same(), decoder=Centre(), num_classes=3, aux_features="conv")
