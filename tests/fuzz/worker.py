"""The process in which cases run: it says what it begins and how each ended, and may die at any of them."""

import faulthandler
import importlib
import json
import os
import re
import resource
import shutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from tests.fuzz.cases import PROGRAMS, Case, families, generator, sound_cases
from tests.support.memory import reset_peak, status

MAX_GROWTH = 512 * 2**20  # Bytes that one case may take beyond what the process has.
MAX_PIXELS = 2**22  # Of an image, so that the growth says something.
ADDRESS_SPACE = 12 * 2**30  # Beyond that, allocation fails instead of taking the machine down.
# libjpeg and libtiff print what they think of damaged files; no interface of OpenCV or Pillow keeps them from it.
REMARK = re.compile(r"(Corrupt|Premature end of|Invalid|Bogus|Unsupported) |Warning: unknown JFIF|[\w.]+: ")


def main(family: str, seed: int, first: int, last: int, folder: str, report: int) -> None:
    """Run the cases `first` to `last` of a family, and report each as a line of JSON to a file descriptor."""
    with os.fdopen(report, "w", encoding="utf-8") as channel:
        made = families()[family]
        work = Path(folder)
        printed = (work / "stdout").open("w+b"), (work / "stderr").open("w+b")
        os.dup2(printed[0].fileno(), 1)
        os.dup2(printed[1].fileno(), 2)
        faulthandler.enable(printed[1])
        with nullcontext() if made.alone else tiny_networks():
            (work / "seeds").mkdir(exist_ok=True)
            seeds = made.seeds(work / "seeds")
            warm_up(sound_cases(made, seeds, work / "sound"), printed)
            limit_memory()
            say(channel, ready=True)
            for index in range(first, last):
                (work / str(index)).mkdir()
                case = made.make(seeds, work / str(index), generator(family, seed, index))
                say(channel, begin=index, inputs=case.inputs, words=case.words)
                code, fault = run(case, printed)
                if not fault:  # Otherwise the files are kept.
                    shutil.rmtree(work / str(index), ignore_errors=True)
                say(channel, end=index, code=code, fault=fault)


def warm_up(cases: Iterable[Case], printed: Any) -> None:
    """Import and compile what the cases need, so that none of them has to be given more time than the others."""
    for case in cases:
        code, fault = run(case, printed)
        if code not in (0, 2):
            raise RuntimeError(f"{case.words} on files that are whole: {fault}")


def tiny_networks() -> AbstractContextManager[None]:
    """Return the context in which the networks of `tests.support.tiny` are known; importing it brings JAX."""
    from tests.support.tiny import tiny_models

    return tiny_models()


def say(channel: TextIO, **content: Any) -> None:
    """Write a line at once."""
    channel.write(json.dumps(content) + "\n")
    channel.flush()


def limit_memory() -> None:
    """Let allocations fail that are far beyond what any case needs."""
    used = int(status("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))


def run(case: Case, printed: Any) -> tuple[int, str]:
    """Run one case, and return its exit code and what is wrong with its outcome, "" for nothing."""
    program = importlib.import_module(PROGRAMS[case.program]).main
    for file in printed:
        file.seek(0)
        file.truncate()
    before = reset_peak()
    code, trace = -1, ""
    try:
        code = program(case.words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        trace = traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    growth = status("VmHWM") - before
    texts = [Path(file.name).read_text("utf-8", errors="replace") for file in printed]
    return code, judge(code, trace, texts[0], texts[1], growth)


def judge(code: int, trace: str, stdout: str, stderr: str, growth: int) -> str:
    """Say what a case did that it must not do."""
    if trace:
        return trace
    if code not in (0, 2):
        return f"exit code {code}: {stderr[-2000:]}"
    if "Traceback" in stdout + stderr:
        return f"a traceback was printed: {stdout[-2000:]} {stderr[-2000:]}"
    if growth > MAX_GROWTH:
        return f"took {growth / 2**20:.0f} MiB"
    if code == 2 and not (stdout + stderr).strip():
        return "exit code 2 without a word"
    strange = [line for line in stderr.splitlines() if line.strip() and not is_complaint(line)]
    return f"printed to stderr: {strange[:5]}" if strange else ""


def is_complaint(line: str) -> bool:
    """Whether a line is one of the command line's own (it says so, or names what was left out), or a decoder's."""
    return line.startswith("deeplab-jax: ") or "; left out" in line or REMARK.match(line) is not None


def run_arguments(words: Sequence[str]) -> None:
    """Run what the watcher asks for."""
    family, seed, first, last, folder, report = words
    main(family, int(seed), int(first), int(last), folder, int(report))


if __name__ == "__main__":
    run_arguments(sys.argv[1:])
