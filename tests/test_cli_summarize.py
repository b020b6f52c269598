"""The verb `summarize`: a table, the same as JSON, and one line for what it cannot do."""

import json
from pathlib import Path

import pytest

from deeplab_jax.analysis.summary import summarize
from deeplab_jax.cli import main
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights.folder import save, write_description
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("tiny_networks")


def run(*words: object) -> int:
    """Run the verb and return its exit code."""
    try:
        return main(["summarize", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_name_as_table_and_json(tmp_path, capsys) -> None:
    file = tmp_path / "summary.json"
    assert run("deeplabv3plus_tiny", "--json", file) == 0
    written = json.loads(file.read_text())
    assert written == summarize(create_model("deeplabv3plus_tiny"), 513, 513).to_json()
    printed = capsys.readouterr().out
    assert "deeplabv3plus_tiny, 513x513, output stride 16, 21 classes, float32" in printed
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.split()}
    for stage in (*written["stages"], written["total"]):
        name, parameters, adds, *_ = lines[stage["name"]]
        assert (name, parameters) == (stage["name"], f"{stage['parameters']:,}")
        assert adds == f"{stage['multiply_adds'] / 1e9:.3f}"
    assert [stage["name"] for stage in written["stages"]] == ["stem", "deep", "context", "decoder", "classifier"]
    assert written["total"]["receptive_field"] == "whole image"
    assert written["total"]["output_shape"] == [1, 513, 513, 21]


def test_json_alone_is_printed(capsys) -> None:
    assert run("cascade_tiny", "--size", 65, "--json") == 0
    assert json.loads(capsys.readouterr().out) == summarize(create_model("cascade_tiny"), 65, 65).to_json()


def test_size_stride_and_options(tmp_path) -> None:
    file = tmp_path / "summary.json"
    words = ["--size", "65x97", "--output_stride", 8, "--num_classes", 3, "--option", "separable=true"]
    assert run("deeplabv3plus_tiny", *words, "--option", "aspp_rates=(2, 4)", "--json", file) == 0
    model = create_model("deeplabv3plus_tiny", num_classes=3, output_stride=8, separable=True, aspp_rates=(2, 4))
    assert json.loads(file.read_text()) == summarize(model, 65, 97).to_json()


def test_one_number_is_a_square(tmp_path) -> None:
    assert run("cascade_tiny", "--size", 65, "--json", tmp_path / "a.json") == 0
    assert run("cascade_tiny", "--size", "65x65", "--json", tmp_path / "b.json") == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_model_folder(tmp_path) -> None:
    model, variables = tiny_model("deeplabv3plus_tiny", num_classes=4)
    folder = save(tmp_path / "model", model, variables, {})
    assert run(folder, "--size", 65, "--json", tmp_path / "plain.json") == 0
    assert json.loads((tmp_path / "plain.json").read_text()) == summarize(model, 65, 65).to_json()
    words = ["--size", 65, "--output_stride", 32, "--num_classes", 9, "--json", tmp_path / "coarse.json"]
    assert run(folder, *words) == 0
    coarse = json.loads((tmp_path / "coarse.json").read_text())
    other, _ = tiny_model("deeplabv3plus_tiny", num_classes=9)
    assert coarse == summarize(other.clone(output_stride=32), 65, 65).to_json()


def test_a_run_directory_that_has_saved_nothing_yet(tmp_path) -> None:
    model = create_model("cascade_tiny", num_classes=2)
    write_description(tmp_path, model, {})
    assert run(tmp_path, "--size", 33, "--json", tmp_path / "summary.json") == 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summarize(model, 33, 33).to_json()


def test_a_narrow_terminal_keeps_every_digit(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run("segnet_vgg16", "--size", 65) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "512x512" not in printed and "65x65x21" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cascade_tiny", "--size", "32x65"], "size 32x65: this network does not take it; 33x65 would fit"),
        (["cascade_tiny", "--size", "axb"], "argument --size: 'axb': give HEIGHTxWIDTH in pixels"),
        (["cascade_tiny", "--size", "65x65x65"], "argument --size: '65x65x65': give HEIGHTxWIDTH"),
        (["cascade_tiny", "--size", "-65"], "argument --size"),
        (["cascade_tinny"], "cascade_tinny: neither a model's name nor a folder with model.json: did you mean cascade"),
        (["cascade_tiny", "--option", "colour=3"], "option 'colour' has no meaning for cascade_tiny"),
        (["cascade_tiny", "--option", "colour"], "argument --option: 'colour': give KEY=VALUE"),
        (["cascade_tiny", "--option", "num_classes=3"], "'num_classes=3': has a flag of its own; give --num_classes 3"),
        (["cascade_tiny", "--option", "output_stride=8"], "has a flag of its own; give --output_stride 8"),
        (["cascade_tiny", "--num_classes", "many"], "--num_classes: 'many': give a whole number of at least 1"),
        (["cascade_tiny", "--num_classes", "0"], "--num_classes: '0': give a whole number of at least 1"),
        (["cascade_tiny", "--output_stride", "7"], "output_stride=7: choose 4, 8, 16 or 32"),
        (["cascade_tiny", "--output_stride", "0"], "output_stride=0"),
        (["cascade_tiny", "--size", "33", "--json", "/dev/null/x.json"], "x.json: cannot be written"),
        ([], "required: NAME_OR_PATH"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(words, message, capsys) -> None:
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    (line,) = printed.err.splitlines()
    assert line.startswith("deeplab-jax: ")
    assert message in line


def test_a_folder_that_is_no_model(tmp_path, capsys) -> None:
    (tmp_path / "model.json").write_text("{}")
    assert run(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(Path(tmp_path, "model.json")) in line


def test_where_a_model_comes_from_cannot_move_the_cursor(tmp_path, capsys) -> None:
    """A model folder may be anybody's."""
    info = {"class_names": list("abcd"), "provenance": {"data": "tiles\x1b[2J"}}
    save(tmp_path / "model", *tiny_model("cascade_tiny"), info)
    assert run(tmp_path / "model", "--size", 65) == 0
    assert "\x1b" not in (printed := capsys.readouterr().out) and "data: tiles" in printed


def test_a_size_of_nothing_is_refused(capsys) -> None:
    assert run("cascade_tiny", "--size", "0x65") == 2
    assert "'0x65': give HEIGHTxWIDTH in pixels, such as 513x513" in capsys.readouterr().err
