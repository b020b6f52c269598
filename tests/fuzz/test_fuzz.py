"""The fuzzer, a hundred damaged files of every family; and what it must notice."""

import itertools
import time
from pathlib import Path

import pytest

from tests.fuzz import watch
from tests.fuzz.__main__ import main
from tests.fuzz.cases import PROGRAMS, Case, families, generator, sound_cases
from tests.fuzz.worker import MAX_GROWTH, judge, tiny_networks


@pytest.mark.parametrize("family", ("pairs", "foreign"))
def test_a_hundred_damaged_files(tmp_path: Path, family: str) -> None:
    assert main(["--count", "100", "--seed", "7", "--keep", str(tmp_path), "--family", family]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_damaged_files(tmp_path: Path) -> None:
    assert main(["--count", "20000", "--seed", "8", "--keep", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_processes_of_their_own(tmp_path: Path) -> None:
    """Nothing shared with the fuzzer: the exit code, the time and what is printed are the operating system's.

    A process imports and compiles before it reads, so the bounds are on top of what the same verb takes on files that
    are whole.
    """
    with tiny_networks():
        made = {name: family.seeds(make_folder(tmp_path / name)) for name, family in families().items()}
        usual: dict[tuple[str, str], watch.Ended] = {}
        for index, name in zip(range(50), itertools.cycle(families()), strict=False):
            family = families()[name]
            case = family.make(made[name], make_folder(tmp_path / f"case{index}"), generator(name, 9, index))
            if (name, case.call) not in usual:
                sound = sound_cases(family, made[name], tmp_path / f"sound{index}")
                whole = next(one for one in sound if one.call == case.call)
                usual[name, case.call] = watch.alone(whole, tiny=not family.alone)
            before = usual[name, case.call]
            found = watch.alone(case, tiny=not family.alone, seconds=before.seconds + watch.SECONDS)
            growth = found.memory - before.memory
            assert not judge(found.code, "", found.stdout, found.stderr, growth), (case, found, before)


def make_folder(folder: Path) -> Path:
    """Make a folder, and return it."""
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "growth", "fault"),
    [
        (0, "", "", 0, ""),
        (2, "", "deeplab-jax: a line\n", 0, ""),
        (2, "", "", 0, "without a word"),
        (1, "", "deeplab-jax: a line\n", 0, "exit code 1"),
        (2, "", "Traceback (most recent call last):\n", 0, "a traceback"),
        (2, "", "deeplab-jax: a line\nand another of nobody\n", 0, "printed to stderr"),
        (0, "", "", MAX_GROWTH + 1, "took 512 MiB"),
    ],
)
def test_what_counts_as_a_fault(code: int, stdout: str, stderr: str, growth: int, fault: str) -> None:
    found = judge(code, "", stdout, stderr, growth)
    assert fault in found and bool(found) == bool(fault)


@pytest.mark.parametrize(("what", "sign"), [("hang", "or hung"), ("abort", "or hung"), ("raise", "KeyError: 'oops'")])
def test_a_case_that_hangs_dies_or_raises_is_found_and_the_next_one_runs(tmp_path, monkeypatch, what, sign) -> None:
    """A program of the tests' own stands in for the command line, in the worker as well."""
    monkeypatch.setattr(watch, "SECONDS", 1)
    monkeypatch.setattr(watch, "START_SECONDS", 60)
    monkeypatch.setattr(watch, "WORKER", "tests.fuzz.faulty")
    began = time.monotonic()
    found = list(watch.outcomes(what, 1, 0, 3, tmp_path))
    assert time.monotonic() - began < watch.START_SECONDS, "the first case has no more time than the others"
    assert [one.index for one in found] == [0, 1, 2]
    assert [bool(one.fault) for one in found] == [True, False, True]
    assert sign in found[2].fault and (tmp_path / f"{what}_1_2" / "input").read_bytes() == b"2"


def test_a_process_of_its_own_is_measured_and_ends_in_time(monkeypatch) -> None:
    """Python's `timeit` stands in for the command line."""
    monkeypatch.setitem(PROGRAMS, "timeit", "timeit")
    memory, patience = "b = b'1' * 2**28", "__import__('time').sleep(60)"
    found = watch.alone(Case(["-n1", "-s", memory, "__import__('time').sleep(0.1)"], program="timeit"), tiny=False)
    assert found.code == 0 and "1 loop" in found.stdout and 2**28 < found.memory < 2**29
    found = watch.alone(Case(["-n1", patience], program="timeit"), tiny=False, seconds=1)
    assert found.code == -9 and 1 <= found.seconds < 2


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    family = families()["pairs"]
    seeds = family.seeds(tmp_path)
    contents = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        family.make(seeds, tmp_path / name, generator("pairs", seed, 5))
        contents.append([file.read_bytes() for file in sorted((tmp_path / name).rglob("*.png"))])
    assert contents[0] == contents[1] != contents[2]
