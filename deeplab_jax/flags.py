"""The flags of the command line: the parser of every verb, and the types of what follows a flag."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from deeplab_jax import commands
from deeplab_jax.commands import fail
from deeplab_jax.config_values import literal
from deeplab_jax.evaluate.windows import BLENDS

Verb = Callable[..., argparse.ArgumentParser]
OMITTED = argparse.SUPPRESS  # A flag that is not given is left out, so the function's own default holds.
MODEL = "model folder, run directory, a name that the verb `weights` lists, or hf://owner/repo[@revision]"


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, like all others; `verbs` has those of its verbs."""

    verbs: Mapping[str, argparse.ArgumentParser]

    def error(self, message: str) -> Any:
        sys.exit(fail(f"{message}; see {self.prog} --help"))


def make_parser() -> Parser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="deeplab-jax", description="DeepLabv3 and DeepLabv3+ semantic segmentation.", allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        text: str,
        *,
        config: str = "",
        omitted: str | None = None,
    ) -> argparse.ArgumentParser:
        needed = "--config FILE.py[:args] or FILE.json is required (see configs/); " if config == "required" else ""
        changed = "--config.section.key=value changes the configuration, whose keys deeplab_jax/config_keys.py lists"
        epilog = needed + changed if config else None
        sub = subparsers.add_parser(
            name, help=text, description=text, epilog=epilog, allow_abbrev=False, argument_default=omitted
        )
        sub.set_defaults(run=run, takes_config=bool(config), distributed="none")
        sub.add_argument(
            "--module",
            metavar="FILE.py",
            default="",
            help="run this file with your own parts; see config.module",
        )
        return sub

    add_training_verbs(verb)
    add_inference_verbs(verb)
    add_data_verbs(verb)
    add_weight_verbs(verb)
    add_publishing_verbs(verb)
    add_summarize_verb(verb)
    add_compile_verb(verb)
    parser.verbs = subparsers.choices
    return parser


def add_training_verbs(verb: Verb) -> None:
    """Add `train`, `find-lr` and `replay`."""
    train = verb("train", commands.train, "Train a model, or resume a run.", config="required")
    train.add_argument("--workdir", type=path, required=True, help="run directory; a second start in it resumes")
    train.add_argument("--allow_config_change", action="store_true", help="resume a run that has another configuration")
    add_distributed_flag(train)

    find = verb(
        "find-lr",
        commands.find_lr,
        "Suggest a learning rate: train a few steps while it grows; writes find_lr.json and find_lr.png.",
        config="required",
    )
    find.add_argument("--out", type=path, required=True, help="folder for both files")
    find.add_argument("--from", dest="low", type=float, default=1e-6, metavar="RATE", help="the first rate (1e-6)")
    find.add_argument("--to", dest="high", type=float, default=1.0, metavar="RATE", help="the last rate (1)")
    find.add_argument("--steps", type=int, default=100, help="number of rates (100)")

    replay = verb("replay", commands.replay, "Repeat the step at which training stopped, and show every tensor's size.")
    replay.add_argument("folder", type=path, metavar="FOLDER", help="postmortem/ of a run directory")


def add_inference_verbs(verb: Verb) -> None:
    """Add `evaluate` and `predict`."""
    evaluate = verb(
        "evaluate",
        commands.evaluate,
        "Evaluate a model on labelled images; writes metrics.json. Without a flag, the configuration's value holds.",
        config="optional",
        omitted=OMITTED,
    )
    evaluate.add_argument("--model", type=path, required=True, help=MODEL)
    evaluate.add_argument("--out", type=path, required=True, help="folder for metrics.json")
    evaluate.add_argument(
        "--split",
        help="split to evaluate on, or all; by default the configuration's validation split, of a folder without parts "
        "a fifth",
    )
    evaluate.add_argument(
        "--save_predictions",
        action="store_true",
        help="write NAME.png and NAME_overlay.png of every image, and index.html",
    )
    evaluate.add_argument("--limit", type=int, help="evaluate only the first images")
    evaluate.add_argument("--trimap", type=numbers(int), help="such as 1,2,4: mIoU within so many pixels of boundaries")
    evaluate.add_argument("--boundary", action="store_true", help="Boundary IoU and boundary F-score too")
    evaluate.add_argument(
        "--calibration",
        action="store_true",
        help="whether probabilities mean what they say, with a plot",
    )
    evaluate.add_argument(
        "--bootstrap", type=int, metavar="N", help="such as 1000: 95%% intervals by so many resamples"
    )
    evaluate.add_argument("--per_image", action="store_true", help="the counts of every image too")
    add_inference_flags(evaluate)
    add_distributed_flag(evaluate)

    predict = verb(
        "predict",
        commands.predict,
        "Segment images; writes NAME.png (class ids with a palette), NAME_overlay.png and index.html to look at them. "
        "Of a video it writes NAME_overlay.mp4. It takes nothing from config.evaluate of a run.",
        omitted=OMITTED,
    )
    predict.add_argument(
        "images", type=path, nargs="+", metavar="IMAGE_OR_FOLDER", help="a folder with all folders below it"
    )
    predict.add_argument("--model", type=path, required=True, help=MODEL)
    predict.add_argument(
        "--out", type=path, required=True, help="folder for the pictures; folders below a folder are kept"
    )
    predict.add_argument("--channels", type=numbers(int), help="such as 3,2,1: bands of the files, if not the model's")
    predict.add_argument("--batch_size", type=int, help="images that run together; by default 1 on CPUs, otherwise 8")
    predict.add_argument(
        "--probabilities",
        choices=("npy", "png"),
        help="also write NAME_probabilities.npy (float16), or NAME_probability_CLASS.png (times 255) for each class",
    )
    predict.add_argument(
        "--confidence", action="store_true", help="also write NAME_confidence.png, how sure each pixel is, times 255"
    )
    predict.add_argument(
        "--ids",
        choices=("classes", "dataset"),
        help="dataset: write only NAME.png, with the values that the data set's own masks store",
    )
    predict.add_argument("--polygons", action="store_true", help="write NAME.geojson too, with each region's outline")
    add_inference_flags(predict)


def add_data_verbs(verb: Verb) -> None:
    """Add `check-data` and `prepare`."""
    check = verb("check-data", commands.check_data, "Find the faults of a data set.", config="required")
    check.add_argument("--split", help="split to check; by default the training and the validation split")
    check.add_argument("--limit", type=int, help="check only so many images, evenly spread")
    check.add_argument("--json", type=path, help="write the report to this file as well")
    check.add_argument(
        "--show", type=path, metavar="FOLDER", help="write a page of training images as they are augmented"
    )

    prepare = verb(
        "prepare",
        commands.prepare,
        "Write a data set as a TFDS folder (array_record), readable by --config.data.name=tfds.",
        config="required",
    )
    prepare.add_argument("--out", type=path, required=True, help="folder to write")


def add_weight_verbs(verb: Verb) -> None:
    """Add `weights` and `convert`."""
    weights = verb("weights", commands.weights, "List the published weights that have a name, and which are here.")
    weights.add_argument("part", metavar="PART", nargs="?", default="", help="only names that hold this text")
    weights.add_argument("--json", action="store_true", help="print JSON instead of a table")

    convert = verb(
        "convert", commands.convert, "Turn weights of other code bases, or a training run, into a model folder."
    )
    convert.add_argument(
        "source",
        type=path,
        metavar="SOURCE",
        help="PyTorch, safetensors, Keras or .tflite file, TensorFlow checkpoint, folder, run, or a name",
    )
    convert.add_argument("--out", type=path, required=True, help="model folder to write")
    convert.add_argument("--kind", default="auto", help="who wrote them; by default found from the tensors' names")
    convert.add_argument(
        "--select",
        default="",
        metavar="PREFIX",
        help="if a file holds several networks: the one whose tensor names begin with PREFIX",
    )
    convert.add_argument("--output_stride", type=int, help="at which to run the source; by default its own")
    convert.add_argument("--num_classes", type=int, help="of the model; if not the source's, add --reinit head")
    convert.add_argument("--in_channels", type=int, help="of the model; the first convolution is fitted to them")
    convert.add_argument(
        "--activation",
        default="",
        choices=("softmax", "sigmoid"),
        help="sigmoid: a pixel can have several labels. A file does not say this. One logit always has a sigmoid",
    )
    convert.add_argument("--reinit", default="", choices=("head",), help="start the classifiers at random")
    convert.add_argument(
        "--not_strict", action="store_true", help="continue if tensors are missing, unexpected or of another shape"
    )


def add_publishing_verbs(verb: Verb) -> None:
    """Add `export` and `push`."""
    export = verb(
        "export",
        commands.export,
        "Write a model for programs that have JAX, PyTorch, ONNX or LiteRT, but not this package.",
    )
    export.add_argument("--model", type=path, required=True, help=MODEL)
    export.add_argument("--checkpoint", default="best", help="in a run directory: best (default), newest, or a step")
    export.add_argument(
        "--format",
        required=True,
        choices=("stablehlo", "onnx", "tflite", "torchvision", "smp", "mmsegmentation"),
        help="what to write: for a runtime, or a state dict of another code base",
    )
    export.add_argument(
        "--out",
        type=path,
        required=True,
        help="file to write: .zip for stablehlo, .onnx, .tflite, .pth or .safetensors else",
    )
    export.add_argument("--output_stride", type=int, help="8, 16, 32, ...; by default the model's own")
    runtimes = export.add_argument_group("stablehlo, onnx, tflite")
    runtimes.add_argument("--size", type=image_size, help="HEIGHTxWIDTH of the images; by default any (stablehlo)")
    runtimes.add_argument("--batch", type=int, help="images per call; by default any number (tflite: 1)")
    runtimes.add_argument("--preprocess", action="store_true", help="take uint8 images as they are stored")
    runtimes.add_argument("--argmax", action="store_true", help="return class ids instead of logits")
    runtimes.add_argument("--precision", choices=("float32", "float16", "int8"), help="onnx, tflite; int8: tflite only")
    runtimes.add_argument(
        "--calibration", type=path, metavar="FOLDER", help="for int8: some images such as it will see"
    )
    runtimes.add_argument("--threshold", type=float, help="with --argmax and sigmoids: as in predict (0.5)")

    push = verb("push", commands.push, "Upload a model with a model card to the Hugging Face hub.")
    push.add_argument("model", type=path, metavar="MODEL_OR_RUN", help=MODEL)
    push.add_argument("target", metavar="hf://owner/repo", help="repository; it is created if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", default="", help="branch to upload to; it is created if it does not exist")
    push.add_argument("--checkpoint", default="best", help="in a run directory: best (default), newest, or a step")
    push.add_argument("--licence", default="", help="of the weights, such as apache-2.0; by default their source's")
    push.add_argument(
        "--metrics", type=path, help="metrics.json of an evaluation; by default the one in the model's folder"
    )
    push.add_argument(
        "--out", type=path, metavar="FOLDER", help="write the folder with the card there, and upload nothing"
    )


def add_summarize_verb(verb: Verb) -> None:
    """Add `summarize`."""
    summarize = verb(
        "summarize",
        commands.summarize,
        "Count what each stage of a network costs; needs no weights and computes nothing.",
    )
    summarize.add_argument(
        "model", type=path, metavar="NAME_OR_PATH", help="name of a model, model folder or run directory"
    )
    summarize.add_argument("--size", type=image_size, default=(513, 513), help="HEIGHTxWIDTH of the image (513x513)")
    summarize.add_argument("--output_stride", type=int, help="8, 16, 32, ...; by default the model's own")
    summarize.add_argument("--num_classes", type=positive, help="by default the model's own, or 21 of a name")
    summarize.add_argument(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the model, such as separable=True or 'aspp_rates=(6, 12)'; repeat it for more",
    )
    summarize.add_argument(
        "--json",
        type=path,
        metavar="FILE",
        nargs="?",
        const="-",
        help="also write the summary to this file; without a file, only print it as JSON",
    )


def add_compile_verb(verb: Verb) -> None:
    """Add `compile`."""
    ahead = verb(
        "compile",
        commands.compile_,
        "Compile the program of a configuration for a TPU that need not be there; prints memory and estimated time. "
        "The exit code is 2 where the program does not fit.",
        config="required",
    )
    ahead.add_argument("--target", required=True, help="v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:2x4, ..., cpu or gpu")
    ahead.add_argument("--batch", type=positive, help="images of one call; by default the configuration's")
    ahead.add_argument("--space", type=positive, help="devices that share the rows of an image; see config.train.space")
    ahead.add_argument("--remat", action="store_true", default=None, help="keep fewer activations in training")
    ahead.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the activations")
    ahead.add_argument("--output_stride", "--output-stride", type=positive, help="8, 16, 32, ...")
    ahead.add_argument("--num_classes", "--num-classes", type=positive, help="by default those of the data set")
    other = ahead.add_mutually_exclusive_group()
    other.add_argument("--predict", type=image_size, metavar="HEIGHTxWIDTH", help="compile prediction, not training")
    other.add_argument("--evaluate", action="store_true", help="compile evaluation, not training")
    ahead.add_argument(
        "--largest_batch", "--largest-batch", action="store_true", help="also search the most images of a call that fit"
    )
    ahead.add_argument(
        "--out", type=path, metavar="DIR", help="write the report to compile.json and a picture to compile.png there"
    )


def add_distributed_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that makes several processes work as one."""
    parser.add_argument(
        "--distributed",
        default="none",
        metavar="WHERE",
        help="start this on several machines at once: auto (Slurm, Kubernetes, Open MPI, TPU pods), or "
        "HOST:PORT,COUNT,INDEX with an address of process 0; by default none",
    )


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for how a model runs."""
    parser.add_argument("--checkpoint", help="in a run directory: best (default), newest, or a step")
    parser.add_argument("--mode", choices=("padded", "exact"), help="pad images to few sizes, or run each at its own")
    parser.add_argument("--output_stride", type=int, help="8, 16, 32, ..., or 0 for the model's own")
    parser.add_argument("--scales", type=numbers(float), help="such as 0.5,0.75,1: average over these sizes")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--window", type=numbers(int), help="height,width of a sliding window for large images")
    parser.add_argument("--overlap", type=float, help="of windows, as a share of one, such as 0.5")
    parser.add_argument("--blend", choices=BLENDS, help="weight of a window's pixels: all equal, or the centre more")
    parser.add_argument("--crf", action="store_true", help="refine labels by a fully connected CRF")
    parser.add_argument(
        "--threshold", type=float, help="with sigmoids: a pixel is of the object above this probability, such as 0.5"
    )


def numbers(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """Return an argparse type for comma-separated numbers."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: give numbers separated by commas") from None

    return parse


def path(text: str) -> str:
    """Return the path that a flag names; it is an argparse type. "" is what a shell makes of a name that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("empty: give a path")
    return text


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or not 1 <= int(text) <= 2**31 - 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    """Parse `HEIGHTxWIDTH`, or one number for both."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: give HEIGHTxWIDTH in pixels, such as 513x513")
    return int(sides[0]), int(sides[-1])


def option(text: str) -> tuple[str, Any]:
    """Parse `key=value`; see `literal`."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: give KEY=VALUE")
    if key in commands.FLAGS_OF_MODEL:
        raise argparse.ArgumentTypeError(f"{text!r}: has a flag of its own; give --{key} {value}")
    return key, literal(value)
