"""The report: its Markdown, its plots and its page, the page in a headless browser as well."""

import dataclasses
import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.images import read_image, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.pictures import colour_labels
from deeplab_jax.files import save_json
from experiments.outcomes import verdicts as report_verdicts
from experiments.outcomes.cells import cells, cost, headings
from experiments.outcomes.gather import RowResult, TableResult, Training, read_tables
from experiments.outcomes.measures import RARE, iou_of
from experiments.outcomes.verdicts import RULE, Verdict, verdicts
from experiments.output import Section, escape
from experiments.regimes import REGIMES
from experiments.report import __main__ as report_main
from experiments.report import markdown, plots
from experiments.report import pictures as report_pictures
from experiments.report.__main__ import main
from experiments.report.page import TablePart, data_uri, page
from experiments.report.pictures import Few, Pictures, row_pictures, table_pictures
from experiments.report.plots import LIGHT, curves_along, curves_plot, values_plot
from experiments.run.execute import work
from experiments.run.plan import Job
from experiments.tables import TABLES, Row
from tests.support.tiny import tiny_config, tiny_models

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
RED, GREEN, BLUE, GREY = (200, 0, 0), (0, 160, 0), (0, 0, 220), (128, 128, 128)
HOSTILE = "<script>alert(1)</script> | \"'>"


def put(folder: Path, name: str, *mious: float, key: str = "k", **more) -> Path:
    """Write a row's result as the runner does: 450 steps of 8 images, and 60 s for each seed."""
    entries = [
        {"seed": seed, "miou": miou, "seconds": {"training": 60.0, "evaluation": 2.0}, "commits": ["0123456789abcdef"]}
        for seed, miou in enumerate(mious)
    ]
    model = {"name": "deeplabv3_resnet18", "output_stride": 16, "options": {"width": 0.5}}
    config = {"train": {"steps": 450, "batch_size": 8}, "model": model}
    table, row = name.split("/")
    content = {"seeds": entries, "training": key, "evaluation": "e", "config": config, "notes": [], **more}
    return change_rows(folder / "scenes" / f"{table}.json", lambda rows: rows | {row: content})


def change_rows(file: Path, change: Callable[[dict], dict]) -> Path:
    """Write a table's file anew with other rows."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    save_json(file, {"rows": change(rows)})
    return file


@pytest.fixture
def store(tmp_path) -> Path:
    """Two tables: three seeds in one, a row that cannot be run in the other; a record of one training."""
    folder = tmp_path / "results"
    put(folder, "v3plus_table1/channels_8", 0.70, 0.72, 0.713, key="a")
    put(folder, "v3plus_table1/channels_48", 0.80, 0.78, 0.79, key="b")
    put(folder, "v3_table6/eval_os_16", 0.75, key="c")
    put(folder, "v3_table6/eval_os_8", 0.8, key="c", notes=[HOSTILE, 7.5])
    lines = [{"step": step, "train/loss": 2.0 - step / 10} for step in range(1, 6)]
    lines += [{"step": 3, "val/miou": 0.4}, {"step": 5, "val/miou": 0.7}]
    save_json(folder / "scenes/v3plus_table1/trainings.json", {"a_seed0": [*lines, "half"]})
    return folder


def report(tmp_path, *words: str) -> int:
    paths = ("--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    return main([*paths, *words])


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Draw nothing, for tests of texts."""
    for name in ("values_plot", "curves_plot"):
        monkeypatch.setattr(report_main, name, lambda result, theme: None)


def tables_by_name(store):
    return {result.table.name: result for result in read_tables(store, ())[0]}


def test_a_table_of_ones_own_is_reported_too(store, tmp_path, no_plots) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from experiments.tables import Row, Table\n"
        'ROW = Row((1,), train={"model.name": "deeplabv3_resnet101"})\n'
        'TABLE = Table("mine", "my title", "me", ("k",), (ROW,))\n'
    )
    put(store, "mine/k_1", 0.5, key="d")
    assert report(tmp_path, str(file), "--images", "0") == 0
    assert "`mine` at `scenes`: my title" in (tmp_path / "out/tables.md").read_text()


# Markdown.


@pytest.mark.parametrize("text", ["a\nb", "a\nb\nb", "b\na"])
def test_a_section_has_each_of_its_marks_once(tmp_path, text) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"{text}\nthe rest\n")
    section = Section("a", "b")
    if text == "a\nb":
        section.write(file, "new")
        assert file.read_text() == "a\nnew\nb\nthe rest\n"
        return
    with pytest.raises(UserError, match="the file has no section between 'a' and 'b'"):
        section.write(file, "new")
    assert file.read_text() == f"{text}\nthe rest\n"


def test_each_verdict_is_computed_once(store, tmp_path, no_plots, monkeypatch) -> None:
    asked: list[str] = []

    def counted(result: TableResult) -> list[Verdict]:
        asked.append(result.name)
        return verdicts(result)

    monkeypatch.setattr(report_verdicts, "verdicts", counted)
    assert report(tmp_path) == 0
    assert sorted(asked) == sorted(f"scenes-{name}" for name in tables_by_name(store))
    # Shown among all, and at its table.
    assert (tmp_path / "out/report.html").read_text().count('class="words">48 channels are better than 8') == 2


def test_tables_in_markdown(store, tmp_path, no_plots) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- tables:begin -->\nold\n<!-- tables:end -->\nafter\n")
    assert report(tmp_path, "--write", str(readme)) == 0
    text = (tmp_path / "out/tables.md").read_text()
    assert text.endswith(
        """#### `v3plus_table1` at `scenes`: Decoder: 1x1 channels on Conv2, ResNet-101

arXiv 1802.02611, Table 1 (VOC 2012 val). 6 trainings of 450 steps of 8 images: 6 min in all, the longest 60 s; \
commit 0123456789ab. Networks here: deeplabv3_resnet18 of width 0.5.

| channels | mIoU: paper | ours | spread |
|---|---:|---:|---:|
| 8 | 77.61 | 71.10 | 70.00 to 72.00, 3 seeds |
| 16 | 77.92 | not yet |  |
| 32 | 78.16 | not yet |  |
| 48 | 78.21 | 79.00 | 78.00 to 80.00, 3 seeds |
| 64 | 77.94 | not yet |  |

</details>
"""
    )
    summary = r"Tables at scenes: \d \(7 trainings, 7 min; 7 evaluations, 0 min\)"
    assert re.search(rf"<details>\n<summary>{summary}</summary>\n\n#### `v3_table", text)
    assert text.startswith(RULE), "the verdicts come first"
    assert text.count(REGIMES["scenes"].differs) == 1
    # 48 channels over 8: 10, 6 and 7.7 points; t of two degrees of freedom is 4.3027. Table 6 has one training.
    spread = 4.302653 * statistics.stdev([10, 6, 7.7]) / 3**0.5
    low, high = 7.9 - spread, 7.9 + spread
    verdict = f"| holds | holds | +0.60 | +7.90 | {low:+.2f} to {high:+.2f}, trainings only | 3 |"
    assert f"| `v3plus_table1` | 48 channels are better than 8 {verdict}" in text
    assert (
        "| `v3_table6` | evaluation at output stride 8 helps | undecided | undecided | +1.30 | +5.00 |  | 1 |" in text
    )
    assert "2 comparisons: 1 holds, 0 refuted, 1 undecided (after Holm's correction for 1 with several" in text
    assert "1 holds, 0 refuted, 1 undecided); 4 claims need a row that was not run." in text
    assert "| 8 | yes | yes | yes | 82.70 | not run here: needs COCO |  |" in text
    assert "| 16 |  |  |  | 77.21 | 75.00 | one seed |" in text
    assert "1 training of 450 steps of 8 images: 1 min in all" in text, "rows that share a training count it once"
    assert readme.read_text() == f"before\n<!-- tables:begin -->\n{text}<!-- tables:end -->\nafter\n"


def test_each_table_stands_on_its_own_trainings(tmp_path) -> None:
    """The same configuration, trained for two tables, perhaps on two machines."""
    put(tmp_path, "v3_table6/eval_os_16", 0.50, key="c")
    put(tmp_path, "extra_seeds/deeplabv3", 0.60, 0.62, key="c")
    for name, miou in (("v3_table6", 0.5), ("extra_seeds", 0.6)):
        save_json(tmp_path / f"scenes/{name}/trainings.json", {"c_seed0": [{"step": 5, "val/miou": miou}]})
    found = tables_by_name(tmp_path)
    trained = [one for name in ("v3_table6", "extra_seeds") for row in found[name].rows for one in row.trainings]
    assert [one.name for one in trained] == ["c_seed0", "c_seed0", "c_seed1"]
    assert cost([found["v3_table6"], found["extra_seeds"]]).startswith("2 trainings"), "the times do not differ here"
    other = dataclasses.replace(trained[0], seconds=61.0)  # The same training on another machine.
    (first, *rest) = found["v3_table6"].rows
    mine = dataclasses.replace(found["v3_table6"], rows=(dataclasses.replace(first, trainings=(other,)), *rest))
    assert cost([mine, found["extra_seeds"]]).startswith("3 trainings, 3 min")
    for name, mious, log in (("v3_table6", [50], 0.5), ("extra_seeds", [60, 62], 0.6)):
        row = next(row for row in found[name].rows if row.trainings)
        assert row.values["miou"] == pytest.approx(mious)
        assert found[name].logged["c_seed0"][0]["val/miou"] == log


def test_measures_without_the_papers_numbers_have_one_column(tmp_path) -> None:
    bands = [{"width": width, "miou": width / 100} for width in (1, 2, 4, 8, 16, 32)]
    file = put(tmp_path, "v3plus_figure5/resnet_101", 0.5)
    rows = json.loads(file.read_text())["rows"]
    rows["resnet_101"]["seeds"][0]["trimap"] = {"bands": bands}
    save_json(file, {"rows": rows})
    results = tables_by_name(tmp_path)
    figure5, figure4 = results["v3plus_figure5"], results["v3_figure4"]
    assert headings(figure5)[:4] == ["backbone", "decoder", "mIoU within 1 px", "mIoU within 2 px"]
    shown = [cell.text for cell in cells(figure5, figure5.rows[0])]
    assert shown == ["ResNet-101", "", "1.00", "2.00", "4.00", "8.00", "16.00", "32.00"]
    # At rate 1 the corners of the map see 4 taps, its edges 6.
    shares = [100 * count / 65**2 for count in (63**2, 4 * 63, 4)]
    assert [cell.text for cell in cells(figure4, figure4.rows[0])] == [
        "1",
        *(f"{share:.2f}" for share in shares),
        *(3 * ["0.00"]),
    ]
    assert all(values_plot(result, LIGHT).startswith(b"\x89PNG") for result in (figure4, figure5))
    assert curves_plot(figure4, LIGHT) is None


def test_curves_along_a_column() -> None:
    """One for each combination of the other cells, of the last measure; of all measures where no other column is."""
    table = TABLES["extra_rates"]
    values = {("map 17", False): 40.0, ("map 17", True): 70.0}
    rows = [
        RowResult(row, "", {"miou": 1.0, "lamp_iou": values[f"map {row.cells[0]}", row.cells[2]] + row.cells[1]})
        for row in table.rows
        if row.cells[0] == 17
    ]
    found = curves_along(TableResult(table, "demo", tuple(rows)))
    assert found["map 17"] == [(rate, 40.0 + rate) for rate in (2, 4, 8, 12, 16)]
    assert found["map 17, image pooling"] == [(rate, 70.0 + rate) for rate in (2, 4, 8, 12, 16)]
    figure4 = TABLES["v3_figure4"]
    shares = [RowResult(row, "", row.compute()) for row in figure4.rows]
    found = curves_along(TableResult(figure4, "scenes", tuple(shares)))
    assert list(found) == ["9 valid", "6 valid", "4 valid", "3 valid", "2 valid", "1 valid"]
    assert found["1 valid"][-1] == (100.0, 100.0)


def test_the_papers_numbers_and_ours_are_drawn_at_one_scale(store, monkeypatch) -> None:
    monkeypatch.setattr(plots, "_png", lambda figure: figure)
    paper, ours = values_plot(tables_by_name(store)["v3plus_table1"], LIGHT).axes
    # 70 to 80 with a margin of 12% on both sides is the wider span; 77.61 to 78.21 stands in the middle of the other.
    assert ours.get_xlim() == pytest.approx((68.8, 81.2))
    assert paper.get_xlim() == pytest.approx((77.91 - 6.2, 77.91 + 6.2))


def test_each_training_of_a_large_table_has_its_own_look(monkeypatch) -> None:
    monkeypatch.setattr(plots, "_png", lambda figure: figure)
    table = TABLES["v3_table3"]
    rows = [
        RowResult(row, str(row.cells), trainings=tuple(Training(f"{place}_{seed}", 9, 8, 1.0, ()) for seed in (0, 1)))
        for place, row in enumerate(table.rows)
    ]
    logged = {one.name: [{"step": step, "train/loss": 1.0} for step in (1, 2)] for row in rows for one in row.trainings}
    (panel,) = curves_plot(TableResult(table, "scenes", tuple(rows), logged=logged), LIGHT).axes
    looks = [(line.get_color(), line.get_linestyle()) for line in panel.lines]
    assert len(looks) == 40 and len(set(looks)) == 20, "both seeds of a training look alike"
    assert [style for _, style in looks[::2]] == ["-"] * 7 + ["--"] * 7 + [":"] * 6


def test_a_computed_table_stands_in_the_first_regime_only(store) -> None:
    shutil.copytree(store / "scenes", store / "camvid")

    def places(*regimes: str) -> list[str]:
        return [result.regime for result in read_tables(store, regimes)[0] if result.table.name == "v3_figure4"]

    assert places() == ["scenes"] and places("camvid") == ["camvid"]


def test_what_would_break_a_line_of_markdown_is_escaped() -> None:
    assert escape("a|b\nc <b>") == "a\\|b c &lt;b>"


# The page and the plots.


class Tags(HTMLParser):
    """Every start tag with its attributes, and all text but that of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)


def test_the_page_holds_numbers_and_plots_and_needs_no_network(store, tmp_path, capsys) -> None:
    assert report(tmp_path) == 0
    assert "3 tables with 35 results" in capsys.readouterr().out
    source = (tmp_path / "out/report.html").read_text()
    found = Tags(source)
    assert {"77.61", "71.10", "70.00 to 72.00, 3 seeds", "not run here: needs COCO"} <= set(found.text)
    assert sum(REGIMES["scenes"].differs in text for text in found.text) == 1
    assert not re.search(r"https?://|@import|url\(", source)
    addresses = [value for _, given in found.tags for name in ("src", "href", "srcset") if (value := given.get(name))]
    assert addresses and all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    drawn = [text for text in found.text if text.startswith("The table, drawn")]
    assert sorted(text == "The table, drawn" for text in drawn) == [False, False, True], "Figure 4 has no bars"
    assert all("from the smallest to the largest seed" in text for text in drawn if text != "The table, drawn")
    places = {given["id"] for tag, given in found.tags if tag == "section"}
    names = {"scenes-v3_table6", "scenes-v3_figure4", "scenes-v3plus_table1"}
    assert places == {*names, "verdicts"} and {value[1:] for value in addresses if value[0] == "#"} == names
    assert found.tags.index(("section", {"id": "verdicts"})) < min(
        place for place, (tag, given) in enumerate(found.tags) if given.get("id") in names
    ), "the page opens on the verdicts"
    assert all(given.get("alt") for tag, given in found.tags if tag == "img")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags
    # A plot of each table, curves of the one training whose record is there, for the page and as files.
    files = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert files == {*(f"{name}.png" for name in names), "scenes-v3plus_table1-curves.png"}
    assert sum(tag == "picture" for tag, _ in found.tags) == 4
    assert data_uri((tmp_path / "out/scenes-v3_table6.png").read_bytes(), ".png") in addresses
    assert found.text.count("There are no predictions, since these rows have no run directory.") == 2


def test_text_from_files_stays_text(store, tmp_path, no_plots) -> None:
    assert report(tmp_path) == 0
    found = Tags((tmp_path / "out/report.html").read_text())
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert f"{HOSTILE}." in found.text and "7.5." in found.text
    assert "&lt;script>alert(1)&lt;/script> \\| " in (tmp_path / "out/tables.md").read_text()


def test_hostile_names_of_images_and_classes_stay_text(store, tmp_path) -> None:
    found = Tags(pictured_page(store, tmp_path, names=(HOSTILE, "second"), classes=((HOSTILE, HOSTILE),)))
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert {f"{HOSTILE}: truth", f"{HOSTILE}: channels 48"} <= {given.get("alt") for _, given in found.tags}
    assert {tag: given for tag, given in found.tags if tag == "span"} == {"span": {"style": f"background:{HOSTILE}"}}


# What is refused, and what is left out.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--regime", "scene"], "--regime 'scene': did you mean scenes?"),
        (
            ["--scale", "camvid"],  # As older commands have it.
            "results/camvid: no results there; python -m experiments.run TABLE --regime camvid --data_dir DIR --init "
            "MODEL_FOLDER first",
        ),
        (["--results", "nowhere"], "nowhere: no results there"),
        (["--out", "/proc/report"], "/proc/report/tables.md: cannot be written"),
        (["--write", "/proc/none.md"], "/proc/none.md: "),
        (["--write", "pyproject.toml"], "pyproject.toml: the file has no section between '<!-- tables:begin -->'"),
        (["--images", "-1"], "--images -1: give 0 or more"),
        (
            ["--regime", "scenes", "--write", "README.md"],
            "--write replaces the tables of all regimes; leave out --regime",
        ),
        (["--ouput", "x"], "--ouput"),
    ],
)
def test_mistakes_get_one_line(store, tmp_path, capsys, monkeypatch, repo_root, words, message) -> None:
    monkeypatch.chdir(repo_root)
    try:
        assert report(tmp_path, *words) == 2
    except SystemExit as stop:
        assert stop.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_out_that_is_a_file_is_refused(store, tmp_path, capsys) -> None:
    (tmp_path / "out").write_text("mine")
    assert report(tmp_path) == 2
    assert "cannot be written" in capsys.readouterr().err and (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("damage", ['{"rows": [', "[]", "{}", '{"rows": 1}'])
def test_a_file_that_cannot_be_read_is_named_and_left_out(store, tmp_path, no_plots, capsys, damage) -> None:
    file = store / "scenes/v3_table6.json"
    file.write_text(damage)
    assert report(tmp_path, "--images", "0") == 0
    assert f"{file}: cannot be read as a result" in capsys.readouterr().err
    assert "`v3_table6`" not in (tmp_path / "out/tables.md").read_text()


@pytest.mark.parametrize("damage", [None, [], {"seeds": [], "training": 1}])
def test_a_row_that_cannot_be_read_is_named_and_left_out(store, tmp_path, capsys, damage) -> None:
    file = change_rows(store / "scenes/v3_table6.json", lambda rows: rows | {"eval_os_16": damage})
    results, remarks = read_tables(store, ())
    assert remarks == [line for line in remarks if line.startswith(f"{file}: cannot be read as a result (row eval")]
    assert len(remarks) == 1
    table = markdown.table(next(result for result in results if result.table.name == "v3_table6"))
    assert "| 16 |  |  |  | 77.21 | not yet |  |" in table and "| 8 |  |  |  | 78.51 | 80.00 |" in table


def test_a_result_that_lacks_its_measure_is_left_out(store, tmp_path, no_plots, capsys) -> None:
    file = store / "scenes/v3_table6.json"
    rows = json.loads(file.read_text())["rows"]
    del rows["eval_os_16"]["seeds"][0]["miou"]
    save_json(file, {"rows": rows})
    assert report(tmp_path) == 0
    assert f"{file}: cannot be read as a result (row eval_os_16: KeyError 'miou'); left out" in capsys.readouterr().err
    assert "| 8 |  |  |  | 78.51 | 80.00 |" in (tmp_path / "out/tables.md").read_text(), "the other rows stay"


def test_damaged_records_of_trainings_cost_their_curves_only(store, tmp_path, capsys) -> None:
    (store / "scenes/v3plus_table1/trainings.json").write_text('{"a_seed0": [')
    assert report(tmp_path) == 0
    captured = capsys.readouterr()
    assert "the logs of its trainings cannot be read" in captured.err and "3 tables with 35 results" in captured.out
    assert not list((tmp_path / "out").glob("*-curves.png"))


def test_a_row_of_no_table_is_named(store, tmp_path, no_plots, capsys) -> None:
    put(store, "v3_table6/eval_os_4", 0.9)
    assert report(tmp_path) == 0
    assert "v3_table6.json: no table has a row 'eval_os_4'; left out" in capsys.readouterr().err


# Pictures of a run.


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The runs of the regime `scenes`: one that a tiny network left."""
    folder = tmp_path_factory.mktemp("runs")
    with tiny_models():
        config = tiny_config()
        work(Job("k", 0, config, {"e": config.evaluate.to_dict()}), folder / "scenes", again=False)
    return folder


def test_pictures_are_predicted_once(runs, tmp_path, monkeypatch) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(runs / "scenes/k_seed0", workdir)
    row = RowResult(Row(("x",)), "x", evaluation="e")
    seen = []
    with tiny_models():
        evaluate = report_pictures.evaluate
        monkeypatch.setattr(
            report_pictures,
            "evaluate",
            lambda *given, on_prediction, **options: evaluate(
                *given, on_prediction=lambda *one: (seen.append(one), on_prediction(*one)), **options
            ),
        )
        found = row_pictures(row, workdir, count=2)
        assert [path.name for path in found.files("prediction")] == ["prediction_0.png", "prediction_1.png"]
        palette = open_source("scenes", split="val", size=(33, 33), count=5).labels.palette
        for number, (example, classes) in enumerate(seen):
            for kind, ids in (("truth", example["label"]), ("prediction", classes)):
                np.testing.assert_array_equal(read_image(found.files(kind)[number]), colour_labels(ids, palette))
        assert {"meadow", "road"} & {name for name, _ in found.classes}
        assert row_pictures(row, workdir, count=2) == found and len(seen) == 2
        assert len(row_pictures(row, workdir, count=3).names) == 3 and len(seen) == 5
        (workdir / "report/e/index.json").write_text("{")
        assert row_pictures(row, workdir, count=2) == found and len(seen) == 7


def test_a_few_examples_are_evenly_spread() -> None:
    source = open_source("scenes", split="val", size=(33, 33), count=5)
    few = Few(source, 2)
    assert [few[index]["name"] for index in range(len(few))] == [source[0]["name"], source[2]["name"]]
    assert len(Few(source, 9)) == 5


def test_a_run_that_gives_no_pictures_costs_a_line_only(store, tmp_path, no_plots, capsys) -> None:
    workdir = tmp_path / "runs/scenes/c_seed0"
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text("{")
    assert report(tmp_path) == 0
    assert f"{workdir}: no pictures of v3_table6, eval os 16 (" in capsys.readouterr().err
    assert report(tmp_path, "--images", "0") == 0
    assert capsys.readouterr().err == ""


def test_a_table_takes_its_pictures_from_its_runs(store, runs) -> None:
    put(store, "v3_table6/eval_os_16", 0.75, key="k")
    with tiny_models():
        found, remarks = table_pictures(tables_by_name(store)["v3_table6"], runs, count=1)
    assert [row.label for row, _ in found] == ["eval os 16"] and remarks == []
    assert found[0][1].folder == runs / "scenes/k_seed0/report/e"


# The page in a browser.


def pictured_page(store, tmp_path, *, names=("first", "second"), classes=(("sky", "#0000dc"),)) -> str:
    """The page with pictures of one colour: rows are red and green on the first image, and both blue on the second."""
    result = tables_by_name(store)["v3plus_table1"]
    rows = [row for row in result.rows if not row.missing]
    found = []
    for row, colour in zip(rows, (RED, GREEN), strict=True):
        one = Pictures(tmp_path / row.label, names, "scenes", classes)
        one.folder.mkdir()
        for kind in ("image", "truth", "prediction"):
            for file, shade in zip(one.files(kind), (colour if kind == "prediction" else GREY, BLUE), strict=True):
                write_image(file, np.full((20, 30, 3), shade, np.uint8))
        found.append((row, one))
    return page([TablePart(result, found, (None, None), (None, None))], [], images=1)


def in_browser(source: str, script: str, tmp_path: Path) -> dict:
    """Return what a function's body returns in the page."""
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    file = tmp_path / "driven.html"
    wrapped = f"<script>document.body.textContent = JSON.stringify((() => {{{script}}})())</script></body>"
    file.write_text(source.replace("</body>", wrapped))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --window-size=1000,2000 --virtual-time-budget=2000"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert body, done.stdout
    return json.loads(body[1])


def test_headings_sort(store, tmp_path) -> None:
    script = """
      const table = document.querySelector("table:not(.claims)");
      const column = (index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
      const click = (index) => table.tHead.rows[0].cells[index].querySelector("button").click();
      const found = {};
      click(1); found.paper = column(0); found.said = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
      click(2); found.up = column(0); click(2); found.down = column(0); click(2); found.back = column(0);
      return found;"""
    found = in_browser(pictured_page(store, tmp_path), script, tmp_path)
    assert found["paper"] == ["8", "16", "64", "32", "48"] and found["said"] == "ascending"
    assert found["up"][:2] == ["8", "48"] and found["down"][:2] == ["48", "8"], "what has no number stays below"
    assert found["back"] == ["8", "16", "32", "48", "64"]


def test_the_slider_compares_two_rows_on_one_image(store, tmp_path) -> None:
    script = """
      const shown = (name) => document.querySelector(`img[data-show="${name}"]`);
      const stage = document.querySelector(".stage"), range = document.querySelector("input[type=range]");
      const box = stage.getBoundingClientRect();
      const at = (share) => document.elementFromPoint(box.left + share * box.width, box.top + 5).dataset.show;
      const choose = (name, value) => {
        const select = document.querySelector(`select[data-choice="${name}"]`);
        select.value = value; select.dispatchEvent(new Event("change"));
      };
      const found = { alts: [shown("left").alt, shown("right").alt, shown("truth").alt], start: [at(0.4), at(0.6)] };
      range.value = 70; range.dispatchEvent(new Event("input")); found.moved = [at(0.6), at(0.8)];
      stage.setPointerCapture = () => {}; stage.hasPointerCapture = () => true;
      for (const [kind, share] of [["pointerdown", 0.9], ["pointermove", 0.2]])
        stage.dispatchEvent(new PointerEvent(kind, { clientX: box.left + share * box.width }));
      found.dragged = [range.value, at(0.1), at(0.3)];
      found.before = [shown("left").src, shown("right").src];
      choose("left", "1"); choose("image", "1");
      found.after = [shown("left").alt, shown("image").alt, shown("left").src, shown("right").src];
      return found;"""
    found = in_browser(pictured_page(store, tmp_path), script, tmp_path)
    assert found["alts"] == ["first: channels 8", "first: channels 48", "first: truth"]
    assert found["start"] == ["left", "right"] and found["moved"] == ["left", "right"]
    assert found["dragged"] == ["20", "left", "right"]
    red, green = (data_uri((tmp_path / f"channels {n}/prediction_0.png").read_bytes(), ".png") for n in (8, 48))
    blue = data_uri((tmp_path / "channels 48/prediction_1.png").read_bytes(), ".png")
    assert found["before"] == [red, green]
    assert found["after"] == ["second: channels 48", "second: image", blue, blue]


def test_sliders_set_rate_and_side_of_the_drawn_map(tmp_path) -> None:
    figure4 = TABLES["v3_figure4"]
    result = TableResult(figure4, "scenes", tuple(RowResult(row, "", row.compute()) for row in figure4.rows))
    script = """
      const kernel = document.querySelector(".kernel"), canvas = kernel.querySelector("canvas");
      const [rate, side] = kernel.querySelectorAll("input");
      const state = () => [canvas.width, ...[...kernel.querySelectorAll("li")].map((line) => line.textContent)];
      const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); return state(); };
      const colour = (x, y) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].join();
      const found = { first: state(), corner: colour(0, 0), middle: colour(32, 32), beyond: set(rate, 65) };
      set(rate, 2); found.small = set(side, 9);
      return found;"""
    found = in_browser(page([TablePart(result, [], (None, None), (None, None))], [], images=1), script, tmp_path)
    # By hand: at rate 24 on 65 samples, 17 see three taps of an axis and 48 see two.
    assert found["first"] == [65, "9 valid: 6.8%", "6 valid: 38.6%", "4 valid: 54.5%"]
    assert found["corner"] == "33,145,140,255" and found["middle"] == "253,231,37,255"
    assert found["beyond"] == [65, "1 valid: 100.0%"]
    assert found["small"] == [9, "9 valid: 30.9%", "6 valid: 49.4%", "4 valid: 19.8%"]  # 25, 40 and 16 of 81


def test_a_phone_scrolls_tables_and_not_the_page(store, tmp_path) -> None:
    """The page in a frame of 390 pixels, which is narrower than a browser's window gets."""
    script = """
      const frame = document.createElement("iframe");
      const source = "<!doctype html>" + document.documentElement.outerHTML.replace(/<script>[^]*?<.script>/g, "");
      document.body.replaceChildren(frame);
      frame.style.cssText = "width: 390px; height: 800px; border: 0";
      const inner = frame.contentDocument;
      inner.open(); inner.write(source); inner.close();
      const scroll = inner.querySelector(".scroll");
      return { page: inner.documentElement.scrollWidth, table: scroll.scrollWidth, shown: scroll.clientWidth,
               text: inner.defaultView.getComputedStyle(inner.querySelector("td")).fontSize };"""
    found = in_browser(pictured_page(store, tmp_path), script, tmp_path)
    assert found["page"] <= 390 and found["table"] > found["shown"] and found["text"] == "16px"


def test_every_table_of_the_papers_can_be_shown(tmp_path) -> None:
    """With one row each, as soon as the runner has it; what is computed needs no runner."""
    for name, table in TABLES.items():
        if name == "v3_figure4":
            continue
        row = next(iter(table.named_rows()))
        bands = [{"width": width, "miou": 0.5} for width in (1, 2, 4, 8, 16, 32)]
        file = put(tmp_path / "results", f"{name}/{row}", 0.5, multiply_adds={"space_to_batch": 1e9})
        rows = json.loads(file.read_text())["rows"]
        rows[row]["seeds"][0] |= {
            "trimap": {"bands": bands},
            "per_class": [{"name": name, "iou": 0.5} for name in RARE],
        }
        save_json(file, {"rows": rows})
    results, remarks = read_tables(tmp_path / "results", ("scenes",))
    elsewhere = {"extra_parts", "extra_context", "extra_rates", "v3_cityscapes"}  # In the regimes `demo` and `paper`.
    assert [result.table.name for result in results] == [name for name in TABLES if name not in elsewhere]
    assert remarks == []
    for result in results:
        assert all(len(cells(result, row)) == len(headings(result)) for row in result.rows)
        assert any(row.values for row in result.rows)
    table3 = next(result for result in results if result.table.name == "v3plus_table3")
    assert "difference" not in headings(table3), "data and networks are not the paper's"
    at_paper = headings(dataclasses.replace(table3, regime="paper"))
    assert at_paper.count("difference") == 2 and at_paper[-1] == "difference"


def test_the_iou_of_some_classes_is_their_mean() -> None:
    found = [
        {"name": "road", "iou": 0.9},
        *({"name": name, "iou": iou} for name, iou in zip(RARE, (0.1, 0.2, 0.6), strict=True)),
    ]
    assert iou_of(found, RARE) == pytest.approx(0.3)
    assert iou_of(found[:3], RARE) is None, "data without one of them"
