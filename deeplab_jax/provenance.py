"""The origin of results: the commit of this checkout, the versions of the packages, the device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

VERSIONED = (
    "deeplab_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "opencv-python-headless",
)


def versions() -> dict[str, str]:
    """Return the versions and the device that results depend on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        found[package] = version_of(package)
    device = jax.devices()[0]
    found["device"] = f"{jax.device_count()} x {device.platform} {device.device_kind}"
    return found


def version_of(package: str) -> str:
    """Return the version of a package; "not installed as a package" for one that runs from a checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def git_commit() -> str:
    """Return the commit of this checkout, with a mark if the code (not results or documents) differs from it; "unknown"
    outside a checkout, such as in an environment that lies in a checkout of something else.
    """
    code = ("--", "deeplab_jax", "configs", "experiments", ":(exclude)experiments/results")
    try:
        _git("ls-files", "--error-unmatch", __file__)
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no", *code)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def short(commit: str) -> str:
    """Return a commit for a reader: its first 12 characters, and whether the code differed from it."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
