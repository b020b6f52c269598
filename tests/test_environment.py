"""Odd surroundings, on the real command line: locales, names, homes, clocks, and folders that cannot be written."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeplab_jax import cli as command_line
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.weights.folder import CHECKPOINTS
from tests.support.processes import ROOT, finish, start, write_config
from tests.support.tiny import assert_same_arrays, read_checkpoint, read_metrics

# Without UTF-8 mode and without the coercion of locales, Python takes "C" at its word: ASCII.
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}

BACKWARDS = """
import itertools, time
real, calls = time.time, itertools.count()
time.time = lambda: real() - 3600.0 * next(calls)
"""


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A run in usual surroundings."""
    return train_in(tmp_path_factory.mktemp("usual"))


def train_in(folder, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    words = ["train", "--config", write_config(folder / "tiny.py"), "--workdir", folder / "run"]
    code, _, errors = finish(start(*words, **changes))
    assert (code, errors) == (0, "")
    return folder / "run"


def assert_trains(usual, folder, **changes) -> None:
    assert read_metrics(train_in(folder, **changes)) == read_metrics(usual)
    assert_same_arrays(read_checkpoint(folder / "run", 6), read_checkpoint(usual, 6))


def test_names_with_spaces_and_other_scripts(tmp_path) -> None:
    run = train_in(tmp_path / "mes données 数据", LC_ALL="C")
    assert read_metrics(run)[-1]["step"] == 6 and read_checkpoint(run, 6)


@pytest.mark.slow
def test_a_locale_that_is_ascii_and_nothing_else(usual, tmp_path) -> None:
    assert_trains(usual, tmp_path / "with spaces", **ASCII)
    words = ["train", "--config", tmp_path / "with spaces" / "tiny.py", "--workdir", tmp_path / "données"]
    code, _, errors = finish(start(*words, **ASCII))
    (line,) = errors.splitlines()
    assert code == 2 and "a name that the locale cannot spell; set LC_ALL=C.UTF-8" in line
    assert not (tmp_path / "données").exists()


@pytest.mark.slow
def test_a_home_that_cannot_be_written(usual, tmp_path) -> None:
    (tmp_path / "file").touch()
    unwritable = str(tmp_path / "file" / "home")
    assert_trains(usual, tmp_path, HOME=unwritable, XDG_CACHE_HOME=None, JAX_COMPILATION_CACHE_DIR=None, TMPDIR=None)


def test_no_home_at_all(monkeypatch) -> None:
    """As in a container whose user has no entry in the list of users."""

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    command_line.enable_compilation_cache()


@pytest.mark.slow
def test_a_clock_that_jumps_backwards(usual, tmp_path) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(BACKWARDS)
    assert_trains(usual, tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path / "early"), str(ROOT)]))


@pytest.mark.slow
def test_nothing_is_written_where_the_package_is_installed(usual, tmp_path) -> None:
    """So that the installation may be read-only; as root, who may write everywhere, its files' contents tell."""
    installed = tmp_path / "installed"
    for part in ("deeplab_jax", "tests"):
        shutil.copytree(ROOT / part, installed / part, ignore=shutil.ignore_patterns("__pycache__"))
    before = contents(installed)
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert_trains(usual, tmp_path, PYTHONPATH=str(installed), PYTHONDONTWRITEBYTECODE="1")
        assert contents(installed) == before
    finally:
        for path in before:
            path.chmod(0o755)


def contents(folder: Path) -> dict[Path, str]:
    """The hash of every file below a folder; folders have none."""
    paths = sorted(folder.rglob("*"))
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


@pytest.mark.slow
def test_a_process_that_sigterm_stops_ends_with_75_and_goes_on(usual, tmp_path) -> None:
    config = write_config(tmp_path / "tiny.py", **{"train.steps": 100_000, "train.evaluate_every": 100_000})
    words = ["train", "--config", config, "--workdir", tmp_path / "run"]
    process = start(*words)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 1:"):
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert code == 75 and time.monotonic() - began < 60
    (line,) = errors.splitlines()
    assert line.startswith("deeplab-jax: stopped at step ") and line.endswith("the same command goes on from there")
    checkpoints = Checkpoints(tmp_path / "run" / CHECKPOINTS, read_only=True)
    step = checkpoints.latest()
    second = start(*words)
    assert second.stdout is not None and second.stdout.readline().startswith(f"resuming from step {step} in ")
    second.kill()
    finish(second)


def test_a_process_with_a_thread_that_hangs_ends_with_its_code() -> None:
    program = (
        "import threading, time; from deeplab_jax.errors import StuckError, end_process; "
        "threading.Thread(target=time.sleep, args=(100,)).start(); StuckError('hangs'); print('whole'); end_process(2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "whole\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "words"), [("deeplab_jax", ("train",)), ("experiments.demo", ())], ids=["train", "demo"]
)
def test_a_process_whose_reader_hangs_ends(tmp_path, module, words) -> None:
    """The thread that hangs does not keep it alive: 2 and a line, and the step before is saved."""
    config = write_config(tmp_path / "tiny.py", **{"data.timeout": 10.0, "train.checkpoint_every": 100})
    hanging = (
        "\nfrom deeplab_jax.data.sets.scenes import Scenes\nread, calls = Scenes.__getitem__, iter(range(9))\n"
        "import time\n\n\ndef hang(self, index):\n    if next(calls, None) is None:\n        time.sleep(10_000)\n"
        "    return read(self, index)\n\n\nScenes.__getitem__ = hang\n"
    )
    config.write_text(config.read_text() + hanging)
    code, _, errors = finish(start(*words, "--config", config, "--workdir", tmp_path / "run", module=module))
    (line,) = errors.splitlines()
    assert code == 2 and "no data for 10 s: a thread hangs in reading" in line
    checkpoints = Checkpoints(tmp_path / "run" / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() in (2, 3, 4)
