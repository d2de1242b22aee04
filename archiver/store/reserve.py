"""Room that is kept for the day when the disk is full: ``.archiver/reserve``, a file that takes its space for nothing.

A writer that finds the disk full gives it up. Then there is room for what ends the run well, its journal and what the
database is told, and for forget, prune and gc. It is made again when there is room again. Nothing depends on it: a
store without it, or with a part of it, is as good.

How large: 32 MiB, or 1 % of a smaller file system; ``ARCHIVER_RESERVE`` says otherwise (0: none). Where it was given up
its room is not for the next run: as long as less than that is free, none begins.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from archiver.core.disk import Disk, available, is_directory
from archiver.core.sizes import parse_size
from archiver.errors import NoSpace
from archiver.store.layout import Layout

_LARGEST = 32 << 20  # bytes
_SHARE = 100  # of the file system, one part of so many
_PAGE = 4096
_MODE = 0o600
_FOR_PUBLISHING = 1 << 20  # bytes that must be free for a manifest, an index file and two directories


def size_for(base: str) -> int:
    """Bytes that the reserve of the store at ``base`` is to have. Raises UsageError."""
    chosen = os.environ.get("ARCHIVER_RESERVE")
    if chosen:
        return parse_size(chosen, "ARCHIVER_RESERVE", hint="write for example 32M, or 0 for none")
    space = os.statvfs(base)
    return min(_LARGEST, space.f_blocks * space.f_frsize // _SHARE) // _PAGE * _PAGE


def keep(layout: Layout, disk: Disk) -> None:
    """When a writer begins: make the reserve where it is missing and there is twice the room for it.

    Raises NoSpace where it is missing and not even its own room is free.
    """
    size = size_for(layout.base)
    if _allocated(layout.reserve) >= size or not is_directory(layout.private):
        return
    missing, free = size - _allocated(layout.reserve), available(layout.base)
    if free < missing:
        raise NoSpace(
            f"no space left to write into {layout.base}: {free >> 10} KiB are free, {missing >> 10} KiB are kept for"
            " making room",
            hint="make room: archiver forget or prune, then archiver gc; all that is stored is unharmed",
        )
    if free >= 2 * missing:
        with suppress(OSError):  # where files cannot be made so there is none
            disk.allocate(layout.reserve, size, _MODE)


def give_up(layout: Layout, disk: Disk) -> bool:
    """The disk is full. False when there is no reserve (any more)."""
    if not is_directory(layout.private) or not _allocated(layout.reserve):
        return False
    with suppress(OSError):
        disk.remove_file(layout.reserve)
        disk.sync_file_system(layout.private)  # some file systems give the room back only then
        return True
    return False


def before_publishing(layout: Layout, disk: Disk) -> None:
    """All that a run had to store is there: it is not to fail for want of the last few files."""
    if available(layout.base) < _FOR_PUBLISHING:
        give_up(layout, disk)


def _allocated(path: str) -> int:
    """Bytes that the file really takes."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
