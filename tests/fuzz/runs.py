"""Run directories: their records and Orbax's folders, read by most verbs."""

import random
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.cases import Case, Family
from tests.fuzz.damage import damaged, damaged_json
from tests.fuzz.networks import image_file
from tests.tiny import run_training, tiny_config


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
    everything = sorted(file for file in run.rglob("*") if file.is_file() and file.stat().st_size)
    records = [file for file in everything if file.parent == run]
    file = rng.choice(records if rng.random() < 0.4 else everything)
    if file.suffix == ".json":
        file.write_bytes(damaged_json(file.read_text("utf-8"), rng))
    else:
        file.write_bytes(damaged(file.read_bytes(), rng))
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


FAMILIES = {"runs": Family(seeds, make_run, 2, alone=False)}
