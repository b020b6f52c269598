"""Damaged copies of a good file, for the tests that no reader is hurt by one.

The damage is what transfers, disks and hostile people do: truncation, flipped bits, ranges that are missing, doubled,
swapped, foreign or zero, and numbers that are as large, small or negative as their field allows. The same seed gives
the same files.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence

# Most of a file is weights, but its structure stands near its ends: half of all damage is done there.
EDGE = 512
EXTREMES = (0, 1, -1, 2**7, 2**15, 2**31, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, -(2**63), -(2**31))
# The largest numbers, and one that never ends, as protocol buffers write them.
VARINTS = (b"\xff" * 4 + b"\x0f", b"\xff" * 9 + b"\x01", b"\x80" * 12, b"\xff" * 9 + b"\x7f")


def mutated(data: bytes, *, count: int, seed: int, tokens: Sequence[bytes] = ()) -> Iterator[bytes]:
    """Return damaged copies of a file, none of which equals it.

    Args:
      data: the good file, not empty.
      count: how many; one in four is damaged in several ways at once.
      seed: the same seed gives the same copies.
      tokens: byte strings that mean something to the reader (opcodes, tags, keys); they are inserted, and written over
        what was there.

    Yields:
      `count` files. The longest is at most eight times `data` and some bytes: each of up to three doublings.
    """
    if not data:
        raise ValueError("nothing to damage: the file is empty")
    rng = random.Random(seed)
    kinds: list[Callable[[bytes, random.Random], bytes]] = [
        _truncate,
        _flip_bits,
        _random_bytes,
        _delete,
        _insert,
        _repeat,
        _swap,
        _zeros,
        _extreme_integer,
        _extreme_integer,
        _varint,
    ]
    if tokens:
        kinds += [lambda file, rng: _token(file, rng, tokens)] * 3
    while count:
        file = data
        for _ in range(rng.choice((1, 1, 1, rng.randint(2, 3)))):
            file = rng.choice(kinds)(file, rng)
        if file != data:
            count -= 1
            yield file


def _position(file: bytes, rng: random.Random) -> int:
    last = max(len(file) - 1, 0)
    near = min(rng.randrange(EDGE), last)
    return rng.choice((near, last - near, rng.randint(0, last), rng.randint(0, last)))


def _range(file: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the start and end of a range: usually some bytes, sometimes up to the whole file."""
    start = _position(file, rng)
    longest = rng.choice((1, 4, 16, 64, max(len(file), 1)))
    return start, min(start + rng.randint(1, longest), len(file))


def _overwrite(file: bytes, start: int, new: bytes) -> bytes:
    return file[:start] + new + file[start + len(new) :]


def _truncate(file: bytes, rng: random.Random) -> bytes:
    return file[: _position(file, rng)]


def _flip_bits(file: bytes, rng: random.Random) -> bytes:
    changed = bytearray(file)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[_position(file, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _random_bytes(file: bytes, rng: random.Random) -> bytes:
    start, end = _range(file, rng)
    return _overwrite(file, start, rng.randbytes(end - start))


def _delete(file: bytes, rng: random.Random) -> bytes:
    start, end = _range(file, rng)
    return file[:start] + file[end:]


def _insert(file: bytes, rng: random.Random) -> bytes:
    start = _position(file, rng)
    return file[:start] + rng.randbytes(rng.choice((1, 2, 4, 8, 64))) + file[start:]


def _repeat(file: bytes, rng: random.Random) -> bytes:
    start, end = _range(file, rng)
    return file[:end] + file[start:]


def _swap(file: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_range(file, rng), _range(file, rng)))
    c, d = max(b, c), max(b, d)
    return file[:a] + file[c:d] + file[b:c] + file[a:b] + file[d:]


def _zeros(file: bytes, rng: random.Random) -> bytes:
    start, end = _range(file, rng)
    return _overwrite(file, start, bytes(end - start))


def _extreme_integer(file: bytes, rng: random.Random) -> bytes:
    code = rng.choice("BHIQ")
    size = struct.calcsize("<" + code)
    number = rng.choice((*EXTREMES, len(file), len(file) + 1)) % 256**size
    return _overwrite(file, _position(file, rng), number.to_bytes(size, rng.choice(("little", "little", "big"))))


def _varint(file: bytes, rng: random.Random) -> bytes:
    start, varint = _position(file, rng), rng.choice(VARINTS)
    return _overwrite(file, start, varint) if rng.random() < 0.5 else file[:start] + varint + file[start:]


def _token(file: bytes, rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    start, token = _position(file, rng), rng.choice(tokens)
    return _overwrite(file, start, token) if rng.random() < 0.5 else file[:start] + token + file[start:]
