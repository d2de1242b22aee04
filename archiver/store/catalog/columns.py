"""Arrays of integers as small values: byte-transposed, compressed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

_HEAD = struct.Struct("<IB")
_MOST = 1 << 28  # rows; more is not believed

U64s = NDArray[np.uint64]


def pack_columns(columns: Sequence[U64s]) -> bytes:
    """Columns of one length n, as one value: head, then zstd of their differences' byte planes."""
    count = len(columns[0])
    planes = [np.diff(column, prepend=np.uint64(0)).view(np.uint8).reshape(count, 8).T for column in columns]
    data = b"".join(plane.tobytes() for plane in planes)
    return _HEAD.pack(count, len(columns)) + compress(data)


def compress(data: bytes) -> bytes:
    """With a checksum, by which damage is found."""
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


def unpack_columns(value: bytes) -> list[U64s]:
    """Raises ValueError, struct.error."""
    count, number = _HEAD.unpack_from(value)
    if count > _MOST:
        raise ValueError("a catalog record is too large")
    try:
        data = zstandard.ZstdDecompressor().decompress(value[_HEAD.size :], max_output_size=8 * count * number)
    except zstandard.ZstdError as error:
        raise ValueError(f"a catalog record is damaged: {error}") from error
    if len(data) != 8 * count * number:
        raise ValueError("a catalog record has another length than it says")
    planes = np.frombuffer(data, np.uint8).reshape(number, 8, count).transpose(0, 2, 1)
    differences = np.ascontiguousarray(planes).view("<u8").reshape(number, count)
    return [np.cumsum(column, dtype=np.uint64) for column in differences]
