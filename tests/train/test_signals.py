"""Asked to stop, by Ctrl-C or SIGTERM: the state is saved, and the run that goes on is the one that never stopped."""

import signal

import pytest

from deeplab_jax import verbs
from deeplab_jax.__main__ import main
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.evaluate import evaluator
from deeplab_jax.train import loop
from deeplab_jax.train.signals import Interrupted, stop_on_signals
from deeplab_jax.weights.folder import CHECKPOINTS
from tests.tiny import (
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
    with (
        Checkpoints(workdir / CHECKPOINTS, read_only=True) as a,
        Checkpoints(undisturbed / CHECKPOINTS, read_only=True) as b,
    ):
        assert a.metrics(6) == b.metrics(6) != {} and a.find("best") == b.find("best")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_step_saves_and_the_same_command_goes_on(tmp_path, monkeypatch, undisturbed, number) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "report", raising(number, loop.report, when=lambda step, *_: step == 2))
        with pytest.raises(
            Interrupted, match="stopped at step 2 of 6, which is saved; the same command goes on"
        ) as stop:
            run_training(tmp_path, tiny_config())
    assert stop.value.preempted == (number == signal.SIGTERM)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    run_training(tmp_path, tiny_config())
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("step", [3, 6])
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

    evaluate = loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "evaluate_batch", counting)
        patch.setattr(loop, "evaluate", evaluating)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 6, which is saved"):
            run_training(tmp_path, tiny_config())
    assert len(batches) == 1  # Of three.
    with Checkpoints(tmp_path / CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.latest() == step and checkpoints.metrics(step) == {}
    assert run_training(tmp_path, tiny_config())["step"] == 6
    assert_same_run(tmp_path, undisturbed)
    assert run_training(tmp_path, tiny_config()) is None


def test_a_signal_before_the_first_step_ends_at_once(tmp_path, monkeypatch, undisturbed) -> None:
    for number, error in ((signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "start_state", raising(number, loop.start_state))
            with pytest.raises(error):
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


@pytest.mark.parametrize(("preempted", "code"), [(False, 130), (True, 75)])
def test_exit_codes(monkeypatch, capsys, repo_root, preempted, code) -> None:
    def stopped(*_, **__):
        raise Interrupted("stopped", preempted=preempted)

    monkeypatch.setattr(loop, "train", stopped)
    words = ["train", "--config", f"{repo_root}/configs/scenes.py:debug", "--workdir", "unused"]
    assert main(words) == code == {False: verbs.INTERRUPTED, True: verbs.PREEMPTED}[preempted]
    assert capsys.readouterr().err == "deeplab-jax: stopped\n"
