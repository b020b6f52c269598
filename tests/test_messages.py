"""Every flag and every configuration key that a message prints exists: a user can type what is printed."""

import ast
import re
from functools import cache
from pathlib import Path

from deeplab_jax.config_keys import keys_of_sections
from deeplab_jax.flags import make_parser

ROOT = Path(__file__).resolve().parent.parent / "deeplab_jax"
# Of Git, and words that stand for something.
NOT_OURS = {"--porcelain", "--untracked-files", "--error-unmatch", "--count"}


@cache
def texts() -> list[tuple[str, str]]:
    """Every text in the package's code that is no docstring, with its place; values inside are `{}`."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        documents = {
            id(node.body[0].value)
            for node in nodes
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
        }
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                found.append((f"{file.relative_to(ROOT)}:{node.lineno}", node.value))
    return found


def flags() -> set[str]:
    verbs = make_parser().verbs.values()
    return {option for parser in verbs for action in parser._actions for option in action.option_strings}


def test_every_flag_in_a_message_is_one_of_the_command_line() -> None:
    known, found = flags() | {"--config"} | NOT_OURS, {}
    for place, text in texts():
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text):
            found[flag] = place
    assert {"--workdir", "--allow_config_change", "--module", "--not_strict", "--size"} <= set(found)
    assert {flag: place for flag, place in found.items() if flag not in known} == {}


def test_a_key_in_a_message_begins_with_config() -> None:
    """`data.dir` alone is no word of a command."""
    keys = "|".join(map(re.escape, keys_of_sections()))
    short = re.compile(rf"(?<![\w.])({keys}|data\.split)(?![\w.])")
    assert [place for place, text in texts() if " " in text and short.search(text)] == []


def test_every_key_in_a_message_is_one_of_the_configuration() -> None:
    keys = {f"config.{name}" for name in keys_of_sections()}
    sections = {key.rsplit(".", 1)[0] for key in keys}
    found = {}
    for place, text in texts():
        for key in re.findall(r"\bconfig(?:\.[a-z_]+){2,3}", text):
            found[key] = place
    assert {"config.train.skip_nonfinite", "config.data.augment.jpeg"} <= set(found)
    assert {
        k: place for k, place in found.items() if k.rsplit(".", 1)[0] in sections and k not in keys | sections
    } == {}
