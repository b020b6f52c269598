"""Inference of one image, ours against the peers."""

from functools import partial
from typing import Any

import jax
import numpy as np

from deeplab_jax.analysis.cost import multiply_adds
from experiments.benchmarks import networks, pairs, peers
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import Contestant

LOGITS = 1e-4  # Largest allowed difference of float32 logits, as a share of the largest logit.


def measure(session: Session) -> None:
    """Race every network at every size and dtype."""
    for network in networks.networks(session):
        for side in networks.inference_sides(session):
            for dtype in networks.dtypes(session):
                alone = pairs.why_alone(network, side)
                name = f"{network.name}, {side}x{side}, {dtype}"
                settings = {"network": network.name, "side": side, "batch": 1, "dtype": dtype, "alone": alone}
                session.row("inference", name, settings, partial(contest, session))


def contest(session: Session, *, network: str, side: int, batch: int, dtype: str, alone: str | None) -> dict[str, Any]:
    """Compare the logits of images in float32, then the times. Other dtypes differ by their rounding."""
    pair = pairs.pair_of(network)
    images = networks.random_images(batch, side)
    model = networks.create(pair.network, dtype=dtype)
    apply, variables = networks.inference(model, pair.variables)
    inputs = jax.device_put(images)
    ours: Contestant = lambda: jax.block_until_ready(apply(variables, inputs))  # noqa: E731
    agreement = check_logits(ours, pair.peer, images) if dtype == "float32" and not alone else None

    def theirs(memory: str, compiled: bool) -> Contestant:
        return peers.inference(pair.peer, images, memory=memory, precision=dtype, compiled=compiled)

    result = pairs.against_peer(session, ours, None if alone else theirs)
    counts = {kind: multiply_adds(model, side, side, counting=kind).total for kind in ("exact", "valid")}
    return {**result, "logits_differ": agreement, "multiply_adds": counts}


def check_logits(ours: Contestant, peer: Any, images: np.ndarray) -> float:
    """Return the largest difference of the float32 logits, as a share of the largest logit.

    Raises:
      AssertionError: it is more than `LOGITS`.
    """
    with peers.exact_products():  # Where this changes the program, ours is traced again.
        logits = np.asarray(ours(), np.float32)
        theirs = peers.inference(peer, images, memory="nchw", precision="float32")()
    error = pairs.relative_error(logits, theirs.float().cpu().numpy().transpose(0, 2, 3, 1))
    assert error <= LOGITS, f"logits differ by {error:.1e} of the largest"
    return error
