"""Raw attributes of files for tests: values as the kernel takes them, chattr bits, project ids, sparse files.

Nothing of the program is used here; see compare.py for why.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
from pathlib import Path

from tests.compare import FS_IOC_FSGETXATTR, FS_IOC_GETFLAGS, walk

FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSSETXATTR = 0x401C5820
_FSXATTR = struct.Struct("<5I8x")  # xflags, extsize, nextents, project id, cowextsize
NOATIME, NODUMP, SYNC, COMPRESSED, NOCOW, DIRSYNC = 0x80, 0x40, 0x8, 0x4, 0x800000, 0x10000
APPEND, IMMUTABLE = 0x20, 0x10

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 0x10, 0x20
NO_ID = 0xFFFFFFFF


def acl_value(*entries: tuple[int, int, int]) -> bytes:
    """The value of a system.posix_acl_* attribute from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def capability_value(
    permitted: int, *, inheritable: int = 0, effective: bool = True, root_id: int | None = None
) -> bytes:
    """The value of security.capability: revision 2, or revision 3 when ``root_id`` is given."""
    revision = 0x0200_0000 if root_id is None else 0x0300_0000
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    value = struct.pack("<5I", revision | effective, low, inheritable & 0xFFFFFFFF, high, inheritable >> 32)
    return value if root_id is None else value + struct.pack("<I", root_id)


def set_flags(path: Path, flags: int) -> None:
    """Add chattr bits; OSError when the file system refuses or silently drops them."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        change_flags(fd, add=flags)
        if _get_flags(fd) & flags != flags:
            raise OSError(errno.EOPNOTSUPP, "flags were not kept")
    finally:
        os.close(fd)


def _get_flags(fd: int) -> int:
    value: int = struct.unpack("I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))[0]
    return value


def change_flags(fd: int, *, add: int = 0, remove: int = 0) -> None:
    """Change chattr bits of an open file or directory."""
    flags = _get_flags(fd)
    if (flags | add) & ~remove != flags:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("I", (flags | add) & ~remove))


def set_project(path: Path, project: int, *, inherit: bool = False) -> None:
    """Set the quota project id; OSError where the file system has none."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        xflags, extsize, extents, _, cowextsize = _FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
        xflags |= 0x200 if inherit else 0  # FS_XFLAG_PROJINHERIT
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, _FSXATTR.pack(xflags, extsize, extents, project, cowextsize))
    finally:
        os.close(fd)


def write_sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    """A file of ``size`` bytes that is a hole except for the given offset -> bytes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.ftruncate(fd, size)
        for offset, data in pieces.items():
            os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def unlock_tree(root: Path) -> None:
    """Clear append-only and immutable flags and give the owner all rights on directories, so that the tree (or a
    restored copy) can be deleted. The tree is good for nothing else afterwards."""
    parent = os.open(root.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _unlock(parent, os.fsencode(root.absolute().name))
    finally:
        os.close(parent)
    for found in walk(root):
        if stat.S_ISDIR(found.stat.st_mode) or stat.S_ISREG(found.stat.st_mode):
            _unlock(found.parent, found.name)


def _unlock(parent: int, name: bytes) -> None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=parent)
    except PermissionError:  # not root and no right to read: it could not set such flags either
        pass
    else:
        try:
            change_flags(fd, remove=APPEND | IMMUTABLE)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(fd)
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=parent)


def remove_tree(root: Path) -> None:
    """Delete a tree whatever flags and modes it has."""
    unlock_tree(root)
    shutil.rmtree(root)
