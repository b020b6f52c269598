"""PyTorch's files, read without PyTorch and without running anything in them."""

from pathlib import Path
from typing import Any


def read_torch(path: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote."""
    raise NotImplementedError
