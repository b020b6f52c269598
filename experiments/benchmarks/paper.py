"""Trainings as large as the papers', without their data: one real step, its memory, the hours that all steps take.

The batches are random; everything else is what `experiments.run --regime paper` trains. Where a step does not fit into
the machine's memory at once, it runs in micro-batches, and the row says so.
"""

import math
import os
import time
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.from_config import build_model, build_optimizer, build_step
from deeplab_jax.train.program import jit_step
from deeplab_jax.train.state import create_state
from experiments.benchmarks import machine, memory
from experiments.benchmarks.children import run_child
from experiments.benchmarks.session import Session
from experiments.regimes import REGIMES
from experiments.run.resolve import Resolved, Settings, resolve
from experiments.tables import TABLES

# (table, row): one for each kind of network, crop and output stride.
TRAININGS = (
    ("v3_table2", "resnet_101-last_block_7"),
    ("v3_table6", "eval_os_16"),
    ("v3_table10", "train_os_8-eval_os_8"),
    ("v3plus_table2", "3x3_256_x_2"),
    ("v3plus_table5", "eval_os_16-decoder-sc"),
    ("v3plus_table7", "x_71-decoder"),
)
QUICK = ("v3plus_table2", "3x3_256_x_2")
CLASSES = {"voc": VOC.num_classes, "cityscapes": CITYSCAPES.num_classes}
SHARE = 0.8  # A program may plan this share of the memory; the rest of the process takes some.


def measure(session: Session) -> None:
    """Make one step of each training."""
    for table, row in (QUICK,) if session.quick else TRAININGS:
        settings = {"table": table, "row": row, "scale": "scenes" if session.quick else "paper"}
        session.row("paper", f"{table}/{row}", settings, partial(run_child, "paper"))


def child(table: str, row: str, scale: str) -> dict[str, Any]:
    """Make a step in this process.

    Returns:
      `network` and `output_stride`, the `batch` and `crop` of a step, the `steps` of a training; `parameters` and
      `multiply_adds` (exact, of one crop); `planned_mib`, what XLA plans for a whole batch at once, and
      `micro_batches`, into how many the batch had to be split; of the step that was made: `seconds`, `loss` and
      `peak_mib`; `hours` of a training at that pace.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    config = training(table, row, scale)
    t, (height, width) = config.train, config.data.crop_size
    model = build_model(config, num_classes=CLASSES.get(config.data.name, VOC.num_classes))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (t.batch_size, height, width, 3), np.uint8),
        "label": rng.integers(0, model.num_classes, (t.batch_size, height, width), np.uint8),
    }
    optimizer, _ = build_optimizer(config, model)
    initial = partial(create_state, model=model, optimizer=optimizer, size=(height, width), ema=t.ema_decay > 0)
    key = jax.random.key(0)
    program, planned, parts = fitting(
        partial(step_program, config, model, optimizer), jax.eval_shape(initial, key), batch
    )
    state = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 0})(key)
    start = time.perf_counter()
    _, metrics = program(state, jax.device_put(batch))
    loss = float(metrics["loss"])
    seconds = time.perf_counter() - start
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of the first step is {loss}")
    return {
        "network": config.model.name,
        "output_stride": model.output_stride,
        "batch": t.batch_size,
        "crop": [height, width],
        "steps": t.steps,
        "parameters": parameters,
        "multiply_adds": multiply_adds(model, height, width, counting="exact").total,
        "planned_mib": planned,
        "micro_batches": parts,
        "seconds": round(seconds, 2),
        "loss": loss,
        "peak_mib": memory.device_peak("ours") or round(memory.resident_peak()),
        "hours": round(t.steps * seconds / 3600, 1),
    }


def training(table: str, row: str, scale: str) -> ConfigDict:
    """Return the training configuration of a row."""
    found = resolve(TABLES[table].named_rows()[row], TABLES[table], REGIMES[scale], Settings())
    assert isinstance(found, Resolved), found
    return found.config


def step_program(config: ConfigDict, model: Segmenter, optimizer: Any, parts: int, state: Any, batch: Any) -> Any:
    """Return the compiled step of a configuration, its batch in `parts` micro-batches."""
    config = config.copy_and_resolve_references()
    config.train.accumulate = parts
    step = build_step(config, model, optimizer)
    return jit_step(step, jax.devices()[0]).lower(state, batch).compile()


def fitting(program: Any, state: Any, batch: dict[str, np.ndarray]) -> tuple[Any, float, int]:
    """Return the step in as few micro-batches as fit, the MiB planned for the whole batch at once, and their number."""
    size = len(batch["image"])
    whole = program(1, state, batch)
    planned = needed = memory.planned_mib(whole)
    compiled, parts = whole, 1
    while needed > SHARE * available_mib() and parts < size:
        # The plan shrinks almost with the micro-batch, so few are tried.
        wanted = parts * needed / (SHARE * available_mib())
        parts = next(
            part for part in range(parts + 1, size + 1) if size % part == 0 and (part >= wanted or part == size)
        )
        compiled = program(parts, state, batch)
        needed = memory.planned_mib(compiled)
    return compiled, planned, parts


def available_mib() -> float:
    """Return the memory of the device that runs the step, in MiB."""
    if machine.platform() == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    return jax.devices()[0].memory_stats()["bytes_limit"] / 2**20
