"""A fix that a message prints is typed as it stands, behind the command that failed, and the command works."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from deeplab_jax.cli import main
from deeplab_jax.data.images import write_image, write_mask
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights.export_state_dict import export_state_dict
from deeplab_jax.weights.folder import save
from tests.support.tiny import filled, tiny_config, tiny_model, tiny_models

FOLDER = ("--config", "configs/folder.py")
TWO = "--config.data.options.class_names=('a','b')"
TYPED = re.compile(r'"(--[^"]+)"|(?<![^\s(])(--[a-z_]+(?:\.[a-z_]+)*(?:=[^\s;]+| (?!or\b|if\b|to\b|what\b)[\w,.x/]+)?)')


def fix_in(message: str) -> list[str]:
    """Return the words of the flags that a message prints, as a shell would pass them."""
    words: list[str] = []
    for quoted, plain in TYPED.findall(message):
        words += [quoted] if quoted else shlex.split(plain.rstrip(",."))
    return words


def make_folder(root: Path, values: tuple[int, ...], *, image: type = np.uint8) -> Path:
    """Write five images of 40x40 pixels, whose masks hold these values in stripes."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    mask = np.repeat(np.resize(np.array(values, np.uint8), 40)[:, None], 40, axis=1)
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 200, (40, 40, 3))
        if image is np.uint8:
            write_image(root / "images" / f"{index}.png", pixels.astype(np.uint8))
        else:
            Image.fromarray(pixels[..., 0].astype(image)).save(root / "images" / f"{index}.png")
        write_mask(root / "masks" / f"{index}.png", mask, None)
    return root


def black_and_white(tmp_path: Path) -> list[str]:
    return ["check-data", *FOLDER, f"--config.data.dir={make_folder(tmp_path / 'data', (0, 255))}", TWO]


def unknown_value(tmp_path: Path) -> list[str]:
    return ["check-data", *FOLDER, f"--config.data.dir={make_folder(tmp_path / 'data', (0, 1, 7))}", TWO]


def one_class(tmp_path: Path) -> list[str]:
    data = make_folder(tmp_path / "data", (0, 255))
    return ["check-data", *FOLDER, f"--config.data.dir={data}", "--config.data.options.class_names=('b',)"]


def no_class(tmp_path: Path) -> list[str]:
    return ["check-data", *FOLDER, f"--config.data.dir={make_folder(tmp_path / 'data', (0, 1))}"]


def coloured(*colours: tuple[int, int, int]) -> Callable[[Path], list[str]]:
    """Return what writes masks of two classes in these colours."""

    def situation(tmp_path: Path) -> list[str]:
        data = make_folder(tmp_path / "data", (0, 1))
        for file in (data / "masks").iterdir():
            write_image(file, np.array(colours, np.uint8)[np.asarray(Image.open(file))])
        return ["check-data", *FOLDER, f"--config.data.dir={data}", TWO]

    return situation


def no_validation(tmp_path: Path) -> list[str]:
    data = make_folder(tmp_path / "data", (0, 1))
    return ["check-data", *FOLDER, f"--config.data.dir={data}", TWO, "--config.data.options.val_fraction=None"]


def narrow_range(tmp_path: Path) -> list[str]:
    data = make_folder(tmp_path / "data", (0, 1), image=np.uint16)
    return ["check-data", *FOLDER, f"--config.data.dir={data}", TWO, "--config.data.channels=(0,)"]


def black_and_white_labels(tmp_path: Path) -> list[str]:
    data = make_folder(tmp_path / "data", (0, 255))
    (data / "masks").rename(data / "wet")
    (data / "masks").mkdir()
    (data / "wet").rename(data / "masks" / "wet")
    (data / "masks" / "worn").symlink_to(data / "masks" / "wet")
    names = "--config.data.options.class_names=('wet','worn')"
    return ["check-data", *FOLDER, "--config.data.name=multilabel", f"--config.data.dir={data}", names]


def two_layouts(words: tuple[str, str], image: str, masks: tuple[str, str]) -> Callable[[Path], list[str]]:
    """Return what writes folders for training and for validation, with two folders of masks for each."""

    def situation(tmp_path: Path) -> list[str]:
        for word in words:
            source = make_folder(tmp_path / word, (0, 1))
            for row, kind in ((image, "images"), *((row, "masks") for row in masks)):
                shutil.copytree(source / kind, tmp_path / "data" / row.format(word))
        return ["check-data", *FOLDER, f"--config.data.dir={tmp_path / 'data'}", TWO]

    return situation


def state_dict(classes: int) -> dict[str, np.ndarray]:
    model = create_model("lraspp_mobilenet_v3_large", num_classes=classes)
    return export_state_dict(model, filled(model), kind="torchvision")


def other_classes(tmp_path: Path) -> list[str]:
    save_file(state_dict(3), str(tmp_path / "three.safetensors"))
    return ["convert", str(tmp_path / "three.safetensors"), "--num_classes", "5", "--out", str(tmp_path / "model")]


def two_networks(tmp_path: Path) -> list[str]:
    both = {f"{part}.{name}": array for part in ("model", "model_ema") for name, array in state_dict(3).items()}
    save_file(both, str(tmp_path / "both.safetensors"))
    return ["convert", str(tmp_path / "both.safetensors"), "--out", str(tmp_path / "model")]


def pyramid_of_any_size(tmp_path: Path) -> list[str]:
    model = create_model("pspnet_resnet18", num_classes=2, backbone_norm="none")
    save(tmp_path / "model", model, filled(model), {})
    words = ["--format", "stablehlo", "--out", str(tmp_path / "model.zip")]
    return ["export", "--model", str(tmp_path / "model"), *words]


def long_image(tmp_path: Path) -> list[str]:
    model, variables = tiny_model("cascade_tiny")
    save(tmp_path / "model", model, variables, {})
    Image.fromarray(np.zeros((33, 2**14 + 1, 3), np.uint8)).save(tmp_path / "long.png")
    return ["predict", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), str(tmp_path / "long.png")]


def another_configuration(tmp_path: Path) -> list[str]:
    file = tmp_path / "config.json"
    file.write_text(tiny_config().to_json())
    words = ["train", "--config", str(file), "--workdir", str(tmp_path / "run"), "--config.train.steps=2"]
    assert main(words) == 0
    return [*words, "--config.optimizer.learning_rate=0.05", "--config.train.steps=3"]


def map_left_out(tmp_path: Path) -> list[str]:
    """Evaluate a model of black and white masks whose images have no map: 255 would be ignored."""
    model, variables = tiny_model("cascade_tiny", num_classes=2)
    info = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "value_map": [[0, 0], [255, 1]]}
    save(tmp_path / "model", model, variables, info)
    data = make_folder(tmp_path / "data", (0, 255))
    words = [*FOLDER, f"--config.data.dir={data}", TWO, "--out", str(tmp_path / "out")]
    return ["evaluate", "--model", str(tmp_path / "model"), *words]


@pytest.mark.parametrize(
    ("situation", "fix"),
    [
        (black_and_white, ["--config.data.options.value_map=((0,0),(255,1))"]),
        (unknown_value, ["--config.data.options.value_map=((0,0),(1,1),(7,255),(255,255))"]),
        (
            one_class,
            [
                "--config.data.options.class_names=('background', 'b')",
                "--config.data.options.value_map=((0,0),(255,1))",
            ],
        ),
        (no_class, ["--config.data.options.class_names=('background','road')"]),
        (coloured((0, 0, 0), (1, 1, 1)), ["--config.data.options.mask_channel=0"]),
        (coloured((0, 0, 0), (255, 0, 0)), ["--config.data.options.palette=((0,0,0),(255,0,0))"]),
        (coloured((0, 0, 0), (128, 0, 0)), ["--config.data.options.palette=((0,0,0),(128,0,0))"]),
        (no_validation, ["--config.data.options.val_fraction=0.2"]),
        (black_and_white_labels, ["--config.data.options.value_map=((0,0),(1,1),(255,1))"]),
        *(
            (
                two_layouts(words, "images/{}", ("labels/{}", "annotations/{}")),
                ["--config.data.options.images=images/{split}", "--config.data.options.masks=labels/{split}"],
            )
            for words in (("training", "validation"), ("train", "valid"), ("Train", "Val"))
        ),
        (
            two_layouts(("train", "val"), "{}", ("{}_masks", "{}_labels")),
            ["--config.data.options.images={split}", "--config.data.options.masks={split}_masks"],
        ),
        (map_left_out, ["--config.data.options.value_map=((0,0),(255,1))"]),
        (other_classes, ["--reinit", "head"]),
        (two_networks, ["--select", "model"]),
        (pyramid_of_any_size, ["--size", "513x513"]),
        (long_image, ["--window", "513,513"]),
        (another_configuration, ["--allow_config_change"]),
    ],
)
def test_a_printed_fix_works(
    situation: Callable[[Path], list[str]], fix: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with tiny_models():
        words = situation(tmp_path)
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        printed = fix_in(said.err or said.out)
        assert code == 2 or situation is black_and_white_labels, said  # A warning.
        assert printed[-len(fix) :] == fix or all(word in printed for word in fix), said
        assert main([*words, *fix]) == 0, capsys.readouterr()


def test_the_suggested_range_of_values_works(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = narrow_range(tmp_path)
    main(words)
    (fix,) = {word for word in fix_in(capsys.readouterr().out) if word.startswith("--config.data.value_range")}
    assert main([*words, fix]) == 0
    assert "narrow" not in capsys.readouterr().out
