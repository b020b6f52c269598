"""The model of a step over several devices."""

import pytest

from experiments.launch import scaling
from experiments.launch.scaling import Link, check, fitted_link, main, most_devices, step_seconds

LINK = Link(rate=1e9, latency=1e-3)


def test_a_step_is_its_own_images_and_the_sum() -> None:
    assert step_seconds(1, compute=2.0, summed=1e9, sums=5, link=LINK) == 2.0
    # A ring of 4 moves 1.5 times the bytes over each link.
    assert step_seconds(4, compute=0.5, summed=1e9, sums=5, link=LINK) == pytest.approx(0.5 + 1.5 + 0.005)


def test_devices_are_worth_it_as_long_as_they_work_half_of_the_time() -> None:
    # Two devices: 8 s and 1 s; four: 4 and 1.5; eight: 2 and 1.75; sixteen: 1 and 1.875.
    assert most_devices(image=1.0, batch=16, summed=1e9, rate=1e9) == 8
    assert most_devices(image=1.0, batch=16, summed=0, rate=1e9) == 16
    assert most_devices(image=1.0, batch=16, summed=1e12, rate=1e9) == 1


def test_the_link_is_that_of_two_measured_sums() -> None:
    found = {"all_reduce": {"1": 0.002, "1000000": 0.006}}
    assert fitted_link(found, 2) == Link(rate=pytest.approx(1e9), latency=0.002)


def test_the_check_holds_each_run_against_one_process_alone() -> None:
    def run(processes, batch, step, **more):
        return {"processes": processes, "batch": batch, "step": step, "gradient": 4e6, "sums": 0, "program": 0, **more}

    runs = [run(1, 2, 1.0), run(1, 4, 1.9)]
    several = {"all_reduce": {"1": 0.01, "1000000": 0.05}, "sums": 10, "program": 4e6}
    content = {"runs": [*runs, run(2, 4, 1.2, **several), run(2, 8, 2.0, **several)], "load": 0.1}
    lines = check(content)
    # 1 s alone, 0.04 s for the bytes, 10 times 0.01 s to start.
    assert lines[4] == "| 2 | 4 | 1200 | 1140 | 0.95 | x 1.67 |"
    assert lines[5] == "| 2 | 8 | 2000 | 2040 | 1.02 | x 1.90 |"


def test_a_page_without_marks_is_refused(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "NETWORKS", ())  # They take a while to trace.
    (tmp_path / "found.json").write_text(
        '{"load": 0, "runs": [{"processes": 1, "batch": 2, "step": 1, "gradient": 1, "sums": 0, "program": 0},'
        '{"processes": 2, "batch": 4, "step": 1, "gradient": 1, "sums": 0, "program": 0, '
        '"all_reduce": {"1": 0.1, "2": 0.2}}]}'
    )
    (tmp_path / "page.md").write_text("nothing")
    assert main(["--out", str(tmp_path / "found.json"), "--write", str(tmp_path / "page.md")]) == 2
    assert "has no section" in capsys.readouterr().err
