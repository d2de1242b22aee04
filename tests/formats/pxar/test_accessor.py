"""Random access: golden listings, lookups, links, contents, and tables that point anywhere."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator

import pytest

from formats.errors import FormatError, LimitExceeded
from formats.pxar import constants as c
from formats.pxar import goodbye
from formats.pxar.accessor import Accessor, Node
from formats.pxar.encoder import Encoder
from formats.pxar.metadata import Metadata, Stat
from tests.formats.pxar.listings import accessed, accessor, bytes_of, entries_only, golden_names, load, prelude_of

DIR = Metadata(Stat(0o40755, 0, 0, 0, 0, 0))
FILE = Metadata(Stat(0o100644, 0, 0, 0, 0, 0))
FIFO = Metadata(Stat(0o10644, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("name", golden_names(legacy=True))
@pytest.mark.parametrize("big", [False, True])
def test_golden_listing(name: str, big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if big:
        monkeypatch.setattr(goodbye, "_NUMPY_FROM", 1)
    archive, payload, listing = load(name)
    assert accessed(archive, payload) == entries_only(listing)
    access = accessor(archive)
    assert access.prelude == prelude_of(listing)
    assert access.version == (1 if name.endswith("v1") else 2)


@pytest.mark.parametrize("name", golden_names(legacy=True))
def test_every_path_is_found(name: str) -> None:
    archive, payload, listing = load(name)
    access = accessor(archive, payload)
    for item in entries_only(listing):
        path = bytes_of(item, "path")
        node = access.open_path(path)
        assert node is not None and node == access.open_path(path.strip(b"/"))
        assert node.kind == item["kind"]
        if path == b"/":
            assert node == access.root
            continue
        assert (node.filename_offset, node.entry_end) == (item["filename_offset"], item["entry_end"])
        parent = access.open_path(path.rpartition(b"/")[0])
        assert parent is not None and access.children(parent)[node.name] == node
        assert access.open_path(path + b"\xff\xfe") is None
        assert access.open_path(path + b"/\xff\xfe") is None
    for strange in (b"..", b".", b"a/../b", b"\0", b"a" * 5000, b"no/such/thing"):
        assert access.open_path(strange) is None


@pytest.mark.parametrize("name", ["features.v1", "features.v2", "synth.v2"])
def test_hard_links(name: str) -> None:
    archive, payload, listing = load(name)
    access = accessor(archive, payload)
    sums = {bytes_of(item, "path"): item["sha256"] for item in listing if item["kind"] == "file"}
    links = [item for item in listing if item["kind"] == "hardlink"]
    assert links
    for item in links:
        node = access.open_path(bytes_of(item, "path"))
        assert node is not None
        file = access.follow_hardlink(node)
        target = access.open_path(bytes_of(item, "target"))
        assert target is not None and file.filename_offset == target.filename_offset and file.depth == target.depth
        stream, offset, size = access.content(file)
        data = archive if stream == "archive" else payload
        assert data is not None
        assert hashlib.sha256(data[offset : offset + size]).hexdigest() == sums[b"/" + bytes_of(item, "target")]
        with pytest.raises(ValueError):
            access.content(node)
        with pytest.raises(ValueError):
            access.follow_hardlink(file)


def test_metadata_alone() -> None:
    access = accessor(load("plain.v2")[0])
    file = access.open_path(b"dir/file2.bin")
    assert file is not None and file.size == 1000
    with pytest.raises(ValueError, match="payload stream"):
        access.content(file)
    with pytest.raises(ValueError, match="not a directory"):
        access.children(file)
    with pytest.raises(ValueError, match="not a regular file"):
        access.content(access.root)


def test_lookup_reads_little() -> None:
    """In a version 1 archive with big files only the table and the entry are read."""
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    for number in range(20):
        encoder.start_file(b"%02d" % number, FILE, 100_000)
        out += bytes(100_000)
        encoder.advance(100_000)
    encoder.end_directory()
    reads: list[int] = []

    def read_at(offset: int, length: int) -> bytes:
        reads.append(length)
        return bytes(out[offset : offset + length])

    access = Accessor(read_at, len(out))
    assert access.lookup(access.root, b"07") is not None
    assert sum(reads) < 70_000
    reads.clear()
    assert access.lookup(access.root, b"08") is not None
    assert access.lookup(access.root, b"nothing") is None
    assert sum(reads) < 20_000
    assert len(access.children(access.root)) == 20


def test_big_directory_and_many_tables() -> None:
    """More tables than are kept, and one that is too large to be kept with others."""
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    for number in range(20):
        encoder.start_directory(b"%02d" % number, DIR)
        for child in range(1500):
            encoder.add_special(b"%04d" % child, FIFO)
        encoder.end_directory()
    encoder.end_directory()
    access = accessor(bytes(out))
    access._tables.clear()
    for _ in range(2):
        for directory in access.entries(access.root):
            node = access.lookup(directory, b"1234")
            assert node is not None and node.depth == 2
    first = access.open_path(b"00")
    assert first is not None
    assert list(access.children(first)) == [b"%04d" % child for child in range(1500)]


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("formats.pxar.accessor._CACHE", 500)
    archive, payload, listing = load("features.v2")
    assert accessed(archive, payload) == entries_only(listing)
    access = accessor(archive, payload)
    for item in entries_only(listing):
        assert access.open_path(bytes_of(item, "path")) is not None
        kept = sum(map(len, access._tables.values()))
        assert kept == access._cached and (kept <= 500 or len(access._tables) == 1)


def test_names_in_any_order() -> None:
    for names, twice in ((b"cba", False), (b"bca", False), (b"aab", True), (b"cac", True)):
        out = bytearray()
        encoder = Encoder(out.extend)
        encoder.start_root(DIR)
        for name in names:
            encoder.add_special(bytes([name]), FIFO)
        encoder.end_directory()
        access = accessor(bytes(out))
        if twice:
            with pytest.raises(FormatError, match="name twice"):
                access.children(access.root)
        else:
            assert [node.name for node in access.entries(access.root)] == [bytes([name]) for name in names]


# -- tables that lie ---------------------------------------------------------------------------------------------------


def _archive(*, split: bool = False) -> tuple[bytearray, dict[str, int]]:
    """A root with ``a`` (directory with fifo ``inner``), ``f`` (file of 5 bytes) and ``p`` (fifo); where things are."""
    out = bytearray()
    encoder = Encoder(out.extend, (lambda data: None) if split else None)
    encoder.start_root(DIR)
    at = {"a": encoder.start_directory(b"a", DIR), "inner": encoder.add_special(b"inner", FIFO)}
    at["a table"] = encoder.position
    encoder.end_directory()
    if split:
        at["f"] = encoder.add_reference(b"f", FILE, 5, 16)
        encoder.inject(21)
    else:
        at["f"] = encoder.start_file(b"f", FILE, 5)
        out.extend(b"hello")
        encoder.advance(5)
    at["p"] = encoder.add_special(b"p", FIFO)
    at["table"] = encoder.position
    encoder.end_directory()
    return out, at


def _walk(access: Accessor) -> Iterator[Node]:
    stack = [access.root]
    while stack:
        node = stack.pop()
        yield node
        if node.kind == "dir":
            stack += access.entries(node)


def _with_table(records: list[tuple[bytes, int, int]], *, split: bool = False) -> bytes:
    """The archive above with another root table: (name, position, size)."""
    out, at = _archive(split=split)
    children = array("Q")
    for name, start, size in records:
        children.extend((goodbye.name_hash(name), start, size))
    return bytes(out[: at["table"]]) + goodbye.build(children, at["table"], 0)


@pytest.mark.parametrize("split", [False, True])
def test_root_table_that_lies(split: bool) -> None:
    _, at = _archive(split=split)
    a, f, p, table = at["a"], at["f"], at["p"], at["table"]
    good = [(b"a", a, f - a), (b"f", f, p - f), (b"p", p, table - p)]
    assert len(list(_walk(accessor(_with_table(good, split=split))))) == 5
    wrong: dict[str, list[tuple[bytes, int, int]]] = {
        "one is left out": good[:2],
        "the first is left out": good[1:],
        "one in the middle is left out": [good[0], good[2]],
        "twice the same": [good[0], good[0], *good[1:]],
        "another hash": [(b"x", a, f - a), *good[1:]],
        "grandchild as child": [*good, (b"inner", at["inner"], at["a table"] - at["inner"])],
        "directory too large": [(b"a", a, f - a + 24), *good[1:]],
        "directory too small": [(b"a", a, f - a - 24), *good[1:]],
        "directory of the root's size": [(b"a", a, table - a), *good[1:]],
        "directory of no size": [(b"a", a, 0), *good[1:]],
        "file too large": [good[0], (b"f", f, p - f + 4), good[2]],
        "file of 2^64": [good[0], (b"f", f, 2**64 - 1), good[2]],
        "fifo with something": [*good[:2], (b"p", p, table - p + 1)],
        "child is the root": [(b"", 0, table), *good],
        "nothing": [],
    }
    for name, records in wrong.items():
        access = accessor(_with_table(records, split=split))
        with pytest.raises(FormatError):
            print(name, [node.name for node in _walk(access)])
    contents = [good[0], (b"f", f, p - f + 5), good[2]]
    if split:
        assert len(list(_walk(accessor(_with_table(contents, split=True))))) == 5
    else:
        with pytest.raises(FormatError):
            list(_walk(accessor(_with_table(contents))))


def test_lookup_does_not_believe_either() -> None:
    _, at = _archive()
    a, f = at["a"], at["f"]
    for record in ((b"a", a, f - a + 24), (b"x", a, f - a), (b"root", 0, 10), (b"far", 2**40, 1), (b"a", f, f - a)):
        # positions behind the table are negative distances, which wrap
        out, _ = _archive()
        distance = (at["table"] - record[1]) % 2**64
        row = struct.pack("<QQQ", goodbye.name_hash(record[0]), distance, record[2])
        tail = struct.pack("<QQQ", goodbye.TAIL_MARKER, at["table"], 64)
        archive = bytes(out[: at["table"]]) + struct.pack("<QQ", c.GOODBYE, 64) + row + tail
        with pytest.raises(FormatError):
            access = accessor(archive)
            node = access.lookup(access.root, record[0])
            assert node is not None
            access.children(node)


def test_colliding_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hash appears inside other fields of the table."""
    monkeypatch.setattr(goodbye, "name_hash", lambda name: 24)
    monkeypatch.setattr("formats.pxar.encoder.siphash", lambda key, name: 24)
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    for number in range(10):
        encoder.add_special(b"n%d" % number, FIFO)
    encoder.end_directory()
    access = accessor(bytes(out))
    assert len(access.children(access.root)) == 10, "ascending names are not the same name"
    for number in range(10):
        node = access.lookup(access.root, b"n%d" % number)
        assert node is not None and node.name == b"n%d" % number
    assert access.lookup(access.root, b"m") is None


@pytest.mark.parametrize("name", ["a", "root"])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_wrong_tail(name: str, field: int) -> None:
    for change in (1, 24, 2**63, 2**64 - 24):
        out, at = _archive()
        end = at["f"] if name == "a" else len(out)
        where = end - 24 + 8 * field
        (value,) = struct.unpack_from("<Q", out, where)
        struct.pack_into("<Q", out, where, (value + change) % 2**64)
        with pytest.raises(FormatError):
            list(_walk(accessor(bytes(out))))


def test_goodbye_header_is_checked() -> None:
    for offset in (0, 8):
        out, at = _archive()
        out[at["a table"] + offset] ^= 1
        with pytest.raises(FormatError):
            list(_walk(accessor(bytes(out))))


def test_truncated_and_extended() -> None:
    out, _ = _archive()
    for length in range(len(out)):
        with pytest.raises(FormatError):
            list(_walk(accessor(bytes(out[:length]))))
    with pytest.raises(FormatError):
        list(_walk(accessor(bytes(out) + b"x")))


def test_table_of_many_gigabytes() -> None:
    """An archive of a size that lies elsewhere: its table is not read before it is believed."""
    count = (1 << 40) // 24
    size = 80 + goodbye.table_size(count) * 4
    tail = struct.pack("<QQQ", goodbye.TAIL_MARKER, size - goodbye.table_size(count), goodbye.table_size(count))
    out, _ = _archive()

    def read_at(offset: int, length: int) -> bytes:
        assert length < 1 << 20
        data = bytes(out) + bytes(1 << 20) if offset == 0 else bytes(length - 24) + tail
        return data[:length]

    access = Accessor(read_at, size)
    with pytest.raises(LimitExceeded, match="goodbye table"):
        access.children(access.root)


def test_short_reads_are_an_error() -> None:
    out, _ = _archive()
    with pytest.raises(FormatError, match="ends early"):
        Accessor(lambda offset, length: bytes(out[offset : offset + length]), len(out) + 100)


def test_payload_references_are_checked_when_contents_are_wanted() -> None:
    archive, payload, _ = load("plain.v2")
    assert payload is not None
    for length in (1031, 100, 16, 0):
        reader = accessor(archive, payload)
        reader._payload_size = length
        node = reader.open_path(b"dir/file2.bin")
        assert node is not None
        with pytest.raises(FormatError, match="payload reference"):
            reader.content(node)
    for at in (16, 24):
        wrong = bytearray(payload)
        wrong[at] ^= 1
        reader = accessor(archive, bytes(wrong))
        node = reader.open_path(b"dir/file2.bin")
        assert node is not None
        with pytest.raises(FormatError, match="PAYLOAD"):
            reader.content(node)


def test_hard_links_that_lead_astray() -> None:
    def link(distance: int, target: bytes) -> bytes:
        """The archive with the fifo ``p`` replaced by a link."""
        out, at = _archive()
        body = struct.pack("<Q", distance) + target + b"\0"
        item = struct.pack("<QQ", c.HARDLINK, 16 + len(body)) + body
        data = bytes(out[: at["p"]]) + struct.pack("<QQ", c.FILENAME, 18) + b"p\0" + item
        children = array("Q")
        for name, start, end in ((b"a", at["a"], at["f"]), (b"f", at["f"], at["p"]), (b"p", at["p"], len(data))):
            children.extend((goodbye.name_hash(name), start, end - start))
        return data + goodbye.build(children, len(data), 0)

    _, at = _archive()
    p = at["p"]
    for distance, target, good in (
        (p - at["f"], b"f", True),
        (p - at["f"], b"g", False),
        (p - at["a"], b"a", False),
        (p - at["inner"], b"a/inner", False),
        (p, b"f", False),
        (1, b"f", False),
        (p - at["f"] - 1, b"f", False),
    ):
        access = accessor(link(distance, target))
        node = access.open_path(b"p")
        assert node is not None and node.kind == "hardlink"
        if good:
            assert access.content(access.follow_hardlink(node))[2] == 5
        else:
            with pytest.raises(FormatError):
                access.follow_hardlink(node)


def test_nesting_without_end() -> None:
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    for _ in range(10_000):
        encoder.start_directory(b"d", DIR)
    for _ in range(10_001):
        encoder.end_directory()
    access = accessor(bytes(out))
    assert sum(1 for _ in _walk(access)) == 10_001
    deepest = access.open_path(b"d/" * 10_000)
    assert deepest is not None and deepest.depth == 10_000
