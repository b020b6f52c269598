"""Files of results: read by `experiments.report`, `experiments.run --plan` and `experiments.benchmarks`."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.cases import Case, Family
from tests.fuzz.damage import damaged_json

ROOT = Path(__file__).resolve().parents[2]
TABLE = "v3_table6"
ROWS = ("eval_os_16", "eval_os_8")


class Seeds(NamedTuple):
    """A table's rows by name, what a training logged, and results of benchmarks."""

    rows: dict[str, str]
    record: list[dict[str, Any]]
    benchmarks: str


def seeds(folder: Path) -> Seeds:
    """Make what the runner leaves behind, and read the benchmarks in the repository."""
    rows = {}
    config = {
        "train": {"steps": 450, "batch_size": 8},
        "model": {"name": "deeplabv3_resnet18", "output_stride": 16, "options": {}},
    }
    for row, miou in zip(ROWS, (0.7, 0.71), strict=True):
        entry = {
            "seed": 0,
            "miou": miou,
            "pixel_accuracy": 0.9,
            "commits": ["0123456789abcdef"],
            "seconds": {"training": 60.0, "evaluation": 2.0},
        }
        content = {
            "row": row,
            "seeds": [entry, {**entry, "seed": 1}],
            "training": "a",
            "evaluation": row,
            "notes": ["a note"],
            "config": config,
            "pretraining": {"name": "b_weights", "seconds": 60.0, "config": config},
        }
        rows[row] = json.dumps(content)
    record = [{"step": step, "train/loss": 2.0 - step / 10, "train/images_per_second": 3.0} for step in range(1, 6)]
    record += [{"step": 3, "val/miou": 0.4}, {"step": 5, "val/miou": 0.7}]
    benchmarks = (ROOT / "experiments" / "results" / "benchmarks" / "cpu_intel_xeon.json").read_text("utf-8")
    return Seeds(rows, record, benchmarks)


def make_rows(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage the file of a table and that of the trainings."""
    results = folder / "results" / "scenes"
    (results / TABLE).mkdir(parents=True)
    rows = {row: json.loads(text) for row, text in seeds.rows.items()}
    (results / f"{TABLE}.json").write_bytes(damaged_json(json.dumps({"table": TABLE, "rows": rows}), rng))
    (results / TABLE / "trainings.json").write_bytes(damaged_json(json.dumps({"a_seed0": seeds.record}), rng))
    if rng.random() < 0.5:
        words = [TABLE, "--plan", f"--out={folder / 'results'}", f"--runs={folder / 'runs'}"]
        return Case(words, 1, "tables")
    words = [f"--results={folder / 'results'}", f"--runs={folder / 'runs'}", f"--out={folder / 'out'}"]
    return Case(words, 2, "report")


def make_benchmarks(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage the results of benchmarks."""
    file = folder / "cpu.json"
    file.write_bytes(damaged_json(seeds.benchmarks, rng))
    return Case(["--parts=", f"--out={file}"], 1, "benchmarks")


FAMILIES = {
    "results": Family(seeds, make_rows, 3),
    "benchmarks": Family(seeds, make_benchmarks, 2),
}
