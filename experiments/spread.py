"""Draw the spread over seeds against the cost of a training, from the results of the table `extra_noise`.

    python -m experiments.run extra_noise
    python -m experiments.spread --out experiments/results/spread.png --write experiments/results/README.md

The spread is the largest minus the smallest validation mIoU of the trainings that a row has. The difference is that of
the two networks at the same seed, which share the order of the images and the weights that both have.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from experiments.outcomes.files import RESULTS
from experiments.outcomes.gather import TableResult, read_tables
from experiments.output import PAGE, Section, add_write, markdown_table
from experiments.program import exits, parser_of
from experiments.regimes import find_regime
from experiments.report.plots import DPI, LIGHT, WIDTH
from experiments.tables import TABLES

SECTION = Section("<!-- spread:begin -->", "<!-- spread:end -->")
AIM = 1.0  # points
DIFFERENCE = "difference"


@dataclass(frozen=True)
class Protocol:
    """A way to train, and what it gives.

    Attributes:
      name: the way in words.
      images: images that a training sees, repetitions counted.
      seconds: mean time of a training.
      mious: mIoU in % of each network by seed, and the differences of the two under `DIFFERENCE`.
    """

    name: str
    images: int
    seconds: float
    mious: Mapping[str, Mapping[int, float]]

    @property
    def count(self) -> int:
        """The number of trainings of each network."""
        return len(self.mious[DIFFERENCE])

    def spread(self, name: str) -> float:
        """Return the largest minus the smallest value of a network or of the difference, in points."""
        values = self.mious[name].values()
        return max(values) - min(values)


@exits
def main(argv: Sequence[str] | None) -> None:
    """Write the picture and the table."""
    parser = parser_of("spread", __doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--regime", default="scenes", help="where extra_noise was run (scenes)")
    parser.add_argument("--out", type=Path, default=Path("runs/report/spread.png"), help="the picture, PNG")
    add_write(parser, PAGE)
    args = parser.parse_args(argv)
    results, _ = read_tables(args.results, (args.regime,))
    regime, noise = find_regime(args.regime), TABLES["extra_noise"]
    if reason := next(filter(None, map(regime.why_not, noise.rows)), ""):
        raise UserError(f"--regime {args.regime}: {reason}; leave out --regime, or give camvid")
    found = [way for one in results if one.table is noise for way in protocols(one)]
    if not found:
        raise UserError(
            f"{args.results / args.regime}: no protocol has two trainings of both networks; "
            f"{regime.command(noise.name)} first"
        )
    write_whole(args.out, lambda fresh: draw(found).savefig(fresh, format="png", dpi=DPI))
    print(text := table(found))
    SECTION.write(args.write, text)


def protocols(result: TableResult) -> list[Protocol]:
    """Return the ways to train for which both networks have two trainings or more, over the seeds that both have."""
    rows = {one.row.cells: one for one in result.rows}
    networks = list(dict.fromkeys(str(network) for network, _ in rows))
    found = []
    for name in dict.fromkeys(str(training) for _, training in rows):
        trainings = {network: {one.seed: one for one in rows[network, name].trainings} for network in networks}
        seeds = sorted(set.intersection(*(set(one) for one in trainings.values())))
        if len(seeds) < 2:
            continue
        mious = {network: {seed: trainings[network][seed].values["miou"] for seed in seeds} for network in networks}
        first, second = mious.values()
        every = [one for of_network in trainings.values() for one in of_network.values()]
        found.append(
            Protocol(
                name,
                every[0].steps * every[0].batch,
                fmean(one.seconds for one in every),
                {**mious, DIFFERENCE: {seed: second[seed] - first[seed] for seed in seeds}},
            )
        )
    return found


def table(found: Sequence[Protocol]) -> str:
    """Return the protocols as a Markdown table: mean and spread of each network and of the difference."""
    names = list(found[0].mious)
    head = [
        "training",
        "trainings of each",
        "images",
        "seconds",
        *(f"{name}: {word}" for name in names for word in ("mean", "spread")),
    ]
    rows = (
        [
            one.name,
            str(one.count),
            f"{one.images:,}",
            f"{one.seconds:.0f}",
            *(f"{value:.2f}" for name in names for value in (fmean(one.mious[name].values()), one.spread(name))),
        ]
        for one in found
    )
    return markdown_table(head, rows, numbers=len(head) - 1)


def draw(found: Sequence[Protocol]) -> Figure:
    """Draw the spreads over the images of a training, with the number of trainings. Solid curves and filled dots are
    those of averaged weights.
    """
    with matplotlib.rc_context(LIGHT.settings()):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        for averaged in (True, False):
            ways = sorted((one for one in found if ("average" in one.name) == averaged), key=lambda one: one.images)
            for index, name in enumerate(found[0].mious):
                style: dict[str, Any] = {"color": f"C{index}", "label": f"{name}, averaged" if averaged else name}
                style |= {"linestyle": "-"} if averaged else {"linestyle": "--", "markerfacecolor": "none"}
                axes.plot([one.images for one in ways], [one.spread(name) for one in ways], marker="o", **style)
            for one in ways:  # A range grows with the number of trainings.
                highest = max(one.spread(name) for name in one.mious)
                axes.annotate(
                    f"{one.count} each", (one.images, highest), (0, 6), textcoords="offset points", ha="center"
                )
        axes.axhline(AIM, color="#888888", linestyle=":")
        axes.set(xscale="log", xlabel="images of a training", ylabel="largest minus smallest mIoU, points")
        axes.set_ylim(0, None)
        axes.set_xticks([], minor=True)
        images = sorted({one.images for one in found})
        axes.set_xticks(images, [f"{count:,}" for count in images])
        axes.legend(fontsize="small")
        return figure


if __name__ == "__main__":
    sys.exit(main())
