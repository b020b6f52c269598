"""Run a paper's protocol at full size, on generated stand-ins in the layout of the data set.

    python -m experiments.full_size voc
    python -m experiments.full_size cityscapes --steps 20 --share 0.02 --evaluate 4

It runs the commands that the real data need: check-data, prepare, train with accumulation, and evaluate at output
stride 8 with the papers' scales and flip. It kills the training half way and starts it again, to show that it goes on
from the newest checkpoint. After an interruption the same command goes on. Arguments `--config.section.key=value`
change the training.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.config import split_config_arguments
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.train.record import RECORD_FILE, records
from deeplab_jax.weights.folder import METRICS_FILE
from experiments import ROOT, sbd
from experiments.full_size import stand_ins
from experiments.outcomes.files import newest_step, state_of
from experiments.program import exits, parser_of
from experiments.tables.networks import CITYSCAPES_SCALES, MULTI_SCALE

POLL = 0.5  # seconds


class Protocol(NamedTuple):
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


@exits
def main(argv: Sequence[str] | None) -> None:
    """Run the steps of the protocol that are not finished yet."""
    parser = parser_of("full_size", __doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(PROTOCOLS))
    parser.add_argument("--out", default="runs/full_size", type=Path, help="folder of data and runs")
    parser.add_argument("--steps", type=int, default=200, help="of the training (200)")
    parser.add_argument("--share", type=float, default=1.0, help="of the published number of images (1)")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches of a step (4)")
    parser.add_argument("--evaluate", type=int, metavar="N", default=0, help="evaluate the first N images; 0: all")
    parser.add_argument("--model", default="", help="name of another model than that of the configuration")
    args, rest = parser.parse_known_args(argv)
    overrides, unknown = split_config_arguments(rest)
    if unknown:
        raise UserError(f"{unknown[0]} is not an option; see --help")
    if args.name not in PROTOCOLS:
        raise UserError(f"{args.name!r}: {did_you_mean(args.name, PROTOCOLS)}")
    if args.steps < 4 or not 0 < args.share <= 1 or args.evaluate < 0:
        raise UserError("give --steps of at least 4, a --share above 0 and at most 1, and --evaluate 0 or more")
    protocol, out = PROTOCOLS[args.name], args.out / args.name
    raw, prepared, run = (out / f"{part}_{args.share:g}" for part in ("raw", "prepared", "run"))
    model = f":model={args.model}" if args.model else ""
    config = f"--config={ROOT / 'configs' / args.name}.py{model}"
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
    training += [f"--config.train.log_every={max(1, args.steps // 20)}", *overrides]
    train([*training, "--workdir", str(run)], run, args.steps)
    metrics, limit = run / "os8_views", ["--limit", str(args.evaluate)] if args.evaluate else []
    views = ["--output_stride", "8", "--flip", "--scales", ",".join(map(str, protocol.scales))]
    call("evaluate", "--model", str(run), "--checkpoint", "newest", *views, "--out", str(metrics), *limit)
    found = json.loads((metrics / METRICS_FILE).read_text())["protocol"]
    print(f"{args.steps} steps; {found['images']} images at output stride {found['output_stride']}: {metrics}")


def train(words: Sequence[str], workdir: Path, steps: int) -> None:
    """Train, kill the training half way, and start it again.

    A training that is beyond its half is only started, so that its settings are checked.

    Raises:
      UserError: a start fails, or no checkpoint is of the last step.
    """
    if newest_step(workdir) < steps // 2:
        process = start(*words)
        try:
            while process.poll() is None and min(logged(workdir), newest_step(workdir)) < steps // 2:
                time.sleep(POLL)
            how = "killed" if process.poll() is None else "ended by itself"
        finally:
            process.kill()
            process.wait()
        reached = newest_step(workdir)
        if reached < steps // 2:
            raise UserError(f"{workdir}: the training ended at step {reached} of {steps}; see its output above")
        print(f"{how} at step {logged(workdir)}; the newest checkpoint is of step {reached}", flush=True)
    call(*words)
    if (reached := newest_step(workdir)) < steps:
        raise UserError(f"{workdir}: the newest checkpoint is of step {reached}, not {steps}")


def logged(workdir: Path) -> int:
    """Return the last step that the log has."""
    return state_of(records(workdir / RECORD_FILE))[0]


def start(*words: str) -> subprocess.Popen[bytes]:
    """Print a command of the package, and start it."""
    print(f"$ python -m deeplab_jax {shlex.join(words)}", flush=True)
    return subprocess.Popen([sys.executable, "-m", "deeplab_jax", *words])


def call(*words: str) -> None:
    """Run a command of the package.

    Raises:
      UserError: it fails.
    """
    with start(*words) as process:
        try:
            code = process.wait()
        finally:
            process.kill()
    if code:
        raise UserError(f"{words[0]} ended with code {code}; see its output above")


if __name__ == "__main__":
    sys.exit(main())
