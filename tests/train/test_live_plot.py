"""Curves while a training runs: in a notebook one picture that changes, elsewhere a file."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import LivePlot
from deeplab_jax.train import live_plot


def feed(plot: LivePlot) -> None:
    for step in (1, 10, 20):
        plot(step, {"loss": 2 / step, "learning_rate": 0.1 - step / 1000})
    for step, miou in ((10, 0.25), (20, 0.5), (30, 0.5)):
        plot(step, {"miou": miou, "per_class": []})


def test_the_curves_are_the_numbers() -> None:
    plot = LivePlot()
    feed(plot)
    left, right, rate = plot.figure().axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(1, 2), (10, 0.2), (20, 0.1)])
    np.testing.assert_allclose(rate.lines[0].get_xydata(), [(1, 0.099), (10, 0.09), (20, 0.08)])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [(10, 25), (20, 50), (30, 50)])
    assert right.get_title() == "best 50.00 at step 20"
    assert list(plot.steps) == [1, 10, 20] and plot.evaluations[30]["miou"] == 0.5


def test_nothing_yet_and_nothing_known_can_be_drawn(tmp_path) -> None:
    plot = LivePlot()
    plot.save(tmp_path / "empty.png")
    plot(1, {"loss": 1.0})  # An optimizer of one's own has no known rate.
    plot(1, {"miou": None})  # No labelled pixel.
    assert len(plot.figure().axes) == 2
    with Image.open(plot.save(tmp_path / "little.png")) as picture:
        assert picture.size == (880, 330)


def test_a_step_without_a_loss_is_not_drawn(tmp_path) -> None:
    """`on_step` gets no loss of a skipped update, and the record has none."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/learning_rate": 0.1}\n')
    plot = LivePlot(tmp_path)
    plot(3, {"learning_rate": 0.1, "images_per_second": 1.0})
    plot(4, {"loss": 1.0, "learning_rate": 0.1})
    left, _, rate = plot.figure().axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(1, 2), (4, 1)])
    np.testing.assert_allclose(rate.lines[0].get_xydata(), [(4, 0.1)])
    assert list(plot.steps) == [1, 3, 4]


def test_a_file_that_cannot_be_written_is_said(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    plot = LivePlot(file=tmp_path / "file" / "curves.png")
    plot(1, {"miou": 0.5})
    assert plot.evaluations[1]["miou"] == 0.5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {tmp_path}/file/curves.png: cannot be written (") and "training goes on" in line


def test_a_file_follows_each_evaluation(tmp_path) -> None:
    plot, sizes = LivePlot(file=tmp_path / "curves.png"), []
    plot(1, {"loss": 1.0})
    assert not (tmp_path / "curves.png").exists()
    for step in (1, 2):
        plot(step, {"miou": 0.3 * step})
        sizes.append((tmp_path / "curves.png").read_bytes())
    assert sizes[0] != sizes[1]


def test_a_run_that_goes_on_begins_with_its_record(tmp_path) -> None:
    lines = [{"step": 1, "train/loss": 2.0}, {"step": 3, "val/miou": 0.5, "val/seconds": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), '{"step": 4, "tra']))
    plot = LivePlot(tmp_path)
    assert plot.steps[1]["loss"] == 2.0 and plot.evaluations[3]["miou"] == 0.5
    assert LivePlot(tmp_path / "absent").steps == {}


@pytest.mark.parametrize("kernel", [None, object()])
def test_a_notebook_shows_one_picture_that_changes(monkeypatch, kernel) -> None:
    """`kernel` is there in a notebook, and not in a shell of IPython."""
    shown = []
    handle = SimpleNamespace(update=lambda picture: shown.append(("update", picture)))

    def display(picture, *, display_id):
        shown.append(("display", picture))
        return handle

    module = SimpleNamespace(Image=lambda content: content, display=display)
    shell = SimpleNamespace(display=module, get_ipython=lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    feed(LivePlot(every=3600))
    kinds = [kind for kind, _ in shown]
    # The first step, and each evaluation; other steps wait for their time.
    assert kinds == ([] if kernel is None else ["display", "update", "update", "update"])
    for _, content in shown:
        assert Image.open(io.BytesIO(content)).size == (880, 330)
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert live_plot._display() is None
