"""A learning rate for a configuration: training while the rate grows exponentially (Smith, WACV 2017, sec. 3.3).

The rate at which the smoothed loss falls most steeply is a good largest rate of a schedule. Near the smallest loss
training is about to diverge.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.config_values import check
from deeplab_jax.data.faults import never
from deeplab_jax.errors import UserError
from deeplab_jax.files import save_json, write_whole
from deeplab_jax.train.allocator import keep_freed_memory
from deeplab_jax.train.batches import Batches
from deeplab_jax.train.from_config import build_mesh, build_optimizer, build_step, model_for, open_split
from deeplab_jax.train.given import PARTS, Given, require_named
from deeplab_jax.train.initialise import fresh_state
from deeplab_jax.train.program import build_program

JSON, PICTURE = "find_lr.json", "find_lr.png"
FEWEST, MOST = 10, 2000  # steps
MEMORY = 0.9  # The running mean of the loss, which notices divergence, keeps this share.
DIVERGED = 4.0  # The running mean is so many times its smallest.
ENOUGH = 40  # So many losses are smoothed over five each, fewer over three.
SMOOTH = 0.1  # A smooth curve rises again by at most this share of its fall.
Report = dict[str, Any]


def find_lr(
    config: ConfigDict,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    say: Callable[[str], Any] = print,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Train from the start of a configuration with rates from `low` to `high`, and return what `find_lr.json` holds.

    The network, data, optimizer, loss and batch are those of the configuration, without its schedule, its average of
    the weights and its evaluations. It ends early when the loss diverges. Nothing is written.

    Args:
      config: from `load_config`; it stays as it is.
      low, high: the first and the last learning rate.
      steps: number of rates.
      say: receives lines about what is done.
      progress: called with the number of steps done and in all.

    Raises:
      UserError: rates or steps that make no sense, and what `train` raises for a configuration.
    """
    keep_freed_memory()
    check_sweep(low, high, steps)
    config = config.copy_and_resolve_references()
    config.train.update({"steps": steps, "epochs": 0.0, "ema_decay": 0.0, "ema_debias": False})
    check(config)
    require_named(config, *PARTS)
    source = open_split(config, config.data.train_split)
    model = model_for(config, source.labels)
    mesh = build_mesh(config, model)
    growth = math.log(high / low) / (steps - 1)
    optimizer, schedule = build_optimizer(
        config, model, Given(schedule=lambda step: low * jax.numpy.exp(growth * step))
    )
    batches = Batches(config, model, source, mesh)
    initial, shardings, step = build_program(config, model, mesh, optimizer, build_step(config, model, optimizer))
    state = fresh_state(initial, shardings, config, model=model, images=batches.sample, say=say)
    rates, losses = [], []
    for number, batch in enumerate(batches.placed(0, stopped=never)):
        state, metrics = step(state, batch)
        rates.append(float(schedule(number)))
        losses.append(float(metrics["loss"]))
        if progress is not None:
            progress(len(losses), steps)
        if diverged(losses):
            break
    return summarize(rates, losses)


def check_sweep(low: float, high: float, steps: int) -> None:
    """Raise a UserError for a sweep that makes no sense."""
    if not 0 < low < high < math.inf:
        raise UserError(f"--from {low:g} --to {high:g}: give two positive learning rates, such as --from 1e-6 --to 1")
    if not FEWEST <= steps <= MOST:
        raise UserError(f"--steps {steps}: give {FEWEST} to {MOST}")


def diverged(losses: Sequence[float]) -> bool:
    """Whether a loss is not finite, or the running mean of the losses (of which the last 10 count most, corrected for
    its start) has become 4 times its smallest.
    """
    if not losses or not math.isfinite(losses[-1]):
        return bool(losses)
    running, means = 0.0, []
    for number, loss in enumerate(losses, start=1):
        running = MEMORY * running + (1 - MEMORY) * loss
        means.append(running / (1 - MEMORY**number))
    return means[-1] > DIVERGED * min(means)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of each loss and its neighbours on both sides, as many on each: 1/20 of all, fewer at the ends.

    A running mean would lag behind, and so give a rate that is too large.
    """
    most, last = reach(len(losses)), len(losses) - 1
    near = [min(most, index, last - index) for index in range(len(losses))]
    return [float(np.mean(losses[i - n : i + n + 1])) for i, n in enumerate(near)]


def reach(count: int) -> int:
    """Return the number of neighbours on each side over which so many losses are smoothed."""
    return max(1, count // 20)


def doubt(means: Sequence[float]) -> str:
    """Return why the steepest fall of the smoothed loss, `means`, cannot be trusted, "" if it can: there are fewer than
    40 losses, or before its minimum it rises again by more than a tenth of its whole fall.
    """
    if len(means) < ENOUGH:
        return f"{len(means)} losses are fewer than {ENOUGH}"
    falling = np.array(means[reach(len(means)) : int(np.argmin(means)) + 1])
    fall, rise = falling[0] - falling[-1], np.max(falling - np.minimum.accumulate(falling))
    if rise > SMOOTH * fall:
        return f"the smoothed loss falls by {fall:.2g} in all, and rises by {rise:.2g} on its way"
    return ""


def summarize(rates: Sequence[float], losses: Sequence[float]) -> Report:
    """Return the content of `find_lr.json` from the rate and the loss of each step.

    `suggested` is the rate of the steepest fall of the smoothed loss over the logarithm of the rate, before its
    minimum. The first and the last losses are left out: they are means of fewer than the others, and so noisier. It is
    None if the loss never falls after the first. `doubt` says why it cannot be trusted, and is "" if it can. `minimum`
    is the rate of the smallest smoothed loss.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    means = smoothed(finite)
    lowest = int(np.argmin(means)) if means else 0
    first = reach(len(means))
    suggested, reason = None, ""
    if lowest > first:
        slopes = np.gradient(means[: lowest + 1], np.log(rates[: lowest + 1]))
        suggested = float(rates[first + int(np.argmin(slopes[first : len(means) - first]))])
        reason = doubt(means)
    missing = [None] * (len(losses) - len(finite))  # Only the last one can be: the sweep ends there.
    rows = zip(rates, [*finite, *missing], [*means, *missing], strict=True)
    return {
        "suggested": suggested,
        "doubt": reason,
        "minimum": float(rates[lowest]) if means else None,
        "diverged": diverged(losses),
        "steps": [{"learning_rate": rate, "loss": loss, "smoothed": mean} for rate, loss, mean in rows],
    }


def write_report(report: Report, folder: Path) -> Path:
    """Write `find_lr.json` and `find_lr.png`, and return the path of the first.

    Raises:
      UserError: they cannot be written.
    """
    write_whole(folder / PICTURE, lambda file: _draw(report, file))
    return save_json(folder / JSON, report)


def _draw(report: Report, file: Path) -> None:
    from matplotlib.figure import Figure

    rows = [row for row in report["steps"] if row["loss"] is not None]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rates, means = [row["learning_rate"] for row in rows], [row["smoothed"] for row in rows]
    axes.plot(rates, [row["loss"] for row in rows], color="#bbbbbb", linewidth=1, label="loss")
    axes.plot(rates, means, color="#4477aa", label="smoothed")
    if (rate := report["suggested"]) is not None:
        axes.axvline(rate, color="#cc3311", linestyle="--", linewidth=1, label=f"suggested {rate:.2g}")
    if means:
        axes.set_ylim(0.9 * min(means), 1.1 * max(means[: len(means) // 2 + 1]))
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120, format="png")
