"""Ours against a peer's formats and its compiled form, for one network and size."""

from collections.abc import Callable
from typing import Any

import jax

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


def describe(result: dict[str, Any]) -> str:
    """Say the times and ratios of a race in one line."""
    times = [
        f"{name} {1e3 * times['median']:.4g} ms (+-{times['spread']:.0%})" for name, times in result["times"].items()
    ]
    ratios = [f"{name} / ours {ratio['of_rounds']:.2f}" for name, ratio in result["ratios"].items()]
    return "; ".join([", ".join(times), *ratios, *(f"{k}: {v}" for k, v in result.get("errors", {}).items())])


def forget() -> None:
    """Drop compiled programs and what they hold."""
    jax.clear_caches()
