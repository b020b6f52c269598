"""Compare two models by their evaluations on the same images.

    python -m deeplab_jax evaluate --model runs/a --per_image --out runs/a/val
    python -m deeplab_jax evaluate --model runs/b --per_image --out runs/b/val
    python -m experiments.compare --base runs/a/val --other runs/b/val

Several trainings of each stand behind `--base` and `--other`, in the same order of seeds. The difference in mIoU has a
95% interval: by Student's t over the trainings and the resampled images together, as in the papers' tables. For one
training of each it is over the images alone, and does not say how much another training would differ.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from deeplab_jax.errors import UserError
from deeplab_jax.weights.folder import METRICS_FILE
from experiments.outcomes.files import read_given
from experiments.outcomes.intervals import errors, over_images, over_seeds, widest
from experiments.outcomes.per_image import Counts, counts_of
from experiments.program import exits, parser_of


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print the two mean IoUs, their difference and its interval."""
    parser = parser_of("compare", __doc__)
    for flag in ("--base", "--other"):
        parser.add_argument(
            flag, nargs="+", required=True, type=Path, metavar="DIR", help="folders of `evaluate --per_image --out DIR`"
        )
    args = parser.parse_args(argv)
    if len(args.base) != len(args.other):
        raise UserError(f"--base has {len(args.base)} folders and --other {len(args.other)}; give pairs of one seed")
    base, other = ([read_evaluation(folder) for folder in folders] for folders in (args.base, args.other))
    for folder, one in zip((*args.base, *args.other), (*base, *other), strict=True):
        if one.names != base[0].names or one.right.shape != base[0].right.shape:
            raise UserError(f"{folder}: has other images or classes than {args.base[0]}; evaluate both on one split")
    print("\n".join(compare(base, other)))


def read_evaluation(folder: Path) -> Counts:
    """Return the counts of an evaluation by image.

    Raises:
      UserError: the folder holds no evaluation, or one without counts.
    """
    file = folder / METRICS_FILE
    fix = "; give a folder of python -m deeplab_jax evaluate --per_image --out"
    metrics = read_given(file, needs=("per_image",), fix=fix)
    if metrics is None:
        raise UserError(f"{file}: no such file{fix}")
    if "every" not in metrics["per_image"]:
        raise UserError(f"{file}: holds no counts of single images; evaluate again with --per_image")
    return counts_of(metrics["per_image"]["every"])


def compare(base: Sequence[Counts], other: Sequence[Counts]) -> list[str]:
    """Return the lines that compare trainings of two models, given as the counts of the same images. The trainings are
    paired in their order.
    """
    mious = [[100 * one.miou() for one in side] for side in (base, other)]
    differences = [theirs - ours for ours, theirs in zip(*mious, strict=True)]
    middle, of_seeds = fmean(differences), over_seeds(differences)
    of_images = over_images(list(zip(other, base, strict=True)))
    known = errors(of_seeds, of_images) if of_seeds else [of_images] if of_images else []
    found = widest(middle, known) if known else None
    lines = [f"{name}: mIoU {fmean(side):.2f}" for name, side in zip(("base", "other"), mious, strict=True)]
    what = f"{len(base)} trainings and {len(base[0].names)} images" if of_seeds else f"{len(base[0].names)} images"
    interval = "no interval: one image" if found is None else f"95% interval {found.low:+.2f} to {found.high:+.2f}"
    lines.append(f"other - base: {middle:+.2f} points, {interval}, over {what}")
    if not of_seeds:
        lines.append("note: one training of each; the interval does not say how much another training would differ")
    return lines


if __name__ == "__main__":
    sys.exit(main())
