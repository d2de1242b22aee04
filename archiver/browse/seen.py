"""Which chunks a verification has met: 40 bytes each, however many the store has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.store.digests import DistinctDigests
from archiver.store.indexes import Index
from formats.index import DIGEST_SIZE

_SIZE = np.dtype(">u8")
_ROW = np.dtype(f"V{DIGEST_SIZE + _SIZE.itemsize}")

Rows = NDArray[Any]  # of _ROW: a digest, and the size that an index gives it


class SeenChunks:
    """A set of pairs: digest, and size as an index has it. A chunk of two sizes is met twice, one must be wrong."""

    def __init__(self) -> None:
        self._runs: list[Rows] = []  # each sorted, and more than twice as long as the next

    @property
    def rows(self) -> Rows:
        """All pairs, sorted."""
        return np.sort(np.concatenate([np.empty(0, _ROW), *self._runs]))

    def add(self, index: Index) -> Rows:
        """The pairs of ``index`` that were not met before, ordered by digest."""
        rows: Rows = _distinct(index)
        for run in self._runs:
            rows = rows[~_are_in(run, rows)]
        if len(rows):
            self._runs.append(rows)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        return rows


def _are_in(run: Rows, rows: Rows) -> NDArray[np.bool_]:
    places = np.searchsorted(run, rows)
    found: NDArray[np.bool_] = places < len(run)
    found[found] = run[places[found]] == rows[found]
    return found


def _distinct(index: Index) -> Rows:
    """The pairs of ``index``, sorted."""
    distinct, sizes = DistinctDigests(index.digests), index.sizes()
    first = np.zeros(len(distinct), np.uint64)
    first[distinct.positions] = sizes
    rows: Rows = np.empty(len(distinct), _ROW)
    done = 0
    for digests in distinct.parts():
        part = slice(done, done := done + len(digests))
        rows[part] = _joined(digests, first[part])
    others = np.flatnonzero(first[distinct.positions] != sizes)
    if others.size:
        rows = np.unique(np.concatenate([rows, _joined(index.digests[others], sizes[others])]))
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


def prefixes_of(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The first 8 bytes of each digest, as numbers in any order: few others have the same."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
