"""The input pipeline alone, and how long training waits for it."""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from deeplab_jax import config_keys
from deeplab_jax.config import base
from deeplab_jax.data.augment import augment
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.images import read_image, read_mask, write_mask
from deeplab_jax.data.loader import training_batches
from deeplab_jax.data.source import PairSource
from deeplab_jax.labels import colormap, to_class_ids
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.tasks.training import train
from deeplab_jax.train.record import RECORD_FILE, records
from experiments.benchmarks import machine, networks
from experiments.benchmarks.children import run_child
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import significant, statistics

SIZE = (375, 500)  # Height and width of most images of PASCAL VOC.
IMAGES, QUICK_IMAGES = 64, 8
VALIDATION = 2
JPEG_QUALITY = 90
BATCH = 8
BATCHES = 16  # in one sample
CLASS_NAMES = tuple(f"class {k}" for k in range(networks.CLASSES))
WAIT_STEPS, QUICK_WAIT_STEPS = 30, 4


def measure(session: Session) -> None:
    """Measure images per second on one core and on all, the stages, and the waiting."""
    images = QUICK_IMAGES if session.quick else IMAGES
    one = [min(os.sched_getaffinity(0))]
    common = {"images": images, "batches": 1 if session.quick else BATCHES, "rounds": session.repeats}
    with tempfile.TemporaryDirectory() as folder:
        kilobytes = write_images(Path(folder), images)
        for name, task, threads, on in (
            ("one core", "throughput", 1, one),
            (f"{machine.cores()} cores", "throughput", machine.cores(), None),
            ("stages on one core", "stages", 1, one),
            ("waiting", "waiting", base().data.threads, None),
        ):
            settings = {"task": task, **common, "threads": threads, "size": SIZE, "quality": JPEG_QUALITY}
            if task == "waiting":
                settings |= waiting_settings(session)
            session.row("pipeline", name, settings, partial(_in_child, kilobytes, on=on, folder=folder))


def write_images(folder: Path, count: int) -> float:
    """Write photo-like images and masks of regions in the folder layout; return the mean size of the JPEGs in kB."""
    rng = np.random.default_rng(0)
    sizes = []
    for split, number in (("train", count), ("val", VALIDATION)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(number):
            photo = folder / "images" / split / f"{index}.jpg"
            Image.fromarray(photo_like(rng)).save(photo, quality=JPEG_QUALITY)
            write_mask(folder / "masks" / split / f"{index}.png", regions(rng), colormap(networks.CLASSES))
            sizes.append(photo.stat().st_size / 1000)
    return float(np.mean(sizes))


def photo_like(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return noise whose amplitude falls with its frequency as in photographs, uint8 `[H, W, 3]`."""
    height, width = size
    total: np.ndarray = np.zeros((height, width, 3), np.float32)
    for octave in range(8):
        cells = 2**octave + 2
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        # Photographs vary less in colour than in brightness.
        coarse = 0.3 * coarse + coarse.mean(axis=-1, keepdims=True)
        total = total + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 48 / 2 ** (0.6 * octave)
    total += 4 * rng.standard_normal((height, width, 1)).astype(np.float32)
    return np.clip(total + 118, 0, 255).astype(np.uint8)


def regions(rng: np.random.Generator) -> np.ndarray:
    """Return a few smooth regions of classes with outlines of 255, uint8 `[H, W]`."""
    height, width = SIZE
    logits = rng.standard_normal((5, 7, networks.CLASSES)).astype(np.float32)
    logits[..., 0] += 1.5  # Background.
    ids = np.stack([cv2.resize(logits[..., k], (width, height), interpolation=cv2.INTER_CUBIC) for k in range(21)], -1)
    labels = ids.argmax(-1).astype(np.uint8)
    outline = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    labels[outline] = 255
    return labels


def child(task: str, **arguments: Any) -> dict[str, Any]:
    """Do one task in this process. A task gets all settings of its row, and the folder."""
    tasks: dict[str, Callable[..., dict[str, Any]]] = {"throughput": throughput, "stages": stages, "waiting": waiting}
    return tasks[task](**arguments)


def throughput(*, folder: str, rounds: int, batches: int, threads: int, **_: Any) -> dict[str, Any]:
    """Return augmented images a second of the base configuration's loader."""
    steps = (rounds + 1) * batches
    loader = training_batches(_open(folder), papers_augmentation(), batch_size=BATCH, steps=steps, threads=threads)
    samples = []
    for _round in range(rounds + 1):
        start = time.perf_counter()
        for _batch in range(batches):
            next(loader)
        samples.append((time.perf_counter() - start) / (batches * BATCH))
    times = statistics(samples[1:])  # In the first one, threads start.
    return {"images_per_second": significant(1 / times["median"]), "spread": times["spread"]}


def papers_augmentation() -> Any:
    """Return the augmentation of the base configuration."""
    return partial(augment, **config_keys.arguments(base().data, config_keys.Papers), fill=IMAGENET.mean_pixel)


def stages(*, folder: str, rounds: int, **_: Any) -> dict[str, Any]:
    """Return the median milliseconds for one image of each stage, called one after another without the loader."""
    source, rng = _open(folder), np.random.default_rng(0)
    augmentation = papers_augmentation()
    seconds: dict[str, list[float]] = {name: [] for name in ("image", "mask", "class ids", "augment", "batch")}

    def timed(name: str, call: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
        start = time.perf_counter()
        result = call(*inputs, **more)
        seconds[name].append(time.perf_counter() - start)
        return result

    for _round in range(rounds):
        for first in range(0, len(source), BATCH):
            examples = []
            for pair in source.pairs[first : first + BATCH]:
                image = timed("image", read_image, pair.image)
                label, _ = timed("class ids", to_class_ids, timed("mask", read_mask, pair.mask), source.labels)
                examples.append(timed("augment", augmentation, image, label, rng))
            timed("batch", lambda parts: [np.stack(part) for part in parts], list(zip(*examples, strict=True)))
            seconds["batch"][-1] /= len(examples)
    return {"milliseconds": {name: significant(1e3 * np.median(values)) for name, values in seconds.items()}}


def waiting_settings(session: Session) -> dict[str, Any]:
    """Return what is trained for the row on waiting."""
    if session.quick:
        return {"model": networks.TINY.model, "width": 0.125, "crop": 65, "batch": 2, "steps": QUICK_WAIT_STEPS}
    batch = 2 if session.platform == "cpu" else 16
    return {"model": networks.MOBILENET.model, "width": 1.0, "crop": 513, "batch": batch, "steps": WAIT_STEPS}


def waiting(*, folder: str, model: str, width: float, crop: int, batch: int, steps: int, **_: Any) -> dict[str, Any]:
    """Train for a few steps from the files, and return what the loop reports: a median over its reports but the first,
    which is that of the step that compiles.
    """
    config = base()
    config.model.name, config.model.options = model, ConfigDict({"width": width})
    config.data.update({"name": "folder", "dir": folder, "crop_size": (crop, crop)})
    config.data.options = ConfigDict({"class_names": CLASS_NAMES})
    config.train.update({"steps": steps, "batch_size": batch, "devices": 1, "log_every": max(1, steps // 6)})
    config.train.update({"evaluate_every": steps, "checkpoint_every": steps, "pictures": 0})
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir, console=Console(quiet=True))
        lines = records(Path(workdir) / RECORD_FILE)
    reports = [line for line in lines if "train/data_wait" in line][1:]
    return {
        name: significant(np.median([line[f"train/{name}"] for line in reports]))
        for name in ("data_wait", "images_per_second")
    }


def _open(folder: str) -> PairSource:
    source = open_source("folder", split="train", dir=folder, class_names=CLASS_NAMES)
    assert isinstance(source, PairSource)
    return source


def _in_child(kilobytes: float, **arguments: Any) -> dict[str, Any]:
    return {**run_child("pipeline", **arguments), "jpeg_kilobytes": round(kilobytes, 1)}
