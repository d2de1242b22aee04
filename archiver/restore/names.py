"""The names of a directory's entries, however many there are: some bytes each, and beyond a bound on disk."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from array import array
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from archiver.core.disk import explained

if TYPE_CHECKING:
    import numpy as np

_IN_MEMORY = 1 << 20  # names


class NameSet:
    """Hashes with a secret of this process; names that share one are taken for equal. Add all, then ask."""

    def __init__(self) -> None:
        self._exact, self._folded = _Hashes(), _Hashes()

    def add(self, name: bytes) -> None:
        self._exact.add(hash(name))
        self._folded.add(hash(_folded(name)))

    def __contains__(self, name: bytes) -> bool:
        return hash(name) in self._exact

    def has_variant(self, name: bytes) -> bool:
        """Whether there is a name that a file system which ignores case may take for the same."""
        return hash(_folded(name)) in self._folded


class _Hashes:
    def __init__(self) -> None:
        self._recent = array("q")
        self._file: BinaryIO | None = None
        self._sorted: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def add(self, value: int) -> None:
        self._recent.append(value)
        if len(self._recent) >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        with explained("write into", tempfile.gettempdir()):
            if self._file is None:
                self._file = cast(BinaryIO, tempfile.TemporaryFile())
            self._recent.tofile(self._file)
            self._file.flush()
        self._recent = array("q")

    def __contains__(self, value: int) -> bool:
        import numpy as np

        if self._sorted is None:
            if self._file is None:
                self._sorted = np.sort(np.array(self._recent, np.int64))
            else:
                self._spill()
                self._sorted = np.memmap(self._file, np.int64, "r+")  # sorted in the page cache
                self._sorted.sort()
        at = int(np.searchsorted(self._sorted, value))
        return at < len(self._sorted) and int(self._sorted[at]) == value


def other_case(name: bytes) -> bytes:
    """The name with small and capital letters exchanged; of one without letters itself."""
    return os.fsencode(os.fsdecode(name).swapcase())


def _folded(name: bytes) -> bytes:
    text = unicodedata.normalize("NFKD", os.fsdecode(name)).casefold()
    return unicodedata.normalize("NFKD", text).encode("utf-8", "surrogateescape").rstrip(b". ")
