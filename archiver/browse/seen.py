"""Which chunks a verification has met: 40 bytes each, on disk when there are many."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from archiver.core.disk import explained, nameless_file
from archiver.store.digests import DistinctDigests
from archiver.store.indexes import Index
from formats.index import DIGEST_SIZE

_SIZE = np.dtype(">u8")
_ROW = np.dtype(f"V{DIGEST_SIZE + _SIZE.itemsize}")
_ENTRIES_AT_ONCE = 1 << 18  # of an index
_IN_MEMORY = 1 << 19  # rows of a run: 20 MiB
_MERGED_AT_ONCE = 1 << 16  # rows

Rows = NDArray[Any]  # of _ROW: a digest, and the size that an index gives it


class SeenChunks:
    """A set of pairs: digest, and size as an index has it. A chunk of two sizes is met twice, one must be wrong.

    Large parts of it are in files without names in the directory for temporary files, and mapped: their memory is the
    page cache's. They are not sealed, as they have nothing that the index files do not show.
    """

    def __init__(self) -> None:
        self._runs: list[Rows] = []  # each sorted, and more than twice as long as the next

    def rows(self) -> Rows:
        """All pairs, sorted. Raises ArchiverError (NoSpace on a full disk)."""
        while len(self._runs) > 1:
            self._merge()
        return self._runs[0] if self._runs else np.empty(0, _ROW)

    def add(self, index: Index) -> Iterator[Rows]:
        """The pairs of ``index`` that were not met before, each once: some at a time, ordered by digest. Raises
        ArchiverError (NoSpace on a full disk)."""
        for start in range(0, len(index), _ENTRIES_AT_ONCE):
            stop = min(start + _ENTRIES_AT_ONCE, len(index))
            rows = _distinct(index.digests[start:stop], index.sizes(start, stop))
            for run in self._runs:
                rows = rows[~_are_in(run, rows)]
            if len(rows):
                self._runs.append(rows)
                while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
                    self._merge()
                yield rows

    def _merge(self) -> None:
        """Make one of the last two runs."""
        one, other = self._runs[-2:]
        if len(one) + len(other) <= _IN_MEMORY:
            merged: Rows = _sorted([one, other])
        else:
            merged = _merged_on_disk(one, other)
        self._runs[-2:] = [merged]


def _sorted(runs: list[Rows]) -> Rows:
    joined: Rows = np.concatenate(runs)
    joined.sort(kind="stable")  # which is made for what is sorted in parts
    return joined


def _merged_on_disk(one: Rows, other: Rows) -> Rows:
    """Two runs as one, which is mapped from a file. Raises ArchiverError (NoSpace on a full disk)."""
    with explained("make a file for", "what was met: no directory for temporary files"):
        place = tempfile.gettempdir()
    with explained("write into", place), open(nameless_file(place), "r+b") as file:
        return _merged_in(file, one, other)


def _merged_in(file: IO[bytes], one: Rows, other: Rows) -> Rows:
    """Two runs as one, which is mapped from ``file``. Raises OSError."""
    while len(one) and len(other):
        some, others = one[:_MERGED_AT_ONCE], other[:_MERGED_AT_ONCE]
        # What comes up to the end of either is all there is up to there.
        last = min(some[-1].tobytes(), others[-1].tobytes())
        until = np.frombuffer(last, _ROW)
        here, there = (int(np.searchsorted(rows, until, "right")[0]) for rows in (some, others))
        file.write(_sorted([some[:here], others[:there]]).data)
        one, other = one[here:], other[there:]
    for rest in (one, other):
        for start in range(0, len(rest), _MERGED_AT_ONCE):
            file.write(rest[start : start + _MERGED_AT_ONCE].tobytes())
    file.flush()
    merged: Rows = np.frombuffer(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ), _ROW)
    return merged


def _are_in(run: Rows, rows: Rows) -> NDArray[np.bool_]:
    places = np.searchsorted(run, rows)
    found: NDArray[np.bool_] = places < len(run)
    found[found] = run[places[found]] == rows[found]
    return found


def _distinct(digests: NDArray[np.uint8], sizes: NDArray[np.uint64]) -> Rows:
    """The pairs, sorted."""
    distinct = DistinctDigests(digests)
    one = distinct.one_of(sizes)
    rows: Rows = np.concatenate([np.empty(0, _ROW), *(_joined(*part) for part in distinct.parts_with(one))])
    others = np.flatnonzero(one[distinct.positions] != sizes)
    if others.size:
        rows = np.unique(np.concatenate([rows, _joined(digests[others], sizes[others])]))
    return rows


def _joined(digests: NDArray[np.uint8], sizes: NDArray[np.uint64]) -> Rows:
    pairs = np.empty((len(digests), _ROW.itemsize), np.uint8)
    pairs[:, :DIGEST_SIZE] = digests
    pairs[:, DIGEST_SIZE:] = sizes.astype(_SIZE).view(np.uint8).reshape(-1, _SIZE.itemsize)
    rows: Rows = pairs.view(_ROW).ravel()
    return rows


def pairs_of(rows: Rows) -> Iterator[tuple[bytes, int]]:
    for row in rows:
        data = row.tobytes()
        yield data[:DIGEST_SIZE], int.from_bytes(data[DIGEST_SIZE:])


def digests_of(rows: Rows) -> NDArray[np.uint8]:
    """An (n, 32) array."""
    data: NDArray[np.uint8] = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, _ROW.itemsize)
    return data[:, :DIGEST_SIZE]


def sizes_of(rows: Rows) -> NDArray[np.uint32]:
    """The sizes, no more than 32 bits of them."""
    sizes = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, _ROW.itemsize)[:, DIGEST_SIZE:]
    wide = np.ascontiguousarray(sizes).view(_SIZE).ravel()
    return np.minimum(wide, 0xFFFF_FFFF).astype(np.uint32)
