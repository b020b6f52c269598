"""Export for ONNX runtimes. The file is run and compared with the model before it is handed out."""

import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import UserError, optional
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.weights.check_export import check, images_like, in_float32
from deeplab_jax.weights.export import Signature, exported_function, size_flag
from deeplab_jax.weights.onnx_graph import INPUT, IR_VERSION, OPSET, Graph, convert, trace
from deeplab_jax.weights.onnx_operations import OPERATIONS, element_type

PRECISIONS = ("float32", "float16")
METADATA = "deeplab_jax"


def export_onnx(
    model: Segmenter,
    variables: Mapping[str, Any],
    signature: Signature,
    *,
    precision: str = "float32",
    info: Mapping[str, Any] | None = None,
) -> tuple[bytes, str]:
    """Return a network as an ONNX file, and a sentence on how far onnxruntime's results differ from ours.

    It is the function of `export_stablehlo`: images [N, H, W, channels] to logits or class ids. Atrous convolutions are
    `Conv` with dilations, bilinear resizes are products with their matrices. The metadata is JSON under `METADATA`.

    Args:
      model, variables, info: from `load`.
      signature: what goes in and comes out; its size is fixed.
      precision: "float16" halves the file; images and logits stay float32, and what is between them is float16.

    Raises:
      UserError: a package that is missing, no size, a network with operations that have no form here, or results that
        differ by more than the bound of `check_export`.
    """
    if signature.size is None:
        raise UserError(f"onnx: the size of the images has to be fixed; give it, such as {size_flag(model)}")
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r}: onnx is written in {' or '.join(PRECISIONS)}; tflite also in int8")
    onnx, onnxruntime = _packages()
    function, images, metadata = exported_function(in_float32(model, direct=True), variables, signature, info=info)
    made = to_onnx(function, images, name=describe(model)["name"], output=metadata["output"]["name"])
    if precision == "float16":
        made = _halved(made)
    onnx.helper.set_model_props(made, {METADATA: json.dumps({**metadata, "precision": precision})})
    onnx.checker.check_model(made, full_check=True)
    content = made.SerializeToString(deterministic=True)
    counts = (signature.batch,) if signature.batch else (1, 3)
    inputs = [images_like(images, model, batch=count, preprocess=signature.preprocess) for count in counts]
    reference = exported_function(in_float32(model), variables, signature, fold=False)[0]
    said = check(
        runner(content),
        jax.jit(reference),
        inputs,
        precision=precision,
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )
    return content, said


def runner(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs an ONNX file of this module in onnxruntime, on CPUs."""
    _, onnxruntime = _packages()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors, but not what it cannot simplify.
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(array: np.ndarray) -> np.ndarray:
        result: np.ndarray = session.run(None, {INPUT: array})[0]
        return result

    return run


def to_onnx(function: Any, images: jax.ShapeDtypeStruct, *, name: str, output: str) -> Any:
    """Return a function of images as an ONNX model; `name` is that of the network, for messages."""
    from onnx import helper

    traced = trace(function, images, OPERATIONS, name)
    graph = Graph()
    (result,) = convert(graph, traced, [graph.result(INPUT, images)], OPERATIONS)
    graph.nodes.append(helper.make_node("Identity", [graph.stored(result, whole=True)], [output]))
    described = [
        helper.make_tensor_value_info(name, element_type(array.dtype), [_side(side) for side in array.shape])
        for name, array in ((INPUT, images), (output, traced.out_avals[0]))
    ]
    return helper.make_model(
        helper.make_graph(graph.nodes, "deeplab_jax", described[:1], described[1:], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="deeplab_jax",
    )


def _packages() -> list[ModuleType]:
    return optional("--format onnx", "onnx", "onnxruntime", install="onnx onnxruntime")


def _side(side: Any) -> int | str:
    return side if isinstance(side, int) else str(side)


def _halved(made: Any) -> Any:
    """Return the graph with float16 inside."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    halved = OnnxModel(convert_float_to_float16(made, keep_io_types=True))
    halved.topological_sort()  # The casts of the inputs stand at the end.
    return halved.model
