"""A data set of the user's own: a file outside the package, in which a table names it."""

import json
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax import extensions
from deeplab_jax.cli import main
from deeplab_jax.data.catalog import SOURCES, open_source
from deeplab_jax.data.own import OwnSource
from deeplab_jax.errors import UserError
from tests.support.batches import batches_of

CODE = '''
import dataclasses

import numpy as np

from deeplab_jax.labels import LabelSet


@dataclasses.dataclass(frozen=True)
class Halves:
    """Black on the left and white on the right."""

    split: str
    count: int = 4
    name = "halves"
    labels = LabelSet(("left", "right"), ((0, 0, 0), (255, 255, 255)))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = np.zeros((40, 40), np.uint8)
        label[:, 20:] = 1
        return {"image": np.repeat(label[..., None] * 255, 3, axis=-1), "label": label, "name": self.describe(index)}

    def describe(self, index):
        return f"{self.split}_{index}"


def open_pictures(dir, *, split):
    return Halves(split, count=len(list(dir.iterdir())))


def open_wrongly(*, split):
    return split + 1


SOURCES = {"halves": Halves, "pictures": open_pictures, "wrong": open_wrongly}
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "halves_of_mine.py"
    file.write_text(CODE)
    extensions.allow(str(file))
    return str(file)


def test_it_opens_like_the_packages_own(mine: str, tmp_path: Path) -> None:
    source = open_source("halves", split="val", module=mine, count=3)
    assert len(source) == 3 and source.describe(2) == "val_2"
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    assert len(open_source("pictures", split="val", dir=tmp_path / "pictures", module=mine)) == 1
    assert len(open_source("scenes", split="val", module=mine)) == 256
    assert "halves" not in SOURCES


def test_mistakes_name_the_fix(mine: str) -> None:
    with pytest.raises(UserError, match="data set 'halves' has no option 'cuont'; did you mean count"):
        open_source("halves", split="val", module=mine, cuont=3)
    with pytest.raises(UserError, match="no data set is called 'halvs'; did you mean halves"):
        open_source("halvs", split="val", module=mine)
    with pytest.raises(UserError, match=r"'pictures' reads files; set --config\.data\.dir"):
        open_source("pictures", split="val", module=mine)
    with pytest.raises(UserError, match=r"halves_of_mine\.py, line \d+: TypeError: can only concatenate") as error:
        open_source("wrong", split="val", module=mine)  # A mistake in the user's code.
    assert isinstance(error.value.__cause__, TypeError)  # With the traceback, for those who call it from Python.


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("def describe", "def tell", "it opens a Halves without describe; add it"),
        ("split: str", "part: str", "SOURCES['halves'] takes no split; give it the argument split"),
        (
            "labels = LabelSet",
            "labels = str or LabelSet",
            "labels is <class 'str'>; give a deeplab_jax.labels",
        ),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path: Path, right: str, wrong: str, words: str) -> None:
    assert right in CODE
    file = tmp_path / "wrong_source.py"
    file.write_text(CODE.replace(right, wrong))
    extensions.allow(str(file))
    with pytest.raises(UserError) as error:
        open_source("halves", split="train", module=str(file))
    assert words in str(error.value) and str(file) in str(error.value)


def test_an_empty_split_is_refused(mine: str) -> None:
    with pytest.raises(UserError, match=r"SOURCES\['halves'\]: split 'val' has no example; check the split"):
        open_source("halves", split="val", module=mine, count=0)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda example: {**example, "image": example["image"] / 255}, "image float64"),
        (lambda example: {**example, "label": example["label"][:-1]}, "label uint8"),
        (lambda example: {"image": example["image"], "label": example["label"]}, "KeyError: 'name'"),
        (lambda example: None, "TypeError"),
    ],
)
def test_an_example_that_is_none_is_refused(mine: str, change, found: str) -> None:
    source = open_source("halves", split="val", module=mine, count=3)

    class Changed:
        name, labels, describe = source.name, source.labels, source.describe

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return change(source[index])

    with pytest.raises(UserError, match=r"example 2 of 'changed' \(.*return a dictionary with image \(uint8") as error:
        OwnSource(Changed(), "changed", "val", mine)[2]
    assert found in str(error.value)


def test_a_file_that_nobody_named_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "not_named.py"
    file.write_text(f"open({str(tmp_path / 'SENTINEL')!r}, 'w')\nSOURCES = {{}}")
    with pytest.raises(UserError, match="--module"):
        open_source("scenes", split="val", module=str(file))
    assert not (tmp_path / "SENTINEL").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_worker_processes_read_it(mine: str) -> None:
    """They cannot import the file, whose folder is on no path of theirs."""
    options = {"batch_size": 2, "steps": 2, "crop_size": (33, 33), "fill": (0, 0, 0)}
    source = open_source("halves", split="train", module=mine)
    for here, there in zip(batches_of(source, **options), batches_of(source, workers=1, **options), strict=True):
        np.testing.assert_array_equal(here["image"], there["image"])


def test_it_is_trained_on_through_the_command_line(tmp_path: Path, tiny_networks: None) -> None:
    """Nothing but a Python config names the file."""
    file, config = tmp_path / "halves_of_yours.py", tmp_path / "config.py"
    file.write_text(CODE)
    config.write_text(
        "from tests.support.tiny import tiny_config\n\n\n"
        "def get_config():\n"
        "    config = tiny_config(**{'data.name': 'halves', 'data.options': {'count': 4}, 'train.steps': 1})\n"
        "    config.evaluate.pad_to = ((40, 40),)\n"
        f"    config.module = {str(file)!r}\n"
        "    return config\n"
    )
    assert main(["train", "--config", str(config), "--workdir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["info"]["class_names"] == ["left", "right"]
