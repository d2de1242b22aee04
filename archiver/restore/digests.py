"""What was written, in short: a keyed digest of every segment, kept in a file that has no name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable

from blake3 import blake3

from archiver.core.clock import Random

_SIZE = 16  # bytes of each digest


class SegmentDigests:
    """Written by the pass that restores, compared by the pass that checks. Usable from several threads.

    The digests are keyed with random bytes, so that they tell nothing about the contents.
    """

    def __init__(self, random: Random) -> None:
        self._key = random(32)
        self._file = tempfile.TemporaryFile()

    def record(self, number: int, data: memoryview) -> None:
        os.pwrite(self._file.fileno(), blake3(data, key=self._key).digest(_SIZE), number * _SIZE)

    def matches(self, number: int, pieces: Iterable[memoryview]) -> bool:
        hasher = blake3(key=self._key)
        for piece in pieces:
            hasher.update(piece)
        return os.pread(self._file.fileno(), _SIZE, number * _SIZE) == hasher.digest(_SIZE)

    def close(self) -> None:
        self._file.close()
