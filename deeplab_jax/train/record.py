"""The record of a run, `metrics.jsonl`: a line for every logged step and every evaluation."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from deeplab_jax.files import parse_json

RECORD_FILE = "metrics.jsonl"


def last_evaluation(file: Path) -> dict[str, Any]:
    """Return the last evaluation by the record of a run, `metrics.jsonl`: its step, the means, and each class's IoU."""
    found: dict[str, Any] = {}
    for record in _evaluations(file):
        values = {name.removeprefix("val/"): value for name, value in record.items()}
        ious = {name: values.pop(name) for name in list(values) if name.startswith("iou/")}
        per_class = [{"name": name.removeprefix("iou/"), "iou": iou} for name, iou in ious.items()]
        found = {**values, "per_class": per_class}
    return found


def read_mious(file: Path, *, until: int) -> list[tuple[int, float]]:
    """Return the number and the mIoU of each evaluated step up to `until`, by the record of a run, `metrics.jsonl`.

    What cannot be read there counts as not evaluated. An evaluation without any labelled pixel counts as 0.
    """
    evaluated = [record for record in _evaluations(file) if record["step"] <= until]
    return [(record["step"], float(record.get("val/miou", 0.0))) for record in evaluated]


def _evaluations(file: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` with an evaluation."""
    found = []
    for record in records(file):
        with suppress(ValueError, TypeError, OverflowError):
            if "val/seconds" in record and math.isfinite(float(record.get("val/miou", 0.0))):
                found.append(record)
    return found


def records(file: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`, each with its `step` as a whole number; none if there is no file.

    Lines that cannot be read are left out: a killed run may leave half a line.
    """
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            record = parse_json(line)
            found.append({**record, "step": int(record["step"])})
    return found
