"""How many names each file of an archive has: what an archive does not say in one place.

A hard link is an item of its own that says where its file is, so all of them have to be found. They are few: the bytes
of the metadata stream are searched for the number that such an item begins with, which takes half a second for a
million entries, most of it for decoding the chunks. Only in an archive that holds the contents too, which may hold
archives themselves, its items have to be followed; a large one is not read for that.
"""

from __future__ import annotations

import struct
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from archiver.browse.snapshot import Tree
from archiver.browse.stream import ChunkStream
from archiver.errors import ArchiverError
from formats.errors import FormatError
from formats.pxar import constants as c
from formats.pxar.decoder import LEAVE

SEARCHED_AT_ONCE = 16 << 20  # bytes of a stream that are searched before anybody notices
_LARGEST_READ = 256 << 20  # bytes of an archive with contents
_HARDLINK = struct.pack("<Q", c.HARDLINK)
_FILENAME = struct.pack("<Q", c.FILENAME)
_LONGEST = 2 * c.HEADER_SIZE + c.U64.size + 2 * (c.MAX_NAME + 1)  # bytes of FILENAME and HARDLINK items
_PIECE = 4 << 20
_SUM_UP_FROM = 1 << 20  # links


class LinkCounts:
    """Names of the files of a tree. The first question for one has the archive searched; others wait for it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._positions: memoryview[int] = memoryview(array("Q"))
        self._counts: memoryview[int] = memoryview(array("Q"))
        self.known = False
        self.complete = tree.split or tree.archive.size <= _LARGEST_READ

    def of(self, position: int) -> int:
        """Of the file whose FILENAME item is at ``position``. Where links cannot be read they are not counted."""
        if not self.known:
            with self._lock:
                if not self.known:
                    self._search()
                    self.known = True
        found = bisect_left(self._positions, position)
        if found < len(self._positions) and self._positions[found] == position:
            return 1 + self._counts[found]
        return 1

    def _search(self) -> None:
        if not self.complete:
            return
        positions, counts = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        links = array("Q")
        source = _searched(self._tree.archive) if self._tree.split else _followed(self._tree)
        try:
            for target in source:
                links.append(target)
                if len(links) >= _SUM_UP_FROM:
                    positions, counts = _summed(positions, counts, links)
                    del links[:]
        except (ArchiverError, FormatError):
            self.complete = False  # whoever reads what is damaged is told
        positions, counts = _summed(positions, counts, links)
        self._positions, self._counts = positions.data, counts.data


def _summed(
    positions: np.ndarray[tuple[int], np.dtype[np.uint64]],
    counts: np.ndarray[tuple[int], np.dtype[np.uint64]],
    links: array[int],
) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """The counts with some links more."""
    new = np.array(links, np.uint64)
    keys, places = np.unique(np.concatenate([positions, new]), return_inverse=True)
    weights = np.concatenate([counts, np.ones(len(new), np.uint64)])
    sums = np.zeros(len(keys), np.uint64)
    np.add.at(sums, places, weights)
    return keys, sums


def _searched(stream: ChunkStream) -> Iterator[int]:
    """What the HARDLINK items of a metadata stream lead to."""
    before, offset = b"", 0  # ``before``: the end of what was searched, which begins at ``offset``
    position = 0
    while position < stream.size:
        piece = stream.read_at(position, _PIECE)
        position += len(piece)
        data = before + piece
        hit = data.find(_HARDLINK)
        while 0 <= hit <= len(data) - c.HEADER_SIZE - c.U64.size:
            target = _target(data, hit, offset)
            if target is not None:
                yield target
            hit = data.find(_HARDLINK, hit + 1)
        # an item that is not wholly there begins in what is kept; those that are kept whole must not be found again
        keep = min(len(data), _LONGEST)
        before = data[-keep:]
        offset += len(data) - keep
        while 0 <= (known := before.find(_HARDLINK)) <= len(before) - c.HEADER_SIZE - c.U64.size:
            before, offset = before[known + 1 :], offset + known + 1


def _target(data: bytes, hit: int, offset: int) -> int | None:
    """Where the item at ``hit`` of ``data`` (which begins at ``offset``) leads to; None when it is no item."""
    start = data.rfind(_FILENAME, max(0, hit - c.HEADER_SIZE - c.MAX_NAME - 1), hit)
    if start < 0 or c.HEADER.unpack_from(data, start)[1] != hit - start:
        return None
    _, size = c.HEADER.unpack_from(data, hit)
    (distance,) = c.U64.unpack_from(data, hit + c.HEADER_SIZE)
    if not c.HEADER_SIZE + c.U64.size + 1 < size <= _LONGEST or not 0 < distance <= offset + start:
        return None
    return int(offset + start - distance)


def _followed(tree: Tree) -> Iterator[int]:
    for event in tree.decoder():
        if event is not LEAVE and event.kind == "hardlink":
            yield event.link_target
