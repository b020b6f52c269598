"""The highest rates of the machine: of matrix products, and of copies in memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import networks, peers
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import Contestant, per_second, race, summarize

SIDES = {"cpu": (1024, 2048, 4096), "gpu": (4096, 8192, 16384)}
MEBIBYTES = {"cpu": (64, 256), "gpu": (256, 1024)}
QUICK_SIDES, QUICK_MEBIBYTES = (256,), (4,)


def measure(session: Session) -> None:
    """Measure products and copies of each dtype at each size."""
    sides = QUICK_SIDES if session.quick else SIDES.get(session.platform, SIDES["gpu"])
    mebibytes = QUICK_MEBIBYTES if session.quick else MEBIBYTES.get(session.platform, MEBIBYTES["gpu"])
    alone = peers.missing("torch")
    for dtype in networks.dtypes(session):
        for kind, sizes in (("product", {f"{n}x{n}": n for n in sides}), ("copy", {f"{m} MiB": m for m in mebibytes})):
            for size, amount in sizes.items():
                settings = {"kind": kind, "size": size, "dtype": dtype, "alone": alone}
                session.row("limits", f"{kind} {size}, {dtype}", settings, partial(rates, session, amount))


def rates(session: Session, amount: int, *, kind: str, size: str, dtype: str, alone: str | None) -> dict[str, Any]:
    """Race JAX and PyTorch, and return the times and the rates, in 10^9 operations (products) or bytes (copies) a
    second.
    """
    contestants, work = (products, 2.0 * amount**3) if kind == "product" else (copies, 2.0 * amount * 2**20)
    result = summarize(race(contestants(amount, dtype, alone), rounds=session.repeats), ours="jax")
    return {**result, "rates": per_second(result, work / 1e9)}


def products(side: int, dtype: str, alone: str | None) -> dict[str, Contestant]:
    """Return contestants that multiply two square matrices."""
    left, right = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    a, b = jnp.asarray(left, dtype), jnp.asarray(right, dtype)
    multiply = jax.jit(jnp.matmul)
    ours = {"jax": lambda: jax.block_until_ready(multiply(a, b))}
    if alone:
        return ours
    x, y = (peers.torch().from_numpy(m).to(peers.device(), peers.dtype(dtype)) for m in (left, right))
    return {**ours, "torch": peers.blocking(lambda: x @ y)}


def copies(mebibytes: int, dtype: str, alone: str | None) -> dict[str, Contestant]:
    """Return contestants that read and write this much memory. JAX negates, since XLA would remove a plain copy."""
    count = mebibytes * 2**20 // jnp.dtype(dtype).itemsize
    a = jnp.ones(count, dtype)
    negate = jax.jit(jnp.negative)
    ours = {"jax": lambda: jax.block_until_ready(negate(a))}
    if alone:
        return ours
    x = peers.torch().ones(count, dtype=peers.dtype(dtype), device=peers.device())
    y = peers.torch().empty_like(x)
    return {**ours, "torch": peers.blocking(lambda: y.copy_(x))}
