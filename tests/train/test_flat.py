"""Long runs hold no more at their end than after their warm-up: memory, open files and threads."""

import json
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, environment

SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("what", "count"),
    [
        pytest.param(*case, marks=SLOW)
        for case in (("train", 300), ("evaluate", 300), ("train", 10_000), ("evaluate", 10_000))
    ],
)
def test_memory_files_and_threads_stay(tmp_path, what, count) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.flat", what, str(count), str(tmp_path / "run")],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout.splitlines()[-1])
    assert len(samples) >= 50
    memory, files, threads = zip(*samples, strict=True)
    warm = len(samples) // 2
    print(f"{what}: {memory[warm]} -> {max(memory[warm:])} KiB, {files[warm]} files, {threads[warm]} threads")
    assert max(memory[warm:]) <= 1.02 * memory[warm]
    # Pools of threads still fill up to their size, and a reader ends a moment after its evaluation; but the second half
    # holds five evaluations and saves and half of all steps, and none of them may leave something behind.
    assert max(files[warm:]) < max(files[:warm]) + 5 and max(threads[warm:]) < max(threads[:warm]) + 5
