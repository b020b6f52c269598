"""Which commit results name."""

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest

from deeplab_jax import provenance


def test_a_checkout_that_is_not_installed_has_no_version() -> None:
    assert provenance.version_of("deeplab_jax_99") == "not installed as a package"
    assert re.match(r"\d", provenance.version_of("jax"))


def test_results_do_not_make_the_code_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that writes results which the repository keeps goes on under the same commit."""
    files = ("deeplab_jax/provenance.py", "experiments/results/a.json", "README.md")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    git(["git", "init", "-q"])
    git(["git", "add", "."])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"])
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / files[0]))
    clean = provenance.git_commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    for name, expected in zip(reversed(files), (clean, clean, f"{clean}-dirty"), strict=True):
        (tmp_path / name).write_text("2")
        assert provenance.git_commit() == expected, name
    installed = tmp_path / ".venv/lib/site-packages/deeplab_jax/provenance.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.git_commit() == "unknown"
