"""`.tflite` files: a small one made here with the schema's own writers, damaged copies of it, and the official one."""

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import tflite

from deeplab_jax.errors import UserError
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.formats.tflite import read_tflite
from tests.weights.formats.mutations import mutated

OFFICIAL = Path(__file__).parents[4] / "shared" / "weights" / "deeplabv3_257_mv_gpu.tflite"
needs_official = pytest.mark.skipif(not OFFICIAL.is_file(), reason=f"{OFFICIAL.name} is not here")


def write_tflite(
    *, quantised=False, padding=tflite.Padding.SAME, align_corners=True, names=("Conv/weights", "Depthwise/weights")
):
    """A convolution 3x3 of stride 2 from 3 to 4 channels, a depthwise one, and a resize; weights count up from 0."""
    builder = flatbuffers.Builder(4096)
    shapes = [(4, 3, 3, 3), (4,), (1, 3, 3, 4), (4,)]
    buffers = [b""] + [np.arange(np.prod(shape), dtype="<f4").tobytes() for shape in shapes]
    kind = tflite.TensorType.UINT8 if quantised else tflite.TensorType.FLOAT32

    def offsets(start, items):
        start(builder, len(items))
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    def table(start, fields):
        start(builder)
        for add, value in fields:
            add(builder, value)
        return builder.EndObject()

    tensors = [("image", (1, 33, 33, 3), 0), (names[0], shapes[0], 1), ("Conv/Conv2D_bias", shapes[1], 2)]
    tensors += [(names[1], shapes[2], 3), ("depthwise_bias", shapes[3], 4), ("logits", (1, 33, 33, 4), 0)]
    made = []
    for name, shape, buffer in tensors:
        text, vector = builder.CreateString(name), builder.CreateNumpyVector(np.asarray(shape, np.int32))
        made.append(
            table(
                tflite.TensorStart,
                [
                    (tflite.TensorAddName, text),
                    (tflite.TensorAddShape, vector),
                    (tflite.TensorAddType, kind),
                    (tflite.TensorAddBuffer, buffer),
                ],
            )
        )
    tensor_vector = offsets(tflite.SubGraphStartTensorsVector, made)
    conv = table(
        tflite.Conv2DOptionsStart,
        [
            (tflite.Conv2DOptionsAddPadding, padding),
            (tflite.Conv2DOptionsAddStrideH, 2),
            (tflite.Conv2DOptionsAddStrideW, 2),
        ],
    )
    depthwise = table(
        tflite.DepthwiseConv2DOptionsStart,
        [(tflite.DepthwiseConv2DOptionsAddPadding, padding), (tflite.DepthwiseConv2DOptionsAddStrideH, 1)],
    )
    resize = table(tflite.ResizeBilinearOptionsStart, [(tflite.ResizeBilinearOptionsAddAlignCorners, align_corners)])
    operators = []
    for index, (options, inputs) in enumerate([(conv, (0, 1, 2)), (depthwise, (0, 3, 4)), (resize, (0, 0))]):
        vector = builder.CreateNumpyVector(np.asarray(inputs, np.int32))
        operators.append(
            table(
                tflite.OperatorStart,
                [
                    (tflite.OperatorAddOpcodeIndex, index),
                    (tflite.OperatorAddInputs, vector),
                    (tflite.OperatorAddBuiltinOptions, options),
                ],
            )
        )
    operator_vector = offsets(tflite.SubGraphStartOperatorsVector, operators)
    graph = table(
        tflite.SubGraphStart,
        [(tflite.SubGraphAddTensors, tensor_vector), (tflite.SubGraphAddOperators, operator_vector)],
    )
    graphs = offsets(tflite.ModelStartSubgraphsVector, [graph])
    ops = tflite.BuiltinOperator
    codes = offsets(
        tflite.ModelStartOperatorCodesVector,
        [
            table(tflite.OperatorCodeStart, [(tflite.OperatorCodeAddDeprecatedBuiltinCode, code)])
            for code in (ops.CONV_2D, ops.DEPTHWISE_CONV_2D, ops.RESIZE_BILINEAR)
        ],
    )
    datas = [builder.CreateByteVector(buffer) for buffer in buffers]
    buffer_vector = offsets(
        tflite.ModelStartBuffersVector, [table(tflite.BufferStart, [(tflite.BufferAddData, data)]) for data in datas]
    )
    model = table(
        tflite.ModelStart,
        [
            (tflite.ModelAddSubgraphs, graphs),
            (tflite.ModelAddOperatorCodes, codes),
            (tflite.ModelAddBuffers, buffer_vector),
        ],
    )
    builder.Finish(model, b"TFL3")
    return bytes(builder.Output())


def test_names_layout_and_stride(tmp_path) -> None:
    path = tmp_path / "anything"
    path.write_bytes(write_tflite())
    tensors, output_stride = read_tflite(path)
    assert output_stride == 2
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "Conv/weights": (3, 3, 3, 4),
        "Conv/biases": (4,),
        "Depthwise/weights": (3, 3, 4, 1),
        "Depthwise/biases": (4,),
    }
    kernel = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)
    np.testing.assert_array_equal(tensors["Conv/weights"][1, 2, 0, 3], kernel[3, 1, 2, 0])
    np.testing.assert_array_equal(tensors["Depthwise/weights"][..., 0].ravel(), np.arange(36))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantised": True}, "Conv/weights is not float32; .* take the float one"),
        ({"padding": tflite.Padding.VALID}, "without SAME padding"),
        ({"align_corners": False}, "without aligned corners"),
        ({"names": ("Conv/weights", "Conv/weights")}, "two convolutions are called Conv/weights"),
    ],
)
def test_graphs_of_another_kind_are_user_errors(tmp_path, options, message) -> None:
    path = tmp_path / "graph.tflite"
    path.write_bytes(write_tflite(**options))
    with pytest.raises(UserError, match=message):
        read_tflite(path)


def test_another_network_is_not_recognised(tmp_path) -> None:
    path = tmp_path / "graph.tflite"
    path.write_bytes(write_tflite())
    with pytest.raises(UserError, match="graph.tflite: its 4 tensors .* belong to no network"):
        convert(path)


def test_damaged_files_end_in_one_line(tmp_path) -> None:
    good = write_tflite()
    path = tmp_path / "damaged.tflite"
    refused = 0
    for content in mutated(good, count=3000, seed=0):
        path.write_bytes(content)
        try:
            tensors, _ = read_tflite(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert sum(tensor.nbytes for tensor in tensors.values()) <= 4 * len(content)
    assert refused > 1000


@needs_official
def test_the_official_network() -> None:
    model, _, info = convert(OFFICIAL)
    assert (model.num_classes, model.output_stride, model.backbone.width) == (21, 8, 0.5)
    assert model.preprocessing.value_range == (-1.0, 1.0)
    assert info["class_names"][1] == "aeroplane"
    assert info["source"]["tensors"] == 110
    assert info["source"]["unused"] == info["source"]["random"] == []
