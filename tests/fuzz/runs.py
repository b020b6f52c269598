"""Run directories: their records and Orbax's folders, read by most verbs; and post-mortems, which `replay` reads."""

import io
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax.train.run import BATCH_FILE
from tests.fuzz.cases import Case, Family, Sound
from tests.fuzz.damage import damaged, damaged_json
from tests.fuzz.networks import image_file
from tests.support.tiny import run_training, tiny_config


class Seeds(NamedTuple):
    """A run of two steps, and an image."""

    run: Path
    image: Path


def seeds(folder: Path) -> Seeds:
    """Train two steps, each of which is kept."""
    config = tiny_config(**{"train.steps": 2, "train.evaluate_every": 2, "train.checkpoint_every": 1})
    config.train.pictures = 0
    run_training(folder / "run", config)
    return Seeds(folder / "run", image_file(folder))


def make_run(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage one file of a run directory: its records in a third of the cases."""
    run = folder / "run"
    shutil.copytree(seeds.run, run)
    _damage_one(run, rng)
    out = f"--out={folder / 'out'}"
    words = rng.choice(
        (
            ["evaluate", f"--model={run}", out, f"--checkpoint={rng.choice(('best', 'newest', '1'))}"],
            ["predict", f"--model={run}", out, str(seeds.image)],
            ["summarize", str(run), "--size=65"],
            ["convert", str(run), out],
            ["train", f"--config={run / 'config.json'}", f"--workdir={run}", "--config.train.steps=2"],
        )
    )
    return Case(words)


# Batches that are arrays as sound as any, but not what the step is for.
STRANGE: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda array: array[:1],
    lambda array: array[:0],
    lambda array: array[..., 0],
    lambda array: array[:, :5],
    lambda array: array[0, 0, 0],
    lambda array: np.repeat(array, 3, axis=0),
    lambda array: array.astype(np.float64) * np.nan,
    lambda array: array.astype(np.int64) * 10**12,
    lambda array: array.astype(complex),
    lambda array: array.astype(str),
    lambda array: array.astype("datetime64[s]"),
    lambda array: array.view([("a", "u1")]),
)


def make_postmortem(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a post-mortem: the batch's file, an array in it whose checksum is right, or any other file."""
    run = folder / "run"
    shutil.copytree(seeds.run, run)
    bits = np.random.default_rng(0)
    batch = {
        "image": bits.integers(0, 256, (2, 33, 33, 3), np.uint8),
        "label": bits.integers(0, 9, (2, 33, 33), np.uint8),
    }
    kind = 0.9 if isinstance(rng, Sound) else rng.random()
    if kind < 0.3:
        name = rng.choice(list(batch))
        batch[name] = rng.choice(STRANGE)(batch[name])
    hurt = rng.choice(list(batch)) if 0.3 <= kind < 0.6 else ""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in batch.items():
            content = io.BytesIO()
            np.save(content, array)
            data = damaged(content.getvalue(), rng) if name == hurt else content.getvalue()
            archive.writestr(f"{name}.npy", data)
    (run / BATCH_FILE).write_bytes(damaged(file.getvalue(), rng) if 0.6 <= kind < 0.8 else file.getvalue())
    if kind >= 0.8:
        _damage_one(run, rng)
    return Case(["replay", str(run)])


def _damage_one(run: Path, rng: random.Random) -> None:
    """Damage one file of a folder: its records in a third of the cases."""
    everything = sorted(file for file in run.rglob("*") if file.is_file() and file.stat().st_size)
    records = [file for file in everything if file.parent == run]
    file = rng.choice(records if rng.random() < 0.4 else everything)
    if file.suffix == ".json":
        file.write_bytes(damaged_json(file.read_text("utf-8"), rng))
    else:
        file.write_bytes(damaged(file.read_bytes(), rng))


FAMILIES = {
    "runs": Family(seeds, make_run, 2, alone=False),
    "postmortems": Family(seeds, make_postmortem, 0.2, alone=False),
}
