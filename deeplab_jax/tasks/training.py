"""`train` for a program."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax.files import at_home
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.tasks.arguments import config_of

if TYPE_CHECKING:
    import optax
    from rich.console import Console

    from deeplab_jax.data.source import Source
    from deeplab_jax.ops.losses import Loss
    from deeplab_jax.train.given import Call
    from deeplab_jax.train.schedules import Schedule


def train(
    config: Any,
    workdir: str | Path,
    *,
    on_step: "Call | None" = None,
    on_evaluation: "Call | None" = None,
    sources: "tuple[Source, Source] | None" = None,
    model: Segmenter | None = None,
    loss: "Loss | None" = None,
    optimizer: "optax.GradientTransformation | None" = None,
    schedule: "Schedule | None" = None,
    module: str = "",
    allow_config_change: bool = False,
    console: "Console | None" = None,
) -> dict[str, Any]:
    """Train as a configuration says, or resume the run of the directory, and return the last evaluation.

    Args:
      config, module: see `config_of`.
      workdir: the run directory. `load(workdir)` returns the trained model.
      on_step: called as `on_step(step, metrics)` when a step is logged: the first one of this start, every
        `config.train.log_every`, and the last. `metrics` has the names of `metrics.jsonl`, without "train/". Numbers
        that are not finite, such as the loss of a skipped update, are missing.
      on_evaluation: called as `on_evaluation(step, metrics)` once an evaluation is saved; `metrics` is as `evaluate`
        returns it. If one of the two returns something true, the run ends as after its last step: the state is
        evaluated and saved. A KeyboardInterrupt in them is a Ctrl-C. After another error the state is saved, and the
        error is raised. With several processes, only the first one calls them.
      sources, model, loss, optimizer, schedule: objects in the place of what the configuration names; see
        `train.given.Given`. The run directory does not hold them, so a start that resumes it needs them again. It does
        hold a model from `create_model`.
      allow_config_change: whether to resume a run of another configuration.
      console: where to print; None is standard output.

    Returns:
      What `evaluate` returns, with the `step` and the `workdir`. If the run was complete before, it has only
      what its record holds: the means, and each class's IoU.

    Raises:
      UserError: anything in the configuration, data or directory that the user can fix.
      train.signals.Interrupted: after Ctrl-C or SIGTERM, once the state is saved. The same call resumes.
    """
    from deeplab_jax.distributed import together
    from deeplab_jax.train import loop
    from deeplab_jax.train.allocator import keep_freed_memory
    from deeplab_jax.train.given import Given
    from deeplab_jax.train.record import RECORD_FILE, last_evaluation

    workdir = at_home(workdir)
    keep_freed_memory()  # Before the next line starts JAX's threads.
    with together():
        config = config_of(config, module=module)
        given = Given(sources, model, loss, optimizer, schedule, on_step, on_evaluation)
    results = loop.train(config, workdir, given=given, allow_config_change=allow_config_change, console=console)
    return {**(results or last_evaluation(Path(workdir, RECORD_FILE))), "workdir": str(workdir)}
