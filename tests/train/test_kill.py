"""`kill -9` of a real process, anywhere, in evaluations and in saves: what goes on is the run that was never killed."""

import random
import re
import time
from collections import Counter

import pytest

from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.weights.folder import CHECKPOINTS
from tests.support.processes import finish, start, write_config
from tests.support.tiny import assert_same_arrays, read_checkpoint, read_metrics

SAVE, EVALUATE = 3, 4  # steps
EVERY = {
    "train.checkpoint_every": SAVE,
    "train.evaluate_every": EVALUATE,
    "data.options": {"size": (33, 33), "count": 20},
}
ANYWHERE, IN_EVALUATION, IN_SAVE = "anywhere", "in an evaluation", "in a save"


def comes_before(aim, line):
    """Whether a line is the last one that a run prints before what a kill is aimed at."""
    found = re.match(r"step (\d+): (loss|validation)", line)
    if not found:
        return False
    evaluated_next = found[2] == "loss" and int(found[1]) % EVALUATE == 0
    saved_next = found[2] == "validation" or (int(found[1]) % SAVE == 0 and not evaluated_next)
    return {ANYWHERE: True, IN_EVALUATION: evaluated_next, IN_SAVE: saved_next}[aim]


def kill_somewhere(process, rng, aim):
    """Kill a run within a few steps and 0.4 s, or soon after a line; return whether it was in time, and its lines."""
    lines, left, seconds = [], *((rng.randint(1, 3), 0.4) if aim == ANYWHERE else (1, 0.05))
    for line in process.stdout:
        lines.append(line)
        left -= comes_before(aim, line)
        if not left:
            break
    time.sleep(rng.uniform(0, seconds))
    process.kill()
    _, output, errors = finish(process)
    assert process.returncode in (-9, 0), errors
    return process.returncode == -9, lines + output.splitlines(keepends=True)


def run_until_done(words, workdir, *, kills, seed):
    """Kill so many times, then let it finish; return how many kills fell into an evaluation and into a save."""
    rng, hits = random.Random(seed), Counter()
    for number in range(kills):
        killed, lines = kill_somewhere(start(*words), rng, (ANYWHERE, IN_EVALUATION, IN_SAVE)[number % 3])
        assert killed, f"done with {kills - number} kills to come: {lines[-3:]}"
        hits[IN_EVALUATION] += comes_before(IN_EVALUATION, lines[-1])
        hits[IN_SAVE] += any("tmp" in path.name for path in (workdir / CHECKPOINTS).iterdir())
        checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
        newest = checkpoints.latest()
    code, output, errors = finish(start(*words))
    assert code == 0, errors
    assert newest is None or output.startswith(f"resuming from step {newest} in ")
    return hits


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(1, 0), *(pytest.param(10, seed, marks=[pytest.mark.slow, pytest.mark.timeout(900)]) for seed in range(1, 6))],
)
def test_a_run_that_is_killed_again_and_again_ends_as_the_one_that_was_not(tmp_path, kills, seed) -> None:
    steps = 20 if kills == 1 else 40 * kills
    words = ["train", "--config", write_config(tmp_path / "tiny.py", **EVERY, **{"train.steps": steps}), "--workdir"]
    code, _, errors = finish(start(*words, tmp_path / "whole"))
    assert code == 0, errors
    hits = run_until_done([*words, tmp_path / "parts"], tmp_path / "parts", kills=kills, seed=seed)
    print(f"{kills} kills, {dict(hits)}")
    assert kills == 1 or (hits[IN_EVALUATION] and hits[IN_SAVE])
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert_same_arrays(read_checkpoint(tmp_path / "parts", steps), read_checkpoint(tmp_path / "whole", steps))
