"""Measure the most important rows on a GPU in a few minutes.

    python -m experiments.benchmarks.gpu --out DIR [--minutes 12] [--camvid DIR]

Each row is written to `DIR/results.json` as soon as it is measured. Rows that the file has are not measured again. No
row starts after the minutes are over. PyTorch takes part where it is installed for the GPU; otherwise this package runs
alone. `--camvid` trains the recipe of `configs/camvid.py` in the time that is left, and evaluates it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import ROOT
from experiments.benchmarks import inference, lowerings, memory, networks, training
from experiments.benchmarks.session import Result, Session
from experiments.program import exits, parser_of

REPEATS = 5
EVALUATION = 45.0  # Seconds that are kept for the evaluation of CamVid.
ATROUS = tuple(f"rate {rate}" for rate in (2, 4, 6, 8, 12, 16, 18, 24, 36))


class Step(NamedTuple):
    """A part of the measurements.

    Attributes:
      measure: calls `Session.row` for each of its rows.
      words: a row is measured if its name has one of them before a comma or at its end; "" takes all.
      dtype: dtype of the rows; "" takes all.
    """

    measure: Callable[[Session], None]
    words: tuple[str, ...] = ("",)
    dtype: str = ""


class Timed(Session):
    """A session that starts no row after its end, and measures only the rows of a step.

    Attributes:
      left_out: names of the rows for which no time was left.
    """

    def __init__(self, file: Path, *, end: float, quick: bool) -> None:
        super().__init__(file, repeats=2 if quick else REPEATS, quick=quick)
        self.end, self.left_out = end, list[str]()
        self.step = Step(headline)

    def row(self, part: str, name: str, settings: Mapping[str, Any], measure: Callable[..., Result]) -> Result | None:
        """See `Session.row`."""
        step = self.step
        if not any(f"{word}," in f"{name}," for word in step.words) or step.dtype not in name:
            return None
        if time.monotonic() > self.end:
            self.left_out.append(f"{part}: {name}")
            return None
        return super().row(part, name, settings, measure)


def headline(session: Session) -> None:
    """Measure time and memory of a training step of DeepLabv3+ on ResNet-101, with 16 crops of 513x513, without
    peers.
    """
    network = networks.TINY if session.quick else networks.RESNET101_PLUS
    batch, side = (2, 65) if session.quick else (16, 513)
    for dtype in ("bfloat16", "float32"):
        name = f"{network.name}, {batch}x{side}x{side}, {dtype}"
        settings = {"network": network.name, "side": side, "batch": batch, "dtype": dtype}

        def run(**settings: Any) -> Result:
            found = training.contest(session, **settings, alone="only ours takes this size")
            return {**found, "device_peak_mib": memory.device_peak("ours")}

        session.row("headline", name, settings, run)


STEPS = (
    Step(headline),
    Step(training.measure, dtype="bfloat16"),
    Step(inference.measure, dtype="bfloat16"),
    Step(training.measure, dtype="float32"),
    Step(inference.measure, dtype="float32"),
    Step(memory.measure, words=("ours",)),
    Step(lowerings.measure, words=ATROUS),
)


@exits
def main(argv: Sequence[str] | None) -> int:
    """Measure all steps in turn, and return the exit code: 1 where a row failed."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch and child processes need memory, too.
    parser = parser_of("benchmarks.gpu", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=12.0, help="no row starts after this time; default 12")
    parser.add_argument("--camvid", metavar="DIR", help="folder of CamVid (train/, trainannot/, val/, valannot/)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and networks, to test that everything works")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    session = Timed(args.out / "results.json", end=time.monotonic() + 60 * args.minutes, quick=args.quick)
    if session.platform != "cpu":
        save_target(args.out / "target_config.txt")
    for session.step in STEPS:
        session.step.measure(session)
    if args.camvid:
        session.step = Step(headline)
        left = session.end - time.monotonic()
        settings = {"recipe": "configs/camvid.py", "minutes": args.minutes}
        session.row("camvid", "headline", settings, lambda **_: camvid(args.camvid, args.out, left, quick=args.quick))
    for name in session.left_out:
        print(f"no time left for {name}")
    return session.report_failures()


def save_target(file: Path) -> None:
    """Write the description of this GPU. With it, XLA can compile for this GPU on another machine."""
    from jax._src.lib import xla_client

    config = xla_client.get_topology_for_devices(jax.devices()).target_config
    file.write_text(str(config))


def camvid(folder: str, out: Path, seconds: float, *, quick: bool) -> Result:
    """Train the recipe until the seconds are over, then evaluate the newest checkpoint.

    Returns:
      The last `step`, the mIoU on the validation split in percent, and the seconds of training and evaluation.

    Raises:
      RuntimeError: a command failed.
    """
    run = out / "camvid"
    config = f"{ROOT}/configs/camvid.py{':debug' if quick else ''}"
    data = [f"--config.data.dir={folder}"]
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "deeplab_jax", "train", "--config", config, *data, "--workdir", str(run)],
        cwd=ROOT,
    ) as process:
        try:
            process.wait(max(30.0, seconds - EVALUATION))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # It saves, and ends with 75.
            process.wait()
    if process.returncode not in (0, 75):
        raise RuntimeError(f"training ended with {process.returncode}")
    trained = time.monotonic()
    limit = ["--limit", "2"] if quick else []
    words = ["evaluate", "--model", str(run), "--checkpoint", "newest", "--out", str(run / "val"), *limit, *data]
    subprocess.run([sys.executable, "-m", "deeplab_jax", *words], cwd=ROOT, check=True)
    metrics = json.loads((run / "val" / "metrics.json").read_text())
    return {
        "step": metrics["checkpoint"],
        "miou": round(100 * metrics["miou"], 2),
        "training_seconds": round(trained - start, 1),
        "evaluation_seconds": round(time.monotonic() - trained, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
