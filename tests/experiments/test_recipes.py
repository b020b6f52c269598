"""The configurations behind published numbers are still those that gave them."""

import json
from pathlib import Path

import pytest

from deeplab_jax.config import load_config
from deeplab_jax.train.from_config import build_schedule


@pytest.mark.parametrize(
    ("folder", "arg"), [("camvid", ""), ("camvid_best", ":best"), ("camvid_finetune", ":finetune,steps=2000")]
)
def test_a_recipe_of_camvid_has_the_rates_and_the_network_of_its_run(folder: str, arg: str, repo_root: Path) -> None:
    config, results = load_config([f"--config={repo_root}/configs/camvid.py{arg}"]), repo_root / "experiments/results"
    schedule = build_schedule(config)
    logged = [json.loads(line) for line in (results / folder / "train_metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["train/learning_rate"] for line in logged if "train/learning_rate" in line}
    assert max(rates) == config.train.steps
    assert {step: float(schedule(step - 1)) for step in rates} == pytest.approx(rates, rel=0, abs=1e-8)
    found = json.loads((results / folder / "os16_padded.json").read_text())
    assert found["checkpoint"] == config.train.steps
    ours = {"name": config.model.name, "options": config.model.options.to_dict()}
    assert {key: found["model"][key] for key in ours} == json.loads(json.dumps(ours))
    assert found["protocol"]["sizes_run"] == [list(size) for size in config.evaluate.pad_to]


@pytest.mark.parametrize(("arg", "steps", "warmup"), [("", 4000, 100), (":steps=400", 400, 40)])
def test_the_recipe_for_few_images(arg: str, steps: int, warmup: int, repo_root: Path) -> None:
    config = load_config([f"--config={repo_root}/configs/folder.py{arg}"])
    found = (config.train.steps, config.optimizer.warmup_steps, config.optimizer.learning_rate, config.data.crop_size)
    assert (config.optimizer.name, *found) == ("adam", steps, warmup, 1e-3, (257, 257))
