"""Convolutions as ONNX has them."""

from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.weights.onnx_graph import Graph, Value


def convolution(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """Add a convolution with its strides, rates and groups; its result lies as the node gives it, [N, C, H, W]."""
    (images, kernel), p = values, eqn.params
    lhs, rhs, result = p["dimension_numbers"]
    padding = p["padding"]
    if p["batch_group_count"] != 1 or min(map(min, padding)) < 0:
        raise UserError("a convolution of cropped maps has no form in ONNX here; use --format stablehlo or tflite")
    if any(side != 1 for side in p["lhs_dilation"]):
        return _transposed_convolution(graph, eqn, values)
    name = graph.add(
        "Conv",
        graph.stored(images, lhs, whole=True),
        graph.stored(kernel, rhs, whole=True),
        strides=list(p["window_strides"]),
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
        pads=[low for low, _ in padding] + [high for _, high in padding],
    )
    return graph.result(name, eqn.outvars[0].aval, result)


def _transposed_convolution(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    """A convolution over a map with zeros between its samples, as `ConvTranspose`, which flips the kernel."""
    (images, kernel), p = values, eqn.params
    lhs, (out, into, *sides), result = p["dimension_numbers"]
    plain = kernel.plain
    ones = (*p["window_strides"], *p["rhs_dilation"], p["feature_group_count"])
    if plain is None or any(one != 1 for one in ones):
        raise UserError("this transposed convolution has no form in ONNX here; use --format stablehlo or tflite")
    lengths = [plain.shape[side] for side in sides]
    pads = [length - 1 - pad[end] for end in (0, 1) for length, pad in zip(lengths, p["padding"], strict=True)]
    if min(pads) < 0:
        raise UserError("a padded transposed convolution has no form in ONNX here; use --format stablehlo or tflite")
    flipped = np.flip(plain.transpose(into, out, *sides), (2, 3))
    name = graph.add(
        "ConvTranspose",
        graph.stored(images, lhs, whole=True),
        graph.keep(flipped),
        strides=list(p["lhs_dilation"]),
        pads=pads,
    )
    return graph.result(name, eqn.outvars[0].aval, result)
