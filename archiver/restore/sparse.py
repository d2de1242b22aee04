"""Writing with holes: blocks of zeros are left out."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096


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
    holes = zero_blocks(data[: blocks * _BLOCK])
    used = np.zeros(blocks + 2, np.bool_)
    used[1:-1] = True
    used[1 + holes] = False
    edges = np.flatnonzero(used[1:] != used[:-1]) * _BLOCK
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        write_at(fd, data[start:end], offset + start)
    _write_unless_zero(fd, data[blocks * _BLOCK :], offset + blocks * _BLOCK)


def zero_blocks(data: memoryview) -> NDArray[np.intp]:
    """The numbers of the blocks that are zeros, among whole blocks."""
    words = np.frombuffer(data, np.uint64).reshape(-1, _BLOCK // 8)
    holes = np.flatnonzero(words[:, 0] == 0)  # few blocks begin with a zero word, so few are looked at completely
    return holes[~words[holes].any(axis=1)]


def _write_unless_zero(fd: int, data: memoryview, offset: int) -> None:
    """Less than a block; a hole there would be lost by one written zero."""
    if data != bytes(len(data)):
        write_at(fd, data, offset)
