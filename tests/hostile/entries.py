"""Entries whose parts do not belong together, and fields at their limits (spec pxar.md 3-5)."""

from __future__ import annotations

import struct

from tests.hostile.corpus import BOTH, DECODER, EITHER, Corpus
from tests.hostile.writer import (
    ACL_DEFAULT,
    ACL_DEFAULT_GROUP,
    ACL_DEFAULT_USER,
    ACL_GROUP,
    ACL_GROUP_OBJ,
    ACL_USER,
    CHR,
    DEVICE,
    DIR,
    ENTRY,
    ENTRY_V1,
    FCAPS,
    FIFO,
    FORMAT_VERSION,
    HARDLINK,
    LNK,
    MAX,
    PAYLOAD,
    PAYLOAD_TAIL,
    PRELUDE,
    QUOTA_PROJID,
    REG,
    SOCK,
    SYMLINK,
    XATTR,
    item_bytes,
    stat_bytes,
    words,
)


def bodies(archives: Corpus) -> None:
    bodiless = {"regular file": REG, "symlink": LNK, "device": CHR}
    for label, mode in bodiless.items():
        for w in archives.writers(f"{label} without body, then a name", BOTH):
            w.special(b"a", mode)
            w.file(b"b")
        for w in archives.writers(f"{label} without body, last", BOTH):
            w.special(b"a", mode)
    for w in archives.writers("regular file that goes on as a directory", BOTH):
        w.directory(b"a", REG)
        w.file(b"inside")
        w.close()
    for w in archives.writers("directory that ends without a table", BOTH):
        w.special(b"a", DIR)
        w.file(b"b")
    bodies: dict[str, tuple[int, bytes, int | None]] = {
        "SYMLINK": (SYMLINK, b"x\0", LNK),
        "DEVICE": (DEVICE, words(1, 3), CHR),
        "PAYLOAD": (PAYLOAD, b"data", REG),
        "HARDLINK": (HARDLINK, words(1) + b"x\0", None),
        "FORMAT_VERSION": (FORMAT_VERSION, words(2), None),
        "PRELUDE": (PRELUDE, b"{}", None),
        "ENTRY": (ENTRY, stat_bytes(REG), None),
        "PAYLOAD_TAIL": (PAYLOAD_TAIL, b"", None),
        "unknown": (0x1234567890ABCDEF, b"????", None),
        "goodbye tail": (0xEF5EED5B753E1555, b"", None),
    }
    modes = {"regular": REG, "directory": DIR, "symlink": LNK, "device": CHR, "fifo": FIFO, "socket": SOCK}
    for body, (kind, content, right) in bodies.items():
        for label, mode in modes.items():
            if mode == right:
                continue
            for w in archives.writers(f"{body} item in a {label} entry", BOTH):
                w.special(b"a", mode)
                w.item(kind, content)
    for w in archives.writers("body twice", DECODER):
        w.file(b"a")
        w.contents(b"again")
    for w in archives.writers("symlink target twice", DECODER):
        w.symlink(b"a", b"one")
        w.item(SYMLINK, b"two\0")
    for w in archives.writers("name twice", BOTH):
        w.name(b"a")
        w.file(b"b")
    for w in archives.writers("name without entry", BOTH):
        w.name(b"a")
    for w in archives.writers("entry without name", DECODER):
        w.file(b"a")
        w.entry(REG)
        w.contents(b"nameless")
    for mode in (0, 0o030644, 0o110644, 0o170000):
        for w in archives.writers(f"file type {mode:#o}", BOTH):
            w.file(b"a", mode=mode)


def values(archives: Corpus) -> None:
    """Fields at their limits: a value for a reader, a trap for whoever applies it."""
    stats = {
        "mode above 32 bits": stat_bytes(REG | 2**40),
        "all flags": stat_bytes(REG, flags=MAX),
        "owner that means unchanged": stat_bytes(REG, uid=2**32 - 1, gid=2**32 - 1),
        "earliest mtime": stat_bytes(REG, secs=-(2**63)),
        "latest mtime": stat_bytes(REG, secs=2**63 - 1, nanos=999_999_999),
        "mtime beyond nanoseconds in 64 bits": stat_bytes(REG, secs=2**40),
        "nanoseconds of a second": stat_bytes(REG, nanos=1_000_000_000),
        "nanoseconds of all ones": stat_bytes(REG, nanos=2**32 - 1),
        "nanoseconds meaning now": stat_bytes(REG, nanos=(1 << 30) - 1),
        "nanoseconds meaning unchanged": stat_bytes(REG, nanos=(1 << 30) - 2),
        "reserved field set": stat_bytes(REG, reserved=1),
    }
    for note, content in stats.items():
        for w in archives.writers(note, EITHER):
            w.name(b"a")
            w.item(ENTRY, content)
            w.contents(b"data")
    for w in archives.writers("old entry with the latest mtime", EITHER):
        w.name(b"a")
        w.item(ENTRY_V1, struct.pack("<QQIIQ", REG, 0, 0, 0, MAX))
        w.contents(b"data")
    for major, minor in ((MAX, MAX), (2**32, 0), (0, 2**32), (4096, 2**20), (2**12, 2**24)):
        for w in archives.writers(f"device {major:#x}:{minor:#x}", EITHER):
            w.special(b"a", CHR, (major, minor))


def attributes(archives: Corpus) -> None:
    def on_file(note: str, refused_by: str, attributes: bytes) -> None:
        for w in archives.writers(note, refused_by):
            w.file(b"a", attributes=attributes)

    names = {
        "security.selinux": b"system_u:object_r:shadow_t:s0\0",
        "security.ima": bytes(20),
        "security.evm": bytes(20),
        "security.capability": struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0),
        "system.posix_acl_access": struct.pack("<IHHI", 2, 1, 7, 0),
        "system.nfs4_acl": b"A::EVERYONE@:rwx",
        "trusted.overlay.opaque": b"y",
        "trusted.overlay.redirect": b"/etc",
        "user.": b"no rest",
        "user": b"no dot",
        "USER.x": b"upper case",
        "": b"no name",
        "../user.x": b"path",
        "user.new\nline": b"",
        "user." + "n" * 251: b"256 bytes of name",
    }
    for name, value in names.items():
        on_file(f"xattr {name[:30]!r}", EITHER, item_bytes(XATTR, name.encode() + b"\0" + value))
    on_file("xattr without NUL", BOTH, item_bytes(XATTR, b"user.x"))
    on_file("xattr of 0 bytes", BOTH, item_bytes(XATTR))
    on_file("xattr too large", BOTH, item_bytes(XATTR, b"user.x\0" + bytes(65791)))
    on_file("xattr twice", EITHER, item_bytes(XATTR, b"user.x\0one") + item_bytes(XATTR, b"user.x\0two"))
    on_file(
        "xattrs, 256 of 64 KiB",
        EITHER,
        b"".join(item_bytes(XATTR, b"user.%03d\0" % n + bytes(65536)) for n in range(256)),
    )
    on_file("xattrs, 100,000 empty", EITHER, b"".join(item_bytes(XATTR, b"user.%06d\0" % n) for n in range(100_000)))
    on_file("acl of 100,000 users", EITHER, b"".join(item_bytes(ACL_USER, words(n, 7)) for n in range(100_000)))
    acls = {
        "user above 32 bits": item_bytes(ACL_USER, words(2**40, 4)),
        "permission above 3 bits": item_bytes(ACL_GROUP, words(1, 8)),
        "permission of all ones": item_bytes(ACL_USER, words(1, MAX)),
        "group permission of all ones": item_bytes(ACL_GROUP_OBJ, words(MAX)),
        "user twice": item_bytes(ACL_USER, words(1, 4)) * 2,
        "default on a file": item_bytes(ACL_DEFAULT, words(7, 5, 5, MAX)),
        "default of nothing": item_bytes(ACL_DEFAULT, words(MAX, MAX, MAX, MAX)),
        "default users without a default": item_bytes(ACL_DEFAULT_USER, words(1, 7))
        + item_bytes(ACL_DEFAULT_GROUP, words(1, 7)),
    }
    for note, attributes in acls.items():
        on_file(f"acl {note}", EITHER, attributes)
    unique = {
        "ACL_GROUP_OBJ": item_bytes(ACL_GROUP_OBJ, words(5)),
        "ACL_DEFAULT": item_bytes(ACL_DEFAULT, words(7, 5, 5, 7)),
        "FCAPS": item_bytes(FCAPS, bytes(20)),
        "QUOTA_PROJID": item_bytes(QUOTA_PROJID, words(7)),
    }
    for label, item in unique.items():
        on_file(f"{label} twice", BOTH, item * 2)
    kinds = {
        "ACL_USER": ACL_USER,
        "ACL_GROUP": ACL_GROUP,
        "ACL_GROUP_OBJ": ACL_GROUP_OBJ,
        "ACL_DEFAULT": ACL_DEFAULT,
        "ACL_DEFAULT_USER": ACL_DEFAULT_USER,
        "ACL_DEFAULT_GROUP": ACL_DEFAULT_GROUP,
        "QUOTA_PROJID": QUOTA_PROJID,
    }
    for label, kind in kinds.items():
        on_file(f"{label} of too few bytes", BOTH, item_bytes(kind, bytes(4)))
    on_file("project id above 32 bits", EITHER, item_bytes(QUOTA_PROJID, words(MAX)))
    on_file("capability of 0 bytes", EITHER, item_bytes(FCAPS))
    on_file("capability of noise", EITHER, item_bytes(FCAPS, b"\xff" * 1000))
    on_file("capability too large", BOTH, item_bytes(FCAPS, bytes(65792)))
    for mode in (LNK, FIFO):
        for w in archives.writers(f"attributes of type {mode:#o}", EITHER):
            w.special(b"a", mode)
            w.raw(item_bytes(XATTR, b"trusted.x\0y") + unique["FCAPS"] + unique["QUOTA_PROJID"])
            if mode == LNK:
                w.item(SYMLINK, b"x\0")
    for w in archives.writers("attributes behind the body", DECODER):
        w.file(b"a")
        w.item(XATTR, b"user.late\0")
    for w in archives.writers("attributes of a directory behind its children", DECODER):
        w.directory(b"d")
        w.file(b"a")
        w.item(FCAPS, bytes(20))
