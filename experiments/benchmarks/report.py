"""The results as Markdown, and the marks around them in the README.md of this folder."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import geometric_mean, median
from typing import Any

from experiments.benchmarks.lowerings import CLOSE
from experiments.benchmarks.machine import NOT_INSTALLED, PEERS
from experiments.benchmarks.session import BUSY
from experiments.output import Section, markdown_table

SECTION = Section("<!-- benchmarks:begin -->", "<!-- benchmarks:end -->")
Rows = Mapping[str, dict[str, Any]]
# Forward, gradient of the maps and gradient of the kernels: one product each.
TRAINING_PASSES = 3
NONE = "–"  # noqa: RUF001


def summarize(content: Mapping[str, Any]) -> str:
    """Return the tables of a file of results in Markdown; of what was not measured, nothing."""
    m, versions = content["machine"], content["versions"]
    where = m["accelerator"] or f"{m['cores']} cores of {m['processor']}"
    here = [name for name in PEERS if versions.get(name, NOT_INSTALLED) != NOT_INSTALLED]
    peers = ", ".join(f"{name} {versions[name]}" for name in here) or "no peer"
    memory = "kept" if m.get("glibc_tunables") else "given back to the system, as glibc does by itself"
    head = f"Measured on {where}, {days(content['parts'])}, jax {versions['jax']}, {peers}; freed memory {memory}."
    if content.get("quick"):
        head = f"Quick run, no measurement: tiny sizes and networks. {head}"
    warnings = caveats(content["parts"], m["cores"])
    parts = {name: results(rows) for name, rows in content["parts"].items()}
    limits = best_rates(parts.get("limits", {}), "product")
    tables = []
    for part, title, passes in (("inference", "Inference", 1), ("training", "Training step", TRAINING_PASSES)):
        if parts.get(part):
            table = ratio_table(title, parts[part], limits, passes=passes)
            tables += [table, gain_text(title, content["parts"][part])]
    everything = [head, *warnings, *tables, rest(parts), paper_table(parts.get("paper", {}))]
    return "\n\n".join(filter(None, everything))


def results(rows: Rows) -> dict[str, Any]:
    """Return the results of the rows that have one."""
    return {name: row["result"] for name, row in rows.items() if "result" in row}


def days(parts: Mapping[str, Rows]) -> str:
    """Return the day on which the rows were measured, or the first and the last one."""
    found = sorted({row["date"][:10] for rows in parts.values() for row in rows.values() if "date" in row})
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "never"


def caveats(parts: Mapping[str, Rows], cores: int) -> list[str]:
    """Say what failed, which rows were measured beside other work, and whether all were with the same code."""
    every = [(f"{part}: {name}", row) for part, rows in parts.items() for name, row in rows.items()]
    failed = [f"{name} ({row['error']})" for name, row in every if "error" in row]
    failed += [
        f"{name}, {contestant} ({error})"
        for name, row in every
        for contestant, error in row.get("result", {}).get("errors", {}).items()
    ]
    found = [row for _, row in every if "result" in row]
    busy = sum(row.get("others", 0.0) > BUSY * cores for row in found)
    beside = f"{busy} of {len(found)} rows were measured while the machine did other work as well." if busy else ""
    codes = {row["code"] for _, row in every if "code" in row}
    mixed = f"The rows were measured with {len(codes)} states of the code." if len(codes) > 1 else ""
    return [text for text in (f"Not measured: {'; '.join(failed)}." if failed else "", beside, mixed) if text]


def ratio_table(title: str, rows: Mapping[str, Any], limits: Mapping[str, float], *, passes: int) -> str:
    """Return the table of times and ratios, and the geometric means of the ratios.

    A ratio is a peer's time divided by ours, in the median over the rounds: above 1 ours is faster.
    """
    cells = []
    for name, row in rows.items():
        eager = better_eager(row)
        achieved = share_of_limit(row, limits.get(name.rsplit(", ", 1)[-1]), passes=passes)
        columns = [name, _milliseconds(row["times"]["ours"])]
        columns += _beside(row, eager, f" ({eager.split()[1]})") if eager else [NONE, NONE]
        columns += _beside(row, "compile")
        cells.append([*columns, NONE if achieved is None else f"{achieved:.0%}"])
    head = (title, "ours, ms", "PyTorch eager, ms", "ratio", "torch.compile, ms", "ratio", "of the matrix rate")
    table = markdown_table(head, cells)
    found = list(
        filter(None, (mean_text(rows, better_eager, "eager"), mean_text(rows, lambda row: "compile", "compiled")))
    )
    return f"{table}\n\n{title}: {'; '.join(found)}." if found else table


def _beside(row: Mapping[str, Any], name: str, note: str = "") -> list[str]:
    times = row["times"].get(name)
    return [f"{_milliseconds(times)}{note}", _ratio(row, name)] if times else [NONE, NONE]


def better_eager(row: Mapping[str, Any]) -> str | None:
    """Return the eager contestant of the smaller ratio, which is against us; None where there is none."""
    eager = [name for name in row["ratios"] if name.startswith("eager")]
    return min(eager, key=lambda name: row["ratios"][name]["of_rounds"], default=None)


def mean_text(rows: Mapping[str, Any], who: Callable[[Any], str | None], label: str) -> str:
    """Say the geometric mean and the smallest of the ratios against a contestant, "" where there is none.

    If a network has several rows of one dtype, their geometric mean counts, so that each network weighs the same.
    """
    by_dtype: dict[str, dict[str, list[float]]] = {}
    for name, row in rows.items():
        if (contestant := who(row)) in row["ratios"]:
            network, dtype = name.rsplit(", ", 2)[0], name.rsplit(", ", 1)[1]
            by_dtype.setdefault(dtype, {}).setdefault(network, []).append(row["ratios"][contestant]["of_rounds"])
    return "; ".join(
        f"geometric mean against {label} PyTorch in {dtype} "
        f"{geometric_mean(map(geometric_mean, ratios.values())):.2f}, smallest {min(map(min, ratios.values())):.2f}"
        for dtype, ratios in by_dtype.items()
    )


def gain_text(title: str, rows: Rows) -> str:
    """Say how many times as fast ours is in bfloat16 as in float32, "" where no network has both of one day."""
    ours = {
        (name, row["date"][:10]): row["result"]["times"]["ours"]["median"]
        for name, row in rows.items()
        if "result" in row
    }
    found: dict[str, list[float]] = {}
    for (name, day), seconds in ours.items():
        network, size, dtype = name.rsplit(", ", 2)
        half = ours.get((f"{network}, {size}, bfloat16", day))
        if dtype == "float32" and half:
            found.setdefault(network, []).append(seconds / half)
    gains = {network: geometric_mean(values) for network, values in found.items()}
    if not gains:
        return ""
    each = ", ".join(f"{network} {gain:.2f}" for network, gain in gains.items())
    return f"{title}: ours in bfloat16 is {geometric_mean(gains.values()):.2f} times as fast as in float32 ({each})."


def best_rates(rows: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Return the best measured rate of a "product" or a "copy" by dtype, in 10^9 operations or bytes a second."""
    best: dict[str, float] = {}
    for name, row in rows.items():
        dtype = name.rsplit(", ", 1)[1]
        if name.startswith(kind):
            best[dtype] = max(best.get(dtype, 0.0), *row["rates"].values())
    return best


def share_of_limit(row: Mapping[str, Any], limit: float | None, *, passes: int) -> float | None:
    """Return achieved / possible rate; None where the limit was not measured.

    Only multiply-adds on the map count: a tap that falls on padding is no work that has to be done.
    """
    if limit is None:
        return None
    return passes * 2 * row["multiply_adds"]["valid"] / row["times"]["ours"]["median"] / (limit * 1e9)


def rest(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of everything but the ratios, "" where nothing of it was measured."""
    rows = [line for part, describe in DESCRIPTIONS.items() if parts.get(part) for line in describe(parts[part])]
    return markdown_table(("what", "measured"), rows) if rows else ""


def paper_table(rows: Mapping[str, Any]) -> str:
    """Return the table of the trainings as large as the papers', "" where none was measured."""
    if not rows:
        return ""
    network = ("At the papers' scale", "crops", "output stride", "parameters", "multiply-adds a crop", "memory planned")
    head = (*network, "one step, its peak of memory", "steps", "hours at that pace")
    lines = [
        (
            f"{row['network']} ({name.split('/')[0]})",
            f"{row['batch']} x {row['crop'][0]}x{row['crop'][1]}",
            str(row["output_stride"]),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['multiply_adds'] / 1e9:.1f} G",
            f"{row['planned_mib'] / 1024:.1f} GiB",
            f"{row['seconds']:.0f} s{f', {n} micro-batches' if (n := row['micro_batches']) > 1 else ''}, "
            f"{row['peak_mib'] / 1024:.1f} GiB",
            str(row["steps"]),
            f"{row['hours']:,.0f}",
        )
        for name, row in rows.items()
    ]
    return markdown_table(head, lines)


Lines = Iterator[tuple[str, str]]


def _limits(rows: Mapping[str, Any]) -> Lines:
    products, copies = best_rates(rows, "product"), best_rates(rows, "copy")
    for dtype, rate in products.items():
        yield f"matrix products, {dtype}", f"{rate:,.0f} GFLOP/s"
    for dtype, rate in copies.items():
        yield f"copies, {dtype}", f"{rate:,.1f} GB/s read and written"


def _lowerings(rows: Mapping[str, Any]) -> Lines:
    near = sum(row["auto_over_best"] <= 1 + CLOSE for row in rows.values())
    near_or_noise = sum(row["close"] for row in rows.values())
    worst = max(rows.items(), key=lambda item: item[1]["auto_over_best"])
    text = f"{near} of {len(rows)} measurements, {near_or_noise} where the spread is allowed for; largest auto / best "
    text += f"{worst[1]['auto_over_best']:.2f} ({worst[0]}, best {worst[1]['best']})"
    yield '`lowering="auto"` within 15% of the best', text
    yield from _by_kind(rows)


def _by_kind(rows: Mapping[str, Any]) -> Lines:
    """Return for each kind of convolution how long others take beside "auto": PyTorch in its better memory format, and
    the form that covers everything.
    """
    kinds: dict[str, list[tuple[float | None, float]]] = {}
    for name, row in rows.items():
        rates = "below 6" if int(re.findall(r", rate (\d+)", name)[0]) < 6 else "from 6 on"
        form = "depthwise" if "depthwise" in name else "1x1" if " 1x1 " in name else "dense"
        kind = f"{name.split(':')[0]}, {form}, rates {rates}"
        peers = [ratio["of_rounds"] for who, ratio in row["ratios"].items() if who.startswith("torch")]
        direct = row["times"]["direct"]["median"] if "direct" in row["times"] else row["slow"]["direct"]
        kinds.setdefault(kind, []).append((min(peers, default=None), direct / row["times"]["auto"]["median"]))
    for kind, found in kinds.items():
        peers = [peer for peer, _ in found if peer is not None]
        directs = [direct for _, direct in found]
        text = f'`"direct"` takes {_range(directs)} of the time of `"auto"`'
        text += f", PyTorch {_range(peers)}" if peers else ""
        yield f"{kind}: {len(found)} shapes", text


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} (median {median(values):.2f})"


def _keras_hub(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        if "times" not in row:
            first, peaks = ([row[who][key] for who in ("ours", "KerasHub")] for key in ("first_call", "peak_running"))
            text = f"first result after {first[0]:.1f} s, KerasHub {first[1]:.1f} s"
            text += "" if None in peaks else f"; peak memory {peaks[0]:,.0f} MiB, KerasHub {peaks[1]:,.0f} MiB"
            yield f"KerasHub, {name}", text
            continue
        ours, theirs = (1000 * row["times"][who]["median"] for who in ("ours", "KerasHub"))
        yield f"KerasHub, {name}", f"{ours:,.1f} ms, KerasHub {theirs:,.1f} ms, ratio {_ratio(row, 'KerasHub')}"


def _pipeline(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        if "milliseconds" in row:
            stages = ", ".join(f"{stage} {value:.2f}" for stage, value in row["milliseconds"].items())
            yield "input, milliseconds for an image", stages
        elif "data_wait" in row:
            yield "training waits for data", f"{row['data_wait']:.1%} of the time"
        else:
            yield f"input, {name}", f"{row['images_per_second']:.1f} crops/s"


def _evaluation(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        if "compilations" in row:
            yield name, str(row["compilations"])
            continue
        rates, ratios = row["images_per_second"], row["ratios"]
        text = f"{rates['ours']:.2f} images/s"
        if ratios:
            better = min(ratios, key=lambda contestant: ratios[contestant]["of_rounds"])
            text += f"; PyTorch {better} {rates[better]:.2f}, ratio {ratios[better]['of_rounds']:.2f}"
        yield f"evaluation, {name}", text


def _folders(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        rates = dict(row["images_per_second"])
        ours, alone = rates.pop("ours"), rates.pop("one at a time")
        faster = row["ratios"]["one at a time"]["of_rounds"]
        text = f"{ours:.2f} images/s, {faster:.2f} times one at a time ({alone:.2f})"
        text += "".join(f"; {other} {rate:.2f}" for other, rate in rates.items())
        yield f"predict, {name}", f"{text}; programs compiled: {row['compiled']}"


def _compile(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        cold = row["cold"]
        stages = ", ".join(f"{stage} {cold[stage]:.1f}" for stage in ("trace", "lower", "compile"))
        text = f"{cold['total']:.1f} s ({stages}); from the cache {row['warm']['total']:.1f} s"
        yield f"compilation, {name}", text


def _memory(rows: Mapping[str, Any]) -> Lines:
    gathered: dict[str, list[str]] = {}
    for name, row in rows.items():
        what, _, who = name.rpartition(", ")
        peak = next(row[kind] for kind in ("device_peak", "peak_running", "peak") if row[kind] is not None)
        with_compilation = f" ({row['peak']:,.0f} with its compilation)" if who == "ours" and row["peak"] > peak else ""
        gathered.setdefault(what, []).append(f"{who} {peak:,.0f} MiB{with_compilation}")
    for what, texts in gathered.items():
        yield f"peak memory, {what}", ", ".join(texts)


def _remat(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        kept, planned, (batch, side, dtype) = row["kept_mib"], row["planned_mib"], row["counted"]
        text = (
            f"a step takes {row['ratios']['remat']['of_rounds']:.2f} of the time, planned {planned['ours']:,.0f} MiB "
            f"become {planned['remat']:,.0f}; maps kept for the gradient of {batch}x{side}x{side}, {dtype}: "
            f"{kept['ours']:,.0f} MiB become {kept['remat']:,.0f}"
        )
        yield f"rematerialisation, {name}", text


def _profile(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        total = sum(row["by_kind"].values())
        shares = ", ".join(f"{kind} {value / total:.0%}" for kind, value in row["by_kind"].items())
        yield f"where time goes, {name}", f"{row['images_per_second']:.1f} images/s: {shares}"


def _headline(rows: Mapping[str, Any]) -> Lines:
    for name, row in rows.items():
        peak = row["device_peak_mib"]
        yield (
            f"training step, {name}",
            _milliseconds(row["times"]["ours"]) + " ms" + (f", {peak:.0f} MiB" if peak else ""),
        )


def _camvid(rows: Mapping[str, Any]) -> Lines:
    for row in rows.values():
        minutes = (row["training_seconds"] + row["evaluation_seconds"]) / 60
        yield "configs/camvid.py", f"mIoU {row['miou']:.2f} after {row['step']} steps, {minutes:.1f} minutes"


DESCRIPTIONS: dict[str, Callable[[Mapping[str, Any]], Lines]] = {
    "headline": _headline,
    "camvid": _camvid,
    "limits": _limits,
    "keras_hub": _keras_hub,
    "lowerings": _lowerings,
    "pipeline": _pipeline,
    "evaluation": _evaluation,
    "folders": _folders,
    "compile": _compile,
    "memory": _memory,
    "remat": _remat,
    "profile": _profile,
}


def _milliseconds(times: Mapping[str, Any]) -> str:
    return f"{1e3 * times['median']:.1f} ± {times['spread']:.0%}"


def _ratio(row: Mapping[str, Any], name: str) -> str:
    value = f"{row['ratios'][name]['of_rounds']:.2f}"
    return f"**{value}**" if float(value) < 1 else value
