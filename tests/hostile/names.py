"""Names and links that lead out of the tree (spec pxar.md 6, 10.3, 10.4)."""

from __future__ import annotations

from tests.hostile.corpus import ACCESSOR, BOTH, DECODER, EITHER, Corpus
from tests.hostile.writer import FIFO, HARDLINK, LNK, REG, SYMLINK, XATTR, Writer, words

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


def names(archives: Corpus, outside: bytes) -> None:
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
        target = b"t%d" % w.position
        w.hardlink(b"x", target, w.file(target))


def duplicates(archives: Corpus, outside: bytes) -> None:
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


def symlinks(archives: Corpus, outside: bytes) -> None:
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


def hardlink_paths(archives: Corpus, outside: bytes) -> None:
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


def hardlink_offsets(archives: Corpus, outside: bytes) -> None:
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
