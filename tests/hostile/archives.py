"""Hostile pxar archives: for each rule of the format one archive that breaks it (spec pxar.md 4-8, 10)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

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
    Edit,
    Writer,
    item_bytes,
    name_hash,
    stat_bytes,
    words,
)

BOTH, DECODER, ACCESSOR, EITHER = "both", "decoder", "accessor", ""


class HostileArchive(NamedTuple):
    """``refused_by`` names the readers that must raise FormatError when everything, contents included, is read:
    ``both``, ``decoder`` (sequential), ``accessor`` (random); ``""`` when a value is as good (the harm, if any, is for
    a restore to prevent)."""

    version: int
    archive: bytes
    payload: bytes | None
    note: str
    refused_by: str


class Corpus(dict[str, HostileArchive]):
    """Archives by name, ``v1 ...`` and ``v2 ...``."""

    def add(self, version: int, note: str, refused_by: str, archive: bytes, payload: bytes) -> None:
        name = f"v{version} {note}"
        assert name not in self, name
        self[name] = HostileArchive(version, archive, payload if version == 2 else None, note, refused_by)

    def writers(self, note: str, refused_by: str, versions: tuple[int, ...] = (1, 2)) -> Iterator[Writer]:
        """For each version a writer inside the root directory; what the loop body leaves open is closed after it."""
        for version in versions:
            writer = Writer(version)
            writer.root()
            yield writer
            writer.finish()
            self.add(version, note, refused_by, bytes(writer.archive), bytes(writer.payload))


def corpus(outside: bytes = b"/tmp/evil") -> Corpus:
    """Every hostile archive. ``outside`` is where their links point: a directory that a restore must leave alone."""
    archives = Corpus()
    _names(archives, outside)
    _duplicates(archives, outside)
    _symlinks(archives, outside)
    _hardlink_paths(archives, outside)
    _hardlink_offsets(archives, outside)
    _tables(archives)
    _table_loops(archives)
    _references(archives)
    _bodies(archives)
    _values(archives)
    _attributes(archives)
    _heads(archives)
    _sizes(archives)
    _truncations(archives)
    return archives


# ------------------------------------------------------------------------------------------------- names and links

_BAD_NAMES = {
    "dotdot": b"..",
    "dot": b".",
    "empty": b"",
    "with a slash": b"a/b",
    "absolute": b"/abs",
    "of one slash": b"/",
    "climbing": b"../evil",
    "with a trailing slash": b"a/",
    "with NUL": b"a\0b",
    "dotdot before NUL": b"..\0x",
}


def _names(archives: Corpus, outside: bytes) -> None:
    for label, name in _BAD_NAMES.items():
        for w in archives.writers(f"file named {label}", BOTH):
            w.file(name, b"evil")
        for w in archives.writers(f"directory named {label}", BOTH):
            w.directory(name)
            w.file(b"evil", b"evil")
            w.close()
        for w in archives.writers(f"symlink named {label}", BOTH):
            w.symlink(name, outside)
        for w in archives.writers(f"hard link named {label}", BOTH):
            w.hardlink(name, b"first", w.file(b"first"))
        for w in archives.writers(f"fifo named {label}", BOTH):
            w.special(name, FIFO)
    for w in archives.writers("name without NUL", BOTH):
        w.name(b"abc", end=b"")
        w.entry(REG)
        w.contents(b"")
    for w in archives.writers("name of 0 bytes without NUL", BOTH):
        w.name(b"", end=b"")
        w.entry(REG)
        w.contents(b"")
    for length, refused_by in ((300, EITHER), (4096, EITHER), (4097, BOTH), (1 << 20, BOTH)):
        for w in archives.writers(f"name of {length} bytes", refused_by):
            w.file(b"n" * length)


def _entry_x(w: Writer, kind: str, outside: bytes) -> None:
    if kind == "symlink":
        w.symlink(b"x", outside)
    elif kind == "file":
        w.file(b"x", b"evil")
    elif kind == "directory":
        w.directory(b"x")
        w.file(b"evil", b"evil")
        w.close()
    else:
        w.hardlink(b"x", b"b", w.file(b"b"))


def _duplicates(archives: Corpus, outside: bytes) -> None:
    """A symlink followed by something of the same name would send what follows through it."""
    kinds = ("symlink", "file", "directory", "hard link")
    for first in kinds:
        for second in kinds:
            for w in archives.writers(f"{first} then {second} of one name", BOTH):
                _entry_x(w, first, outside)
                _entry_x(w, second, outside)
    for w in archives.writers("symlink, other entries, then a directory of its name", BOTH):
        _entry_x(w, "symlink", outside)
        for number in range(20):
            w.file(b"y%d" % number)
        _entry_x(w, "directory", outside)
    for w in archives.writers("symlink to a later directory of the archive", EITHER):
        w.symlink(b"l", b"m")
        w.directory(b"m")
        w.file(b"inside")


def _symlinks(archives: Corpus, outside: bytes) -> None:
    targets = {
        "without NUL": (b"target", BOTH),
        "of 0 bytes": (b"", BOTH),
        "of NUL alone": (b"\0", EITHER),
        "with NUL inside": (outside + b"\0x\0", BOTH),
        "of 4096 bytes": (b"t" * 4096 + b"\0", EITHER),
        "of 4097 bytes": (b"t" * 4097 + b"\0", BOTH),
        "climbing": (b"../" * 40 + b"etc/passwd\0", EITHER),
        "outside": (outside + b"\0", EITHER),
    }
    for label, (content, refused_by) in targets.items():
        for w in archives.writers(f"symlink target {label}", refused_by):
            w.name(b"l")
            w.entry(LNK)
            w.item(SYMLINK, content)


def _hardlink_paths(archives: Corpus, outside: bytes) -> None:
    paths = {
        "climbing": b"../../etc/passwd",
        "absolute": b"/etc/passwd",
        "outside": outside + b"/victim",
        "climbing inside": b"a/../../etc/passwd",
        "dotdot": b"..",
        "dot": b".",
        "empty": b"",
        "with an empty part": b"d//a",
        "with a trailing slash": b"a/",
        "with NUL": b"a\0b",
        "of 4097 bytes": b"a" * 4097,
    }
    for label, path in paths.items():
        for w in archives.writers(f"hard link target {label}", BOTH):
            w.hardlink(b"z", path, w.file(b"a"))
    for w in archives.writers("hard link target without NUL", BOTH):
        target = w.file(b"a")
        w.item(HARDLINK, words(w.name(b"z") - target) + b"a")
    for w in archives.writers("hard link target of 0 bytes", BOTH):
        target = w.file(b"a")
        w.item(HARDLINK, words(w.name(b"z") - target))
    for w in archives.writers("hard link target that is not in the archive", EITHER):
        w.hardlink(b"z", b"nothing", w.file(b"a"))
    for w in archives.writers("hard link whose path and offset disagree", EITHER):
        target = w.file(b"a")
        w.file(b"b", b"other")
        w.hardlink(b"z", b"b", target)
    for w in archives.writers("hard link through a symlink", EITHER):
        target = w.file(b"a")
        w.symlink(b"l", outside)
        w.hardlink(b"z", b"l/victim", target)
    for w in archives.writers("attributes behind a hard link", DECODER):
        w.hardlink(b"z", b"a", w.file(b"a"))
        w.item(XATTR, b"user.a\0")


def _hardlink_offsets(archives: Corpus, outside: bytes) -> None:
    for w in archives.writers("hard link to a symlink", ACCESSOR):
        w.hardlink(b"z", b"l", w.symlink(b"l", outside))
    for w in archives.writers("hard link to a directory", ACCESSOR):
        target = w.directory(b"d")
        w.close()
        w.hardlink(b"z", b"d", target)
    for w in archives.writers("hard link to a fifo", ACCESSOR):
        w.hardlink(b"z", b"p", w.special(b"p", FIFO))
    for w in archives.writers("hard link to a hard link", ACCESSOR):
        w.hardlink(b"z", b"l", w.hardlink(b"l", b"a", w.file(b"a")))
    for w in archives.writers("hard link to its own directory", ACCESSOR):
        w.hardlink(b"z", b"d", w.directory(b"d"))
    for w in archives.writers("hard link to itself", BOTH):
        w.hardlink(b"z", b"z", w.position)
    for w in archives.writers("hard link to a later entry", BOTH):
        later = w.position + 16 + 2 + 16 + 8 + 2  # behind FILENAME "y" and HARDLINK "z"
        w.hardlink(b"y", b"z", later)
        assert w.file(b"z") == later
    for w in archives.writers("hard link to before the archive", BOTH):
        w.hardlink(b"z", b"a", -1)
    for w in archives.writers("hard link to far before the archive", BOTH):
        w.hardlink(b"z", b"a", w.position - 2**63)
    for w in archives.writers("hard link to the start of the archive", ACCESSOR):
        w.hardlink(b"z", b"a", 0)
    for w in archives.writers("hard link into an item", ACCESSOR):
        w.hardlink(b"z", b"a", w.file(b"a") + 8)
    for w in archives.writers("hard link to a FILENAME inside a file's contents", EITHER):
        fake = Writer(w.version)
        fake.root()
        fake.file(b"a", b"forged")
        start = w.file(b"holder", bytes(fake.archive))
        w.hardlink(b"z", b"a", start + 16)


# ------------------------------------------------------------------------------------------------- goodbye tables


def _edited(archives: Corpus, note: str, refused_by: str, edit: Edit) -> None:
    """A directory ``d`` with two files and a directory, its table changed; the root's table is right."""
    for w in archives.writers(f"goodbye: {note}", refused_by):
        w.file(b"before")
        w.directory(b"d")
        w.file(b"f")
        w.directory(b"e")
        w.file(b"inner")
        w.close()
        w.file(b"g")
        w.close(edit)
        w.file(b"z")


def _set(index: int, part: int, value: int) -> Edit:
    def edit(records: list[list[int]]) -> list[list[int]]:
        records[index][part] = value
        return records

    return edit


def _shift(index: int, part: int, by: int) -> Edit:
    return lambda records: _set(index, part, records[index][part] + by)(records)


def _tables(archives: Corpus) -> None:
    _edited(archives, "wrong tail marker", BOTH, _set(-1, 0, 0))
    for size in (0, 16, 24, 25, 40, 2**32, 2**63, MAX):
        _edited(archives, f"tail size {size:#x}", BOTH, _set(-1, 2, size))
    for by in (-24, 24, 1):
        _edited(archives, f"tail size off by {by}", BOTH, _shift(-1, 2, by))
        _edited(archives, f"tail offset off by {by}", BOTH, _shift(-1, 1, by))
    for offset in (0, 2**63, MAX):
        _edited(archives, f"tail offset {offset:#x}", BOTH, _set(-1, 1, offset))
    for offset in (0, 1, 2**32, 2**63, MAX):
        _edited(archives, f"child offset {offset:#x}", BOTH, _set(0, 1, offset))
    for by in (-16, -1, 1, 16):
        _edited(archives, f"child offset off by {by}", BOTH, _shift(0, 1, by))
    for size in (0, 1, 2**32, 2**63, MAX):
        _edited(archives, f"child size {size:#x}", BOTH, _set(0, 2, size))
    _edited(archives, "child size off by 1", DECODER, _shift(0, 2, 1))
    _edited(archives, "child size off by -1", DECODER, _shift(0, 2, -1))
    _edited(archives, "wrong hash", DECODER, _shift(0, 0, 1))
    _edited(archives, "hash of another name", DECODER, _set(0, 0, name_hash(b"elsewhere")))
    _edited(archives, "record missing, size told", DECODER, lambda records: _resized(records[1:]))
    _edited(archives, "record missing, size not told", BOTH, lambda records: records[1:])
    _edited(archives, "record twice", BOTH, lambda records: _resized([list(records[0]), *records]))
    _edited(archives, "record 10,000 times", BOTH, lambda records: _resized([records[0]] * 10_000 + records))
    _edited(archives, "no records but the tail", DECODER, lambda records: _resized(records[-1:]))
    _edited(archives, "empty", BOTH, lambda records: [])
    _edited(archives, "no tail", BOTH, lambda records: records[:-1])
    _edited(archives, "tail first", BOTH, lambda records: records[-1:] + records[:-1])
    _edited(archives, "not a search tree", EITHER, lambda records: sorted(records[:-1]) + records[-1:])
    _edited(archives, "hashes exchanged", DECODER, _exchange(0))
    _edited(archives, "offsets exchanged", DECODER, _exchange(1))
    _edited(archives, "8 bytes too many", BOTH, lambda records: [*records[:-1], [*records[-1], 0]])
    _edited(archives, "8 bytes too few", BOTH, lambda records: [*records[:-1], records[-1][:-1]])
    for w in archives.writers("goodbye: missing", BOTH):
        w.directory(b"d")
        w.file(b"f")
        w.abandon()
    for w in archives.writers("goodbye: with the root's table gone", BOTH):
        w.file(b"f")
        w.abandon()
    for w in archives.writers("goodbye: bytes behind the last", ACCESSOR):
        w.file(b"f")
        w.close()
        w.archive += bytes(100)
    for w in archives.writers("goodbye: one too many", ACCESSOR):
        w.close()
        w.item(GOODBYE, words(0xEF5EED5B753E1555, 0, 40))


def _resized(records: list[list[int]]) -> list[list[int]]:
    records[-1][2] = 16 + 24 * len(records)
    return records


def _exchange(part: int) -> Edit:
    def edit(records: list[list[int]]) -> list[list[int]]:
        records[0][part], records[1][part] = records[1][part], records[0][part]
        return records

    return edit


def _table_loops(archives: Corpus) -> None:
    """Tables that lead a reader in circles, or through one directory again and again."""
    for w in archives.writers("loop: child is the directory itself", BOTH):
        start = w.directory(b"d")
        w.file(b"f")
        here = w.position
        w.close(_set(0, 1, here - start))
    for w in archives.writers("loop: child is the parent", BOTH):
        start = w.directory(b"a")
        w.directory(b"b")
        w.file(b"f")
        here = w.position
        w.close(_set(0, 1, here - start))
    for w in archives.writers("loop: child is the root", BOTH):
        w.directory(b"a")
        w.file(b"f")
        here = w.position
        w.close(_set(0, 1, here))
    for w in archives.writers("loop: a directory that ends where its parent ends", BOTH):
        w.directory(b"a")
        start = w.directory(b"b")
        w.close()
        here = w.position
        w.close(_set(0, 2, here + 16 + 2 * 24 - start))
    for w in archives.writers("loop: a directory that ends where the root ends", BOTH):
        start = w.directory(b"b")
        w.close()
        here = w.position
        w.close(_set(0, 2, here + 16 + 2 * 24 - start))
    for w in archives.writers("loop: two names for one directory, 40 levels", BOTH):
        # at each level "b" claims to reach to the end of "a", so that a trusting reader opens a's table for it too
        levels: list[tuple[int, int]] = []
        for _ in range(40):
            b = w.directory(b"b")
            w.close()
            levels.append((b, w.directory(b"a")))
        w.close()
        for b, _a in reversed(levels):
            here = w.position
            w.close(_spanning(here - b))
    for w in archives.writers("nesting of 10,000 directories", EITHER):
        for _ in range(10_000):
            w.directory(b"d")
        w.file(b"bottom")


def _spanning(distance: int) -> Edit:
    """Let the child that starts ``distance`` before the table end where the table starts."""

    def edit(records: list[list[int]]) -> list[list[int]]:
        for record in records[:-1]:
            if record[1] == distance:
                record[2] = distance
        return records

    return edit


# ------------------------------------------------------------------------------------------------- payload references


def _references(archives: Corpus) -> None:
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


# ------------------------------------------------------------------------------------------------- entries


def _bodies(archives: Corpus) -> None:
    bodiless = {"regular file": REG, "symlink": LNK, "device": CHR}
    for kind, mode in bodiless.items():
        for w in archives.writers(f"{kind} without body, then a name", BOTH):
            w.special(b"a", mode)
            w.file(b"b")
        for w in archives.writers(f"{kind} without body, last", BOTH):
            w.special(b"a", mode)
    for w in archives.writers("regular file that goes on as a directory", BOTH):
        w.directory(b"a", REG)
        w.file(b"inside")
        w.close()
    for w in archives.writers("directory that ends without a table", BOTH):
        w.special(b"a", DIR)
        w.file(b"b")
    bodies = {
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


def _values(archives: Corpus) -> None:
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


def _attributes(archives: Corpus) -> None:
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


def _heads(archives: Corpus) -> None:
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
    started(1, "format version 1 and a prelude", BOTH, item_bytes(FORMAT_VERSION, words(1)) + prelude)
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


# ------------------------------------------------------------------------------------------------- mutilated


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


def _sizes(archives: Corpus) -> None:
    """The first item of each kind with another size in its header."""
    for version in (1, 2):
        seen: set[int] = set()
        w = sample(version)
        for stream, at, kind in w.items:
            if kind in seen or kind in (PAYLOAD_TAIL,):
                continue
            seen.add(kind)
            data = w.archive if stream == "archive" else w.payload
            (true,) = struct.unpack_from("<Q", data, at + 8)
            for label, size in {
                **{f"{size:#x}": size for size in (0, 15, 2**32, 2**63, MAX)},
                **{"one less": true - 1, "one more": true + 1},
            }.items():
                changed = bytearray(data)
                struct.pack_into("<Q", changed, at + 8, size)
                both = [bytes(w.archive), bytes(w.payload)]
                both[stream == "payload"] = bytes(changed)
                refused_by = DECODER if kind in (GOODBYE, PAYLOAD_START) or label.startswith("one ") else BOTH
                archives.add(version, f"size {label} of item {kind:#018x}", refused_by, *both)


def _truncations(archives: Corpus) -> None:
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
