"""Asked to stop, by Ctrl-C or SIGTERM: the state is saved, and the run that goes on is the one that never stopped."""

import dataclasses
import signal
import threading
import time

import pytest

from deeplab_jax import commands
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.cli import main
from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.evaluate import evaluator
from deeplab_jax.train import from_config, loop, validation
from deeplab_jax.train import run as run_module
from deeplab_jax.train.signals import Interrupted, stop_on_signals
from deeplab_jax.weights.folder import CHECKPOINTS
from tests.support.params import first_fast
from tests.support.processes import finish, start
from tests.support.tiny import (
    assert_same_arrays,
    read_checkpoint,
    read_metrics,
    run_training,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("tiny_networks")

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    run_training(workdir, tiny_config())
    return workdir


def raising(number, call, *, when=lambda *args: True):
    """`call`, after which the process gets a signal where `when` says so of the call's arguments."""

    def wrapped(*args, **options):
        result = call(*args, **options)
        if when(*args):
            signal.raise_signal(number)
        return result

    return wrapped


def assert_same_run(workdir, undisturbed) -> None:
    assert read_metrics(workdir) == read_metrics(undisturbed)
    assert_same_arrays(read_checkpoint(workdir, 6), read_checkpoint(undisturbed, 6))
    a, b = (Checkpoints(run / CHECKPOINTS, read_only=True) for run in (workdir, undisturbed))
    assert a.metrics(6) == b.metrics(6) != {} and a.find("best") == b.find("best")


@pytest.mark.parametrize("number", first_fast(SIGNALS))
def test_a_signal_in_a_step_saves_and_the_same_command_goes_on(tmp_path, monkeypatch, undisturbed, number) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "report", raising(number, run_module.report, when=lambda step, *_: step == 2))
        with pytest.raises(
            Interrupted, match="stopped at step 2 of 6, which is saved; the same command goes on"
        ) as stop:
            run_training(tmp_path, tiny_config())
    assert stop.value.preempted == (number == signal.SIGTERM)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    run_training(tmp_path, tiny_config())
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("step", first_fast([3, 6]))
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path, monkeypatch, undisturbed, step) -> None:
    """The state is saved; the evaluation is made up for at the next start, also where it is the last."""
    batches, evaluate_batch, evaluations = [], evaluator.evaluate_batch, []

    def counting(*args, **options):
        batches.append(1)
        if len(evaluations) == step // 3:
            signal.raise_signal(signal.SIGTERM)
        return evaluate_batch(*args, **options)

    def evaluating(*args, **options):
        evaluations.append(1)
        batches.clear()
        return evaluate(*args, **options)

    evaluate = validation.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "evaluate_batch", counting)
        patch.setattr(validation, "evaluate", evaluating)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 6, which is saved"):
            run_training(tmp_path, tiny_config())
    assert len(batches) == 1  # Of three.
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == step and checkpoints.metrics(step) == {}
    assert run_training(tmp_path, tiny_config())["step"] == 6
    assert_same_run(tmp_path, undisturbed)
    assert run_training(tmp_path, tiny_config()) is None


@dataclasses.dataclass(frozen=True)
class Hanging(Scenes):
    """Scenes that hang once `reads` are read."""

    reads: int = 0
    seen: list[int] = dataclasses.field(default_factory=list)
    released: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __getitem__(self, index):
        self.seen.append(index)
        if len(self.seen) > self.reads:
            self.released.wait(60)
        return super().__getitem__(index)


@pytest.mark.parametrize(("split", "reads", "step"), first_fast([("train", 4, 2), ("val", 0, 3), ("val", 3, 3)]))
def test_a_signal_does_not_wait_for_data(tmp_path, monkeypatch, undisturbed, split, reads, step) -> None:
    hanging = Hanging(split, size=(33, 33), count=5, reads=reads)
    open_source, report = from_config.open_source, run_module.report

    def reporting(number, *args):
        report(number, *args)
        if number == (step - 1 if split == "train" else step):
            threading.Timer(1, signal.raise_signal, [signal.SIGTERM]).start()

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "report", reporting)
        opened = lambda name, **o: hanging if o["split"] == split else open_source(name, **o)  # noqa: E731
        patch.setattr(from_config, "open_source", opened)
        began = time.monotonic()
        try:
            with pytest.raises(Interrupted, match=f"stopped at step {step} of 6, which is saved"):
                run_training(tmp_path, tiny_config(**{"data.threads": 1}))
        finally:
            hanging.released.set()
        assert time.monotonic() - began < 30
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == step
    run_training(tmp_path, tiny_config())
    assert_same_run(tmp_path, undisturbed)


def test_a_signal_before_the_first_step_ends_at_once(tmp_path, monkeypatch, undisturbed) -> None:
    for number, error in ((signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "fresh_state", raising(number, loop.fresh_state))
            with pytest.raises(error):
                run_training(tmp_path, tiny_config())
    with monkeypatch.context() as patch:
        patch.setattr(from_config, "train_step", raising(signal.SIGTERM, from_config.train_step))  # While it is traced.
        with pytest.raises(Interrupted, match="stopped before the first step"):
            run_training(tmp_path, tiny_config())
    run_training(tmp_path, tiny_config())
    assert_same_run(tmp_path, undisturbed)


def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does() -> None:
    with stop_on_signals() as stop:
        stop.wait_for_step()
        stop.check(1, 6)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked()
        with pytest.raises(Interrupted, match="stopped at step 1 of 6"):
            stop.check(1, 6)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_while_the_program_starts_ends_with_75(tmp_path) -> None:
    config = tmp_path / "config.py"
    config.write_text("import signal; signal.raise_signal(signal.SIGTERM)")
    code, _, errors = finish(start("train", "--config", config, "--workdir", tmp_path / "run"))
    assert (
        code == commands.PREEMPTED and errors.startswith("deeplab-jax: stopped by SIGTERM") and errors.count("\n") == 1
    )


@pytest.mark.parametrize(("preempted", "code"), [(False, 130), (True, 75)])
def test_exit_codes(monkeypatch, capsys, repo_root, preempted, code) -> None:
    def stopped(*_, **__):
        raise Interrupted("stopped", preempted=preempted)

    monkeypatch.setattr(loop, "train", stopped)
    words = ["train", "--config", f"{repo_root}/configs/scenes.py:debug", "--workdir", "unused"]
    assert main(words) == code == {False: commands.INTERRUPTED, True: commands.PREEMPTED}[preempted]
    assert capsys.readouterr().err == "deeplab-jax: stopped\n"
