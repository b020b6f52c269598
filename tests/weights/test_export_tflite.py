"""LiteRT: the file that TensorFlow's converter writes computes what the model computes."""

import io
import json
import zipfile
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights.export import Signature
from deeplab_jax.weights.export_tflite import export_tflite
from tests.support.traces import fill_variables

SIZE = (49, 65)


@pytest.fixture(scope="module")
def made() -> Any:
    options: dict[str, Any] = {"width": 0.25, "aspp_channels": 8, "low_level_channels": 8, "decoder_convs": ((3, 8),)}
    model = create_model("deeplabv3plus_mobilenet_v2", num_classes=5, output_stride=16, **options)
    return model, fill_variables(model, 1, 65, 65, 3)


def calibration(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(n).uniform(0, 255, (*SIZE, 3)).astype(np.float32) for n in range(count)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"signature": Signature(size=None)},
            "tflite: the size of the images has to be fixed; give it, such as --size 513x513",
        ),
        (
            {"signature": Signature(size=SIZE), "precision": "int8"},
            "--precision int8: needs images .* give --calibration FOLDER",
        ),
        (
            {"signature": Signature(size=SIZE), "calibration": calibration(1)},
            "--calibration: only int8 takes it; add --precision int8",
        ),
        (
            {"signature": Signature(size=SIZE), "precision": "bfloat16"},
            "precision='bfloat16': tflite is written in float32, float16, int8",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_before_it_starts(made: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_tflite(*made, **options)


@pytest.fixture
def interpreter() -> Any:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install tensorflow-cpu")
    return pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed: `make peers` installs it")


def run(interpreter: Any, content: bytes, images: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
    runner = interpreter.Interpreter(model_content=content)
    runner.allocate_tensors()
    (taken,), (returned,) = runner.get_input_details(), runner.get_output_details()
    assert tuple(taken["shape"]) == images.shape and taken["dtype"] == images.dtype
    runner.set_tensor(taken["index"], images)
    runner.invoke()
    return runner.get_tensor(returned["index"]), Counter(each["op_name"] for each in runner._get_ops_details())


def expected_logits(made: Any, images: Any) -> np.ndarray:
    model, variables = made
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-5), ("float16", 5e-3), ("int8", 0.1)])
def test_logits(made: Any, interpreter: Any, precision: str, bound: float) -> None:
    images = calibration(4) if precision == "int8" else []
    content, said = export_tflite(*made, Signature(size=SIZE, batch=2), precision=precision, calibration=images)
    found_out = "100.00% of the 97% whose class leads" if precision == "int8" else "the logits differ by at most "
    assert said.startswith("compared in LiteRT, on batches of 2, 2 images: ") and found_out in said
    prepared = np.asarray(made[0].preprocessing(jnp.asarray(np.stack(calibration(2)))), np.float32)
    found, operations = run(interpreter, content, prepared)
    expected = expected_logits(made, prepared)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    # Atrous and depthwise convolutions stay what they are, without a detour over space and batch.
    assert operations["DEPTHWISE_CONV_2D"] == 17 and not operations["SPACE_TO_BATCH_ND"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_preprocessing_and_argmax_move_inside(made: Any, interpreter: Any, precision: str) -> None:
    images = calibration(2) if precision == "int8" else []
    content, said = export_tflite(
        *made, Signature(size=SIZE, preprocess=True, argmax=True), precision=precision, calibration=images
    )
    assert f"of the pixels have {'the same' if precision == 'int8' else 'another'} class" in said
    stored = calibration(1)[0].round().astype(np.uint8)[None]
    found, _ = run(interpreter, content, stored)
    expected = expected_logits(made, made[0].preprocessing(jnp.asarray(stored))).argmax(-1)
    assert found.dtype == np.uint8 and len(np.unique(expected)) > 1
    assert np.mean(found == expected) >= (0.999 if precision == "float32" else 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "deeplabv3plus_resnet18", "deeplabv3_resnet50"])
def test_networks(interpreter: Any, name: str) -> None:
    from tests.models.test_every_name import thin

    model = create_model(name, num_classes=3, output_stride=16, **thin(name))
    content, _ = export_tflite(model, fill_variables(model, 1, 65, 65, 3), Signature(size=SIZE))
    assert content[4:8] == b"TFL3"
    metadata = json.loads(zipfile.ZipFile(io.BytesIO(content)).read("metadata.json"))
    assert metadata["input"]["shape"] == [1, *SIZE, 3] and metadata["precision"] == "float32"
