"""Export for LiteRT (TensorFlow Lite). The file is run and compared with the model before it is handed out."""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import UserError, in_one_line, optional
from deeplab_jax.models.decision import THRESHOLD
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.weights.check_export import check, check_int8, images_like, in_float32
from deeplab_jax.weights.export import METADATA_FILE, Signature, exported_function, pack, size_flag

PRECISIONS = ("float32", "float16", "int8")
MOST_CHECKED = 4  # Batches that are compared.


def export_tflite(
    model: Segmenter,
    variables: Mapping[str, Any],
    signature: Signature,
    *,
    precision: str = "float32",
    calibration: Sequence[np.ndarray] = (),
    info: Mapping[str, Any] | None = None,
    refuse: bool = True,
) -> tuple[bytes, str]:
    """Return a network as a `.tflite` file, and a sentence on how far LiteRT's results differ from ours.

    It is the function of `export_stablehlo`: images [N, H, W, channels] to logits or class ids. TensorFlow converts it.
    The metadata is appended to the file as a zip file of one entry, `METADATA_FILE`, where TensorFlow Lite has it.

    Args:
      model, variables, info: from `load`.
      signature: what goes in and comes out; its size is fixed. Its batch is 1 if it is None: the converter has no free
        batch.
      precision: of the weights; "int8" is of the activations, too. Images and logits have the types of float32.
      calibration: for "int8": images `[H, W, channels]` of that size, of 0 to 255, which show the range of activations.
      refuse: of "int8": see `check_int8`.

    Raises:
      UserError: a package that is missing, no size, no images to calibrate with, a network that the converter refuses,
        or results that differ by more than the bound of `check_export`.
    """
    if signature.size is None:
        raise UserError(f"tflite: the size of the images has to be fixed; give it, such as {size_flag(model)}")
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r}: tflite is written in {', '.join(PRECISIONS)}")
    if precision == "int8" and not len(calibration):
        raise UserError("--precision int8: needs images such as the network will see; give --calibration FOLDER")
    if precision != "int8" and len(calibration):
        raise UserError("--calibration: only int8 takes it; add --precision int8, or leave it out")
    tensorflow, _ = _packages()
    batch, preprocess = 1 if signature.batch is None else signature.batch, signature.preprocess
    signature = replace(signature, batch=batch)
    function, images, metadata = exported_function(in_float32(model, direct=True), variables, signature, info=info)
    inputs = _batches(model, calibration, batch, preprocess=preprocess)
    content = _converted(tensorflow, function, images, metadata, precision, inputs)
    content += pack({METADATA_FILE: json.dumps({**metadata, "precision": precision}, indent=1).encode()})
    run, own = runner(content), partial(exported_function, in_float32(model), variables, fold=False)
    if precision == "int8":
        logits = jax.jit(own(replace(signature, argmax=False, threshold=THRESHOLD))[0])
        how = {"returns": np.dtype(metadata["output"]["dtype"]), "model": model, "threshold": signature.threshold}
        return content, check_int8(run, logits, inputs[:MOST_CHECKED], **how, runtime="LiteRT", refuse=refuse)
    random = [images_like(images, model, batch=batch, preprocess=preprocess, seed=seed) for seed in range(2)]
    return content, check(run, jax.jit(own(signature)[0]), random, precision=precision, runtime="LiteRT")


def runner(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a `.tflite` file of one input and one output in LiteRT."""
    _, interpreter = _packages()
    with _quiet():
        runtime = interpreter.Interpreter(model_content=content, num_threads=os.cpu_count())
        runtime.allocate_tensors()
    (taken,), (returned,) = runtime.get_input_details(), runtime.get_output_details()

    def run(array: np.ndarray) -> np.ndarray:
        runtime.set_tensor(taken["index"], array)
        runtime.invoke()
        result: np.ndarray = runtime.get_tensor(returned["index"])
        return result

    return run


def _packages() -> list[ModuleType]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # It is read at the import.
    modules = "tensorflow", "ai_edge_litert.interpreter"
    with _quiet():
        return optional("--format tflite", *modules, install="tensorflow-cpu ai-edge-litert")


def _batches(model: Segmenter, images: Sequence[np.ndarray], batch: int, *, preprocess: bool) -> list[np.ndarray]:
    """Return batches of images as the function takes them; the first images fill up the last batch."""
    count = -(-len(images) // batch) * batch
    levels = [np.stack([images[i % len(images)] for i in range(n, n + batch)]) for n in range(0, count, batch)]
    if not preprocess:
        return [np.asarray(model.preprocessing(jnp.asarray(array)), np.float32) for array in levels]
    if stored := model.preprocessing.stored_range:
        return [np.asarray(array * ((stored[1] - stored[0]) / 255.0) + stored[0], np.float32) for array in levels]
    return [array.round().astype(np.uint8) for array in levels]


def _converted(
    tensorflow: Any,
    function: Any,
    images: jax.ShapeDtypeStruct,
    metadata: Mapping[str, Any],
    precision: str,
    inputs: Sequence[np.ndarray],
) -> bytes:
    from jax.experimental import jax2tf

    lite = tensorflow.lite
    signature = tensorflow.TensorSpec(images.shape, images.dtype.name, name=metadata["input"]["name"])
    converted = jax2tf.convert(function, native_serialization_platforms=("cpu",))
    output = metadata["output"]["name"]
    call = tensorflow.function(lambda images: {output: converted(images)}, autograph=False, input_signature=[signature])
    converter = lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], tensorflow.Module())
    if precision != "float32":
        converter.optimizations = [lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tensorflow.float16]
    try:
        with _quiet():
            if precision == "int8":
                return _in_whole_numbers(lite, converter, inputs)
            content: bytes = converter.convert()
            return content
    except Exception as error:  # Its own errors, and those of MLIR, have no common class.
        raise UserError(f"tflite: TensorFlow's converter refuses this network: {in_one_line(error)}") from None


def _in_whole_numbers(lite: Any, converter: Any, inputs: Sequence[np.ndarray]) -> bytes:
    """Convert to int8, except for the products by which resizes interpolate rows: LiteRT returns zeros for them."""
    converter.representative_dataset = lambda: ([array] for array in inputs)
    options = lite.experimental.QuantizationDebugOptions(denylisted_ops=["BATCH_MATMUL"])
    quantizer = lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
    )
    content: bytes = quantizer.get_nondebug_quantized_model()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what TensorFlow writes to the terminal from it, and its warnings about its own parts."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
