"""What results depend on besides the code that is timed: the machine, the versions, the load, and the code itself."""

import hashlib
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from deeplab_jax.evaluate.evaluator import versions as own_versions

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = "not installed"
PEERS = ("torch", "torchvision", "segmentation_models_pytorch", "timm")


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def platform() -> str:
    """Return "cpu" or "gpu" (any other name that JAX has for its default device)."""
    return jax.default_backend()


def describe_machine() -> dict[str, Any]:
    """Return processor, number of cores in use, memory in GiB, the accelerator or None, and glibc's tunables."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else "unknown",
        "cores": cores(),
        "memory_gib": round(memory / 2**30),
        "accelerator": None if platform() == "cpu" else jax.devices()[0].device_kind,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def file_name(about: Mapping[str, Any]) -> str:
    """Return what a machine's file of results is called, from its description: by its processor or accelerator."""
    kind, name = ("gpu", about["accelerator"]) if about["accelerator"] else ("cpu", about["processor"])
    return "_".join([kind, *re.findall("[a-z0-9]+", name.lower().replace("(r)", "").replace("processor", ""))])


def versions() -> dict[str, str]:
    """Return the versions of this package, of what it runs on, and of the peers that are installed."""
    found = own_versions()
    for package in PEERS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def load() -> list[float]:
    """Return the load averages of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def code_fingerprint() -> str:
    """Return a short hash of the package's source, so that a row tells whether it was measured with today's code."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "deeplab_jax").rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
