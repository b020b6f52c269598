"""What each stage of a network costs: parameters, multiply-adds, memory, and what its samples see of the image."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from deeplab_jax.analysis.cost import Watcher, count, record, stage_of
from deeplab_jax.analysis.receptive_field import Field, receptive_fields
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.layers import change_settings
from deeplab_jax.models.segmenter import Segmenter, Variables

WHOLE_IMAGE = "whole image"


@dataclass(frozen=True)
class Stage:
    """What a stage of a network costs for one image.

    Attributes:
      name: as `stage_of`, or "total".
      parameters: that are trained; running statistics are not among them.
      multiply_adds: of its convolutions, exact.
      multiply_adds_valid: without the taps that fall on padding.
      activation_bytes: of all its convolutions' outputs in the model's dtype, which a backward pass keeps at least.
      largest_pair_bytes: the largest input and output of one convolution, which inference holds at least.
      receptive_field: pixels that a sample of its output depends on, along one side; "whole image" where that grows
        with the image (image pooling); None where the stage has no output of its own.
      output_stride: pixels of the image per sample of its output; in all, that of the context.
      output_shape: [N, h, w, C] for one image. With an image pyramid, that of the first scale.
    """

    name: str
    parameters: int
    multiply_adds: int
    multiply_adds_valid: int
    activation_bytes: int
    largest_pair_bytes: int
    receptive_field: int | str | None
    output_stride: int | None
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Summary:
    """The stages of a network, in the order in which they run, and the sum.

    Attributes:
      model: name, class count, output stride and options, as `describe` gives them.
      height: of the image in pixels.
      width: likewise.
      dtype: of the activations.
      stages: one for each stage that has parameters or convolutions.
      total: of all; its output are the logits.
    """

    model: dict[str, Any]
    height: int
    width: int
    dtype: str
    stages: tuple[Stage, ...]
    total: Stage

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return json.loads(json.dumps(asdict(self)))


def summarize(model: Segmenter, height: int, width: int) -> Summary:
    """Count what each stage of a network costs for one image; its weights are not needed.

    Args:
      model: from `create_model`.
      height: of the image in pixels, a size that `model.fitting_side` returns.
      width: likewise.

    Raises:
      UserError: the image is too small.
    """
    description = describe(model)
    # With this lowering one convolution is one operation of the program; the counts are those of any.
    direct = change_settings(model, lambda settings: replace(settings, lowering="direct"))
    run = record(direct, height, width)
    fields = _fields(direct, run.variables)
    parameters = {path: prod(leaf.shape) for path, leaf in flatten_dict(run.variables["params"]).items()}
    dtype = jnp.dtype(model.settings.dtype)

    def stage(name: str, output: str, included: Sequence[str]) -> Stage:
        calls = [call for call in run.calls if stage_of(call.layer.split("/")) in included]
        sizes = [(prod(call.convolution.inputs), prod(call.convolution.outputs)) for call in calls]
        field = fields.get(output)
        return Stage(
            name,
            sum(size for path, size in parameters.items() if stage_of(path) in included),
            count(calls).total,
            count(calls, counting="valid").total,
            dtype.itemsize * sum(outputs for _, outputs in sizes),
            dtype.itemsize * max((inputs + outputs for inputs, outputs in sizes), default=0),
            None if field is None else field.pixels or WHOLE_IMAGE,
            None if field is None else field.stride,
            run.shapes.get(output),
        )

    stages = [stage(name, name, (name,)) for name in run.stages]
    total = replace(stage("total", "logits", run.stages), output_stride=model.output_stride)
    kept = tuple(entry for entry in stages if entry.parameters or entry.multiply_adds)
    return Summary(description, height, width, dtype.name, kept, total)


def _fields(model: Segmenter, variables: Variables) -> dict[str, Field]:
    def maps(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        watcher = Watcher()
        with watcher.watch():
            logits = model.apply(variables, images, train=False)
        return {**watcher.outputs, "logits": jnp.asarray(logits)}

    return receptive_fields(maps, variables, fit=model.fitting_side)
