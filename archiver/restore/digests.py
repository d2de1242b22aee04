"""What was written, in short: a keyed digest of every segment, kept in a file that has no name."""

from __future__ import annotations

import os
import tempfile

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

    def _digest(self, data: memoryview) -> bytes:
        return blake3(data, key=self._key).digest(_SIZE)

    def record(self, number: int, data: memoryview) -> None:
        os.pwrite(self._file.fileno(), self._digest(data), number * _SIZE)

    def matches(self, number: int, data: memoryview) -> bool:
        return os.pread(self._file.fileno(), _SIZE, number * _SIZE) == self._digest(data)

    def close(self) -> None:
        self._file.close()
