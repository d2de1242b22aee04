"""Which chunks a verification has met: 40 bytes each, however many the store has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from archiver.store.indexes import Index
from formats.index import DIGEST_SIZE

_SIZE = np.dtype(">u8")
_ROW = np.dtype(f"V{DIGEST_SIZE + _SIZE.itemsize}")


class SeenChunks:
    """A set of pairs: digest, and size as an index has it. A chunk of two sizes is met twice, one must be wrong."""

    def __init__(self) -> None:
        self._rows = np.empty(0, _ROW)  # sorted

    def add(self, index: Index) -> Iterator[tuple[bytes, int]]:
        """The pairs of ``index`` that were not met before, ordered by digest."""
        pairs = np.empty((len(index), _ROW.itemsize), np.uint8)
        pairs[:, :DIGEST_SIZE] = index.digests
        pairs[:, DIGEST_SIZE:] = index.sizes().astype(_SIZE).view(np.uint8).reshape(-1, _SIZE.itemsize)
        rows = np.unique(pairs.view(_ROW).ravel())
        places = np.searchsorted(self._rows, rows)
        new = places == len(self._rows)
        new[~new] = self._rows[places[~new]] != rows[~new]
        rows = rows[new]
        self._rows = np.insert(self._rows, places[new], rows)
        for row in rows:
            data = row.tobytes()
            yield data[:DIGEST_SIZE], int.from_bytes(data[DIGEST_SIZE:])
