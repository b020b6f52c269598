"""From the samples of an image file to levels of 0 to 255: which bands, and which values are black and white."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deeplab_jax.data.stored import Stored
from deeplab_jax.errors import UserError

CHANNELS, RANGE = "--config.data.channels", "--config.data.value_range"


@dataclass(frozen=True)
class Bands:
    """The bands of an image `[H, W, bands]`, and what their values can be; see `Stored`."""

    samples: np.ndarray
    top: int | None
    has_alpha: bool


def to_levels(stored: Stored, *, channels: Sequence[int], value_range: Sequence[float], name: str) -> np.ndarray:
    """Return the samples of a file as an image; see `images.read_image`.

    Raises:
      UserError: bands that would be lost or do not exist, or values whose range is not known. The message calls the
        file `name`, and has the flags to give.
    """
    bands = choose(viewed(stored), channels, name=name)
    if value_range:
        return scale(bands.samples, value_range, name=name)
    if bands.top is None:
        low, high = measured(bands.samples, name=name)
        suggestion = spell_range(suggest_range(low, high, bands.samples.dtype))
        raise UserError(
            f"{name}: {bands.samples.dtype} samples from {low:.6g} to {high:.6g}, and nothing says which values are "
            f"black and white; state them: {RANGE}={suggestion}"
        )
    if 255 % bands.top == 0:
        return np.ascontiguousarray(bands.samples * np.uint8(255 // bands.top), np.uint8)
    return np.ascontiguousarray(bands.samples * np.float32(255.0 / bands.top), np.float32)


def viewed(stored: Stored) -> Bands:
    """Return the bands as a viewer shows them: in the colours of the palette, and 0 as black."""
    if stored.palette is not None:
        colours = np.zeros((256, max(3, stored.palette.shape[1])), np.uint8)  # What the palette lacks is black.
        colours[: len(stored.palette)] = stored.palette
        return Bands(colours[stored.samples[..., 0]], 255, stored.palette.shape[1] == 4)
    if stored.white_is_zero and stored.top is not None:
        return Bands(stored.samples.dtype.type(stored.top) - stored.samples, stored.top, False)
    return Bands(stored.samples, stored.top, stored.has_alpha)


def without_opaque_alpha(bands: Bands) -> np.ndarray:
    """Return the samples without an alpha band that is opaque everywhere."""
    is_opaque = bands.has_alpha and bool((bands.samples[..., -1] == bands.top).all())
    return bands.samples[..., :-1] if is_opaque else bands.samples


def choose(bands: Bands, channels: Sequence[int], *, name: str) -> Bands:
    """Return the chosen bands, or RGB; a grey image has the same in red, green and blue.

    Raises:
      UserError: there are no such bands, or `channels` is empty and there are more bands than RGB.
    """
    samples, count = bands.samples, bands.samples.shape[2]
    if not channels:
        samples = without_opaque_alpha(bands)
        if samples.shape[2] not in (1, 3):
            first = "0,0,0" if count < 3 else "0,1,2"
            every = ",".join(map(str, range(count)))
            about = ", the last of which is alpha and not opaque" if bands.has_alpha else ""
            raise UserError(
                f"{name}: an image of {count} bands{about}; choose some of them: {CHANNELS}={first} "
                f"({'the first as grey' if count < 3 else 'the first three'}) or {CHANNELS}={every} (all); "
                f"in predict --channels={first}"
            )
        channels = (0, 1, 2)
    if samples.shape[2] == 1 and max(channels) < 3:
        channels = (0,) * len(channels)
    if max(channels) >= samples.shape[2]:
        first = ",".join(map(str, range(min(3, count))))
        wanted = len(channels)  # A trained network keeps their number; one band stands for up to three.
        network = f"network of {wanted} band{'s' * (wanted > 1)}"
        trained = f"a {network} needs other images"
        if wanted <= (3 if count == 1 else count):
            trained = f"to predict with a {network}, give --channels={','.join(map(str, range(wanted)))}"
        numbers = f"bands have the numbers 0 to {count - 1}" if count > 1 else "only band has the number 0"
        raise UserError(
            f"{name}: there is no band {max(channels)}: its {numbers}; to train, give {CHANNELS}={first}; {trained}"
        )
    if list(channels) != list(range(samples.shape[2])):
        samples = samples[..., list(channels)]
    return Bands(samples, bands.top, False)


def check_range(value_range: Sequence[float]) -> None:
    """Raise a UserError unless a range is two values that rise."""
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UserError(
            f"config.data.value_range={tuple(value_range)}: give the stored values of black and white, the lower one "
            f"first: {RANGE}=0,4095"
        )


def scale(samples: np.ndarray, value_range: Sequence[float], *, name: str) -> np.ndarray:
    """Return samples as float32 levels: the low value becomes 0, the high one 255, and values beyond them too.

    Raises:
      UserError: a range that is none, or samples that are not finite.
    """
    check_range(value_range)
    measured(samples, name=name)
    low, high = value_range
    levels = (samples.astype(np.float64) - low) * (255.0 / (high - low))
    return levels.clip(0.0, 255.0).astype(np.float32)


def measured(samples: np.ndarray, *, name: str) -> tuple[float, float]:
    """Return the smallest and largest sample.

    Raises:
      UserError: some are not finite.
    """
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        count = int(samples.size - np.isfinite(samples).sum())
        raise UserError(
            f"{name}: {count} samples are not finite (NaN or infinite); fill them, with 0 for example, and ignore "
            f"these pixels in the mask (255)"
        )
    return float(samples.min()), float(samples.max())


def suggest_range(low: float, high: float, dtype: np.dtype) -> tuple[float, float]:
    """Return the value range that samples from `low` to `high` probably have.

    Floats within 0 to 1 have that range. Integers that come close to all values of some number of bits have these.
    Others have their own smallest and largest value; a smallest one near 0 counts as 0.
    """
    if dtype.kind == "f":
        return (0.0, 1.0) if low >= 0 and 0.5 < high <= 1 else (low, high if high > low else low + 1)
    full = 2 ** int(high).bit_length() - 1 if high > 0 else 1
    near = float(full) if low >= 0 and high > 0.9 * full else high
    start = 0.0 if 0 <= low <= 0.1 * near else low
    return start, near if near > start else start + 1


def spell_range(value_range: Sequence[float]) -> str:
    """Return a range as the flag takes it: `0,4095`."""
    return ",".join(f"{value:.9g}" for value in value_range)
