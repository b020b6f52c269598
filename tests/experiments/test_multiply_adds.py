"""Every row of DeepLabv3+'s Tables 3 and 5 is counted to within half a percent of the paper."""

import json

import pytest

from experiments import ROOT, multiply_adds
from experiments.multiply_adds import ENTRIES, ODD, Entry, counted, decoder_differences, difference, result

COMMITTED = json.loads((ROOT / "experiments/results/multiply_adds.json").read_text())["rows"]

BOUND = 0.5  # percent


def parameters() -> list:
    return [
        pytest.param(entry, id=entry.label, marks=[pytest.mark.slow] if entry.cells["ms"] else []) for entry in ENTRIES
    ]


@pytest.mark.parametrize("entry", parameters())
def test_row_is_met(entry: Entry) -> None:
    if entry.paper == ODD:
        # As far as the decoder's 21.7 is from what this number leaves of it.
        assert 1.2 < difference(entry) < 1.4
    else:
        assert abs(difference(entry)) < BOUND
    # The padding of space-to-batch is what the paper's number contains beyond the convolutions' own taps.
    assert counted(entry, "valid") < counted(entry, "exact") < counted(entry, "space_to_batch")
    assert result(entry) in COMMITTED


def test_the_tables_are_whole() -> None:
    names = [entry.table.name for entry in ENTRIES]
    assert [names.count(name) for name in ("v3plus_table3", "v3plus_table5")] == [14, 24] and len(names) == 38


def test_one_number_contradicts_its_neighbours() -> None:
    """The decoder costs the same at every output stride, but for that number's rows."""
    odd = [extra for entry, extra in decoder_differences() if entry.paper == ODD]
    others = [extra for entry, extra in decoder_differences() if entry.paper != ODD]
    assert len(odd) == 2 and len(others) == 5
    assert all(extra == pytest.approx(21.75, abs=0.03) for extra in others)
    assert all(extra == pytest.approx(20.26, abs=0.01) for extra in odd)


@pytest.mark.slow
def test_its_own_multi_scale_row_contradicts_it_too() -> None:
    (scales,) = (entry for entry in ENTRIES if entry.paper == 898.69)
    (alone,) = (entry for entry in ENTRIES if entry.row.cells == (16, 16, True, False, False))
    implied = scales.paper * counted(alone, "space_to_batch") / counted(scales, "space_to_batch")
    assert implied == pytest.approx(102.6, abs=0.1)


def test_the_results_are_written(tmp_path, monkeypatch) -> None:
    entries = tuple(entry for entry in ENTRIES if entry.cells["eval_os"] == 32)
    monkeypatch.setattr(multiply_adds, "ENTRIES", entries)
    monkeypatch.setattr(multiply_adds, "odd_one_out", lambda: "A paragraph.")
    assert multiply_adds.main(["--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "multiply_adds.json").read_text())
    assert [entry["paper"] for entry in content["rows"]] == [52.43, 74.2]
    for entry, written in zip(entries, content["rows"], strict=True):
        assert written["counted"]["space_to_batch"] == counted(entry, "space_to_batch")
    lines = (tmp_path / "multiply_adds.md").read_text().splitlines()
    assert "| v3plus_table3: train os 32, eval os 32 | 52.43 | 52.25 | -0.35 | 51.41 |" in "\n".join(lines)
    assert lines[-1] == "A paragraph."
