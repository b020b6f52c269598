"""How far trainings are, and how long they took, from the `metrics.jsonl` of their run directories."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeplab_jax.files import parse_json
from experiments.runner.files import is_number


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run, none where there is no file; half a line, of a run that writes or was killed, is
    passed over.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def training_records(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of training steps."""
    logged = ("step", "train/loss", "train/images_per_second")
    return (record for record in read_records(file) if all(is_number(record.get(name)) for name in logged))


def training_seconds(file: Path, batch_size: int) -> float:
    """Return how long the steps took, from the throughput that was logged with them: the same however often the run was
    interrupted, compilation included, evaluation and checkpoints left out.
    """
    seconds, before, rate = 0.0, 0, 0.0
    for record in training_records(file):
        rate = record["train/images_per_second"] or rate  # Logs of older runs have 0 at a last step logged alone.
        seconds += (record["step"] - before) * batch_size / rate if rate else 0.0
        before = record["step"]
    return round(seconds, 1)


def state_of(file: Path) -> tuple[int, float | None]:
    """Return the last step that was logged and its loss; (0, None) before the first."""
    step, loss = 0, None
    for record in training_records(file):
        step, loss = record["step"], record["train/loss"]
    return step, loss
