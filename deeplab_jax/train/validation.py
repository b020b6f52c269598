"""The evaluations of a run: on the validation split, with pictures of a few images."""

import dataclasses

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax.data.images import write_image
from deeplab_jax.data.source import Source
from deeplab_jax.distributed import is_first, own_share, together
from deeplab_jax.evaluate.evaluator import Results, evaluate, settled
from deeplab_jax.evaluate.pictures import StripCollector, stack_strips
from deeplab_jax.evaluate.results import unlabelled
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.faults import recording
from deeplab_jax.train.from_config import evaluate_options
from deeplab_jax.train.run import Run
from deeplab_jax.train.sharding import replicated
from deeplab_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Validation:
    """Evaluates a state.

    Args:
      config: its `evaluate` section applies.
      model: the model in its form for training.
      source: the validation split.
      mesh: mesh of the run.

    Raises:
      UserError: options that make no sense; checked now, because the first evaluation may be hours away.
    """

    config: ConfigDict
    model: Segmenter
    source: Source
    mesh: Mesh

    def __post_init__(self) -> None:
        protocol, how = evaluate_options(self.config)
        settled(self.model, protocol, batch_size=how["batch_size"], devices=how["devices"])

    def __call__(self, run: Run, number: int, state: TrainState) -> Results:
        """Return the results of step `number`, as in `metrics.json`; record and draw them."""
        config, source, steps = self.config, self.source, self.config.train.steps
        collector = StripCollector(source.labels, total=len(own_share(len(source))), count=config.train.pictures)
        protocol, how = evaluate_options(config)
        results = evaluate(
            self.model,
            jax.device_put(state.variables(), replicated(self.mesh)),
            source,
            protocol,
            split=config.data.val_split,
            stopped=run.stop.heard,
            on_prediction=collector,
            progress=lambda done, total: run.stop.check(number, steps),
            **how,
        )
        run.stop.check(number, steps)  # The evaluation may have ended early.
        names = ("miou", "pixel_accuracy", "mean_accuracy", "seconds")
        scalars = {name: results[name] for name in names if results[name] is not None}
        scalars |= {f"iou/{row['name']}": row["iou"] for row in results["per_class"] if row["iou"] is not None}
        with together():
            if collector.strips and is_first():
                with recording(run.workdir):
                    (run.workdir / "pictures").mkdir(exist_ok=True)
                file = run.workdir / "pictures" / f"step_{number:07d}.png"
                write_image(file, stack_strips(collector.strips))
                run.writers.picture(number, "val/pictures", file)
            run.writers.scalars(number, scalars, prefix="val")
        run.writers.say(
            f"step {number}: validation mIoU {results['miou'] or 0:.4f} on {results['protocol']['images']} images in "
            f"{results['seconds']:.1f} s"
        )
        if not run.has_evaluations() and (missing := unlabelled(results)):
            run.writers.say(f"note: {missing}")
        return {**results, "step": number}
