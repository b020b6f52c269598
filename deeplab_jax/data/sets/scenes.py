"""`scenes`: a generated data set of small landscapes seen from above, which needs the papers' ideas.

Nothing is stored: example `i` is drawn from a random stream that depends only on (seed, split, i). All random numbers
are integers, and drawing and shading are integer arithmetic, so a picture is the same on every platform.

Each class is there for a reason:

    class     what it looks like                                    what it takes to tell
    meadow    mottled green                                         surroundings: no hedge goes round it
    wheat     stripes that run across                               texture: the colours are those of maize
    maize     stripes that run down                                 texture: the colours are those of wheat
    water     bright by day, dark by night, in lakes and rivers     light: road has the same two colours, swapped
    road      dark by day, bright by night, in bands                light: day or night is not seen in the road itself
    boat      a vehicle 17 to 25 pixels long, on water              surroundings: it looks like a car
    car       a vehicle 17 to 25 pixels long, on road               surroundings: it looks like a boat
    paddock   meadow inside a round hedge, radius 5 to 45 pixels    scale: the middle is a meadow like any other
    wire      lines 3 pixels wide between masts                     fine resolution

Noise, mottling and uneven light hide what colour alone would tell. Augmentation keeps the classes: after a flip from
left to right, scaling and cropping every label is still true.

With `lamp="on"` only far surroundings tell road from water. A picture then has either roads and cars or rivers and
boats. They look the same, but for the colour of a lamp, a disc somewhere in the picture. With `lamp="off"` the lamp has
the same colour in all pictures, so nothing tells them apart. The lamp's pixels count as road or water too, so a network
learns its colours early. A crop may lose the lamp.
"""

import dataclasses
import math
import zlib

import cv2
import numpy as np

from deeplab_jax.data.source import Example
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.labels import LabelSet

MEADOW, WHEAT, MAIZE, WATER, ROAD, BOAT, CAR, PADDOCK, WIRE = range(9)

SCENES = LabelSet(
    names=("meadow", "wheat", "maize", "water", "road", "boat", "car", "paddock", "wire"),
    palette=(
        (150, 200, 120),
        (240, 200, 60),
        (200, 110, 30),
        (60, 130, 220),
        (120, 120, 120),
        (255, 255, 255),
        (220, 40, 60),
        (30, 110, 60),
        (150, 50, 200),
    ),
)

SPLITS = {"train": 4096, "val": 256}  # name -> number of examples unless told otherwise
LAMPS = ("none", "on", "off")

_GRASS = (104, 138, 74)
_HEDGE = (40, 70, 44)
_PATH = (196, 180, 136)
_CROP = ((186, 164, 92), (122, 124, 62))  # ridge and furrow, of wheat and maize alike
_BRIGHT, _DARK = (124, 148, 170), (58, 66, 84)  # water and road by day, road and water by night
_BODIES = ((208, 70, 60), (226, 222, 214), (222, 186, 70), (240, 150, 60))
_WINDOW = (40, 46, 58)
_LAMPS = {ROAD: (230, 60, 200), WATER: (40, 220, 220)}
_LAMP_OFF = (240, 240, 240)
_WIRE = (28, 26, 34)
_NIGHT = (96, 112, 168)  # of 256: what is left of each channel of unlit ground
_RADII = (5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 31, 35, 39, 45)  # in equal proportions, pixels
_DIRECTIONS = ((8, 0), (7, 3), (6, 6), (3, 7), (0, 8), (-3, 7), (-6, 6), (-7, 3))  # eighths of a pixel, half a turn


@dataclasses.dataclass
class _Canvas:
    """An unfinished picture, and the random stream for drawing it."""

    rng: np.random.Generator
    image: np.ndarray  # uint8 [H, W, 3]
    label: np.ndarray  # uint8 [H, W]
    night: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.label.shape[0], self.label.shape[1]

    def integer(self, low: int, high: int) -> int:
        """Return a random integer, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def point(self) -> tuple[int, int]:
        """Return a random (x, y)."""
        height, width = self.size
        return self.integer(0, width - 1), self.integer(0, height - 1)

    def count(self, low: int, high: int, *, lines: bool = False) -> int:
        """Return a random count of things, given for 129x129: it grows with the area; that of lines grows with the
        side.
        """
        height, width = self.size
        area = height * width * 64 // (129 * 129)
        return max(self.integer(low, high) * (8 * math.isqrt(area) if lines else area) + 32 >> 6, 1)

    def ground(self, colour: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return a colour of unlit ground under this picture's light."""
        if not self.night:
            return colour
        return colour[0] * _NIGHT[0] >> 8, colour[1] * _NIGHT[1] >> 8, colour[2] * _NIGHT[2] >> 8


def _blob(canvas: _Canvas, centre: tuple[int, int], radius: int) -> np.ndarray:
    """Return the corners, int32 [8, 1, 2], of an irregular shape around `centre`."""
    corners = []
    for turn in range(8):
        dx, dy = _DIRECTIONS[turn % 4 * 2]
        sign = 1 if turn < 4 else -1
        reach = canvas.integer(radius * 5 // 8, radius)
        corners.append((centre[0] + sign * dx * reach // 8, centre[1] + sign * dy * reach // 8))
    return np.array(corners, np.int32)[:, None]


def _course(canvas: _Canvas) -> np.ndarray:
    """Return the corners, int32 [3, 1, 2], of a line that bends once on its way through the picture."""
    height, width = canvas.size
    if canvas.integer(0, 1):
        xs = [-40, canvas.integer(width // 4, width * 3 // 4), width + 40]
        ys = [canvas.integer(0, height - 1) for _ in xs]
    else:
        ys = [-40, canvas.integer(height // 4, height * 3 // 4), height + 40]
        xs = [canvas.integer(0, width - 1) for _ in ys]
    return np.stack([xs, ys], axis=-1).astype(np.int32)[:, None]


def _stripes(canvas: _Canvas, kind: int) -> np.ndarray:
    """Return a field's surface, uint8 [H, W, 3]: stripes across (wheat) or down (maize), up to one in six slanted."""
    height, width = canvas.size
    slant, band = canvas.integer(-1, 1), canvas.integer(15, 21)  # sixths of a pixel
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    along = 6 * rows + slant * columns if kind == WHEAT else 6 * columns + slant * rows
    return np.array([canvas.ground(colour) for colour in _CROP], np.uint8)[(along + 6 * band) // band & 1]


def _draw_field(canvas: _Canvas, surfaces: dict[int, np.ndarray]) -> None:
    """Draw an irregular field of wheat or maize."""
    kind = (WHEAT, MAIZE)[canvas.integer(0, 1)]
    field = [_blob(canvas, canvas.point(), canvas.integer(20, 44))]
    mask = cv2.fillPoly(np.zeros(canvas.size, np.uint8), field, 1)
    cv2.copyTo(surfaces[kind], mask, canvas.image)
    cv2.fillPoly(canvas.label, field, kind)


def _draw_water(canvas: _Canvas) -> None:
    """Draw a river, or a lake."""
    colour = _DARK if canvas.night else _BRIGHT
    if canvas.integer(0, 1):
        course, width = [_course(canvas)], canvas.integer(24, 42)
        cv2.polylines(canvas.label, course, False, WATER, width)
        cv2.polylines(canvas.image, course, False, colour, width)
    else:
        shore = [_blob(canvas, canvas.point(), canvas.integer(42, 64))]
        cv2.fillPoly(canvas.label, shore, WATER)
        cv2.fillPoly(canvas.image, shore, colour)


def _draw_road(canvas: _Canvas, kind: int) -> None:
    """Draw a road, or a river that looks like one."""
    colour = _BRIGHT if canvas.night else _DARK
    course, width = [_course(canvas)], canvas.integer(19, 29)
    cv2.polylines(canvas.label, course, False, kind, width)
    cv2.polylines(canvas.image, course, False, colour, width)


def _draw_paddock(canvas: _Canvas, grass: np.ndarray) -> None:
    """Draw a disc of the meadow's own `grass` inside a hedge and a path, of any size, away from other paddocks."""
    radius = _RADII[canvas.integer(0, len(_RADII) - 1)]
    for _ in range(6):
        centre = canvas.point()
        mask = cv2.circle(np.zeros(canvas.size, np.uint8), centre, radius, 1, -1)
        if not (mask & (canvas.label == PADDOCK)).any():
            cv2.copyTo(grass, mask, canvas.image)
            cv2.circle(canvas.image, centre, radius - 4, canvas.ground(_PATH), 3)
            cv2.circle(canvas.image, centre, radius - 1, canvas.ground(_HEDGE), 3)
            cv2.circle(canvas.label, centre, radius, PADDOCK, -1)
            return


def _draw_vehicles(canvas: _Canvas, kind: int, count: int) -> None:
    """Draw up to `count` boats or cars, which look alike, each where its four corners have room."""
    height, width = canvas.size
    room = (canvas.label == (WATER if kind == BOAT else ROAD)).astype(np.uint8)
    places = np.flatnonzero(room)
    if not places.size:
        return
    for _ in range(4 * count):
        y, x = divmod(int(places[canvas.integer(0, places.size - 1)]), width)
        dx, dy = _DIRECTIONS[canvas.integer(0, len(_DIRECTIONS) - 1)]
        long, wide = canvas.integer(8, 12), canvas.integer(5, 7)
        corners = [
            (x + (a * dx * long - b * dy * wide) // 8, y + (a * dy * long + b * dx * wide) // 8)
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        ]
        if all(0 <= u < width and 0 <= v < height and room[v, u] for u, v in corners):
            hull = np.array(corners, np.int32)[:, None]
            cv2.fillConvexPoly(canvas.label, hull, kind)
            cv2.fillConvexPoly(canvas.image, hull, _BODIES[canvas.integer(0, len(_BODIES) - 1)])
            cv2.fillConvexPoly(canvas.image, (hull + np.array((x, y), np.int32)) // 2, _WINDOW)
            cv2.circle(room, (x, y), long + 5, 0, -1)
            count -= 1
            if not count:
                return


def _draw_wire(canvas: _Canvas) -> None:
    """Draw a line across everything, with two masts before its bend and two after."""
    course = _course(canvas)
    start, bend, end = course[:, 0]
    for target, value in ((canvas.label, WIRE), (canvas.image, _WIRE)):
        cv2.polylines(target, [course], False, value, 2)  # which OpenCV draws 3 pixels wide
        for far, near in ((start, bend), (end, bend)):
            for at in (3, 6):
                x, y = ((far * (8 - at) + near * at) // 8).tolist()
                cv2.rectangle(target, (x - 4, y - 4), (x + 4, y + 4), value, -1)


def _draw_lamp(canvas: _Canvas, kind: int, colour: tuple[int, int, int]) -> None:
    """Draw a lamp of road or water, a disc that is a fifth of the picture's height wide."""
    centre, radius = canvas.point(), canvas.size[0] // 10
    cv2.circle(canvas.label, centre, radius, kind, -1)
    cv2.circle(canvas.image, centre, radius, colour, -1)


def _mottle(canvas: _Canvas, cell: int, strength: int) -> np.ndarray:
    """Return smooth noise, int16 [H, W], between -strength and +strength, that changes over about `cell` pixels."""
    height, width = canvas.size
    coarse = canvas.rng.integers(0, 2 * strength + 1, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int16) - strength


def _shade(canvas: _Canvas) -> np.ndarray:
    """Return the picture, uint8 [H, W, 3], under a light that falls off to one side, with mottling and noise."""
    height, width = canvas.size
    corners = canvas.rng.integers(88, 129, (2, 2), dtype=np.uint8)  # of 128
    light = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int16)
    surface = canvas.image + (_mottle(canvas, 5, 14) + _mottle(canvas, 24, 10))[..., None]
    noise = canvas.rng.integers(-9, 10, (height, width, 3), dtype=np.int16)
    tint = canvas.rng.integers(-8, 9, 3, dtype=np.int16)
    return np.clip((np.clip(surface, 0, 255) * light[..., None] >> 7) + noise + tint, 0, 255).astype(np.uint8)


def _draw(rng: np.random.Generator, height: int, width: int, lamp: str) -> tuple[np.ndarray, np.ndarray]:
    """Return one scene: image uint8 [H, W, 3] and label uint8 [H, W]."""
    canvas = _Canvas(
        rng, np.empty((height, width, 3), np.uint8), np.full((height, width), MEADOW, np.uint8), bool(rng.integers(2))
    )
    canvas.image[:] = canvas.ground(_GRASS)
    grass = canvas.image.copy()
    surfaces = {kind: _stripes(canvas, kind) for kind in (WHEAT, MAIZE)}
    for _ in range(canvas.count(3, 4)):
        _draw_field(canvas, surfaces)
    only = None if lamp == "none" else (ROAD, WATER)[canvas.integer(0, 1)]
    for _ in range(canvas.count(1, 1, lines=True)):
        if only is None:
            _draw_water(canvas)
        else:
            _draw_road(canvas, only)
    for _ in range(canvas.count(2, 4)):
        _draw_paddock(canvas, grass)
    for _ in range(canvas.count(1, 1, lines=True)):
        _draw_road(canvas, ROAD if only is None else only)
    _draw_vehicles(canvas, BOAT, canvas.count(6, 9))
    _draw_vehicles(canvas, CAR, canvas.count(3, 5) if only is None else canvas.count(6, 9))
    for _ in range(canvas.count(1, 2, lines=True)):
        _draw_wire(canvas)
    if only is not None:
        _draw_lamp(canvas, only, _LAMPS[only] if lamp == "on" else _LAMP_OFF)
    return _shade(canvas), canvas.label


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Generated scenes as a source: `Scenes("val")[3]` is always the same picture.

    Args:
      split: "train" or "val"; the two draw from different random streams.
      size: height and width in pixels, at least 33. Things keep their size; a larger picture has more of them.
      count: number of examples; by default 4096 in "train" and 256 in "val".
      seed: another seed is another data set of the same kind.
      lamp: "none", or "on" or "off" where only a lamp tells road from water.

    Raises:
      UserError: an unknown split or lamp, a size below 33, a count below 1, or a negative seed.
    """

    split: str = "train"
    size: tuple[int, int] = (129, 129)
    count: int | None = None
    seed: int = 0
    lamp: str = "none"

    labels = SCENES
    name = "scenes"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"scenes: there is no split {self.split!r}; {did_you_mean(self.split, SPLITS)}")
        if len(self.size) != 2 or not all(type(side) is int and side >= 33 for side in self.size):
            raise UserError(f"scenes: size {self.size!r} has to be a height and a width of at least 33 whole pixels")
        if self.count is not None and (type(self.count) is not int or self.count < 1):
            raise UserError(f"scenes: count {self.count!r} has to be a whole number, at least 1")
        if type(self.seed) is not int or self.seed < 0:
            raise UserError(f"scenes: seed {self.seed!r} has to be a whole number, 0 or more")
        if self.lamp not in LAMPS:
            raise UserError(f"scenes: there is no lamp {self.lamp!r}; {did_you_mean(str(self.lamp), LAMPS)}")

    def __len__(self) -> int:
        return SPLITS[self.split] if self.count is None else self.count

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(f"scenes: no example {i} among {len(self)}")
        stream = np.random.SeedSequence((self.seed, zlib.crc32(self.split.encode()), int(i)))
        image, label = _draw(np.random.Generator(np.random.PCG64(stream)), *self.size, self.lamp)
        return {"image": image, "label": label, "name": self.describe(i)}

    def describe(self, i: int) -> str:
        """Return the example's name."""
        return f"scenes_{self.split}_{self.seed}_{i:06d}"
