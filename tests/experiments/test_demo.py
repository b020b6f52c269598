"""The demo in its smallest form, and the table of its parts."""

import json

import cv2

from deeplab_jax.config import to_plain
from experiments import demo
from experiments.run.__main__ import main
from tests.support.tiny import tiny_config


def test_demo_trains_evaluates_twice_and_draws(tmp_path, tiny_networks, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_plain(tiny_config())))
    assert demo.main(["--config", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "run")]) == 0
    metrics = [json.loads((tmp_path / "run" / f"output_stride_{s}" / "metrics.json").read_text()) for s in (16, 8)]
    assert [m["protocol"]["output_stride"] for m in metrics] == [16, 8]
    assert all(m["protocol"]["images"] == 5 for m in metrics)
    assert cv2.imread(str(tmp_path / "run" / "demo.png")) is not None
    assert len(list((tmp_path / "run" / "overlays").glob("*_overlay.png"))) == 4
    printed = capsys.readouterr().out
    assert "mean IoU" in printed
    assert "output stride 8" in printed


def test_demo_on_real_images_asks_for_their_folder(capsys):
    assert demo.main(["--dataset", "camvid"]) == 2
    assert "DATA_DIR" in capsys.readouterr().err


def test_the_ablation_is_a_table_in_the_demos_regime(tmp_path, capsys):
    words = ["--regime", "demo", "--plan", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(["extra_parts", *words]) == 0
    assert "4 of 4 jobs to run" in capsys.readouterr().out
    assert main(["v3_table6", *words]) == 0
    printed = capsys.readouterr().out
    assert "0 of 0 jobs to run" in printed, "the papers' networks stand in other regimes"
    row = "v3_table6/eval_os_16"
    assert f"{row} is not run: no network stands for deeplabv3_resnet101 in the regime demo, only for " in printed
