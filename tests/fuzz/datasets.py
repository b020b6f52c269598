"""Folders of data sets in their published layouts: lists, annotations, names, missing files; read by `check-data` and
`prepare`.
"""

import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.cases import Case, Family, Sound
from tests.fuzz.damage import damaged, damaged_json
from tests.support.layouts import ARGUMENTS, LAYOUTS

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a b.png", ".hidden.png", "\udcff.png", "é.PNG", "x" * 200 + ".png", "a\nb.png", "0.PNG", "-x.png")


class Seeds(NamedTuple):
    """A folder for each layout, and one that `prepare` wrote."""

    layouts: dict[str, Path]
    prepared: Path


def seeds(folder: Path) -> Seeds:
    """Write every layout once."""
    from deeplab_jax.cli import main

    for name, write in LAYOUTS.items():
        (folder / name).mkdir()
        write(folder / name)
    words = ["prepare", f"--config={ROOT}/configs/camvid.py", f"--config.data.dir={folder / 'camvid'}"]
    if main([*words, f"--out={folder / 'prepared'}"]):
        raise RuntimeError("no prepared folder")
    return Seeds({name: folder / name for name in LAYOUTS}, folder / "prepared")


def make_layout(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a data set, and look for what is wrong with it."""
    words, hurt = _damaged_layout(seeds, folder, rng)
    return Case(["check-data", *words], hurt)


def make_preparation(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a data set, and write it as a prepared folder."""
    words, hurt = _damaged_layout(seeds, folder, rng)
    return Case(["prepare", *words, f"--out={folder / 'out'}"], hurt)


def _damaged_layout(seeds: Seeds, folder: Path, rng: random.Random) -> tuple[list[str], int]:
    """Damage lists and annotations, and rename, remove, swap or add files; return the config's words, and how many."""
    name = rng.choice(list(seeds.layouts))
    data = folder / "data"
    shutil.copytree(seeds.layouts[name], data)
    files = sorted(file for file in data.rglob("*") if file.is_file())
    lists = [file for file in files if file.suffix in (".txt", ".json")]
    hurt: set[Path] = set()
    for _ in range(0 if isinstance(rng, Sound) else rng.randint(1, 3)):
        file = rng.choice(lists if lists and rng.random() < 0.7 else files)
        if file in hurt or not file.is_file():
            continue
        hurt.add(file)
        match rng.randrange(7):
            case 0:
                file.unlink()
            case 1:
                file.rename(file.with_name(rng.choice(NAMES)))
            case 2:
                file.unlink()
                rng.choice((os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)))(file)
            case 3:
                shutil.rmtree(file.parent)
            case _ if file.suffix == ".json":
                file.write_bytes(damaged_json(file.read_text("utf-8", "replace") or "{}", rng))
            case _:
                file.write_bytes(damaged(file.read_bytes(), rng))
    return [f"--config={ROOT}/configs/{name}.py", f"--config.data.dir={data}", *ARGUMENTS.get(name, [])], len(hurt)


def make_prepared(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a folder that `prepare` wrote."""
    data = folder / "data"
    shutil.copytree(seeds.prepared, data)
    file = rng.choice(sorted(file for file in data.rglob("*") if file.is_file()))
    if file.suffix == ".json":
        file.write_bytes(damaged_json(file.read_text("utf-8"), rng))
    else:
        file.write_bytes(damaged(file.read_bytes(), rng))
    words = ["check-data", f"--config={ROOT}/configs/camvid.py", "--config.data.name=tfds"]
    return Case([*words, f"--config.data.dir={data}"])


FAMILIES = {
    "layouts": Family(seeds, make_layout, 4),
    "preparations": Family(seeds, make_preparation, 1),
    "prepared": Family(seeds, make_prepared, 1),
}
