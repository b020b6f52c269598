"""Describes the conditions of a measurement: the machine, the versions, the load and the code."""

import hashlib
import os
import re
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from deeplab_jax.provenance import versions as own_versions
from experiments import ROOT

NOT_INSTALLED = "not installed"
PEERS = ("torch", "torchvision", "segmentation_models_pytorch", "timm", "keras", "keras_hub")


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def platform() -> str:
    """Return "cpu", "gpu" or another name of JAX for its default device."""
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
    """Return the name of a machine's file of results, which is made from its processor or accelerator."""
    kind, name = ("gpu", about["accelerator"]) if about["accelerator"] else ("cpu", about["processor"])
    return "_".join([kind, *re.findall("[a-z0-9]+", name.lower().replace("(r)", "").replace("processor", ""))])


def versions() -> dict[str, str]:
    """Return the versions of this package, of its libraries, and of the peers that are installed."""
    found = own_versions()
    for package in PEERS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


class Others:
    """Measures how much other programs use the machine, from now on."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def processors(self) -> float:
        """Return the mean number of processors that other programs have used, without this process and its children.

        Time in which a virtual machine waits for other virtual machines counts.
        """
        wall, busy, own = (now - start for now, start in zip(self._seconds(), self._start, strict=True))
        return round(max(0.0, busy - own) / max(wall, 1e-9), 2)

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Return the clock, the busy seconds of all processors, and those of this process and its ended children."""
        ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, ticks)
        busy = (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, sum(os.times()[:4])


def code_fingerprint() -> str:
    """Return a short hash of the package's source. It shows whether a row was measured with the present code."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "deeplab_jax").rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
