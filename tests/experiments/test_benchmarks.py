"""The benchmarks' harness: statistics, resumption, shapes, report; and one quick run of all parts."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deeplab_jax.analysis.program_text import read_program
from deeplab_jax.config import base
from deeplab_jax.errors import UserError
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.ops.atrous import conv2d
from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import (
    keras_hub,
    lowerings,
    machine,
    memory,
    networks,
    paper,
    pipeline,
    profile,
    report,
    timing,
    training,
)
from experiments.benchmarks.children import run_child
from experiments.benchmarks.session import Session, read_results
from experiments.benchmarks.timing import Race, first_line, race, ratio, statistics, summarize


class FakeTime:
    """A clock that advances when a contestant says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += next(seconds)

        return call


def sequence(*seconds: float) -> Iterator[float]:
    """These, of which the last goes on forever."""
    yield from seconds
    while True:
        yield seconds[-1]


def run_race(clock: FakeTime, contestants: dict[str, Any], **options: Any) -> Race:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time", SimpleNamespace(perf_counter=clock, sleep=lambda seconds: None))
        return race(contestants, **options)


def test_contestants_take_turns_after_warming_up() -> None:
    clock = FakeTime()
    # Three calls warm up: the first compiles, two tell how long one takes.
    ours, theirs = sequence(9, 1, 1, 1, 2, 4), sequence(9, 2, 2, 3, 4, 4)
    found = run_race(clock, {"ours": clock.contestant("A", ours), "b": clock.contestant("B", theirs)}, rounds=3)
    assert "".join(clock.calls) == "AAABBB" + "ABABAB"
    assert found == Race({"ours": [1, 2, 4], "b": [3, 4, 4]})
    result = summarize(found)
    assert result["times"]["ours"] == {"median": 2.0, "spread": 0.75, "seconds": [1.0, 2.0, 4.0]}
    # In the rounds 3, 2 and 1.
    assert result["ratios"] == {"b": {"of_rounds": 2.0}}


def test_the_ratio_of_rounds_is_not_that_of_the_medians() -> None:
    assert ratio([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == {"of_rounds": 2.0}


def test_the_spread_is_the_interquartile_range_over_the_median() -> None:
    assert statistics([1.0, 2.0, 3.0, 4.0, 5.0])["spread"] == pytest.approx(2 / 3, rel=1e-4)


def test_a_short_function_is_called_several_times_for_a_sample() -> None:
    clock = FakeTime()
    found = run_race(clock, {"ours": clock.contestant("A", sequence(0.002))}, rounds=2)
    assert len(clock.calls) == 3 + 2 * 3
    assert found.seconds["ours"] == pytest.approx([0.002, 0.002])


def test_whoever_fails_to_warm_up_is_recorded_and_left_out() -> None:
    clock = FakeTime()

    def broken() -> None:
        raise RuntimeError("no compiler in /usr/local/bin/g++\nand more")

    found = run_race(clock, {"ours": clock.contestant("A", sequence(1)), "b": broken}, rounds=1)
    assert found.errors == {"b": "RuntimeError: no compiler in g++"}
    assert list(summarize(found)["times"]) == ["ours"]
    with pytest.raises(RuntimeError, match="no compiler"):
        summarize(run_race(clock, {"ours": broken}, rounds=1))


def test_whoever_is_much_slower_is_left_out_unless_kept() -> None:
    clock = FakeTime()
    contestants = {name: clock.contestant(name, sequence(s)) for name, s in {"a": 1, "b": 11, "auto": 12}.items()}
    found = run_race(clock, contestants, rounds=1, too_slow=10, keep=("auto",))
    assert found.slow == {"b": 11}
    assert list(found.seconds) == ["a", "auto"]
    # What takes less than a sample costs nothing, and a single call of it says nothing.
    contestants = {name: clock.contestant(name, sequence(s)) for name, s in {"a": 1e-4, "b": 4e-3}.items()}
    assert list(run_race(clock, contestants, rounds=1, too_slow=10).seconds) == ["a", "b"]


def test_an_error_names_no_folder() -> None:
    assert (
        first_line(OSError("cannot open /home/somebody/x.py for writing\n")) == "OSError: cannot open x.py for writing"
    )


def session(tmp_path: Path, **options: Any) -> Session:
    return Session(tmp_path / "results" / "cpu.json", repeats=2, quick=True, **options)


@pytest.mark.parametrize(("amx", "found"), [(True, ("float32", "bfloat16")), (False, ("float32",))])
def test_a_cpu_is_measured_in_bfloat16_where_it_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amx: bool, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr(networks, "multiplies_bfloat16", lambda: amx)
    assert networks.dtypes(session(tmp_path)) == ("float32",)  # A quick session only tests that everything works.
    whole = Session(tmp_path / "whole.json", repeats=2, quick=False)
    assert networks.dtypes(whole) == found


def test_a_row_of_the_file_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[str] = []

    def row(of: Session, name: str, **settings: Any) -> Any:
        def measure(**_: Any) -> dict[str, Any]:
            measured.append(name)
            return {"value": len(measured)}

        return of.row("limits", name, {"size": (1, 2), **settings}, measure)

    first = session(tmp_path)
    assert row(first, "a") == {"value": 1}
    assert read_results(first.file)["parts"]["limits"]["a"]["result"] == {"value": 1}  # Before the next row.
    second = session(tmp_path)
    assert row(second, "a") == {"value": 1}
    assert row(second, "b") == {"value": 2}
    assert row(second, "a", dtype="bfloat16") == {"value": 3}  # Other settings are another measurement.
    assert measured == ["a", "b", "a"]
    assert row(session(tmp_path, again=True), "b") == {"value": 4}
    assert "limits     b: value 4" in capsys.readouterr().out
    assert not list(first.file.parent.glob(".*"))


def test_a_row_that_fails_stops_nothing_and_is_tried_again(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise AssertionError("logits differ by 1e-2 of the largest")

    first = session(tmp_path)
    assert first.row("inference", "a", {}, fail) is None
    assert first.failures == ["inference: a"]
    assert "logits differ" in read_results(first.file)["parts"]["inference"]["a"]["error"]
    assert session(tmp_path).row("inference", "a", {}, lambda: {"value": 1}) == {"value": 1}
    # What was measured once is not lost to a fault.
    assert session(tmp_path, again=True).row("inference", "a", {}, fail) is None
    assert read_results(first.file)["parts"]["inference"]["a"]["result"] == {"value": 1}


def test_results_of_another_machine_are_refused(tmp_path: Path) -> None:
    first = session(tmp_path)
    first.put("limits", "a", {})
    content = read_results(first.file)
    content["versions"]["torch"] = "not installed"  # A peer that came later changes nothing,
    del content["versions"]["keras"]  # nor does one that the file does not know.
    first.file.write_text(json.dumps(content))
    session(tmp_path)
    content["machine"]["cores"] += 1
    first.file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="another machine: cores"):
        session(tmp_path)


ROW = {
    "times": {
        "ours": {"median": 0.1, "spread": 0.01},
        "eager nchw": {"median": 0.3, "spread": 0.01},
        "eager channels_last": {"median": 0.2, "spread": 0.02},
        "compile": {"median": 0.08, "spread": 0.01},
    },
    "ratios": {
        "eager nchw": {"of_rounds": 3.0},
        "eager channels_last": {"of_rounds": 2.0},
        "compile": {"of_rounds": 0.8},
    },
    "multiply_adds": {"exact": 20_000_000_000, "valid": 10_000_000_000},
}
ALONE = {"times": {"ours": ROW["times"]["ours"]}, "ratios": {}, "multiply_adds": ROW["multiply_adds"]}
LOSING = {**ROW, "ratios": {**ROW["ratios"], "eager channels_last": {"of_rounds": 0.5}}}


def content() -> dict[str, Any]:
    def row(result: Any, code: str = "c") -> dict[str, Any]:
        return {"settings": {}, "date": "2026-01-02T03:04:05", "others": 0.1, "code": code, "result": result}

    peers = dict.fromkeys(("torch", "torchvision", "segmentation_models_pytorch"), "1")
    return {
        "machine": {"processor": "X", "cores": 2, "memory_gib": 8, "accelerator": None},
        "versions": {"jax": "1", **peers},
        "quick": False,
        "parts": {
            "limits": {
                "product 8x8, float32": row({"rates": {"jax": 300.0, "torch": 400.0}}),
                "copy 1 MiB, float32": row({"rates": {"jax": 20.0}}),
            },
            "inference": {
                "a, OS 8, 512x512, float32": row(ROW),
                "a, OS 8, 513x513, float32": row(LOSING),
                "b, OS 16, 512x512, float32": row(LOSING, code="d"),
                "c, OS 16, 512x512, float32": row(ALONE),
                "c, OS 16, 513x513, float32": {"error": "AssertionError: logits differ", "code": "c"},
            },
        },
    }


def test_the_report_holds_every_row() -> None:
    text = report.summarize(content())
    # Half of 400 GFLOP/s: only the multiply-adds on the map count, two operations each.
    line = "| a, OS 8, 512x512, float32 | 100.0 ± 1% | 200.0 ± 2% (channels_last) | 2.00 | 80.0 ± 1% | **0.80** | 50% |"
    assert line in text.splitlines()
    assert "| c, OS 16, 512x512, float32 | 100.0 ± 1% | – | – | – | – | 50% |" in text.splitlines()  # noqa: RUF001
    # Network a has 2 and 0.5, so 1; b has 0.5.
    assert f"eager PyTorch in float32 {math.sqrt(0.5):.2f}, smallest 0.50" in text
    assert "compiled PyTorch in float32 0.80, smallest 0.80" in text
    assert "Not measured: inference: c, OS 16, 513x513, float32 (AssertionError: logits differ)." in text
    assert "2 states of the code" in text
    assert "other work" not in text
    assert "a, OS 8, 512x512, float32, compile" not in text
    assert "| matrix products, float32 | 400 GFLOP/s |" in text


def test_the_report_tells_of_a_busy_machine_and_of_several_days() -> None:
    full = content()
    first, second, third, *_ = full["parts"]["inference"].values()
    first["others"], second["date"] = 0.6, "2026-02-03T00:00:00"
    third["others"] = 2.0
    text = report.summarize(full)
    assert "2 of 6 rows were measured while the machine did other work as well." in text
    assert "2 cores of X, 2026-01-02 to 2026-02-03, jax 1" in text


def test_the_report_names_contestants_that_failed_and_takes_the_better_format_for_us_at_its_worst() -> None:
    full = content()
    closer = {"eager nchw": {"of_rounds": 1.5}, "eager channels_last": {"of_rounds": 2.0}}
    times = {name: value for name, value in ROW["times"].items() if name != "compile"}
    failing = {**ROW, "times": times, "ratios": closer, "errors": {"compile": "OSError: no compiler"}}
    full["parts"]["inference"]["a, OS 8, 512x512, float32"]["result"] = failing
    text = report.summarize(full)
    assert "inference: a, OS 8, 512x512, float32, compile (OSError: no compiler)" in text
    assert "300.0 ± 1% (nchw) | 1.50" in text  # Though its median is the larger one.
    assert report.better_eager(ALONE) is None


def test_the_report_sums_up_convolutions_by_kind() -> None:
    def row(direct: float, torch: float | None, *, slow: bool = False) -> dict[str, Any]:
        times = {"auto": {"median": 2.0}, **({} if slow else {"direct": {"median": direct}})}
        ratios = (
            {} if torch is None else {"torch nchw": {"of_rounds": torch}, "torch channels_last": {"of_rounds": 9.0}}
        )
        verdict = {
            "close": True,
            "auto_over_best": 1.2 if slow else 1.0,
            "best": "taps",
            **({"slow": {"direct": direct}} if slow else {}),
        }
        return {"result": {"times": times, "ratios": ratios, **verdict}}

    full = content()
    full["parts"]["lowerings"] = {
        "inference forward: 1x8x8x4 3x3 -> 4, rate 1, float32": row(2.0, 0.5),
        "inference forward: 1x8x8x4 3x3 -> 4, rate 5, stride 2, float32": row(6.0, 1.5),
        "training gradient: 1x8x8x4 depthwise 3x3 -> 4, rate 6, float32": row(60.0, None, slow=True),
    }
    text = report.summarize(full)
    assert "2 of 3 measurements, 3 where the spread is allowed for; largest auto / best 1.20" in text
    direct, torch = "1.00 to 3.00 (median 2.00)", "0.50 to 1.50 (median 1.00)"
    line = f'`"direct"` takes {direct} of the time of `"auto"`, PyTorch {torch}'
    assert f"| inference forward, dense, rates below 6: 2 shapes | {line} |" in text
    assert '6 on: 1 shapes | `"direct"` takes 30.00 to 30.00 (median 30.00) of the time of `"auto"` |' in text


@pytest.mark.parametrize(("after", "others"), [((10.0, 15.0, 5.0), 1.0), ((10.0, 5.0, 5.5), 0.0)])
def test_what_others_do_is_told_from_our_own_work(
    monkeypatch: pytest.MonkeyPatch, after: tuple[float, ...], others: float
) -> None:
    """In ten seconds all processors were busy for 15, five of them with our own work."""
    readings = iter([(0.0, 0.0, 0.0), after])
    monkeypatch.setattr(machine.Others, "_seconds", staticmethod(lambda: next(readings)))
    assert machine.Others().processors() == others


def test_the_clocks_of_the_machine_and_of_this_process_go_on() -> None:
    before = machine.Others._seconds()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    wall, busy, own = (b - a for a, b in zip(before, machine.Others._seconds(), strict=True))
    assert own >= 0.08 and wall >= 0.08 and busy >= 0.05  # The system counts in hundredths of a second.


def test_the_peak_of_a_process_is_its_own() -> None:
    held = np.ones(2**27)  # 1 GiB, which a child does not start with.
    code = "from experiments.benchmarks.memory import resident_peak; print(resident_peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    own = memory.resident_peak()
    assert own > 1024 * held[0] > float(child.stdout) > 50
    del held
    assert memory.reset_peak()
    assert memory.resident_peak() < own - 512


def test_programs_are_compared_by_what_they_do() -> None:
    x, kernel = jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 4, 4))

    def text(lowering: Any, rate: int) -> str:
        def convolve(x: jax.Array) -> jax.Array:
            return conv2d(x, kernel, rate=rate, lowering=lowering)

        return lowerings.instructions(jax.jit(convolve).lower(x).compile().as_text())

    assert text("auto", 2) == text("direct", 2)
    assert len({text("direct", 2), text("direct", 3), text("taps", 2)}) == 3


def test_the_report_tells_of_the_papers_scale() -> None:
    full = content()
    result = {
        "network": "deeplabv3_resnet101_beta",
        "output_stride": 16,
        "batch": 16,
        "crop": [513, 513],
        "steps": 30000,
        "parameters": 58_000_000,
        "multiply_adds": 81_020_000_000,
        "planned_mib": 20480.0,
        "micro_batches": 4,
        "seconds": 36.0,
        "peak_mib": 12800,
        "hours": 300.0,
    }
    full["parts"]["paper"] = {"v3_table6/eval_os_16": {"code": "c", "result": result}}
    line = "| 16 x 513x513 | 16 | 58.0 M | 81.0 G | 20.0 GiB | 36 s, 4 micro-batches, 12.5 GiB | 30000 | 300 |"
    assert f"| deeplabv3_resnet101_beta (v3_table6) {line}" in report.summarize(full).splitlines()


class Program:
    """What a compiled step tells of its memory: as much as its micro-batch, and a rest."""

    def __init__(self, parts: int, state: Any, batch: Any) -> None:
        self.mib = 3200 // parts + 100

    def memory_analysis(self) -> SimpleNamespace:
        sizes = dict.fromkeys(("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes"), 0)
        return SimpleNamespace(**sizes, temp_size_in_bytes=self.mib << 20)


@pytest.mark.parametrize(("available", "parts"), [(10_000, 1), (1000, 8), (375, 16), (100, 16)])
def test_a_batch_is_split_until_it_fits(available: float, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "available_mib", lambda: available)
    program, planned, found = paper.fitting(Program, None, {"image": np.zeros(16)})
    assert (found, planned, program.mib) == (parts, 3300, 3200 // parts + 100)


def test_shapes_of_the_convolutions_are_collected_with_their_counts() -> None:
    """Two 3x3 convolutions in a unit, two units in each of 4 stages; a stem of 7x7, 3 atrous branches, one decoder."""
    every = lowerings.collect(networks.TINY, 2, 64, train=True)
    found = {c: count for c, count in every.items() if c.kernel[0] >= 3}
    assert sum(found.values()) == 1 + 16 + 3 + 1
    # Shortcuts of three stages; in the pyramid one branch, the image's and the projection; low-level, logits.
    assert sum(every.values()) - sum(found.values()) == 3 + 3 + 2
    assert all(c.inputs[0] == 2 for c in every)
    assert sorted(c.rate for c in found if c.kernel[3] == 8 and c.kernel[2] == 64) == [6, 12, 18]
    (stem,) = (c for c in found if c.kernel[0] == 7)
    assert lowerings.spell(stem) == "2x64x64x3 7x7 -> 8, rate 1, stride 2"
    (repeated,) = (c for c in found if c.inputs == (2, 16, 16, 8) and c.stride == 1 and c.kernel[3] == 8)
    assert found[repeated] == 4


def test_auto_is_held_against_the_best_lowering() -> None:
    close = lowerings.verdict(Race({"auto": [1.1], "direct": [1.0], "taps": [2.0], "torch nchw": [0.1]}), [])
    assert close == {"best": "direct", "auto_over_best": 1.1, "spread": 0.0, "close": True}
    far = Race({"auto": [1.3], "direct": [1.0]})
    assert not lowerings.verdict(far, [])["close"]
    assert lowerings.verdict(far, ["direct"])["close"]  # One program, whatever the clock says.
    noisy = Race({"auto": [1.3, 1.3, 1.3], "direct": [0.5, 1.0, 1.5]})
    assert lowerings.verdict(noisy, [])["close"]


@pytest.mark.parametrize(
    "network", [n if n is networks.TINY else pytest.param(n, marks=pytest.mark.slow) for n in networks.BY_NAME.values()]
)
def test_every_network_of_the_table_is_one_of_ours(network: networks.Network) -> None:
    model = networks.create(network)
    assert model.num_classes == networks.CLASSES
    assert model.output_stride == network.output_stride


def test_random_variables_have_the_shapes_of_the_model() -> None:
    model = networks.create(networks.TINY)
    variables = networks.random_variables(model)
    flat, shapes = flatten_dict(variables), flatten_dict(abstract_variables(model))
    assert {path: leaf.shape for path, leaf in flat.items()} == {path: leaf.shape for path, leaf in shapes.items()}
    assert all((leaf > 0).all() for path, leaf in flat.items() if path[-1] == "var")


def test_wrong_flags_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--parts", "inferense"], "inference"),
        (["--repeats", "0"], "at least 1"),
        (["--parts", "", "--out", str(tmp_path / "none.json")], "measure first"),
    ):
        assert benchmarks.main(flags) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_only_some_rows_are_measured(tmp_path: Path) -> None:
    made = []
    for only, expected in (("b", ["b"]), ("", ["b", "a"])):
        part = session(tmp_path, only=only)
        results = [part.row("p", name, {}, lambda name=name: made.append(name) or {"n": name}) for name in "ab"]
        assert made == expected
    assert results == [{"n": "a"}, {"n": "b"}]


def test_the_report_alone_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, readme = tmp_path / "cpu.json", tmp_path / "README.md"
    results.write_text(json.dumps(content()))
    readme.write_text(f"{report.SECTION.start}\n{report.SECTION.end}\n")
    assert benchmarks.main(["--parts", "", "--out", str(results), "--write", str(readme)]) == 0
    assert readme.read_text() == f"{report.SECTION.start}\n{report.summarize(content())}\n{report.SECTION.end}\n"
    assert json.loads(results.read_text()) == content()
    assert "Inference" in capsys.readouterr().out


def test_each_machine_has_a_file_of_its_own(tmp_path, monkeypatch, capsys) -> None:
    epyc, xeon = ({"processor": name, "accelerator": None} for name in ("AMD EPYC", "Intel(R) Xeon(R) Processor"))
    assert [machine.file_name(one) for one in (epyc, xeon)] == ["cpu_amd_epyc", "cpu_intel_xeon"]
    assert machine.file_name({**xeon, "accelerator": "NVIDIA H100 80GB HBM3"}) == "gpu_nvidia_h100_80gb_hbm3"
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({**content(), "machine": {**content()["machine"], "processor": name}})
        )
    assert benchmarks.main(["--parts", ""]) == 0
    printed = capsys.readouterr().out
    assert printed.index("2 cores of a, 2026-01-02, jax") < printed.index("2 cores of b, 2026-01-02, jax")


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        run_child("nothing")


def test_without_keras_hub_its_part_is_left_out(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(keras_hub, "PACKAGES", ("keras_that_is_not_there",))
    keras_hub.measure(session(tmp_path))
    assert "left out: keras_that_is_not_there not installed" in capsys.readouterr().out
    assert not (tmp_path / "results" / "cpu.json").exists()


def test_the_report_has_keras_hubs_times() -> None:
    full = content()
    times = {"ours": {"median": 0.5}, "KerasHub": {"median": 2.0}}
    row = {"times": times, "ratios": {"KerasHub": {"of_rounds": 4.0}}}
    full["parts"]["keras_hub"] = {"inference, n, OS 16": {"code": "c", "date": "2026-01-02", "result": row}}
    sides = {
        "ours": {"first_call": 5.25, "peak_running": 1200.0},
        "KerasHub": {"first_call": 9.0, "peak_running": 2400},
    }
    full["parts"]["keras_hub"]["first call and memory, n"] = {"code": "c", "date": "2026-01-02", "result": sides}
    full["versions"]["keras_hub"] = "0.32.0"
    text = report.summarize(full)
    text_of_sides = "first result after 5.2 s, KerasHub 9.0 s; peak memory 1,200 MiB, KerasHub 2,400 MiB"
    assert f"| KerasHub, first call and memory, n | {text_of_sides} |" in text
    assert "| KerasHub, inference, n, OS 16 | 500.0 ms, KerasHub 2,000.0 ms, ratio 4.00 |" in text
    assert "segmentation_models_pytorch 1, keras_hub 0.32.0; freed memory" in text


@pytest.mark.slow
def test_keras_hub_is_measured_with_the_same_weights(tmp_path: Path, repo_root: Path) -> None:
    if importlib.util.find_spec("keras_hub") is None:
        pytest.skip("`make peers` installs it")
    out = tmp_path / "cpu.json"
    flags = ["--quick", "--repeats", "1", "--parts", "keras_hub", "--out", str(out)]
    # Keras runs on JAX only where nothing has imported it with another back end.
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks", *flags], cwd=repo_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_results(out)["parts"]["keras_hub"]
    assert len(rows) == 6
    races = [row["result"] for row in rows.values() if "ratios" in row["result"]]
    assert len(races) == 4 and all(race["ratios"]["KerasHub"]["of_rounds"] > 0 for race in races)
    sides = [side for row in rows.values() if "ours" in row["result"] for side in row["result"].values()]
    assert len(sides) == 4 and all(side["first_call"] > 0 and side["peak_running"] > 0 for side in sides)


def test_times_of_a_step_are_summed_by_what_asked_for_them() -> None:
    lines = ("dot.1", "dot", "norm/batch/reduce_sum"), ("sum.1", "fusion", "backbone/stem/norm/batch/reduce_sum")
    product = ("dot.2", "dot", "backbone/stem/conv/jit(convolve)/dot_general")
    loop = ("while.1", "while", "backbone/stem/conv/while")
    text = "ENTRY %main () -> f32[] {\n"
    for name, opcode, asked in (*lines, product, loop, ("add.1", "add", "add")):
        text += f'  %{name} = f32[4]{{0}} {opcode}(%x), metadata={{op_name="jit(step)/jvp(Segmenter.f)/{asked}"}}\n'
    times = {"dot.1": 1.0, "sum.1": 2.0, "dot.2": 10.0, "while.1": 100.0, "add.1": 0.5, "another program": 7.0}
    assert profile.sum_by_kind(read_program(text + "}\n"), times) == {
        "products of convolutions": 10.0,
        "sums of batch norm": 3.0,
        "other": 0.5,
    }


def test_the_measured_augmentation_is_that_of_the_base_configuration() -> None:
    image, label = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8)
    image, label = pipeline.papers_augmentation()(image, label, np.random.default_rng(0))[:2]
    side = base().data.crop_size[0]
    assert image.shape == (side, side, 3) and label.shape == (side, side)
    assert image[label == 255].tolist() == [list(IMAGENET.mean_pixel)] * int((label == 255).sum())


def test_the_first_loss_is_that_of_a_step() -> None:
    model = networks.create(networks.TINY, dropout=0.0)
    variables, examples = networks.random_variables(model), networks.random_examples(2, 33)
    step, state = networks.training(model, variables)
    _, metrics = step(state, examples)
    assert training.first_loss(model, variables, examples) == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_quick_run_of_all_parts(tmp_path: Path, repo_root: Path) -> None:
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("`make peers` installs the peers")
    out = tmp_path / "cpu.json"
    command = [sys.executable, "-m", "experiments.benchmarks", "--quick", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = read_results(out)["parts"]
    assert set(parts) == set(benchmarks.PARTS)
    assert not [name for rows in parts.values() for name, row in rows.items() if "error" in row]
    raced = [row["result"] for row in parts["inference"].values() if report.better_eager(row["result"])]
    assert raced and all(row["logits_differ"] <= 1e-4 for row in raced)
    assert str(tmp_path) not in out.read_text()
    again = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    kept = again.stdout.count(": kept from ")
    assert kept == sum(len(rows) for rows in parts.values()) - 1  # All but the exponents, which are fitted anew.


def test_the_gain_of_bfloat16_is_of_rows_of_one_day() -> None:
    def rows(**seconds: tuple[str, float]) -> dict[str, Any]:
        return {
            f"{name.replace('_', ', OS 16, 8x8, ')}": {"date": date, "result": {"times": {"ours": {"median": median}}}}
            for name, (date, median) in seconds.items()
        }

    one = rows(a_float32=("2026-12-01T01", 3.0), a_bfloat16=("2026-12-01T02", 1.5), b_float32=("2026-12-01T01", 8.0))
    text = "Inference: ours in bfloat16 is 2.00 times as fast as in float32 (a, OS 16 2.00)."
    assert report.gain_text("Inference", one) == text
    assert report.gain_text("Inference", one | rows(b_bfloat16=("2026-11-30T01", 1.0))) == text
    both = one | rows(b_bfloat16=("2026-12-01T03", 1.0))
    assert report.gain_text("Inference", both).startswith("Inference: ours in bfloat16 is 4.00 times")
    assert report.gain_text("Inference", rows(b_bfloat16=("2026-12-01T03", 1.0))) == ""
