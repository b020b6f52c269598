"""Predictions on the map: GeoTIFFs of class ids, and GeoJSON polygons. Both use rasterio, the extra `geo`."""

import json
import shlex
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax.data.images import VOID_COLOUR
from deeplab_jax.data.tiff import ORIENTATION, first_page
from deeplab_jax.errors import UserError, optional
from deeplab_jax.evaluate.pictures import Palette
from deeplab_jax.files import replacing, write_whole
from deeplab_jax.labels import IGNORE_LABEL

Ring = list[tuple[float, float]]

MAP_TAGS = (33550, 33922, 34264, 34735)  # Pixel scale, tie points, transformation, keys: GeoTIFF 1.1, section 7.
ROWS = 1024  # read or written at once
CACHE = {"GDAL_CACHEMAX": 64}  # MiB; GDAL would take 5% of the machine's memory.


class Ground(NamedTuple):
    """Where an image lies: its coordinate reference system, and the affine transform of (column, row) into it."""

    crs: Any
    transform: Any


def has_ground(path: Path) -> bool:
    """Return whether a file is a GeoTIFF: a TIFF with map coordinates. Needs no rasterio."""
    tags = first_page(path)
    return any(tag in tags for tag in MAP_TAGS)


def is_installed() -> bool:
    """Return whether rasterio is."""
    return find_spec("rasterio") is not None


def load_rasterio(what: str) -> ModuleType:
    """Return the package, or raise a UserError that says what needs it."""
    rasterio, _ = optional(what, "rasterio", "rasterio.features", install="rasterio")
    # An image without a map is no fault. Threads write, and `warnings.catch_warnings` is not for threads.
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def read_ground(path: Path) -> Ground:
    """Return where a GeoTIFF lies.

    Raises:
      UserError: it has no affine transform, or is turned by its orientation tag, or rasterio is missing.
    """
    rasterio = load_rasterio(str(path))
    turned = first_page(path).get(ORIENTATION, 1) != 1
    try:
        with rasterio.open(path) as file:
            crs, transform = file.crs, file.transform
    except rasterio.errors.RasterioError as error:
        raise _unreadable(path, error) from None
    if turned or transform.is_identity:
        reason = "an orientation tag that turns it" if turned else "no affine transform, such as with control points"
        fresh = path.with_name(f"{path.stem}_warped.tif")
        raise UserError(f"{path}: a GeoTIFF with {reason}; type {shlex.join(['gdalwarp', str(path), str(fresh)])}")
    return Ground(crs, transform)


def check_nodata(path: Path) -> None:
    """Raise a UserError if `mark_nodata` could not read a GeoTIFF: its compression may be unknown to rasterio."""
    rasterio = load_rasterio(str(path))
    try:
        with rasterio.Env(**CACHE), rasterio.open(path) as file:
            if _may_lack_data(file):
                file.dataset_mask(window=rasterio.windows.Window(0, 0, 1, 1))
    except rasterio.errors.RasterioError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error.__cause__ or error).split())
    return UserError(f"{path}: rasterio cannot read it ({reason}); save it with another compression")


def _may_lack_data(file: Any) -> bool:
    flags = load_rasterio("a mask").enums.MaskFlags
    return not all(flags.all_valid in of_band for of_band in file.mask_flag_enums)


def mark_nodata(path: Path, classes: np.ndarray) -> None:
    """Set the class ids `[H, W]` to the ignore label where a GeoTIFF has no data: its nodata value in each band, its
    mask, or an alpha of 0.
    """
    rasterio = load_rasterio(str(path))
    with rasterio.Env(**CACHE), rasterio.open(path) as file:
        if not _may_lack_data(file):
            return
        for top in range(0, file.height, ROWS):
            rows = classes[top : top + ROWS]
            part = rasterio.windows.Window(0, top, file.width, len(rows))
            rows[file.dataset_mask(window=part) == 0] = IGNORE_LABEL


def write_geotiff(path: Path, classes: np.ndarray, palette: Palette, ground: Ground) -> None:
    """Write uint8 class ids `[H, W]` as a tiled, compressed GeoTIFF with a colour map; the ignore label is its nodata
    value.

    Raises:
      UserError: the file cannot be written, or rasterio is missing.
    """
    rasterio = load_rasterio(str(path))
    height, width = classes.shape
    kind = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": IGNORE_LABEL, "BIGTIFF": "IF_SAFER"}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    where = {"crs": ground.crs, "transform": ground.transform, "height": height, "width": width}
    colours = {index: (*colour, 255) for index, colour in enumerate(palette)} | {IGNORE_LABEL: (*VOID_COLOUR, 0)}
    try:
        with (
            replacing(path) as fresh,
            rasterio.Env(**CACHE),
            rasterio.open(fresh, "w", **kind, **tiles, **where) as file,
        ):
            file.write_colormap(1, colours)
            for top in range(0, height, ROWS):
                rows = classes[top : top + ROWS]
                file.write(rows, 1, window=rasterio.windows.Window(0, top, width, len(rows)))
    except (OSError, rasterio.errors.RasterioError) as error:
        raise UserError(f"{path}: cannot write ({error}); check that the disk has room") from error


def write_polygons(path: Path, classes: np.ndarray, names: Sequence[str], ground: Ground | None) -> None:
    """Write a GeoJSON feature for each connected region of one class; see `polygons`.

    Raises:
      UserError: the file cannot be written, or rasterio is missing.
    """
    crs = f'\n"crs": {json.dumps(_crs_member(ground.crs))},' if ground is not None and ground.crs else ""

    def write(fresh: Path) -> None:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(f'{{"type": "FeatureCollection",{crs}\n"features": [')
            for index, feature in enumerate(polygons(classes, names, ground)):
                file.write((",\n" if index else "\n") + json.dumps(feature, ensure_ascii=False))
            file.write("\n]}\n")

    write_whole(path, write)


def polygons(classes: np.ndarray, names: Sequence[str], ground: Ground | None = None) -> Iterator[dict[str, Any]]:
    """Yield a GeoJSON feature for each region of one class whose pixels touch along an edge (4-connected).

    Its polygon runs along the pixels' edges and has a ring for each hole. Outer rings run counterclockwise, holes
    clockwise. Its properties are `class` (the id), `name`, `pixels`, and `area` in square units of the map, or pixels
    without a map; `area` is None where the units are degrees.

    Args:
      classes: uint8 `[H, W]`; the ignore label is in no region.
      names: the name of each class; missing ones are left out.
      ground: where the image lies; None: coordinates are (column, row) in pixels from the top left corner.
    """
    rasterio = load_rasterio("polygons")
    a, b, c, d, e, f = (1, 0, 0, 0, 1, 0) if ground is None else ground.transform[:6]
    degrees = ground is not None and ground.crs is not None and ground.crs.is_geographic
    for shape, value in rasterio.features.shapes(classes, connectivity=4):  # A mask would be two more copies.
        index = int(value)
        if index == IGNORE_LABEL:
            continue
        pixels = round(abs(_area(shape["coordinates"][0])) - sum(abs(_area(r)) for r in shape["coordinates"][1:]))
        rings = [[(a * x + b * y + c, d * x + e * y + f) for x, y in ring] for ring in shape["coordinates"]]
        properties = {
            "class": index,
            "name": names[index] if index < len(names) else None,
            "pixels": pixels,
            "area": None if degrees else pixels * abs(a * e - b * d),
        }
        coordinates = [ring if (_area(ring) > 0) == (place == 0) else ring[::-1] for place, ring in enumerate(rings)]
        yield {
            "type": "Feature",
            "properties": properties,
            "geometry": {"type": "Polygon", "coordinates": coordinates},
        }


def _area(ring: Ring) -> float:
    """Return the area within a closed ring: positive if it runs counterclockwise. Taken from its first point, because
    map coordinates are large.
    """
    (x0, y0), pairs = ring[0], pairwise(ring)
    return sum((a - x0) * (d - y0) - (c - x0) * (b - y0) for (a, b), (c, d) in pairs) / 2


def _crs_member(crs: Any) -> dict[str, Any]:
    """Return the `crs` member of GeoJSON of 2008, which GDAL and QGIS read; RFC 7946 knows only WGS 84."""
    authority = crs.to_authority()
    name = "urn:ogc:def:crs:{}::{}".format(*authority) if authority else crs.to_wkt()
    return {"type": "name", "properties": {"name": name}}
