"""When a run ends: epochs as steps, and evaluations that get no better."""

import io
import json

import pytest
from rich.console import Console

from deeplab_jax.config import base
from deeplab_jax.errors import UserError
from deeplab_jax.train import run as run_module
from deeplab_jax.train import validation
from deeplab_jax.train.loop import train
from deeplab_jax.train.patience import Evaluations, with_steps
from deeplab_jax.train.record import RECORD_FILE, last_evaluation, read_mious, records
from deeplab_jax.train.workdir import CONFIG_FILE
from deeplab_jax.train.writers import Writers
from tests.support.tiny import read_checkpoint, read_metrics, run_training, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.mark.parametrize(
    ("epochs", "examples", "batch_size", "steps"),
    [(2.0, 5, 2, 5), (1.0, 5, 2, 3), (0.5, 5, 2, 2), (1.1, 10, 1, 11), (1e-9, 5, 2, 1), (30.0, 1464, 16, 2745)],
)
def test_steps_of_epochs_by_hand(epochs, examples, batch_size, steps) -> None:
    config = tiny_config(**{"train.epochs": epochs, "train.batch_size": batch_size})
    assert with_steps(config, examples).train.steps == steps
    assert config.train.steps == 6


def test_without_epochs_the_steps_decide() -> None:
    config = tiny_config()
    assert with_steps(config, 1000) is config


def test_more_steps_than_can_be_counted_are_refused() -> None:
    with pytest.raises(UserError, match=r"config\.train\.epochs=1e\+06: 50000000000 steps of 2 for 100000 training im"):
        with_steps(tiny_config(**{"train.epochs": 1e6}), 10**5)
    with pytest.raises(UserError, match=r"config\.train\.epochs=1: 0 steps of 2 for 0 training images"):
        with_steps(tiny_config(**{"train.epochs": 1.0}), 0)


def test_a_run_of_epochs(tmp_path) -> None:
    """Five images in batches of two: two epochs are five steps, and the schedule ends there."""
    config = tiny_config(**{"train.epochs": 2.0})
    results = run_training(tmp_path, config)
    assert results["step"] == 5
    rates = [line["train/learning_rate"] for line in read_metrics(tmp_path) if "train/learning_rate" in line]
    assert rates == pytest.approx([0.1 * (1 - step / 5) ** 0.9 for step in range(5)], rel=1e-5)
    stored = json.loads((tmp_path / CONFIG_FILE).read_text())["train"]
    assert (stored["steps"], stored["epochs"]) == (5, 2.0)
    assert run_training(tmp_path, config) is None
    with pytest.raises(UserError, match=r"config.train.epochs: 2.0 -> 3.0; config.train.steps: 5 -> 8"):
        run_training(tmp_path, tiny_config(**{"train.epochs": 3.0}))


# Patience.


@pytest.mark.parametrize(
    ("mious", "patience", "ends"),
    [
        ([], 1, False),
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.2], 1, True),
        ([0.3, 0.2], 2, False),
        ([0.3, 0.2, 0.3], 2, True),  # As good is not better.
        ([0.0, 0.0, 0.0], 2, True),
        ([0.3, 0.2, 0.4, 0.1], 2, False),
        ([0.3, 0.2, 0.1, 0.1], 0, False),
    ],
)
def test_patience_by_hand(mious, patience, ends) -> None:
    evaluations = Evaluations({}, patience=patience, steps=100)
    for number, miou in enumerate(mious, start=1):
        evaluations.add(10 * number, miou)
    assert evaluations.exhausted() is ends


def test_the_reason_in_words() -> None:
    evaluations = Evaluations({10: 0.5, 20: 0.25, 30: 0.5}, patience=2, steps=100)
    assert evaluations.why() == (
        "ended early after step 30 of 100: 2 evaluations without a better mIoU than 0.5000 of step 10"
    )


def test_the_record_is_read_up_to_a_step(tmp_path) -> None:
    file = tmp_path / RECORD_FILE
    assert read_mious(file, until=9) == []
    lines = [
        '{"step": 1, "train/loss": 2.0}',
        '{"step": 3, "val/miou": 0.1, "val/seconds": 1.0}',
        '{"step": 6, "val/seconds": 1.0}',
        "[1]",
        '"step"',
        '{"step": "4", "val/seconds": 1}',
        '{"step": -Infinity, "val/seconds": 1}',
        '{"step": NaN, "val/seconds": 1}',
        '{"step": 5, "val/miou": NaN, "val/seconds": 1}',
        '{"step": 5, "val/miou": [1], "val/seconds": 1}',
        f'{{"step": 5, "val/miou": 1{"0" * 400}, "val/seconds": 1}}',
        '{"step": 9, "val/miou": 0.30000000000000004, "val/seconds": 1.0}',
        '{"step": 12, "val/miou": 0.3, "val/seconds": 1.0}',
        '{"step": 15, "val/mi',
    ]
    file.write_text("\n".join(lines))
    assert read_mious(file, until=9) == [(3, 0.1), (6, 0.0), (4, 0.0), (9, 0.30000000000000004)]
    assert last_evaluation(file) == {"step": 12, "miou": 0.3, "seconds": 1.0, "per_class": []}
    assert [record["step"] for record in records(file)] == [1, 3, 6, 4, 5, 5, 5, 9, 12]
    text = json.dumps({"step": 3, "train/loss": 0.1 + 0.2, "val/iou/\u00e4 ": 1e-300})
    file.write_text(f'{text}\n{{"step": 4, "train/loss": 1.0}}\n{{"st')
    with Writers(tmp_path, start=3, steps=9, console=Console(quiet=True), config=base()):
        pass
    assert file.read_text() == f"{text}\n"  # Character by character.


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations whose mIoU after step N is `mious[N]`."""
    mious = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3, 5: 0.9, 6: 0.9}
    validate, evaluate = validation.Validation.__call__, validation.evaluate

    def call(self, run, number, state):
        with monkeypatch.context() as patch:
            patch.setattr(validation, "evaluate", lambda *a, **k: {**evaluate(*a, **k), "miou": mious[number]})
            return validate(self, run, number, state)

    monkeypatch.setattr(validation.Validation, "__call__", call)


def test_a_run_ends_early_and_says_so(tmp_path, scripted, monkeypatch) -> None:
    changes = {"train.evaluate_every": 1, "train.checkpoint_every": 1, "train.patience": 2, "train.keep": 1}
    said = io.StringIO()
    console = lambda: Console(file=said, width=400)  # noqa: E731
    results = train(tiny_config(**changes), tmp_path / "whole", console=console())
    assert results["step"] == 4
    why = "ended early after step 4 of 6: 2 evaluations without a better mIoU than 0.3000 of step 2"
    assert said.getvalue().splitlines()[-1] == why
    assert read_checkpoint(tmp_path / "whole", 4)
    # The same command finds it ended.
    before = (tmp_path / "whole" / RECORD_FILE).read_bytes()
    assert train(tiny_config(**changes), tmp_path / "whole", console=console()) is None
    assert f"{why}; nothing to do, unless with --config.train.patience=0" in said.getvalue()
    assert (tmp_path / "whole" / RECORD_FILE).read_bytes() == before
    # A run that was killed in between ends where the other one did.
    report = run_module.report

    def killed(number, *args):
        report(number, *args)
        if number == 4:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "report", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run_training(tmp_path / "parts", tiny_config(**changes))
    assert run_training(tmp_path / "parts", tiny_config(**changes))["step"] == 4
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    # And what the message says, works.
    assert train(tiny_config(**{**changes, "train.patience": 0}), tmp_path / "whole", console=console())["step"] == 6
