"""A folder of images and masks as users have it, and the command line as they type it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from deeplab_jax.data.images import encode_mask, write_image
from deeplab_jax.data.source import Source

WHITE = 255


def write_folder(folder: Path, source: Source, *, white: tuple[int, ...]) -> None:
    """Write `images/NAME.png` and black and white masks `masks/NAME.png` of a source.

    Args:
      folder: made where missing; what is there already is written again.
      source: labelled examples.
      white: class ids that are 255 in the masks; all others are 0.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(len(source)):
        example = source[index]
        mask = np.where(np.isin(example["label"], white), WHITE, 0).astype(np.uint8)
        write_image(folder / "images" / f"{example['name']}.png", example["image"])
        (folder / "masks" / f"{example['name']}.png").write_bytes(encode_mask(mask, None))


def command(*words: str | Path) -> int:
    """Run `python -m deeplab_jax` with these words, print what it says, and return its exit code."""
    # Jupyter asks for a terminal's colours, which bring progress bars. The words are those of a file, 120 wide.
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    arguments = [sys.executable, "-m", "deeplab_jax", *map(str, words)]
    done = subprocess.run(
        arguments,
        env={**environment, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout.strip())
    return done.returncode
