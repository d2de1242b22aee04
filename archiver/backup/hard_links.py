"""Which files of a run have further names, and where in the archive the first of these is."""

from __future__ import annotations

import os
import struct

from archiver.core.spill import SpillTable
from formats.pxar.constants import MAX_NAME

_KEY = struct.Struct("<QQQqq")
_POSITION = struct.Struct("<Q")


def link_key(stat: os.stat_result) -> bytes:
    """What two names of one file have in common. Size and times tell it from a later file that got the same inode.

    The change time is the one that nobody can set. A file that is changed in any way during the run, be it only its
    mode, is not linked any more: its later names become a file of their own.
    """
    return _KEY.pack(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class HardLinks:
    """Those of one archive; a table of any size in ``spill_directory``."""

    def __init__(self, spill_directory: str) -> None:
        self._table = SpillTable(spill_directory)

    def first(self, stat: os.stat_result) -> tuple[int, bytes] | None:
        """Position of the item and path of the name that was put first; None when there was none."""
        found = self._table.get(link_key(stat)) if stat.st_nlink > 1 else None
        if found is None:
            return None
        position: int = _POSITION.unpack_from(found)[0]
        return position, found[_POSITION.size :]

    def put(self, stat: os.stat_result, position: int, path: bytes) -> None:
        """A path that is too long for other names to refer to is left out: these become files of their own."""
        if len(path) <= MAX_NAME:
            self._table.put(link_key(stat), _POSITION.pack(position) + path)

    def close(self) -> None:
        self._table.close()
