"""One, several or split devices and several processes: the same numbers; and what happens when a process fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from deeplab_jax import distributed
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.weights.folder import CHECKPOINTS
from experiments.launch.local import free_port
from tests.support.params import first_fast
from tests.support.processes import environment, finish, write_config
from tests.support.tiny import read_metrics, run_training, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_networks")
needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: JAX_NUM_CPU_DEVICES=8")

# Batch norm, height for four parts at output stride 16, images for eight devices, an evaluation that does not divide;
# a learning rate that does not depend on the number of steps.
RUN = {
    "optimizer.power": 0.0,
    "train.steps": 4,
    "train.batch_size": 8,
    "train.evaluate_every": 2,
    "train.checkpoint_every": 2,
    "train.devices": 0,
    "data.crop_size": (64, 48),
    "data.options": {"size": (64, 48), "count": 11},
    "evaluate.pad_to": ((64, 48),),
}
LONG = {
    **RUN,
    "train.steps": 20,
    "train.evaluate_every": 20,
    "train.checkpoint_every": 20,
    "model.name": "deeplabv3plus_tiny",
    "model.options": {
        "norm_momentum": 0.9,
        "aspp_channels": 4,
        "low_level_channels": 4,
        "decoder_convs": ((3, 4),),
    },
}
LAYOUTS = {
    "8 data": {"train.devices": 8},
    "4 data x 2 space": {"train.devices": 8, "train.space": 2},
    "8 data, split state": {"train.devices": 8, "train.shard_state": True},
    "2 data x 4 space, split state": {"train.devices": 8, "train.space": 4, "train.shard_state": True},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Run directories and results of the runs on one device, by number of steps."""
    runs = {}
    for changes in (RUN, LONG):

        def run(changes=changes):
            workdir = tmp_path_factory.mktemp("alone")
            return workdir, run_training(workdir, tiny_config(**{**changes, "train.devices": 1}))

        runs[changes["train.steps"]] = run
    made = {}

    def of(steps):
        if steps not in made:
            made[steps] = runs[steps]()
        return made[steps]

    return of


def losses(workdir):
    return [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]


def scores(workdir):
    """What the evaluations of a run gave: exact ratios of whole numbers."""
    return [{k: v for k, v in line.items() if k.startswith("val/")} for line in read_metrics(workdir)]


def assert_same_numbers(workdir, reference) -> None:
    np.testing.assert_allclose(losses(workdir), losses(reference), rtol=1e-5)
    assert scores(workdir) == scores(reference)


@pytest.mark.slow
@needs_devices
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_devices_gives_the_numbers_of_one(tmp_path, alone, layout) -> None:
    reference, results = alone(LONG["train.steps"])
    found = run_training(tmp_path, tiny_config(**{**LONG, **LAYOUTS[layout]}))
    assert_same_numbers(tmp_path, reference)
    assert found["confusion_matrix"] == results["confusion_matrix"]


def launch(config, *words, processes=2, devices=2, options=(), verb="train"):
    """Start processes that work as one, through the launcher."""
    own = [sys.executable, "-m", "experiments.launch.local", "--processes", processes, "--devices", devices, *options]
    return subprocess.Popen(
        [str(word) for word in (*own, "--", verb, "--config", config, *words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Processes that fill one cache at the same time could read each other's half-written programs.
        env=environment({"JAX_COMPILATION_CACHE_DIR": ""}),
    )


def says(text, errors):
    """How many lines of the package, not of JAX, hold a text."""
    return len([line for line in errors.splitlines() if "deeplab-jax:" in line and re.search(text, line)])


@needs_devices
def test_two_processes_give_the_numbers_of_one_and_any_layout_goes_on_from_them(tmp_path, alone) -> None:
    half = write_config(tmp_path / "half.py", **{**RUN, "train.steps": 2})
    code, output, errors = finish(launch(half, "--workdir", tmp_path / "run"))
    assert code == 0, errors
    assert output.count("4 cpu device(s)") == 1  # Said once.
    # On from there on other devices, the state split, by rows as well.
    changes = {**RUN, **LAYOUTS["4 data x 2 space"], "train.shard_state": True}
    found = run_training(tmp_path / "run", tiny_config(**changes), allow_config_change=True)
    straight, wanted = alone(RUN["train.steps"])
    assert_same_numbers(tmp_path / "run", straight)
    assert found["confusion_matrix"] == wanted["confusion_matrix"]
    assert found["protocol"]["images"] == 11


def test_an_evaluation_waits_for_the_others_as_long_as_the_configuration_says(tmp_path, monkeypatch, alone) -> None:
    monkeypatch.setattr(distributed._watchdog, "limit", distributed.TIMEOUT)
    config = write_config(tmp_path / "tiny.py", **RUN, **{"train.timeout": 123.0})
    reference = str(alone(RUN["train.steps"])[0])
    assert main(["evaluate", "--model", reference, "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    assert distributed._watchdog.limit == 123.0


MORE_METRICS = ("--trimap", "1,3", "--bootstrap", "100", "--boundary", "--calibration")


@pytest.mark.slow
def test_two_processes_with_two_devices_each_for_twenty_steps(tmp_path, alone) -> None:
    reference, results = alone(LONG["train.steps"])
    config = write_config(tmp_path / "tiny.py", **LONG)
    words = ("--workdir", tmp_path / "run")
    code, _, errors = finish(launch(config, *words))
    assert code == 0, errors
    assert_same_numbers(tmp_path / "run", reference)
    out = tmp_path / "out"
    code, output, errors = finish(launch(config, "--model", reference, "--out", out, *MORE_METRICS, verb="evaluate"))
    assert code == 0, errors
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["confusion_matrix"] == results["confusion_matrix"]
    assert metrics["protocol"]["images"] == 11 and output.count("written to") == 1
    single = tmp_path / "single"
    words = ["--model", str(reference), "--out", str(single), "--config", str(config), *MORE_METRICS]
    assert main(["evaluate", *words]) == 0
    of_one = json.loads((single / "metrics.json").read_text())
    for name in ("trimap", "per_image", "bootstrap", "boundary", "calibration"):
        assert metrics[name] == of_one[name], name
    assert (out / "calibration.png").is_file()


def wait_for_step(process, step):
    """Read the launcher's output until a step was reported; return the process ids of what it started."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if f"step {step}:" in line:
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
            found = {}
            for pid in map(int, children.stdout.split()):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found[int(words[words.index("--distributed") + 1].rsplit(",", 1)[1])] = pid
            return found
    raise AssertionError(f"no step {step}: {lines} {process.stderr.read()}")


FAULT = {**RUN, "train.steps": 4000, "train.evaluate_every": 4000, "train.checkpoint_every": 5, "train.log_every": 1}


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_process_that_dies_hangs_or_is_preempted_ends_all_with_75(tmp_path, which, number) -> None:
    """SIGKILL: the machine is gone; SIGSTOP: it hangs; SIGTERM: preempted, so the state is saved by all."""
    config = write_config(tmp_path / "tiny.py", **FAULT, **{"train.timeout": 10.0})
    process = launch(config, "--workdir", tmp_path / "run", devices=1)
    pids = wait_for_step(process, 8)
    os.kill(pids[which], number)
    began = time.monotonic()
    code, output, errors = finish(process, seconds=120)
    assert code == 75, errors
    assert time.monotonic() - began < 60
    steps = [int(step) for step in re.findall(r"step (\d+):", output)] or [8]
    checkpoints = Checkpoints(tmp_path / "run" / CHECKPOINTS, read_only=True)
    newest = checkpoints.latest()
    assert newest >= 5
    if number == signal.SIGTERM:
        assert says(rf"stopped at step {newest} of 4000, which is saved", errors) == 1 and newest == max(steps)
    elif number == signal.SIGSTOP or which == 1:
        assert says("another process died or hangs: .*; start all of them again", errors) == 1
    else:  # JAX itself ends those whose first process is gone.
        assert "JAX distributed service detected fatal errors" in errors or says("another process died", errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_the_launcher_starts_again_and_the_run_goes_on(tmp_path, which) -> None:
    config = write_config(tmp_path / "tiny.py", **{**FAULT, "train.steps": 60})
    process = launch(config, "--workdir", tmp_path / "run", devices=1, options=("--restarts", 1))
    os.kill(wait_for_step(process, 8)[which], signal.SIGKILL)
    code, output, errors = finish(process)
    assert code == 0, errors
    assert "start 2 of at most 2" in errors and "resuming from step" in output
    straight = tmp_path / "straight"
    run_training(straight, tiny_config(**{**FAULT, "train.steps": 60, "train.devices": 1}))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(straight), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["copied", "split"])
@pytest.mark.parametrize("first", [1, 2])
def test_a_checkpoint_is_restored_by_another_number_of_processes(tmp_path, alone, first, shard) -> None:
    """From one process to two, and from two to one; the state of the two may be split over both."""
    reference, _ = alone(RUN["train.steps"])
    settings = {**RUN, "train.shard_state": shard}
    half = write_config(tmp_path / "half.py", **settings)
    # Stopped after two steps of four, so that the schedule of the learning rate is the same.
    half.write_text(half.read_text() + STOP_AFTER_TWO)
    whole = write_config(tmp_path / "whole.py", **settings)
    words = ("--workdir", tmp_path / "run")
    code, _, errors = finish(launch(half, *words, processes=first))
    assert code == 75 and says("stopped at step 2 of 4, which is saved", errors) == 1, errors
    code, output, errors = finish(launch(whole, *words, processes=3 - first))
    assert code == 0 and "resuming from step 2" in output, errors
    assert_same_numbers(tmp_path / "run", reference)


@pytest.mark.slow
def test_what_the_user_can_mend_is_said_once_and_ends_all_with_2(tmp_path) -> None:
    config = write_config(tmp_path / "tiny.py", **RUN)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    code, _, errors = finish(launch(config, "--workdir", tmp_path / "other", devices=1))
    assert code == 2 and says("is not empty and holds no config.json", errors) == 1
    assert errors.count("deeplab-jax:") == 1


@pytest.mark.parametrize(
    "where", ["here", "host,2,0", "host:port,2,0", "host:1,2", "host:1,2,2", "host:1,2,-1", ":1,1,0"]
)
def test_places_that_make_no_sense_are_refused(where) -> None:
    with pytest.raises(UserError, match=f"--distributed {where}: give none, auto, or HOST:PORT,COUNT,INDEX"):
        distributed.explicit(where)


def write_faulty_config(file, which, fault, **changes):
    """Write a config file with which one of two processes, `which`, meets a fault: statements that patch something."""
    write_config(file, **changes)
    patches = (f"if any(word.endswith(',2,{which}') for word in sys.argv):", *(f"    {line}" for line in fault))
    head = (
        "import sys",
        "from functools import partialmethod",
        "from deeplab_jax import checkpoint",
        "from deeplab_jax.data.sets import scenes",
        "from deeplab_jax.errors import UserError",
        "from deeplab_jax.evaluate import outputs",
        "from deeplab_jax.train import run",
        "def fail(*args, when=lambda *args, **options: True, otherwise=None, **options):",
        "    if when(*args, **options):",
        "        raise UserError('made up')",
        "    return otherwise(*args, **options)",
    )
    file.write_text("\n".join((*head, *patches, file.read_text())))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "fault", "saved"),
    [
        pytest.param(1, "scenes.Scenes.__getitem__ = fail", None, id="first image"),
        pytest.param(0, "run.Writers.__init__ = fail", None, id="writers"),
        pytest.param(
            0,
            "run.Writers.scalars = partialmethod("
            "fail, when=lambda *_, prefix: prefix == 'val', otherwise=run.Writers.scalars)",
            2,
            id="record of an evaluation",
        ),
        pytest.param(
            1,
            "handler = checkpoint.ocp.StandardCheckpointHandler; handler.save = partialmethod("
            "fail, when=lambda _, folder, **__: folder.parent.name.startswith('4'), otherwise=handler.save)",
            2,
            id="disk",
        ),
    ],
)
def test_what_fails_on_one_process_ends_all_with_2(tmp_path, which, fault, saved) -> None:
    config = write_faulty_config(tmp_path / "tiny.py", which, [fault], **RUN)
    code, _, errors = finish(launch(config, "--workdir", tmp_path / "run", devices=1))
    assert code == 2 and errors.count("deeplab-jax:") == says("made up", errors) == 1, errors
    checkpoints = Checkpoints(tmp_path / "run" / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == saved


TRAINS_WITH_A_FUNCTION = """
import sys
import jax
import numpy as np
from deeplab_jax import tasks
from deeplab_jax.distributed import run_as_one
from tests.support.tiny import tiny_config, tiny_models

where, workdir, case = sys.argv[1:]
answers = {"several values": lambda: np.ones(2), "true": lambda: True, "no": lambda: None}


def run():
    def function(step, metrics):
        print("called on", jax.process_index())
        return answers[case]() if step == 2 else None

    with tiny_models():
        config = tiny_config(**{"train.devices": 0, "train.timeout": 30.0})
        first = jax.process_index() == 0
        print("ended at", tasks.train(config, workdir, on_step=function if first else None)["step"])
    return 0


run_as_one(where, run)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("case", "ends"), [("several values", None), ("true", 2), ("no", 6)])
def test_a_function_of_the_first_process_alone_keeps_all_in_step(tmp_path, case, ends) -> None:
    """Its error and its answer reach the others, which have none; nobody waits for a watchdog."""
    port, file = free_port(), tmp_path / "program.py"
    file.write_text(TRAINS_WITH_A_FUNCTION)
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, file, f"127.0.0.1:{port},2,{index}", tmp_path / "run", case],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment({"JAX_COMPILATION_CACHE_DIR": ""}),
        )
        for index in (0, 1)
    ]
    found = [finish(process) for process in processes]
    errors = "".join(error for _, _, error in found)
    assert "another process died or hangs" not in errors and time.monotonic() - began < 120, errors
    assert "called on 1" not in found[1][1]
    if ends is None:
        assert [code for code, _, _ in found] == [1, 1], errors
        assert "ambiguous" in found[0][2] and "process 0 of 2 failed, and says why" in found[1][2]
        checkpoints = Checkpoints(tmp_path / "run" / CHECKPOINTS, read_only=True)
        assert checkpoints.latest() == 2
    else:
        assert [code for code, _, _ in found] == [0, 0], errors
        assert all(f"ended at {ends}" in output for _, output, _ in found)


@pytest.mark.slow
def test_a_signal_to_a_process_that_waits_for_data_has_all_save(tmp_path) -> None:
    fault = [
        "import os, signal, threading, time",
        "hangs = threading.Event()",
        "def read(self, index, wrapped=scenes.Scenes.__getitem__):",
        "    time.sleep(1000 * hangs.is_set())",
        "    return wrapped(self, index)",
        "def report(number, *args, wrapped=run.report):",
        "    values = wrapped(number, *args)",
        "    if number == 2:",
        "        hangs.set()",
        "        threading.Timer(5, os.kill, [os.getpid(), signal.SIGTERM]).start()",
        "    return values",
        "scenes.Scenes.__getitem__, run.report = read, report",
    ]
    config = write_faulty_config(tmp_path / "tiny.py", 1, fault, **{**FAULT, "train.checkpoint_every": 4000})
    code, _, errors = finish(launch(config, "--workdir", tmp_path / "run", devices=1))
    checkpoints = Checkpoints(tmp_path / "run" / CHECKPOINTS, read_only=True)
    newest = checkpoints.latest()
    assert code == 75 and says(f"stopped at step {newest} of 4000, which is saved", errors) == 1, errors
    assert errors.count("deeplab-jax:") == 1


@pytest.mark.slow
def test_a_prediction_that_one_process_cannot_write_ends_all_with_2(tmp_path, alone) -> None:
    reference, _ = alone(RUN["train.steps"])
    config = write_faulty_config(tmp_path / "tiny.py", 1, ["outputs.Outputs.write = fail"], **RUN)
    words = ("--model", reference, "--out", tmp_path / "out", "--save_predictions")
    code, _, errors = finish(launch(config, *words, devices=1, verb="evaluate"))
    assert code == 2 and errors.count("deeplab-jax:") == says("made up", errors) == 1, errors
    assert (tmp_path / "out" / "metrics.json").exists()  # A picture costs no metric.


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_damaged_for_all(tmp_path, alone) -> None:
    reference, _ = alone(RUN["train.steps"])
    shutil.copytree(reference, tmp_path / "run")
    fault = ["checkpoint.damage = lambda folder, part: 'made up' if folder.name == '4' else ''"]
    config = write_faulty_config(tmp_path / "tiny.py", 1, fault, **RUN)
    words = ("--workdir", tmp_path / "run", "--allow_config_change")
    code, output, errors = finish(launch(config, *words, devices=1))
    assert code == 0, errors
    assert "the checkpoint of step 4 is damaged (made up)" in output and "resuming from step 2" in output
    assert_same_numbers(tmp_path / "run", reference)


STOP_AFTER_TWO = """
import signal
from deeplab_jax.train import run


def reporting(number, *args, wrapped=run.report):
    values = wrapped(number, *args)
    if number == 2:
        signal.raise_signal(signal.SIGTERM)
    return values


run.report = reporting
"""


def run_alone(program):
    """Run a program that begins with the imports it needs; return its exit code and stderr."""
    lines = ("import os, signal, sys, time", "from deeplab_jax import distributed", *program)
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=environment({}), capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("index", first_fast([1, 0]))
def test_others_that_do_not_come_end_in_one_line(index) -> None:
    program = ["distributed.JOINING = 1.5", f"distributed.join('127.0.0.1:{free_port()},2,{index}')"]
    code, errors = run_alone(program)
    assert code == 75 and says(r"--distributed 127.0.0.1:\d+,2,\d: not all processes were there within 1.5 s", errors)
    assert "Check failed" not in errors and "*** " not in errors  # JAX's own end, with a stack trace.


def test_sigterm_stays_what_it_is_once_the_processes_have_joined() -> None:
    program = [
        f"distributed.join('127.0.0.1:{free_port()},1,0')",
        "signal.raise_signal(signal.SIGTERM)",
        "time.sleep(5)",
        "os._exit(0)",
    ]
    assert run_alone(program)[0] == -signal.SIGTERM


def test_explicit_places_are_read() -> None:
    assert distributed.explicit("node1:123,4,3") == {
        "coordinator_address": "node1:123",
        "num_processes": 4,
        "process_id": 3,
    }


def test_lines_with_names_of_no_encoding_reach_the_other_processes(monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", lambda x, **_: np.stack([x, x]))
    lines = [os.fsdecode(b"\xff.png"), "\u00e4"]
    assert distributed.listed(lines) == 2 * lines


def test_a_process_on_its_own_agrees_with_itself() -> None:
    counts = np.asarray([[2**40, 1]])
    assert distributed.is_first() and distributed.largest(3) == 3
    assert distributed.summed(counts).tolist() == [[2**40, 1]]
    assert distributed.listed(["a", "b"]) == ["a", "b"]
    assert list(distributed.own_share(3)) == [0, 1, 2]
    assert list(distributed.in_step(iter("ab"))) == [["a"], ["b"]]
    with pytest.raises(ZeroDivisionError), distributed.together():
        _ = 1 / 0
    assert not distributed.is_lost(ValueError("Gloo"))
    assert distributed.run_as_one("none", lambda: 3) == 3
