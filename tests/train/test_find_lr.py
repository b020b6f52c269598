"""The learning rate finder: its arithmetic on made-up losses, and the command."""

import json
import math

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.data.images import read_image
from deeplab_jax.errors import UserError
from deeplab_jax.train.find_lr import JSON, PICTURE, diverged, doubt, find_lr, smoothed, summarize
from tests.support.tiny import tiny_config

TINY = """
from tests.support.tiny import tiny_config


def get_config(arg=None):
    return tiny_config(**{"optimizer.schedule": "step", "optimizer.milestones": (3,)})
"""


def test_smoothing_by_hand() -> None:
    """With 20 losses one neighbour on each side; the ends stay, so a straight line does."""
    losses = [float(number) for number in range(20)]
    losses[7] = 10.0
    expected = list(losses)
    expected[6:9] = [(5 + 6 + 10) / 3, (6 + 10 + 8) / 3, (10 + 8 + 9) / 3]
    assert smoothed(losses) == pytest.approx(expected)


def test_the_steepest_fall_by_hand() -> None:
    """A loss that is a sigmoid of the rate's logarithm falls most steeply in its middle, then explodes."""
    rates = np.geomspace(1e-6, 1.0, 121)
    losses = 2 - np.tanh(2 * (np.log10(rates) + 3)) + np.where(rates > 0.1, 50 * rates, 0)
    found = summarize(rates.tolist(), losses.tolist())
    assert found["suggested"] == pytest.approx(1e-3, rel=0.06)  # To one step, a factor of 1.122.
    assert 0.02 < found["minimum"] <= 0.1
    assert [row["learning_rate"] for row in found["steps"]] == rates.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_the_first_steps_suggests_nothing(seed) -> None:
    """As noisy as the losses of small batches are, where the loss falls by 2.3 around a rate of 1e-3."""
    rates = np.geomspace(1e-6, 1.0, 100)
    losses = 1.5 - 1.15 * np.tanh(2 * (np.log10(rates) + 3)) + np.random.default_rng(seed).normal(0, 0.2, 100)
    assert 1e-4 < summarize(rates.tolist(), losses.tolist())["suggested"] < 1e-2


@pytest.mark.parametrize(
    ("count", "bump", "reason"),
    [
        (40, 0.0, ""),
        (39, 0.0, "39 losses are fewer than 40"),
        (41, 0.8, ""),
        (41, 1.1, "the smoothed loss falls by 9 in all, and rises by 1.1 on its way"),
    ],
)
def test_a_curve_that_is_short_or_not_smooth_is_doubted(count, bump, reason) -> None:
    """Means that fall from 10 to 1 after those of the ends. A rise by a tenth of that is allowed."""
    means = [10.0] * (count - 5) + [4.0, 4.0 + bump, 1.0, 9.0, 50.0]  # What follows the smallest does not count.
    assert doubt(means) == reason


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    found = summarize([0.1, 0.2, 0.4, 0.8], [1.0, 2.0, 3.0, 4.0])
    assert found["suggested"] is None and found["minimum"] == 0.1 and found["doubt"] == ""


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([2.0, 1.9, 1.8], False),
        ([2.0, 1.0, math.nan], True),
        ([2.0, math.inf], True),
        # The running mean of 1 and x is (0.9 + x) / 1.9, above 4 where x is above 6.7.
        ([1.0, 6.6], False),
        ([1.0, 6.8], True),
    ],
)
def test_divergence_by_hand(losses, ends) -> None:
    assert diverged(losses) is ends


def test_a_loss_that_is_not_finite_is_in_the_record_without_a_value() -> None:
    found = summarize([0.1, 0.2, 0.4], [2.0, 1.0, math.nan])
    assert found["diverged"] and found["steps"][-1] == {"learning_rate": 0.4, "loss": None, "smoothed": None}
    json.dumps(found, allow_nan=False)


def test_the_command_writes_a_report_and_no_run(tmp_path, tiny_networks, capsys) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    words = ["find-lr", "--config", str(tmp_path / "tiny.py"), "--out", str(tmp_path / "out")]
    assert main([*words, "--from", "1e-3", "--to", "1e4", "--steps", "40"]) == 0
    report = json.loads((tmp_path / "out" / JSON).read_text())
    said = capsys.readouterr()
    assert f"suggested: --config.optimizer.learning_rate={report['suggested']:.2g}\nwritten to {tmp_path}" in said.out
    few = f"{sum(row['loss'] is not None for row in report['steps'])} losses are fewer than 40"
    assert said.err == f"this rate cannot be trusted yet: {few}; give --steps 160 or a larger batch\n"
    # A rate of 10,000 is too much for anything.
    assert report["diverged"] and "the loss diverged at" in said.out and len(report["steps"]) < 40
    rates = [row["learning_rate"] for row in report["steps"]]
    np.testing.assert_allclose(rates, np.geomspace(1e-3, 1e4, 40)[: len(rates)], rtol=1e-4)
    assert rates[0] <= report["suggested"] <= report["minimum"] < rates[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [JSON, PICTURE]
    assert read_image(tmp_path / "out" / PICTURE).shape == (480, 720, 3)


def test_the_configuration_stays_as_it_is(tiny_networks) -> None:
    config = tiny_config(**{"train.ema_decay": 0.9, "train.ema_debias": True, "train.epochs": 3.0})
    before = config.to_json()
    report = find_lr(config, steps=10, say=lambda text: None)
    assert len(report["steps"]) == 10 and config.to_json() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "1", "--to", "0.1"], "--from 1 --to 0.1: give two positive learning rates"),
        (["--from", "0"], "--from 0 --to 1: give two positive learning rates, such as --from 1e-6 --to 1"),
        (["--steps", "3"], "--steps 3: give 10 to 2000"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(tmp_path, words, message, capsys) -> None:
    assert main(["find-lr", "--config", "configs/scenes.py", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    from deeplab_jax.train.find_lr import write_report

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/find_lr.png: cannot be written .*; free space or choose another path"):
        write_report(summarize([0.1, 0.2], [2.0, 1.0]), tmp_path / "file")
