"""A network in this package and in PyTorch with the same weights, and the race between them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from deeplab_jax.models.segmenter import Variables
from experiments.benchmarks import networks, peers
from experiments.benchmarks.networks import Network
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import Contestant, race, statistics, summarize

HEAT_ROUNDS = 3


@dataclass(frozen=True)
class Pair:
    """A peer, and our variables, converted from its weights.

    Attributes:
      network: the network.
      peer: PyTorch's network, on the CPU, in evaluation mode; None where there is none.
      variables: our variables, as arrays on the host.
    """

    network: Network
    peer: Any
    variables: Variables


@functools.lru_cache(maxsize=1)
def pair_of(name: str) -> Pair:
    """Return both networks of `networks.BY_NAME`. Without a peer, ours has random weights."""
    network = networks.BY_NAME[name]
    if why_alone(network):
        return Pair(network, None, networks.random_variables(networks.create(network)))
    peer = peers.build(network)
    _, variables = peers.converted(network, peer)
    return Pair(network, peer, jax.device_get(variables))


def why_alone(network: Network, side: int | None = None) -> str | None:
    """Return the reason why ours is measured without a peer, for square images with this side; None where there is a
    peer.
    """
    if network.peer is None:
        return "no peer has this network"
    reason = peers.missing(network.peer[0])
    if reason is None and side is not None and side % network.output_stride and not network.any_size:
        return f"the peer takes no side of {side} pixels, only what {network.output_stride} divides"
    return reason


def relative_error(ours: Any, theirs: Any) -> float:
    """Return the largest difference as a share of the largest absolute value of theirs."""
    return float(abs(ours - theirs).max() / abs(theirs).max())


def against_peer(session: Session, ours: Contestant, peer: Callable[[str, bool], Contestant] | None) -> dict[str, Any]:
    """Return the race of ours against a peer, as `timing.summarize` does. The peer runs eagerly in both memory formats,
    and compiled in the faster one.

    `peer` returns a contestant for (memory format, compiled); None where there is no peer.
    """
    contestants = {"ours": ours}
    if peer is None:
        return summarize(race(contestants, rounds=session.repeats))
    eager = {f"eager {memory}": peer(memory, False) for memory in peers.FORMATS}
    if session.compiled_peers:
        heat = race(eager, rounds=HEAT_ROUNDS)
        better = min(heat.seconds, key=lambda name: statistics(heat.seconds[name])["median"], default=None)
        if better:
            eager["compile"] = peer(better.removeprefix("eager "), True)
    result = summarize(race({**contestants, **eager}, rounds=session.repeats))
    peers.forget_compiled()
    return result
