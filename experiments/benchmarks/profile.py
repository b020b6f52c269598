"""Profiles a training step by kinds of operations. The step is CamVid's fine-tuning step, which many experiments here
use.

The step is timed first, then traced. XLA's trace names the operations of the compiled program, and the program's text
names the part of the step from which each operation comes. On a CPU two operations may run at once, so the sum of the
kinds may be more than the time of a step.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.profiler import ProfileData

from configs.camvid import get_config
from deeplab_jax.analysis.program_text import Instruction, ProgramText, module_path, read_program
from deeplab_jax.train.from_config import build_mesh, build_model, build_optimizer, build_step
from deeplab_jax.train.program import build_program
from experiments.benchmarks.session import Session

CLASSES = 11
TRACED = 3  # steps
# These operations run other operations, which have times of their own.
CONTAINERS = ("while", "call", "conditional")


def _asked_by(*words: str) -> Callable[[ProgramText, Instruction], bool]:
    return lambda text, one: any(word in one.op_name for word in words)


KINDS: Mapping[str, Callable[[ProgramText, Instruction], bool]] = {
    # The loss resizes the logits, by products that belong to no module.
    "loss": lambda text, one: (
        any("/ops/loss" in name for name in text.files_of(one))
        or (not module_path(one.op_name) and (one.opcode == "dot" or "dot_general" in one.op_name))
    ),
    "sums of batch norm": lambda text, one: "/norm/" in one.op_name and "reduce" in one.op_name,
    "batch norm besides": _asked_by("/norm/"),
    "products of convolutions": _asked_by("dot_general", "conv_general_dilated"),
    "depthwise convolutions": _asked_by("/depthwise/conv"),
    "activations": _asked_by("select_n", "jit(relu", "/max", "/min"),
}
"""The kind of an operation is the first entry whose function returns True, or else "other"."""


def measure(session: Session) -> None:
    """Profile the step."""
    config = get_config("finetune,debug" if session.quick else "finetune")
    settings = {"crop": list(config.data.crop_size), "batch": config.train.batch_size}
    name = f"CamVid's fine-tuning step, {config.train.batch_size}x{'x'.join(map(str, config.data.crop_size))}"
    session.row("profile", name, settings, lambda **_: profile(config, steps=session.repeats))


def profile(config: Any, *, steps: int) -> dict[str, Any]:
    """Return images/s, the milliseconds of a step, and those of its operations by kind."""
    model = build_model(config, num_classes=CLASSES)
    mesh = build_mesh(config, model)
    optimizer, _ = build_optimizer(config, model)
    program = build_program(config, model, mesh, optimizer, build_step(config, model, optimizer))
    state = jax.jit(program.initial, out_shardings=program.shardings)(jax.random.key(0))
    rng, (height, width), images = np.random.default_rng(0), config.data.crop_size, config.train.batch_size
    batch = {
        "image": rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, (images, height, width), dtype=np.uint8),
    }
    compiled = program.step.lower(state, batch).compile()

    def step() -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - started

    step()
    seconds = statistics.median(step() for _ in range(steps))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                step()
        times: dict[str, float] = defaultdict(float)
        for name, nanoseconds in events(Path(folder)):
            times[name] += nanoseconds
    by_kind = sum_by_kind(read_program(compiled.as_text()), times)
    milliseconds = {kind: round(total / TRACED / 1e6, 1) for kind, total in by_kind.items()}
    return {"images_per_second": images / seconds, "milliseconds": 1000 * seconds, "by_kind": milliseconds}


def events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the name and the nanoseconds of each event in a trace."""
    for file in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    yield event.name, event.duration_ns


def sum_by_kind(text: ProgramText, times: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the operations' times by kind, the largest first. `times` has the time of each operation by
    its name.
    """
    sums: dict[str, float] = defaultdict(float)
    for instructions in text.computations.values():
        for one in instructions:
            if one.name in times and one.opcode not in CONTAINERS:
                kind = next((kind for kind, belongs in KINDS.items() if belongs(text, one)), "other")
                sums[kind] += times[one.name]
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
