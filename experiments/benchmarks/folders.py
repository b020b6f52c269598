"""`predict` on a folder, against the same images one at a time."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from deeplab_jax.evaluate.image_list import find_images
from deeplab_jax.evaluate.outputs import Outputs, label_set
from deeplab_jax.evaluate.page import PAGE, Page
from deeplab_jax.evaluate.predictor import predict_files
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from experiments.benchmarks import networks
from experiments.benchmarks.evaluation import VOC_SIZES, compilations
from experiments.benchmarks.pipeline import JPEG_QUALITY, SIZE, photo_like
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import per_second, race, summarize

IMAGES, QUICK_IMAGES = 40, 3
BATCH = 8


def measure(session: Session) -> None:
    """Race a folder with images of one size, and a folder with images of VOC's sizes."""
    network = networks.TINY if session.quick else networks.MOBILENET
    count = QUICK_IMAGES if session.quick else IMAGES
    for name, sizes in (("one size", (SIZE,)), ("mixed sizes", VOC_SIZES[:2] if session.quick else VOC_SIZES)):
        settings = {"network": network.name, "images": count, "sizes": sizes, "batch": BATCH, "quality": JPEG_QUALITY}
        session.row("folders", f"{count} photos of {name}", settings, partial(contest, session))


def contest(
    session: Session, *, network: str, images: int, sizes: Sequence[tuple[int, int]], batch: int, quality: int
) -> dict[str, Any]:
    """Race whole folders, batches, and images one at a time. The time includes reading the JPEG and writing all files.

    "One at a time" calls `predict_files` for each image. These calls cannot read the next image ahead, nor write while
    they compute.
    """
    model = networks.create(networks.BY_NAME[network])
    model, variables = fold_norm(model, networks.random_variables(model))
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder, "photos"), Path(folder, "out")
        photos.mkdir()
        rng = np.random.default_rng(0)
        for index in range(images):
            photo = photo_like(rng, sizes[index % len(sizes)])
            Image.fromarray(photo).save(photos / f"{index}.jpg", quality=quality)
        run = partial(predict_folder, model, variables, photos, out)
        contestants: dict[str, Callable[[], Any]] = {
            "ours": partial(run, batch_size=1),
            f"batches of {batch}": partial(run, batch_size=batch),
            "one at a time": partial(run, batch_size=1, together=False),
        }
        jax.clear_caches()
        with compilations() as programs:
            contestants["ours"]()
        result = summarize(race(contestants, rounds=session.repeats))
    return {**result, "images_per_second": per_second(result, images), "compiled": len(programs)}


def predict_folder(
    model: Segmenter, variables: Variables, photos: Path, out: Path, *, batch_size: int, together: bool = True
) -> None:
    """Predict the photos of a folder as the command `predict` does, and write its page."""
    shutil.rmtree(out, ignore_errors=True)
    found, labels = find_images([str(photos)]), label_set({}, model)
    page = Page(out / PAGE, labels, title="photos")
    outputs = Outputs(out, labels, page=page)
    for group in [found] if together else [[each] for each in found]:
        for _, error in predict_files(model, variables, group, outputs, batch_size=batch_size):
            if error is not None:
                raise error
    page.write()
