"""An independent comparison of directory trees: what a restore has to give back, read with nothing but system calls.

Imports nothing of the program, so that a mistake there cannot hide itself here. Everything works on names relative to
directory descriptors (a tree may hold paths longer than PATH_MAX), without recursion, with at most MAX_OPEN
directories open.

A *description* is a dict: key = path relative to the root in hex ("" is the root itself), value =

====================  ==========================================================================================
mode uid gid          as in stat; mode with the file type
mtime_ns              nanoseconds since 1970, may be negative
size                  bytes; null for directories
allocated             bytes on disk (st_blocks * 512)
rdev                  [major, minor] of devices, else null
target                hex, symbolic links only, else null
content               digest of a regular file's bytes (see ``_digest``), else null
xattrs                {hex name: hex value}, everything the kernel lists: ACLs and file capabilities included
flags project         chattr bits that archives keep (and nodump); project id; 0 where not supported
link                  hex path of the first name (in walk order) of the same inode if the tree holds several, else null
errors                {field: reason} for what could not be read; "entries" is the listing of a directory
====================  ==========================================================================================
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_OPEN = 32
BLOCK = 1 << 20
_ZEROS = bytes(BLOCK)

Description = dict[str, dict[str, Any]]

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_FSGETXATTR = 0x801C581F
NODUMP = 0x40
# append, noatime, compressed, nocow, dirsync, immutable, sync, nocomp, project inheritance
KEPT_FLAGS = 0x20 | 0x80 | 0x4 | 0x800000 | 0x10000 | 0x10 | 0x8 | 0x400 | 0x20000000

FIELDS = frozenset(
    {"mode", "uid", "gid", "mtime", "size", "content", "target", "rdev", "xattrs", "flags", "nodump", "project"}
    | {"links", "special-links", "entries"}
)
# Not kept by archives on purpose: nodump is stored but not restored, only regular files are linked, labels are local.
NOT_KEPT = frozenset({"nodump", "special-links", "xattr:security.selinux"})

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_QUIET = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Found(NamedTuple):
    """One entry: ``name`` in the open directory ``parent``; the root is ``.`` in itself and has the path ``b""``."""

    path: bytes
    parent: int
    name: bytes
    stat: os.stat_result


class _Level:
    """A directory on the current path. ``fd`` is None while it is closed to save descriptors."""

    __slots__ = ("fd", "inode", "names", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd: int | None = fd
        self.path = path
        status = os.fstat(fd)
        self.inode = (status.st_dev, status.st_ino)
        self.names = sorted(map(os.fsencode, os.listdir(fd)), reverse=True)


def walk(root: Path, unreadable: Callable[[bytes, OSError], None] | None = None) -> Iterator[Found]:
    """Every entry below and including ``root``, parents first, names in byte order. An entry is yielded before it is
    opened, so the caller may make it accessible. A directory that cannot be listed goes to ``unreadable``."""
    levels: list[_Level] = []
    try:
        fd = os.open(root, _DIRECTORY)
        try:
            yield Found(b"", fd, b".", os.fstat(fd))
            levels.append(_Level(fd, b""))
        except BaseException:
            os.close(fd)
            raise
        while levels:
            level = levels[-1]
            if not level.names:
                _leave(levels)
                continue
            assert level.fd is not None
            name = level.names.pop()
            found = Found(
                level.path + b"/" + name if level.path else name,
                level.fd,
                name,
                os.stat(name, dir_fd=level.fd, follow_symlinks=False),
            )
            yield found
            if stat.S_ISDIR(found.stat.st_mode):
                try:
                    _enter(levels, found)
                except OSError as error:
                    if unreadable is None:
                        raise
                    unreadable(found.path, error)
    finally:
        for level in levels:
            if level.fd is not None:
                os.close(level.fd)


def _enter(levels: list[_Level], found: Found) -> None:
    fd = os.open(found.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=found.parent)
    try:
        levels.append(_Level(fd, found.path))
    except OSError:
        os.close(fd)
        raise
    if len(levels) > MAX_OPEN:
        outer = levels[-1 - MAX_OPEN]
        if outer.fd is not None:
            os.close(outer.fd)
            outer.fd = None


def _leave(levels: list[_Level]) -> None:
    left = levels[-1]
    assert left.fd is not None
    if len(levels) > 1 and levels[-2].fd is None:
        fd = os.open("..", _DIRECTORY, dir_fd=left.fd)
        levels[-2].fd = fd
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != levels[-2].inode:
            raise RuntimeError(f"{left.path!r} was moved while the tree was read")
    levels.pop()
    os.close(left.fd)


def snapshot_tree(root: Path, *, content: bool = True) -> Description:
    """The full description of a tree (module docstring). ``content=False`` reads no file."""
    tree: Description = {}
    first_names: dict[tuple[int, int], str] = {}

    def unreadable(path: bytes, error: OSError) -> None:
        tree[path.hex()]["errors"]["entries"] = _reason(error)

    for found in walk(root, unreadable):
        key = found.path.hex()
        tree[key] = entry = _describe(found, content)
        if found.stat.st_nlink > 1 and not stat.S_ISDIR(found.stat.st_mode):
            inode = (found.stat.st_dev, found.stat.st_ino)
            first = first_names.setdefault(inode, key)
            if first != key:
                entry["link"] = tree[first]["link"] = first
    return tree


def _describe(found: Found, content: bool) -> dict[str, Any]:
    status = found.stat
    mode = status.st_mode
    errors: dict[str, str] = {}
    entry: dict[str, Any] = {
        "mode": mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "size": None if stat.S_ISDIR(mode) else status.st_size,
        "allocated": status.st_blocks * 512,
        "rdev": None,
        "target": None,
        "content": None,
        "flags": 0,
        "project": 0,
        "link": None,
        "errors": errors,
    }
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        entry["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    elif stat.S_ISLNK(mode):
        entry["target"] = os.readlink(found.name, dir_fd=found.parent).hex()
    elif stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        _describe_opened(found, entry, content and stat.S_ISREG(mode))
    entry["xattrs"] = _xattrs(found, errors)
    return entry


def _describe_opened(found: Found, entry: dict[str, Any], content: bool) -> None:
    try:
        fd = _open_quietly(found.name, found.parent)
    except OSError as error:
        entry["errors"].update(dict.fromkeys(["flags", "project"] + ["content"] * content, _reason(error)))
        return
    try:
        entry["flags"] = _ioctl(fd, FS_IOC_GETFLAGS, "I") & (KEPT_FLAGS | NODUMP)
        entry["project"] = _ioctl(fd, FS_IOC_FSGETXATTR, "12xI12x")
        if content:
            entry["content"] = _digest(fd, found.stat.st_size)
    finally:
        os.close(fd)


def _open_quietly(name: bytes, parent: int) -> int:
    """Open without changing the access time where that is allowed (it is for the owner)."""
    try:
        return os.open(name, _QUIET | os.O_NOATIME, dir_fd=parent)
    except PermissionError:
        return os.open(name, _QUIET, dir_fd=parent)


def _ioctl(fd: int, request: int, layout: str) -> int:
    try:
        (value,) = struct.unpack(layout, fcntl.ioctl(fd, request, bytes(struct.calcsize(layout))))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return 0
        raise
    return int(value)


def _digest(fd: int, size: int) -> str:
    """SHA-256 over (index, bytes) of each 1 MiB block that is not all zero: the same for zeros and holes, and a hole
    costs nothing. Together with the size it determines the content."""
    total = hashlib.sha256()
    done = 0  # blocks
    for start, end in _data_ranges(fd, size):
        for block in range(max(done, start // BLOCK), -(-end // BLOCK)):
            data = os.pread(fd, min(BLOCK, size - block * BLOCK), block * BLOCK)
            if data != _ZEROS[: len(data)]:
                total.update(struct.pack("<QQ", block, len(data)))
                total.update(data)
            done = block + 1
    return total.hexdigest()


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def _xattrs(found: Found, errors: dict[str, str]) -> dict[str, str]:
    # there is no listxattrat; the path through the parent's descriptor is short and does not follow the last link
    path = b"/proc/self/fd/%d/%s" % (found.parent, found.name)
    values: dict[str, str] = {}
    try:
        for name in os.listxattr(path, follow_symlinks=False):
            values[os.fsencode(name).hex()] = os.getxattr(path, name, follow_symlinks=False).hex()
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            errors["xattrs"] = _reason(error)
    return values


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)


def differences(
    a: Path,
    b: Path,
    *,
    content: bool = True,
    ignore: Collection[str] = NOT_KEPT,
    sparse_slack: int | None = None,
) -> list[str]:
    """One line for each difference between two trees, their roots included; empty when they are equal.

    ``content=False`` compares everything but file contents. ``ignore`` holds names of FIELDS or ``xattr:NAME``; a
    caller who ignores more writes ``NOT_KEPT | {...}``. With ``sparse_slack`` no file of ``b`` may allocate more than
    that many bytes above what it does in ``a``. What could not be read on either side is a difference: a comparison
    that saw nothing must not pass.
    """
    return compare_descriptions(
        snapshot_tree(a, content=content), snapshot_tree(b, content=content), ignore=ignore, sparse_slack=sparse_slack
    )


def compare_descriptions(
    a: Description, b: Description, *, ignore: Collection[str] = NOT_KEPT, sparse_slack: int | None = None
) -> list[str]:
    """``differences`` for two descriptions, for example of one tree at two times."""
    unknown = [name for name in ignore if name not in FIELDS and not name.startswith("xattr:")]
    if unknown:
        raise ValueError(f"unknown fields to ignore: {unknown}")
    lines: list[str] = []
    for key in sorted(a.keys() | b.keys(), key=bytes.fromhex):
        path = repr(bytes.fromhex(key) or b".")[1:]
        if key not in a or key not in b:
            lines.append(f"{path}: only in the {'second' if key not in a else 'first'} tree")
            continue
        for field, ours, theirs in _compare_entry(a[key], b[key], ignore):
            lines.append(f"{path}: {field}: {ours} != {theirs}")
        if sparse_slack is not None and stat.S_ISREG(a[key]["mode"]) and stat.S_ISREG(b[key]["mode"]):
            allowed = a[key]["allocated"] + sparse_slack
            if b[key]["allocated"] > allowed:
                lines.append(f"{path}: allocates {b[key]['allocated']} bytes, allowed {allowed}")
    return lines


def _compare_entry(
    a: dict[str, Any], b: dict[str, Any], ignore: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    if stat.S_IFMT(a["mode"]) != stat.S_IFMT(b["mode"]):
        yield "type", stat.filemode(a["mode"]), stat.filemode(b["mode"])
        return
    for field in sorted(a["errors"].keys() | b["errors"].keys()):
        if field not in ignore:
            yield f"{field} could not be read", a["errors"].get(field, "fine"), b["errors"].get(field, "fine")
    for field, (ours, theirs) in _fields(a, b).items():
        if ours != theirs and field not in ignore:
            yield field, ours, theirs
    if "xattrs" not in ignore:
        for key in sorted(a["xattrs"].keys() | b["xattrs"].keys()):
            name = f"xattr:{os.fsdecode(bytes.fromhex(key))}"
            if a["xattrs"].get(key) != b["xattrs"].get(key) and name not in ignore:
                yield ascii(name)[1:-1], a["xattrs"].get(key, "absent"), b["xattrs"].get(key, "absent")


def _fields(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[object, object]]:
    pair = {name: (a[name], b[name]) for name in ("uid", "gid", "size", "content", "target", "rdev", "project")}
    pair["mode"] = (oct(a["mode"]), oct(b["mode"]))
    pair["mtime"] = (a["mtime_ns"], b["mtime_ns"])
    pair["flags"] = (hex(a["flags"] & KEPT_FLAGS), hex(b["flags"] & KEPT_FLAGS))
    pair["nodump"] = (bool(a["flags"] & NODUMP), bool(b["flags"] & NODUMP))
    links = (_link_name(a), _link_name(b))
    pair["links" if stat.S_ISREG(a["mode"]) else "special-links"] = links
    return pair


def _link_name(entry: dict[str, Any]) -> str | None:
    return None if entry["link"] is None else repr(bytes.fromhex(entry["link"]))[1:]
