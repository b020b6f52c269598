"""The command line: flags and dispatch, nothing else."""

import argparse
import ast
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError, did_you_mean

USER_ERROR = 2
INTERRUPTED = 130
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code:
    0 on success, 2 with one line on stderr for what the user can mend, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    args, rest = parser.parse_known_args(arguments)
    # `--config file` and `--config=file` alike, and every `--config.key=value`, go to the config's own parser.
    config_args, unknown = split_config_arguments(rest)
    if unknown or (config_args and not args.takes_config):
        flags = [option for action in args.parser._actions for option in action.option_strings]
        word = (unknown or config_args)[0].split("=")[0]
        return fail(f"{args.verb}: {word} is not an option of this verb: {did_you_mean(word, flags)}")
    args.config = config_args
    try:
        enable_compilation_cache()
        code = args.run(args)
        return 0 if code is None else code
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # The reader of a pipe, `head` say, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return fail(
            f"{error.filename or 'a file'}: {error.strerror}; free space or choose another folder, then start again"
        )


def fail(message: str) -> int:
    """Print one line to stderr and return the exit code for it."""
    print("deeplab-jax: " + " ".join(message.split()), file=sys.stderr)
    return USER_ERROR


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other."""

    def error(self, message: str) -> Any:
        sys.exit(fail(f"{message}; see {self.prog} --help"))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="deeplab-jax", description="DeepLabv3 and DeepLabv3+ semantic segmentation.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, config: str = ""
    ) -> argparse.ArgumentParser:
        epilog = "--config FILE.py[:args] and --config.section.key=value set the configuration" if config else None
        sub = verbs.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub, takes_config=bool(config))
        return sub

    train = verb("train", run_train, "Train a model, or go on with a run.", config="required")
    train.add_argument("--workdir", required=True, help="run directory; a second start in it resumes")
    train.add_argument(
        "--allow_config_change", action="store_true", help="go on in a run directory whose configuration differs"
    )

    evaluate = verb(
        "evaluate", run_evaluate, "Evaluate a model on labelled images; writes metrics.json.", config="optional"
    )
    evaluate.add_argument("--model", required=True, help="model folder or run directory")
    evaluate.add_argument("--out", required=True, help="folder for metrics.json")
    evaluate.add_argument("--split", help="split to evaluate on; by default the configuration's validation split")
    evaluate.add_argument(
        "--save_predictions", action="store_true", help="write NAME.png and NAME_overlay.png of every image too"
    )
    evaluate.add_argument("--limit", type=int, help="evaluate only the first images")
    add_inference_flags(evaluate)

    predict = verb(
        "predict", run_predict, "Segment images; writes NAME.png (class ids with a palette) and NAME_overlay.png."
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.add_argument("--model", required=True, help="model folder or run directory")
    predict.add_argument("--out", required=True, help="folder for the pictures")
    add_inference_flags(predict)

    check = verb("check-data", run_check_data, "Look for what is wrong with a data set.", config="required")
    check.add_argument("--split", help="split to check; by default the training and the validation split")
    check.add_argument("--limit", type=int, help="check only so many images, evenly spread")
    check.add_argument("--json", help="write the report to this file as well")

    prepare = verb(
        "prepare",
        run_prepare,
        "Write a data set as a TFDS folder (array_record), readable as data.name='tfds'.",
        config="required",
    )
    prepare.add_argument("--out", required=True, help="folder to write")

    summarize = verb(
        "summarize", run_summarize, "Count what each stage of a network costs; needs no weights and computes nothing."
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
        help="option of the model, such as num_classes=19, separable=True or 'aspp_rates=(6, 12)'; again for more",
    )
    summarize.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the summary to this file as well; alone, print it instead",
    )
    return parser


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a model is run."""
    parser.add_argument("--checkpoint", default="best", help="of a run directory: best (default), newest, or a step")
    parser.add_argument("--mode", choices=("padded", "exact"), help="pad images to few sizes, or run each at its own")
    parser.add_argument("--output_stride", type=int, help="8, 16, 32, ...; by default the model's own")
    parser.add_argument("--scales", type=numbers(float), help="such as 0.5,0.75,1: average over these sizes")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--window", type=numbers(int), help="height,width of a sliding window for large images")
    parser.add_argument("--crf", action="store_true", default=None, help="refine labels by a fully connected CRF")


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
    """Keep compiled programs between runs, unless the environment says where or that they are not to be kept."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "deeplab_jax", "xla")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # A home that cannot be written costs compile time and nothing else.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def required_config(args: argparse.Namespace) -> Any:
    """Load the configuration that a verb cannot do without."""
    from deeplab_jax.config import load_config

    if not args.config:
        raise UserError(f"{args.verb}: --config is missing; name a file such as configs/scenes.py")
    return load_config(args.config)


def run_train(args: argparse.Namespace) -> int:
    """`train`."""
    from deeplab_jax.train.loop import Interrupted, train

    try:
        train(required_config(args), args.workdir, allow_config_change=args.allow_config_change)
    except Interrupted as stop:
        print(f"deeplab-jax: {stop}", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_evaluate(args: argparse.Namespace) -> None:
    """`evaluate`."""
    from rich.console import Console

    from deeplab_jax.config import load_config, read_json
    from deeplab_jax.data.sources import open_source
    from deeplab_jax.evaluate.evaluator import evaluate, write_results
    from deeplab_jax.evaluate.predictor import prediction_writer
    from deeplab_jax.evaluate.tables import class_table, progress_bar
    from deeplab_jax.train.loop import source_options
    from deeplab_jax.train.workdir import CONFIG_FILE
    from deeplab_jax.weights.folder import load

    model, variables, info = load(args.model, checkpoint=args.checkpoint)
    if args.config:
        config = load_config(args.config)
    elif Path(args.model, CONFIG_FILE).is_file():
        config = read_json(Path(args.model, CONFIG_FILE))
    else:
        raise UserError(
            f"{args.model}: a model folder does not say which data to evaluate on; give --config configs/NAME.py"
        )
    split = args.split or config.data.val_split
    source = open_source(config.data.name, split=split, **source_options(config.data))
    options = {**config.evaluate.to_dict(), **given_inference_options(args)}
    console = Console()
    with progress_bar(console) as progress:
        results = evaluate(
            model,
            variables,
            source,
            split=split,
            limit=args.limit,
            on_prediction=prediction_writer(Path(args.out), source.labels.palette) if args.save_predictions else None,
            progress=progress,
            **options,
        )
    results["checkpoint"] = info.get("step")
    file = write_results(results, Path(args.out))
    console.print(class_table([results], [f"{split}, output stride {results['protocol']['output_stride']}"]))
    console.print(
        f"{results['protocol']['images']} images in {results['seconds']} s; written to {file}",
        highlight=False,
        soft_wrap=True,
    )


def run_predict(args: argparse.Namespace) -> int:
    """`predict`."""
    from rich.console import Console

    from deeplab_jax.evaluate.predictor import find_images, predict_files
    from deeplab_jax.evaluate.tables import progress_bar
    from deeplab_jax.models.catalog import check_output_stride
    from deeplab_jax.weights.folder import load

    paths = find_images(args.images)
    model, variables, info = load(args.model, checkpoint=args.checkpoint)
    options = given_inference_options(args)
    if "output_stride" in options:
        model = model.clone(output_stride=options.pop("output_stride"))
        check_output_stride(model)
    palette = [tuple(colour) for colour in info["palette"]] if "palette" in info else None
    failed = 0
    with progress_bar(Console(stderr=True)) as progress:
        for _, error in predict_files(
            model, variables, paths, Path(args.out), palette=palette, progress=progress, **options
        ):
            if error is not None:
                failed += 1
                fail(str(error))
    print(f"{len(paths) - failed} of {len(paths)} images segmented into {args.out}")
    return USER_ERROR if failed else 0


def run_check_data(args: argparse.Namespace) -> int:
    """`check-data`."""
    from rich.console import Console

    from deeplab_jax.data.check import check_source
    from deeplab_jax.data.report import format_report
    from deeplab_jax.data.sources import open_source
    from deeplab_jax.evaluate.tables import progress_bar
    from deeplab_jax.train.loop import source_options

    config = required_config(args)
    splits = [args.split] if args.split else [config.data.train_split, config.data.val_split]
    reports = {}
    for split in dict.fromkeys(splits):
        source = open_source(config.data.name, split=split, strict=False, **source_options(config.data))
        with progress_bar(Console(stderr=True)) as progress:
            reports[split] = check_source(source, limit=args.limit, progress=progress)
        print(f"{split}: {format_report(reports[split])}\n")
    if args.json:
        try:
            Path(args.json).write_text(
                json.dumps({split: r.to_json() for split, r in reports.items()}, indent=1) + "\n"
            )
        except OSError as error:
            raise UserError(f"{args.json}: cannot be written ({error.strerror}); give another --json") from None
    return 0 if all(report.ok for report in reports.values()) else USER_ERROR


def run_prepare(args: argparse.Namespace) -> None:
    """`prepare`."""
    from rich.console import Console

    from deeplab_jax.data.prepare import prepare
    from deeplab_jax.data.sources import open_source
    from deeplab_jax.evaluate.tables import progress_bar
    from deeplab_jax.train.loop import source_options

    config = required_config(args)
    splits = dict.fromkeys([config.data.train_split, config.data.val_split])
    sources = {split: open_source(config.data.name, split=split, **source_options(config.data)) for split in splits}
    with progress_bar(Console(stderr=True)) as progress:
        folder = prepare(sources, args.out, progress=lambda split, done, total: progress(done, total))
    counts = ", ".join(f"{len(source)} of {split}" for split, source in sources.items())
    print(f"wrote {counts} to {folder}; read them with --config.data.name=tfds --config.data.dir={args.out}")


def run_summarize(args: argparse.Namespace) -> None:
    """`summarize`."""
    from rich.console import Console

    from deeplab_jax.evaluate.summary_table import summary_table, table_width
    from deeplab_jax.models.catalog import describe, from_description, model_names
    from deeplab_jax.models.summary import summarize
    from deeplab_jax.weights.folder import MODEL_FILE, read_description

    if args.model in model_names():
        description = {"name": args.model, "num_classes": 21, "output_stride": None, "options": {}}
    elif Path(args.model, MODEL_FILE).is_file():
        description = describe(read_description(Path(args.model))[0])
    else:
        raise UserError(
            f"{args.model}: neither a model's name nor a folder with {MODEL_FILE}: "
            f"{did_you_mean(args.model, model_names())}"
        )
    options = {**description["options"], **dict(args.option)}
    for key in ("num_classes", "output_stride"):
        description[key] = options.pop(key, description[key])
        if not isinstance(description[key], int | None):
            raise UserError(f"{key}={description[key]!r}: give a whole number")
    if args.output_stride is not None:
        description["output_stride"] = args.output_stride
    summary = summarize(from_description({**description, "options": options}), *args.size)
    text = json.dumps(summary.to_json(), indent=1)
    if args.json == "-":
        print(text)
        return
    Console(width=table_width(Console().width)).print(summary_table(summary))
    if args.json:
        try:
            Path(args.json).write_text(text + "\n")
        except OSError as error:
            raise UserError(f"{args.json}: cannot be written ({error.strerror}); give another --json") from None


def given_inference_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the inference flags that were given."""
    names = ("mode", "output_stride", "scales", "flip", "window", "crf")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


if __name__ == "__main__":
    sys.exit(main())
