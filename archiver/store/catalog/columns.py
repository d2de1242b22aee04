"""Arrays of integers as small values: byte-transposed, compressed.

All of them at once are numpy's. A look-up in a few hundred rows does without: importing that takes longer.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    U64s = NDArray[np.uint64]

_HEAD = struct.Struct("<IB")
_MOST = 1 << 28  # rows; more is not believed
_U64 = (1 << 64) - 1


def pack_columns(columns: Sequence[U64s]) -> bytes:
    """Columns of one length n, as one value: head, then zstd of their differences' byte planes."""
    import numpy as np

    count = len(columns[0])
    planes = [np.diff(column, prepend=np.uint64(0)).view(np.uint8).reshape(count, 8).T for column in columns]
    data = b"".join(plane.tobytes() for plane in planes)
    return _HEAD.pack(count, len(columns)) + compress(data)


def compress(data: bytes) -> bytes:
    """With a checksum, by which damage is found."""
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


def unpack_columns(value: bytes) -> list[U64s]:
    """Raises ValueError, struct.error."""
    import numpy as np

    count, number, data = _decompressed(value)
    planes = np.frombuffer(data, np.uint8).reshape(number, 8, count).transpose(0, 2, 1)
    differences = np.ascontiguousarray(planes).view("<u8").reshape(number, count)
    return [np.cumsum(column, dtype=np.uint64) for column in differences]


def _decompressed(value: bytes) -> tuple[int, int, bytes]:
    """Rows, columns, byte planes of their differences."""
    count, number = _HEAD.unpack_from(value)
    if count > _MOST:
        raise ValueError("a catalog record is too large")
    try:
        data = zstandard.ZstdDecompressor().decompress(value[_HEAD.size :], max_output_size=8 * count * number)
    except zstandard.ZstdError as error:
        raise ValueError(f"a catalog record is damaged: {error}") from error
    if len(data) != 8 * count * number:
        raise ValueError("a catalog record has another length than it says")
    return count, number, data


class FewRows:
    """Columns of few rows, each made when it is looked at. Raises ValueError, struct.error."""

    def __init__(self, value: bytes) -> None:
        self._count, number, self._data = _decompressed(value)
        self._columns: list[array[int] | None] = [None] * number

    def __len__(self) -> int:
        """How many columns there are."""
        return len(self._columns)

    def column(self, number: int) -> array[int]:
        found = self._columns[number]
        if found is None:
            count = self._count
            planes = bytearray(8 * count)
            for plane in range(8):
                start = (8 * number + plane) * count
                planes[plane::8] = self._data[start : start + count]
            differences = struct.unpack(f"<{count}Q", planes)
            found = self._columns[number] = array("Q", [value & _U64 for value in accumulate(differences)])
        return found
