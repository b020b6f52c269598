"""Rematerialisation: the memory that a training step keeps for its gradient, and its time, with and without it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.step import keep_convolutions
from experiments.benchmarks import memory, networks, training
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import race, summarize

# The activations of the papers' batch are counted; nothing of this size is computed.
COUNTED = (16, 513, "bfloat16")
QUICK_COUNTED = (2, 65, "bfloat16")
WAYS = {"ours": False, "remat": True}


def measure(session: Session) -> None:
    """Count and race each network."""
    chosen = (networks.TINY,) if session.quick else (networks.RESNET101_PLUS, networks.MOBILENET, networks.XCEPTION65)
    for network in chosen:
        batch, side = networks.training_batch(session, network)
        for dtype in networks.dtypes(session):
            name = f"{network.name}, {batch}x{side}x{side}, {dtype}"
            counted = QUICK_COUNTED if session.quick else COUNTED
            settings = {"network": network.name, "side": side, "batch": batch, "dtype": dtype, "counted": counted}
            session.row("remat", name, settings, partial(contest, session))


def contest(
    session: Session, *, network: str, side: int, batch: int, dtype: str, counted: tuple[int, int, str]
) -> dict[str, Any]:
    """Race the steps with and without rematerialisation.

    Returns:
      The race, as `timing.summarize` returns it, and two numbers by contestant. `planned_mib` is the memory that XLA
      planned for the step of the race. `kept_mib` is the memory of the activations that a step keeps for its gradient,
      for a batch of `counted` (images, side, dtype).
    """
    create = partial(networks.create, networks.BY_NAME[network])
    model = create(dtype=dtype)
    variables = networks.random_variables(model)
    examples = networks.random_examples(batch, side)
    planned, contestants = {}, {}
    for name, remat in WAYS.items():
        step, state = networks.training(model, variables, remat=remat)
        program = step.lower(state, examples).compile()
        planned[name] = memory.planned_mib(program)
        contestants[name] = training.stepper(program, state, examples)
    result = summarize(race(contestants, rounds=session.repeats))
    images, counted_side, counted_dtype = counted
    large = create(dtype=counted_dtype)
    kept = {name: kept_mib(large, images, counted_side, remat=remat) for name, remat in WAYS.items()}
    return {**result, "planned_mib": planned, "kept_mib": kept, "counted": counted}


def kept_mib(model: Segmenter, batch: int, side: int, *, remat: bool) -> float:
    """Return the MiB of the maps `[N, h, w, C]` that are kept for the gradient of the logits. Nothing is computed.

    XLA may keep fewer maps, where it computes one from another.
    """

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        apply = partial(model.apply, train=True, method="coarse_logits", mutable=["batch_stats"])
        found: jax.Array = (keep_convolutions(apply) if remat else apply)(
            variables, images, rngs={"dropout": jax.random.key(0)}
        )[0]
        return found

    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    residuals = jax.eval_shape(lambda *inputs: jax.vjp(logits, *inputs)[1], abstract_variables(model), images)
    maps = (leaf for leaf in jax.tree.leaves(residuals) if leaf.ndim == 4 and leaf.shape[0] == batch)
    return round(sum(leaf.size * leaf.dtype.itemsize for leaf in maps) / 2**20, 1)
