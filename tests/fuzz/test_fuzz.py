"""The fuzzer, a few hundred damaged files of every family; and what it must notice."""

from pathlib import Path

import pytest

from tests.fuzz import watch
from tests.fuzz.__main__ import main
from tests.fuzz.cases import families, generator
from tests.fuzz.worker import MAX_GROWTH, judge


@pytest.mark.parametrize("family", ("pairs", "foreign"))
def test_some_hundred_damaged_files(tmp_path: Path, family: str) -> None:
    assert main(["--count", "200", "--seed", "7", "--keep", str(tmp_path), "--family", family]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_damaged_files(tmp_path: Path) -> None:
    assert main(["--count", "20000", "--seed", "8", "--keep", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_processes_of_their_own(tmp_path: Path) -> None:
    """Nothing shared with the fuzzer: the exit code and what is printed are the operating system's."""
    names = [name for name, family in families().items() if family.alone]
    made: dict[str, object] = {}
    for index in range(50):
        name = names[index % len(names)]
        if name not in made:
            (tmp_path / name).mkdir()
            made[name] = families()[name].seeds(tmp_path / name)
        folder = tmp_path / f"case{index}"
        folder.mkdir()
        case = families()[name].make(made[name], folder, generator(name, 9, index))
        code, stdout, stderr = watch.alone(case)
        assert not judge(code, "", stdout, stderr, 0), (case, stderr)


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
    found = list(watch.outcomes(what, 1, 0, 3, tmp_path))
    assert [one.index for one in found] == [0, 1, 2]
    assert [bool(one.fault) for one in found] == [False, True, False]
    assert sign in found[1].fault and (tmp_path / f"{what}_1_1" / "input").read_bytes() == b"1"


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    family = families()["pairs"]
    seeds = family.seeds(tmp_path)
    contents = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        family.make(seeds, tmp_path / name, generator("pairs", seed, 5))
        contents.append([file.read_bytes() for file in sorted((tmp_path / name).rglob("*.png"))])
    assert contents[0] == contents[1] != contents[2]
