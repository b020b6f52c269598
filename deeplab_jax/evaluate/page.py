"""A page of predictions or labels: one `index.html` with small pictures beside it, for a browser without a network."""

import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np

from deeplab_jax.data.images import write_image, write_mask
from deeplab_jax.distributed import gathered, is_first, together
from deeplab_jax.evaluate.per_image import LABELLED, areas, ious
from deeplab_jax.evaluate.pictures import drawable, fewer, overlay, smaller
from deeplab_jax.evaluate.reading import shown
from deeplab_jax.files import write_whole
from deeplab_jax.labels import LabelSet
from deeplab_jax.ops.metrics import nanmean

HERE = Path(__file__).parent
PAGE = "index.html"
PICTURES = "index_files"
_LONGEST_THUMB = 240


class Page:
    """Collects images and writes `index.html`; its pictures, of at most 1024 pixels, are in `index_files/`.

    Args:
      file: the page.
      labels: the classes, with names of any script: they are text on the page.
      title: its heading.
      shows: what the classes of an image are, in one word.
    """

    def __init__(self, file: Path, labels: LabelSet, *, title: str, shows: str = "prediction") -> None:
        self._file, self._labels, self._title = file, labels, title
        self._drawn = drawable(np.zeros((1, 1, labels.num_classes), np.uint8), labels)[1]
        self._entries: list[dict[str, Any]] = []
        self._shows = shows

    def add(self, name: str, image: np.ndarray, classes: np.ndarray, truth: np.ndarray | None = None) -> None:
        """Add an image; threads may do so at the same time.

        Args:
          name: its name, such as "sub/a"; each once.
          image: uint8 `[H, W, 3]`, or a smaller one of the same picture.
          classes: class ids `[H, W]`; where a pixel can have several labels, `[H, W, K]`.
          truth: the same, 255 where unknown.

        Raises:
          UserError: a picture cannot be written.
        """
        palette, folder = self._drawn.palette, self._file.parent / PICTURES
        of_image = measures(classes, truth, self._labels)
        size, small = list(classes.shape[:2]), smaller(shown(image))
        classes, _ = drawable(fewer(classes, small.shape[:2]), self._labels)
        pictures = {"image": small, self._shows: classes}
        if truth is not None:
            pictures["truth"] = drawable(fewer(truth, small.shape[:2]), self._labels)[0]
        files = {kind: f"{kind}/{name}{'.jpg' if kind == 'image' else '.png'}" for kind in pictures}
        thumb = f"thumb/{name}.jpg"
        write_image(folder / files["image"], pictures.pop("image"))
        for kind, ids in pictures.items():
            write_mask(folder / files[kind], ids, palette)
        small = smaller(shown(image), _LONGEST_THUMB)
        write_image(folder / thumb, overlay(small, fewer(classes, small.shape[:2]), palette))
        self._entries.append(
            {
                "name": os.fsencode(name).decode("utf-8", "replace"),
                "key": name,
                "size": size,
                "thumb": _address(thumb),
                **{kind: _address(file) for kind, file in files.items()},
                **of_image,
            }
        )

    def write(self) -> Path:
        """Write the page with what was added, by all processes, which all must call this; return its path.

        Where truth is known the worst mIoU comes first, otherwise names are in order.

        Raises:
          UserError: it cannot be written.
        """
        entries = sorted(
            gathered(self._entries), key=lambda entry: (entry["miou"] is None, entry["miou"] or 0, entry["key"])
        )
        known = [entry["miou"] for entry in entries if entry["miou"] is not None]
        text = (
            templates(HERE)
            .get_template("page.html")
            .render(
                title=self._title,
                shows=self._shows,
                entries=entries,
                classes=[
                    {"name": name, "colour": f"#{bytes(colour).hex()}"}
                    for name, colour in zip(self._drawn.names, self._drawn.palette, strict=True)
                ],
                worst=known[0] if known else None,
                best=known[-1] if known else None,
            )
        )
        with together():
            if is_first():
                write_whole(self._file, lambda file: file.write_text(text, "utf-8", "replace"))
        return self._file


def templates(folder: Path) -> jinja2.Environment:
    """Return a folder's templates of pages. They escape what they show, and an unknown name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def measures(classes: np.ndarray, truth: np.ndarray | None, labels: LabelSet) -> dict[str, Any]:
    """Return what the page says of one image: `miou` (None without truth) over the classes in either, and `rows`: class
    id, share of the predicted pixels, and IoU or None, for each class that occurs, the largest first.

    Where a pixel can have several labels, each is counted alone, and class ids are those that are drawn.
    """
    count, first = labels.num_classes, int(labels.multilabel)
    shares = areas(classes, classes, count)[LABELLED] / max(1, math.prod(classes.shape[:2]))
    of_classes = np.full(count, np.nan) if truth is None else ious(areas(truth, classes, count))
    occurs = [k for k in range(count) if shares[k] or not np.isnan(of_classes[k])]
    rows = [
        [k + first, round(float(shares[k]), 4), _number(of_classes[k])]
        for k in sorted(occurs, key=lambda k: -shares[k])
    ]
    return {"miou": _number(nanmean(of_classes)), "rows": rows}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _address(file: str) -> str:
    return quote(os.fsencode(f"{PICTURES}/{file}"))
