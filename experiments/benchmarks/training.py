"""Training steps (forward, backward, update), ours against the peers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.train.state import TrainState
from experiments.benchmarks import networks, pairs, peers
from experiments.benchmarks.pairs import Pair
from experiments.benchmarks.session import Session

LOSS = 1e-3  # Largest allowed relative difference of the first float32 losses.


def measure(session: Session) -> None:
    """Race every network in every dtype."""
    for network in networks.networks(session):
        batch, side = networks.training_batch(session, network)
        for dtype in networks.dtypes(session):
            alone = pairs.why_alone(network, side)
            name = f"{network.name}, {batch}x{side}x{side}, {dtype}"
            settings = {"network": network.name, "side": side, "batch": batch, "dtype": dtype, "alone": alone}
            session.row("training", name, settings, partial(contest, session))


def contest(
    session: Session, *, network: str, side: int, batch: int, dtype: str, alone: str | None, lowering: str = "auto"
) -> dict[str, Any]:
    """Compare the first losses of a float32 step on one batch, then the times. Other dtypes differ by rounding."""
    pair = pairs.pair_of(network)
    examples = networks.random_examples(batch, side)
    losses = check_loss(pair, examples) if dtype == "float32" and not alone else None
    model = networks.create(pair.network, dtype=dtype, lowering=lowering)
    images = np.asarray(model.preprocessing(jnp.asarray(examples["image"])))

    def theirs(memory: str, compiled: bool) -> Callable[[], Any]:
        labels = examples["label"]
        return peers.training(pair.peer, images, labels, memory=memory, precision=dtype, compiled=compiled)

    ours = stepper(*networks.training(model, pair.variables), examples)
    result = pairs.against_peer(session, ours, None if alone else theirs)
    counts = {kind: batch * multiply_adds(model, side, side, counting=kind).total for kind in ("exact", "valid")}
    return {**result, "first_losses": losses, "multiply_adds": counts}


def stepper(step: Callable[..., Any], state: TrainState, examples: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Return a function that runs another step on the same batch, and returns its metrics."""
    batch = jax.device_put(examples)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready(metrics)

    return run


def first_loss(model: Segmenter, variables: Variables, examples: dict[str, np.ndarray]) -> float:
    """Return the loss of a step. XLA compiles no backward pass and no update for it."""
    step, state = networks.training(model, variables)
    # The step has options of the compiler, which only the outermost `jax.jit` takes.
    loss = jax.jit(lambda state, batch: step.__wrapped__(state, batch)[1]["loss"])
    return float(loss(state, examples))


def check_loss(pair: Pair, examples: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the first loss of both networks in float32, without dropout.

    Raises:
      AssertionError: they differ by more than `LOSS`.
    """
    model = networks.create(pair.network, dropout=0.0)
    images = np.asarray(model.preprocessing(jnp.asarray(examples["image"])))
    with peers.exact_products():
        ours = first_loss(model, pair.variables, examples)
        bare = peers.without_dropout(pair.peer)
        theirs = float(peers.training(bare, images, examples["label"], memory="nchw", precision="float32")())
    assert abs(ours - theirs) <= LOSS * abs(theirs), f"first losses {ours:.6g} and {theirs:.6g}"
    return {"ours": ours, "peer": theirs}
