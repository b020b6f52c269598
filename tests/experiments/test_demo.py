"""The demo and the ablation, in their smallest form."""

import json

import cv2
import pytest

from experiments import demo, scenes_ablation


def test_demo_trains_evaluates_twice_and_draws(tmp_path, repo_root, monkeypatch, capsys):
    monkeypatch.chdir(repo_root)
    assert demo.main(["--config", "configs/scenes.py:debug", "--workdir", str(tmp_path / "run")]) == 0
    metrics = [json.loads((tmp_path / "run" / f"output_stride_{s}" / "metrics.json").read_text()) for s in (16, 8)]
    assert [m["protocol"]["output_stride"] for m in metrics] == [16, 8]
    assert all(m["protocol"]["images"] == 4 for m in metrics)
    assert cv2.imread(str(tmp_path / "run" / "demo.png")) is not None
    assert len(list((tmp_path / "run" / "overlays").glob("*_overlay.png"))) == 4
    printed = capsys.readouterr().out
    assert "mean IoU" in printed
    assert "output stride 8" in printed


def test_demo_on_real_images_asks_for_their_folder(capsys):
    assert demo.main(["--dataset", "camvid"]) == 2
    assert "DATA_DIR" in capsys.readouterr().err


@pytest.mark.parametrize("name", scenes_ablation.ROWS)
def test_ablation_rows_are_models(name, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    config = scenes_ablation.row_config(scenes_ablation.ROWS[name], 1, [])
    demo_config = scenes_ablation.row_config({}, 0, [])
    assert config.train.seed == 1
    assert config.train.steps == demo_config.train.steps
    from deeplab_jax.train.from_config import build_model

    model = build_model(config, num_classes=9)
    assert (model.output_stride == 32) == ("32" in name)
    assert (model.decoder is None) == ("decoder" in name)
