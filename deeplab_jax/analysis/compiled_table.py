"""The report of a compiled program for people: tables for the terminal, and one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

LAYERS = 15  # lines of the table by layer
Report = Mapping[str, Any]


def title(report: Report) -> str:
    """Return what was compiled, in one line."""
    model, (height, width) = report["model"], report["size"]
    dtype = model["options"].get("dtype", "float32")
    return (
        f"{report['kind']} of {model['name']}, output stride {model['output_stride']}, {report['images']} x "
        f"{height}x{width}, {dtype}, on {report['target']} ({report['devices']} {_plural(report['devices'], 'device')})"
    )


def lines(report: Report) -> list[str]:
    """Return what the tables do not hold, a line each."""
    if not report["fits"]:
        return [f"does not fit: {report['why']}"]
    share = report["total_memory"] / report["chip_memory"]
    found = [
        f"fits: {_mib(report['total_memory'])} MiB of {_mib(report['chip_memory'])} MiB a device ({100 * share:.1f}%)",
        f"XLA counts {report['flops']:.3g} FLOPs and {report['bytes_accessed']:.3g} bytes a device",
    ]
    found += [
        f"{kind}: {counts['count']}, {_mib(counts['bytes'])} MiB a device"
        for kind, counts in report["collectives"].items()
    ]
    if bounds := report["bounds"]:
        spelled = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in bounds.items())
        found.append(f"estimated time of a call, by each alone: {spelled}; collectives and the host are left out")
    if estimated := report.get("estimated"):
        hours = f", {estimated['hours']:.1f} hours for all steps" if "hours" in estimated else ""
        found.append(
            f"estimated, not measured: {1000 * estimated['seconds']:.3g} ms a call, "
            f"{estimated['images_per_second']:.0f} images a second{hours}"
        )
    return found


def memory_table(report: Report) -> Table:
    """Return MiB of a device by kind."""
    table = _table("memory of a device", "MiB", "share of it in %")
    for kind, size in report["memory"].items():
        table.add_row(kind, _mib(size), f"{100 * size / report['chip_memory']:.2f}")
    return table


def cycles_tables(report: Report) -> list[Table]:
    """Return the estimated cycles by kind of operation and by layer; none where XLA gives no estimate."""
    if not report["cycles"]:
        return []
    tables = []
    for name, sums in (("kind", report["cycles_by_kind"]), ("layer", by_stage(report["cycles_by_layer"]))):
        table = _table(f"estimated cycles by {name}", "10³ cycles", "share in %")
        shown = dict(list(sums.items())[:LAYERS])
        rest = report["cycles"] - sum(shown.values())
        for key, cycles in {**shown, **({"all others": rest} if rest else {})}.items():
            table.add_row(key, f"{cycles / 1e3:,.1f}", f"{100 * cycles / report['cycles']:.1f}")
        tables.append(table)
    return tables


def by_stage(layers: Mapping[str, int]) -> dict[str, int]:
    """Return the cycles by the first two names of a layer's path, the most first."""
    sums: dict[str, int] = {}
    for layer, cycles in layers.items():
        stage = "/".join(layer.split("/")[:2])
        sums[stage] = sums.get(stage, 0) + cycles
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def draw(report: Report, file: Path) -> None:
    """Write a picture (PNG): the memory of a device by kind, and the estimated cycles by kind of operation."""
    from matplotlib.figure import Figure

    parts = [("memory of a device, MiB", {kind: size / 2**20 for kind, size in report["memory"].items()})]
    if report["cycles"]:
        parts.append(
            ("estimated cycles, 10⁶", {kind: cycles / 1e6 for kind, cycles in report["cycles_by_kind"].items()})
        )
    figure = Figure(figsize=(6 * len(parts), 4.5), layout="constrained")
    figure.suptitle(title(report), fontsize=9)
    for axes, (name, values) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        bars = axes.barh(list(values), list(values.values()), color="#4477aa")
        axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=8)
        axes.margins(x=0.2)
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120, format="png")


def _table(head: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(head)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
