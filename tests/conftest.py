"""Settings and data shared by all tests.

JAX reads its platform and the number of CPU devices once, at its first use, so they are set here, before anything
imports it. Tests run on the CPU with eight devices unless `JAX_PLATFORMS` says otherwise; processes that a test starts
inherit these settings.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests compile much and compute little: without LLVM's optimisations the programs are ready in half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Set to nothing, it keeps the command line from the user's own cache until `compilation_cache` sets another.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax.experimental.compilation_cache.compilation_cache import reset_cache

# Broadcasting arrays of different rank hides a missing axis; where it is meant, the code says so with a new axis.
# Strict promotion of dtypes is not possible: optax's schedules divide an int32 step by a Python float, and flax's
# norms mix bfloat16 inputs with float32 statistics.
jax.config.update("jax_numpy_rank_promotion", "raise")
# JAX's persistent compilation cache writes its entries in place and without a lock, so that two test processes that
# share a folder can read each other's half-written programs: it is in a folder of the process's own.

# The first call of a property test compiles, so a deadline for each example would fail at random; fixed examples keep
# a failure repeatable.
settings.register_profile(
    "deeplab_jax", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deeplab_jax")

# Traces make many small objects that live long: at its usual pace the collector takes a tenth of the tests' time.
gc.set_threshold(200_000, 20, 100)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def freeze_what_is_left() -> Iterator[None]:
    """Keep what a file leaves, traces and programs, out of later collections, which else take seconds each."""
    yield
    gc.collect(1)
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile each larger program once for this process and those that its tests start."""
    folder = tmp_path_factory.mktemp("xla")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    reset_cache()
    return folder


@pytest.fixture(scope="module")
def tiny_networks() -> Iterator[None]:
    """Put the networks of `tests.support.tiny` into the catalog, for tests that share few programs."""
    from tests.support.tiny import tiny_models

    with tiny_models():
        yield


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the folder that holds configs/ and experiments/."""
    return ROOT


@pytest.fixture
def complain(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run the command line and return its one line of complaint."""
    from deeplab_jax.cli import main

    def run(*words: object) -> str:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert code == 2, printed
        assert "Traceback" not in printed.err + printed.out
        (line,) = printed.err.splitlines()
        assert line.startswith("deeplab-jax: ")
        return line

    return run
