"""Generate files like those of users: aerial images of four bands and 16 bits with map coordinates, and cracks.

    python -m experiments.examples aerial --out examples/aerial
    python -m experiments.examples cracks --out examples/cracks

`aerial` writes GeoTIFFs with red, green, blue and near infrared from 0 to 4095, masks of three classes, and one larger
image, `large.tif`. `cracks` writes grey photos with masks of 0 and 255. Both are drawn from a seed, so they are the
same on every machine. They show how files are read and written. They say nothing about real images.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from deeplab_jax.data.images import write_image, write_mask
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.geo import load_rasterio
from experiments.program import exits, parser_of

CLASSES = ("background", "building", "vegetation")
COLOURS = ((0, 0, 0), (220, 20, 60), (60, 140, 60))
TOP = 4095  # The largest value of 12 bits, the usual depth of such sensors.
# Reflectance of each class in red, green, blue and near infrared. Only the last band tells dark roofs from trees.
REFLECTANCE = np.array([[0.42, 0.38, 0.32, 0.40], [0.22, 0.26, 0.24, 0.14], [0.18, 0.27, 0.20, 0.75]])
SIDE, LARGE = 257, (500, 700)
METRES = 0.5  # Side of a pixel, in the coordinates of UTM zone 33 north.
CORNER = (500_000.0, 5_500_000.0)


def write_aerial(out: Path, count: int) -> None:
    """Write `count` tiles of 257x257 pixels, side by side on the map, and `large.tif` below them."""
    load_rasterio("examples aerial")
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        bands, mask = aerial(np.random.default_rng(index), (SIDE, SIDE))
        write_geotiff(out / "images" / f"tile_{index:02}.tif", bands, (index * SIDE, 0))
        write_mask(out / "masks" / f"tile_{index:02}.png", mask, COLOURS)
    write_geotiff(out / "large.tif", aerial(np.random.default_rng(count), LARGE)[0], (0, SIDE))
    (out / "class_names.txt").write_text("\n".join(CLASSES) + "\n", "utf-8")


def aerial(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return bands uint16 `[H, W, 4]` and class ids uint8 `[H, W]` of ground with trees and rotated buildings."""
    mask = np.zeros(size, np.uint8)
    for class_id, share in ((2, 900), (1, 2500)):  # Buildings stand in front of trees.
        for _ in range(max(1, size[0] * size[1] // (share * 3))):
            centre = (float(rng.uniform(0, size[1])), float(rng.uniform(0, size[0])))
            if class_id == 2:
                cv2.circle(mask, (int(centre[0]), int(centre[1])), int(rng.integers(4, 12)), class_id, -1)
            else:
                sides = (float(rng.uniform(14, 40)), float(rng.uniform(14, 30)))
                corners = cv2.boxPoints((centre, sides, float(rng.uniform(0, 90))))
                cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], class_id)
    light = 1 + 0.15 * cv2.GaussianBlur(rng.standard_normal(size), (0, 0), 20) * 20
    noise = rng.normal(0, 0.03, (*size, 4))
    bands = REFLECTANCE[mask] * light[..., None] + noise
    return np.rint(np.clip(bands, 0, 1) * TOP).astype(np.uint16), mask


def write_geotiff(path: Path, bands: np.ndarray, at: tuple[int, int]) -> None:
    """Write bands `[H, W, C]` as a GeoTIFF whose top left pixel is at (column, row) of the map."""
    rasterio = load_rasterio("examples aerial")
    west, north = CORNER[0] + at[0] * METRES, CORNER[1] - at[1] * METRES
    height, width, count = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype=bands.dtype,
        crs="EPSG:32633",
        transform=rasterio.transform.from_origin(west, north, METRES, METRES),
        compress="deflate",
    ) as file:
        file.write(bands.transpose(2, 0, 1))


def write_cracks(out: Path, count: int) -> None:
    """Write `count` photos of 257x257 pixels, and their masks: 255 on cracks, 0 elsewhere."""
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, mask = crack(np.random.default_rng(index), (SIDE, SIDE))
        write_image(out / "images" / f"{index:02}.png", image)
        write_mask(out / "masks" / f"{index:02}.png", mask, None)


def crack(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a photo uint8 `[H, W, 3]` of rough concrete, and a mask uint8 `[H, W]` that is 255 on its cracks."""
    mask = np.zeros(size, np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        steps = rng.normal((0, 9), (6, 2), (size[1] // 8, 2))
        points = np.array([rng.uniform(0.1, 0.9) * size[0], 0]) + np.cumsum(steps, axis=0)
        cv2.polylines(mask, [np.rint(points[:, ::-1]).astype(np.int32)], False, 255, int(rng.integers(6, 11)))
    rough = cv2.GaussianBlur(rng.standard_normal(size), (0, 0), 2) * 40 + rng.normal(0, 6, size)
    grey = 150 + rough - 60 * cv2.GaussianBlur(mask / 255, (0, 0), 1.0)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


EXAMPLES: dict[str, Callable[[Path, int], None]] = {"aerial": write_aerial, "cracks": write_cracks}


@exits
def main(argv: Sequence[str] | None) -> None:
    """Write one of the examples."""
    parser = parser_of("examples", __doc__)
    parser.add_argument("name", choices=tuple(EXAMPLES))
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--count", type=int, default=24, choices=range(1, 100), metavar="N", help="images, 1 to 99")
    args = parser.parse_args(argv)
    try:
        EXAMPLES[args.name](args.out, args.count)
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); give another --out") from None
    print(f"{args.count} images and masks written to {args.out}")


if __name__ == "__main__":
    sys.exit(main())
