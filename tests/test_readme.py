"""The documents: every link leads somewhere, every command is one, and what can run here runs.

The first line of a block names its language, and then what its commands need: "files" (data, weights or photos of the
reader's) or "long" (minutes to hours). Blocks that need nothing are run. The real parsers read all of them.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn
from unittest import mock

import jax
import pytest

from deeplab_jax import flags
from deeplab_jax.cli import main
from deeplab_jax.config import load_config, split_config_arguments
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import model_names
from deeplab_jax.weights.published import PUBLISHED
from experiments import examples, tables
from experiments.benchmarks.__main__ import PARTS as BENCHMARKS
from experiments.full_size.__main__ import PROTOCOLS
from experiments.regimes import REGIMES
from tests.test_layering import ALLOWED, imported_modules

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {".venv", "runs", ".git", "build", "dist", "node_modules"}
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part in OUTSIDE or part[0] == "." for part in page.relative_to(ROOT).parts)
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {(language, need) for language in ("sh", "python") for need in ("", "files", "long")}
SPAN = re.compile(r"`([^`\n]+)`")


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.add(f"{slug}-{count}" if count else slug)
    return found


def link_faults(page: Path, text: str) -> list[str]:
    """Return one line for every relative link of a page that leads nowhere."""
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"\w+:", target):  # To another site.
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file) if file else page
        if not there.exists():
            faults.append(f"{page}: {target}: no such file")
        elif anchor and anchor not in anchors(text if not file else there.read_text(encoding="utf-8")):
            faults.append(f"{page}: {target}: no such heading")
    return faults


@pytest.mark.parametrize("name", NAMES)
def test_every_link_and_anchor_leads_somewhere(name: str) -> None:
    page = ROOT / name
    assert not link_faults(page, page.read_text(encoding="utf-8"))


def test_a_broken_link_is_found() -> None:
    page = ROOT / "README.md"
    assert (
        len(link_faults(page, "# A b\n[x](#a-b) [x](tests) [x](https://a.b) [x](#b) [x](none.md) [x](LICENSE#a)")) == 3
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name: str) -> None:
    """A path in backquotes is relative to the root, to the page, to the package or to the tests."""
    page = ROOT / name
    spans = SPAN.findall(prose(page.read_text(encoding="utf-8")))
    paths = {
        span for span in spans if re.fullmatch(r"[\w./]+/[\w.]+\.(py|md)|\w+\.py", span) and not span.startswith("my_")
    }
    bases = (ROOT, page.parent, ROOT / "deeplab_jax", ROOT / "deeplab_jax" / "models", ROOT / "tests", ROOT / "configs")
    missing = {path for path in paths if not any((base / path).exists() for base in bases)}
    assert not missing


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 16 * 1024
    assert README.index("make demo") < README.index("make test") < README.index("\n## ")
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size < 150_000


def test_the_readme_counts_the_verdicts_as_the_results_do() -> None:
    page = (ROOT / "experiments" / "results" / "README.md").read_text(encoding="utf-8")
    counts = r"(\d+) holds, (\d+) refuted, (\d+) undecided"
    pattern = rf"Verdicts at (\w+)\. (\d+) comparisons: {counts} \(after Holm's correction for \d+ [\w ]+: {counts}\)"
    regimes = re.findall(pattern, page)
    assert [regime for regime, *_ in regimes] == ["scenes", "camvid"]
    for regime, count, holds, refuted, undecided, *after in regimes:
        said = f"`{regime}`, {count} comparisons: {holds} hold, {refuted} refuted, {undecided} undecided"
        assert f"{said}; after Holm's correction {after[0]} hold, {after[1]} refuted" in README


# How one step runs.

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
STEP = CONTRIBUTING.split("## How one step runs")[1].split("\n## ")[0]
STEP_FILES = [span for span in SPAN.findall(STEP) if span.endswith(".py")]
PARTS = ("backbones", "contexts", "decoders")
# These know all parts, and all losses.
TABLES = ("deeplab_jax/models/catalog.py", "deeplab_jax/models/architectures.py", "deeplab_jax/ops/losses.py")


@cache
def imports(file: str) -> set[str]:
    """Return the project's files that a file imports."""
    found = set()
    for _, name in imported_modules(ast.parse((ROOT / file).read_text(encoding="utf-8")), file.replace("/", ".")[:-3]):
        parts = name.split(".")
        candidates = ["/".join(parts[:end]) + ".py" for end in (len(parts), len(parts) - 1) if end > 1]
        found |= {path for path in candidates if (ROOT / path).is_file()}
    return found


def test_every_file_of_a_step_is_imported_by_one_before_it() -> None:
    assert len(STEP_FILES) == len(set(STEP_FILES)) <= 35
    for index, file in enumerate(STEP_FILES):
        if file not in ("configs/camvid.py", "deeplab_jax/cli.py"):  # Where a user comes in.
            assert any(file in imports(before) for before in STEP_FILES[:index]), file


def test_no_file_of_a_step_is_missing() -> None:
    """From the step down, the list has what a file imports of `train`, `models` and `ops`, without other parts."""
    below = [file for file in STEP_FILES if file.startswith(("deeplab_jax/models/", "deeplab_jax/ops/"))]
    missing = {
        imported
        for file in ["deeplab_jax/train/step.py", *below]
        if file not in TABLES
        for imported in imports(file)
        if imported.split("/")[1] in ("train", "models", "ops") and imported.split("/")[2] not in PARTS
    }
    assert not sorted(missing - set(STEP_FILES))


def test_the_layers_stand_in_their_order() -> None:
    """In CONTRIBUTING.md a layer stands below all that it may import."""
    text = CONTRIBUTING.split("## Where things go")[1]
    lines = [line.strip().split(", ") for line in re.findall(r"^    (\w.*)$", text, re.MULTILINE)]
    place = {layer: index for index, line in enumerate(lines) for layer in line}
    assert {"errors", "ops", "models", "train", "cli"} <= set(place) <= set(ALLOWED)
    assert all(place[above] < place[layer] for layer in place for above in ALLOWED[layer] & set(place) - {layer})


# Commands.

# What stands in for a program: it writes its arguments down as one line of JSON.
NOTE = """import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    print(json.dumps([os.environ["TOOL"], *sys.argv[1:]]), file=notes)"""


def commands(script: str, folder: Path) -> list[list[str]]:
    """Return the words of every command of a shell script, as bash expands them; none is run.

    Instead of python, make and the like bash finds programs that write down their arguments.
    """
    notes = folder / "notes"
    notes.write_text("")
    bin = folder / ".venv" / "bin"
    bin.mkdir(parents=True, exist_ok=True)
    (bin / "activate").write_text("")
    for tool in ("python", "make", "pip", "jupyter"):
        (bin / tool).write_text(f"#!/bin/sh\nTOOL={tool} exec '{sys.executable}' -S -c '{NOTE}' \"$@\"\n")
        (bin / tool).chmod(0o755)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{bin}:/usr/bin:/bin", "NOTES": str(notes)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    return [json.loads(line) for line in notes.read_text().splitlines()]


def shell_of(text: str) -> str:
    """Return all commands of a page: its shell blocks, and those in backquotes."""
    blocks = [body for language, _, body in BLOCK.findall(text) if language == "sh"]
    spans = [span for span in SPAN.findall(prose(text)) if re.match(r"(python -m|make) [^.]", span)]
    return "\n".join([*blocks, *spans])


def check_command(words: list[str]) -> None:
    """Fail where a command would be refused for how it is written."""
    match words:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["python", "-m", "deeplab_jax", *argv]:
            check_flags(argv)
        case ["python", "-m", "pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths if path[0] != "-")
        case ["python", "-m", module, *argv] if module.split(".")[0] in ("experiments", "tests"):
            check_module(module, argv)
        case ["python", "-m", "pip", *_] | ["pip" | "jupyter", *_]:
            pass
        case _:
            pytest.fail(f"the test knows no such command: {words}")


# Of the reader's own: in a folder that the pages use, a file by its suffix, or a word in capitals.
A_FOLDER_OR_FILE = re.compile(r"(models|runs|hf:/)/|.+\.(pth|pt|tflite|tar\.gz|safetensors|h5)$|[A-Z_]+$")
A_TABLE_OF_ONES_OWN = re.compile(r"\w+\.py$|TABLE$")


def check_flags(argv: list[str]) -> None:
    """Parse a command of the package, and load the configuration that it names."""
    args, rest = flags.make_parser().parse_known_args(argv)
    config, unknown = split_config_arguments(rest)
    assert not unknown, f"{argv}: {unknown}"
    if any(word.startswith("--config=configs/") for word in config):
        with contextlib.chdir(ROOT):
            load_config(config)
    assert args.takes_config or not config, argv
    named = [word.partition("=")[2] for word in config if word.startswith("--config.init=")]
    named += [value for key in ("source", "model") if (value := getattr(args, key, None))]
    for name in named:
        assert name in PUBLISHED or name in model_names() or A_FOLDER_OR_FILE.match(name), (
            f"{argv}: no weights have the name {name}"
        )


class Parsed(BaseException):
    """Ends a program as soon as it has read its command line."""

    def __init__(self, options: argparse.Namespace, rest: list[str]) -> None:
        super().__init__()
        self.options, self.rest = options, rest


# What a `main` may call before it parses its arguments: nothing that has an effect beyond the parser.
BEFORE_PARSING = {
    *("ArgumentParser", "Path", "add_argument", "add_write", "join", "list", "make_parser", "parser", "parser_of"),
    *("partition", "setdefault", "tuple", "range"),
}
PARSING = {"parse", "parse_args", "parse_known_args"}


def called_before_parsing(main: Callable[..., object]) -> set[str]:
    """Return the names of the functions that a `main` calls up to the statement that parses its arguments."""
    (function,) = ast.parse(inspect.getsource(inspect.unwrap(main))).body
    assert isinstance(function, ast.FunctionDef)
    names: set[str] = set()
    for statement in function.body:
        calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
        names |= {ast.unparse(call).rpartition(".")[2] for call in calls}
        if names & PARSING:
            return names - PARSING
    pytest.fail(f"{main.__module__}: its main does not parse its arguments itself")


def parsed(module: str, argv: list[str]) -> Parsed:
    """Return how a module's `main` reads a command line. It does nothing else."""
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    assert called_before_parsing(found.main) <= BEFORE_PARSING, module
    read = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, args: object = None, namespace: object = None) -> NoReturn:
        raise Parsed(*read(parser, args, namespace))

    with pytest.raises(Parsed) as stopped, pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr(sys, "argv", [module, *argv])
        found.main()
    return stopped.value


# By their names on the command line; argparse checks those that it knows as choices.
KNOWN = {"tables": tables.TABLES, "regime": REGIMES, "parts": BENCHMARKS, "name": {**PROTOCOLS, **examples.EXAMPLES}}


def check_module(module: str, argv: list[str]) -> None:
    """Parse a command of a module, and check the tables, rows, regimes and parts that it names."""
    done = parsed(module, argv)
    changes, unknown = split_config_arguments(done.rest)
    assert not unknown, f"{module}: {unknown}"
    if changes:
        assert module in ("experiments.run", "experiments.full_size"), f"{module}: {changes}"
        load_config([f"--config={ROOT}/configs/scenes.py", *changes])
    given = {key: value for key, value in vars(done.options).items() if value}
    for key, known in KNOWN.items():
        values = given.get(key, [])
        for value in values.split(",") if isinstance(values, str) else values:
            assert value in known or A_TABLE_OF_ONES_OWN.match(value), f"{module}: {key} {value}"
    asked = [table for name, table in tables.TABLES.items() if name in given.get("tables", tables.TABLES)]
    for row in given.get("row", []):
        assert any(row in table.named_rows() for table in asked), f"{module}: row {row}"
    if "words" in given:
        check_flags(given["words"])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(name: str, tmp_path: Path) -> None:
    for words in commands(shell_of((ROOT / name).read_text(encoding="utf-8")), tmp_path):
        check_command(words)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_command_of_a_config_is_understood(config: Path, tmp_path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or ""
    found = commands("\n".join(re.findall(r"^    (.*)$", docstring, re.MULTILINE)), tmp_path)
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize(
    "words",
    [
        "make dmeo",
        "python -m deeplab_jax train --config configs/scenes.py --workdri runs",
        "python -m deeplab_jax train --config configs/scenes.py:debgu --workdir runs",
        "python -m deeplab_jax train --config configs/scenes.py --config.train.stpes=1 --workdir runs",
        "python -m experiments.run --sclae scenes",
        "python -m experiments.run v3_tabel5 --parallel two",
        "python -m experiments.run v3_tabel5",
        "python -m experiments.run v3_table5 --parallel two",
        "python -m experiments.run v3_table5 --regime sceens",
        "python -m experiments.run v3_table5 --row nothing",
        "python -m experiments.run v3_table5 --launcher slrum",
        "python -m experiments.run v3_table5 --config.train.stpes=1",
        "python -m experiments.full_size vco",
        "python -m experiments.export_cost --out x",
        "python -m experiments.benchmarks --parts inferrence",
        "python -m experiments.report --config.train.steps=1",
        "python -m experiments.launch.local --processes 2 -- trian --config configs/scenes.py",
        "python -m pytest tests/none",
    ],
)
def test_a_misspelt_command_is_found(words: str) -> None:
    with pytest.raises((AssertionError, SystemExit, UserError)):
        check_command(words.split())


def as_shell(name: str) -> str:
    """Return the commands of a page that need nothing."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return "\n".join(body for language, need, body in BLOCK.findall(text) if (language, need) == ("sh", ""))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if as_shell(name)])
def test_commands_that_need_nothing_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = commands(as_shell(name), tmp_path)
    assert todo
    for folder in ("configs", "experiments"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for words in todo:
        assert words[:3] == ["python", "-m", "deeplab_jax"], words
        assert main(words[3:]) == 0, words


@pytest.mark.slow
def test_the_generated_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page has them, but for two steps of small crops, or one evaluation."""
    pytest.importorskip("rasterio")
    page = (ROOT / "deeplab_jax/data/README.md").read_text(encoding="utf-8")
    blocks = [body for _, _, body in BLOCK.findall(page) if "experiments.examples" in body]
    todo = commands("\n".join(blocks), tmp_path)
    assert [words[3] for words in todo].count("train") == 2
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for words in todo:
        if words[2] == "experiments.examples":
            assert examples.main([*words[3:], "--count", "4"]) == 0
            continue
        short = ["--config.train.steps=2", "--config.data.crop_size=(65,65)", "--config.model.options.width=0.125"]
        assert main([*words[3:], *(short if words[3] == "train" else [])]) == 0, words
    assert json.loads(Path("maps/large.geojson").read_text())["crs"]["properties"]["name"].endswith("32633")
    assert Path("maps/large.tif").is_file()
    assert len(json.loads(Path("runs/cracks/val/metrics.json").read_text())["thresholds"][0]["table"]) == 19
    assert {file.name for file in Path("found").glob("0?.png")} == {f"0{k}.png" for k in range(4)}


PYTHON = [
    pytest.param(body, need, id=f"{name}-{index}")
    for name in NAMES
    for index, (language, need, body) in enumerate(BLOCK.findall((ROOT / name).read_text(encoding="utf-8")))
    if language == "python"
]


@pytest.mark.parametrize(("body", "need"), PYTHON)
def test_python_runs(body: str, need: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that need files are compiled, and what they take of the package is there. The others compute shapes."""
    monkeypatch.chdir(tmp_path)
    code = compile(body, "block", "exec")
    if not need:
        jax.eval_shape(lambda: exec(code, {"__name__": "block"}))
    import deeplab_jax

    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "deeplab_jax":
            assert hasattr(deeplab_jax, node.attr), node.attr


def test_blocks_say_what_they_need() -> None:
    for name in NAMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        found = BLOCK.findall(text)
        assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), name
        assert {(language, need) for language, need, _ in found} <= NEEDS, name
