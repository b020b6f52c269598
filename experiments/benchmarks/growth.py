"""The growth of inference time with the pixels and with the images of a batch: fitted exponents and a plot."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks import networks
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import race, summarize

SIDES, QUICK_SIDES = (129, 193, 257, 385, 513, 641, 769), (65, 97, 129)
BATCHES, QUICK_BATCHES = (1, 2, 4, 8), (1, 2)
BATCH_SIDE = 257


def measure(session: Session) -> None:
    """Time each network at each side and batch, and fit exponents."""
    sides, batches = (QUICK_SIDES, QUICK_BATCHES) if session.quick else (SIDES, BATCHES)
    batch_side = QUICK_SIDES[0] if session.quick else BATCH_SIDE
    chosen = (networks.TINY,) if session.quick else (networks.MOBILENET, networks.RESNET50)
    series: dict[str, dict[str, dict[float, float]]] = {}
    for network in chosen:
        axes: dict[str, dict[float, float]] = {"pixels": {}, "batch": {}}
        for batch, side in dict.fromkeys([*((1, side) for side in sides), *((b, batch_side) for b in batches)]):
            name = f"{network.name}, {batch}x{side}x{side}"
            settings = {"network": network.name, "batch": batch, "side": side, "dtype": "float32"}
            row = session.row("growth", name, settings, partial(contest, session))
            if row is not None and batch == 1:
                axes["pixels"][float(side * side)] = row["median"]
            if row is not None and side == batch_side:
                axes["batch"][float(batch)] = row["median"]
        series[network.name] = axes
    exponents = {name: {axis: exponent(s) for axis, s in axes.items()} for name, axes in series.items()}
    session.put("growth", "exponents", {"settings": {}, "result": exponents})
    print(f"growth     exponents: {exponents}", flush=True)
    plot(series, exponents, session.file.with_name(f"{session.file.stem}_growth.png"))


def contest(session: Session, *, network: str, batch: int, side: int, dtype: str) -> dict[str, Any]:
    """Time our inference of one batch."""
    model = networks.create(networks.BY_NAME[network], dtype=dtype)
    apply, variables = networks.inference(model, networks.random_variables(model))
    images = jax.device_put(networks.random_images(batch, side))
    result = race({"ours": lambda: jax.block_until_ready(apply(variables, images))}, rounds=session.repeats)
    return summarize(result)["times"]["ours"]


def exponent(times: Mapping[float, float]) -> float | None:
    """Return b of seconds = a * x ** b, fitted to {x: seconds} by least squares of the logarithms; None for less than
    two points.
    """
    if len(times) < 2:
        return None
    x, seconds = np.asarray(list(times.items())).T
    return round(float(np.polyfit(np.log(x), np.log(seconds), 1)[0]), 4)


def plot(
    series: Mapping[str, Mapping[str, Mapping[float, float]]],
    exponents: Mapping[str, Mapping[str, float | None]],
    file: Path,
) -> None:
    """Write a PNG with the times over both axes. A dotted line shows linear growth from the first point."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, axis in zip(panels, ("pixels", "batch"), strict=True):
        measured: set[float] = set()
        for name, axes in series.items():
            if not axes[axis]:
                continue
            x, seconds = np.asarray(sorted(axes[axis].items())).T
            power = exponents[name][axis]
            fit = "" if power is None else f": grows as a power of {power:.2f}"
            (line,) = panel.loglog(x, seconds, "o-", label=f"{name}{fit}")
            panel.loglog(x, seconds[0] * x / x[0], ":", color=line.get_color())
            measured |= set(x)
        panel.loglog([], [], ":", color="grey", label="linear in the pixels, or in the images")
        panel.set_xlabel("side of one image in pixels" if axis == "pixels" else f"images of {BATCH_SIDE}x{BATCH_SIDE}")
        ticks = sorted(measured)
        panel.set_xticks(ticks, [f"{round(x**0.5 if axis == 'pixels' else x)}" for x in ticks])
        panel.set_xticks([], minor=True)
        panel.set_ylabel("seconds")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
