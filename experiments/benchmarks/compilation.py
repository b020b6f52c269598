"""Seconds to trace, lower and compile a function, without a cache and from the persistent cache."""

import tempfile
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import abstract_variables
from experiments.benchmarks import networks
from experiments.benchmarks.children import run_child
from experiments.benchmarks.session import Session

STAGES = ("trace", "lower", "compile")


def measure(session: Session) -> None:
    """Time the inference of each network, and the training steps of the deepest."""
    for network in networks.networks(session):
        tasks = {"inference": (1, networks.inference_sides(session)[0])}
        if session.quick or "resnet101" in network.model:
            tasks["training"] = networks.training_batch(session, network)
        for task, (batch, side) in tasks.items():
            settings = {"network": network.name, "task": task, "batch": batch, "side": side}
            session.row("compile", f"{network.name}, {task} {batch}x{side}x{side}", settings, cold_and_warm)


def cold_and_warm(**settings: Any) -> dict[str, Any]:
    """Return the seconds of the stages without a cache (`cold`) and with a filled one (`warm`), in new processes."""
    cold = run_child("compile", **settings, cache="")
    with tempfile.TemporaryDirectory() as folder:
        run_child("compile", **settings, cache=folder)
        warm = run_child("compile", **settings, cache=folder)
    return {"cold": cold, "warm": warm}


def child(network: str, task: str, batch: int, side: int, cache: str) -> dict[str, Any]:
    """Trace, lower and compile in this process; return the seconds of each and their sum."""
    use_cache(cache)
    model = networks.create(networks.BY_NAME[network])
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    if task == "inference":
        folded, variables = fold_norm(model, networks.random_variables(model))
        return stages(jax.jit(partial(folded.apply, train=False)), (variables, images))
    abstract = abstract_variables(model)
    step, start = networks.training_step(model, abstract["params"])
    labels = jax.ShapeDtypeStruct(images.shape[:3], jnp.uint8)
    examples = {"image": jax.ShapeDtypeStruct(images.shape, jnp.uint8), "label": labels}
    return stages(step, (jax.eval_shape(start, abstract), examples))


def use_cache(folder: str) -> None:
    """Keep every compiled program in a folder, or none where `folder` is ""."""
    jax.config.update("jax_enable_compilation_cache", bool(folder))
    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def stages(function: Any, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Return the seconds of `trace`, `lower` and `compile` of a jitted function, and their `total`."""
    clock = [time.perf_counter()]
    traced = function.trace(*inputs)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    lowered.compile()
    clock.append(time.perf_counter())
    seconds = {stage: round(clock[i + 1] - clock[i], 3) for i, stage in enumerate(STAGES)}
    return {**seconds, "total": round(clock[-1] - clock[0], 3)}
