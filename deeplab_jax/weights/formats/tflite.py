"""`.tflite` files of DeepLab: their convolutions' weights under the names in the checkpoint of the same network.

Batch norms are folded in such a file, so every convolution has a bias. The names do not say how the graph pads, resizes
and strides, so this is compared with the importer's network.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tflite

from deeplab_jax.errors import DamagedFile, UserError

IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of such a file."""
CONV, DEPTHWISE, RESIZE = (
    tflite.BuiltinOperator.CONV_2D,
    tflite.BuiltinOperator.DEPTHWISE_CONV_2D,
    tflite.BuiltinOperator.RESIZE_BILINEAR,
)
OPTIONS = {CONV: tflite.Conv2DOptions, DEPTHWISE: tflite.DepthwiseConv2DOptions, RESIZE: tflite.ResizeBilinearOptions}
# The errors of the accessors if offsets lead out of the file.
DAMAGE = (
    struct.error,
    IndexError,
    ValueError,
    TypeError,
    OverflowError,
    AttributeError,
    UnicodeDecodeError,
    MemoryError,
)
# Operators of a float DeepLab; any other one means another network or a quantised one.
KNOWN = {
    "CONV_2D", "DEPTHWISE_CONV_2D", "RESIZE_BILINEAR", "ADD", "AVERAGE_POOL_2D", "MEAN", "CONCATENATION", "RESHAPE",
    "SOFTMAX", "ARG_MAX",
}  # fmt: skip
NAMES = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}


class Operator(NamedTuple):
    """An operator of the graph that matters here: its code, its options and its constant inputs' indices."""

    code: int
    options: Any
    inputs: tuple[int, ...]


class Graph(NamedTuple):
    """The content of a file.

    Attributes:
      tensors: name to float32 array, in the layout of a TensorFlow checkpoint.
      output_stride: input pixels per sample of the map from which the logits are computed.
    """

    tensors: dict[str, np.ndarray]
    output_stride: int


def read_tflite(path: Path) -> Graph:
    """Return the content of a float `.tflite` file.

    Raises:
      OSError: it cannot be read.
      UserError: a damaged file, a quantised network, or a graph that pads or resizes differently from DeepLab's.
    """
    content = path.read_bytes()
    try:
        return _read(content, path)
    except UserError:
        raise
    except DAMAGE as error:
        raise DamagedFile(f"{path}: a damaged .tflite file ({type(error).__name__}: {error}); fetch it again") from None


def _read(content: bytes, path: Path) -> Graph:
    model = tflite.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    tensors: dict[str, np.ndarray] = {}
    stride = 1
    for operator in _operators(model, graph, path):
        options = operator.options
        if operator.code == RESIZE:
            if not options.AlignCorners() or options.HalfPixelCenters():
                raise UserError(
                    f"{path}: resizes without aligned corners, which DeepLab's files never do; not converted"
                )
            continue
        if options.Padding() != tflite.Padding.SAME:
            raise UserError(
                f"{path}: a convolution without SAME padding, which DeepLab's files never have; not converted"
            )
        stride *= options.StrideH()
        weights = _constant(model, graph, operator.inputs[1], path)
        name = _name(graph, operator.inputs[1])
        # [out, h, w, in] here; a depthwise kernel is [1, h, w, channels], and in a checkpoint [h, w, channels, 1].
        _put(tensors, name, weights.transpose(1, 2, 3, 0), path)
        _put(tensors, name.rsplit("/", 1)[0] + "/biases", _constant(model, graph, operator.inputs[2], path), path)
    if not tensors:
        raise UserError(f"{path}: holds no convolutions; it is no segmentation network")
    return Graph(tensors, stride)


def _operators(model: Any, graph: Any, path: Path) -> Iterator[Operator]:
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        opcode = model.OperatorCodes(operator.OpcodeIndex())
        # Older writers fill one field, newer ones fill both.
        code = max(opcode.BuiltinCode(), opcode.DeprecatedBuiltinCode())
        if NAMES.get(code) not in KNOWN:
            raise UserError(
                f"{path}: has the operator {NAMES.get(code, code)}, which float DeepLab networks lack; a quantised "
                "file cannot be converted, take the float one"
            )
        if code in OPTIONS:
            table = operator.BuiltinOptions()
            options = OPTIONS[code]()
            options.Init(table.Bytes, table.Pos)
            yield Operator(code, options, tuple(operator.Inputs(j) for j in range(operator.InputsLength())))


def _name(graph: Any, index: int) -> str:
    return str(graph.Tensors(index).Name().decode("utf-8"))


def _constant(model: Any, graph: Any, index: int, path: Path) -> np.ndarray:
    tensor = graph.Tensors(index)
    if tensor.Type() != tflite.TensorType.FLOAT32:
        raise UserError(
            f"{path}: {_name(graph, index)} is not float32; a quantised file cannot be converted, take the float one"
        )
    shape = tuple(int(side) for side in tensor.ShapeAsNumpy())
    data = model.Buffers(tensor.Buffer()).DataAsNumpy()
    # A view of the file's own bytes, so a declared shape takes no more memory.
    return np.frombuffer(data.tobytes(), "<f4").reshape(shape)


def _put(tensors: dict[str, np.ndarray], name: str, value: np.ndarray, path: Path) -> None:
    if name in tensors:
        raise UserError(f"{path}: two convolutions are called {name}; it is no DeepLab network")
    tensors[name] = value
