"""Watches a long run from inside its own process.

`python -m tests.support.flat train|evaluate COUNT FOLDER` prints samples.

A sample is (resident memory in KiB, open files, threads); there are 50 of them, evenly spread.
"""

import json
import os
import sys
from pathlib import Path

from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.train import run
from tests.support.memory import status
from tests.support.tiny import run_training, tiny_config, tiny_model, tiny_models

SAMPLES = 50


def sample() -> tuple[int, int, int]:
    """What this process holds now."""
    return status("VmRSS") // 1024, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def main(what: str, count: int, folder: str) -> None:
    """Run and print."""
    samples = []
    with tiny_models():
        if what == "train":
            report = run.report

            def watched(*args):
                values = report(*args)
                samples.append(sample())
                return values

            run.report = watched
            every = count // SAMPLES
            run_training(
                Path(folder),
                tiny_config(
                    **{
                        "train.steps": count,
                        "train.log_every": every,
                        "train.checkpoint_every": 5 * every,
                        "train.evaluate_every": 5 * every,
                    }
                ),
            )
        else:
            model, variables = tiny_model("cascade_tiny", num_classes=9)

            def progress(done, total):
                if done % (total // SAMPLES) == 0:
                    samples.append(sample())

            evaluate(model, variables, Scenes(split="val", size=(33, 33), count=count), split="val", progress=progress)
    print(json.dumps(samples))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
