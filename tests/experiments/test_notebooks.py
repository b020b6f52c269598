"""The notebooks: what they call, what is committed of them, and that every cell runs."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.files import save_json
from deeplab_jax.models.catalog import create_model
from deeplab_jax.ops.geometry import valid_weight_counts
from experiments.notebooks import committed, decoder, fields, figures, taps
from experiments.notebooks.extent import QUICK, extent
from experiments.notebooks.trainings import TRAININGS, config_of
from experiments.outcomes.files import RESULTS
from tests.support.tiny import make_variables
from tests.support.traces import fill_variables

FOLDER = Path(figures.__file__).parent
NAMES = ("effective_kernel", "output_stride", "boundaries", "your_own_folder")
SIZE_LIMIT = 500_000
MACHINE_PATH = re.compile(r"(?<![\w.<])/(home|root|tmp|opt|mnt|srv|usr|var|work|Users)/|[A-Z]:\\")


def read_notebook(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def pyramid():
    """A DeepLabv3 on maps of 9x9 whose second branch has a rate beyond them, with taps in both."""
    model = create_model(
        "deeplabv3_resnet18",
        num_classes=3,
        output_stride=8,
        width=0.125,
        last_stage="conv3",
        aspp_rates=(1, 5),
        aspp_channels=32,
    )
    return model, make_variables(model)


@pytest.fixture(scope="module")
def image():
    return Scenes("val", size=(65, 65))[0]["image"]


# Taps


def test_the_regions_of_a_small_map_by_hand():
    regions = taps.valid_regions(3, 2)
    assert regions[1, 1].all()
    np.testing.assert_array_equal(regions[0, 1], [[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(regions[2, 0], [[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(taps.valid_weight_map(3, 2), [[4, 2, 4], [2, 1, 2], [4, 2, 4]])


@pytest.mark.parametrize("size", [1, 2, 9, 64, 65])
def test_regions_map_counts_and_closed_form_agree(size):
    for rate in range(1, 2 * size + 2):
        drawn = taps.valid_weight_map(size, rate)
        np.testing.assert_array_equal(taps.valid_regions(size, rate).sum(axis=(0, 1)), drawn)
        counts = valid_weight_counts(size, 3, rate)
        np.testing.assert_array_equal(np.bincount(drawn.ravel(), minlength=10)[1:], counts)
        shares = taps.closed_form_shares(size, rate)
        np.testing.assert_allclose([shares.get(k, 0.0) for k in range(1, 10)], counts / size**2, atol=1e-12)


def test_outer_taps_beyond_the_map_count_for_nothing_and_others_do(pyramid, image):
    model, variables = pyramid
    assert taps.outer_tap_share(variables, 2) > 0.5
    beyond = taps.with_outer_taps(variables, 2)
    assert taps.outer_tap_share(beyond, 2) == 0
    assert taps.logit_change(model, variables, beyond, image[None]) == 0
    assert taps.logit_change(model, variables, taps.with_outer_taps(variables, 1), image[None]) > 1e-3


def test_a_change_is_relative_to_the_spread_of_the_logits(pyramid, image):
    """Twice the classifier's kernel, beside a bias of zero, adds the logits to themselves."""
    model, variables = pyramid
    twice = {**variables, "params": {**variables["params"], "classifier": dict(variables["params"]["classifier"])}}
    twice["params"]["classifier"]["kernel"] = 2 * twice["params"]["classifier"]["kernel"]
    logits = model.apply(variables, model.preprocessing(jnp.asarray(image)[None]), train=False)
    mean_square, variance = jnp.sum(logits**2), jnp.sum((logits - logits.mean(axis=(0, 1, 2), keepdims=True)) ** 2)
    change = taps.logit_change(model, variables, twice, image[None])
    assert change == pytest.approx(float(jnp.sqrt(mean_square / variance)), rel=1e-4)


def test_a_time_is_the_median_after_a_warm_up(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0])
    monkeypatch.setattr(taps, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert taps.convolution_seconds(5, 2, 3, "taps", repeats=3) == 2.0


def test_outer_taps_can_be_random_around_the_same_centre(pyramid):
    _, variables = pyramid
    kernels = [
        np.asarray(tree["params"]["context"]["branch_atrous1"]["conv"]["kernel"])
        for tree in (variables, taps.with_outer_taps(variables, 1, key=jax.random.key(7)))
    ]
    np.testing.assert_array_equal(kernels[1][1, 1], kernels[0][1, 1])
    assert kernels[1].std() == pytest.approx(kernels[0].std(), rel=0.25)
    assert not np.allclose(kernels[1][0, 0], kernels[0][0, 0])


def test_without_its_pooling_a_pyramid_sees_its_taps_alone(pyramid, image):
    model, variables = pyramid
    assert taps.branch_names(model.context) == ["branch_1x1", "branch_atrous1", "branch_atrous2", "image_pooling"]
    assert (fields.pyramid_influence(model, variables, image) > 0).all()
    silent = taps.without_branch(variables, model.context, "image_pooling")
    seen = fields.pyramid_influence(model, silent, image)
    expected = np.zeros((9, 9), bool)
    expected[2:7:2, 2:7:2] = True  # Rate 1 at output stride 16 is 2 at 8; the other branch's 10 is beyond the map.
    np.testing.assert_array_equal(seen > 0, expected)


# Fields


def test_theoretical_fields_by_hand():
    """ResNet-18: 7 of the stem, 11 with the pooling, 4 convolutions at stride 4, one more and 3 at stride 8."""
    found = fields.stage_fields("deeplabv3_resnet18", output_stride=8, last_stage="conv3", aspp_rates=(2,), width=0.125)
    assert found["conv2"].pixels == 11 + 4 * 2 * 4 and found["conv3"].pixels == 43 + 2 * 4 + 3 * 2 * 8
    assert found["context"].pixels == 99 + 2 * 4 * 8 and found["context"].stride == 8


def test_paths_by_hand():
    assert fields.paths([1, 1]).tolist() == [1, 2, 3, 2, 1]
    assert fields.paths([2]).tolist() == [1, 0, 1, 0, 1]
    assert fields.paths([]).tolist() == [1]


def test_influence_of_a_linear_map_is_its_absolute_kernel():
    kernel = jnp.asarray([[1.0, -2.0, 0.0], [3.0, -4.0, 5.0], [0.0, 6.0, -7.0]]).reshape(3, 3, 1, 1)

    def convolve(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    seen = fields.influence(convolve, jnp.zeros((2, 5, 5, 1)))
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = np.abs(kernel[:, :, 0, 0])
    np.testing.assert_allclose(seen, expected)


def test_the_influence_of_pixels_on_a_logit_stays_in_the_field():
    """Conv3 of ResNet-18 sees 99 pixels, and a rate of 2 at stride 8 sees 32 more: 65 on each side of the middle."""
    cut = {"output_stride": 8, "last_stage": "conv3", "width": 0.125}
    model = create_model("deeplabv3_resnet18", num_classes=3, aspp_rates=(1,), image_pooling=False, **cut)
    image = Scenes("val", size=(145, 145))[0]["image"]
    seen = fields.logit_influence(model, fill_variables(model, 1, 145, 145, 3), image[None])
    assert seen.shape == (145, 145) and (seen >= 0).all()
    first, last = 72 - 65, 72 + 65
    rows, columns = np.nonzero(seen)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (first, last, first, last)


def test_side_of_by_hand():
    seen = np.ones((5, 5))
    assert [fields.side_of(seen, share) for share in (0.04, 0.05, 0.36, 0.37, 1.0)] == [1, 3, 3, 5, 5]


def test_equal_features_have_equal_colours():
    rng = np.random.default_rng(0)
    fine = rng.normal(size=(8, 8, 5)).astype(np.float32)
    colours, coarse = fields.principal_colours([fine, fine[::2, ::2]])
    np.testing.assert_array_equal(colours[::2, ::2], coarse)
    assert colours.min() == 0 and colours.max() == 1


# Decoder


def test_the_strongest_channels_stay():
    model = create_model("deeplabv3plus_resnet18", num_classes=3, width=0.125, aspp_channels=4, decoder_convs=((3, 4),))
    variables = fill_variables(model, 1, 65, 65, 3)
    path = ("params", "decoder", "conv2_conv1", "conv", "kernel")
    before = np.array(variables["params"]["decoder"]["conv2_conv1"]["conv"]["kernel"])
    assert path == decoder.FIRST_CONV and before.shape == (3, 3, 4 + 48, 4)
    strongest = int(np.argmax(np.sum(before[:, :, 4:] ** 2, axis=(0, 1, 3))))
    for keep in (0, 1, 48):
        changed = decoder.with_strongest_channels(variables, channels=48, keep=keep)
        kernel = changed["params"]["decoder"]["conv2_conv1"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel[:, :, :4], before[:, :, :4])
        used = np.flatnonzero(np.abs(kernel[:, :, 4:]).sum(axis=(0, 1, 3)))
        assert used.tolist() == {0: [], 1: [strongest], 48: list(range(48))}[keep]


def test_committed_results_are_those_of_the_runner(monkeypatch, tmp_path):
    monkeypatch.setattr(committed, "ROOT", tmp_path)
    assert committed.committed_results("v3_table9") == []
    config = {"train": {"steps": 1, "batch_size": 2}, "model": {"name": "m", "output_stride": 16, "options": {}}}
    seconds = {"training": 1.0, "evaluation": 1.0}
    row = {"training": "k", "evaluation": "e", "config": config, "notes": []}
    row["seeds"] = [{"seed": 0, "miou": 0.5, "commits": ["c"], "seconds": seconds}]
    save_json(tmp_path / RESULTS / "scenes" / "v3_table9.json", {"rows": {"batch_size_8": row}})
    (found,) = committed.committed_results("v3_table9")
    assert [row.label for row in found.rows if not row.missing] == ["batch size 8"]


# Figures, extent


def test_sliders_where_they_can_be_had(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    figures.explore(print, size=(1, 9, 3))
    assert "sliders here: size" in capsys.readouterr().out
    calls = []
    widgets = SimpleNamespace(
        IntSlider=lambda value, low, high: (low, high, value), interact=lambda f, **k: calls.append(k)
    )
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    figures.explore(print, size=(1, 9, 3))
    assert calls == [{"size": (1, 9, 3)}]


@pytest.mark.parametrize("name", TRAININGS)
def test_quick_trainings_differ_in_size_alone(name, repo_root, monkeypatch, tmp_path):
    monkeypatch.chdir(repo_root)
    full = config_of(name, extent())
    monkeypatch.setenv(QUICK, str(tmp_path))
    quick = config_of(name, extent())
    assert quick.train.steps < full.train.steps and extent().runs == tmp_path
    assert quick.model.name == full.model.name
    assert {**quick.model.options, "width": 0} == {**full.model.options, "width": 0}


# What is committed


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebooks_are_executed_and_light(name):
    notebook = read_notebook(name)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < SIZE_LIMIT
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds == {"image/png", "text/plain"}


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebooks_name_no_machine(name):
    for cell in read_notebook(name)["cells"]:
        texts = [*cell["source"], *(line for output in cell.get("outputs", []) for line in output.get("text", []))]
        assert [text for text in texts if MACHINE_PATH.search(text)] == []


def test_the_notebook_of_an_own_folder_needs_no_checkout():
    """It runs where only the package is: it imports nothing of `experiments` and `configs`, and calls no command."""
    notebook = read_notebook("your_own_folder")
    source = "\n".join("".join(cell["source"]) for cell in code_cells(notebook))
    assert not re.search(r"experiments|configs|subprocess|^!", source, re.MULTILINE)
    for name in ("check_data", "train", "evaluate", "predict", "LivePlot", "load", "save", "segment"):
        assert f"deeplab_jax.{name}(" in source
    assert "%pip install" in "".join(code_cells(notebook)[0]["source"])


@pytest.mark.parametrize(
    ("package", "start", "found"),
    [
        ("somewhere/nobodys", "somewhere/experiments/notebooks", "somewhere"),  # In a checkout.
        ("content/nobodys/nobodys", "content", None),  # Beside a clone, which has the package's name.
        ("content/nobodys/nobodys", "content/below", None),
        ("content/nobodys/nobodys", "content/nobodys/experiments", "content/nobodys"),
        ("elsewhere", "content", None),
    ],
)
def test_the_first_cell_finds_a_checkout_or_installs(tmp_path, monkeypatch, package, start, found):
    """A folder with the package's name is not the package."""
    source = "".join(code_cells(read_notebook("your_own_folder"))[0]["source"])
    source = source.replace("deeplab_jax", "nobodys").replace(
        '%pip install -q "{PACKAGE}"', "installed.append(PACKAGE)"
    )
    for folder in (package, start):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / package / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path / start)
    monkeypatch.syspath_prepend(str(tmp_path / start))
    installed = []
    exec(compile(source, "cell", "exec"), {"installed": installed})
    assert len(installed) == (found is None)
    assert Path.cwd() == tmp_path / (found or start)
    assert sys.path[0] == str(tmp_path / (found or start))


def test_machine_paths_are_found():
    assert MACHINE_PATH.search("written to /home/me/out") and MACHINE_PATH.search("C:\\data")
    assert not MACHINE_PATH.search("runs/home/x, and/or/") and not MACHINE_PATH.search("data/tmp/x")


# Execution


@pytest.fixture(scope="module")
def runner():
    """The command, where Jupyter's parts are installed: they come with the development packages."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from experiments.notebooks import __main__ as command

    assert command.NAMES == NAMES
    return command


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A folder whose trainings the notebooks share."""
    return tmp_path_factory.mktemp("notebooks")


# On two idle cores they take 20 to 60 seconds each.
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, runner, quick, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    assert runner.main([name, "--quick", str(quick)]) == 0
    executed = json.loads((quick / f"{name}.ipynb").read_text(encoding="utf-8"))
    sources = [cell["source"] for cell in read_notebook(name)["cells"]]
    assert [cell["source"] for cell in executed["cells"]] == sources
    assert all(cell["execution_count"] for cell in code_cells(executed))
    captured = capfd.readouterr()
    assert captured.out.startswith(f"{name}: ") and captured.err == ""


def notebook_of(runner, folder: Path, source: str) -> Path:
    """Write a notebook of one cell under the name of a real one."""
    file = folder / "boundaries.ipynb"
    cell = runner.nbformat.v4.new_code_cell(source, metadata={"execution": {"iopub.execute_input": "now"}})
    runner.nbformat.write(runner.nbformat.v4.new_notebook(cells=[cell]), file)
    return file


def test_a_cell_is_executed_in_its_folder_and_stripped(runner, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setenv(QUICK, "left over")
    source = f"import os, pathlib\nprint(pathlib.Path.cwd().name, repr(os.environ[{QUICK!r}]))"
    file = notebook_of(runner, tmp_path, source)
    assert runner.main(["boundaries"]) == 0
    (cell,) = json.loads(file.read_text())["cells"]
    assert cell["outputs"][0]["text"] == [f"{tmp_path.name} ''\n"]
    assert cell["metadata"] == {}
    assert capsys.readouterr().out.startswith("boundaries: ")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings\nwarnings.warn('old')", "a cell warned")],
)
def test_a_cell_that_fails_or_warns_leaves_the_file(source, complaint, runner, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    file = notebook_of(runner, tmp_path, source)
    before = file.read_bytes()
    assert runner.main(["boundaries"]) == 1
    assert file.read_bytes() == before
    assert complaint in capsys.readouterr().err


def test_widgets_leave_nothing(runner):
    output = runner.nbformat.v4.new_output("display_data", data={runner.WIDGET: {"model_id": "1"}})
    kept = runner.nbformat.v4.new_output("stream", text="kept")
    cell = runner.nbformat.v4.new_code_cell("x", outputs=[output, kept])
    notebook = runner.nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    stripped = runner.stripped(notebook)
    assert [output.output_type for output in stripped.cells[0].outputs] == ["stream"]
    assert "widgets" not in stripped.metadata


def test_an_unknown_name_is_named(runner, capsys):
    assert runner.main(["boundary"]) == 2
    assert "did you mean boundaries?" in capsys.readouterr().err
