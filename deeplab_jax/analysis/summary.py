"""The cost of each stage of a network (parameters, multiply-adds, memory), and the receptive field of its samples."""

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
from deeplab_jax.models.segmenter import Segmenter, Variables

WHOLE_IMAGE = "whole image"


@dataclass(frozen=True)
class Stage:
    """The cost of a stage of a network for one image.

    Attributes:
      name: name as from `stage_of`, or "total".
      parameters: number of trained parameters, without running statistics.
      multiply_adds: those of its convolutions, exact.
      multiply_adds_valid: the same without the taps on padding.
      activation_bytes: all its convolutions' outputs in the model's dtype, the least that a backward pass keeps.
      largest_pair_bytes: the largest input and output of one convolution, the least that inference keeps.
      receptive_field: pixels that a sample of its output depends on, along one side; "whole image" if that grows with
        the image (image pooling); None if the stage has no output of its own, or the network has an operation for which
        it is not known.
      output_stride: pixels of the image per sample of its output; for the total, that of the context.
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
      height: height of the image in pixels.
      width: its width.
      dtype: dtype of the activations.
      stages: one for each stage with parameters or convolutions.
      total: sum of all; its output are the logits.
    """

    model: dict[str, Any]
    height: int
    width: int
    dtype: str
    stages: tuple[Stage, ...]
    total: Stage

    def to_json(self) -> dict[str, Any]:
        """Return the summary as values for JSON."""
        return json.loads(json.dumps(asdict(self)))


def summarize(model: Segmenter, height: int, width: int) -> Summary:
    """Return the cost of each stage of a network for one image; its weights are not needed.

    Args:
      model: from `create_model`.
      height: height of the image in pixels, a size that `model.fitting_side` returns.
      width: its width.

    Raises:
      UserError: the image is too small.
    """
    description = describe(model)
    run = record(model, height, width)
    try:
        fields = _fields(model, run.variables)
    except NotImplementedError:  # An operation from outside; only this column is not known.
        fields = {}
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

    return receptive_fields(maps, variables, fit=model.fitting_side, channels=model.in_channels)
