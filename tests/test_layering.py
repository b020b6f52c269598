"""The rules that keep the packages apart: imports point one way, and nothing leans on what the project does without."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each layer may import besides itself, from the bottom up. A file or folder of the package that is not named here
# fails the test.
_TO_WEIGHTS = {
    "errors",
    "extensions",
    "files",
    "labels",
    "ops",
    "models",
    "analysis",
    "checkpoint",
    "weights",
    "provenance",
    "terminal",
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "extensions": {"errors"},
    "checks": {"errors"},
    "files": {"errors"},
    "provenance": set(),
    "labels": {"errors"},
    "distributed": {"errors"},
    "ops": {"errors", "labels"},
    "models": {"errors", "extensions", "checks", "ops"},
    "analysis": {"errors", "ops", "models"},
    "orbax_reports": set(),
    "checkpoint": {"errors", "distributed", "files", "orbax_reports"},
    "weights": {"errors", "extensions", "files", "provenance", "labels", "ops", "models", "checkpoint", "terminal"},
    "data": {"errors", "extensions", "files", "labels", "config_keys"},
    # Only the loop, the evaluator and the command line see a config; everything below takes keyword arguments.
    "config_keys": set(),
    "config_values": {"errors", "config_keys"},
    "config": {"errors", "extensions", "files", "config_keys", "config_values"},
    "evaluate": _TO_WEIGHTS | {"config", "config_keys", "data", "distributed"},
    "train": _TO_WEIGHTS | {"config", "config_keys", "config_values", "data", "distributed", "evaluate"},
}
ALLOWED["tasks"] = set(ALLOWED) | {"terminal"}
# The package's front page gathers the public names from below; nothing else may import it.
ALLOWED["__init__"] = set(ALLOWED)
ALLOWED["terminal"] = {"errors"}
ALLOWED["commands"] = set(ALLOWED)
ALLOWED["flags"] = set(ALLOWED)
ALLOWED["cli"] = set(ALLOWED)
ALLOWED["__main__"] = {"cli"}

BANNED_EVERYWHERE = {"clu", "tensorflow", "torch", "torchvision"}
BANNED = {
    "errors": {"jax", "numpy"},
    # Worker processes of the data loader start fast and hold no device.
    "data": {"chex", "flax", "jax", "jaxlib", "optax"},
}
# The interface of Orbax changes between releases, so one file knows it.
ONLY_CHECKPOINT = {"orbax"}


def imported_modules(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of everything that a file of `package` imports, at whatever depth.

    `from a import b` yields `a.b`, because b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def layer_of(path: Path) -> str:
    """Return the layer of a file, given relative to the package: its first folder, or its stem at the top."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def import_faults(source: str, path: Path) -> list[str]:
    """Return one line for every import of a file (path relative to deeplab_jax) that its layer may not have."""
    layer = layer_of(path)
    if layer not in ALLOWED:
        return [
            f"{path}: {layer!r} has no place in the order of the layers; add it to ALLOWED in {Path(__file__).name}"
        ]
    banned = BANNED_EVERYWHERE | BANNED.get(layer, set()) | (ONLY_CHECKPOINT if layer != "checkpoint" else set())
    faults = []
    for line, name in imported_modules(ast.parse(source), ".".join(["deeplab_jax", *path.parts[:-1]])):
        top, *rest = name.split(".")
        if top in banned:
            faults.append(f"{path}:{line}: {layer} imports {top}")
        elif top in ("experiments", "configs", "tests"):
            faults.append(f"{path}:{line}: the package imports {top}, which lies outside it")
        elif top == "deeplab_jax":
            target = rest[0] if rest else "__init__"
            target = target if target in ALLOWED else "__init__"  # `from deeplab_jax import name` reads the front page
            if target != layer and target not in ALLOWED[layer]:
                faults.append(f"{path}:{line}: {layer} imports {target}, which is above it")
    return faults


def code_faults(source: str, path: Path) -> list[str]:
    """Return one line for every construct that the project bans in its package."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = ast.unparse(node.func.value)
            if re.search(r"(^|[._])(config|cfg)($|\.)", owner):
                faults.append(
                    f"{path}:{node.lineno}: {owner}.get(...) gives a mistyped key a default in silence; use {owner}.KEY"
                )
        if isinstance(node, ast.Attribute | ast.Name | ast.alias):
            name = (
                node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else node.name
            )
            if name.split(".")[-1] == "pmap":
                faults.append(f"{path}:{node.lineno}: pmap; use jit over a mesh with NamedSharding")
    return faults


def package_files() -> list[Path]:
    return sorted((ROOT / "deeplab_jax").rglob("*.py"))


def test_imports_point_one_way() -> None:
    faults = [
        f for file in package_files() for f in import_faults(file.read_text(), file.relative_to(ROOT / "deeplab_jax"))
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_the_parts_of_the_experiments_import_one_way() -> None:
    experiments = ROOT / "experiments"
    needs: dict[str, set[str]] = {}
    for file in sorted(experiments.rglob("*.py")):
        path = file.relative_to(experiments)
        package = ".".join(["experiments", *path.parts[:-1]])
        imported = [
            name.split(".")[1]
            for _, name in imported_modules(ast.parse(file.read_text()), package)
            if name.startswith("experiments.")
        ]
        needs.setdefault(layer_of(path), set()).update(imported)
    for part, others in needs.items():
        others.discard(part)
    assert {"tables", "outcomes", "run", "report"} <= set(TopologicalSorter(needs).static_order())


def test_no_banned_constructs() -> None:
    folders = ("deeplab_jax", "experiments", "configs")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    faults = [fault for file in files for fault in code_faults(file.read_text(), file.relative_to(ROOT))]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("ops/resize.py", "from deeplab_jax.models import layers", "ops imports models"),
        ("ops/resize.py", "from ..models.layers import Conv", "ops imports models"),
        ("ops/resize.py", "from deeplab_jax import create_model", "ops imports __init__"),
        ("models/aspp.py", "def f():\n    import deeplab_jax.train.loop", "models imports train"),
        ("data/loader.py", "import jax.numpy as jnp", "data imports jax"),
        ("models/segmenter.py", "from deeplab_jax.config import base", "models imports config"),
        ("data/loader.py", "from deeplab_jax.evaluate import inference", "data imports evaluate"),
        ("evaluate/evaluator.py", "from deeplab_jax.train.state import State", "evaluate imports train"),
        ("train/loop.py", "import tensorflow as tf", "train imports tensorflow"),
        ("train/state.py", "import orbax.checkpoint as ocp", "train imports orbax"),
        ("__main__.py", "from experiments import run", "outside it"),
        ("extra/thing.py", "", "no place in the order"),
    ],
)
def test_a_back_edge_is_found(path: str, source: str, fault: str) -> None:
    (found,) = import_faults(source, Path(path))
    assert fault in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/resize.py", "from . import geometry\nfrom deeplab_jax.errors import UserError"),
        ("data/tfds.py", "import tensorflow_datasets as tfds"),
        ("train/loop.py", "from deeplab_jax.evaluate import evaluator\nfrom deeplab_jax.data import loader"),
        ("evaluate/evaluator.py", "from ..weights import folder"),
        ("__init__.py", "from deeplab_jax.models.catalog import create_model"),
    ],
)
def test_a_forward_edge_is_allowed(path: str, source: str) -> None:
    assert import_faults(source, Path(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "config.get('x')",
        "self.config.train.get('x', 1)",
        "jax.pmap(f)",
        "from jax import pmap",
        "train_config.get('x')",
    ],
)
def test_a_banned_construct_is_found(source: str) -> None:
    assert len(code_faults(source, Path("x.py"))) == 1


def test_a_lookup_in_a_dictionary_is_allowed() -> None:
    assert code_faults("table.get('x'); configuration.get('y'); config.train.steps", Path("x.py")) == []


def test_the_front_page_reads_no_images() -> None:
    """Pillow's limits are of the whole process, and a wrong `DEEPLAB_JAX_MAX_PIXELS` has to be told by a command."""
    code = "import deeplab_jax, sys; print(sorted({'PIL', 'cv2', 'matplotlib', 'grain'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_data_needs_no_tensorflow() -> None:
    """Every module of data is imported in a fresh process; TFDS comes with it, TensorFlow must not."""
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted((ROOT / "deeplab_jax" / "data").rglob("*.py"))
    ]
    code = "\n".join(
        [
            "import importlib, sys",
            f"for name in {names!r}: importlib.import_module(name)",
            "import tensorflow_datasets, grain",
            "print(sorted({'tensorflow', 'torch'} & set(sys.modules)))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_training_loop_is_read_in_one_go() -> None:
    """At most a dozen imports of the project, two functions of under 100 lines together, and no closure."""
    tree = ast.parse((ROOT / "deeplab_jax/train/loop.py").read_text())
    imports = [name for _, name in imported_modules(tree, "deeplab_jax.train") if name.startswith("deeplab_jax.")]
    assert len({name.rpartition(".")[0] for name in imports}) <= 12
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    assert [getattr(function, "name", "lambda") for function in functions] == ["train", "run_steps"]
    assert sum((function.end_lineno or 0) - function.lineno + 1 for function in functions) < 100
