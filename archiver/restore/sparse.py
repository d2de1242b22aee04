"""Holes: blocks of zeros are left out when writing, and need not be read to be known."""

from __future__ import annotations

import errno
import os

import numpy as np

from formats.wire import Buffer

_BLOCK = 4096


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


def write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def write_sparse(fd: int, data: memoryview, offset: int) -> None:
    """Write ``data``, leaving out blocks of zeros; the size of the file is the caller's business."""
    lead = -offset % _BLOCK
    if lead:
        _write_unless_zero(fd, data[:lead], offset)
        data, offset = data[lead:], offset + lead
    blocks = len(data) // _BLOCK
    words = np.frombuffer(data[: blocks * _BLOCK], np.uint64).reshape(blocks, _BLOCK // 8)
    holes = np.flatnonzero(words[:, 0] == 0)  # few blocks begin with a zero word, so few are looked at completely
    holes = holes[~words[holes].any(axis=1)]
    used = np.zeros(blocks + 2, np.bool_)
    used[1:-1] = True
    used[1 + holes] = False
    edges = np.flatnonzero(used[1:] != used[:-1]) * _BLOCK
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        write_at(fd, data[start:end], offset + start)
    _write_unless_zero(fd, data[blocks * _BLOCK :], offset + blocks * _BLOCK)


def _write_unless_zero(fd: int, data: memoryview, offset: int) -> None:
    """Less than a block; a hole there would be lost by one written zero."""
    if data != bytes(len(data)):
        write_at(fd, data, offset)
