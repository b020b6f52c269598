"""The verbs of the command line; each imports only what it needs."""

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from deeplab_jax import tasks
from deeplab_jax.config import CONFIG_FILE
from deeplab_jax.errors import UserError, did_you_mean, printable, spell
from deeplab_jax.files import save_json, write_whole
from deeplab_jax.tasks.arguments import config_of, names_file

USER_ERROR = 2
INTERRUPTED = 130
PREEMPTED = 75  # EX_TEMPFAIL, after SIGTERM: a scheduler may start the same command again, and nothing is lost.
FLAGS_OF_MODEL = ("num_classes", "output_stride")  # Of `summarize`; everything else of a model is an --option.


def fail(message: str) -> int:
    """Print one line to stderr and return the exit code for it."""
    print("deeplab-jax: " + printable(" ".join(message.split())), file=sys.stderr)
    return USER_ERROR


def train(args: argparse.Namespace) -> int:
    """`train`."""
    from deeplab_jax.distributed import is_first
    from deeplab_jax.tasks.training import train
    from deeplab_jax.train.signals import Interrupted

    own = Path(args.workdir, CONFIG_FILE)
    if not names_file(args.config) and own.is_file():
        raise UserError(f"train: --config is missing; to resume this run, give --config {shlex.quote(str(own))}")
    try:
        train(args.config, args.workdir, module=args.module, allow_config_change=args.allow_config_change)
    except Interrupted as stop:
        if is_first():
            print(f"deeplab-jax: {stop}", file=sys.stderr)
        return PREEMPTED if stop.preempted else INTERRUPTED
    return 0


def find_lr(args: argparse.Namespace) -> None:
    """`find-lr`."""
    from rich.console import Console

    from deeplab_jax.files import make_folder
    from deeplab_jax.terminal import note, progress_bar
    from deeplab_jax.train.find_lr import MOST, check_sweep, find_lr, write_report

    check_sweep(args.low, args.high, args.steps)
    config = config_of(args.config, module=args.module)
    make_folder(Path(args.out))
    with progress_bar(Console(stderr=True)) as progress:
        report = find_lr(config, low=args.low, high=args.high, steps=args.steps, progress=progress)
    if report["diverged"]:
        print(f"the loss diverged at {report['steps'][-1]['learning_rate']:.2g}")
    if report["suggested"] is None:
        print("no suggestion: the loss never fell; give another --from and --to, or more --steps")
    else:
        print(f"suggested: --config.optimizer.learning_rate={report['suggested']:.2g}")
    if report["doubt"]:
        more = f"--steps {min(4 * args.steps, MOST)}"
        note(f"this rate cannot be trusted yet: {report['doubt']}; give {more} or a larger batch")
    print(f"written to {write_report(report, Path(args.out))}")


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

    from deeplab_jax.distributed import is_first
    from deeplab_jax.terminal import class_table, percent, progress_bar
    from deeplab_jax.weights.folder import METRICS_FILE

    console = Console(quiet=not is_first())

    def show(results: dict[str, Any]) -> None:
        protocol = results["protocol"]
        console.print(class_table([results], [f"{protocol['split']}, output stride {protocol['output_stride']}"]))
        if "bootstrap" in results and (interval := results["bootstrap"].get("miou")):
            low, high = map(percent, interval)
            console.print(f"95% of {results['bootstrap']['samples']} resamples of the images: mean IoU {low} to {high}")

    with progress_bar(console) as progress:
        flags = {key: value for key, value in arguments(args).items() if not _configured(args.config, key)}
        results = tasks.evaluate(**flags, config=args.config, progress=progress, on_results=show)
    console.print(
        f"{results['protocol']['images']} images in {results['seconds']} s; written to {Path(args.out, METRICS_FILE)}",
        highlight=False,
        soft_wrap=True,
    )


def _configured(words: list[str], key: str) -> bool:
    """Return whether the words of a configuration set a key of its `evaluate`. So a printed fix such as
    `--config.evaluate.window=257,257` also works behind a command that has the flag.
    """
    return any(word.startswith(f"--config.evaluate.{key}=") for word in words)


def predict(args: argparse.Namespace) -> int:
    """`predict`."""
    return USER_ERROR if tasks.predict(**arguments(args), warn=fail, fail=fail).failed else 0


def check_data(args: argparse.Namespace) -> int:
    """`check-data`."""
    config = config_of(args.config, module=args.module)
    reports = tasks.check_data(config, split=args.split or "", limit=args.limit, show=args.show or "", say=print)
    if args.json:
        save_json(args.json, {split: report.to_json() for split, report in reports.items()})
    if reports.fault:
        return fail(reports.fault)
    return 0 if reports.ok else USER_ERROR


def prepare(args: argparse.Namespace) -> None:
    """`prepare`."""
    from rich.console import Console

    from deeplab_jax.data.prepare import prepare
    from deeplab_jax.terminal import progress_bar
    from deeplab_jax.train.from_config import open_split

    config = config_of(args.config, module=args.module)
    splits = dict.fromkeys([config.data.train_split, config.data.val_split])
    sources = {split: open_split(config, split) for split in splits}
    with progress_bar(Console(stderr=True)) as progress:
        folder = prepare(sources, args.out, progress=lambda split, done, total: progress(done, total))
    counts = ", ".join(f"{len(source)} of {split}" for split, source in sources.items())
    words = ["--config.data.name=tfds", f"--config.data.dir={args.out}"]
    # The prepared images were already read with these keys. Applying them again would be wrong.
    empty = {"options": "{}", "channels": "()", "value_range": "()"}
    words += [f"--config.data.{key}={value}" for key, value in empty.items() if config.data[key]]
    print(f"wrote {counts} to {folder}; read them with {shlex.join(words)}")


def convert(args: argparse.Namespace) -> None:
    """`convert`."""
    from deeplab_jax.weights.convert import convert
    from deeplab_jax.weights.folder import save

    model, variables, info = convert(
        args.source,
        kind=args.kind,
        output_stride=args.output_stride,
        num_classes=args.num_classes,
        reinit=args.reinit,
        in_channels=args.in_channels,
        strict=not args.not_strict,
        select=args.select,
        activation=args.activation,
        module=args.module,
    )
    folder = save(args.out, model, variables, info)  # First: a reader of what is printed may end early.
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
    print(f"written to {folder}")


def describe_short(model: Any) -> str:
    """Return a model's name, class count and output stride as a phrase."""
    from deeplab_jax.models.catalog import describe

    classes = "one logit for two classes" if model.num_classes == 1 else f"{model.num_classes} classes"
    return f"{describe(model)['name']}, {classes}, output stride {model.output_stride}"


def weights(args: argparse.Namespace) -> None:
    """`weights`."""
    from rich.console import Console

    from deeplab_jax.terminal import weights_table
    from deeplab_jax.weights.by_name import is_here
    from deeplab_jax.weights.download import cache_folder
    from deeplab_jax.weights.published import LISTS_NAMES, PUBLISHED

    rows = [entry.row(name) | {"here": is_here(name)} for name, entry in PUBLISHED.items() if args.part in name]
    if not rows:
        raise UserError(
            f"weights: no name holds {args.part!r}; {did_you_mean(args.part, PUBLISHED, listed_by=LISTS_NAMES)}"
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    Console(width=max(Console().width, 180)).print(weights_table(rows))
    print(
        "--model, --config.init and convert take these names, and hf://owner/repo[@revision] of the Hugging Face hub. "
        f"Their files are kept in {cache_folder()}"
    )


# The flags of `export` for runtimes: those that each format has, and the fields of its `Signature`.
RUNTIMES = {"stablehlo": (), "onnx": ("precision",), "tflite": ("precision", "calibration")}
EXPORT_FLAGS = ("size", "batch", "preprocess", "argmax", "threshold")


def export(args: argparse.Namespace) -> None:
    """`export`."""
    from deeplab_jax.models.catalog import check_output_stride
    from deeplab_jax.weights.by_name import load
    from deeplab_jax.weights.export_state_dict import PEERS, export_state_dict, write_state_dict
    from deeplab_jax.weights.peer_networks import normalisation

    _check_flags(args)
    model, variables, info = load(args.model, checkpoint=args.checkpoint, module=args.module)
    if args.output_stride is not None:
        model = model.clone(output_stride=args.output_stride)
        check_output_stride(model)
    if args.format in PEERS:
        file = write_state_dict(args.out, export_state_dict(model, variables, kind=args.format))
        said = [f"it fits {PEERS[args.format].network(model)}", f"its input: {normalisation(model)}"]
    else:
        content, *said = _exported(args, model, variables, info)
        file = write_whole(args.out, lambda file: file.write_bytes(content))
    print(f"{describe_short(model)}: written to {file} ({file.stat().st_size / 2**20:.1f} MiB)")
    for line in said:
        print(line)


def _check_flags(args: argparse.Namespace) -> None:
    """Raise a UserError for a flag that the format does not have."""
    own = RUNTIMES.get(args.format)
    for name in (*EXPORT_FLAGS, "precision", "calibration"):
        value = getattr(args, name)
        if value in (None, "") or value is False:
            continue
        if own is None:
            raise UserError(f"--{name}: a state dict has none; leave it out, or use --format stablehlo")
        if name not in (*EXPORT_FLAGS, *own):
            having = [form for form, flags in RUNTIMES.items() if name in flags]
            raise UserError(f"--{name}: {args.format} has none; leave it out, or use --format {' or '.join(having)}")


def _exported(args: argparse.Namespace, model: Any, variables: Any, info: dict[str, Any]) -> tuple[Any, ...]:
    """Return the content of a file for a runtime, and what to say of it."""
    from deeplab_jax.evaluate.int8_images import int8_images
    from deeplab_jax.weights.export import Signature, export_stablehlo
    from deeplab_jax.weights.export_onnx import export_onnx
    from deeplab_jax.weights.export_tflite import export_tflite

    signature, precision = Signature(**given(args, *EXPORT_FLAGS)), given(args, "precision")
    if args.format == "stablehlo":
        return (export_stablehlo(model, variables, signature, info=info),)
    if args.format == "onnx":
        return export_onnx(model, variables, signature, info=info, **precision)
    chosen = bool(args.calibration and args.size)
    images = int8_images(args.calibration, size=args.size, model=model) if chosen else ()
    return export_tflite(model, variables, signature, info=info, calibration=images, **precision)


def push(args: argparse.Namespace) -> None:
    """`push`."""
    from deeplab_jax.weights import push
    from deeplab_jax.weights.by_name import load
    from deeplab_jax.weights.card import read_metrics
    from deeplab_jax.weights.folder import METRICS_FILE
    from deeplab_jax.weights.hub import load_hub, parse

    parse(args.target)  # First: reading a model takes longer.
    load_hub("push")
    model, variables, info = load(args.model, checkpoint=args.checkpoint, module=args.module)
    file = Path(args.metrics or Path(args.model, METRICS_FILE))
    metrics = read_metrics(file, model, step=info.get("step")) if args.metrics or file.is_file() else None
    if args.out:
        made = push.write_folder(args.out, args.target, model, variables, info, metrics=metrics, licence=args.licence)
        print(f"{describe_short(model)}: written to {made} with a model card; nothing was uploaded")
        return
    done = push.push(
        args.target,
        model,
        variables,
        info,
        private=args.private,
        revision=args.revision,
        metrics=metrics,
        licence=args.licence,
    )
    size = sum(done.files.values()) / 2**20
    print(f"{describe_short(model)}: uploaded {', '.join(done.files)} ({size:.1f} MiB) to {done.page}")


def summarize(args: argparse.Namespace) -> None:
    """`summarize`."""
    from rich.console import Console

    from deeplab_jax.analysis.summary import summarize
    from deeplab_jax.analysis.summary_table import summary_table
    from deeplab_jax.models.catalog import LISTS_MODELS, describe, from_description, model_names
    from deeplab_jax.weights.by_name import folder_of
    from deeplab_jax.weights.folder import MODEL_FILE, read_description

    names, provenance = model_names(module=args.module), {}
    if args.model in names:
        usual: dict[str, Any] = {"num_classes": 21, "output_stride": None, "options": {}}
        description = {"name": args.model, "module": args.module, **usual}
    elif ((folder := folder_of(args.model, module=args.module)) / MODEL_FILE).is_file():
        model, info = read_description(folder, module=args.module)
        description, provenance = describe(model), info.get("provenance", {})
    else:
        own = "" if args.module else "; for a model of your own, give --module the path of its file"
        near = did_you_mean(args.model, names, listed_by=LISTS_MODELS)
        raise UserError(f"{args.model}: neither a model's name nor a folder with {MODEL_FILE}: {near}{own}")
    changes = {**given(args, *FLAGS_OF_MODEL), "options": {**description["options"], **dict(args.option)}}
    summary = summarize(from_description({**description, **changes}), *args.size)
    if args.json == "-":
        print(json.dumps(summary.to_json(), indent=1))
        return
    if args.json:
        save_json(args.json, summary.to_json())
    # A narrower terminal breaks the lines, which keeps every digit.
    Console(width=max(Console().width, 100)).print(summary_table(summary))
    for key, value in provenance.items():
        print(printable(f"{key}: {value}"))


def compile_(args: argparse.Namespace) -> int:
    """`compile`."""
    from rich.console import Console

    from deeplab_jax.analysis import compiled_table
    from deeplab_jax.analysis.targets import parse_target, start_without_accelerator
    from deeplab_jax.terminal import elapsed
    from deeplab_jax.train.ahead import Ahead, cache_folder

    if (args.predict or args.evaluate) and (unused := given(args, "space", "remat")):
        raise UserError(f"--{next(iter(unused))}: changes the training only; leave it out")
    target = parse_target(args.target)
    start_without_accelerator(target)
    config = config_of(args.config, module=args.module)
    kind = "prediction" if args.predict else "evaluation" if args.evaluate else "training"
    for key, value in given(args, "space", "remat").items():
        config.train[key] = value
    if args.dtype:
        config.model.options.dtype = args.dtype
    if args.output_stride is not None:
        (config.evaluate if kind == "evaluation" else config.model).output_stride = args.output_stride
    ahead = Ahead(
        config,
        target,
        kind=kind,
        size=args.predict or (513, 513),
        num_classes=args.num_classes or 0,
        folder=cache_folder(),
        watch=partial(elapsed, Console(stderr=True)),
    )
    report = ahead.report(args.batch or 0)
    console = Console()
    console.print(compiled_table.title(report), highlight=False, soft_wrap=True)
    if report["fits"]:
        for table in (compiled_table.memory_table(report), *compiled_table.cycles_tables(report)):
            console.print(table)
    for line in compiled_table.lines(report):
        console.print(line, highlight=False, soft_wrap=True)
    if args.largest_batch:
        largest, tried = ahead.largest()
        report = {**report, "largest_batch": largest, "tried": {one["images"]: one["fits"] for one in tried}}
        print(f"largest batch that fits: {largest} images (tried {', '.join(map(str, sorted(report['tried'])))})")
    if args.out:
        save_json(Path(args.out, "compile.json"), report)
    if args.out and report["fits"]:
        write_whole(Path(args.out, "compile.png"), lambda file: compiled_table.draw(report, file))
    if report["fits"]:
        return 0
    less = (
        ["--remat"] if kind == "training" and not config.train.remat else ["a smaller --predict"] * bool(args.predict)
    )
    less += ["fewer images with --batch"] if report["images"] > ahead.unit() else []
    give = f"give {' or '.join(less)}" if less else "choose another --target"
    return fail(f"--target {args.target}: {report['images']} images do not fit; {give}")


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given to a verb whose flags are the arguments of one function; see `flags.OMITTED`."""
    of_program = {"verb", "run", "takes_config", "distributed", "config"}
    return {name: value for name, value in vars(args).items() if name not in of_program}


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the given flags among the named ones."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
