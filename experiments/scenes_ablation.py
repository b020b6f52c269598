"""What each idea of the papers is worth on `scenes`: the demo's network, and the same without one part.

    python -m experiments.scenes_ablation --runs runs/scenes_ablation --out experiments/results

Every row is the demo's configuration with one change, trained from scratch once per seed and evaluated on the whole
validation split. A row that is finished is not run again, and one that was cut off goes on from its checkpoint.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from deeplab_jax.cli import fail
from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError, end_process
from deeplab_jax.files import read_json
from deeplab_jax.provenance import git_commit
from deeplab_jax.train.loop import train
from deeplab_jax.train.workdir import open_workdir
from experiments.output import write_json

ROWS: dict[str, dict[str, Any]] = {
    "DeepLabv3+, output stride 16": {},
    "without the ASPP (1x1 only)": {"options": {"aspp_rates": (), "image_pooling": False}},
    "without the decoder (DeepLabv3)": {"model": "deeplabv3_resnet18"},
    "output stride 32": {"output_stride": 32},
}


def row_config(row: Mapping[str, Any], seed: int, overrides: Sequence[str]) -> Any:
    """Return the demo's configuration with a row's change."""
    model = row.get("model", "deeplabv3plus_resnet18")
    config = load_config([f"--config=configs/scenes.py:model={model}", *overrides])
    config.train.seed = seed
    config.model.output_stride = row.get("output_stride", config.model.output_stride)
    with config.model.options.unlocked():
        config.model.options.update(row.get("options", {}))
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write `scenes_ablation.json`, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", default="runs/scenes_ablation", help="folder for the run directories")
    parser.add_argument("--out", default="experiments/results", help="folder for scenes_ablation.json")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row")
    args, overrides = parser.parse_known_args(argv)
    console = Console()
    results = []
    try:
        for index, (name, row) in enumerate(ROWS.items()):
            finished = [
                run_row(row, seed, Path(args.runs, f"row{index}_seed{seed}"), overrides) for seed in range(args.seeds)
            ]
            results.append({"row": name, "runs": finished})
            mious = [run["miou"] for run in finished]
            spread = f" (min {min(mious):.4f}, max {max(mious):.4f})" if len(mious) > 1 else ""
            console.print(f"{name}: mIoU {statistics.mean(mious):.4f}{spread}", highlight=False)
            # After every row, so that what is finished is never lost.
            content = {"command": "python -m experiments.scenes_ablation", "rows": results}
            write_json(Path(args.out) / "scenes_ablation.json", content)
    except UserError as error:
        return fail(str(error))
    return 0


def run_row(row: Mapping[str, Any], seed: int, workdir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate one row with one seed, or read what an earlier call found."""
    file, config = workdir / "result.json", row_config(row, seed, overrides)
    if file.exists():
        open_workdir(workdir, config, allow_config_change=False)  # It may be of other overrides.
        return dict(read_json(file))
    evaluated = train(config, workdir)
    if evaluated is None:
        raise UserError(
            f"{workdir}: trained to the end, but {file.name} is missing; delete the folder to run the row again"
        )
    kept = ("miou", "pixel_accuracy", "per_class", "protocol", "model", "versions")
    result = {"seed": seed, "commit": git_commit(), **{name: evaluated[name] for name in kept}}
    write_json(file, result)
    return result


if __name__ == "__main__":
    end_process(main())
