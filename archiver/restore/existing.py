"""What becomes of what is in the place of an entry already: the rules of ``--overwrite``, and equal contents.

    never        it stays as it is
    if-changed   it becomes what the snapshot has; a file of equal size and modification time has equal contents
    if-newer     the same where the snapshot has a later modification time, without the short cut
    always       the same in any case, without the short cut

Contents that are equal are not written again. That takes reading them (see planner.py), but for the short cut.
"""

from __future__ import annotations

import errno
import os
import stat as st
from typing import Literal

from archiver.restore.marks import Marks
from formats.pxar.items import Entry
from formats.pxar.metadata import Stat

Overwrite = Literal["never", "if-changed", "if-newer", "always"]
Verdict = Literal["keep", "same", "compare", "write"]

_NANO = 1_000_000_000
_FORMATS = {"symlink": st.S_IFLNK, "fifo": st.S_IFIFO, "socket": st.S_IFSOCK, "char": st.S_IFCHR, "block": st.S_IFBLK}


def look(name: bytes, dir_fd: int) -> os.stat_result | None:
    """What is there, None for nothing; no symlink is followed."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def require_empty(name: bytes, dir_fd: int, found: os.stat_result) -> None:
    """Raises OSError for a directory with entries: only into a quarantine it gives way to something else."""
    if st.S_ISDIR(found.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            with os.scandir(fd) as entries:
                if next(entries, None) is not None:
                    raise OSError(errno.ENOTEMPTY, "a directory with entries is in its place")
        finally:
            os.close(fd)


def is_same_file(one: os.stat_result, other: os.stat_result | None) -> bool:
    return other is not None and (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


class Existing:
    """The rule of one restore. ``equal``: numbers of the entries whose contents were compared and found equal."""

    def __init__(self, overwrite: Overwrite | None) -> None:
        self.overwrite: Overwrite = overwrite or "never"
        self.equal = Marks()

    def of_ours(self) -> Existing:
        """The rule for what an interrupted restore has left: it becomes what the snapshot has."""
        rule = Existing("always" if self.overwrite == "always" else "if-changed")
        rule.equal = self.equal
        return rule

    @property
    def compares(self) -> bool:
        return self.overwrite != "never"

    def keeps(self, found: os.stat_result, stat: Stat) -> bool:
        """Whether what is there stays, however different it is."""
        if self.overwrite == "if-newer":
            return found.st_mtime_ns >= stat.mtime_secs * _NANO + stat.mtime_nanos
        return self.overwrite == "never"

    def file(self, number: int, found: os.stat_result, stat: Stat, size: int) -> Verdict:
        """``compare``: it takes reading to know."""
        if self.keeps(found, stat):
            return "keep"
        if not st.S_ISREG(found.st_mode) or found.st_size != size:
            return "write"
        if number in self.equal or (self.overwrite == "if-changed" and has_time(found, stat)):
            return "same"
        return "compare"

    def leaf(self, found: os.stat_result, entry: Entry, dir_fd: int) -> Verdict:
        """The same for symlinks, devices, fifos and sockets. Raises OSError."""
        assert entry.metadata is not None
        if self.keeps(found, entry.metadata.stat):
            return "keep"
        return "same" if is_as_archived(found, entry, dir_fd) else "write"


def is_as_archived(found: os.stat_result, entry: Entry, dir_fd: int) -> bool:
    """Whether a symlink, device, fifo or socket is that, owner, mode and time apart. Raises OSError."""
    if st.S_IFMT(found.st_mode) != _FORMATS[entry.kind]:
        return False
    if entry.kind == "symlink":
        return os.readlink(entry.name, dir_fd=dir_fd) == entry.target
    if entry.kind in ("char", "block"):
        return (os.major(found.st_rdev), os.minor(found.st_rdev)) == (entry.major, entry.minor)
    return True


def has_time(found: os.stat_result, stat: Stat) -> bool:
    return found.st_mtime_ns == stat.mtime_secs * _NANO + stat.mtime_nanos
