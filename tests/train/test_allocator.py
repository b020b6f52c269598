"""What a training process keeps of the memory that it freed."""

import ctypes
import platform
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from deeplab_jax import distributed, tasks
from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.train import allocator, find_lr
from experiments.run import execute

# Page faults of a program whose temporaries have 30 MB: each page that the system gives costs one.
FAULTS = """
import resource, sys
from deeplab_jax.train.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(jax.grad(lambda x: jnp.sum(jnp.tanh(jnp.tanh(x @ x.T) @ x))))
x = jnp.ones((2000, 500))
for _ in range(3):
    jax.block_until_ready(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    jax.block_until_ready(step(x))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_next_step_takes_the_memory_that_the_last_one_freed(monkeypatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    def faults(how: str) -> float:
        return float(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    assert faults("keep") < faults("return") / 2


def test_settings_of_the_user_stay(monkeypatch) -> None:
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda name, value: calls.append((name, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    allocator.keep_freed_memory()
    assert calls == []
    monkeypatch.delenv("GLIBC_TUNABLES")
    allocator.keep_freed_memory()
    assert calls == [(-4, 0), (-1, -1), (-8, 1)]


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    allocator.keep_freed_memory()


@pytest.mark.parametrize("how", ["program", "command"])
def test_training_calls_it_before_jax_starts(monkeypatch, how: str, tmp_path) -> None:
    """`together` counts the processes, which starts JAX's threads."""
    calls: list[str] = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(distributed, "together", lambda: calls.append("together") or nullcontext())
    if how == "program":
        with pytest.raises(UserError, match="^config: no configuration is named; give --config"):
            tasks.train([], tmp_path)
    else:
        assert main(["train", "--config", "absent.py", "--workdir", str(tmp_path)]) == 2
    assert calls == ["keep", "together"]


def test_other_programs_that_train_call_it_first(monkeypatch, tmp_path) -> None:
    class Kept(Exception):
        pass

    def keep() -> None:
        raise Kept

    for module in (find_lr, execute):
        monkeypatch.setattr(module, "keep_freed_memory", keep)
    with pytest.raises(Kept):
        find_lr.find_lr(ConfigDict())
    with pytest.raises(Kept):
        execute.work(SimpleNamespace(name="job"), tmp_path, again=False)
