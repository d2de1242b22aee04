"""Directory trees for tests: one with every feature an archive must keep, plain random ones, and random changes.

Everything is reproducible: contents come from fixed seeds. What the file system or the rights of the process do not
allow is left out and named in the notes that ``build_features`` returns, so a test can insist on what it needs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.attributes import (
    APPEND,
    COMPRESSED,
    DIRSYNC,
    GROUP,
    GROUP_OBJ,
    IMMUTABLE,
    MASK,
    NO_ID,
    NOATIME,
    NOCOW,
    NODUMP,
    OTHER,
    SYNC,
    USER,
    USER_OBJ,
    acl_value,
    capability_value,
    remove_tree,
    set_flags,
    set_project,
    unlock_tree,
    write_sparse,
)
from tests.random_trees import SECOND, START, build_plain, mutate, noise

__all__ = ["build_features", "build_plain", "mutate", "remove_tree", "unlock_tree"]

HUGE_SPARSE = 5 << 30
NOBODY = 65534


class Notes(list[str]):
    """What could not be made, one line each."""

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Run the block; an operating system error becomes a note."""
        try:
            yield
        except OSError as error:
            self.append(f"{what}: {os.strerror(error.errno or 0)}")


def build_features(root: Path, *, as_root: bool, huge: bool = False) -> list[str]:
    """Fill ``root`` (made if absent) with one directory per group of features; returns what could not be made.

    ``as_root`` adds what needs privileges: devices, owners, trusted.*, capabilities, entries of mode 000, append-only
    and immutable flags, project ids. ``huge`` makes a 5 GiB sparse file and 20,000 entries in one directory (else
    2,000). Call ``unlock_tree`` before deleting the tree or a copy of it.
    """
    notes = Notes()
    root.mkdir(exist_ok=True)
    for build in (_contents, _directories, _names, _long_paths, _symlinks, _links, _times, _modes):
        build(root, notes)
    _specials(root, notes, as_root)
    _acls(root, notes)
    _xattrs(root, notes, as_root)
    _sparse(root, huge)
    _many(root, 20_000 if huge else 2_000)
    if as_root:
        _owners(root, notes)
        _capabilities(root, notes)
        _forbidden(root)
        _projects(root, notes)
    _flags(root, notes, as_root)
    return list(notes)


def _make(parent: Path, name: str | bytes = "") -> Path:
    path = parent / os.fsdecode(name)
    path.mkdir()
    return path


def _write(parent: Path, name: str | bytes, data: bytes = b"content\n") -> Path:
    path = parent / os.fsdecode(name)
    path.write_bytes(data)
    return path


def _contents(root: Path, notes: Notes) -> None:
    files = _make(root, "files")
    for size in (0, 1, 17, 4095, 4096, 4097, 5 << 20):
        _write(files, f"size-{size}", noise(size, size))
    _write(files, "text", b"the quick brown fox jumps over the lazy dog\n" * 5000)
    _write(files, "zeros", bytes(1 << 20))
    _write(files, "one-zero", b"\0")
    _write(files, "zeros-then-byte", bytes(65536) + b"\1")


def _directories(root: Path, notes: Notes) -> None:
    directories = _make(root, "directories")
    _make(_make(_make(directories, "empty"), "empty"), "empty")
    deepest = directories / "deep"
    for _ in range(100):
        deepest /= "d"
    deepest.mkdir(parents=True)
    _write(deepest, "bottom")
    locked = _make(directories, "read-only")
    _write(_make(locked, "inner"), "file")
    _write(locked, "file").chmod(0o444)
    (locked / "inner").chmod(0o555)
    locked.chmod(0o555)


ODD_NAMES = [
    *(b" ", b"  leading and trailing  ", b"new\nline", b"\n", b"tab\there", b"carriage\rreturn", b"bell\x07", b"\x7f"),
    *(b"-rf", b"--help", b"-", b"~", b"#", b"!", b"!!", b"$(reboot)", b"`reboot`", b"a;b", b"a|b", b"a&b", b"%s%n"),
    *(b"'", b'"', b'it\'s "quoted"', b"back\\slash", b"trailing\\", b"*", b"?", b"[a-z]", b"{a,b}", b"a:b"),
    *(b"...", b"..x", b".hidden", b".. ", b". ", b"x.", b"CON", b"Case", b"case", b".pxarexcludes"),
    *(b"\xff", b"\x80\x81\xfe", b"latin1-\xe4", b"\xed\xa0\x80surrogate", b"\xc0\xafoverlong", b"cut-\xe2\x82"),
    *("ä-composed".encode(), "a\u0308-decomposed".encode(), "日本語".encode(), "\U0001f4be".encode()),
    *("\u202ertl".encode(), "\u200bzero-width".encode(), "\ufeffbom".encode()),
    *(b"n" * 255, b"\xfe" * 255, "é".encode() * 127),
]


def _names(root: Path, notes: Notes) -> None:
    """Each odd name as a file, and below ``d`` as a directory with a file in it."""
    names = _make(root, "names")
    inside = _make(names, "d")
    for name in ODD_NAMES:
        with notes.attempt(f"name {name!r}"):
            _write(names, name, name)
            _write(_make(inside, name), b"f", name)


def _long_paths(root: Path, notes: Notes) -> None:
    """``long/`` + directories of 200 bytes + a file, 4,000 bytes in all from the root, and a hard link to it."""
    descriptor = os.open(_make(root, "long"), os.O_RDONLY | os.O_DIRECTORY)
    length = len("long/")
    try:
        while length < 4000 - 201:
            name = f"{length:x<200}"
            os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
            length += 201
        name = "f" * (4000 - length)
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=descriptor)
        os.write(file, b"at the end of 4000 bytes of path\n")
        os.close(file)
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        with notes.attempt("hard link to a long path"):
            os.link(name, "long-link", src_dir_fd=descriptor, dst_dir_fd=top)  # sorts after long/
        os.close(top)
    finally:
        os.close(descriptor)


def _symlinks(root: Path, notes: Notes) -> None:
    links = _make(root, "symlinks")
    _write(_make(links, "directory"), "file")
    targets: dict[str, bytes] = {
        "to-file": b"directory/file",
        "to-directory": b"directory",
        "trailing-slash": b"directory/",
        "to-parent": b"..",
        "dangling": b"no/such/thing",
        "absolute": b"/etc/hostname",
        "absolute-dangling": b"/no/such/thing",
        "itself": b"itself",
        "odd": b"new\nline \xff\xfe '\"",
        "long": b"t" * 255 + b"/" + b"u" * 3839,
    }
    for name, target in targets.items():
        with notes.attempt(f"symlink with a target of {len(target)} bytes"):
            os.symlink(target, os.fsencode(links / name))
    _stamp(links / "dangling", -7 * SECOND + 1, notes)


def _links(root: Path, notes: Notes) -> None:
    """Groups of names of one inode; first names sort before and after, near and far."""
    links = _make(root, "links")
    near, far = _make(links, "m-near"), _make(_make(links, "z"), "far")
    os.link(_write(links, "a", noise(1, 10_000)), links / "b")
    os.link(links / "a", near / "c")
    os.link(links / "a", far / "d")
    os.link(_write(far, "first-made", b"made first, sorts last\n"), links / "e-sorts-first")
    os.link(_write(links, "empty", b""), links / "empty-too")
    os.link(_write(links, b"\xff\xfe-\xe4", b"non-UTF-8\n"), near / os.fsdecode(b"\x80"))
    big = _write(near, "big", noise(2, 1 << 20))
    big.chmod(0o640)
    for number in range(5):
        os.link(big, far / f"big-{number}")
    with notes.attempt("xattr of a linked file"):
        os.setxattr(big, "user.linked", b"one inode, many names")
    (links / "symlink").symlink_to("a")
    os.mkfifo(links / "fifo", 0o600)
    for name in ("symlink", "fifo"):
        with notes.attempt(f"linked {name}"):
            os.link(links / name, far / name, follow_symlinks=False)


def _stamp(path: Path, mtime: int, notes: Notes) -> None:
    """Set the mtime in nanoseconds; a note when the file system keeps another one."""
    with notes.attempt(f"mtime {mtime}"):
        os.utime(path, ns=(START, mtime), follow_symlinks=False)
    if path.lstat().st_mtime_ns != mtime:
        notes.append(f"mtime {mtime}: kept as {path.lstat().st_mtime_ns}")


def _times(root: Path, notes: Notes) -> None:
    times = _make(root, "times")
    year_2200, year_2400, year_1902 = 7_258_118_400 * SECOND, 13_569_465_600 * SECOND, -2_145_916_800 * SECOND
    moments = {
        "minus-1.5s": -3 * SECOND // 2,
        "minus-1ns": -1,
        "minus-1s": -SECOND,
        "epoch": 0,
        "plus-1ns": 1,
        "year-1902": year_1902,
        "year-2038": (2**31) * SECOND,
        "year-2106": (2**32) * SECOND + 5,
        "year-2200": year_2200 + 123_456_789,
        "year-2400": year_2400 + 999_999_999,
        "nanoseconds": START + 123_456_789,
        "last-nanosecond": START + 999_999_999,
    }
    for name, moment in moments.items():
        _stamp(_write(times, name), moment, notes)
    for name in ("minus-1.5s", "year-2200"):
        _stamp(_make(times, f"directory-{name}"), moments[name], notes)
    _stamp(times, START + 1, notes)


def _modes(root: Path, notes: Notes) -> None:
    modes = _make(root, "modes")
    for mode in (0o400, 0o444, 0o600, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o2644, 0o4755, 0o6711, 0o7777):
        _write(modes, f"file-{mode:04o}").chmod(mode)
        _make(modes, f"directory-{mode | 0o500:04o}").chmod(mode | 0o500)


def _specials(root: Path, notes: Notes, as_root: bool) -> None:
    specials = _make(root, "specials")
    os.mknod(specials / "fifo", stat.S_IFIFO | 0o622)
    os.mknod(specials / "socket", stat.S_IFSOCK | 0o755)
    (specials / "fifo").chmod(0o622)
    _stamp(specials / "fifo", START + 42, notes)
    if not as_root:
        return
    kinds = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}
    for kind, bits in kinds.items():
        for major, minor in ((1, 3), (7, 200), (259, 70_000), (4095, 1_048_575), (0, 0)):
            with notes.attempt(f"{kind} device {major}:{minor}"):
                os.mknod(specials / f"{kind}-{major}-{minor}", bits | 0o640, os.makedev(major, minor))
    with notes.attempt("owner of a device"):
        os.chown(specials / "char-1-3", 1234, 5678)


_ACLS = {
    "users-and-groups": acl_value(
        *((USER_OBJ, 6, NO_ID), (USER, 4, 1000), (USER, 7, 4_000_000_000), (GROUP_OBJ, 4, NO_ID)),
        *((GROUP, 5, 0), (GROUP, 6, 100), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)),
    ),
    "mask-smaller": acl_value(
        (USER_OBJ, 6, NO_ID), (USER, 7, 1000), (GROUP_OBJ, 7, NO_ID), (MASK, 4, NO_ID), (OTHER, 0, NO_ID)
    ),
    "mask-only": acl_value((USER_OBJ, 6, NO_ID), (GROUP_OBJ, 6, NO_ID), (MASK, 4, NO_ID), (OTHER, 4, NO_ID)),
    "all-zero": acl_value(
        (USER_OBJ, 6, NO_ID), (USER, 0, 0), (GROUP_OBJ, 0, NO_ID), (MASK, 0, NO_ID), (OTHER, 0, NO_ID)
    ),
    "forty-users": acl_value(
        *((USER_OBJ, 6, NO_ID), *((USER, uid % 8, uid) for uid in range(2000, 2040)), (GROUP_OBJ, 4, NO_ID)),
        *((MASK, 7, NO_ID), (OTHER, 4, NO_ID)),
    ),
}
_DIRECTORY_ACL = acl_value(
    *((USER_OBJ, 7, NO_ID), (USER, 5, 1000), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 1, NO_ID))
)
_DEFAULT_BARE = acl_value((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID))


def _acls(root: Path, notes: Notes) -> None:
    acls = _make(root, "acls")
    for name, value in _ACLS.items():
        with notes.attempt(f"access ACL {name}"):
            os.setxattr(_write(acls, f"file-{name}"), "system.posix_acl_access", value)
            os.setxattr(_make(acls, f"directory-{name}"), "system.posix_acl_access", value)
        with notes.attempt(f"default ACL {name}"):
            both = _make(acls, f"both-{name}")
            os.setxattr(both, "system.posix_acl_access", _DIRECTORY_ACL)
            os.setxattr(both, "system.posix_acl_default", value)
            _write(both, "inherits")
            _make(both, "inherits-too")
    with notes.attempt("default ACL without a mask"):
        bare = _make(acls, "default-bare")
        os.setxattr(bare, "system.posix_acl_default", _DEFAULT_BARE)
        _write(bare, "inherits")


def _xattrs(root: Path, notes: Notes, as_root: bool) -> None:
    """The namespace user, names and values at their limits; the largest value the file system takes up to 40 KiB."""
    xattrs = _make(root, "xattrs")
    attributes: dict[str, dict[bytes, bytes]] = {
        "empty-value": {b"user.empty": b""},
        "binary": {b"user.binary": bytes(range(256)), b"user.zeros": bytes(64)},
        "odd-names": {
            b"user.\xff\xfe": b"1",
            b"user. ": b"2",
            b"user.a=b\n": b"3",
            b"user..": b"4",
            b"user.ns.x": b"5",
        },
        "long-name": {b"user." + b"n" * 250: b"v"},
        "many": {b"user.%03d" % number: b"%d" % number for number in range(40)},
        "text": {b"user.mime_type": b"text/plain", b"user.comment": "grün".encode()},
    }
    if as_root:
        attributes["trusted"] = {b"trusted.secret": b"root only", b"trusted.empty": b"", b"user.too": b"mixed"}
    for name, values in attributes.items():
        for path in (_write(xattrs, f"file-{name}"), _make(xattrs, f"directory-{name}")):
            for attribute, value in values.items():
                with notes.attempt(f"xattr {attribute!r}"):
                    os.setxattr(path, attribute, value)
    for size in (40 << 10, 16 << 10, 4000, 3000):
        try:
            os.setxattr(_write(xattrs, "large-value"), b"user.large", noise(size, size))
            break
        except OSError as error:
            notes.append(f"xattr value of {size} bytes: {os.strerror(error.errno or 0)}")
    with notes.attempt("xattr on a read-only file"):
        sealed = _write(xattrs, "read-only")
        os.setxattr(sealed, b"user.sealed", b"x")
        sealed.chmod(0o400)


def _sparse(root: Path, huge: bool) -> None:
    sparse = _make(root, "sparse")
    block = noise(3, 65536)
    write_sparse(sparse / "all-hole", (1 << 20) + 123, {})
    write_sparse(sparse / "hole-at-start", 1 << 20, {(1 << 20) - len(block): block})
    write_sparse(sparse / "hole-in-middle", 1 << 20, {0: block, (1 << 20) - len(block): block})
    write_sparse(sparse / "hole-at-end", 1 << 20, {0: block})
    write_sparse(sparse / "one-byte-inside", 100_000, {54_321: b"x"})
    write_sparse(sparse / "alternating", 64 << 16, {number << 16: block[:4096] for number in range(64)})
    write_sparse(sparse / "across-chunks", 40 << 20, {(20 << 20) - 7: block})
    if huge:
        write_sparse(sparse / "five-gib", HUGE_SPARSE, {0: b"start", (4 << 30) - 3: block, HUGE_SPARSE - 3: b"end"})


def _many(root: Path, count: int) -> None:
    many = _make(root, "many")
    for number in range(count):
        os.close(os.open(many / f"entry-{number * 7919 % count}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _owners(root: Path, notes: Notes) -> None:
    owners = _make(root, "owners")
    for uid, gid in ((1000, 1000), (NOBODY, NOBODY), (100_000, 200_000), (2**31, 2**31 + 1), (2**32 - 2, 2**32 - 2)):
        with notes.attempt(f"owner {uid}:{gid}"):
            os.chown(_write(owners, f"file-{uid}-{gid}"), uid, gid)
            os.chown(_make(owners, f"directory-{uid}-{gid}"), uid, gid)
            (owners / f"symlink-{uid}-{gid}").symlink_to("elsewhere")
            os.lchown(owners / f"symlink-{uid}-{gid}", uid, gid)
    setuid = _write(owners, "setuid-of-another")
    os.chown(setuid, 1000, 1000)
    setuid.chmod(0o6755)  # after chown, which clears it


def _capabilities(root: Path, notes: Notes) -> None:
    directory = _make(root, "capabilities")
    values = {
        "net-raw": capability_value(1 << 13),
        "not-effective": capability_value(1 << 10, inheritable=1 << 10, effective=False),
        "high": capability_value(1 << 38 | 1 << 21),
        "of-a-namespace": capability_value(1 << 13, root_id=100_000),
    }
    for name, value in values.items():
        with notes.attempt(f"file capability {name}"):
            path = _write(directory, name, b"#!/bin/true\n")
            path.chmod(0o755)
            os.setxattr(path, "security.capability", value)
    with notes.attempt("file capability with owner and setuid"):
        path = _write(directory, "owned")
        os.chown(path, 1000, 1000)
        path.chmod(0o4755)
        os.setxattr(path, "security.capability", values["net-raw"])
        os.setxattr(path, "user.also", b"xattr")


def _forbidden(root: Path) -> None:
    forbidden = _make(root, "forbidden")
    _write(forbidden, "file-000").chmod(0)
    _write(forbidden, "file-200").chmod(0o200)
    inner = _make(forbidden, "directory-000")
    _write(inner, "file").chmod(0)
    inner.chmod(0)


def _flags(root: Path, notes: Notes, as_root: bool) -> None:
    """Last of all features: immutable entries cannot be changed any more."""
    directory = _make(root, "flags")
    letters = {"A": NOATIME, "d": NODUMP, "S": SYNC, "c": COMPRESSED, "C": NOCOW, "D": DIRSYNC}
    letters["AdS"] = NOATIME | NODUMP | SYNC
    if as_root:
        letters |= {"a": APPEND, "i": IMMUTABLE, "ai": APPEND | IMMUTABLE, "Ai": NOATIME | IMMUTABLE}
    for name, flags in letters.items():
        if name != "D":
            path = _write(directory, f"file-{name}", b"" if name == "C" else b"content\n")
            _stamp(path, START + flags, notes)
            with notes.attempt(f"chattr +{name} on a file"):
                set_flags(path, flags)
        path = _make(directory, f"directory-{name}")
        _write(path, "inside")
        _stamp(path, START + flags, notes)
        with notes.attempt(f"chattr +{name} on a directory"):
            set_flags(path, flags)


def _projects(root: Path, notes: Notes) -> None:
    projects = _make(root, "projects")
    with notes.attempt("project id"):
        set_project(_write(projects, "file-4242"), 4242)
        set_project(_write(projects, "file-large"), 4_000_000_000)
        set_project(_make(projects, "plain"), 7)
        inherits = _make(projects, "inherits")
        set_project(inherits, 8, inherit=True)
        _write(inherits, "inherited")
