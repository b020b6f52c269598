"""The study of DenseCRF, through its command line, on two small images."""

import json
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax import segment
from deeplab_jax.data.catalog import open_source
from deeplab_jax.ops import metrics
from deeplab_jax.ops.crf import DenseCRF
from deeplab_jax.weights.folder import save
from experiments import crf_study
from tests.support.layouts import camvid
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("tiny_networks")


def test_both_forms_are_compared_on_the_same_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    camvid(tmp_path / "data")
    model, variables = tiny_model(num_classes=11)
    save(tmp_path / "model", model, variables, {})
    words = ["--model", f"{tmp_path}/model", "--data_dir", f"{tmp_path}/data", "--out", f"{tmp_path}/crf.json"]
    assert crf_study.main([*words, "--images", "2", "--exact_images", "1", "--iterations", "2"]) == 0
    found = json.loads((tmp_path / "crf.json").read_text())
    source = open_source("camvid", split="val", dir=tmp_path / "data")
    for name, crf in (("none", False), ("fast", DenseCRF(iterations=2, method="fast"))):
        counts = np.zeros((11, 11), np.int64)
        for example in (source[0], source[1]):
            predicted = segment(model, variables, example["image"], crf=crf)
            counts += np.asarray(metrics.confusion_matrix(example["label"], predicted, num_classes=11))
        assert found["miou"][name] == pytest.approx(metrics.mean_iou(counts), abs=1e-6), name
    assert [row["name"] for row in found["images"]] == ["0", "1"]
    assert [len(found["times"][form]["seconds"]) for form in ("fast", "exact")] == [2, 1]
    assert found["agreement"]["mean"] == found["images"][0]["agreement"] > 0.9
    assert f"written to {tmp_path}/crf.json" in capsys.readouterr().out


def test_the_file_of_the_results_is_always_named(capsys: pytest.CaptureFixture) -> None:
    """The committed one is of another model than the reader's."""
    with pytest.raises(SystemExit) as stop:
        crf_study.main(["--model", "runs/camvid", "--data_dir", "DIR", "--images", "1", "--exact_images", "0"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the following arguments are required: --out" in line
