"""What a training says of its settings at its start, and that the settings it prints help."""

import re
from typing import Any

import pytest

from deeplab_jax.models.catalog import create_model
from deeplab_jax.train.notes import notes
from tests.support.tiny import tiny_config

GOOD = {"train.steps": 100, "train.batch_size": 16}
OHEM = {"train.loss": "cross_entropy + 0.5*ohem", "data.crop_size": (65, 97)}


def said(**values: Any) -> list[str]:
    model = create_model("deeplabv3_mobilenet_v2", num_classes=3)
    return list(notes(tiny_config(**{**GOOD, **values}), model))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer.warmup_steps": 50},
        {"train.patience": 3, "train.evaluate_every": 25},
        {"data.crop_size": (65, 97)},
        {**OHEM, "train.loss_options.ohem_min_kept": 6304},
        {"own": ("loss=mine",), **OHEM},
        {"own": ("schedule=mine",), "optimizer.warmup_steps": 60},
        {"train.batch_size": 24, "train.accumulate": 2},
    ],
)
def test_nothing_is_said_of_good_settings(values) -> None:
    assert said(**values) == []


@pytest.mark.parametrize(
    ("values", "start", "flag"),
    [
        ({"optimizer.warmup_steps": 51}, "the learning rate rises for 51 of the 100", "optimizer.warmup_steps=10"),
        ({"train.patience": 3, "train.evaluate_every": 40}, "config.train.patience=3 can", "train.evaluate_every=8"),
        (OHEM, "OHEM keeps all 6305 pixels of a crop", "train.loss_options.ohem_min_kept=1261"),
    ],
)
def test_a_setting_that_does_not_act_is_said_and_the_printed_one_does(values, start, flag) -> None:
    (note,) = said(**values)
    assert note.startswith(start)
    (printed,) = re.findall(r"--config\.(\S+)", note)
    assert printed == flag
    key, _, value = printed.partition("=")
    assert said(**{**values, key: int(value)}) == []


def test_a_small_batch_for_batch_norm_is_said() -> None:
    (note,) = said(**{"train.batch_size": 22, "train.accumulate": 2})
    assert note.startswith("batch norm sees 11 images at a time; the authors advise more than 12.")
    (printed,) = re.findall(r"--config\.(\S+)", note)
    key, _, value = printed.partition("=")
    assert (key, value) == ("model.options.norm", "group")
    model = create_model("deeplabv3_mobilenet_v2", num_classes=3, norm=value)
    assert list(notes(tiny_config(**{**GOOD, "train.batch_size": 22, "train.accumulate": 2}), model)) == []
