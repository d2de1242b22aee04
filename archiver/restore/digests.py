"""What was written, in short: a keyed digest of every segment, kept in a file that has no name."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Iterable

from blake3 import blake3

from archiver.core.clock import Random
from archiver.core.disk import explained

_SIZE = 16  # bytes of each digest
_WINDOW = 1 << 20  # bytes mapped at a time


class SegmentDigests:
    """Written by the pass that restores, compared by the pass that checks. Usable from several threads.

    The digests are keyed with random bytes, so that they tell nothing about the contents.
    """

    def __init__(self, random: Random) -> None:
        """Raises ArchiverError when there is nowhere to write."""
        self._key = random(32)
        with explained("write into", "a directory for temporary files"):
            self._file = tempfile.TemporaryFile()
        self._windows: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def record(self, number: int, data: memoryview) -> None:
        """Raises ArchiverError (NoSpace on a full disk): not the file that is restored is to blame."""
        window, start = self._place(number)
        window[start : start + _SIZE] = blake3(data, key=self._key).digest(_SIZE)

    def matches(self, number: int, pieces: Iterable[memoryview]) -> bool:
        hasher = blake3(key=self._key)
        for piece in pieces:
            hasher.update(piece)
        window, start = self._place(number)
        return window[start : start + _SIZE] == hasher.digest(_SIZE)

    def _place(self, number: int) -> tuple[mmap.mmap, int]:
        index, start = divmod(number * _SIZE, _WINDOW)
        window = self._windows.get(index)
        if window is None:
            with self._lock:
                window = self._windows.get(index)
                if window is None:
                    # The space is taken before it is mapped: a full disk must be an error and not a signal.
                    with explained("write into", tempfile.gettempdir()):
                        os.posix_fallocate(self._file.fileno(), index * _WINDOW, _WINDOW)
                        window = mmap.mmap(self._file.fileno(), _WINDOW, offset=index * _WINDOW)
                    self._windows[index] = window
        return window, start

    def close(self) -> None:
        for window in self._windows.values():
            window.close()
        self._file.close()
