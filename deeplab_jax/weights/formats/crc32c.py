"""CRC-32C (Castagnoli), the checksum of LevelDB's tables and TensorFlow's checkpoints, fast enough in numpy.

A CRC is linear over GF(2): a long input is cut into strips whose remainders are computed side by side, and are then put
together by shifting the earlier of two over the length of the later.
"""

from functools import lru_cache, reduce

import numpy as np

POLYNOMIAL = 0x82F63B78  # Bits in reverse, as the checksum is defined.
ONES = 0xFFFFFFFF
STRIPS = 8192  # At most; a power of 2.
SHORT = 64  # Bytes below which strips do not pay.


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes, 0 to 2**32 - 1."""
    if len(data) < SHORT:
        return _remainder(data)
    strips = min(STRIPS, 1 << (len(data) // SHORT).bit_length() - 1)
    words = -(-len(data) // (2 * strips))  # of two bytes, in each strip
    # Zeros in front leave the remainder of zero; the checksum's start of ones is that of its first four bytes inverted.
    padded = np.zeros(2 * strips * words, np.uint8)
    start = padded.size - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 0xFF
    state = np.zeros(strips, np.uint32)
    table = _table(16)
    for column in np.ascontiguousarray(padded.view("<u2").reshape(strips, words).T):
        state = table[state.astype(np.uint16) ^ column] ^ (state >> 16)
    shift = _zeros_appended(2 * words)
    while state.size > 1:
        state = _apply(shift, state[0::2]) ^ state[1::2]
        shift = _apply(shift, shift)
    return int(state[0]) ^ ONES


def masked_crc32c(data: bytes) -> int:
    """Return the checksum as both formats store it: rotated and offset, since data may hold checksums itself."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & ONES


def _remainder(data: bytes) -> int:
    table = _table(8)
    state = ONES
    for byte in data:
        state = int(table[(state ^ byte) & 0xFF]) ^ (state >> 8)
    return state ^ ONES


@lru_cache
def _table(bits: int) -> np.ndarray:
    """Return what `bits` steps make of each of the values of so many bits, uint32 `[2 ** bits]`."""
    values = np.arange(1 << bits, dtype=np.uint32)
    for _ in range(bits):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(POLYNOMIAL), values >> 1)
    return values


def _apply(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Multiply uint32 vectors over GF(2) by a matrix, given as the images of the 32 bits."""
    set_bits = (values[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return reduce(np.bitwise_xor, (set_bits * matrix).T)


@lru_cache(maxsize=256)
def _zeros_appended(count: int) -> np.ndarray:
    """Return the matrix of `count` zero bytes, by repeated squaring of that of one."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power = _table(8)[bits & 0xFF] ^ (bits >> 8)
    result = bits
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result
