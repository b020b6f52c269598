"""The verbs of the command line; each imports only what it needs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError, did_you_mean, spell

USER_ERROR = 2
INTERRUPTED = 130
PREEMPTED = 75  # EX_TEMPFAIL, after SIGTERM: a scheduler may start the same command again, and nothing is lost.
INFERENCE_FLAGS = ("mode", "output_stride", "scales", "flip", "window", "crf", "threshold")


def fail(message: str) -> int:
    """Print one line to stderr and return the exit code for it."""
    print("deeplab-jax: " + " ".join(message.split()), file=sys.stderr)
    return USER_ERROR


def required_config(args: argparse.Namespace) -> Any:
    """Load the configuration that a verb needs."""
    from deeplab_jax.config import load_config

    if not args.config:
        raise UserError(f"{args.verb}: --config is missing; name a file such as configs/scenes.py")
    config = load_config(args.config)
    config.module = args.module or config.module
    return config


def config_of_run(words: list[str], model: str) -> Any:
    """Return the configuration that the words name, or else that of a run directory, with the words' changes; None
    where there is neither.
    """
    from deeplab_jax.config import load_config
    from deeplab_jax.train.run import CONFIG_FILE

    own = Path(model, CONFIG_FILE)
    if any(word.startswith("--config=") for word in words):
        return load_config(words)
    return load_config([f"--config={own}", *words]) if own.is_file() else None


def train(args: argparse.Namespace) -> int:
    """`train`."""
    from deeplab_jax.distributed import is_first, together
    from deeplab_jax.train.loop import train
    from deeplab_jax.train.signals import Interrupted

    with together():
        config = required_config(args)
    try:
        train(config, args.workdir, allow_config_change=args.allow_config_change)
    except Interrupted as stop:
        if is_first():
            print(f"deeplab-jax: {stop}", file=sys.stderr)
        return PREEMPTED if stop.preempted else INTERRUPTED
    return 0


def replay(args: argparse.Namespace) -> None:
    """`replay`."""
    from deeplab_jax.train.replay import replay

    found = replay(args.folder)
    for tensor in found.tensors:
        print(tensor)
    print(found.summary)
    first = found.first_not_finite
    print("every tensor is finite this time" if first is None else f"the first that is not finite: {first}")


def evaluate(args: argparse.Namespace) -> None:
    """`evaluate`."""
    from rich.console import Console

    from deeplab_jax.distributed import is_first, together, watch
    from deeplab_jax.evaluate.evaluator import METRICS_FILE, evaluate, write_results
    from deeplab_jax.evaluate.predictor import prediction_writer
    from deeplab_jax.terminal import class_table, progress_bar
    from deeplab_jax.train.from_config import evaluate_options, open_split
    from deeplab_jax.weights.folder import load

    with together():
        config = config_of_run(args.config, args.model)  # First: a Python file may name the module of the model.
        model, variables, info = load(args.model, checkpoint=args.checkpoint, module=args.module)
        if config is None:
            raise UserError(
                f"{args.model}: a model folder does not say which data to evaluate on; give --config configs/NAME.py"
            )
        config.module = args.module or config.module
        split = args.split or config.data.val_split
        source = open_split(config, split)
        protocol, how = evaluate_options(config, **given(args, *INFERENCE_FLAGS, "trimap"))
    watch(config.train.timeout)
    console = Console(quiet=not is_first())
    with progress_bar(console) as progress:
        results = evaluate(
            model,
            variables,
            source,
            protocol,
            split=split,
            limit=args.limit,
            on_prediction=prediction_writer(Path(args.out), source.labels) if args.save_predictions else None,
            progress=progress,
            **how,
        )
    results["checkpoint"] = info.get("step")
    file = Path(args.out) / METRICS_FILE
    with together():
        if is_first():
            write_results(results, file.parent)
    console.print(class_table([results], [f"{split}, output stride {results['protocol']['output_stride']}"]))
    console.print(
        f"{results['protocol']['images']} images in {results['seconds']} s; written to {file}",
        highlight=False,
        soft_wrap=True,
    )


def predict(args: argparse.Namespace) -> int:
    """`predict`."""
    from rich.console import Console

    from deeplab_jax.evaluate.predictor import find_images, predict_files
    from deeplab_jax.evaluate.protocol import Protocol
    from deeplab_jax.terminal import progress_bar
    from deeplab_jax.weights.folder import load

    paths = find_images(args.images)
    protocol = Protocol(**given(args, *INFERENCE_FLAGS))
    model, variables, info = load(args.model, checkpoint=args.checkpoint, module=args.module)
    palette = [tuple(colour) for colour in info["palette"]] if "palette" in info else None
    failed = 0
    with progress_bar(Console(stderr=True)) as progress:
        for _, error in predict_files(
            model,
            variables,
            paths,
            Path(args.out),
            protocol,
            palette=palette,
            names=info.get("class_names", ()),
            progress=progress,
        ):
            if error is not None:
                failed += 1
                fail(str(error))
    print(f"{len(paths) - failed} of {len(paths)} images segmented into {args.out}")
    return USER_ERROR if failed else 0


def check_data(args: argparse.Namespace) -> int:
    """`check-data`."""
    from rich.console import Console

    from deeplab_jax.data.check.dataset import check_source
    from deeplab_jax.data.check.report import format_report
    from deeplab_jax.terminal import progress_bar
    from deeplab_jax.train.from_config import open_split

    config = required_config(args)
    splits = [args.split] if args.split else [config.data.train_split, config.data.val_split]
    reports = {}
    for split in dict.fromkeys(splits):
        source = open_split(config, split, strict=False)
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


def prepare(args: argparse.Namespace) -> None:
    """`prepare`."""
    from rich.console import Console

    from deeplab_jax.data.prepare import prepare
    from deeplab_jax.terminal import progress_bar
    from deeplab_jax.train.from_config import open_split

    config = required_config(args)
    splits = dict.fromkeys([config.data.train_split, config.data.val_split])
    sources = {split: open_split(config, split) for split in splits}
    with progress_bar(Console(stderr=True)) as progress:
        folder = prepare(sources, args.out, progress=lambda split, done, total: progress(done, total))
    counts = ", ".join(f"{len(source)} of {split}" for split, source in sources.items())
    print(f"wrote {counts} to {folder}; read them with --config.data.name=tfds --config.data.dir={args.out}")


def convert(args: argparse.Namespace) -> None:
    """`convert`."""
    from deeplab_jax.weights.convert import convert
    from deeplab_jax.weights.folder import CHECKPOINTS, save

    out = Path(args.out)
    if (out / CHECKPOINTS).exists():
        raise UserError(f"{out}: is a run directory; choose another --out")
    model, variables, info = convert(
        args.source,
        kind=args.kind,
        output_stride=args.output_stride,
        num_classes=args.num_classes,
        reinit=args.reinit,
        strict=not args.not_strict,
        activation=args.activation,
        module=args.module,
    )
    source = info["source"]
    name = describe_short(model)
    print(f"{args.source}: read as {source['kind']}'s {name}; {source['tensors']} tensors used")
    for note in source["notes"]:
        print(f"  {note}")
    for text, names in (("left out", source["unused"]), ("start at random", source["random"])):
        if names:
            print(f"  {text}: {spell(names, limit=3)}")
    for problem in source["mismatched"]:
        print(f"  not strict: {problem}")
    print(f"written to {save(out, model, variables, info)}")


def describe_short(model: Any) -> str:
    """Return a model's name, class count and output stride as a phrase."""
    from deeplab_jax.models.catalog import describe

    classes = "one logit for two classes" if model.num_classes == 1 else f"{model.num_classes} classes"
    return f"{describe(model)['name']}, {classes}, output stride {model.output_stride}"


def export(args: argparse.Namespace) -> None:
    """`export`."""
    from deeplab_jax.files import write_whole
    from deeplab_jax.models.catalog import check_output_stride
    from deeplab_jax.weights.export import export_stablehlo
    from deeplab_jax.weights.export_torchvision import export_torchvision, write_state_dict
    from deeplab_jax.weights.folder import load

    flags = [name for name in ("size", "batch", "preprocess", "argmax", "threshold") if getattr(args, name)]
    if args.format != "stablehlo" and flags:
        raise UserError(f"--{flags[0]}: a state dict has none; leave it out, or use --format stablehlo")
    model, variables, info = load(args.model, checkpoint=args.checkpoint, module=args.module)
    if args.output_stride is not None:
        model = model.clone(output_stride=args.output_stride)
        check_output_stride(model)
    if args.format == "torchvision":
        file = write_state_dict(args.out, export_torchvision(model, variables))
    else:
        content = export_stablehlo(
            model,
            variables,
            size=args.size,
            batch=args.batch,
            preprocess=args.preprocess,
            argmax=args.argmax,
            info=info,
            **given(args, "threshold"),
        )
        file = write_whole(args.out, lambda file: file.write_bytes(content))
    print(f"{describe_short(model)}: written to {file} ({file.stat().st_size / 2**20:.1f} MiB)")


def summarize(args: argparse.Namespace) -> None:
    """`summarize`."""
    from rich.console import Console

    from deeplab_jax.analysis.summary import summarize
    from deeplab_jax.analysis.summary_table import summary_table, table_width
    from deeplab_jax.models.catalog import describe, from_description, model_names
    from deeplab_jax.weights.folder import MODEL_FILE, read_description

    names = model_names(module=args.module)
    if args.model in names:
        description = {
            "name": args.model,
            "num_classes": 21,
            "output_stride": None,
            "options": {},
            "module": args.module,
        }
    elif Path(args.model, MODEL_FILE).is_file():
        description = describe(read_description(Path(args.model), module=args.module)[0])
    else:
        own = "" if args.module else "; for a model of your own, give --module the path of its file"
        near = did_you_mean(args.model, names)
        raise UserError(f"{args.model}: neither a model's name nor a folder with {MODEL_FILE}: {near}{own}")
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


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the given flags among the named ones."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
