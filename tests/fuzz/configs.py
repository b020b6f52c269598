"""Configs, as JSON and as Python text, read by `check-data`, `evaluate` and `train`."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.config import choose_model, shrink, to_plain
from tests.fuzz.cases import Case, Family
from tests.fuzz.damage import damaged, damaged_json
from tests.fuzz.networks import CLASSES, model_folder
from tests.support.layouts import write_pair
from tests.support.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]


class Seeds(NamedTuple):
    """A data set, a config of it, and a model folder where one is needed."""

    data: Path
    config: str
    model: Path | None = None


def seeds(folder: Path) -> Seeds:
    """Make a data set of three pairs, and a config of one step on it."""
    for index in range(6):
        write_pair(folder / f"images/{index}.png", folder / f"masks/{index}.png", values=(0, 1))
    config = tiny_config()
    shrink(config)
    choose_model(config, "cascade_tiny", norm_momentum=0.9)
    config.data.update({"name": "folder", "dir": str(folder), "crop_size": (33, 33), "timeout": 5.0, "threads": 1})
    config.data.options = {"class_names": CLASSES, "value_map": None, "val_fraction": 0.5, "ignore_label": 255}
    config.train.update({"steps": 1, "evaluate_every": 1, "checkpoint_every": 1, "pictures": 0})
    config.evaluate.pad_to = ((65, 65),)
    return Seeds(folder, json.dumps(to_plain(config)))


def seeds_and_network(folder: Path) -> Seeds:
    """Make a network besides."""
    return seeds(folder)._replace(model=model_folder(folder))


def make_json(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a config in JSON, and check its data."""
    return Case(["check-data", f"--config={_written(seeds, folder, rng)}"])


def make_evaluation(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a config in JSON, and evaluate a network with it."""
    file = _written(seeds, folder, rng, "data", "evaluate")
    return Case(["evaluate", f"--model={seeds.model}", f"--config={file}", f"--out={folder / 'out'}"])


def make_training(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a config in JSON, and train with it."""
    return Case(["train", f"--config={_written(seeds, folder, rng)}", f"--workdir={folder / 'run'}"])


def make_python(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a config's Python text, by its bytes. It is code: it runs."""
    file = folder / "config.py"
    file.write_bytes(damaged((ROOT / "configs" / "folder.py").read_bytes(), rng))
    words = ["check-data", f"--config={file}", f"--config.data.dir={seeds.data}"]
    return Case([*words, "--config.data.options.class_names=('a','b')", "--config.data.options.val_fraction=0.5"])


def _written(seeds: Seeds, folder: Path, rng: random.Random, *sections: str) -> Path:
    """Write a config that is damaged, in all of it or in some sections."""
    content: dict[str, Any] = json.loads(seeds.config)
    part = {name: content[name] for name in sections} if sections else content
    text = damaged_json(json.dumps(part), rng)
    try:
        content |= json.loads(text)
    except (ValueError, TypeError, RecursionError):
        pass
    else:
        text = json.dumps(content).encode()
    file = folder / "config.json"
    file.write_bytes(text)
    return file


FAMILIES = {
    "configs": Family(seeds, make_json, 4),
    "evaluations": Family(seeds_and_network, make_evaluation, 1, alone=False),
    "trainings": Family(seeds, make_training, 0.5, alone=False),
    "python": Family(seeds, make_python, 1),
}
