"""Run a paper's protocol at full size, on generated stand-ins in the layout of the data set.

    python -m experiments.full_size voc
    python -m experiments.full_size cityscapes --steps 20 --share 0.02 --evaluate 4

It runs the commands that the real data need: check-data, prepare, train with accumulation, and evaluate at output
stride 8 with the papers' scales and flip. It kills the training half way and starts it again, to show that it goes on
from the newest checkpoint. After an interruption the same command goes on. Arguments `--config.section.key=value`
change the training.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_jax.cli import Parser, split_config_arguments
from deeplab_jax.commands import fail
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.train.writers import METRICS_FILE
from deeplab_jax.weights.folder import METRICS_FILE as RESULTS_FILE
from experiments import ROOT, sbd
from experiments.full_size import stand_ins
from experiments.output import write_json
from experiments.run.files import newest_step, read_records, state_of
from experiments.tables.networks import CITYSCAPES_SCALES, MULTI_SCALE

POLL = 0.5  # seconds
ASKED_FILE = "asked.json"


@dataclass(frozen=True)
class Protocol:
    """A paper's protocol.

    Attributes:
      write: writes the stand-ins into a folder; its second argument is the share of the published number of images.
      folder: folder of the data set, below that folder.
      scales: scales of the evaluation.
    """

    write: Callable[[Path, float], None]
    folder: str
    scales: tuple[float, ...]


PROTOCOLS = {
    "voc": Protocol(stand_ins.voc, "VOCdevkit/VOC2012", MULTI_SCALE),
    "cityscapes": Protocol(stand_ins.cityscapes, "", CITYSCAPES_SCALES),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the protocol, and return the exit code: 0 on success, 2 for an error that the user can fix."""
    args, rest = parser().parse_known_args(argv)
    overrides, unknown = split_config_arguments(rest)
    try:
        if unknown:
            raise UserError(f"{unknown[0]} is not an option; see --help")
        run(args, overrides)
    except UserError as error:
        return fail(str(error))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    found = Parser(
        prog="python -m experiments.full_size", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    found.add_argument("name", metavar="NAME", help=", ".join(PROTOCOLS))
    found.add_argument("--out", default="runs/full_size", type=Path, help="folder of data and runs")
    found.add_argument("--steps", type=int, default=200, help="of the training (200)")
    found.add_argument("--share", type=float, default=1.0, help="of the published number of images (1)")
    found.add_argument("--accumulate", type=int, default=4, help="micro-batches of a step (4)")
    found.add_argument("--evaluate", type=int, metavar="N", default=0, help="evaluate the first N images; 0: all")
    found.add_argument("--model", default="", help="name of another model than that of the configuration")
    return found


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run the steps of the protocol that are not finished yet."""
    if args.name not in PROTOCOLS:
        raise UserError(f"{args.name!r}: {did_you_mean(args.name, PROTOCOLS)}")
    if args.steps < 4 or not 0 < args.share <= 1 or args.evaluate < 0:
        raise UserError("give --steps of at least 4, a --share above 0 and at most 1, and --evaluate 0 or more")
    protocol, out = PROTOCOLS[args.name], args.out / args.name
    raw, prepared, workdir, metrics = (out / part for part in ("raw", "prepared", "run", "os8_views"))
    model = f":model={args.model}" if args.model else ""
    config = f"--config={ROOT / 'configs' / args.name}.py{model}"
    asked = {f"--{key}": getattr(args, key) for key in ("steps", "share", "accumulate", "evaluate", "model")}
    keep_to(out, {**asked, "--config": shlex.join(overrides)})
    if not prepared.is_dir():
        protocol.write(raw, args.share)
        if args.name == "voc":
            count = sbd.augment(raw / "benchmark_RELEASE" / "dataset", raw / protocol.folder)
            print(f"{count} images of trainaug", flush=True)
        data = f"--config.data.dir={raw / protocol.folder}"
        call("check-data", config, data)
        call("prepare", config, data, "--out", str(prepared))
    training = ["train", config, "--config.data.name=tfds", f"--config.data.dir={prepared}"]
    training += [f"--config.train.steps={args.steps}", f"--config.train.accumulate={args.accumulate}"]
    training += [f"--config.train.checkpoint_every={max(1, args.steps // 4)}"]
    training += [f"--config.train.log_every={max(1, args.steps // 20)}", *overrides, "--workdir", str(workdir)]
    train(training, workdir, args.steps)
    if not (metrics / RESULTS_FILE).is_file():
        words = ["evaluate", "--model", str(workdir), "--checkpoint", "newest", "--output_stride", "8", "--flip"]
        words += ["--scales", ",".join(map(str, protocol.scales)), "--out", str(metrics)]
        call(*words, *(["--limit", str(args.evaluate)] if args.evaluate else []))
    found = json.loads((metrics / RESULTS_FILE).read_text())["protocol"]
    print(f"{args.steps} steps; {found['images']} images at output stride {found['output_stride']}: {metrics}")


def keep_to(out: Path, asked: Mapping[str, Any]) -> None:
    """Write the settings of this run into its folder.

    Raises:
      UserError: the folder was made with other settings, and would pass for the result of these.
    """
    file = out / ASKED_FILE
    kept = json.loads(file.read_text()) if file.is_file() else dict(asked)
    if different := [key for key in asked if kept.get(key) != asked[key]]:
        key = different[0]
        raise UserError(
            f"{out}: it was made with {key} {kept.get(key) or 'unset'}, now {asked[key] or 'unset'}: give the same, or "
            f"--out {out.parent}_2"
        )
    write_json(file, kept)


def train(words: Sequence[str], workdir: Path, steps: int) -> None:
    """Train, kill the training half way, and start it again.

    Raises:
      UserError: a start fails, or the second one does not go on from a checkpoint.
    """
    if newest_step(workdir) < steps // 2:
        process = start(*words)
        try:
            while process.poll() is None and min(logged(workdir), newest_step(workdir)) < steps // 2:
                time.sleep(POLL)
            killed = process.poll() is None
        finally:
            process.kill()
            process.wait()
        reached = newest_step(workdir)
        if reached < steps // 2:
            raise UserError(f"{workdir}: the training ended at step {reached} of {steps}; see its output above")
        how = "killed" if killed else "ended by itself"
        print(f"{how} at step {logged(workdir)}; the newest checkpoint is of step {reached}", flush=True)
    if newest_step(workdir) < steps:
        call(*words)
    if newest_step(workdir) < steps:
        raise UserError(f"{workdir}: the newest checkpoint is of step {newest_step(workdir)}, not {steps}")


def logged(workdir: Path) -> int:
    """Return the last step that the log has."""
    return state_of(read_records(workdir / METRICS_FILE))[0]


def start(*words: str) -> subprocess.Popen[bytes]:
    """Start a command of the package, and print it."""
    print(f"$ python -m deeplab_jax {shlex.join(words)}", flush=True)
    return subprocess.Popen([sys.executable, "-m", "deeplab_jax", *words])


def call(*words: str) -> None:
    """Run a command of the package.

    Raises:
      UserError: it fails.
    """
    process = start(*words)
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code:
        raise UserError(f"{words[0]} ended with code {code}; see its output above")


if __name__ == "__main__":
    sys.exit(main())
