"""The names of a directory's entries, however many there are: eight bytes each, and beyond a bound on disk.

Where the file system takes names that differ in case for the same one, so does this.
"""

from __future__ import annotations

import os
import tempfile
import unicodedata
from array import array
from typing import BinaryIO, cast

import numpy as np

from archiver.core import linux
from archiver.core.disk import explained

_IN_MEMORY = 1 << 20  # names
_FOLDS = 0x40000000  # FS_CASEFOLD_FL


class NameSet:
    """Names are kept as hashes with a secret of this process; two that share one are taken for equal. Add all, then
    ask."""

    def __init__(self, *, folding: bool) -> None:
        self._folding = folding
        self._recent = array("q")
        self._file: BinaryIO | None = None
        self._sorted: np.ndarray | None = None

    def add(self, name: bytes) -> None:
        self._recent.append(hash(_folded(name) if self._folding else name))
        if len(self._recent) >= _IN_MEMORY:
            with explained("write into", tempfile.gettempdir()):
                if self._file is None:
                    self._file = cast(BinaryIO, tempfile.TemporaryFile())
                self._recent.tofile(self._file)
            self._recent = array("q")

    def __contains__(self, name: bytes) -> bool:
        if self._sorted is None:
            self._sorted = self._sort()
        wanted = hash(_folded(name) if self._folding else name)
        at = int(np.searchsorted(self._sorted, wanted))
        return at < len(self._sorted) and int(self._sorted[at]) == wanted

    def _sort(self) -> np.ndarray:
        if self._file is None:
            return np.sort(np.frombuffer(self._recent, np.int64)) if self._recent else np.empty(0, np.int64)
        with explained("write into", tempfile.gettempdir()):
            self._recent.tofile(self._file)
            self._file.flush()
        mapped = np.memmap(self._file, np.int64, "r+")
        mapped.sort()
        return mapped


def folds_names(fd: int) -> bool:
    """Whether an open directory may take names of different case for one: also where that is not known."""
    if linux.filesystem_type(fd) not in linux.STABLE:
        return True
    return bool((linux.get_flags(fd) or 0) & _FOLDS)


def _folded(name: bytes) -> bytes:
    text = unicodedata.normalize("NFKD", os.fsdecode(name).casefold())
    return unicodedata.normalize("NFKD", text.casefold()).encode("utf-8", "surrogateescape").rstrip(b". ")
