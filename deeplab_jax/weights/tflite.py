"""`.tflite` files of DeepLab, read with the schema's own accessors."""

from pathlib import Path

import numpy as np


def read_tflite(path: Path) -> dict[str, np.ndarray]:
    """Read the constant tensors of the convolutions, named and laid out as in the checkpoint of the same network."""
    raise NotImplementedError
