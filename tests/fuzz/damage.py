"""Damage to formats whose checksums and syntax would stop plain damage at the door: PNG chunks, JSON, names."""

import copy
import json
import math
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from tests.fuzz.cases import Sound
from tests.weights.formats.mutations import mutated

PNG = b"\x89PNG\r\n\x1a\n"
SIDES = (0, 1, 2, 255, 5000, 2**15, 2**16 - 1, 60_000, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = ("", "\x00", "a\nb", "\u202e", "\ud800", "../../x", "/", "%s{0}{", "é" * 300, "NaN", "1e999", "-", "None")
NUMBERS = (0, -1, 1, 2, 7, 255, 256, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, -0.0, 1e-320)
LEAVES: tuple[Any, ...] = (None, True, False, math.nan, math.inf, -math.inf, [], {}, [[]], {"": None})
DEEP = 50_000


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of a file; those of PNG files often have right checksums."""
    if isinstance(rng, Sound):
        return data
    if data.startswith(PNG) and rng.random() < 0.6:
        return _png(data, rng)
    return next(mutated(data, count=1, seed=rng.randrange(2**32))) if data else rng.randbytes(9)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(PNG)
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def _pixels(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, 2**20)
    except zlib.error:  # Damaged a moment ago.
        return content


def _png(data: bytes, rng: random.Random) -> bytes:
    chunks = list(_chunks(data))
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(chunks))
        name, content = chunks[at]
        match rng.randrange(7):
            case 0:  # Another size, depth, colour type or interlacing.
                field, number = rng.randrange(7), rng.choice(SIDES)
                header = list(struct.unpack(">IIBBBBB", chunks[0][1].ljust(13, b"\0")[:13]))
                header[field] = number if field < 2 else number % 256
                chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", *header))
            case 1:
                chunks.insert(rng.randrange(len(chunks) + 1), (name, content))
            case 2:
                other = rng.randrange(len(chunks))
                chunks[at], chunks[other] = chunks[other], chunks[at]
            case 3 if len(chunks) > 1:
                del chunks[at]
            case 4 if name == b"IDAT":  # Other pixels, more or fewer of them than the header says.
                chunks[at] = (name, zlib.compress((_pixels(content) + b"\1") * rng.choice((1, 2, 64))))
            case 5:
                chunks.insert(
                    rng.randrange(len(chunks) + 1),
                    (rng.choice((b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf")), content),
                )
            case _:
                content = next(mutated(content or b"\0", count=1, seed=rng.randrange(2**32)))
                chunks[at] = (name, content)
    return PNG + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def damaged_json(text: str, rng: random.Random) -> bytes:
    """Return a damaged copy of a JSON file: mostly of its values, sometimes of its bytes."""
    if isinstance(rng, Sound):
        return text.encode()
    kind = rng.random()
    if kind < 0.15:
        return damaged(text.encode(), rng)
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 3))):
        content = damaged_value(content, rng)
    result = json.dumps(content)
    if kind < 0.2:
        deep = rng.choice(("[", '{"a":'))
        result = result.replace(rng.choice(("null", "1", '"')), deep * DEEP, 1)
    elif kind < 0.22:
        result = result.replace("1", "1" * 10_000, 1)
    elif kind < 0.24:
        result = result[: len(result) // 2] + result
    return result.encode("utf-8", "surrogatepass")


def damaged_value(content: Any, rng: random.Random) -> Any:
    """Return plain JSON content in which one value, or one key, is another."""
    places = list(_places(content))
    if not places:
        return _odd(content, rng)
    owner, key = rng.choice(places)
    match rng.randrange(6):
        case 0 if isinstance(owner, dict):
            owner[rng.choice(TEXTS)] = owner.pop(key)
        case 1 if isinstance(owner, dict):
            del owner[key]
        case 1:
            del owner[key:]
        case 2:
            other_owner, other_key = rng.choice(places)
            owner[key] = json.loads(json.dumps(other_owner[other_key]))
        case 3 if isinstance(owner, list) and len(owner) < 100:
            owner *= rng.choice((0, 2, 1000))
        case _:
            owner[key] = _odd(owner[key], rng)
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def _odd(value: Any, rng: random.Random) -> Any:
    """Return another value: half the time of the same kind, which is what gets past the first checks."""
    if rng.random() < 0.5:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return rng.choice((int(rng.choice(NUMBERS) % 2**65), value + 1, -value, rng.randrange(100)))
        if isinstance(value, float):
            return rng.choice((*NUMBERS, math.nan, math.inf, -value))
        if isinstance(value, str):
            return rng.choice((*TEXTS, value * 2, value[:-1], value.upper()))
        if isinstance(value, list):
            return rng.choice(([], value * 2, value[:1], [value], value[::-1]))
    return copy.deepcopy(rng.choice((*LEAVES, rng.choice(TEXTS), rng.choice(NUMBERS))))
