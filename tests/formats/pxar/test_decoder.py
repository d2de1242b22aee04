"""Sequential reading: golden listings, reading contents, and every check of its own."""

from __future__ import annotations

import json
import struct

import pytest

from formats.errors import FormatError, LimitExceeded
from formats.pxar import constants as c
from formats.pxar.decoder import LEAVE, Decoder, LeaveDirectory
from formats.pxar.encoder import Encoder
from formats.pxar.items import Entry
from formats.pxar.metadata import Metadata, Stat
from tests.formats.pxar.listings import Memory, bytes_of, decoded, entries_only, golden_names, load, prelude_of
from tests.golden_data import GOLDEN, content

DIR = Metadata(Stat(0o40755, 0, 0, 0, 0, 0))
FILE = Metadata(Stat(0o100644, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("name", golden_names(legacy=True))
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_golden_listing(name: str, piece: int) -> None:
    archive, payload, listing = load(name)
    assert decoded(archive, payload, piece=piece) == entries_only(listing)
    decoder = Decoder(Memory(archive))
    assert decoder.version == (1 if name.endswith("v1") else 2)
    assert decoder.prelude == prelude_of(listing)


@pytest.mark.parametrize("name", golden_names())
def test_metadata_alone_is_listable(name: str) -> None:
    archive, _, listing = load(name)
    decoder = Decoder(Memory(archive))
    entries = [event for event in decoder if isinstance(event, Entry)]
    assert [(e.kind, e.size) for e in entries] == [(x["kind"], x.get("size", 0)) for x in entries_only(listing)]
    assert decoder.position == len(archive)


@pytest.mark.parametrize("name", ["features.v1", "features.v2"])
def test_contents_may_be_left_unread(name: str) -> None:
    """Every third file is read, every third one in part."""
    archive, payload, listing = load(name)
    expected = iter(item for item in listing if item["kind"] == "file")
    decoder = Decoder(Memory(archive), None if payload is None else Memory(payload))
    for number, event in enumerate(decoder):
        if isinstance(event, Entry) and event.kind == "file":
            data = content(next(expected)["content"])
            if number % 3 == 0:
                assert decoder.read_content(len(data) + 1) == data
            elif number % 3 == 1:
                assert decoder.read_content(5) == data[:5]
    assert next(expected, None) is None


class _Hole(Memory):
    """A stream with ``size`` zeros in front of the byte ``at`` of its data; counts what is read."""

    def __init__(self, data: bytes, at: int, size: int) -> None:
        super().__init__(data)
        self.at, self.size, self.seen = at, size, 0

    def read(self, length: int, /) -> bytes:
        start, self.position = self.position, self.position + length
        head = self.data[start : min(start + length, self.at)] if start < self.at else b""
        zeros = bytes(max(0, min(start + length, self.at + self.size) - max(start, self.at)))
        tail = self.data[max(self.at, start - self.size) : max(self.at, start + length - self.size)]
        self.seen += len(head + zeros + tail)
        return head + zeros + tail


def test_large_contents_are_skipped_not_read() -> None:
    size = 10 << 30
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    encoder.start_file(b"big", FILE, size)
    hole = len(out)
    encoder.advance(size)
    encoder.start_file(b"small", FILE, 3)
    out += b"abc"
    encoder.advance(3)
    encoder.end_directory()
    encoder.finish()
    stream = _Hole(bytes(out), hole, size)
    decoder = Decoder(stream)
    seen = []
    for event in decoder:
        if isinstance(event, Entry) and event.kind == "file":
            seen.append((event.name, event.size, decoder.read_content(3)))
    assert seen == [(b"big", size, bytes(3)), (b"small", 3, b"abc")]
    assert decoder.position == encoder.position == len(out) + size
    assert stream.seen < 1 << 20


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 300_000, 1_000_000])
@pytest.mark.parametrize("split", [False, True])
def test_pieces_of_any_size(size: int, split: bool) -> None:
    data = content({"gen": "sha256ctr", "seed": "pieces", "len": size})
    archive, payload = bytearray(), bytearray()
    encoder = Encoder(archive.extend, payload.extend if split else None)
    encoder.start_root(DIR)
    for name in (b"a", b"b"):
        if split:
            offset = encoder.start_payload(size)
            payload += data
            encoder.advance(size)
            encoder.add_file(name, FILE, size, offset)
        else:
            encoder.start_file(name, FILE, size)
            archive += data
            encoder.advance(size)
    encoder.end_directory()
    encoder.finish()
    for piece in (1000, 70_000, 262_144, 2 << 20):
        decoder = Decoder(Memory(bytes(archive)), Memory(bytes(payload)) if split else None)
        for event in decoder:
            if isinstance(event, Entry) and event.kind == "file":
                parts = []
                while part := decoder.read_content(piece):
                    parts.append(part)
                assert b"".join(parts) == data
                assert all(len(part) == piece for part in parts[:-1]), "a short piece before the end"


def test_events_and_wrong_calls() -> None:
    archive, _, _ = load("plain.v2")
    decoder = Decoder(Memory(archive))
    events = list(decoder)
    assert events[0] == events[0] and isinstance(events[0], Entry) and events[0].name == b""
    assert events[-1] is LEAVE and isinstance(LEAVE, LeaveDirectory)
    assert sum(event is LEAVE for event in events) == 2
    decoder = Decoder(Memory(archive))
    for event in decoder:
        with pytest.raises(
            ValueError, match="payload stream" if getattr(event, "kind", "") == "file" else "no contents"
        ):
            decoder.read_content(1)


def test_trailing_bytes_are_not_looked_at() -> None:
    archive, payload, listing = load("plain.v1")
    assert decoded(archive + b"anything", payload) == entries_only(listing)


# -- archives that are wrong: built from parts -------------------------------------------------------------------------


def item(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<QQ", kind, 16 + len(body)) + body


def entry(mode: int, nanos: int = 0) -> bytes:
    return item(c.ENTRY, struct.pack("<QQIIqII", mode, 0, 0, 0, 0, nanos, 0))


def archive_of(*parts: bytes) -> bytes:
    """A version 1 archive with ``parts`` in its root; the goodbye table is wrong, so they must fail before it."""
    return entry(0o40755) + b"".join(parts) + item(c.GOODBYE, bytes(24 * 9))


def filename(name: bytes) -> bytes:
    return item(c.FILENAME, name + b"\0")


A = filename(b"a")
FIFO = entry(0o10644)
REGULAR = entry(0o100644)
VERSION_2 = item(c.FORMAT_VERSION, struct.pack("<Q", 2))

BROKEN = {
    "empty stream": (b"", "ends early"),
    "half a header": (entry(0o40755)[:9], "ends early"),
    "root is a file": (REGULAR + item(c.PAYLOAD, b"x"), "root"),
    "root has a name": (filename(b"x") + FIFO, "ENTRY"),
    "version 3": (item(c.FORMAT_VERSION, struct.pack("<Q", 3)), "version"),
    "version of 4 bytes": (item(c.FORMAT_VERSION, b"\2\0\0\0"), "FORMAT_VERSION"),
    "second version": (VERSION_2 * 2 + entry(0o40755), "ENTRY"),
    "prelude of 2^40": (VERSION_2 + struct.pack("<QQ", c.PRELUDE, 1 << 40), "PRELUDE"),
    "item of size 15": (archive_of(struct.pack("<QQ", c.FILENAME, 15)), "size of a FILENAME"),
    "name ..": (archive_of(filename(b".."), FIFO), "file name"),
    "name .": (archive_of(filename(b"."), FIFO), "file name"),
    "name empty": (archive_of(filename(b""), FIFO), "file name"),
    "name with slash": (archive_of(filename(b"a/b"), FIFO), "file name"),
    "name with NUL": (archive_of(filename(b"a\0b"), FIFO), "NUL"),
    "name without NUL": (archive_of(item(c.FILENAME, b"abc"), FIFO), "NUL"),
    "name of no bytes": (archive_of(item(c.FILENAME), FIFO), "FILENAME item .* NUL"),
    "name of 4097": (archive_of(filename(b"a" * 4097), FIFO), "FILENAME"),
    "no entry behind a name": (archive_of(A, filename(b"b")), "ENTRY"),
    "unknown item": (archive_of(item(12345)), "unknown item type"),
    "no name": (archive_of(A, FIFO, filename(b"b"), FIFO, REGULAR), "ENTRY in a fifo"),
    "unknown attribute": (archive_of(A, FIFO, item(12345)), "unknown item type"),
    "ENTRY of 41 bytes": (archive_of(A, item(c.ENTRY, bytes(41))), "ENTRY"),
    "mode without type": (archive_of(A, entry(0o644)), "mode"),
    "mode above 16 bits": (archive_of(A, entry(0o300644)), "mode"),
    "nanoseconds": (archive_of(A, entry(0o10644, 10**9)), "nanoseconds"),
    "regular without body": (archive_of(A, REGULAR, filename(b"b"), FIFO), "FILENAME in a file"),
    "reference in version 1": (archive_of(A, REGULAR, item(c.PAYLOAD_REF, bytes(16))), "in a file"),
    "fifo with contents": (archive_of(A, FIFO, item(c.PAYLOAD)), "PAYLOAD in a fifo"),
    "directory with a target": (archive_of(A, entry(0o40755), item(c.SYMLINK, b"x\0")), "SYMLINK in a dir"),
    "contents of 2^63": (archive_of(A, REGULAR, struct.pack("<QQ", c.PAYLOAD, 1 << 63)), "size"),
    "contents of 2^64": (archive_of(A, REGULAR, struct.pack("<QQ", c.PAYLOAD, 2**64 - 1)), "size"),
    "contents cut": (archive_of(A, REGULAR, struct.pack("<QQ", c.PAYLOAD, 10000)), "ends early"),
    "symlink without NUL": (archive_of(A, entry(0o120777), item(c.SYMLINK, b"x")), "NUL"),
    "symlink with NUL": (archive_of(A, entry(0o120777), item(c.SYMLINK, b"x\0y\0")), "NUL"),
    "symlink of 0 bytes": (archive_of(A, entry(0o120777), item(c.SYMLINK)), "SYMLINK item .* NUL"),
    "symlink to nothing": (archive_of(A, entry(0o120777), item(c.SYMLINK, b"\0")), "empty target"),
    "device of 8 bytes": (archive_of(A, entry(0o20644), item(c.DEVICE, bytes(8))), "DEVICE"),
    "xattr without NUL": (archive_of(A, FIFO, item(c.XATTR, b"user.x")), "extended attribute"),
    "xattr without name": (archive_of(A, FIFO, item(c.XATTR, b"\0x")), "extended attribute"),
    "xattr too long": (archive_of(A, FIFO, item(c.XATTR, b"u\0" + bytes(65790))), "XATTR"),
    "two fcaps": (archive_of(A, FIFO, item(c.FCAPS, b"x") * 2), "FCAPS in a fifo"),
    "two project ids": (archive_of(A, FIFO, item(c.QUOTA_PROJID, bytes(8)) * 2), "QUOTA_PROJID in a fifo"),
    "two group_obj": (archive_of(A, FIFO, item(c.ACL_GROUP_OBJ, bytes(8)) * 2), "ACL_GROUP_OBJ in a fifo"),
    "two defaults": (archive_of(A, FIFO, item(c.ACL_DEFAULT, bytes(32)) * 2), "ACL_DEFAULT in a fifo"),
    "ACL_USER of 8 bytes": (archive_of(A, FIFO, item(c.ACL_USER, bytes(8))), "ACL_USER"),
    "too many attributes": (archive_of(A, FIFO, item(c.ACL_USER, bytes(16)) * 32769), "attributes"),
    "too large attributes": (
        archive_of(A, FIFO, item(c.XATTR, b"u\0" + bytes(65000)) * 520),
        "attributes",
    ),
    "link of 8 bytes": (archive_of(A, item(c.HARDLINK, struct.pack("<Q", 1))), "HARDLINK"),
    "link to itself": (archive_of(A, item(c.HARDLINK, struct.pack("<Q", 0) + b"x\0")), "distance"),
    "link to before": (archive_of(A, item(c.HARDLINK, struct.pack("<Q", 57) + b"x\0")), "distance"),
    "link absolute": (archive_of(A, item(c.HARDLINK, struct.pack("<Q", 1) + b"/x\0")), "target"),
    "link up": (archive_of(A, item(c.HARDLINK, struct.pack("<Q", 1) + b"x/../../y\0")), "target"),
    "link without NUL": (archive_of(A, item(c.HARDLINK, struct.pack("<Q", 1) + b"xy")), "NUL"),
    "table too large": (archive_of(), "GOODBYE"),
    "table of 2^64": (entry(0o40755) + struct.pack("<QQ", c.GOODBYE, 2**64 - 1), "GOODBYE"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    archive, message = BROKEN[name]
    with pytest.raises(FormatError, match=message):
        list(Decoder(Memory(archive)))


def test_limits_are_their_own_error() -> None:
    for name in ("prelude of 2^40", "contents of 2^63", "name of 4097", "xattr too long", "too many attributes"):
        with pytest.raises(LimitExceeded):
            list(Decoder(Memory(BROKEN[name][0])))


# -- goodbye tables and references, damaged in a valid archive --------------------------------------------------------


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_goodbye_records_are_checked(field: int, big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if big:
        monkeypatch.setattr("formats.pxar.goodbye._NUMPY_FROM", 1)
    archive, payload, _ = load("synth.v2")
    list(Decoder(Memory(archive)))
    table = archive.rindex(c.GOODBYE.to_bytes(8, "little")) + 16
    records = (len(archive) - table) // 24
    for record in range(records):
        wrong = bytearray(archive)
        wrong[table + 24 * record + 8 * field] ^= 0x80  # no file has 128 bytes, so no other size is right
        with pytest.raises(FormatError, match="goodbye"):
            list(Decoder(Memory(bytes(wrong)), Memory(payload or b"")))


@pytest.mark.parametrize("big", [False, True])
def test_name_twice(big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the second one stands; sorted or not, other names may come in any order."""
    if big:
        monkeypatch.setattr("formats.pxar.goodbye._NUMPY_FROM", 1)
    for names, twice in (
        (b"aab", True),
        (b"aba", True),
        (b"cbac", True),
        (b"cba", False),
        (b"bca", False),
        (b"a", False),
    ):
        out = bytearray()
        encoder = Encoder(out.extend)
        encoder.start_root(DIR)
        for name in names:
            encoder.add_symlink(bytes([name]), Metadata(Stat(0o120777, 0, 0, 0, 0, 0)), b"/tmp")
        encoder.end_directory()
        if twice:
            with pytest.raises(FormatError, match="name twice"):
                list(Decoder(Memory(bytes(out))))
        else:
            list(Decoder(Memory(bytes(out))))


def _split(*references: tuple[int, int]) -> bytes:
    """An mpxar with files that refer to (offset, size), made by changing a valid one."""
    out = bytearray()
    encoder = Encoder(out.extend, lambda data: None)
    encoder.start_root(DIR)
    offset = 16
    for number, (_, size) in enumerate(references):
        encoder.add_reference(b"f%d" % number, FILE, size, offset)
        offset += 16 + size
    encoder.inject(offset)
    encoder.end_directory()
    at = 0
    for wanted, _ in references:
        at = out.index(struct.pack("<QQ", c.PAYLOAD_REF, 32), at) + 16
        out[at : at + 8] = struct.pack("<Q", wanted)
    return bytes(out)


@pytest.mark.parametrize(
    ("references", "good"),
    [
        (((16, 5), (37, 5)), True),
        (((100, 5), (1000, 5)), True),
        (((16, 0), (32, 0)), True),
        (((15, 5),), False),
        (((0, 0),), False),
        (((16, 5), (36, 5)), False),
        (((16, 5), (16, 5)), False),
        (((37, 5), (16, 5)), False),
        (((16, 0), (16, 0)), False),
        (((2**64 - 1, 5),), False),
        (((2**63, 5),), False),
    ],
)
def test_references_grow_and_do_not_overlap(references: tuple[tuple[int, int], ...], good: bool) -> None:
    archive = _split(*references)
    if good:
        assert sum(isinstance(event, Entry) for event in Decoder(Memory(archive))) == len(references) + 1
    else:
        with pytest.raises(FormatError, match=r"reference|contents"):
            list(Decoder(Memory(archive)))


def _read_all(archive: bytes, payload: bytes, piece: int = 100) -> None:
    decoder = Decoder(Memory(archive), Memory(payload))
    for event in decoder:
        if isinstance(event, Entry) and event.kind == "file":
            while decoder.read_content(piece):
                pass


def test_payload_stream_is_checked() -> None:
    archive, payload, _ = load("plain.v2")
    assert payload is not None
    _read_all(archive, payload)
    for at, message in ((0, "START_MARKER"), (8, "START_MARKER"), (16, "PAYLOAD of 1000"), (24, "PAYLOAD of 1000")):
        wrong = bytearray(payload)
        wrong[at] ^= 1
        with pytest.raises(FormatError, match=message):
            _read_all(archive, bytes(wrong))
    for length in (0, 8, 20, 500, 1040):
        for piece in (100, 1 << 20):
            with pytest.raises(FormatError):
                _read_all(archive, payload[:length], piece)
    for end in range(len(payload) - 16, len(payload)):
        _read_all(archive, payload[:end])  # the tail marker is nobody's business here


def test_payload_for_a_version_1_archive() -> None:
    with pytest.raises(FormatError, match="version"):
        Decoder(Memory(load("plain.v1")[0]), Memory(load("plain.v2")[1] or b""))


def test_reused_archive() -> None:
    """Sizes in goodbye tables without contents, and padding between the references (observed.md 1, 8)."""
    archive = _split((116, 5), (1000, 7))
    payload = bytearray(2000)
    payload[:16] = struct.pack("<QQ", c.PAYLOAD_START_MARKER, 16)
    payload[116:137] = item(c.PAYLOAD, b"first")
    payload[1000:1023] = item(c.PAYLOAD, b"second.")
    decoder = Decoder(Memory(archive), Memory(bytes(payload)))
    assert [decoder.read_content(99) for event in decoder if isinstance(event, Entry) and event.kind == "file"] == [
        b"first",
        b"second.",
    ]


def test_nesting_without_end() -> None:
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    for _ in range(10_000):
        encoder.start_directory(b"d", DIR)
    for _ in range(10_001):
        encoder.end_directory()
    encoder.finish()
    events = list(Decoder(Memory(bytes(out))))
    assert len(events) == 2 * 10_001
    deepest = events[10_000]
    assert isinstance(deepest, Entry) and deepest.depth == 10_000


def test_names_that_are_not_utf8_and_golden_paths() -> None:
    """The listing has such names, so that the tests above mean something."""
    listing = json.loads((GOLDEN / "pxar" / "features.v1.json").read_text())
    assert any("path_hex" in x for x in listing)
    assert all(bytes_of(x, "path").startswith(b"/") for x in listing)
