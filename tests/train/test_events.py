"""The event file's dependencies: what the package does without."""

import os
import subprocess
import sys
from pathlib import Path


def test_pytorch_is_not_imported_for_tensorboard(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("print('imported')")
    code = "import deeplab_jax.train.events, sys; print('torch' in sys.modules); import torch"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "imported"]
