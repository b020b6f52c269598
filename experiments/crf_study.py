"""Apply DenseCRF to a trained model: the time of its fast and exact form, their agreement, and the change of mean IoU.

    python -m experiments.crf_study --model runs/camvid --data_dir DIR --images 20 --exact_images 3

The images are spread evenly over CamVid's validation split, at their own size. The exact form takes minutes per image.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import load
from deeplab_jax.commands import fail
from deeplab_jax.data.catalog import open_source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import predict
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.ops import metrics
from deeplab_jax.ops.crf import DenseCRF, mean_field
from deeplab_jax.provenance import versions
from experiments.output import write_json

RESULTS = Path(__file__).parent / "results" / "crf.json"
Method = Literal["fast", "exact"]
METHODS: tuple[Method, ...] = ("fast", "exact")
# The goal, 10 s for 480x360 pixels and 5 iterations, is for this number of classes. Classes that a network lacks stay
# empty.
TIMED_CLASSES = 12


class Timed:
    """A function of arrays of one shape, compiled ahead. It keeps the seconds of its calls.

    Attributes:
      compile_seconds: seconds of the compilation.
      seconds: seconds of each call by the clock.
      cpu_seconds: seconds of each call, summed over the processors that worked on it.
    """

    def __init__(self, function: Callable[..., jax.Array], *arguments: jax.Array) -> None:
        start = time.perf_counter()
        self._compiled = jax.jit(function).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - start
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def __call__(self, *arguments: jax.Array) -> np.ndarray:
        start, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(self._compiled(*arguments))
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu)
        return np.asarray(result)

    def times(self) -> dict[str, Any]:
        """Return the seconds as JSON."""
        return {
            "compile_seconds": round(self.compile_seconds, 2),
            "seconds": [round(value, 2) for value in self.seconds],
            "cpu_seconds": [round(value, 2) for value in self.cpu_seconds],
        }


def refine(method: Method, iterations: int) -> Callable[..., jax.Array]:
    """Return mean-field inference in one form, as a function of arrays only."""
    crf = DenseCRF(iterations=iterations, method=method)
    return lambda probabilities, image, mask: mean_field(probabilities, image, mask, crf=crf)


def with_classes(probabilities: jax.Array, count: int) -> jax.Array:
    """Add classes of probability 0, up to `count` classes; they change no label."""
    return jnp.pad(probabilities, ((0, 0), (0, 0), (0, max(0, count - probabilities.shape[-1]))))


def study(*, model: str, checkpoint: str, data_dir: str, images: int, exact_images: int, iterations: int) -> Any:
    """Run both forms and return the content of `crf.json`."""
    network, variables, info = load(model, checkpoint=checkpoint)
    source = open_source("camvid", split="val", dir=data_dir)
    chosen = np.linspace(0, len(source) - 1, images).round().astype(int)
    exact = set(np.linspace(0, images - 1, exact_images).round().astype(int).tolist())
    confusions = {name: np.zeros((network.num_classes,) * 2, np.int64) for name in ("none", "fast")}
    rows: list[dict[str, Any]] = []
    timed: dict[str, Timed] = {}
    for number, index in enumerate(chosen):
        example = source[int(index)]
        image, label = example["image"], example["label"]
        size = np.asarray([label.shape], np.int32)
        _, probabilities = predict(network, variables, image[None], size, Protocol())
        arguments = (with_classes(probabilities[0], TIMED_CLASSES), jnp.asarray(image), jnp.ones(label.shape, bool))
        labels = {"none": np.asarray(arguments[0]).argmax(-1)}
        for method in METHODS if number in exact else METHODS[:1]:
            if method not in timed:
                timed[method] = Timed(refine(method, iterations), *arguments)
            labels[method] = timed[method](*arguments).argmax(-1)
        for name, counts in confusions.items():
            counts += np.asarray(
                metrics.confusion_matrix(jnp.asarray(label), jnp.asarray(labels[name]), num_classes=network.num_classes)
            )
        row = {"name": example["name"], "changed": float((labels["fast"] != labels["none"]).mean())}
        if "exact" in labels:
            row["changed_by_exact"] = float((labels["exact"] != labels["none"]).mean())
            row["agreement"] = float((labels["fast"] == labels["exact"]).mean())
        rows.append(row)
        print_row(row, {method: timed[method].seconds[-1] for method in METHODS if method in labels})
    agreements = [row["agreement"] for row in rows if "agreement" in row]
    return {
        "data": "camvid val",
        "size": size[0].tolist(),
        "classes": arguments[0].shape[-1],
        "step": info.get("step"),
        "crf": {method: dataclasses.asdict(DenseCRF(iterations=iterations, method=method)) for method in METHODS},
        "times": {method: run.times() for method, run in timed.items()},
        "images": rows,
        "agreement": {"mean": float(np.mean(agreements)), "worst": float(np.min(agreements))} if agreements else None,
        "miou": {name: metrics.mean_iou(counts) for name, counts in confusions.items()},
        "pixel_accuracy": {name: metrics.pixel_accuracy(counts) for name, counts in confusions.items()},
        "processors": os.cpu_count(),
        "versions": versions(),
    }


def print_row(row: dict[str, Any], seconds: dict[str, float]) -> None:
    """Print the results of one image."""
    shares = "  ".join(f"{key} {100 * value:6.2f}%" for key, value in row.items() if key != "name")
    times = "  ".join(f"{method} {value:.1f} s" for method, value in seconds.items())
    print(f"{row['name']:24} {shares}   {times}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each image and a summary, write both as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="model folder or run directory")
    parser.add_argument("--checkpoint", default="newest")
    parser.add_argument("--data_dir", required=True, help="folder of CamVid")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--exact_images", type=int, default=3, help="number of them that the exact form gets as well")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = vars(parser.parse_args(argv))
    out = flags.pop("out")
    try:
        if flags["images"] < 1 or not 0 <= flags["exact_images"] <= flags["images"]:
            raise UserError(
                f"--images {flags['images']} --exact_images {flags['exact_images']}: give at least 1, and no more "
                "of them exactly"
            )
        results = study(**flags)
        write_json(out, results)
    except UserError as error:
        return fail(str(error))
    for method, times in results["times"].items():
        print(
            f"{method:6} median {np.median(times['seconds']):7.1f} s per image (processor time "
            f"{np.median(times['cpu_seconds']):.1f} s), compiled in {times['compile_seconds']:.1f} s"
        )
    if results["agreement"]:
        print("labels equal: {mean:.2%} on average, {worst:.2%} at worst".format(**results["agreement"]))
    for name in results["miou"]:
        print(f"CRF {name:6} mIoU {results['miou'][name]:.4f}  pixel accuracy {results['pixel_accuracy'][name]:.4f}")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
