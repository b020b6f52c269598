"""KerasHub's DeepLabV3Plus on JAX against ours with the same weights: what a user of JAX would take instead.

Keras is called as its users call it: `predict_on_batch`, `train_on_batch` and `evaluate` of a compiled model. For
times, both sides run in one process and take turns. For the first call and the memory, each has a process of its own.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import convert, load, save
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.preprocessing import IMAGENET, Preprocessing
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.weights.importers.torch_names import RESNETS
from experiments.benchmarks import compilation, memory, networks, pairs, training
from experiments.benchmarks.children import run_child
from experiments.benchmarks.evaluation import RandomPictures
from experiments.benchmarks.inference import LOGITS
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import race, summarize

PACKAGES = ("keras", "keras_hub")
MIOU = 1e-4  # The classes of a few pixels may differ, where two logits are nearly equal.


def measure(session: Session) -> None:
    """Race inference at both output strides, and training and evaluation at 16. Also measure the first call and the
    memory of both sides. Without KerasHub nothing is measured.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        print(f"keras_hub  left out: {', '.join(absent)} not installed: `make peers` installs it", flush=True)
        return
    os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it when it is first imported, which is below.
    encoder, side, batch = ("resnet18", 64, 2) if session.quick else ("resnet50", 512, 2)
    # In training, the heads' epsilons differ: 1e-3 there, 1e-5 here. At output stride 32 that shows in the loss,
    # because the pooled features of two crops differ by so little.
    contests = {
        "inference": (infer, 1, side),
        "training": (train, batch, max(64, side // 2)),
        "evaluation": (assess, 2 * batch, side),
    }
    for what, stride in (("inference", 32), ("inference", 16), ("training", 16), ("evaluation", 16)):
        contest, images, size = contests[what]
        settings = {"encoder": encoder, "output_stride": stride, "side": size, "batch": images}
        name = f"{what}, DeepLabV3Plus {encoder}, OS {stride}, {images}x{size}x{size}, float32"
        session.row("keras_hub", name, settings, partial(contest, session))
        if stride == 16 and what != "evaluation":
            session.row("keras_hub", f"first call and memory, {name}", {**settings, "what": what}, apart)


def make_pair(encoder: str, stride: int, side: int) -> tuple[Any, Segmenter, Variables]:
    """Return KerasHub's network with random weights, and ours converted from its own preset."""
    peer = build(encoder, stage=stride.bit_length() - 1, size=(side, side), classes=networks.CLASSES)
    randomise(peer)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_to_preset(folder)
        model, variables, _ = convert(Path(folder))
    return peer, model, jax.device_get(variables)


def build(
    encoder: str,
    *,
    stage: int,
    size: tuple[int, int],
    classes: int,
    low: int = 2,
    rates: Sequence[int] = (6, 12, 18),
    preprocessor: Any = None,
) -> Any:
    """Return KerasHub's segmenter on a ResNet of `RESNETS`, for images of `size` (height, width).

    The stage below the pyramid has the output stride `2 ** stage`. The published preset has 5; with 4, KerasHub leaves
    out a stage. `low` is the stage of the low-level features. `rates` are the pyramid's, at this output stride.
    """
    import keras_hub

    (units, bottleneck), shape = RESNETS[encoder], (*size, 3)
    image_encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(units),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block" if bottleneck else "basic_block",
        image_shape=shape,
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=image_encoder,
        projection_filters=48,
        low_level_feature_key=f"P{low}",
        spatial_pyramid_pooling_key=f"P{stage}",
        upsampling_size=2 ** (stage - low),
        dilation_rates=list(rates),
        image_shape=shape,
    )
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=classes, preprocessor=preprocessor)


def randomise(peer: Any) -> None:
    """Give a network He-normal kernels, and batch norms whose statistics and affine maps are not the identity."""
    rng = np.random.default_rng(0)
    for variable in peer.weights:
        normal = rng.standard_normal(variable.shape, np.float32)
        kinds = {
            "kernel": normal * (2 / np.prod(variable.shape[:-1])) ** 0.5,
            "gamma": 1 + 0.2 * normal,
            "moving_variance": np.exp(0.3 * normal),
        }
        variable.assign(kinds.get(variable.name, 0.1 * normal))


def infer(session: Session, *, encoder: str, output_stride: int, side: int, batch: int) -> dict[str, Any]:
    """Compare the logits, then the times, of images.

    Raises:
      AssertionError: the logits differ by more than `LOGITS` of the largest.
    """
    peer, model, variables = make_pair(encoder, output_stride, side)
    contestants = {
        "ours": our_call("inference", model, variables, batch, side),
        "KerasHub": their_call("inference", peer, batch, side),
    }
    error = pairs.relative_error(np.asarray(contestants["ours"]()), contestants["KerasHub"]())
    assert error <= LOGITS, f"logits differ by {error:.1e} of the largest"
    return {**summarize(race(contestants, rounds=session.repeats)), "logits_differ": error}


def train(session: Session, *, encoder: str, output_stride: int, side: int, batch: int) -> dict[str, Any]:
    """Compare the first losses, then the times, of steps on one batch. Neither network has dropout.

    Raises:
      AssertionError: the first losses differ by more than `training.LOSS`.
    """
    peer, model, variables = make_pair(encoder, output_stride, side)
    ours = our_call("training", model, variables, batch, side)
    theirs = their_call("training", peer, batch, side, model.preprocessing)
    first = {"ours": float(ours()["loss"]), "KerasHub": theirs()}
    assert abs(first["ours"] - first["KerasHub"]) <= training.LOSS * abs(first["KerasHub"]), f"first losses {first}"
    return {**summarize(race({"ours": ours, "KerasHub": theirs}, rounds=session.repeats)), "first_losses": first}


def assess(session: Session, *, encoder: str, output_stride: int, side: int, batch: int) -> dict[str, Any]:
    """Compare the mIoU, then the times, of the evaluation of images in memory, one at a time.

    Raises:
      AssertionError: the mIoU differs by more than `MIOU`.
    """
    import keras

    peer, model, variables = make_pair(encoder, output_stride, side)
    source = RandomPictures(((side, side),) * batch)
    examples = [source[index] for index in range(batch)]
    images = np.concatenate([model.preprocessing(jnp.asarray(one["image"])[None]) for one in examples])
    labels = np.stack([one["label"] for one in examples])[..., None]
    peer.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.MeanIoU(networks.CLASSES, sparse_y_pred=False, name="miou")],
    )
    folded, folded_variables = fold_norm(model, jax.device_put(variables))
    contestants = {
        "ours": lambda: evaluate(folded, folded_variables, source, Protocol(mode="exact"))["miou"],
        "KerasHub": lambda: peer.evaluate(images, labels, batch_size=1, verbose=0, return_dict=True)["miou"],
    }
    mious = {who: float(call()) for who, call in contestants.items()}
    assert abs(mious["ours"] - mious["KerasHub"]) <= MIOU, f"mIoU {mious}"
    return {**summarize(race(contestants, rounds=session.repeats)), "miou": mious}


def apart(*, what: str, encoder: str, output_stride: int, side: int, batch: int) -> dict[str, Any]:
    """Return what `child` returns for both sides, each in a new process that loads its network from a file."""
    peer, model, variables = make_pair(encoder, output_stride, side)
    with tempfile.TemporaryDirectory() as folder:
        files = {who: str(Path(folder, who)) for who in ("ours", "KerasHub")}
        save(files["ours"], model, variables, {})
        peer.save_to_preset(files["KerasHub"])
        return {
            who: run_child("keras_hub", what=what, who=who, folder=file, batch=batch, side=side)
            for who, file in files.items()
        }


def child(what: str, who: str, folder: str, batch: int, side: int) -> dict[str, Any]:
    """Load a network in this process and call it twice, without any cache of programs.

    Returns:
      `first_call`, the seconds until the first result, loading included, and `peak_running`, the peak of memory in MiB
      during the second call, counted from the memory after the imports; None where the system does not tell.
    """
    if who == "KerasHub":
        os.environ["KERAS_BACKEND"] = "jax"
        import keras_hub
    compilation.use_cache("")
    jax.devices()
    before, began = memory.resident_peak(), time.perf_counter()
    if who == "KerasHub":
        peer = keras_hub.models.DeepLabV3ImageSegmenter.from_preset(folder)
        call = their_call(what, peer, batch, side)
    else:
        model, variables, _ = load(folder)
        call = our_call(what, model, variables, batch, side)
    call()
    first = time.perf_counter() - began
    return {"first_call": round(first, 2), "peak_running": memory.running_peak(call, before)}


def our_call(what: str, model: Segmenter, variables: Variables, batch: int, side: int) -> Callable[[], Any]:
    """Return what computes the logits of images, or what does a training step on one batch."""
    if what == "training":
        return training.stepper(*networks.training(model, variables), networks.random_examples(batch, side))
    apply, variables = networks.inference(model, variables)
    inputs = jax.device_put(networks.random_images(batch, side))
    return lambda: jax.block_until_ready(apply(variables, inputs))


def their_call(
    what: str, peer: Any, batch: int, side: int, preprocessing: Preprocessing = IMAGENET
) -> Callable[[], Any]:
    """Return the same of KerasHub's network; a training step returns its loss. `preprocessing` makes its images."""
    if what == "inference":
        images = networks.random_images(batch, side)
        return lambda: peer.predict_on_batch(images)
    import keras

    examples = networks.random_examples(batch, side)
    images = np.asarray(preprocessing(jnp.asarray(examples["image"])))
    labels = examples["label"][..., None]
    # Keras decays its weights apart from the gradient, and multiplies by one minus the rate times the decay.
    optimizer = keras.optimizers.SGD(networks.LEARNING_RATE, networks.MOMENTUM, weight_decay=networks.WEIGHT_DECAY)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255, reduction="mean_with_sample_weight"
    )
    peer.compile(optimizer=optimizer, loss=loss, metrics=None)
    return lambda: float(np.ravel(peer.train_on_batch(images, labels))[0])
