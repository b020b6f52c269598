"""What each idea of the papers is worth on `scenes`: the demo's network, and the same without one part.

    python -m experiments.scenes_ablation

It is a table like the others, `experiments/tables/extra_parts.py`, in the regime `demo`; the options are those of
`python -m experiments.run`.
"""

import sys

from deeplab_jax.errors import end_process
from experiments.run.__main__ import main

COMMAND = ("extra_parts", "--regime", "demo")

if __name__ == "__main__":
    end_process(main([*COMMAND, *sys.argv[1:]]))
