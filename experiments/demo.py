"""The demo: train a small DeepLabv3+, evaluate it at output stride 16 and 8, and draw its predictions.

    python -m experiments.demo --dataset scenes --workdir runs/demo-scenes
    python -m experiments.demo --dataset camvid --data_dir DIR --workdir runs/demo-camvid

Both evaluations use the same weights. The demo ends with the table of classes and the paths of the pictures. A second
start goes on where the first one stopped.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deeplab_jax.cli import main as command_line
from deeplab_jax.config import read_config
from deeplab_jax.data.images import write_image
from deeplab_jax.errors import UserError, end_process
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.pictures import StripCollector, overlay, stack_strips
from deeplab_jax.evaluate.protocol import split_section
from deeplab_jax.files import save_json
from deeplab_jax.terminal import class_table
from deeplab_jax.train.from_config import open_split
from deeplab_jax.weights.folder import METRICS_FILE, load
from experiments.program import exits, parser_of

CONFIGS = {"scenes": "configs/scenes.py", "camvid": "configs/camvid.py:steps=300"}
OUTPUT_STRIDES = (16, 8)
PICTURES = 4


@exits
def main(argv: Sequence[str] | None) -> int:
    """Run the demo and return the exit code."""
    parser = parser_of("demo", __doc__)
    parser.add_argument("--dataset", choices=tuple(CONFIGS), default="scenes")
    parser.add_argument("--data_dir", default="", help="folder of the data; scenes are generated")
    parser.add_argument("--workdir", default="", help="run directory; by default runs/demo-DATASET")
    parser.add_argument("--config", default="", help="another configuration than the demo's")
    args = parser.parse_args(argv)
    workdir = Path(args.workdir or f"runs/demo-{args.dataset}")
    started = time.perf_counter()
    if args.dataset != "scenes" and not args.data_dir:
        command = f"make demo DATASET={args.dataset} DATA_DIR=..."
        raise UserError(f"the {args.dataset} demo reads real images: name their folder, {command}")
    overrides = [f"--config.data.dir={Path(args.data_dir).resolve()}"] if args.data_dir else []
    config = args.config or CONFIGS[args.dataset]
    code = command_line(["train", f"--config={config}", *overrides, "--workdir", str(workdir)])
    if not code:
        show(workdir, Console(), started)
    return code


def show(workdir: Path, console: Console, started: float) -> None:
    """Evaluate the run's last weights at both output strides, print the table, and write the pictures."""
    config = read_config(workdir / "config.json")
    model, variables, _ = load(workdir, checkpoint="newest")
    split = config.data.val_split
    source = open_split(config, split)
    collector = StripCollector(source.labels, total=len(source), count=PICTURES)
    results: list[Results] = []
    for output_stride in OUTPUT_STRIDES:
        protocol, how = split_section({**config.evaluate.to_dict(), "output_stride": output_stride})
        on_prediction = None if results else collector  # The pictures show the first output stride.
        result = evaluate(model, variables, source, protocol, split=split, on_prediction=on_prediction, **how)
        save_json(workdir / f"output_stride_{output_stride}" / METRICS_FILE, result)
        results.append(result)
    write_image(workdir / "demo.png", stack_strips(collector.strips))
    (workdir / "overlays").mkdir(exist_ok=True)
    for example, classes in collector.drawn:
        picture = overlay(example["image"], classes, source.labels.palette)
        write_image(workdir / "overlays" / f"{Path(example['name']).stem}_overlay.png", picture)
    console.print(class_table(results, [f"output stride {stride}" for stride in OUTPUT_STRIDES]))
    console.print(
        f"mean IoU {results[0]['miou']:.4f} at output stride 16 and {results[1]['miou']:.4f} at 8, same weights, "
        f"{results[0]['protocol']['images']} images of {source.name}; {time.perf_counter() - started:.0f} s in all\n"
        f"pictures: {workdir / 'demo.png'} and {workdir / 'overlays'}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    end_process(main())
