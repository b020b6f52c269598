"""The loss that a configuration names: names, sums, options, what is refused, and trainings."""

import inspect
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.config import base, read_config
from deeplab_jax.config_keys import LossOptions, defaults
from deeplab_jax.errors import UserError
from deeplab_jax.extensions import allow
from deeplab_jax.models.catalog import create_model
from deeplab_jax.ops.losses import LOSSES
from deeplab_jax.train.losses import check_loss, find_loss, read_sum
from tests.support.tiny import read_metrics, run_training, tiny_config

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)), jnp.float32)
MODEL = create_model("deeplabv3_resnet18", num_classes=3)
LABELS = jnp.asarray(np.random.default_rng(1).choice([0, 1, 2, 255], (2, 4, 5)), jnp.uint8)


def mean(loss: Any, **how: Any) -> float:
    total, count, _ = loss(LOGITS, LABELS, align_corners=True, **how)
    return float(total / count)


def test_every_option_is_an_argument_of_a_loss_with_the_same_default() -> None:
    taken = {}
    for loss in LOSSES.values():
        taken.update({name: one.default for name, one in inspect.signature(loss).parameters.items()})
    assert {name: taken[name] for name in defaults(LossOptions)} == defaults(LossOptions).to_dict()


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("dice", {"dice": 1.0}),
        ("cross_entropy + 0.5*dice", {"cross_entropy": 1.0, "dice": 0.5}),
        (" 2 * focal+lovasz+ 1e-2*dice", {"focal": 2.0, "lovasz": 1.0, "dice": 0.01}),
    ],
)
def test_a_sum_is_read(text: str, weights: dict[str, float]) -> None:
    assert read_sum(text, LOSSES) == weights
    expected = sum(weight * mean(LOSSES[name]) for name, weight in weights.items())
    assert mean(find_loss(text, MODEL)) == pytest.approx(expected, rel=1e-6)


def test_each_loss_takes_its_own_options() -> None:
    options = {"smoothing": 0.2, "region_smooth": 3.0}
    expected = mean(LOSSES["cross_entropy"], smoothing=0.2) + 0.5 * mean(LOSSES["dice"], region_smooth=3.0)
    assert mean(find_loss("cross_entropy + 0.5*dice", MODEL, options=options)) == pytest.approx(expected, rel=1e-6)


def test_a_loss_of_the_users_own_can_be_in_a_sum_and_takes_options(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\n\n\n"
        "def own(logits, labels, *, smoothing=0.0, **_):\n"
        "    return smoothing * jnp.float32(labels.size), jnp.float32(labels.size), labels == 0\n\n\n"
        "LOSSES = {'own': own, 'a+b': own}\n"
    )
    module = str(tmp_path / "mine.py")
    allow(module)
    assert mean(find_loss("own", MODEL, options={"smoothing": 0.25}, module=module)) == 0.25
    both = find_loss("dice + 2*own", MODEL, options={"smoothing": 0.25}, module=module)
    assert mean(both) == pytest.approx(mean(LOSSES["dice"]) + 0.5, rel=1e-6)
    assert mean(find_loss("a+b", MODEL, options={"smoothing": 0.5}, module=module)) == 0.5


@pytest.mark.parametrize("text", ["dice", "lovasz + 0.5*jaccard"])
def test_class_weights_that_would_change_nothing_are_refused(text) -> None:
    one, two = (create_model("deeplabv3_resnet18", num_classes=count) for count in (1, 2))
    train = tiny_config(**{"train.loss": text, "train.class_weights": (1.0, 50.0)}).train
    with pytest.raises(UserError, match=r"class_weights=\(1\.0, 50\.0\): .* of one logit is of the object alone"):
        check_loss(train, one)
    check_loss(train, two)
    train.loss = f"{text} + cross_entropy"
    check_loss(train, one)


def test_a_weight_behind_its_loss_is_shown_in_front() -> None:
    with pytest.raises(UserError, match=r"loss='dice\*0\.5': write the weight first, as in '0\.5\*dice'$"):
        find_loss("dice*0.5", MODEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "dise"}, r"config\.train\.loss='dise': did you mean dice"),
        (
            {"loss": "cross_entropy + 0.5*dise"},
            r"loss='cross_entropy \+ 0\.5\*dise': 'dise' is no loss; did you mean di",
        ),
        ({"loss": "dice +"}, r"loss='dice \+': '' is no loss; choose from cross_entropy, "),
        ({"loss": "-1*dice"}, r"the weight '-1' of dice is no number above 0; write it as in '0\.5\*dice'$"),
        ({"loss": "focal - 0.5*dice"}, r"the weight 'focal - 0\.5' of dice is no number above 0"),
        ({"loss": "nan*dice"}, "the weight 'nan' of dice is no number above 0"),
        ({"loss": "dice + 2*dice"}, "dice is there twice; give it once, with one weight$"),
        (
            {"loss_options.focal_gamma": 3.0},
            r"^config\.train\.loss_options\.focal_gamma=3\.0: cross_entropy does not take it; set it to 2\.0, or "
            "choose a loss that does: focal$",
        ),
        (
            {"loss": "dice", "loss_options.smoothing": 0.1},
            r"smoothing=0\.1: dice does not take it; set it to 0\.0, .*: cross_entropy, boundary_cross_entropy$",
        ),
        (
            {"loss": "dice", "top_k": 0.25},
            r"config\.train\.top_k=0\.25: dice ranks no pixels by their loss; set it to 1",
        ),
        (
            {"loss": "focal", "loss_options.focal_alpha": 0.25},
            r"focal_alpha=0\.25: .* and the model has a softmax; set",
        ),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, tiny_networks, changes, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        run_training(tmp_path / "run", tiny_config(**{f"train.{key}": value for key, value in changes.items()}))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_sum_from_the_command_line(tmp_path, tiny_networks, capsys) -> None:
    """With an option; then an unknown option, and one outside its limits."""
    (tmp_path / "config.py").write_text(
        "from tests.support.tiny import tiny_config\n\n\ndef get_config(arg=None):\n    return tiny_config()\n"
    )
    words = ["train", "--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]
    words += ["--config.train.steps=2", "--config.train.loss=cross_entropy+0.5*dice"]
    assert main([*words, "--config.train.loss_options.region_smooth=1"]) == 0
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert saved["loss"] == "cross_entropy+0.5*dice" and saved["loss_options"]["region_smooth"] == 1.0
    capsys.readouterr()
    for word, message in {
        "--config.train.loss_options.gama=1": "there is no key config.train.loss_options.gama",
        "--config.train.loss_options.smoothing=1": "smoothing=1.0: give 0 (none) to below 1",
        "--config.train.loss_options.ohem_threshold=0": "give a probability above 0 and below 1",
        "--config.train.loss_options.ohem_min_kept=0": "give at least 1",
    }.items():
        assert main([*words, word]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1


def test_an_older_configuration_has_the_options_of_today(tmp_path) -> None:
    plain = {"train": {"loss": "cross_entropy", "top_k": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert read_config(tmp_path / "config.json").train.loss_options == base().train.loss_options


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOSSES, "cross_entropy + 0.5*dice"])
def test_a_training_with_each_loss_lowers_it(tmp_path, tiny_networks, name: str) -> None:
    """On one batch, again and again, on eight devices."""
    changes = {
        **{"train.loss": name, "train.steps": 40, "train.evaluate_every": 100, "train.devices": 0},
        **{"train.batch_size": jax.device_count(), "data.options": {"size": (33, 33), "count": 8}},
        **{
            "data.flip": False,
            "data.scale_range": (1.0, 1.0),
            "optimizer.name": "adam",
            "optimizer.learning_rate": 0.01,
        },
    }
    if name == "ohem":
        changes["train.loss_options.ohem_min_kept"] = 100
    run_training(tmp_path / "run", tiny_config(**changes))
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 40 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
