"""Runs of the tiny network as processes of their own, which tests kill, watch, or start in odd surroundings."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
import atexit
from tests.support.tiny import tiny_config, tiny_models

models = tiny_models()
models.__enter__()
atexit.register(models.__exit__, None, None, None)  # Which keeps them until then.


def get_config(arg=None):
    return tiny_config(**{changes!r})
"""


def write_config(file: Path, **changes: Any) -> Path:
    """Write a config file that is `tiny_config` with changes and brings the tiny network along."""
    file.write_text(CONFIG.replace("{changes!r}", repr(changes)), encoding="utf-8")
    return file


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment, in which the package is found and every program cached; a None removes."""
    wanted = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **changes,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def start(
    *words: Any, python: str = sys.executable, module: str = "deeplab_jax", **changes: str | None
) -> subprocess.Popen[str]:
    """Start the command line, or another module; keywords change its environment."""
    return subprocess.Popen(
        [python, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment(changes),
    )


def finish(process: subprocess.Popen[str], *, seconds: float = 240) -> tuple[int, str, str]:
    """Wait for a process; return its exit code and what it printed to stdout and stderr."""
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output, errors
