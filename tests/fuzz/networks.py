"""The tiny networks that the cases run; made once for each process."""

from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_jax.weights.folder import save
from tests.support.tiny import tiny_model

CLASSES = ("a", "b")


def model_folder(folder: Path) -> Path:
    """Save a network of two classes, and return its folder."""
    made = tiny_model("cascade_tiny", num_classes=len(CLASSES))
    return save(folder / "model", *made, {"class_names": list(CLASSES), "palette": [[0, 0, 0], [9, 9, 9]]})


def image_file(folder: Path) -> Path:
    """Save a small image, and return its file."""
    file = folder / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 35, 3), np.uint8)).save(file)
    return file
