"""A page of training images as the network gets them, with their labels."""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from deeplab_jax.data.source import Source
from deeplab_jax.evaluate.page import PAGE, Page
from deeplab_jax.files import make_folder
from deeplab_jax.train.batches import Batches, check_pixels
from deeplab_jax.train.from_config import model_for

SHOWN = 32
"""How many images the page has."""


def show_samples(config: ConfigDict, source: Source, folder: str | Path) -> Path:
    """Write the first images of a training to a page, after their augmentation; return the page's path.

    Raises:
      UserError: an example cannot be read, has an unknown label, or does not fit the augmentation or the model; or the
        page cannot be written.
    """
    make_folder(Path(folder), option="--show")
    rows = config.train.batch_size
    digits, row_digits = len(str(-(-SHOWN // rows))), len(str(rows))  # So that names sort as numbers.
    model = model_for(config, source.labels)
    page = Page(Path(folder, PAGE), source.labels, title=f"Training images of {source.name}", shows="labels")
    for index, (image, label) in enumerate(itertools.islice(Batches(config, model, source).examples(), SHOWN)):
        name = f"step {index // rows + 1:0{digits}}, image {index % rows + 1:0{row_digits}}"
        check_pixels(model, image, label, name=name)
        page.add(name, image, label)
    return page.write()
