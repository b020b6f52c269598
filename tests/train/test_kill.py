"""`kill -9` at random moments of a real process: what goes on is the run that was never killed, bit for bit."""

import random
import time

import pytest

from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.weights.folder import CHECKPOINTS
from tests.processes import finish, start, write_config
from tests.tiny import assert_same_arrays, read_checkpoint, read_metrics

EVERY = {"train.checkpoint_every": 3, "train.evaluate_every": 4, "data.options": {"size": (33, 33), "count": 20}}


def kill_somewhere(process, rng):
    """Kill a run within a few steps and 0.4 s; return whether it was in time, and the lines it printed."""
    lines, steps = [], rng.randint(1, 3)
    for line in process.stdout:
        lines.append(line)
        steps -= line.startswith("step ")
        if not steps:
            break
    time.sleep(rng.uniform(0, 0.4))
    process.kill()
    _, output, errors = finish(process)
    assert process.returncode in (-9, 0), errors
    return process.returncode == -9, lines + output.splitlines(keepends=True)


def run_until_done(words, workdir, *, kills, seed):
    """Kill so many times, then let it finish; return how many kills fell into a save."""
    rng, saving = random.Random(seed), 0
    while kills:
        killed, lines = kill_somewhere(start(*words), rng)
        assert killed, f"done with {kills} kills to come: {lines[-3:]}"
        kills -= 1
        saving += any("tmp" in path.name for path in (workdir / CHECKPOINTS).iterdir())
        with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
            newest = checkpoints.latest()
    code, output, errors = finish(start(*words))
    assert code == 0, errors
    assert newest is None or output.startswith(f"resuming from step {newest} in ")
    return saving


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(1, 0), *(pytest.param(10, seed, marks=[pytest.mark.slow, pytest.mark.timeout(900)]) for seed in range(1, 6))],
)
def test_a_run_that_is_killed_again_and_again_ends_as_the_one_that_was_not(
    tmp_path, compilation_cache, kills, seed
) -> None:
    steps = 40 * kills
    words = ["train", "--config", write_config(tmp_path / "tiny.py", **EVERY, **{"train.steps": steps}), "--workdir"]
    code, _, errors = finish(start(*words, tmp_path / "whole"))
    assert code == 0, errors
    saving = run_until_done([*words, tmp_path / "parts"], tmp_path / "parts", kills=kills, seed=seed)
    print(f"{kills} kills, {saving} of them in a save")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert_same_arrays(read_checkpoint(tmp_path / "parts", steps), read_checkpoint(tmp_path / "whole", steps))
