"""Measure the most important rows on a GPU in a few minutes.

    python -m experiments.benchmarks.gpu --out DIR [--minutes 8] [--camvid DIR]

Each row is written to `DIR/results.json` as soon as it is measured. Rows that the file has are not measured again. No
row starts after the minutes are over. PyTorch takes part where it is installed for the GPU, without `torch.compile`,
which takes a minute for each network. Otherwise this package runs alone. `--camvid` trains the recipe of
`configs/camvid.py` in the time that is left, where that is at least three minutes, and evaluates it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deeplab_jax.cli import enable_compilation_cache
from deeplab_jax.errors import UserError
from experiments import ROOT
from experiments.benchmarks import inference, limits, lowerings, memory, networks, training
from experiments.benchmarks.session import Result, Session
from experiments.program import exits, parser_of

REPEATS = 5
LEAST, EVALUATION = 180.0, 45.0  # Seconds that CamVid needs, and those of them that are kept for its evaluation.


class Step(NamedTuple):
    """A part of the measurements.

    Attributes:
      measure: calls `Session.row` for each of its rows.
      takes: whether a row is measured, by its name.
    """

    measure: Callable[[Session], None]
    takes: Callable[[str], bool] = lambda name: True


def of(*parts: str) -> Callable[[str], bool]:
    """Return whether a name has all of these parts, each of which ends before a comma or with the name."""
    return lambda name: all(f"{part}," in f"{name}," for part in parts)


def of_kernels(name: str) -> bool:
    """Return whether a row is of the gradients of an atrous convolution in bfloat16."""
    return name.startswith("training gradient") and name.endswith("bfloat16") and not of("rate 1")(name)


class Timed(Session):
    """A session that starts no row after its end, and measures only the rows of a step.

    Attributes:
      left_out: names of the rows for which no time was left.
    """

    def __init__(self, file: Path, *, end: float, quick: bool) -> None:
        super().__init__(file, repeats=2 if quick else REPEATS, quick=quick, compiled_peers=False)
        self.end, self.left_out = end, list[str]()
        self.step = Step(headline)

    def row(self, part: str, name: str, settings: Mapping[str, Any], measure: Callable[..., Result]) -> Result | None:
        """See `Session.row`."""
        if not (self.quick or self.step.takes(name)):  # A quick run tests every part.
            return None
        if time.monotonic() > self.end:
            self.left_out.append(f"{part}: {name}")
            return None
        return super().row(part, name, settings, measure)


def headline(session: Session) -> None:
    """Measure time and memory of a training step of DeepLabv3+ on ResNet-101, with 16 crops of 513x513, without
    peers: as users get it, in float32, and in the other lowerings of atrous convolution.
    """
    network = networks.TINY if session.quick else networks.RESNET101_PLUS
    batch, side = (2, 65) if session.quick else (16, 513)
    forms = (("bfloat16", "auto"), ("bfloat16", "space_to_batch"), ("bfloat16", "taps"), ("float32", "auto"))
    for dtype, lowering in forms:
        name = f"{network.name}, {batch}x{side}x{side}, lowering {lowering}, {dtype}"
        settings = {"network": network.name, "side": side, "batch": batch, "dtype": dtype, "lowering": lowering}

        def run(**settings: Any) -> Result:
            before = memory.device_peak("ours")
            found = training.contest(session, **settings, alone="only ours takes this size")
            after = memory.device_peak("ours")  # The peak of this whole process: unknown, unless this row raised it.
            return {**found, "device_peak_mib": after if after != before else None}

        session.row("headline", name, settings, run)


SMALL, LARGE = networks.MOBILENET.name, networks.RESNET101_PLUS.name
STEPS = (
    Step(headline, of("lowering auto", "bfloat16")),
    Step(training.measure, of(LARGE, "bfloat16")),
    Step(training.measure, of(SMALL, "bfloat16")),
    Step(inference.measure, of(LARGE, "512x512", "bfloat16")),
    Step(inference.measure, of(SMALL, "512x512", "bfloat16")),
    # XLA writes the gradient of an atrous kernel as a forward convolution with a large window, not as cuDNN's own.
    Step(headline, of("bfloat16")),
    Step(lowerings.measure, of_kernels),
    Step(limits.measure, of("bfloat16")),
    Step(headline, of("float32")),
    Step(training.measure, of("bfloat16")),
    Step(inference.measure, of("512x512", "bfloat16")),
    Step(training.measure, of("float32")),
    Step(inference.measure, of("512x512", "float32")),
)


@exits
def main(argv: Sequence[str] | None) -> int:
    """Measure all steps in turn, and return the exit code: 1 where a row failed."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too.
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")
    parser = parser_of("benchmarks.gpu", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="no row starts after this time; default 8")
    parser.add_argument("--camvid", metavar="DIR", help="folder of CamVid (train/, trainannot/, val/, valannot/)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and networks, to test that everything works")
    args = parser.parse_args(argv)
    enable_compilation_cache()  # For a second start.
    args.out.mkdir(parents=True, exist_ok=True)
    session = Timed(args.out / "results.json", end=time.monotonic() + 60 * args.minutes, quick=args.quick)
    if session.platform == "cpu" and not args.quick:
        raise UserError("JAX has found no GPU: install '.[cuda]', or give --quick to test the script on CPUs")
    for session.step in STEPS:
        session.step.measure(session)
    left = session.end - time.monotonic()
    if args.camvid and (left > LEAST or args.quick):
        session.step = Step(headline)
        settings = {"recipe": "configs/camvid.py", "minutes": args.minutes}
        session.row("camvid", "headline", settings, lambda **_: camvid(args.camvid, left, quick=args.quick))
    if session.platform != "cpu":
        with suppress(Exception):  # The rows are written.
            save_target(args.out / "target_config.txt")
    for name in session.left_out:
        print(f"no time left for {name}")
    return session.report_failures()


def save_target(file: Path) -> None:
    """Write the description of this GPU. With it, XLA can compile for this GPU on another machine."""
    from jax._src.lib import xla_client

    config = xla_client.get_topology_for_devices(jax.devices()).target_config
    file.write_text(str(config))


def camvid(folder: str, seconds: float, *, quick: bool) -> Result:
    """Train the recipe in a temporary folder until the seconds are over, then evaluate the newest checkpoint.

    Returns:
      The last `step`, the mIoU on the validation split in percent, and the seconds of training and evaluation.

    Raises:
      RuntimeError: a command failed.
    """
    run = Path(tempfile.mkdtemp()) / "camvid"
    config = f"{ROOT}/configs/camvid.py{':debug' if quick else ''}"
    data = [f"--config.data.dir={folder}", f"--config.data.threads={os.cpu_count()}"]
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
