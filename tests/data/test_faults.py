"""Examples that cannot be read, and readers that hang or die: named in time, or passed over the same way twice."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.config import load_config
from deeplab_jax.data.loader import examples_in_order, skipped_examples
from deeplab_jax.errors import StuckError, UserError
from deeplab_jax.labels import LabelSet, colormap
from tests.support.batches import batches_of

SIZE = (33, 33)
OPTIONS = {"batch_size": 2, "crop_size": SIZE, "scale_range": (1.0, 1.0), "flip": False, "fill": (0, 0, 0)}


@dataclasses.dataclass(frozen=True)
class Faulty:
    """Examples whose label is their index; some are bad, and at some the reading process hangs or dies."""

    count: int = 10
    bad: tuple[int, ...] = ()
    hangs: int = -1
    dies: int = -1
    name: str = "faulty"
    labels = LabelSet(tuple(map(str, range(10))), colormap(10))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise UserError(f"{index}.png: truncated")
        if index == self.hangs:
            time.sleep(60)
        if index == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        image = np.full((*SIZE, 3), index, np.uint8)
        return {"image": image, "label": np.full(SIZE, index, np.uint8), "name": str(index)}

    def describe(self, index):
        return f"{index}.png", f"{index}_mask.png"


def seen(batches):
    return list(itertools.chain(*(batch["label"][:, 0, 0].tolist() for batch in batches)))


def skipping(source, *, share=1.0, **options):
    skipped = skipped_examples(source, on_error="skip", max_skipped=share)
    return seen(batches_of(source, **{**OPTIONS, "steps": 10, "skipped": skipped, **options})), skipped


def test_a_bad_example_stops_with_its_name() -> None:
    source = Faulty(bad=(4,))
    skipped = skipped_examples(source, on_error="stop", max_skipped=0.5)
    with pytest.raises(UserError) as caught:
        list(batches_of(source, steps=10, skipped=skipped, **OPTIONS))
    assert str(caught.value) == "4.png: truncated"


def test_bad_examples_are_replaced_by_the_next_and_listed_once() -> None:
    healthy = seen(batches_of(Faulty(), steps=10, **OPTIONS))
    order, skipped = skipping(Faulty(bad=(4, 5, 9)))
    assert order == [{4: 6, 5: 6, 9: 0}.get(index, index) for index in healthy]
    assert skipped.lines() == ["4.png: truncated", "5.png: truncated", "9.png: truncated"]


@pytest.mark.parametrize("start", [1, 7])
def test_what_replaces_does_not_depend_on_the_start_or_the_threads(start) -> None:
    source = Faulty(bad=(0, 3))
    whole, _ = skipping(source)
    assert skipping(source, start=start)[0] == whole[2 * start :]
    assert skipping(source, threads=1)[0] == whole


def test_too_many_bad_examples_stop_and_are_named() -> None:
    with pytest.raises(UserError, match=r"3 of 10 examples of faulty .*max_skipped=0\.2 allows: \d\.png: truncated"):
        skipping(Faulty(bad=(1, 2, 3)), share=0.2)
    assert skipping(Faulty(bad=(1, 2)), share=0.2)[1].lines() == ["1.png: truncated", "2.png: truncated"]
    with pytest.raises(UserError, match="not one of 10 examples can be read"):
        skipping(Faulty(bad=tuple(range(10))))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="on_error='skpi': did you mean skip"):
        skipped_examples(Faulty(), on_error="skpi", max_skipped=0.5)
    with pytest.raises(UserError, match=r"max_skipped=1\.5: give a share of the examples"):
        load_config(["--config=configs/scenes.py", "--config.data.max_skipped=1.5"])


def test_a_thread_that_hangs_is_named_in_time(monkeypatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _: released.wait(60))
    try:
        began = time.monotonic()
        with pytest.raises(StuckError, match=r"no data for 0\.5 s: a thread hangs in reading .*\b7\.png.* \(step \d\)"):
            list(batches_of(Faulty(hangs=7), steps=5, timeout=0.5, **OPTIONS))
        with pytest.raises(StuckError, match=r"a thread hangs in reading 7\.png; check that"):
            list(examples_in_order(Faulty(hangs=7), timeout=0.5))
        assert time.monotonic() - began < 30
    finally:
        released.set()


def test_a_loader_that_is_left_ends_its_threads() -> None:
    before = threading.active_count()
    for _ in range(3):
        iterator = batches_of(Faulty(), steps=10, **OPTIONS)
        next(iterator)
        iterator.close()
        assert len(list(examples_in_order(Faulty()))) == 10
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threading.active_count() <= before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "place", "seconds", "message"),
    [
        (
            "dies",
            1,
            100.0,
            r"worker process 2 of 2 died .*exit code -9\), reading ahead from .*\.png.*\(step \d\); if memory",
        ),
        ("hangs", 2, 30.0, r"no data for 30 s: worker process 1 of 2 hangs in reading .*\b{index}\.png.*\(step 3\)"),
    ],
)
def test_a_worker_process_that_dies_or_hangs_is_named_in_time(fault, place, seconds, message) -> None:
    """They take batches in turn: the one that reads the batch of that place, from 0, is faulty."""
    index = seen(batches_of(Faulty(), steps=5, **OPTIONS))[place * OPTIONS["batch_size"]]
    began = time.monotonic()
    with pytest.raises(UserError, match=message.replace("{index}", str(index))):
        list(batches_of(Faulty(**{fault: index}), steps=5, workers=2, timeout=seconds, **OPTIONS))
    assert time.monotonic() - began < 100


@pytest.mark.slow
def test_worker_processes_replace_alike_and_end_with_their_parent(tmp_path) -> None:
    source = Faulty(bad=(0, 3))
    assert skipping(source, workers=2)[0] == skipping(source)[0]
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.data.test_faults import *\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing\n"
        "    batches = batches_of(Faulty(), steps=100000, workers=2, **OPTIONS)\n"
        "    next(batches), next(batches)  # One of each worker, so both have started.\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        for worker in workers:
            os.kill(worker, signal.SIGTERM)  # Schedulers send it to all; the trainer needs one more batch.
        time.sleep(1)
        assert all(Path(f"/proc/{worker}/status").exists() for worker in workers)
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/status").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}/status").exists() for worker in workers)
