"""What is prepared for accelerators: the estimates of TPUs as a file and a table, and the script for a GPU."""

import json

import pytest

from deeplab_jax.train.ahead import Ahead
from experiments.benchmarks import gpu, tpu
from experiments.benchmarks.gpu import STEPS, Step, Timed, of, of_kernels

FITS = {
    "images": 16,
    "devices": 4,
    "fits": True,
    "total_memory": 3 * 2**30,
    "chip_memory": 16 * 2**30,
    "cycles": 150_000_000,
    "cycles_by_layer": {"backbone/a/b": 2, "backbone/a/c": 3, "update": 1},
    "bounds": {"flops": 0.03, "bytes": 0.08, "cycles": 0.1},
    "estimated": {"seconds": 0.1, "images_per_second": 160.0, "hours": 0.83},
}


def test_trainings_of_the_papers_are_each_named_once() -> None:
    found = dict(tpu.trainings("paper", "bfloat16"))
    assert "v3plus_table2/3x3_256_x_2" in found
    assert len({one.training_key for one in found.values()}) == len(found) > 30
    assert {one.config.model.options.dtype for one in found.values()} == {"bfloat16"}


def test_rows_are_written_as_they_come_and_kept(tmp_path, monkeypatch, capsys) -> None:
    file, page = tmp_path / "tpu.json", tmp_path / "page.md"
    page.write_text(f"before\n{tpu.SECTION.start}\n{tpu.SECTION.end}\nafter\n")
    reports = [dict(FITS), {**FITS, "fits": False, "why": "20.00G exceeds 15.75G"}, KeyboardInterrupt()]

    def report(self: Ahead) -> dict:
        if isinstance(reports[0], KeyboardInterrupt):
            raise reports[0]
        return reports.pop(0)

    monkeypatch.setattr(Ahead, "report", report)
    words = ["--targets", "cpu", "--rows", "v3_table1/", "--out", str(file), "--write", str(page)]
    with pytest.raises(KeyboardInterrupt):
        tpu.main(words)
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2 and next(iter(rows.values()))["cycles_by_layer"] == {"backbone/a": 5, "update": 1}
    reports[:] = [dict(FITS)] * 6
    assert tpu.main(words) == 0
    assert len(reports) == 2  # Of six rows, two were there.
    table = page.read_text()
    assert "**estimated** by XLA" in table and table.endswith("after\n")
    assert "| 16 | 4 | yes | 3.00 of 16.00 | 150.0 | cycles | 160 | 0.8 |" in table
    assert "| no: 20.00G exceeds 15.75G | - | - | - | - | - |" in table


def test_the_trainings_are_those_of_the_papers() -> None:
    names = [name for name, _ in tpu.trainings("paper", "bfloat16")]
    assert len(names) == 62 and {name.split("_")[0] for name in names} == {"v3", "v3plus"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--regime", "papers"), "--regime 'papers': did you mean paper?"),
        (("--targets", "v5e:3x3"), "--target v5e:3x3: "),
        (("--targets", "cpu", "--out", "{file}"), "holds no estimates of TPUs; give another --out"),
    ],
)
def test_one_line_for_what_cannot_be(words, message, tmp_path, capsys) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    assert tpu.main([word.format(file=file) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_no_row_of_a_gpu_starts_too_late_and_steps_choose_theirs(tmp_path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    session = Timed(tmp_path / "results.json", end=10.0, quick=False)

    def measure() -> dict[str, float]:
        now[0] += 6
        return {"seconds": 6.0}

    def offered(part: str, *names: str) -> list[str]:
        return [name for name in names if session.row(part, name, {}, measure) is not None]

    session.step = Step(gpu.training.measure, of("bfloat16"))
    assert offered("training", "a, float32", "a, bfloat16", "b, bfloat16", "c, bfloat16") == [
        "a, bfloat16",
        "b, bfloat16",
    ]
    assert session.left_out == ["training: c, bfloat16"]
    session.end, session.step = 100.0, Step(gpu.lowerings.measure, of_kernels)
    atrous = ("x 3x3 -> 8, rate 6, bfloat16", "x 3x3 -> 8, rate 12, stride 2, bfloat16")
    names = [f"training gradient: {name}" for name in atrous]
    others = (
        "training gradient: x 3x3 -> 8, rate 1, bfloat16",
        f"inference forward: {atrous[0]}",
        "training gradient: x",
    )
    assert offered("lowerings", *others, *names) == names
    session.step = STEPS[0]
    network = gpu.networks.RESNET101_PLUS.name
    lowered = [f"{network}, 16x513x513, lowering {how}, bfloat16" for how in ("auto", "taps")]
    assert offered("headline", *lowered, f"{network}, 16x513x513, lowering auto, float32") == lowered[:1]


def test_without_a_gpu_nothing_is_measured(tmp_path, capsys) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "JAX has found no GPU: install '.[cuda]', or give --quick" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path) -> None:
    """Tiny sizes; a second run keeps all rows."""
    assert gpu.main(["--out", str(tmp_path), "--quick", "--minutes", "8"]) == 0
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {"headline", "training", "inference", "lowerings", "limits"} <= set(parts)
    assert all("error" not in row for rows in parts.values() for row in rows.values())
    assert any(name.endswith("bfloat16") for name in parts["headline"])
    assert gpu.main(["--out", str(tmp_path), "--quick", "--minutes", "0"]) == 0
