"""Ours against a peer's formats and its compiled form, for one network and size."""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks import peers
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import Contestant, race, statistics, summarize

HEAT_ROUNDS = 3


def against_peer(session: Session, ours: Contestant, peer: Callable[[str, bool], Contestant] | None) -> dict[str, Any]:
    """Race ours against a peer, eagerly in both memory formats and compiled in the better one.

    Args:
      session: whose `repeats` are the rounds.
      ours: our contestant.
      peer: from (memory format, compiled) to a contestant; None where there is none.

    Returns:
      What `timing.summarize` does.
    """
    contestants = {"ours": ours}
    if peer is None:
        return summarize(race(contestants, rounds=session.repeats))
    eager = {f"eager {memory}": peer(memory, False) for memory in peers.FORMATS}
    if not session.quick:  # torch.compile takes a minute.
        heat = race(eager, rounds=HEAT_ROUNDS)
        better = min(heat.seconds, key=lambda name: statistics(heat.seconds[name])["median"], default=None)
        if better:
            eager["compile"] = peer(better.removeprefix("eager "), True)
    result = summarize(race({**contestants, **eager}, rounds=session.repeats))
    peers.forget_compiled()
    return result
