"""The command line: flags and dispatch, nothing else."""

import argparse
import ast
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax

from deeplab_jax import commands
from deeplab_jax.commands import INTERRUPTED, PREEMPTED, USER_ERROR, fail
from deeplab_jax.distributed import run_as_one
from deeplab_jax.errors import ToldElsewhere, UserError, did_you_mean, end_process
from deeplab_jax.extensions import allow
from deeplab_jax.train.signals import end_on_sigterm

Verb = Callable[..., argparse.ArgumentParser]
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 on success, 2 with one line on stderr for a fault that the user can fix,
    130 after Ctrl-C, 75 if SIGTERM stopped a training run.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # Names of files and classes may hold characters of no encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    args, rest = parser.parse_known_args(arguments)
    # `--config file`, `--config=file` and every `--config.key=value` go to the config's own parser.
    config_args, unknown = split_config_arguments(rest)
    if unknown or (config_args and not args.takes_config):
        flags = [option for action in args.parser._actions for option in action.option_strings]
        word = (unknown or config_args)[0].split("=")[0]
        return fail(f"{args.verb}: {word} is not an option of this verb: {did_you_mean(word, flags)}")
    args.config = config_args
    if argv is None and args.verb == "train":  # Set now: imports and the wait for other processes take long.
        end_on_sigterm(PREEMPTED)
    try:
        if args.distributed == "none":
            return run_verb(args)
        return run_as_one(args.distributed, partial(run_verb, args))
    except UserError as error:
        return fail(str(error))


def run_verb(args: argparse.Namespace) -> int:
    """Run the verb and return the exit code."""
    try:
        enable_compilation_cache()
        allow(args.module)
        code = args.run(args)
        return 0 if code is None else code
    except ToldElsewhere:
        return USER_ERROR
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # The reader of a pipe, such as `head`, has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return fail(f"{args.verb}: out of memory ({error or 'no more'}); give it smaller images, batches or windows")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return fail(
            f"{error.filename or 'a file'}: {error.strerror}; free space or choose another folder, then start again"
        )


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, like all others."""

    def error(self, message: str) -> Any:
        sys.exit(fail(f"{message}; see {self.prog} --help"))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="deeplab-jax", description="DeepLabv3 and DeepLabv3+ semantic segmentation.", allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, config: str = ""
    ) -> argparse.ArgumentParser:
        epilog = "--config FILE.py[:args] and --config.section.key=value set the configuration" if config else None
        sub = subparsers.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub, takes_config=bool(config), distributed="none")
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
    add_model_verbs(verb)
    return parser


def add_training_verbs(verb: Verb) -> None:
    """Add `train` and `replay`."""
    train = verb("train", commands.train, "Train a model, or resume a run.", config="required")
    train.add_argument("--workdir", required=True, help="run directory; a second start in it resumes")
    train.add_argument("--allow_config_change", action="store_true", help="resume a run that has another configuration")
    add_distributed_flag(train)

    replay = verb("replay", commands.replay, "Repeat the step at which training stopped, and show every tensor's size.")
    replay.add_argument("folder", metavar="FOLDER", help="postmortem/ of a run directory")


def add_inference_verbs(verb: Verb) -> None:
    """Add `evaluate` and `predict`."""
    evaluate = verb(
        "evaluate", commands.evaluate, "Evaluate a model on labelled images; writes metrics.json.", config="optional"
    )
    evaluate.add_argument("--model", required=True, help="model folder or run directory")
    evaluate.add_argument("--out", required=True, help="folder for metrics.json")
    evaluate.add_argument("--split", help="split to evaluate on; by default the configuration's validation split")
    evaluate.add_argument(
        "--save_predictions", action="store_true", help="write NAME.png and NAME_overlay.png of every image too"
    )
    evaluate.add_argument("--limit", type=int, help="evaluate only the first images")
    evaluate.add_argument("--trimap", type=numbers(int), help="such as 1,2,4: mIoU within so many pixels of boundaries")
    add_inference_flags(evaluate)
    add_distributed_flag(evaluate)

    predict = verb(
        "predict", commands.predict, "Segment images; writes NAME.png (class ids with a palette) and NAME_overlay.png."
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.add_argument("--model", required=True, help="model folder or run directory")
    predict.add_argument("--out", required=True, help="folder for the pictures")
    add_inference_flags(predict)


def add_data_verbs(verb: Verb) -> None:
    """Add `check-data` and `prepare`."""
    check = verb("check-data", commands.check_data, "Find the faults of a data set.", config="required")
    check.add_argument("--split", help="split to check; by default the training and the validation split")
    check.add_argument("--limit", type=int, help="check only so many images, evenly spread")
    check.add_argument("--json", help="write the report to this file as well")

    prepare = verb(
        "prepare",
        commands.prepare,
        "Write a data set as a TFDS folder (array_record), readable as data.name='tfds'.",
        config="required",
    )
    prepare.add_argument("--out", required=True, help="folder to write")


def add_model_verbs(verb: Verb) -> None:
    """Add `convert`, `export` and `summarize`."""
    convert = verb(
        "convert", commands.convert, "Turn weights of other code bases, or a training run, into a model folder."
    )
    convert.add_argument(
        "source", metavar="SOURCE", help="PyTorch, safetensors or .tflite file, TensorFlow checkpoint, folder or run"
    )
    convert.add_argument("--out", required=True, help="model folder to write")
    convert.add_argument("--kind", default="auto", help="who wrote them; by default found from the tensors' names")
    convert.add_argument("--output_stride", type=int, help="at which to run the source; by default its own")
    convert.add_argument("--num_classes", type=int, help="of the model; if not the source's, add --reinit head")
    convert.add_argument(
        "--activation",
        default="",
        choices=("softmax", "sigmoid"),
        help="sigmoid if a pixel can have several labels, which a file does not say; one logit has it anyway",
    )
    convert.add_argument("--reinit", default="", choices=("head",), help="start the classifiers at random")
    convert.add_argument(
        "--not_strict", action="store_true", help="continue if tensors are missing, unexpected or of another shape"
    )

    export = verb(
        "export", commands.export, "Write a model for programs that have JAX or PyTorch, but not this package."
    )
    export.add_argument("--model", required=True, help="model folder or run directory")
    export.add_argument("--checkpoint", default="best", help="in a run directory: best (default), newest, or a step")
    export.add_argument("--format", required=True, choices=("stablehlo", "torchvision"), help="what to write")
    export.add_argument("--out", required=True, help="file to write: .zip for stablehlo, .pth or .safetensors else")
    export.add_argument("--output_stride", type=int, help="8, 16, 32, ...; by default the model's own")
    stablehlo = export.add_argument_group("stablehlo")
    stablehlo.add_argument("--size", type=image_size, help="HEIGHTxWIDTH of the images; by default any")
    stablehlo.add_argument("--batch", type=int, help="images per call; by default any number")
    stablehlo.add_argument("--preprocess", action="store_true", help="take uint8 images as they are stored")
    stablehlo.add_argument("--argmax", action="store_true", help="return class ids instead of logits")
    stablehlo.add_argument("--threshold", type=float, help="with --argmax and sigmoids: as in predict (0.5)")

    summarize = verb(
        "summarize",
        commands.summarize,
        "Count what each stage of a network costs; needs no weights and computes nothing.",
    )
    summarize.add_argument("model", metavar="NAME_OR_PATH", help="name of a model, model folder or run directory")
    summarize.add_argument("--size", type=image_size, default=(513, 513), help="HEIGHTxWIDTH of the image (513x513)")
    summarize.add_argument("--output_stride", type=int, help="8, 16, 32, ...; by default the model's own")
    summarize.add_argument(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the model, such as num_classes=19, separable=True or 'aspp_rates=(6, 12)'; repeat it for more",
    )
    summarize.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="also write the summary to this file; without a file, only print it as JSON",
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
    parser.add_argument("--checkpoint", default="best", help="in a run directory: best (default), newest, or a step")
    parser.add_argument("--mode", choices=("padded", "exact"), help="pad images to few sizes, or run each at its own")
    parser.add_argument("--output_stride", type=int, help="8, 16, 32, ...; by default the model's own")
    parser.add_argument("--scales", type=numbers(float), help="such as 0.5,0.75,1: average over these sizes")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--window", type=numbers(int), help="height,width of a sliding window for large images")
    parser.add_argument("--crf", action="store_true", default=None, help="refine labels by a fully connected CRF")
    parser.add_argument("--threshold", type=float, help="with sigmoids: probability above which an object is (0.5)")


def numbers(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """Return an argparse type for comma-separated numbers."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: give numbers separated by commas") from None

    return parse


def image_size(text: str) -> tuple[int, int]:
    """Parse `HEIGHTxWIDTH`, or one number for both."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: give HEIGHTxWIDTH in pixels, such as 513x513")
    return int(sides[0]), int(sides[-1])


def option(text: str) -> tuple[str, Any]:
    """Parse `key=value`, where the value is a Python literal or a word."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: give KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def split_config_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the `--config...` words, written with "=", from the rest."""
    config, unknown = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if word.split("=")[0].split(".")[0] != "--config":
            unknown.append(word)
        elif "=" in word or not words:
            config.append(word)
        else:
            config.append(f"{word}={words.pop(0)}")
    return config, unknown


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the environment names a folder or turns that off."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "deeplab_jax", "xla")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Without a writable home folder, only compile time is lost.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def command() -> NoReturn:
    """Run the verb as a separate process."""
    end_process(main())
