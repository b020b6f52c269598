"""The spread over seeds against the cost of a training."""

import pytest

from experiments import spread
from experiments.outcomes.gather import RowResult, TableResult, Training
from experiments.tables import TABLES

TABLE = TABLES["extra_noise"]
MIOUS = {
    ("DeepLabv3", "150 steps"): {0: 50.0, 1: 54.0, 2: 51.0},
    ("DeepLabv3+", "150 steps"): {0: 60.5, 1: 64.0, 2: 61.0, 3: 90.0},  # Seed 3 has no pair.
    ("DeepLabv3", "450 steps, average"): {0: 55.0, 1: 55.5},
    ("DeepLabv3+", "450 steps, average"): {0: 66.0, 1: 66.25},
    ("DeepLabv3", "900 steps, average"): {0: 55.0},
    ("DeepLabv3+", "900 steps, average"): {0: 66.0},
}


@pytest.fixture
def result() -> TableResult:
    def trainings(cells):
        steps = int(cells[1].split()[0])
        return tuple(
            Training(f"t_{seed}", steps, 8, 60.0 * (1 + seed), (), seed=seed, values={"miou": miou})
            for seed, miou in MIOUS.get(cells, {}).items()
        )

    rows = (RowResult(row, "", trainings=trainings(row.cells)) for row in TABLE.rows)
    return TableResult(TABLE, "scenes", tuple(rows))


def test_spreads_are_over_the_seeds_that_both_networks_have(result) -> None:
    short, long = spread.protocols(result)  # The third has one seed.
    assert (short.name, short.images, short.seconds) == ("150 steps", 1200, pytest.approx(960 / 7))
    assert (long.name, long.images) == ("450 steps, average", 3600)
    assert [short.spread(name) for name in ("DeepLabv3", "DeepLabv3+", spread.DIFFERENCE)] == [4.0, 3.5, 0.5]
    assert [long.spread(name) for name in ("DeepLabv3", "DeepLabv3+", spread.DIFFERENCE)] == [0.5, 0.25, 0.25]


def test_the_table_and_the_picture(result) -> None:
    found = spread.protocols(result)
    lines = spread.table(found).splitlines()
    assert lines[2] == "| 150 steps | 3 | 1,200 | 137 | 51.67 | 4.00 | 61.83 | 3.50 | 10.17 | 0.50 |"
    assert lines[0].count("|") == lines[2].count("|") and len(lines) == 4
    axes = spread.draw(found).axes[0]
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    assert curves["DeepLabv3, averaged"] == ([3600], [0.5]) and curves["DeepLabv3"] == ([1200], [4.0])


def test_a_regime_without_the_table_says_what_makes_it(capsys) -> None:
    """CamVid has committed results, and none of this table."""
    assert spread.main(["--regime", "camvid"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "python -m experiments.run extra_noise --regime camvid --data_dir DIR --init MODEL_FOLDER first" in line


def test_a_regime_without_the_networks_says_so(capsys) -> None:
    """Its command would run no row."""
    assert spread.main(["--regime", "demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--regime demo: no network stands for deeplabv3_resnet101 in the regime demo, only for " in line
    assert line.endswith("leave out --regime, or give camvid")


def test_without_results_it_says_what_makes_them(tmp_path, capsys) -> None:
    assert spread.main(["--results", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no results there; python -m experiments.run TABLE --regime scenes first" in line
