"""What `check-data --show` writes: the training's own images, after the augmentation of the configuration."""

import itertools
import json
import re

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.config import load_config
from deeplab_jax.config_keys import Augment
from deeplab_jax.data.images import read_image, read_mask
from deeplab_jax.train.batches import Batches
from deeplab_jax.train.from_config import build_model, open_split
from tests.support.tiny import tiny_models

TINY = "from tests.support.tiny import tiny_config\n\n\ndef get_config(arg=None):\n    return tiny_config()\n"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    with tiny_models():
        yield f"--config={file}"


def test_the_page_shows_what_training_sees(config, tmp_path, capsys) -> None:
    words = [
        config,
        *("--config.train.steps=40", "--config.data.augment.rotation=180", "--config.data.augment.probability=1"),
        *("--config.data.augment.resize=40", "--config.data.augment.hue=90", "--config.data.class_temperature=0.5"),
    ]
    folder = tmp_path / "shown"
    assert main(["check-data", *words, "--limit", "1", "--show", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(f"training images after augmentation: open {folder / 'index.html'}\n")
    assert printed.err == ""
    text = (folder / "index.html").read_text("utf-8")
    entries = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["entries"]
    names = [f"step {step:02d}, image {row}" for step in range(1, 17) for row in (1, 2)]
    assert [entry["key"] for entry in entries] == names  # 32 images in batches of 2.
    assert 'const SHOWS = "labels";' in text and "prediction" not in entries[0]
    settings = load_config(words)
    assert Augment(**settings.data.augment).resize == (40,)
    source = open_split(settings, "train")
    batches = Batches(settings, build_model(settings, num_classes=source.labels.num_classes), source)
    padded = 0
    for name, (image, label) in zip(names, itertools.islice(batches.examples(), 32), strict=True):
        np.testing.assert_array_equal(read_mask(folder / "index_files" / "labels" / f"{name}.png"), label)
        shown = read_image(folder / "index_files" / "image" / f"{name}.jpg")
        assert np.abs(shown.astype(int) - image).mean() < 8
        padded += (label == 255).any()
    assert padded > 16  # It turned.


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rotation=200", r"config\.data\.augment\.rotation=200\.0: give 0 to 180"),
        ("cat_max_ratio=0", r"config\.data\.augment\.cat_max_ratio=0\.0: give "),
        ("resize=1,2,3", r"config\.data\.augment\.resize has 3 values; give 2"),
        ("jpeg=101", r"config\.data\.augment\.jpeg=101: give 0 to 100"),
        ("rotatoin=3", r"no key config\.data\.augment\.rotatoin; did you mean --config\.data\.augment\.rotation"),
        ("hue=many", "augment.hue=many: give a number"),
    ],
)
def test_mistakes_are_one_line(config, word, message, capsys) -> None:
    assert main(["check-data", config, f"--config.data.augment.{word}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def test_a_page_that_cannot_be_written_is_one_line(config, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["check-data", config, "--limit=1", "--show", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"file: cannot be written \(File exists\); give another --show$", line)


def test_what_images_do_not_have_is_refused_when_it_is_shown(config, tmp_path, capsys) -> None:
    words = ["--config.data.augment.saturation=0.3", "--split=val", "--limit=1"]
    (tmp_path / "own.py").write_text(
        "import dataclasses\n\nfrom deeplab_jax.data.sets.scenes import Scenes\n\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Grey(Scenes):\n"
        "    def __getitem__(self, index):\n        example = super().__getitem__(index)\n"
        "        return {**example, 'image': example['image'][..., :1]}\n\n\n"
        "def grey(*, split, size, count):\n    return Grey(split, size, count)\n\n\nSOURCES = {'grey': grey}\n"
    )
    own = ["--module", str(tmp_path / "own.py"), "--config.data.name=grey", "--config.model.options.in_channels=1"]
    assert main(["check-data", config, *words, *own, "--show", str(tmp_path / "shown")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.data.augment.saturation=0.3: images of 1 channels have no saturation; leave it out" in line
    assert not (tmp_path / "shown" / "index.html").exists()
