"""What is written for one prediction."""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.data.images import encode_grey, write_image, write_mask
from deeplab_jax.data.large import Image, row_parts
from deeplab_jax.data.png import write_rows
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import geo
from deeplab_jax.evaluate.claims import Claims
from deeplab_jax.evaluate.image_list import Found
from deeplab_jax.evaluate.page import Page
from deeplab_jax.evaluate.pictures import drawable, overlay
from deeplab_jax.evaluate.reading import shown_fewer
from deeplab_jax.files import make_folder, write_whole
from deeplab_jax.labels import MAX_CLASSES, PUBLISHED_SETS, LabelSet, colormap, to_stored
from deeplab_jax.models.segmenter import Segmenter

KINDS = ("npy", "png")
OVERLAY_PIXELS = 2**25
"""An overlay of more pixels has every second, third, ... row and column."""
_LONGEST_NAME = 60  # Letters of a class in a file's name.
APART = "predict them into different --out folders"
_CITYSCAPES_END = "_leftImg8bit"


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is written for each prediction, and where.

    Attributes:
      folder: the folder; a prediction called "sub/a" is in its folder "sub".
      labels: the model's classes. Where a pixel can have several, `LABEL/NAME.png` holds 0 or 1 for each, as the data
        set `multilabel` reads them, and no `NAME.png` is written.
      probabilities: "npy" writes `NAME_probabilities.npy`, float16 `[H, W, K]`; "png" one 8-bit grey image
        `NAME_probability_CLASS.png` for each class; "" neither. One logit has two classes.
      confidence: whether to write `NAME_confidence.png`, 8-bit grey: the largest probability * 255. With several
        labels a pixel, it is that of the least certain decision: the smallest of max(p, 1 - p).
      dataset_ids: whether `NAME.png` holds the values that the data set's masks store, under the name that its server
        takes. Then there is no overlay and no page, because servers read every picture in the folder.
      page: shows every prediction, if given.
      polygons: whether to write `NAME.geojson`, the outline of each region.

    The ids of a GeoTIFF are written as the GeoTIFF `NAME.tif`, too, if rasterio is installed.
    """

    folder: Path
    labels: LabelSet
    probabilities: str = ""
    confidence: bool = False
    dataset_ids: bool = False
    page: Page | None = None
    polygons: bool = False

    @property
    def needs_probabilities(self) -> bool:
        return bool(self.probabilities) or self.confidence

    def files(self, name: str) -> list[str]:
        """Return the names of a prediction's files in the folder, those of the class ids first."""
        overlays = [] if self.dataset_ids else [f"{name}_overlay.png"]
        return [*(f"{each}.png" for each in self._maps(name)), *overlays, *self._of_probabilities(name)]

    def _maps(self, name: str) -> list[str]:
        """Return the names, without suffix, of what holds class ids: one, or one for each of several labels a pixel."""
        if self.labels.multilabel:
            return [f"{folder}/{name}" for folder in file_names(self.labels.names)]
        return [name.removesuffix(_CITYSCAPES_END) if self.dataset_ids else name]

    def check(self, found: Sequence[Found]) -> None:
        """Raise a UserError if a file would overwrite another or an image, or has the name of another's folder."""
        claims = Claims(self.folder, [each.path for each in found], fix=f"rename one of them, or {APART}", apart=True)
        for path, name in found:
            claims.claim(str(path), (*self.files(name), *(f"{each}.tif" for each in self._maps(name))))
        for path, name in found:
            for parent in map(str, Path(name).parents):
                if other := claims.owner(parent):
                    raise UserError(
                        f"{path}: the folder of its prediction has the name of the prediction of {other} ({parent}); "
                        f"{APART}"
                    )

    def write(
        self,
        name: str,
        image: Image,
        classes: np.ndarray,
        probabilities: np.ndarray | None = None,
        truth: np.ndarray | None = None,
        path: Path | None = None,
    ) -> None:
        """Write all files of a prediction, each completely or not at all.

        Args:
          name: name of the prediction, such as "sub/a".
          image: `[H, W, C]`; see `reading.shown`.
          classes: class ids `[H, W]`, or labels `[H, W, K]`; set to 255 where a GeoTIFF has no data.
          probabilities: float `[H, W, K]` as from `segment`, if they are needed.
          truth: as `classes`, 255 where unknown; shown on the page.
          path: the image file, for its place on a map. With `dataset_ids` it is not used: servers score every pixel.

        Raises:
          UserError: a file cannot be written.
        """
        classes = np.asarray(classes, np.uint8)
        if path is not None and not self.dataset_ids:
            self._on_map(path, name, classes)
        for each, ids, labels in self._layers(name, classes):
            self._write_map(self.folder / f"{each}.png", ids, labels)
        if not self.dataset_ids:
            step = math.ceil(math.sqrt(math.prod(classes.shape[:2]) / OVERLAY_PIXELS))
            image = shown_fewer(image, step)
            drawn_ids, drawn = drawable(classes[::step, ::step], self.labels)
            write_image(self.folder / f"{name}_overlay.png", overlay(image, drawn_ids, drawn.palette))
        if probabilities is not None:
            if probabilities.shape[-1] == 1:  # One logit: the object's probability alone.
                probabilities = np.concatenate([1 - probabilities, probabilities], axis=-1)
            for file, encoded in self._of_probabilities(name).items():
                _write(self.folder / file, encoded(probabilities))
        if self.page is not None:
            self.page.add(name, image[:], classes, truth)

    def _layers(self, name: str, classes: np.ndarray) -> list[tuple[str, np.ndarray, LabelSet]]:
        """Return the name, the ids `[H, W]` and their classes of each of `_maps`."""
        if not self.labels.multilabel:
            return [(self._maps(name)[0], classes, self.labels)]
        return [
            (each, classes[..., k], LabelSet(("none", self.labels.names[k]), ((0, 0, 0), self.labels.palette[k])))
            for k, each in enumerate(self._maps(name))
        ]

    def ground(self, path: Path) -> geo.Ground | None:
        """Return where an image lies; None if its prediction has no place on a map.

        Raises:
          UserError: see `geo.read_ground`.
        """
        if self.dataset_ids or not geo.has_ground(path) or not (self.polygons or geo.is_installed()):
            return None
        return geo.read_ground(path)

    def check_ground(self, path: Path) -> None:
        """Raise a UserError if the prediction of an image cannot be put on its map."""
        if self.ground(path) is not None:
            geo.check_nodata(path)

    def _on_map(self, path: Path, name: str, classes: np.ndarray) -> None:
        """Write the prediction as a GeoTIFF if the image is one, and the polygons. Where the image has no data, set the
        class ids to the ignore label.
        """
        ground = self.ground(path)
        if ground is not None:
            geo.mark_nodata(path, classes)
        for each, ids, labels in self._layers(name, classes):
            make_folder((self.folder / each).parent)
            if ground is not None:
                geo.write_geotiff(self.folder / f"{each}.tif", ids, labels.palette, ground)
            if self.polygons:
                geo.write_polygons(self.folder / f"{each}.geojson", ids, labels.names, ground)

    def _write_map(self, file: Path, classes: np.ndarray, labels: LabelSet) -> None:
        if not self.dataset_ids or labels.value_map is None:
            write_mask(file, classes, labels.palette)
            return
        stored, _ = to_stored(labels)
        table = np.array(stored, np.uint8 if max(stored) <= 255 else np.uint16)
        parts = (table[classes[rows]] for rows in row_parts(classes.shape))
        write_whole(file, lambda fresh: write_rows(fresh, parts, size=classes.shape))

    def _of_probabilities(self, name: str) -> dict[str, Callable[[np.ndarray], bytes]]:
        """Return each file that is written of the probabilities `[H, W, K]`, and what makes its content of them."""
        files: dict[str, Callable[[np.ndarray], bytes]] = {}
        if self.probabilities == "npy":
            files[f"{name}_probabilities.npy"] = _npy
        if self.probabilities == "png":
            for k, each in enumerate(file_names(self.labels.names)):
                files[f"{name}_probability_{each}.png"] = partial(_grey_of, k)
        if self.confidence:
            files[f"{name}_confidence.png"] = lambda shares: _grey(self._confidence(shares))
        return files

    def _confidence(self, probabilities: np.ndarray) -> np.ndarray:
        if self.labels.multilabel:
            return np.maximum(probabilities, 1 - probabilities).min(axis=-1)
        return probabilities.max(axis=-1)


def label_set(info: Mapping[str, Any], model: Segmenter, *, dataset_ids: bool = False) -> LabelSet:
    """Return the classes of a model by its `info`; where that has none, numbers for names and the colours of VOC.

    Raises:
      UserError: more classes than an 8-bit image holds; or `dataset_ids` are wanted, and neither `info` nor the names
        tell which values the masks of the data set store.
    """
    count, several = model.label_classes, model.multilabel
    if count + several > MAX_CLASSES:
        raise UserError(
            f"the model has {count} classes; predictions are written as 8-bit images, which hold {MAX_CLASSES}: "
            "use deeplab_jax.segment"
        )
    if several and dataset_ids:
        raise UserError("--ids dataset: a pixel can have several labels, and each has a mask of 0 and 1; leave it out")
    names = tuple(info.get("class_names") or map(str, range(count)))
    colours = info.get("palette") or colormap(count + several)[several:]
    palette = tuple((red, green, blue) for red, green, blue in colours)
    value_map = None
    if dataset_ids:
        known = [each for each in PUBLISHED_SETS.values() if each.names == names]
        if "value_map" in info:
            pairs = info["value_map"]
            value_map = None if pairs is None else tuple((stored, class_id) for stored, class_id in pairs)
        elif known:
            value_map = known[0].value_map
        else:
            raise UserError(
                "--ids dataset: the model does not say which values the masks of its data set store; leave out --ids, "
                'or write "value_map": [[stored value, class id], ...] under "info" of its model.json'
            )
    return LabelSet(names, palette, value_map, multilabel=several)


def file_names(names: Sequence[str]) -> list[str]:
    """Return a part of a file's name for each class: its own name, with "_" for what is no letter, digit, space or "-".

    Where two would be the same, each starts with its number.
    """
    safe = [re.sub(r"[^\w -]", "_", name)[:_LONGEST_NAME].strip() or "_" for name in names]
    unique = len({name.casefold() for name in safe}) == len(safe)
    return safe if unique else [f"{k}_{name}" for k, name in enumerate(safe)]


def _npy(shares: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, shares.astype(np.float16))
    return buffer.getvalue()


def _grey_of(k: int, shares: np.ndarray) -> bytes:
    return _grey(shares[..., k])


def _grey(share: np.ndarray) -> bytes:
    return encode_grey(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8))


def _write(file: Path, content: bytes) -> None:
    write_whole(file, lambda fresh: fresh.write_bytes(content))
