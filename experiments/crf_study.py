"""Apply DenseCRF to a trained model: the time of its fast and exact form, their agreement, and the change of mean IoU.

    python -m experiments.crf_study --model runs/camvid --data_dir DIR --images 20 --exact_images 3 --out FILE

The images are spread evenly over CamVid's validation split, at their own size. The exact form takes minutes per image.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import load
from deeplab_jax.data.catalog import open_source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import predict
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.files import save_json
from deeplab_jax.ops import metrics
from deeplab_jax.ops.crf import DenseCRF, mean_field
from deeplab_jax.provenance import versions
from experiments.program import exits, parser_of

# The goal, 10 s for 480x360 pixels and 5 iterations, is for this number of classes. Classes that a network lacks stay
# empty, which changes no label.
TIMED_CLASSES = 12


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print a line for each image and a summary, and write both as JSON."""
    parser = parser_of("crf_study", __doc__)
    parser.add_argument("--model", required=True, help="model folder or run directory")
    parser.add_argument("--checkpoint", default="best", help="of a run directory: best (the default), newest or a step")
    parser.add_argument("--data_dir", required=True, help="folder of CamVid")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--exact_images", type=int, default=3, help="number of them that the exact form gets as well")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="file of the results, JSON")
    args = parser.parse_args(argv)
    if args.images < 1 or not 0 <= args.exact_images <= args.images:
        raise UserError(
            f"--images {args.images} --exact_images {args.exact_images}: give at least 1, and no more of them exactly"
        )
    results = study(args)
    save_json(args.out, results)
    for method, times in results["times"].items():
        print(
            f"{method:6} median {np.median(times['seconds']):7.1f} s per image (processor time "
            f"{np.median(times['cpu_seconds']):.1f} s), compiled in {times['compile_seconds']:.1f} s"
        )
    if results["agreement"]:
        print("labels equal: {mean:.2%} on average, {worst:.2%} at worst".format(**results["agreement"]))
    for name in results["miou"]:
        print(f"CRF {name:6} mIoU {results['miou'][name]:.4f}  pixel accuracy {results['pixel_accuracy'][name]:.4f}")
    print(f"written to {args.out}")


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Run both forms and return the results, for JSON."""
    network, variables, info = load(args.model, checkpoint=args.checkpoint)
    source = open_source("camvid", split="val", dir=args.data_dir)
    chosen = np.linspace(0, len(source) - 1, args.images).round().astype(int)
    exact = set(np.linspace(0, args.images - 1, args.exact_images).round().astype(int).tolist())
    forms = {
        "fast": DenseCRF(iterations=args.iterations, method="fast"),
        "exact": DenseCRF(iterations=args.iterations, method="exact"),
    }
    confusions = {name: np.zeros((network.num_classes,) * 2, np.int64) for name in ("none", "fast")}
    rows: list[dict[str, Any]] = []
    programs: dict[str, Callable[..., jax.Array]] = {}
    times: dict[str, dict[str, Any]] = {}
    for number, index in enumerate(chosen):
        example = source[int(index)]
        image, label = example["image"], example["label"]
        size = np.asarray([label.shape], np.int32)
        _, probabilities = predict(network, variables, image[None], size, Protocol())
        missing = max(0, TIMED_CLASSES - network.num_classes)
        padded = jnp.pad(probabilities[0], ((0, 0), (0, 0), (0, missing)))
        arguments = (padded, jnp.asarray(image), jnp.ones(label.shape, bool))
        labels = {"none": np.asarray(padded).argmax(-1)}
        for method in forms if number in exact else ("fast",):
            if method not in programs:
                start = time.perf_counter()
                programs[method] = jax.jit(partial(mean_field, crf=forms[method])).lower(*arguments).compile()
                compiling = round(time.perf_counter() - start, 2)
                times[method] = {"compile_seconds": compiling, "seconds": [], "cpu_seconds": []}
            start, cpu = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(programs[method](*arguments))
            times[method]["seconds"].append(round(time.perf_counter() - start, 2))
            times[method]["cpu_seconds"].append(round(time.process_time() - cpu, 2))
            labels[method] = np.asarray(result).argmax(-1)
        for name, counts in confusions.items():
            counts += np.asarray(
                metrics.confusion_matrix(jnp.asarray(label), jnp.asarray(labels[name]), num_classes=network.num_classes)
            )
        row: dict[str, Any] = {"name": example["name"], "changed": float((labels["fast"] != labels["none"]).mean())}
        if "exact" in labels:
            row["changed_by_exact"] = float((labels["exact"] != labels["none"]).mean())
            row["agreement"] = float((labels["fast"] == labels["exact"]).mean())
        rows.append(row)
        shares = "  ".join(f"{key} {100 * value:6.2f}%" for key, value in row.items() if key != "name")
        took = "  ".join(f"{method} {times[method]['seconds'][-1]:.1f} s" for method in forms if method in labels)
        print(f"{row['name']:24} {shares}   {took}", flush=True)
    agreements = [row["agreement"] for row in rows if "agreement" in row]
    return {
        "data": "camvid val",
        "size": size[0].tolist(),
        "classes": padded.shape[-1],
        "step": info.get("step"),
        "crf": {method: dataclasses.asdict(crf) for method, crf in forms.items()},
        "times": times,
        "images": rows,
        "agreement": {"mean": float(np.mean(agreements)), "worst": float(np.min(agreements))} if agreements else None,
        "miou": {name: metrics.mean_iou(counts) for name, counts in confusions.items()},
        "pixel_accuracy": {name: metrics.pixel_accuracy(counts) for name, counts in confusions.items()},
        "processors": os.cpu_count(),
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
