"""Reading again a share of the files that are taken for unchanged, another share in every run.

What metadata cannot show: contents that were changed with all times put back, and rot, here or in the store.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from archiver.backup.reference import Reference
from archiver.browse.stream import ChunkStream
from archiver.core.disk import read_at
from archiver.core.holes import is_hole, is_zeros
from archiver.errors import ArchiverError
from archiver.source.content import OpenFile
from archiver.store.catalog.catalog import Catalog
from archiver.store.chunks import ChunkDamaged
from archiver.store.database import records
from formats.errors import FormatError
from formats.pxar.constants import HEADER_SIZE

_SPREAD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: neighbours in a directory come at different times
_AT_ONCE = 1 << 20
_DAY = 86400


class Audit:
    """One run's share. ``contents`` is the previous payload stream, the first one of ``reference``; ``distrust`` hears
    of damaged chunks."""

    def __init__(
        self,
        percent: float,
        turn: int,
        contents: ChunkStream,
        reference: Reference,
        distrust: Callable[[bytes], object],
    ) -> None:
        self._shares = max(1, round(100 / percent))
        self._share = turn % self._shares
        self._contents = contents
        self._reference = reference
        self._distrust = distrust

    def chooses(self, rows: bytes) -> bool:
        """Whether a file with one of these rows is to be read."""
        return bool(self.choices(rows).any())

    def choices(self, rows: bytes) -> NDArray[np.bool_]:
        """(n,): whether the file with each of these rows is to be read."""
        numbers = np.frombuffer(rows, "<u8").reshape(-1, 4)
        shares = (numbers[:, 0] * np.uint64(_SPREAD) >> np.uint64(40)) % np.uint64(self._shares)
        chosen: NDArray[np.bool_] = (shares == self._share) & (numbers[:, 1] < 1 << 63)
        return chosen

    def compare(self, file: OpenFile, offset: int, size: int) -> str | None:
        """What is wrong with the contents that were stored at ``offset``; None when they are those of the file."""
        start = offset + HEADER_SIZE
        zeros: object = None  # a chunk that is nothing else; a long hole has it again and again
        try:
            done = 0
            for piece in self._contents.pieces(start, size):
                chunk = memoryview(piece).obj
                if is_hole(file.fd, done, done + len(piece)) and (chunk is zeros or is_zeros(piece)):
                    if isinstance(chunk, bytes) and len(piece) == len(chunk):
                        zeros = chunk
                    done += len(piece)
                    continue
                for at in range(0, len(piece), _AT_ONCE):
                    part = memoryview(piece)[at : at + _AT_ONCE]
                    if read_at(file.fd, len(part), done) != part:
                        return (
                            "was changed with its times put back, or has rotted: its contents differ from those stored"
                        )
                    done += len(part)
        except (ArchiverError, FormatError) as error:
            if isinstance(error, ChunkDamaged):
                self._distrust(error.digest)
            self._reference.give_up(offset, offset + HEADER_SIZE + size)
            return f"what is stored of it cannot be read, it is stored again: {error}"
        return None


def next_turn(catalog: Catalog | None, now: int) -> int:
    """Which share it is. Losing count only makes one share wait longer."""
    if catalog is None:
        return now // _DAY
    key = b"audit" + catalog.key
    value = catalog.database.get(records.META, key)
    turn: int = records.U32.unpack(value)[0] if value is not None else 0
    following = records.U32.pack((turn + 1) % (1 << 32))
    catalog.database.change(lambda txn: txn.put(key, following, db=catalog.database.table(records.META)))
    return turn
