"""The table of models in `deeplab_jax/models/README.md` says what the code counts."""

from pathlib import Path

import pytest

from deeplab_jax.models.catalog import model_names
from experiments.model_table import SECTION, cells
from experiments.output import markdown_row

README = (Path(__file__).parents[2] / "deeplab_jax" / "models" / "README.md").read_text(encoding="utf-8")
LINES = README.split(SECTION.start)[1].split(SECTION.end)[0].strip().splitlines()


def test_the_readme_names_every_model_once() -> None:
    assert [line.split("`")[1] for line in LINES[2:]] == model_names()


QUICK = ("deeplabv3plus_resnet18", "fcn8s_vgg16", "unet", "unet_resnet18")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in model_names()])
def test_every_row_is_what_the_command_prints(name: str) -> None:
    assert markdown_row(cells(name)) in LINES
