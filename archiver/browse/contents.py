"""Whether two files have the same contents, reading as little as possible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archiver.browse.live import ZEROS, LiveNode, LiveView
from archiver.browse.stream import ChunkStream
from archiver.browse.view import ArchiveView
from archiver.store.indexes import Index
from formats.pxar.items import Entry
from formats.wire import Buffer


def same_chunks(first: Index, start: int, second: Index, other: int, size: int) -> bool:
    """Whether the same chunks have ``size`` bytes of both streams, at the same places in them. If so, these are equal;
    if not, nobody knows."""
    if not size:
        return True
    one, two = first.find(start), second.find(other)
    if start - first.start(one) != other - second.start(two):
        return False
    count = first.find(start + size - 1) + 1 - one
    if second.find(other + size - 1) + 1 - two != count:
        return False
    return bool((first.digests[one : one + count] == second.digests[two : two + count]).all())


class SameContents:
    """Of regular files of the same size. Raises Damaged."""

    def __init__(self, before: ArchiveView, after: ArchiveView | LiveView) -> None:
        self._before, self._after = before, after

    def __call__(self, old: Entry, new: Any) -> bool:
        if isinstance(self._after, ArchiveView):
            first, second = _range(self._before, old), _range(self._after, new)
            inside = all(offset >= 0 and offset + old.size <= stream.size for stream, offset in (first, second))
            if inside and same_chunks(first[0].index, first[1], second[0].index, second[1], old.size):
                return True
            return are_equal(self._before.pieces(old), self._after.pieces(new))
        assert isinstance(new, LiveNode)
        return are_equal(self._before.pieces(old), self._after.contents(new, old.size))


def _range(view: ArchiveView, entry: Entry) -> tuple[ChunkStream, int]:
    return (view.tree.archive if entry.payload_offset is None else view.tree.content), entry.content_offset


def are_equal(first: Iterator[Buffer], second: Iterator[Buffer]) -> bool:
    """Whether two sequences of pieces are the same bytes."""
    import numpy as np

    from archiver.core.holes import is_zeros

    one, two = memoryview(b""), memoryview(b"")
    blank: object = None  # zeros that pieces of ``first`` lie in: a large hole has the same chunk again and again
    while True:
        one = one or memoryview(next(first, b""))
        two = two or memoryview(next(second, b""))
        length = min(len(one), len(two))
        if not length:
            return len(one) == len(two)
        if two.obj is not ZEROS:
            # Five times as fast as memoryviews compare.
            if not np.array_equal(np.frombuffer(one[:length], np.uint8), np.frombuffer(two[:length], np.uint8)):
                return False
        elif one.obj is not blank:
            if isinstance(one.obj, bytes) and is_zeros(one.obj):
                blank = one.obj
            elif not is_zeros(one[:length]):
                return False
        one, two = one[length:], two[length:]
