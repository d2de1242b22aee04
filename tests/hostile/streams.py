"""The first items, references into the payload stream, and valid archives mutilated (spec pxar.md 4, 8, 9)."""

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
    DIR,
    ENTRY,
    ENTRY_V1,
    FCAPS,
    FIFO,
    FILENAME,
    FORMAT_VERSION,
    GOODBYE,
    HARDLINK,
    LNK,
    MAX,
    PAYLOAD,
    PAYLOAD_REF,
    PAYLOAD_START,
    PAYLOAD_TAIL,
    PRELUDE,
    QUOTA_PROJID,
    REG,
    SOCK,
    SYMLINK,
    XATTR,
    Writer,
    item_bytes,
    stat_bytes,
    words,
)


def heads(archives: Corpus) -> None:
    """The first items of the stream."""

    def started(version: int, note: str, refused_by: str, head: bytes, mode: int = DIR) -> None:
        w = Writer(version, head)
        w.root(mode)
        w.file(b"a")
        w.finish()
        archives.add(version, note, refused_by, bytes(w.archive), bytes(w.payload))

    version = item_bytes(FORMAT_VERSION, words(2))
    prelude = item_bytes(PRELUDE, b'{"exclude-patterns":"*.o\\n"}')
    started(2, "prelude valid", EITHER, version + prelude)
    for number in (0, 3, 2**63, MAX):
        started(2, f"format version {number:#x}", BOTH, item_bytes(FORMAT_VERSION, words(number)))
    started(2, "format version of 4 bytes", BOTH, item_bytes(FORMAT_VERSION, bytes([2, 0, 0, 0])))
    started(2, "format version of 16 bytes", BOTH, item_bytes(FORMAT_VERSION, words(2, 0)))
    started(2, "format version of 2^40 bytes", BOTH, item_bytes(FORMAT_VERSION, words(2), size=2**40))
    started(2, "format version twice", BOTH, version * 2)
    started(2, "no format version", BOTH, b"")
    started(1, "format version of split archives", BOTH, version)
    started(1, "format version 1 and a prelude", EITHER, item_bytes(FORMAT_VERSION, words(1)) + prelude)
    started(1, "prelude without version", BOTH, prelude)
    started(2, "prelude twice", BOTH, version + prelude * 2)
    started(2, "prelude before version", BOTH, prelude + version)
    for size in (0, 15, 2**40, 2**63, MAX):
        started(2, f"prelude of size {size:#x}", BOTH, version + item_bytes(PRELUDE, b"{}", size=size))
    started(2, "prelude of 20 MiB", EITHER, version + item_bytes(PRELUDE, bytes(20 << 20)))
    started(1, "payload marker first", BOTH, item_bytes(PAYLOAD_START))
    for mode in (REG, LNK, CHR, FIFO, 0):
        for number in (1, 2):
            started(number, f"root of type {mode:#o}", BOTH, version if number == 2 else b"", mode)
    roots = {
        "root is a whole file": item_bytes(ENTRY, stat_bytes(REG)) + item_bytes(PAYLOAD, b"data"),
        "root is a whole symlink": item_bytes(ENTRY, stat_bytes(LNK)) + item_bytes(SYMLINK, b"/etc\0"),
        "root is a hard link": item_bytes(HARDLINK, words(0) + b"a\0"),
        "root has a name": item_bytes(FILENAME, b"a\0") + item_bytes(ENTRY, stat_bytes(DIR)),
        "nothing": b"",
        "half a header": bytes(8),
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
    }
    for note, archive in roots.items():
        for number in (1, 2):
            head = version if number == 2 and archive.strip(b"\0\xff") else b""
            archives.add(number, note, BOTH, head + archive, item_bytes(PAYLOAD_START) + item_bytes(PAYLOAD_TAIL))


def references(archives: Corpus) -> None:
    v2 = (2,)

    def second_file(note: str, refused_by: str, offset: int, size: int) -> None:
        """File a is right (header at 16, ten bytes), b has the given reference."""
        for w in archives.writers(f"reference: {note}", refused_by, v2):
            w.file(b"a", b"0123456789")
            w.payload_item(PAYLOAD, b"bbbbb")
            w.name(b"b")
            w.entry(REG)
            w.reference(offset, size)

    second_file("valid", EITHER, 42, 5)  # proves that the others are refused for their own mistake
    second_file("to the start marker", BOTH, 0, 0)
    second_file("into a header", BOTH, 8, 5)
    second_file("to the same payload", DECODER, 16, 10)
    second_file("before the last one", DECODER, 15, 10)
    second_file("to the tail marker", BOTH, 42 + 21, 0)
    second_file("to contents", BOTH, 58, 0)
    second_file("to the end", BOTH, 42 + 21 + 16, 0)
    second_file("one byte too long", BOTH, 42, 6)
    second_file("one byte too short", BOTH, 42, 4)
    for offset in (2**32, 2**63, MAX - 16, MAX - 15, MAX):
        second_file(f"to {offset:#x}", BOTH, offset, 5)
    for size in (2**32, 2**63, MAX - 57, MAX - 15, MAX):
        second_file(f"of size {size:#x}", BOTH, 42, size)
    for size in (0, 15, 2**32, 2**63, MAX):
        for w in archives.writers(f"payload header of size {size:#x}", BOTH, v2):
            w.payload_item(PAYLOAD, b"data", size=size)
            w.name(b"a")
            w.entry(REG)
            w.reference(16, (size - 16) & MAX)
    for w in archives.writers("reference: inside another payload", DECODER, v2):
        w.file(b"a", item_bytes(PAYLOAD, b"forged"))
        w.name(b"b")
        w.entry(REG)
        w.reference(32, 6)
    for w in archives.writers("reference: to a header of another type", BOTH, v2):
        at = w.payload_item(FILENAME, b"data")
        w.name(b"a")
        w.entry(REG)
        w.reference(at, 4)
    for w in archives.writers("reference: over a gap", EITHER, v2):
        w.file(b"a")
        w.payload += bytes(1000)
        w.file(b"b")
    for w in archives.writers("payload in the metadata archive", BOTH, v2):
        w.name(b"a")
        w.entry(REG)
        w.item(PAYLOAD, b"data")
    for w in archives.writers("reference in a version 1 archive", BOTH, (1,)):
        w.name(b"a")
        w.entry(REG)
        w.item(PAYLOAD_REF, words(16, 4))
    streams = {
        "payload stream empty": (b"", BOTH),
        "payload stream of 8 bytes": (bytes(8), BOTH),
        "payload stream without its start": (item_bytes(PAYLOAD, b"data") * 3, DECODER),
        "payload stream starts with the tail": (item_bytes(PAYLOAD_TAIL) + item_bytes(PAYLOAD, b"data"), DECODER),
        "payload stream start of 2^40 bytes": (
            item_bytes(PAYLOAD_START, size=2**40) + item_bytes(PAYLOAD, b"data"),
            DECODER,
        ),
        "payload stream without its tail": (item_bytes(PAYLOAD_START) + item_bytes(PAYLOAD, b"data"), EITHER),
        "payload stream of zeros": (bytes(1000), BOTH),
    }
    for note, (payload, refused_by) in streams.items():
        w = Writer(2)
        w.root()
        w.file(b"a")
        w.finish()
        archives.add(2, note, refused_by, bytes(w.archive), payload)


def sample(version: int) -> Writer:
    """A valid archive with every kind of item."""
    w = Writer(version, item_bytes(FORMAT_VERSION, words(2)) + item_bytes(PRELUDE, b"{}") if version == 2 else None)
    if version == 2:
        w.items[:0] = [("archive", 0, FORMAT_VERSION), ("archive", 24, PRELUDE)]
    w.root()
    attributes = (
        item_bytes(XATTR, b"user.key\0value"),
        item_bytes(ACL_USER, words(1000, 6)),
        item_bytes(ACL_GROUP, words(1000, 4)),
        item_bytes(ACL_GROUP_OBJ, words(4)),
    )
    defaults = (
        item_bytes(ACL_DEFAULT, words(7, 5, 0, 7)),
        item_bytes(ACL_DEFAULT_USER, words(1000, 7)),
        item_bytes(ACL_DEFAULT_GROUP, words(1000, 5)),
    )
    rest = (item_bytes(FCAPS, struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)), item_bytes(QUOTA_PROJID, words(7)))
    w.directory(b"directory")
    w.raw(b"".join((*attributes, *defaults, rest[1])))
    target = w.file(b"file", b"contents of a file", attributes=b"".join((*attributes, *rest)))
    w.file(b"empty", b"")
    w.close()
    w.hardlink(b"hardlink", b"directory/file", target)
    w.symlink(b"symlink", b"directory")
    w.special(b"fifo", FIFO)
    w.special(b"socket", SOCK)
    w.special(b"device", CHR, (1, 3))
    w.name(b"old")
    w.item(ENTRY_V1, struct.pack("<QQIIQ", REG, 0, 0, 0, 10**18))
    w.contents(b"old style")
    w.file(b"z-last", b"last")
    w.finish()
    return w


def sizes(archives: Corpus) -> None:
    """The first item of each kind with another size in its header."""
    for version in (1, 2):
        seen: set[int] = set()
        w = sample(version)
        for stream, at, kind in w.items:
            if kind in seen or kind == PAYLOAD_TAIL:
                continue
            seen.add(kind)
            data = w.archive if stream == "archive" else w.payload
            (true,) = struct.unpack_from("<Q", data, at + 8)
            sizes = {f"{size:#x}": size for size in (0, 15, 2**32, 2**63, MAX)}
            for label, size in (sizes | {"one less": true - 1, "one more": true + 1}).items():
                changed = bytearray(data)
                struct.pack_into("<Q", changed, at + 8, size)
                both = [bytes(w.archive), bytes(w.payload)]
                both[stream == "payload"] = bytes(changed)
                refused_by = DECODER if kind in (GOODBYE, PAYLOAD_START) or label.startswith("one ") else BOTH
                archives.add(version, f"size {label} of item {kind:#018x}", refused_by, *both)


def truncations(archives: Corpus) -> None:
    """Cut at every item, and in the middle of every header."""
    for version in (1, 2):
        w = sample(version)
        archive, payload = bytes(w.archive), bytes(w.payload)
        for stream, at, kind in w.items:
            for cut in (at, at + 8):
                note = f"{stream} cut at {cut}, item {kind:#018x}"
                if stream == "archive":
                    archives.add(version, note, BOTH, archive[:cut], payload)
                else:
                    refused_by = EITHER if kind == PAYLOAD_TAIL else BOTH
                    archives.add(version, note, refused_by, archive, payload[:cut])
        archives.add(version, "archive cut by one byte", BOTH, archive[:-1], payload)
