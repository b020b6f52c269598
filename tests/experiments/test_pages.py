"""The pages' numbers are those of the committed results; a changed generator or result needs its page written again."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import multiply_adds, spread
from experiments.benchmarks import report, tpu
from experiments.benchmarks.__main__ import RESULTS as BENCHMARKS
from experiments.benchmarks.__main__ import summarize
from experiments.outcomes.gather import read_tables
from experiments.outcomes.verdicts import all_verdicts
from experiments.output import Section
from experiments.report import markdown
from experiments.tables import TABLES

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def tables() -> str:
    results, remarks = read_tables(RESULTS / "tables", ())
    assert not remarks
    return markdown.tables(results, all_verdicts(results))


def spreads() -> str:
    results, _ = read_tables(RESULTS / "tables", ("scenes",))
    (noise,) = (result for result in results if result.table is TABLES["extra_noise"])
    return spread.table(spread.protocols(noise))


def benchmarks() -> str:
    return "\n\n".join(map(summarize, sorted(BENCHMARKS.glob("*.json"))))


@pytest.mark.parametrize(
    ("page", "section", "generate"),
    [
        ("experiments/results/README.md", markdown.SECTION, tables),
        ("experiments/results/README.md", spread.SECTION, spreads),
        ("experiments/benchmarks/README.md", report.SECTION, benchmarks),
        ("experiments/benchmarks/README.md", tpu.SECTION, lambda: tpu.summarize(tpu.read_results(tpu.RESULTS))),
    ],
    ids=["tables", "spread", "benchmarks", "tpu"],
)
def test_a_generated_section_is_what_its_program_writes(
    page: str, section: Section, generate: Callable[[], str], repo_root: Path
) -> None:
    text = (repo_root / page).read_text(encoding="utf-8")
    assert section.replace(text, generate()) == text


def test_the_page_of_multiply_adds_is_what_its_program_writes(monkeypatch) -> None:
    """All but its last paragraph, whose networks take a minute."""
    text = (RESULTS / "multiply_adds.md").read_text(encoding="utf-8")
    rows = json.loads((RESULTS / "multiply_adds.json").read_text())["rows"]
    monkeypatch.setattr(multiply_adds, "odd_one_out", lambda: text.rstrip().rpartition("\n\n")[2])
    assert multiply_adds.markdown(rows) == text


# By the number of their row in results/README.md.
CAMVID = {1: "camvid", 2: "camvid_finetune", 3: "camvid_finetune/folded", 4: "camvid_best"}


def mious(folder: str) -> list[str]:
    """Return the mIoU at output stride 16, at 8, and at 8 with three scales and flip, as pages write it."""
    files = (RESULTS / folder / f"{name}.json" for name in ("os16_padded", "os8_padded", "os8_ms_flip"))
    return [f"{100 * json.loads(file.read_text())['miou']:.2f}" for file in files]


@pytest.mark.parametrize("number", CAMVID)
def test_the_table_of_camvid_has_the_results_of_its_files(number: int) -> None:
    (line,) = re.findall(rf"^\| {number}: .*$", (RESULTS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"\| \**([\d.]+)\**(?= \|)", line)[-3:] == mious(CAMVID[number])


def test_the_readme_has_the_results_of_their_files(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    scratch, best = re.findall(r"^\| CamVid, .*$", text, re.MULTILINE)
    plain, _, views = mious("camvid")
    assert f"{plain} at output stride 16; {views} at 8 with 3 scales and flip" in scratch
    plain, fine, views = mious("camvid_best")
    assert f"{plain} at output stride 16, **{fine}** at 8; **{views}** at 8 with 3 scales and flip" in best
    rows = json.loads((RESULTS / "multiply_adds.json").read_text())["rows"]
    close = [row for row in rows if abs(row["difference_percent"]) <= 0.36]
    assert f"{len(close)} of {len(rows)} rows within 0.36% of the paper" in text
    page = (repo_root / "experiments/benchmarks/README.md").read_text(encoding="utf-8")
    against = "geometric mean against eager PyTorch in"
    means = dict(re.findall(rf"(Inference|Training step): {against} float32 (\S+),", page))
    assert f"inference {means['Inference']}, training {means['Training step']}, in the geometric mean" in text
    halves = re.findall(rf"; {against} bfloat16 (\S+),", page)
    assert f"in bfloat16 {' and '.join(halves)}" in text
