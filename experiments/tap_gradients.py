"""Measure the gradient of each tap of an atrous kernel, by its rate and the size of the map (DeepLabv3, sec. 3.3).

    python -m experiments.run extra_rates --regime demo --out runs/mine --config.train.checkpoint_every=50 \\
        --config.train.keep=100
    python -m experiments.tap_gradients --out runs/tap_gradients.json
    python -m experiments.tap_gradients --out runs/tap_gradients.json --row map_17-rate_8

The first command trains the rows with their checkpoints. Its own `--out` keeps the committed results apart, which would
count as finished.

The networks are those of `experiments/tables/extra_rates.py` in the regime `demo`. The gradient is that of a real
training step. It is taken at the random weights of seed 0, and at every checkpoint in the run directory of the row.
Each result is written as soon as it is there. The gradients that the file holds for a step of the same training are not
computed again.
"""

import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from deeplab_jax.cli import enable_compilation_cache
from deeplab_jax.data.source import Source
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.files import save_json
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.from_config import model_for, open_split
from deeplab_jax.train.state import TrainState, create_state
from deeplab_jax.train.step import mean_gradient, summed_loss
from deeplab_jax.weights.folder import load
from experiments.outcomes.files import checkpoint_steps, job_name, read_given
from experiments.program import exits, parser_of
from experiments.regimes import REGIMES
from experiments.run.resolve import Resolved, Settings, resolve
from experiments.tables import TABLES

TABLE, REGIME = TABLES["extra_rates"], "demo"
KERNEL = ("context", "branch_atrous1", "conv", "kernel")


@exits
def main(argv: Sequence[str] | None) -> None:
    """Compute the gradients that the file lacks, one row after another."""
    parser = parser_of("tap_gradients", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="file of the results, JSON")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="folder of the run directories")
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only this row; again for more")
    parser.add_argument("--images", type=int, default=8, help="images in the step (8)")
    args = parser.parse_args(argv)
    rows = TABLE.named_rows()
    for name in args.row:
        if name not in rows:
            raise UserError(f"--row {name!r}: {did_you_mean(name, rows)}")
    if args.images < 2:
        raise UserError(f"--images {args.images}: give at least 2, since batch norm needs them")
    content = read_given(args.out, needs=("rows",), fix="; give another --out") or {"rows": {}}
    enable_compilation_cache()
    for name in args.row or rows:
        found = resolve(rows[name], TABLE, REGIMES[REGIME], Settings())
        assert isinstance(found, Resolved)
        workdir = args.runs / REGIME / job_name(found.training_key, 0)
        # Results of another number of images or of another configuration do not count.
        asked = {"training": found.training_key, "images": args.images}
        kept = content["rows"].get(name, {})
        taps = kept.get("taps", {}) if {key: kept.get(key) for key in asked} == asked else {}
        steps = {0, *checkpoint_steps(workdir), *map(int, taps)}
        if len(steps) == 1:
            print(
                f"{workdir}: no checkpoints there, so only the random weights are measured; python -m experiments.run "
                f"extra_rates --regime {REGIME} --row {name} --out runs/mine --config.train.checkpoint_every=50 "
                "--config.train.keep=100 makes them",
                file=sys.stderr,
            )
        for step in sorted(steps):
            if str(step) not in taps:
                taps[str(step)] = gradients(found, workdir, step, images=args.images).tolist()
                content["rows"][name] = {**asked, "taps": dict(sorted(taps.items(), key=lambda one: int(one[0])))}
                save_json(args.out, content)
            share = outer_share(np.array(taps[str(step)]))
            print(f"{name}, step {step}: outer taps have {share:.2%} of the gradient", flush=True)


def gradients(found: Resolved, workdir: Path, step: int, *, images: int) -> np.ndarray:
    """Return the root mean square gradient of each tap, float32 `[3, 3]`, at the weights that a run has after a step;
    after 0 steps at the random weights of seed 0.
    """
    source = open_split(found.config, found.config.data.train_split)
    model = model_for(found.config, source.labels)
    batch = first_images(source, images)
    make = partial(create_state, model=model, optimizer=optax.identity(), size=batch["image"].shape[1:3], ema=False)
    variables = load(workdir, checkpoint=str(step))[1] if step else None
    return of_taps(jax.jit(make)(jax.random.key(0), variables=variables), model, batch)


def of_taps(state: TrainState, model: Segmenter, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the root mean square gradient of each tap of the atrous branch, float32 `[3, 3]`, in one training step."""
    gradient, *_ = _gradient(model)(state, batch)
    kernel = flatten_dict(gradient)[KERNEL]
    return np.asarray(jnp.sqrt(jnp.mean(kernel**2, axis=(2, 3))))


@cache
def _gradient(model: Segmenter) -> Any:
    """Return the compiled gradient, one for all checkpoints of a network."""
    objective = partial(summed_loss, model=model)
    return jax.jit(partial(mean_gradient, objective=objective, key=jax.random.key(0), accumulate=1))


def outer_share(taps: np.ndarray) -> float:
    """Return the share, 0 to 1, that the eight outer taps of `[3, 3]` have in the squared gradient."""
    squares: Any = taps.astype(np.float64) ** 2
    return float(1 - squares[1, 1] / squares.sum())


def first_images(source: Source, count: int) -> dict[str, np.ndarray]:
    """Return the first examples as a batch."""
    examples = [source[index] for index in range(count)]
    return {key: np.stack([example[key] for example in examples]) for key in ("image", "label")}


if __name__ == "__main__":
    sys.exit(main())
