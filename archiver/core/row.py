"""What is remembered of a live file to know it again: 32 bytes, i64 each: inode, size, mtime and ctime in ns.

Of a directory: inode, -1, the key of its record, 0. Numbers beyond i64 (times of very odd years, keys) are taken modulo
2^64.
"""

from __future__ import annotations

import os
import struct

ROW = struct.Struct("<qqqq")

_HALF = 1 << 63


def signed(value: int) -> int:
    """A number as it stands in a row: modulo 2^64, below 2^63."""
    return (value + _HALF) % (2 * _HALF) - _HALF


def file_row(stat: os.stat_result) -> bytes:
    """The row of a file."""
    try:
        return ROW.pack(stat[1], stat[6], stat.st_mtime_ns, stat.st_ctime_ns)
    except struct.error:
        return ROW.pack(signed(stat[1]), stat[6], signed(stat.st_mtime_ns), signed(stat.st_ctime_ns))
