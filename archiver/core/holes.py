"""Holes: zeros that need not be read to be known."""

from __future__ import annotations

import errno
import os

import numpy as np

from formats.wire import Buffer


def is_zeros(data: Buffer) -> bool:
    """Whether all bytes are zero; most contents show at once that they are not."""
    view = memoryview(data)
    words = len(view) // 8
    if view[:8] != bytes(len(view[:8])) or view[words * 8 :] != bytes(len(view) - words * 8):
        return False
    return not np.frombuffer(view, np.uint64, words).any()


def is_hole(fd: int, start: int, end: int) -> bool:
    """Whether nothing is stored there, so that it reads as zeros. Where that cannot be told, False."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA) >= end
    except OSError as error:
        return error.errno == errno.ENXIO and os.fstat(fd).st_size >= end
