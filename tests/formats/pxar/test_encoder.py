"""Writing: golden archives byte for byte, worked examples, wrong calls, values that do not fit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from formats.errors import FormatError
from formats.pxar.decoder import Decoder
from formats.pxar.encoder import EncodeError, Encoder
from formats.pxar.items import Entry
from formats.pxar.metadata import Acl, DefaultAcl, Metadata, Stat
from tests.formats.pxar.listings import Memory, encode, golden_names, load

DIR = Metadata(Stat(0o40755, 0, 1000, 1000, 1700000000, 0))
FILE = Metadata(Stat(0o100644, 0, 1000, 1000, 1700000001, 500000000))
LINK = Metadata(Stat(0o120777, 0, 0, 0, 0, 0))
FIFO = Metadata(Stat(0o10644, 0, 0, 0, 0, 0))
CHAR = Metadata(Stat(0o20644, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("name", golden_names())
def test_golden_archive(name: str) -> None:
    archive, payload, listing = load(name)
    assert encode(listing, split=name.endswith("v2")) == (archive, payload)


@pytest.mark.parametrize("name", golden_names())
def test_golden_archive_with_big_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("formats.pxar.goodbye._NUMPY_FROM", 1)
    archive, payload, listing = load(name)
    assert encode(listing, split=name.endswith("v2")) == (archive, payload)


# -- spec 15 -----------------------------------------------------------------------------------------------------------

_EXAMPLE_V1 = """
    efac88e5746495d5 3800000000000000 ed41000000000000 0000000000000000 e8030000e8030000
    00f1536500000000 0000000000000000
    b317390621117016 1200000000000000 6100
    efac88e5746495d5 3800000000000000 a481000000000000 0000000000000000 e8030000e8030000
    01f1536500000000 0065cd1d00000000
    251a7c0b1b7a1428 1200000000000000 6869
    1d73d542a64fec2f 4000000000000000 cf7b2c7c06e9260c 5c00000000000000 5c00000000000000
    55153e755bed5eef 9400000000000000 4000000000000000
"""

_EXAMPLE_V2 = """
    0da416df756c0f73 1800000000000000 0200000000000000
    1b777b9f9dd709e3 2e00000000000000 7b226578636c7564652d7061747465726e73223a222a2e746d705c6e227d
    efac88e5746495d5 3800000000000000 ed41000000000000 0000000000000000 e8030000e8030000
    00f1536500000000 0000000000000000
    b317390621117016 1200000000000000 6100
    efac88e5746495d5 3800000000000000 a481000000000000 0000000000000000 e8030000e8030000
    01f1536500000000 0065cd1d00000000
    7e97bac46b3d9d41 2000000000000000 1000000000000000 0200000000000000
    1d73d542a64fec2f 4000000000000000 cf7b2c7c06e9260c 6a00000000000000 6c00000000000000
    55153e755bed5eef e800000000000000 4000000000000000
"""

_EXAMPLE_PAYLOAD = """
    d24e4a19c2684c83 1000000000000000 251a7c0b1b7a1428 1200000000000000 6869 b5814c988bb7726c 1000000000000000
"""


def test_example_version_1() -> None:
    out = bytearray()
    encoder = Encoder(out.extend)
    encoder.start_root(DIR)
    assert encoder.start_file(b"a", FILE, 2) == 0x38
    assert encoder.position == len(out) == 0x92
    out += b"hi"
    encoder.advance(2)
    encoder.end_directory()
    encoder.finish()
    assert out == bytes.fromhex(_EXAMPLE_V1)
    assert encoder.position == 212


@pytest.mark.parametrize("reused", [False, True])
def test_example_version_2(reused: bool) -> None:
    archive, payload = bytearray(), bytearray()
    encoder = Encoder(archive.extend, payload.extend, prelude=rb'{"exclude-patterns":"*.tmp\n"}')
    encoder.start_root(DIR)
    if reused:
        assert encoder.add_reference(b"a", FILE, 2, 16) == 0x7E
        encoder.inject(18)
    else:
        assert encoder.start_payload(2) == 16
        payload += b"hi"
        encoder.advance(2)
        assert encoder.add_file(b"a", FILE, 2, 16) == 0x7E
    encoder.end_directory()
    encoder.finish()
    expected = bytearray.fromhex(_EXAMPLE_V2)
    if reused:
        expected[0x108] = 106
    assert archive == expected
    assert (encoder.position, encoder.payload_position) == (296, 50)
    if not reused:
        assert payload == bytes.fromhex(_EXAMPLE_PAYLOAD)


def test_example_positions() -> None:
    """spec 15.4"""
    archive, payload = bytearray(), bytearray()
    encoder = Encoder(archive.extend, payload.extend)
    encoder.start_root(DIR)

    def add(name: bytes, size: int) -> tuple[int, int]:
        offset = encoder.start_payload(size)
        payload.extend(bytes(size))
        encoder.advance(size)
        return offset, encoder.add_file(name, FILE, size, offset)

    assert encoder.position == 80
    assert add(b"x", 3) == (16, 80)
    assert encoder.start_directory(b"sub", DIR) == 186
    assert encoder.add_hardlink(b"y", b"x", 80) == 262
    assert encoder.add_symlink(b"l", LINK, b"../x") == 306
    assert encoder.add_special(b"p", FIFO) == 401
    assert encoder.add_device(b"d", CHAR, 1, 3) == 475
    assert encoder.position == 581
    encoder.end_directory()
    assert struct.unpack("<QQ", archive[-16:]) == (375, 136)
    assert encoder.position == 717
    assert [add(b"f%d" % i, 1)[0] for i in range(6)] == [35, 52, 69, 86, 103, 120]
    assert encoder.position == 1359
    encoder.end_directory()
    encoder.finish()
    sizes = sorted(size for _, _, size in struct.iter_unpack("<QQQ", archive[1359 + 16 : -24]))
    assert sizes == [108] * 6 + [109, 531]
    assert struct.unpack("<QQ", archive[-16:]) == (1359, 232)


# -- the contract with the caller --------------------------------------------------------------------------------------


class _Archive:
    def __init__(self, *, split: bool = True, root: bool = True) -> None:
        self.archive, self.payload = bytearray(), bytearray()
        self.encoder = Encoder(self.archive.extend, self.payload.extend if split else None)
        if root:
            self.encoder.start_root(DIR)


def _open_file_v1() -> _Archive:
    it = _Archive(split=False)
    it.encoder.start_file(b"f", FILE, 10)
    it.encoder.advance(9)
    return it


def _open_payload() -> _Archive:
    it = _Archive()
    it.encoder.start_payload(10)
    it.encoder.advance(9)
    return it


def _one_file() -> _Archive:
    it = _Archive()
    it.encoder.start_payload(10)
    it.encoder.advance(10)
    it.encoder.add_file(b"f", FILE, 10, 16)
    return it


def _closed() -> _Archive:
    it = _Archive()
    it.encoder.end_directory()
    return it


def _referred() -> _Archive:
    it = _Archive()
    it.encoder.add_reference(b"f", FILE, 10, 16)
    return it


def _dangling() -> _Archive:
    it = _referred()
    it.encoder.end_directory()
    return it


WRONG: dict[str, tuple[Callable[[], _Archive], Callable[[Encoder], Any]]] = {
    "no root": (lambda: _Archive(root=False), lambda e: e.add_special(b"p", FIFO)),
    "directory without root": (lambda: _Archive(root=False), lambda e: e.start_directory(b"d", DIR)),
    "end without root": (lambda: _Archive(root=False), lambda e: e.end_directory()),
    "finish without root": (lambda: _Archive(root=False), lambda e: e.finish()),
    "two roots": (_Archive, lambda e: e.start_root(DIR)),
    "root after the end": (_closed, lambda e: e.start_root(DIR)),
    "root is a file": (lambda: _Archive(root=False), lambda e: e.start_root(FILE)),
    "entry after the end": (_closed, lambda e: e.add_symlink(b"l", LINK, b"x")),
    "directory not closed": (_Archive, lambda e: e.finish()),
    "one end too many": (_closed, lambda e: e.end_directory()),
    "directory is a file": (_Archive, lambda e: e.start_directory(b"d", FILE)),
    "file is a directory": (_one_file, lambda e: e.add_reference(b"d", DIR, 1, 100)),
    "symlink is a fifo": (_Archive, lambda e: e.add_symlink(b"l", FIFO, b"x")),
    "device is a link": (_Archive, lambda e: e.add_device(b"l", LINK, 1, 1)),
    "fifo is a device": (_Archive, lambda e: e.add_special(b"p", CHAR)),
    "type above 16 bits": (_Archive, lambda e: e.add_special(b"p", Metadata(Stat(0o210644, 0, 0, 0, 0, 0)))),
    "v1 incomplete, next entry": (_open_file_v1, lambda e: e.add_special(b"p", FIFO)),
    "v1 incomplete, end": (_open_file_v1, lambda e: e.end_directory()),
    "v1 more than declared": (_open_file_v1, lambda e: e.advance(2)),
    "v1 negative": (_open_file_v1, lambda e: e.advance(-1)),
    "v1 payload": (lambda: _Archive(split=False), lambda e: e.start_payload(1)),
    "v1 abandon": (_open_file_v1, lambda e: e.abandon_payload()),
    "v1 reference": (lambda: _Archive(split=False), lambda e: e.add_reference(b"f", FILE, 1, 16)),
    "v1 injection": (lambda: _Archive(split=False), lambda e: e.inject(1)),
    "v2 start_file": (_Archive, lambda e: e.start_file(b"f", FILE, 1)),
    "v2 more than declared": (_open_payload, lambda e: e.advance(2)),
    "v2 nothing declared": (_Archive, lambda e: e.advance(1)),
    "v2 second payload": (_open_payload, lambda e: e.start_payload(1)),
    "v2 injection into a payload": (_open_payload, lambda e: e.inject(1)),
    "v2 negative injection": (_Archive, lambda e: e.inject(-1)),
    "v2 contents incomplete": (_open_payload, lambda e: e.add_file(b"f", FILE, 10, 16)),
    "v2 entry in between": (_open_payload, lambda e: e.add_special(b"p", FIFO)),
    "v2 contents missing": (_Archive, lambda e: e.add_file(b"f", FILE, 10, 16)),
    "v2 reference again": (_one_file, lambda e: e.add_reference(b"g", FILE, 10, 16)),
    "v2 reference overlaps": (_one_file, lambda e: e.add_reference(b"g", FILE, 10, 41)),
    "v2 reference to the marker": (_Archive, lambda e: e.add_reference(b"g", FILE, 10, 0)),
    "v2 reference beyond the end": (_dangling, lambda e: e.finish()),
    "v1 plain file": (lambda: _Archive(split=False), lambda e: e.add_plain_files([(b"f", FILE.stat, 1)])),
    "v2 plain file in a payload": (_open_payload, lambda e: e.add_plain_files([(b"f", FILE.stat, 1)])),
    "plain file without root": (lambda: _Archive(root=False), lambda e: e.add_plain_files([(b"f", FILE.stat, 1)])),
    "plain file before referred ones": (_referred, lambda e: e.add_plain_files([(b"g", FILE.stat, 1)])),
    "plain file is a directory": (_Archive, lambda e: e.add_plain_files([(b"f", FILE.stat, 1), (b"d", DIR.stat, 1)])),
    "link forwards": (_one_file, lambda e: e.add_hardlink(b"g", b"f", e.position)),
    "link to nowhere": (_one_file, lambda e: e.add_hardlink(b"g", b"f", -1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name: str) -> None:
    start, call = WRONG[name]
    it = start()
    before = bytes(it.archive), bytes(it.payload), it.encoder.position, it.encoder.payload_position
    with pytest.raises(ValueError) as caught:
        call(it.encoder)
    assert not isinstance(caught.value, FormatError), "a bug of the caller is no wrong format"
    assert before == (bytes(it.archive), bytes(it.payload), it.encoder.position, it.encoder.payload_position)


def test_plain_files_are_as_others() -> None:
    files = [(b"n" * length, FILE.stat._replace(flags=length, uid=length), 3 * length) for length in (1, 2, 255, 4096)]
    one, other = _Archive(), _Archive()
    offset = one.encoder.payload_position
    items = one.encoder.add_plain_files(files)
    for (name, stat, size), item in zip(files, items, strict=True):
        start = other.encoder.start_payload(size)
        assert start == offset
        other.encoder.advance(size)
        position = other.encoder.add_file(name, Metadata(stat), size, start)
        assert item == other.encoder.last == bytes(other.archive[position:])
        offset += 16 + size
    assert one.encoder.last == other.encoder.last
    assert one.encoder.add_plain_files([]) == []
    for it in (one, other):
        it.encoder.end_directory()
        it.encoder.finish()
    assert one.archive == other.archive
    assert one.encoder.payload_position == other.encoder.payload_position == offset + 16


def test_prelude_needs_a_payload_stream() -> None:
    with pytest.raises(ValueError):
        Encoder(bytearray().extend, prelude=b"x")


def _with(**changes: Any) -> Metadata:
    return FILE._replace(**changes)


BAD: dict[str, Callable[[Encoder], Any]] = {
    "empty name": lambda e: e.add_special(b"", FIFO),
    "name .": lambda e: e.start_directory(b".", DIR),
    "name ..": lambda e: e.add_reference(b"..", FILE, 1, 16),
    "name with slash": lambda e: e.add_reference(b"a/b", FILE, 1, 16),
    "name with NUL": lambda e: e.add_hardlink(b"a\0", b"f", 80),
    "long name": lambda e: e.add_reference(b"a" * 4097, FILE, 1, 16),
    "long name of a link": lambda e: e.add_symlink(b"a" * 4097, LINK, b"x"),
    "empty target": lambda e: e.add_symlink(b"a", LINK, b""),
    "target with NUL": lambda e: e.add_symlink(b"a", LINK, b"x\0"),
    "long target": lambda e: e.add_symlink(b"a", LINK, b"x" * 4097),
    "link path absolute": lambda e: e.add_hardlink(b"a", b"/f", 80),
    "link path up": lambda e: e.add_hardlink(b"a", b"../f", 80),
    "link path empty": lambda e: e.add_hardlink(b"a", b"", 80),
    "link path long": lambda e: e.add_hardlink(b"a", b"a/" * 2049, 80),
    "negative device": lambda e: e.add_device(b"a", CHAR, -1, 0),
    "uid": lambda e: e.add_reference(b"a", Metadata(Stat(0o100644, 0, 2**32, 0, 0, 0)), 1, 16),
    "uid of a fifo": lambda e: e.add_special(b"a", Metadata(Stat(0o10644, 0, -1, 0, 0, 0))),
    "mtime": lambda e: e.add_reference(b"a", Metadata(Stat(0o100644, 0, 0, 0, 2**63, 0)), 1, 16),
    "nanoseconds": lambda e: e.add_reference(b"a", Metadata(Stat(0o100644, 0, 0, 0, 0, 10**9)), 1, 16),
    "negative nanoseconds": lambda e: e.add_special(b"a", Metadata(Stat(0o10644, 0, 0, 0, 0, -1))),
    "size": lambda e: e.add_reference(b"a", FILE, 2**63, 16),
    "negative size": lambda e: e.start_payload(-1),
    "size of a payload": lambda e: e.start_payload(2**63),
    "plain file, name": lambda e: e.add_plain_files([(b"a", FILE.stat, 1), (b"a/b", FILE.stat, 1)]),
    "plain file, uid": lambda e: e.add_plain_files([(b"a", FILE.stat._replace(uid=2**32), 1)]),
    "plain file, nanoseconds": lambda e: e.add_plain_files([(b"a", FILE.stat._replace(mtime_nanos=10**9), 1)]),
    "plain file, size": lambda e: e.add_plain_files([(b"a", FILE.stat, 2**63 - 1)]),
    "plain file, negative size": lambda e: e.add_plain_files([(b"a", FILE.stat, -1)]),
    "xattr without name": lambda e: e.add_reference(b"a", _with(xattrs=((b"", b"x"),)), 1, 16),
    "xattr with NUL": lambda e: e.add_reference(b"a", _with(xattrs=((b"user.\0", b"x"),)), 1, 16),
    "long xattr": lambda e: e.add_reference(b"a", _with(xattrs=((b"u" * 255, bytes(65536)),)), 1, 16),
    "many xattrs": lambda e: e.add_reference(b"a", _with(xattrs=((b"user.x", b""),) * 32769), 1, 16),
    "large xattrs": lambda e: e.add_reference(b"a", _with(xattrs=((b"user.x", bytes(65000)),) * 520), 1, 16),
    "long fcaps": lambda e: e.add_reference(b"a", _with(fcaps=bytes(65792)), 1, 16),
    "project id": lambda e: e.add_reference(b"a", _with(quota_project_id=2**64), 1, 16),
    "acl": lambda e: e.add_reference(b"a", _with(acl=Acl(users=((-1, 4),))), 1, 16),
    "default acl": lambda e: e.add_reference(b"a", _with(acl=Acl(default=DefaultAcl(1, 2, 3, 2**64))), 1, 16),
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_do_not_fit(name: str) -> None:
    """The error comes before anything is written, so the entry can be left out and the archive goes on."""
    it = _Archive()
    it.encoder.add_special(b"before", FIFO)
    before = bytes(it.archive), bytes(it.payload)
    with pytest.raises(EncodeError):
        BAD[name](it.encoder)
    assert before == (bytes(it.archive), bytes(it.payload))
    it.encoder.add_reference(b"f", FILE, 1, 16)
    it.encoder.inject(17)
    it.encoder.end_directory()
    it.encoder.finish()
    events = list(Decoder(Memory(bytes(it.archive))))
    assert [event.name for event in events if isinstance(event, Entry)] == [b"", b"before", b"f"]


def test_large_prelude() -> None:
    with pytest.raises(EncodeError):
        Encoder(bytearray().extend, bytearray().extend, prelude=bytes((16 << 20) + 1))


def test_limits_are_accepted_by_reader_and_writer() -> None:
    out = bytearray()
    encoder = Encoder(out.extend, lambda data: None, prelude=bytes(16 << 20))
    encoder.start_root(DIR)
    xattrs = ((b"u" * 255, bytes(65535)),) * 508
    encoder.add_reference(b"n" * 4096, _with(xattrs=xattrs, fcaps=bytes(65791)), 2**62, 16)
    encoder.add_symlink(b"l" * 4096, LINK, b"t" * 4096)
    encoder.add_hardlink(b"h" * 4096, b"a/" * 2047 + b"ab", 80 + (16 << 20) + 16)
    encoder.inject(2**62 + 16)
    encoder.end_directory()
    encoder.finish()
    _, file, link, hardlink = (event for event in Decoder(Memory(bytes(out))) if isinstance(event, Entry))
    assert file.metadata is not None and file.metadata.xattrs == xattrs
    assert file.size == 2**62 and len(link.target) == len(hardlink.target) == 4096


def test_abandoned_payload_is_padding() -> None:
    it = _open_payload()
    it.payload.extend(b"x" * 9)
    it.encoder.abandon_payload()
    offset = it.encoder.start_payload(3)
    assert offset == len(it.payload) - 16 == 41
    it.payload.extend(b"abc")
    it.encoder.advance(3)
    it.encoder.abandon_payload()  # also when all of it was written
    offset = it.encoder.start_payload(4)
    it.payload.extend(b"abcd")
    it.encoder.advance(4)
    it.encoder.add_file(b"f", FILE, 4, offset)
    it.encoder.end_directory()
    it.encoder.finish()
    decoder = Decoder(Memory(bytes(it.archive)), Memory(bytes(it.payload)))
    contents = [decoder.read_content(9) for event in decoder if isinstance(event, Entry) and event.kind == "file"]
    assert contents == [b"abcd"]


def test_memory_of_an_open_directory() -> None:
    import tracemalloc

    encoder = Encoder(lambda data: None, lambda data: None)
    encoder.start_root(DIR)
    names = [b"%06d" % i for i in range(100_000)]
    encoder.add_reference(b"first", FILE, 0, 16)
    tracemalloc.start()
    try:
        for number, name in enumerate(names):
            encoder.add_reference(name, FILE, 0, 32 + 16 * number)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        encoder.end_directory()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept < 30 * len(names)
    assert peak - kept < 120 * len(names)
