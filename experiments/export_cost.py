"""What float16 and int8 cost in mean IoU: a model's exported files, run on a validation split.

    python -m experiments.export_cost --model runs/camvid --data camvid --data_dir DIR --out runs/export_cost

Each file is exported, run by its own runtime (LiteRT, onnxruntime) on every image, and counted as `evaluate` counts.
The first row is the network as `evaluate` runs it, on images padded to the same size. What is finished stands in
`export_cost.json`; the same command goes on with the rest. The packages of the extras onnx and tflite do the work.
"""

import hashlib
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import load
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.source import Source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.counts import count, counted
from deeplab_jax.evaluate.evaluator import Tally, check_classes, cut_back, evaluate, padded
from deeplab_jax.evaluate.inference import pad_images
from deeplab_jax.evaluate.protocol import Protocol, Size
from deeplab_jax.evaluate.views import preprocess
from deeplab_jax.files import read_json, save_json
from deeplab_jax.flags import image_size
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.decision import decide, to_probabilities
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.provenance import versions
from deeplab_jax.weights import export_onnx, export_tflite
from deeplab_jax.weights.export import Signature
from deeplab_jax.weights.folder import flatten_variables
from experiments.output import markdown_table
from experiments.program import exits, parser_of

Run = Callable[[np.ndarray], np.ndarray]
Row = dict[str, Any]
FILE = "export_cost.json"
OWN = "jax float32"
RUNTIMES: dict[str, tuple[Callable[..., tuple[bytes, str]], Callable[[bytes], Run], tuple[str, ...]]] = {
    "tflite": (export_tflite.export_tflite, export_tflite.runner, export_tflite.PRECISIONS),
    "onnx": (export_onnx.export_onnx, export_onnx.runner, export_onnx.PRECISIONS),
}
PROGRAMS = [f"{form} {precision}" for form, (_, _, precisions) in RUNTIMES.items() for precision in precisions]


def smallest_size(source: Source, images: int) -> Size:
    """Return the height and width in which each of the first images of a source fits."""
    shapes = [source[index]["label"].shape[:2] for index in range(images)]
    return max(height for height, _ in shapes), max(width for _, width in shapes)


def evaluate_file(run: Run, model: Segmenter, source: Source, size: Size, *, images: int) -> Row:
    """Return the metrics of an exported network on the first images of a source.

    `run` makes logits from preprocessed images `[1, *size, C]`. It has the classes, preprocessing and activation of
    `model`. Images are padded to `size` at the bottom and right, as in `evaluate`.
    """
    protocol = Protocol(mode="padded", pad_to=(size,))
    tally = Tally(protocol, model)
    prepare = jax.jit(partial(preprocess, model))

    @jax.jit
    def classes_and_counts(logits: jax.Array, labels: jax.Array) -> Any:
        probabilities = to_probabilities(model, logits)
        classes = decide(model, logits if model.activation == "softmax" else probabilities, protocol.threshold)
        return classes, count(model, labels, classes, probabilities, what=counted(protocol))

    for index in range(images):
        batch = [source[index]]
        image, labels, sizes = padded(batch, size, count=1)
        logits = run(np.asarray(prepare(jnp.asarray(image), jnp.asarray(sizes))))
        classes, counts = classes_and_counts(jnp.asarray(logits), jnp.asarray(labels))
        tally.add(size, batch, cut_back(np.asarray(classes), batch), counts)
        show(f"{index + 1} of {images} images", end="\r" if index + 1 < images else "\n")
    return metrics(tally.metrics(source.labels))


def metrics(results: Row) -> Row:
    """Return what a row keeps of an evaluation."""
    return {key: results[key] for key in ("miou", "pixel_accuracy", "per_class") if key in results}


def calibration(source: Source, size: Size, most: int) -> list[np.ndarray]:
    """Return images of a source, evenly spread and padded, which show int8 the range of activations."""
    chosen = np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)
    images = [source[int(index)]["image"] for index in chosen]
    fitting = [image[: size[0], : size[1]] for image in images]
    return [np.asarray(pad_images([image], size)[0][0], np.float32) for image in fitting]


def table(rows: dict[str, Row]) -> str:
    """Return the rows as a Markdown table: mIoU in percent, and the difference to the network's own; empty cells where
    the images have no labelled pixel.
    """
    own = rows[OWN]["miou"]

    def percent(value: float | None, form: str = ".2f") -> str:
        return "" if value is None else format(100 * value, form)

    cells = [
        (
            name,
            f"{row['megabytes']:.1f}" if "megabytes" in row else "",
            percent(row["miou"]),
            percent(None if own is None or row["miou"] is None else row["miou"] - own, "+.2f"),
            percent(row["pixel_accuracy"]),
        )
        for name, row in rows.items()
    ]
    return markdown_table(("program", "MiB", "mIoU", "difference", "pixel accuracy"), cells, numbers=4)


def read_kept(file: Path, setting: Row) -> dict[str, Row]:
    """Return the finished rows of a file, {} if there is none.

    Raises:
      UserError: they are of another setting, or the file holds something else.
    """
    if not file.exists():
        return {}
    try:
        before = read_json(file)
        different = [key for key in setting if before["setting"][key] != setting[key]]
        table(before["rows"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{file}: not what this command has written; remove it: rm -r {shlex.quote(str(file))}"
        ) from None
    if different:
        raise UserError(f"{file}: it has results of other {' and '.join(different)}; give another --out")
    return dict(before["rows"])


def digest(variables: Variables) -> str:
    """Return a hash of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(flatten_variables(variables).items()):
        found.update(name.encode() + np.asarray(value).tobytes())
    return found.hexdigest()[:16]


def show(text: str, *, end: str = "\n") -> None:
    """Print to stderr at once."""
    print(text, end=end, file=sys.stderr, flush=True)


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print the table, and write its rows as JSON."""
    parser = parser_of("export_cost", __doc__)
    parser.add_argument("--model", required=True, help="model folder, run directory or name")
    parser.add_argument("--data", default="camvid", help="name of the data set (default: %(default)s)")
    parser.add_argument("--data_dir", help="its folder")
    parser.add_argument("--split", default="val")
    parser.add_argument("--calibration_split", default="train", help="where the images for int8 are from")
    parser.add_argument("--calibration_images", type=int, default=100, metavar="N")
    parser.add_argument("--size", type=image_size, help="of the programs' images; default: in which all images fit")
    parser.add_argument("--images", type=int, metavar="N", help="evaluate only the first ones")
    names = ", ".join(PROGRAMS)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, metavar="NAME", help=names)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args(argv)
    model, variables, _ = load(args.model)
    source = open_source(args.data, split=args.split, dir=args.data_dir)
    check_classes(model, source)
    for flag in ("images", "calibration_images"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}: give at least 1")
    images = min(args.images or len(source), len(source))
    fits = smallest_size(source, images)
    size = args.size or fits
    if size[0] < fits[0] or size[1] < fits[1]:
        raise UserError(f"--size {size[0]}x{size[1]}: there are images of {fits[0]}x{fits[1]}; give at least that")
    setting = {
        "model": describe(model),
        "weights": digest(variables),
        "data": f"{source.name} {args.split}",
        "images": images,
        "size": list(size),
        "calibration": [args.calibration_split, args.calibration_images],
    }
    file = args.out / FILE
    rows = read_kept(file, setting)
    for name in (OWN, *args.programs):
        if name in rows:
            continue
        show(f"{name} ...")
        if name == OWN:
            protocol = Protocol(mode="padded", pad_to=(size,))
            rows[name] = metrics(evaluate(model, variables, source, protocol, limit=images))
        else:
            form, precision = name.split()
            write, runner, _ = RUNTIMES[form]
            more: dict[str, Any] = {}
            if precision == "int8":  # What a file costs is worth knowing above all where its classes are far off.
                others = open_source(args.data, split=args.calibration_split, dir=args.data_dir)
                more = {"calibration": calibration(others, size, args.calibration_images), "refuse": False}
            content, said = write(model, variables, Signature(size, batch=1), precision=precision, **more)
            found = evaluate_file(runner(content), model, source, size, images=images)
            rows[name] = {"megabytes": round(len(content) / 2**20, 2), "compared": said, **found}
        save_json(file, {"setting": setting, "rows": rows, "versions": versions()})
    print(table(rows))
    print(f"written to {file}")


if __name__ == "__main__":
    sys.exit(main())
