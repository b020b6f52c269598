"""Peak memory of inference and training, each in a process of its own."""

import ctypes
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax.evaluate.inference import evaluate_batch
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.fold import fold_norm
from experiments.benchmarks import machine, networks, pairs, peers, training
from experiments.benchmarks.children import run_child
from experiments.benchmarks.session import Session

# The size of Cityscapes' images.
LARGE = (1024, 2048)
LARGE_STRIDE = 8


def measure(session: Session) -> None:
    """Measure ours and each peer's formats for every network and task, and the evaluation of one large image."""
    for network in networks.networks(session):
        one_image = 1, networks.inference_sides(session)[0]
        for task, (batch, side) in {
            "inference": one_image,
            "training": networks.training_batch(session, network),
        }.items():
            for dtype in networks.dtypes(session):
                for who in ("ours", *(() if pairs.why_alone(network, side) else peers.FORMATS)):
                    name = f"{network.name}, {task} {batch}x{side}x{side}, {dtype}, {who}"
                    settings = {"network": network.name, "task": task, "batch": batch, "side": side}
                    settings |= {"dtype": dtype, "who": who}
                    session.row("memory", name, settings, partial(run_child, "memory"))
    network = networks.TINY if session.quick else networks.RESNET101_PLUS
    size = (65, 129) if session.quick else LARGE
    settings = {"network": network.name, "task": "evaluation", "size": size, "dtype": "float32", "who": "ours"}
    name = f"{network.model}, evaluation of {size[0]}x{size[1]} at output stride {LARGE_STRIDE}, ours"
    session.row("memory", name, settings, partial(run_child, "memory"))


def child(
    network: str, task: str, dtype: str, who: str, batch: int = 1, side: int = 0, size: Sequence[int] = ()
) -> dict[str, Any]:
    """Run a task in this process.

    Returns:
      Numbers in MiB. `peak` is the peak memory of the process, and `peak_running` its peak after building and compiling
      (None where the system does not tell); both are counted from the memory after the imports. `device_peak` is the
      peak on a GPU. `xla` is the memory that XLA planned for our program: arguments, results and temporaries.
    """
    about, planned = networks.BY_NAME[network], None
    if who != "ours":
        peers.torch()
    jax.devices()
    before = resident_peak()
    if task == "evaluation":
        call = evaluation(about, size)
    elif who == "ours":
        call, planned = our_task(about, task, batch, side, dtype)
    else:
        call = peer_task(peers.build(about), task, batch, side, dtype, who)
    call()
    peak = resident_peak() - before
    running = running_peak(call, before)
    return {"peak": round(peak, 1), "peak_running": running, "device_peak": device_peak(who), "xla": planned}


def our_task(
    network: networks.Network, task: str, batch: int, side: int, dtype: str
) -> tuple[Callable[[], Any], float]:
    """Return the task of this package, and the MiB that XLA planned for it."""
    model = networks.create(network, dtype=dtype)
    variables = networks.random_variables(model)
    if task == "training":
        examples = networks.random_examples(batch, side)
        step, state = networks.training(model, variables)
        program = step.lower(state, examples).compile()
        return training.stepper(program, state, examples), planned_mib(program)
    apply, folded = networks.inference(model, variables)
    images = networks.random_images(batch, side)
    program = apply.lower(folded, images).compile()
    return lambda: jax.block_until_ready(program(folded, images)), planned_mib(program)


def peer_task(peer: Any, task: str, batch: int, side: int, dtype: str, memory: str) -> Callable[[], Any]:
    """Return a peer's task."""
    images = networks.random_images(batch, side)
    if task == "inference":
        return peers.inference(peer, images, memory=memory, precision=dtype)
    labels = networks.random_examples(batch, side)["label"]
    return peers.training(peer, images, labels, memory=memory, precision=dtype)


def evaluation(network: networks.Network, size: Sequence[int]) -> Callable[[], Any]:
    """Return the evaluation of one image: class ids and confusion matrix."""
    model = networks.create(network).clone(output_stride=LARGE_STRIDE)
    model, variables = fold_norm(model, networks.random_variables(model))
    images, labels = np.zeros((1, *size, 3), np.uint8), np.zeros((1, *size), np.uint8)
    return lambda: evaluate_batch(model, variables, images, labels, np.asarray([size], np.int32), Protocol())


def planned_mib(compiled: Any) -> float:
    """Return the MiB that XLA planned for a program: arguments, temporaries, and results that do not reuse the memory
    of an argument.
    """
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    return round(total / 2**20, 1)


def resident_peak() -> float:
    """Return the largest memory of this process so far, or since `reset_peak`, in MiB.

    `getrusage` is not used, since its peak starts with that of the parent process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def reset_peak() -> bool:
    """Release free memory and reset the kernel's peak of this process. Return whether this is possible."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def running_peak(call: Callable[[], Any], before: float) -> float | None:
    """Return the peak of memory in MiB during a call of what is compiled already, counted from `before`, None where the
    system does not tell.
    """
    if not reset_peak():
        return None
    call()
    return round(resident_peak() - before, 1)


def device_peak(who: str) -> float | None:
    """Return the peak of the accelerator's memory in MiB, None on a CPU."""
    if machine.platform() == "cpu":
        return None
    if who != "ours":
        return round(peers.torch().cuda.max_memory_allocated() / 2**20, 1)
    return round(jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20, 1)
