"""Updates that are not finite: noticed at their step, kept for a look at them, or skipped and counted."""

import io
import json
import math
import os
import tempfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.cli import main
from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.errors import UserError
from deeplab_jax.train import batches, faults, step, validation
from deeplab_jax.train import run as run_module
from deeplab_jax.train.faults import saving_first
from deeplab_jax.train.loop import train
from deeplab_jax.train.replay import read_batch, replay
from deeplab_jax.train.run import BATCH_FILE, POSTMORTEM
from deeplab_jax.train.signals import Interrupted
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.workdir import CONFIG_FILE
from deeplab_jax.train.writers import Clock, Writers
from deeplab_jax.weights.folder import CHECKPOINTS, load
from tests.support.params import first_fast
from tests.support.tiny import (
    assert_same_arrays,
    read_checkpoint,
    read_metrics,
    run_training,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("tiny_networks")


def poison(monkeypatch, *numbers):
    """Make the gradient of these steps infinite."""
    healthy = step.mean_gradient

    def poisoned(state, batch, **options):
        gradient, batch_stats, metrics = healthy(state, batch, **options)
        factor = jnp.where(jnp.isin(state.step, jnp.asarray([number - 1 for number in numbers])), jnp.inf, 1.0)
        gradient = jax.tree.map(lambda g: g * factor, gradient)
        return gradient, batch_stats, {**metrics, "gradient_norm": metrics["gradient_norm"] * factor}

    monkeypatch.setattr(step, "mean_gradient", poisoned)


@pytest.mark.parametrize(
    ("loss", "slope", "made"), [(1.0, 2.0, True), (math.nan, 2.0, False), (1.0, math.inf, False), (-math.inf, 0, False)]
)
def test_the_state_stays_where_loss_or_gradient_is_not_finite(loss, slope, made) -> None:
    def objective(params, batch_stats, batch, key):
        sums = {"total": jnp.asarray(loss), "count": 1.0, "right": 1.0, "labelled": 1.0}
        return slope * params["w"][0], (jax.tree.map(lambda x: x + 1, batch_stats), sums)

    params, optimizer = {"w": jnp.asarray([5.0])}, optax.sgd(2.0)
    state = TrainState(jnp.asarray(3), params, {"mean": jnp.zeros(1)}, optimizer.init(params), None)
    after, metrics = step.train_step(state, {}, objective=objective, optimizer=optimizer, key=jax.random.key(0))
    assert (int(after.step), float(after.params["w"][0]), float(after.batch_stats["mean"][0])) == (
        (4, 1.0, 1.0) if made else (3, 5.0, 0.0)
    )
    assert faults.is_finite(metrics) is made


def test_a_step_that_is_not_finite_stops_at_once_and_can_be_replayed(tmp_path, capsys) -> None:
    """Nothing is reported between steps 1 and 6, but the fault is noticed where it happens."""
    config = tiny_config(**{"optimizer.learning_rate": 2e9, "train.log_every": 6})
    with pytest.raises(UserError, match=r"step 3: loss .*, gradient norm .*; see python -m deeplab_jax replay .*lower"):
        run_training(tmp_path, config)
    folder = tmp_path / POSTMORTEM
    # It holds the state before the step, which was finite still.
    model, variables, info = load(folder)
    assert model.num_classes == 9 and info["step"] == 2
    found = replay(folder)
    assert found.summary.startswith("step 3: loss ")
    kinds = [tensor.kind for tensor in found.tensors]
    assert kinds == sorted(kinds, key=["before", "output", "gradient"].index)
    before = {tensor.name: tensor for tensor in found.tensors if tensor.kind == "before"}
    kernel = np.asarray(variables["params"]["classifier"]["kernel"], np.float64)
    assert before["params/classifier/kernel"].largest == pytest.approx(np.abs(kernel).max()) and kernel.max() > 1e6
    assert not any(tensor.not_finite for tensor in before.values())
    outputs = [tensor for tensor in found.tensors if tensor.kind == "output"]
    assert [tensor.name for tensor in outputs][:2] == ["backbone/stem/conv", "backbone/stem/norm/batch"]
    assert found.first_not_finite in outputs
    assert any(tensor.not_finite for tensor in found.tensors if tensor.kind == "gradient")

    assert main(["replay", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found.tensors) + 2 and lines[-2] == found.summary
    assert lines[-1] == f"the first that is not finite: {found.first_not_finite}"


ACCUMULATED = {
    "model.name": "deeplabv3plus_tiny",
    "model.options": {"dropout": 0.5, "aspp_channels": 4, "decoder_convs": ((3, 4),), "norm_momentum": 0.9},
    "train.batch_size": 4,
    "train.accumulate": 2,
    "train.ema_decay": 0.9,
    "optimizer.name": "adam",
}


SLOW = pytest.param(ACCUMULATED, marks=pytest.mark.slow, id="accumulated")


@pytest.mark.parametrize("changes", [pytest.param({}, id="plain"), SLOW])
def test_a_replay_computes_what_training_computed(tmp_path, monkeypatch, changes) -> None:
    poison(monkeypatch, 3)
    with pytest.raises(UserError, match="step 3: loss .*gradient norm inf"):
        run_training(tmp_path / "bad", tiny_config(**changes))
    monkeypatch.undo()  # The replayed step is healthy.
    found = replay(tmp_path / "bad" / POSTMORTEM)
    assert found.first_not_finite is None
    run_training(tmp_path / "good", tiny_config(**changes))
    line = next(line for line in read_metrics(tmp_path / "good") if line["step"] == 3)
    _, loss, _, norm = (word for part in found.summary.split(", ") for word in part.rsplit(" ", 1))
    assert float(loss) == pytest.approx(line["train/loss"], rel=1e-6)
    assert float(norm) == pytest.approx(line["train/gradient_norm"], rel=1e-5)


def test_updates_may_be_skipped_and_are_counted(tmp_path, monkeypatch, capsys) -> None:
    """Also over a restart; a step that was skipped changes nothing."""
    allowed = {"train.skip_nonfinite": 2, "train.checkpoint_every": 1, "train.keep": 9}
    poison(monkeypatch, 3)  # `state.step` stays 2, so that every update from the third on is poisoned.
    with pytest.raises(UserError, match="step 5: loss"):
        run_training(tmp_path, tiny_config(**allowed))
    second, fourth = read_checkpoint(tmp_path, 2), read_checkpoint(tmp_path, 4)
    assert_same_arrays(second, fourth)
    lines = [line for line in read_metrics(tmp_path) if "train/skipped_updates" in line]
    assert [(line["step"], line["train/skipped_updates"]) for line in lines] == [(3, 1), (4, 2)]
    # An update that was skipped does not move the schedule on.
    rates = {line["step"]: line["train/learning_rate"] for line in read_metrics(tmp_path) if "train/loss" in line}
    assert rates[2] == pytest.approx(0.1 * (1 - 1 / 6) ** 0.9) == rates[3] == rates[4]
    text = (tmp_path / "metrics.jsonl").read_text()
    json.loads(text.splitlines()[-1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    # The rest is healthy, and more updates may be skipped: no other configuration for that.
    monkeypatch.undo()
    train(tiny_config(**{**allowed, "train.skip_nonfinite": 3}), tmp_path)
    assert "2 of 6 updates were skipped: their loss or gradient was not finite" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        assert_same_arrays(fourth, read_checkpoint(tmp_path, 6))


@pytest.mark.parametrize("allowed", first_fast([0, 10]))
def test_the_printed_number_of_skips_lets_the_run_go_on(tmp_path, monkeypatch, allowed) -> None:
    """From the step before the fault, which is saved although none was due."""
    changes = {"train.steps": 30, "train.checkpoint_every": 100, "train.evaluate_every": 100}
    poison(monkeypatch, 3)
    with pytest.raises(UserError, match="; to go on from step ") as caught:
        run_training(tmp_path, tiny_config(**changes, **{"train.skip_nonfinite": allowed}))
    step, more = 2 + allowed, 10 + allowed
    assert f"to go on from step {step}, start again with --config.train.skip_nonfinite={more}, " in str(caught.value)
    assert_same_arrays(read_checkpoint(tmp_path, step), read_checkpoint(tmp_path / POSTMORTEM, step))
    with pytest.raises(UserError, match=rf"step {3 + more}: "):  # All that it allows.
        run_training(tmp_path, tiny_config(**changes, **{"train.skip_nonfinite": more}))


def test_a_first_step_that_is_not_finite_saves_nothing(tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 1)
    with pytest.raises(UserError, match="step 1: .*; to go on, start again with --config.train.skip_nonfinite=10, "):
        run_training(tmp_path, tiny_config())
    assert not list((tmp_path / CHECKPOINTS).iterdir())


@pytest.mark.parametrize(("fault", "saved"), [("finite", 4), ("not finite", 3)])
def test_data_that_fail_after_a_step_cost_none_and_hide_no_fault(tmp_path, monkeypatch, fault, saved) -> None:
    """With an update to skip, the step before it is saved: the next start finds the fault again."""
    if fault == "not finite":
        poison(monkeypatch, 4)
    fetch, calls = Clock.fetch, []

    def failing(self, batches):
        calls.append(1)
        if len(calls) == 4:
            raise UserError("made up")
        return fetch(self, batches)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="made up"):
        patch.setattr(Clock, "fetch", failing)
        run_training(tmp_path, tiny_config(**{"train.checkpoint_every": 100, "train.evaluate_every": 100}))
    assert os.listdir(tmp_path / CHECKPOINTS) == [str(saved)]


@pytest.mark.parametrize("allowed", [0, 3])
def test_a_record_that_cannot_be_written_costs_no_step(tmp_path, monkeypatch, allowed) -> None:
    if allowed:
        poison(monkeypatch, 4)
    scalars = Writers.scalars

    def failing(self, step, values, *, prefix):
        if step == 4:
            raise UserError("made up")
        scalars(self, step, values, prefix=prefix)

    monkeypatch.setattr(Writers, "scalars", failing)
    changes = {"train.checkpoint_every": 100, "train.evaluate_every": 100, "train.skip_nonfinite": allowed}
    with pytest.raises(UserError, match="made up"):
        run_training(tmp_path, tiny_config(**changes))
    assert os.listdir(tmp_path / CHECKPOINTS) == ["4"]


@pytest.mark.parametrize("clip_norm", first_fast([0.0, 1.0]))
def test_a_run_goes_on_with_the_settings_that_the_message_names(tmp_path, monkeypatch, clip_norm) -> None:
    """Clipping, decay and factors may change either way: none of them moves the state in the checkpoint."""
    poison(monkeypatch, 5)
    changes = {"optimizer.name": "adam", "train.checkpoint_every": 2, "optimizer.clip_norm": clip_norm}
    with pytest.raises(UserError, match=r"step 5: .*--allow_config_change and --config\.optimizer\.clip_norm=1"):
        run_training(tmp_path, tiny_config(**changes))
    monkeypatch.undo()
    others = {"optimizer.clip_norm": 1 - clip_norm, "optimizer.learning_rate": 0.01, "optimizer.weight_decay": 0.0}
    others["optimizer.multipliers"] = (("^backbone/", 0.1),)
    train(tiny_config(**{**changes, **others}), tmp_path, allow_config_change=True)
    assert read_metrics(tmp_path)[-1]["step"] == 6


def test_a_post_mortem_that_cannot_be_written_hides_nothing(tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 2)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(run_module, "POSTMORTEM", "gone/postmortem")
    with pytest.raises(
        UserError, match=r"step 2: .*; no post-mortem \(.*gone/postmortem: cannot be used.*\); to go on"
    ):
        run_training(tmp_path / "run", tiny_config())


@pytest.mark.parametrize("content", [None, b"", b"PK\x05\x06" + bytes(18), b"\x80\x04K\x01."])
def test_what_is_no_post_mortem_is_a_user_error(tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "batch.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"batch\.npz: no batch to replay .*give the postmortem/ folder"):
        replay(tmp_path)


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


BATCH = {"image": np.zeros((2, 33, 33, 3), np.uint8), "label": np.zeros((2, 33, 33), np.uint8)}


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(-300, 299), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_batch_is_a_user_error_or_the_batch(changes) -> None:
    """Most of what a zip file says stands at its two ends."""
    content = bytearray(npz(**BATCH))
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, BATCH_FILE)
        file.write_bytes(content)
        try:
            assert read_batch(file)["label"].shape == (2, 33, 33)
        except UserError as error:
            assert "no batch to replay" in str(error) and "\n" not in str(error)


def test_a_batch_of_several_labels_a_pixel_is_read(tmp_path) -> None:
    batch = {"image": np.zeros((2, 33, 33, 3), np.float32), "label": np.ones((2, 33, 33, 4), np.uint8)}
    (tmp_path / BATCH_FILE).write_bytes(npz(**batch))
    assert read_batch(tmp_path / BATCH_FILE)["label"].shape == (2, 33, 33, 4)
    (tmp_path / BATCH_FILE).write_bytes(npz(**{**batch, "label": np.ones((2, 33, 33, 4), np.float32)}))
    with pytest.raises(UserError, match="label is float32"):
        read_batch(tmp_path / BATCH_FILE)


def claiming(shape):
    """A batch whose label claims a shape that it has not."""
    content = io.BytesIO(npz(image=BATCH["image"]))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("label.npy", header.getvalue() + bytes(100))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(**{**BATCH, "image": np.zeros((2, 33, 33, 3))}), "image is float64, not as numpy"),
        (npz(**{**BATCH, "image": np.zeros((2, 33, 33), np.uint8)}), r"image is \(2, 33, 33\)"),
        (npz(**{**BATCH, "label": np.zeros((2, 33, 32), np.uint8)}), r"label \(2, 33, 32\)"),
        (npz(**{**BATCH, "label": np.zeros((0, 33, 33), np.uint8)}), r"label is \(0, 33, 33\)"),
        (claiming((10**5, 10**5, 10**5)), "pixels are the limit; DEEPLAB_JAX_MAX_PIXELS sets another"),
        (claiming((-2, 33, 33)), r"label is \(-2, 33, 33\)"),
        (claiming((2, 33, 33)), "cannot reshape array of size 100"),
    ],
)
def test_a_batch_of_other_shapes_is_refused_before_it_takes_memory(tmp_path, content, message) -> None:
    (tmp_path / BATCH_FILE).write_bytes(content)
    with pytest.raises(UserError, match=rf"batch\.npz: no batch to replay \(ValueError: .*{message}"):
        read_batch(tmp_path / BATCH_FILE)


def test_a_pipe_is_no_batch(tmp_path) -> None:
    os.mkfifo(tmp_path / BATCH_FILE)
    with pytest.raises(UserError, match=r"no batch to replay \(OSError: not a regular file"):
        replay(tmp_path)


@pytest.mark.parametrize("devices", first_fast([0, 99]))
def test_a_replay_takes_the_devices_that_are_here_and_divide_the_batch(tmp_path, monkeypatch, devices) -> None:
    poison(monkeypatch, 2)
    with pytest.raises(UserError, match="step 2: loss"):
        run_training(tmp_path, tiny_config(**{"train.batch_size": 6}))
    folder = tmp_path / POSTMORTEM
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["train"]["devices"] = devices  # Of a machine with another number of them.
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    assert replay(folder).summary.startswith("step 2: loss ")
    config["train"]["batch_size"] = 4
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"batch\.npz: labels \(6, 33, 33\), and config\.json beside it says \(4, 33, 33\)"
    ):
        replay(folder)


def test_what_fails_is_raised_after_saving() -> None:
    saved = []

    def save():
        saved.append(1)
        raise UserError("disk full")

    with pytest.raises(ZeroDivisionError), saving_first(save):
        _ = 1 // 0
    # Who asked to stop is told that it is saved, so that it must be.
    with pytest.raises(UserError, match="disk full"), saving_first(save):
        raise Interrupted("stopped", preempted=True)
    assert len(saved) == 2
    with saving_first(save):
        pass
    assert len(saved) == 2


@pytest.mark.parametrize("where", first_fast(["evaluation", "data"]))
def test_a_failure_beside_the_step_costs_no_step(tmp_path, monkeypatch, where) -> None:
    config = tiny_config(**{"train.checkpoint_every": 100})
    with monkeypatch.context() as patch:
        if where == "evaluation":
            patch.setattr(validation, "evaluate", lambda *_, **__: (_ for _ in ()).throw(MemoryError("out of memory")))
            expected, step = MemoryError, 3
        else:

            def failing(*args, start, **options):
                yield from list(original(*args, start=start, **options))[:5]
                raise UserError("0005.png: truncated")

            original, expected, step = batches.training_batches, UserError, 5
            patch.setattr(batches, "training_batches", failing)
        with pytest.raises(expected):
            run_training(tmp_path / "run", config)
    assert step in [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    run_training(tmp_path / "run", config)
    run_training(tmp_path / "whole", config)
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")
    assert_same_arrays(read_checkpoint(tmp_path / "run", 6), read_checkpoint(tmp_path / "whole", 6))


SKIP = {"data.on_error": "skip", "data.max_skipped": 0.2}
SKIPPED = ["1 of 5 training images were skipped since this start", "  2.png: truncated"]


def damage_an_image(monkeypatch):
    read = Scenes.__getitem__

    def damaged(self, index):
        if self.split == "train" and index == 2:
            raise UserError("2.png: truncated")
        return read(self, index)

    monkeypatch.setattr(Scenes, "__getitem__", damaged)


def test_training_images_that_cannot_be_read_are_skipped_and_listed(tmp_path, monkeypatch, capsys) -> None:
    damage_an_image(monkeypatch)
    with pytest.raises(UserError, match="2.png: truncated"):
        run_training(tmp_path / "run", tiny_config())
    skip = tiny_config(**SKIP)
    assert train(skip, tmp_path / "run")["step"] == 6  # What happens after a fault is no other configuration.
    assert capsys.readouterr().out.splitlines()[-2:] == SKIPPED
    run_training(tmp_path / "whole", skip)
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")
    assert_same_arrays(read_checkpoint(tmp_path / "run", 6), read_checkpoint(tmp_path / "whole", 6))


@pytest.mark.parametrize("end", [Interrupted("asked to", preempted=True), MemoryError()])
def test_skipped_images_are_listed_however_the_run_ends(tmp_path, monkeypatch, capsys, end) -> None:
    damage_an_image(monkeypatch)
    report = run_module.report

    def ending(number, *args):
        report(number, *args)
        if number == 4:
            raise end

    monkeypatch.setattr(run_module, "report", ending)
    with pytest.raises(type(end)):
        train(tiny_config(**SKIP), tmp_path)
    assert capsys.readouterr().out.splitlines()[-2:] == SKIPPED
