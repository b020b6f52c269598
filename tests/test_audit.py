"""`make audit`: licences that are not on the list, vulnerabilities, and a database that is out of reach."""

import importlib.util
import json
import re
import sys
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND MIT AND Zlib", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("", False),
        ("LGPL-2.1-or-later", False),
    ],
)
def test_licence_expressions(expression: str, allowed: bool) -> None:
    assert script("licences").is_allowed(expression) is allowed


def test_licences_as_packages_declare_them() -> None:
    licences = script("licences")

    def declared(**fields: str) -> str:
        message = Message()
        for key, value in fields.items():
            message[key.replace("_", "-")] = value
        return licences.declared(message)

    assert declared(License_Expression="ISC", License="x") == "ISC"
    assert declared(Classifier="License :: OSI Approved :: Apache Software License") == "Apache-2.0"
    assert declared(License="Apache License 2.0") == "Apache-2.0"
    assert declared(License="Copyright (c) Somebody", Classifier="License :: OSI Approved :: BSD License") == "BSD"
    assert declared(License="Proprietary") == "Proprietary"


def test_the_pinned_packages_have_licences_of_the_list(capsys) -> None:
    assert script("licences").main([str(ROOT / "requirements.txt")]) == 0
    assert "\nnumpy " in capsys.readouterr().out


def test_what_make_installs_is_pinned() -> None:
    """With hashes, or as this checkout is; but for the peers, whose versions are exact, and for the compiler for TPUs,
    whose version the pinned JAX names.
    """
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"^\t.* install .*$", makefile, re.MULTILINE)
    free = [
        line for line in installs if "--require-hashes" not in line and "--no-deps --no-build-isolation" not in line
    ]
    assert len(installs) > len(free) and all("$(PEERS" in line or line.endswith("'jax[tpu]'") for line in free)
    lines = makefile.replace("\\\n", " ")
    peers = re.findall(r"^PEERS\w* := (.*)$", lines, re.MULTILINE)
    assert len(peers) == 2 and all("==" in peer for peer in " ".join(peers).split())

    for lock in ("requirements.txt", ".ci/tools.txt"):
        entries = re.findall(r"^[^\s#].*(?:\n    --hash.*)*", (ROOT / lock).read_text(), re.MULTILINE)
        assert entries and all(re.match(r"[\w.-]+==.*\n    --hash=sha256:", entry) for entry in entries), lock
    tools = (ROOT / ".ci/tools.in").read_text().splitlines()
    pinned = script("licences").pinned((ROOT / ".ci/tools.txt").read_text())
    assert {re.split("[<>=]", tool)[0] for tool in tools} <= set(pinned)


FLAW = {"id": "GHSA-1", "fix_versions": ["2.0"]}


@pytest.mark.parametrize(
    ("dependencies", "code", "words"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages, no known vulnerability"),
        ([{"name": "a", "version": "1", "vulns": [FLAW]}], 1, "a 1: GHSA-1, fixed in 2.0"),
        ([{"name": "a", "skip_reason": "not found"}], 2, "cannot be reached for 1 of 1 packages"),
        ([], 2, "found no package in requirements.txt"),
        (None, 2, "cannot be reached (ConnectionError: no name)"),
    ],
)
def test_what_pip_audit_answers(tmp_path, capsys, dependencies, code, words) -> None:
    answer = f"print({json.dumps(json.dumps({'dependencies': dependencies}))})"
    fails = "import sys; sys.exit('Traceback\\nConnectionError: no name')"
    program = tmp_path / "pip-audit"
    program.write_text(f"#!{sys.executable}\n{fails if dependencies is None else answer}\n")
    program.chmod(0o755)
    assert script("vulnerabilities").main([str(program), "requirements.txt"]) == code
    printed = capsys.readouterr()
    assert words in printed.out + printed.err
    assert len((printed.out + printed.err).splitlines()) == 1
