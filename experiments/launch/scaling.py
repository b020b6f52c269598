"""How data-parallel training scales: a model of a step over several devices, and its check on this machine.

    python -m experiments.launch.scaling --out experiments/results/scaling.json --write experiments/launch/SCALING.md

The check starts one and then two processes with a core each, which train the demo's network, and holds their step times
against what the model makes of one process alone and of the measured rate of an all-reduce. Run it on an idle machine.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax import distributed
from deeplab_jax.analysis.compiled import count_collectives
from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.analysis.program_text import read_program
from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.provenance import versions
from deeplab_jax.train.from_config import build_model, build_optimizer, build_step
from deeplab_jax.train.sharding import make_mesh, own_rows, place_batch, replicated
from deeplab_jax.train.state import create_state
from experiments.benchmarks.children import affinity
from experiments.launch.local import free_port
from experiments.output import Section, add_write, markdown_table, write_json
from experiments.program import exits, parser_of

SECTION = Section("<!-- scaling:begin -->", "<!-- scaling:end -->")
CONFIG = "configs/scenes.py"
STEPS = 12  # timed, after one that compiles
SUMS = 20  # timed all-reduces
# (processes, images of a step over all of them): alone with what a process has in the two others, then these.
RUNS = ((1, 2), (1, 4), (2, 4), (2, 8))
# What the page tells of: networks of the papers' scale, and devices and links as their makers describe them.
NETWORKS = ("deeplabv3_mobilenet_v2", "deeplabv3_resnet101_beta", "deeplabv3plus_xception65")
RATES = {"10 Gbit Ethernet": 1.25e9, "100 Gbit InfiniBand": 12.5e9, "NVLink, 300 GB/s": 300e9}
DEVICE = 50e12  # operations a second that a device is taken to achieve; an assumption, not a measurement
PASSES = 3  # forward, gradient of the maps, gradient of the kernels
BATCH, SIDE = 16, 513
LEAST = 0.5  # Efficiency below which another device is not worth it.


@dataclass(frozen=True)
class Link:
    """What an all-reduce costs: bytes a second that a device puts out, and seconds for each that is started."""

    rate: float
    latency: float = 0.0


def step_seconds(devices: int, *, compute: float, summed: float, sums: int, link: Link) -> float:
    """Return the seconds of a step without overlap of computing and sending.

    Args:
      devices: over which images are split.
      compute: seconds of one device for its own images.
      summed: bytes that are all-reduced.
      sums: all-reduces.
      link: between the devices; a ring moves `2 (n - 1) / n` of the bytes over each.
    """
    if devices == 1:
        return compute
    return compute + 2 * (devices - 1) / devices * summed / link.rate + sums * link.latency


def most_devices(*, image: float, batch: int, summed: float, rate: float) -> int:
    """Return the most devices, powers of two up to one for each image, that still work at `LEAST` of what one does.

    `image` is the seconds of one image on one device, `rate` that of a `Link` without latency.
    """
    best = devices = 1
    while (devices := devices * 2) <= batch:
        own = image * batch / devices
        if own / step_seconds(devices, compute=own, summed=summed, sums=0, link=Link(rate)) >= LEAST:
            best = devices
    return best


@exits
def main(argv: Sequence[str] | None) -> None:
    """Measure, and write the page."""
    parser = parser_of("launch.scaling", __doc__)
    default = Path("experiments/results/scaling.json")
    parser.add_argument("--out", type=Path, default=default, help="file of the measurements")
    add_write(parser, "experiments/launch/SCALING.md")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(**json.loads(args.child))), flush=True)
        return
    if not args.out.exists():
        if len(os.sched_getaffinity(0)) < 2:
            raise UserError("the check needs two processor cores; this process may use one")
        write_json(args.out, measure())
    try:
        text = "\n".join([*check(read_json(args.out)), "", beyond()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{args.out}: no measurements ({error!r:.100}); remove it to measure again") from None
    print(text)
    SECTION.write(args.write, text)


def measure() -> dict[str, Any]:
    """Return what each of `RUNS` found, with the load and the versions."""
    load = os.getloadavg()[0]
    runs = []
    for processes, batch in RUNS:
        runs.append({"processes": processes, "batch": batch, **run(processes, batch)})
        print(runs[-1], flush=True)
    return {"config": CONFIG, "runs": runs, "load": round(load, 2), "versions": versions()}


def run(processes: int, batch: int) -> dict[str, Any]:
    """Start the processes, a core each, and return what the first one found."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index, core in zip(range(processes), sorted(os.sched_getaffinity(0)), strict=False):
        words = {"address": address, "processes": processes, "index": index, "batch": batch}
        command = [sys.executable, "-m", "experiments.launch.scaling", "--child", json.dumps(words)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        with affinity({core}):
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise UserError(f"a process of {processes} ended with {[process.returncode for process in started]}")
    return json.loads(outputs[0].splitlines()[-1])


def child(address: str, processes: int, index: int, batch: int) -> dict[str, Any]:
    """Train some steps as one of several processes; return the medians of a step and of an all-reduce.

    `gradient` are the bytes of the gradient and of the statistics of batch norm, `program` those that the compiled step
    all-reduces, in `sums` all-reduces.
    """
    if processes > 1:
        distributed.join(f"{address},{processes},{index}")
    config = load_config([f"--config={CONFIG}"])
    model = build_model(config, num_classes=9)
    variables = abstract_variables(model)
    optimizer, _ = build_optimizer(config, model)
    mesh, size = make_mesh(), tuple(config.data.crop_size)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
    labels = rng.integers(0, 9, (batch, *size), np.uint8)
    own = own_rows(mesh, batch)
    placed = place_batch({"image": images[own], "label": labels[own]}, mesh)
    initial = partial(create_state, model=model, optimizer=optimizer, size=size, ema=False)
    state = jax.jit(initial, out_shardings=replicated(mesh))(jax.random.key(0))
    step = build_step(config, model, optimizer)
    program = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh)).lower(state, placed).compile()

    def run_step() -> Any:
        nonlocal state
        state, metrics = program(state, placed)
        return metrics

    reduced = count_collectives(read_program(program.as_text() or "")).get("all-reduce", {"count": 0, "bytes": 0})
    gradient = summed_bytes(variables)
    return {
        "step": median_seconds(STEPS, run_step),
        "gradient": gradient,
        "program": reduced["bytes"],
        "sums": reduced["count"],
        "all_reduce": {str(count): all_reduce_seconds(mesh, count) for count in (1, gradient // 4)},
    }


def summed_bytes(variables: Any) -> int:
    """Return the bytes that each step must sum: one gradient, and the statistics of batch norm."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))


def all_reduce_seconds(mesh: Any, count: int) -> float:
    """Return the median seconds in which `count` float32 numbers of each device are summed."""
    rows = jax.jit(lambda: jnp.ones((mesh.size, count)), out_shardings=NamedSharding(mesh, PartitionSpec("data")))()
    total = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    return median_seconds(SUMS, lambda: total(rows))


def median_seconds(count: int, call: Callable[[], Any]) -> float:
    """Return the median seconds of a call, after one that compiles."""
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def fitted_link(found: Mapping[str, Any], processes: int) -> Link:
    """Return the link that explains the all-reduce of one number and that of a gradient."""
    (_, small), (count, large) = sorted(((int(count), t) for count, t in found["all_reduce"].items()))
    moved = 2 * (processes - 1) / processes * 4 * count
    return Link(rate=moved / max(large - small, 1e-9), latency=small)


def check(content: Mapping[str, Any]) -> list[str]:
    """Return the table of the measured steps beside the model's, and where its numbers are from."""
    runs = {(found["processes"], found["batch"]): found for found in content["runs"]}
    head = (
        "processes",
        "images a step",
        "step, ms",
        "the model, ms",
        "model / step",
        "images/s, times one process alone",
    )
    rows, waits = [], []
    for (processes, batch), found in runs.items():
        alone = runs[1, batch // processes]
        link = fitted_link(found, processes) if processes > 1 else Link(1.0)
        seconds = partial(step_seconds, processes, compute=alone["step"], summed=found["program"], link=link)
        model = seconds(sums=found["sums"])
        if found["sums"]:
            waits.append((found["step"] - seconds(sums=0)) / found["sums"])
        gain = batch / found["step"] / (alone["batch"] / alone["step"])
        times = (f"{1e3 * found['step']:.0f}", f"{1e3 * model:.0f}", f"{model / found['step']:.2f}")
        rows.append((str(processes), str(batch), *times, f"x {gain:.2f}"))
    several = next(found for found in content["runs"] if found["processes"] > 1)
    link = fitted_link(several, several["processes"])
    return [
        *markdown_table(head, rows).splitlines(),
        "",
        f"The demo's network, one core a process, load {content['load']} before. A step sums "
        f"{several['program'] / 1e6:.2f} MB in {several['sums']} all-reduces; its gradient and batch statistics are "
        f"{several['gradient'] / 1e6:.2f} MB. An all-reduce between the two processes moves "
        f"{link.rate / 1e9:.2f} GB/s and takes {1e3 * link.latency:.2f} ms to start. Within the step each takes "
        f"{' and '.join(f'{1e3 * each:.1f}' for each in waits)} ms: what is neither computing "
        "nor bytes, divided by their number.",
    ]


def beyond() -> str:
    """Return the table of what the model says of `NETWORKS` over `RATES`."""
    head = (f"{BATCH} crops of {SIDE}x{SIDE}", "summed in a step", *(f"devices over {rate}" for rate in RATES))
    rows = []
    for name in NETWORKS:
        model = create_model(name, lowering="direct")
        image = PASSES * 2 * multiply_adds(model, SIDE, SIDE, counting="exact").total / DEVICE
        summed = summed_bytes(abstract_variables(model))
        most = [most_devices(image=image, batch=BATCH, summed=summed, rate=rate) for rate in RATES.values()]
        rows.append((name, f"{summed / 1e6:.0f} MB", *map(str, most)))
    return markdown_table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
