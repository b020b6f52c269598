"""A worker whose cases 0 and 2 hang, die or raise, for the test of the watcher."""

import importlib
import os
import sys
import time
from pathlib import Path
from types import ModuleType

from tests.fuzz import cases, worker


def program(words: list[str]) -> int:
    """Do what the faulty cases are to do."""
    kind, content = words[0], Path(words[1]).read_bytes()
    if content in (b"0", b"2"):
        if kind == "hang":
            time.sleep(600)
        if kind == "abort":
            os.abort()
        raise KeyError("oops")
    return 0


def family(kind: str) -> cases.Family:
    """Return a family of one small file for each case."""

    def make(seeds: object, folder: Path, rng: object) -> cases.Case:
        (folder / "input").write_text(folder.name)
        return cases.Case([kind, str(folder / "input")], 1, "faulty")

    return cases.Family(lambda folder: None, make, 1)


if __name__ == "__main__":
    module = ModuleType("faulty_program")
    module.main = program  # type: ignore[attr-defined]
    sys.modules["faulty_program"] = module
    assert importlib.import_module("faulty_program") is module
    cases.PROGRAMS["faulty"] = "faulty_program"
    worker.families = lambda: {sys.argv[1]: family(sys.argv[1])}  # type: ignore[assignment]
    worker.run_arguments(sys.argv[1:])
