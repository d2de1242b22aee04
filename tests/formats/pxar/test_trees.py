"""Any tree that can be written is read back by both readers; damaged archives give FormatError or a value."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.pxar import constants as c
from formats.pxar.accessor import Accessor
from formats.pxar.constants import ITEM_NAMES
from formats.pxar.decoder import Decoder, LeaveDirectory
from formats.pxar.encoder import Encoder
from formats.pxar.items import Entry
from formats.pxar.metadata import NO_ACL, Acl, DefaultAcl, Metadata, Stat
from tests.formats.pxar.listings import Memory, accessed, accessor, decoded, encode, entries_only, golden_names, load
from tests.golden_data import GOLDEN

# -- trees -------------------------------------------------------------------------------------------------------------

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
_pairs = st.lists(st.tuples(U64, U64), max_size=3).map(tuple)
_acls = st.just(NO_ACL) | st.builds(
    Acl,
    users=_pairs,
    groups=_pairs,
    group_obj=st.none() | U64,
    default=st.none() | st.builds(DefaultAcl, U64, U64, U64, U64),
    default_users=_pairs,
    default_groups=_pairs,
)
_xattr_names = st.binary(min_size=1, max_size=20).filter(lambda name: 0 not in name)
_xattrs = st.lists(st.tuples(_xattr_names, st.binary(max_size=300)), max_size=3).map(tuple)
_seconds = st.integers(-(2**63), 2**63 - 1)


def _metadata(*kinds: int) -> st.SearchStrategy[Metadata]:
    modes = st.builds(lambda kind, bits: kind << 12 | bits, st.sampled_from(kinds), st.integers(0, 0o7777))
    stats = st.builds(Stat, modes, U64, U32, U32, _seconds, st.integers(0, 10**9 - 1))
    plain = stats.map(Metadata)  # builds() would invent the arguments that have defaults
    return plain | st.builds(Metadata, stats, _xattrs, _acls, st.none() | st.binary(max_size=30), st.none() | U64)


_names = st.binary(min_size=1, max_size=12).filter(c.valid_name)
_leaves = st.one_of(
    st.tuples(st.just("file"), _metadata(c.REGULAR), st.binary(max_size=200)),
    st.tuples(st.just("reused"), _metadata(c.REGULAR), st.integers(0, 100)),
    st.tuples(st.just("symlink"), _metadata(c.LINK), st.binary(min_size=1, max_size=50).filter(lambda x: 0 not in x)),
    st.tuples(st.just("device"), _metadata(c.CHAR, c.BLOCK), st.tuples(U64, U64)),
    st.tuples(st.just("special"), _metadata(c.FIFO, c.SOCKET), st.none()),
    st.tuples(st.just("hardlink"), st.none(), st.none()),
)
_directories = st.recursive(
    st.dictionaries(_names, _leaves, max_size=6),
    lambda below: st.dictionaries(
        _names, _leaves | st.tuples(st.just("dir"), _metadata(c.DIRECTORY), below), max_size=6
    ),
    max_leaves=30,
)


class _Writer:
    """Writes a tree and keeps what readers must give: (path, kind, metadata, the rest)."""

    def __init__(self, split: bool) -> None:
        self.split = split
        self.archive, self.payload = bytearray(), bytearray()
        self.encoder = Encoder(self.archive.extend, self.payload.extend if split else None)
        self.expected: list[tuple[Any, ...]] = []
        self.files: list[tuple[bytes, int, bytes]] = []

    def write(self, root: Metadata, tree: dict[bytes, Any]) -> None:
        self.encoder.start_root(root)
        self.expected.append((b"", "dir", root, None))
        self._children(b"", tree)
        self.encoder.end_directory()
        self.encoder.finish()
        assert self.encoder.position == len(self.archive)
        assert self.encoder.payload_position == len(self.payload)

    def _children(self, parent: bytes, tree: dict[bytes, Any]) -> None:
        for name, (kind, metadata, extra) in tree.items():
            path = parent + b"/" + name
            if kind == "dir":
                self.encoder.start_directory(name, metadata)
                self.expected.append((path, kind, metadata, None))
                self._children(path, extra)
                self.encoder.end_directory()
            elif kind in ("file", "reused"):
                self._file(path, name, metadata, bytes(extra), reused=kind == "reused")
            elif kind == "hardlink":
                if self.files:
                    target, position, data = self.files[len(self.expected) % len(self.files)]
                    self.encoder.add_hardlink(name, target[1:], position)
                    self.expected.append((path, "hardlink", None, data))
            elif kind == "symlink":
                self.encoder.add_symlink(name, metadata, extra)
                self.expected.append((path, kind, metadata, extra))
            elif kind == "device":
                self.encoder.add_device(name, metadata, *extra)
                kind = "char" if metadata.stat.mode >> 12 == c.CHAR else "block"
                self.expected.append((path, kind, metadata, extra))
            else:
                self.encoder.add_special(name, metadata)
                kind = "fifo" if metadata.stat.mode >> 12 == c.FIFO else "socket"
                self.expected.append((path, kind, metadata, None))

    def _file(self, path: bytes, name: bytes, metadata: Metadata, data: bytes, *, reused: bool) -> None:
        encoder = self.encoder
        if not self.split:
            place = encoder.start_file(name, metadata, len(data))
            self.archive += data
            encoder.advance(len(data))
        elif reused:
            offset = encoder.payload_position + 7
            place = encoder.add_reference(name, metadata, len(data), offset)
            chunk = b"padding" + struct.pack("<QQ", c.PAYLOAD, 16 + len(data)) + data + b"more"
            self.payload += chunk
            encoder.inject(len(chunk))
        else:
            offset = encoder.start_payload(len(data))
            self.payload += data
            encoder.advance(len(data))
            place = encoder.add_file(name, metadata, len(data), offset)
        self.files.append((path, place, data))
        self.expected.append((path, "file", metadata, data))


def _sequential(archive: bytes, payload: bytes | None) -> list[tuple[Any, ...]]:
    decoder = Decoder(Memory(archive), None if payload is None else Memory(payload))
    found: list[tuple[Any, ...]] = []
    parents: list[bytes] = []
    at: dict[int, bytes] = {}
    for event in decoder:
        if isinstance(event, LeaveDirectory):
            parents.pop()
            continue
        path = parents[-1] + b"/" + event.name if parents else b""
        data = decoder.read_content(1 << 20) if event.kind == "file" else b""
        if event.kind == "file":
            at[event.filename_offset] = data
        elif event.kind == "hardlink":
            data = at[event.link_target]
        elif event.kind == "dir":
            parents.append(path)
        found.append(_found(event, path, data))
    return found


def _random(archive: bytes, payload: bytes | None) -> list[tuple[Any, ...]]:
    access = accessor(archive, payload)
    found: list[tuple[Any, ...]] = []
    stack = [(b"", access.root)]
    while stack:
        path, node = stack.pop()
        data = b""
        if node.kind in ("file", "hardlink"):
            file = node if node.kind == "file" else access.follow_hardlink(node)
            stream, offset, size = access.content(file)
            source = archive if stream == "archive" else payload
            assert source is not None
            data = source[offset : offset + size]
        elif node.kind == "dir":
            stack += [(path + b"/" + child.name, child) for child in reversed(list(access.entries(node)))]
        found.append(_found(node, path, data))
    return found


def _found(entry: Entry, path: bytes, data: bytes) -> tuple[Any, ...]:
    extra: Any = None
    if entry.kind in ("file", "hardlink"):
        extra = data
    elif entry.kind == "symlink":
        extra = entry.target
    elif entry.kind in ("char", "block"):
        extra = entry.major, entry.minor
    return path, entry.kind, entry.metadata, extra


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(root=_metadata(c.DIRECTORY), tree=_directories, split=st.booleans())
def test_round_trip(root: Metadata, tree: dict[bytes, Any], split: bool) -> None:
    writer = _Writer(split)
    writer.write(root, tree)
    archive, payload = bytes(writer.archive), bytes(writer.payload) if split else None
    assert _sequential(archive, payload) == writer.expected
    assert _random(archive, payload) == writer.expected


@pytest.mark.parametrize("count", [1022, 1024, 1500])
@pytest.mark.parametrize("split", [False, True])
def test_big_directory(count: int, split: bool) -> None:
    random = Random(count)
    tree: dict[bytes, Any] = {}
    for number in range(count):
        kind = ("file", "reused", "special")[number % 3]
        mode = 0o10644 if kind == "special" else 0o100644
        tree[b"%d" % number] = (kind, Metadata(Stat(mode, 0, 0, 0, number, 0)), random.randbytes(number % 50))
    writer = _Writer(split)
    writer.write(Metadata(Stat(0o40755, 0, 0, 0, 0, 0)), tree)
    archive, payload = bytes(writer.archive), bytes(writer.payload) if split else None
    assert _sequential(archive, payload) == writer.expected
    assert _random(archive, payload) == writer.expected


# -- a datastore with a snapshot that reuses chunks of the one before --------------------------------------------------


def _stream(files: dict[str, bytes], name: str) -> bytes:
    """The stream of a dynamic index of the golden datastore, from its unencrypted chunks."""
    index = files[f"datastore/{name}"]
    out = bytearray()
    for at in range(4096, len(index), 40):
        digest = index[at + 8 : at + 40].hex()
        blob = files[f"datastore/.chunks/{digest[:4]}/{digest}"]
        data = blob[12:]
        if blob[:8] == bytes([49, 185, 88, 66, 111, 182, 163, 127]):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        out += data
        assert len(out) == struct.unpack_from("<Q", index, at)[0]
    return bytes(out)


@pytest.fixture(scope="module")
def datastore() -> dict[str, bytes]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO((GOLDEN / "datastore.tar").read_bytes())) as tar:
        for member in tar:
            if member.isfile() and (source := tar.extractfile(member)) is not None:
                files[member.name] = source.read()
    return files


@pytest.mark.parametrize("day", [14, 15, 16])
def test_golden_datastore(datastore: dict[str, bytes], day: int) -> None:
    snapshot = f"host/alpha/2023-11-{day}T22:13:20Z/root"
    kind = "pxar" if day == 14 else "mpxar"
    listing = json.loads((GOLDEN / "datastore.json").read_text())["archives"][f"{snapshot}.{kind}.didx"]
    archive = _stream(datastore, f"{snapshot}.{kind}.didx")
    payload = None if day == 14 else _stream(datastore, f"{snapshot}.ppxar.didx")
    expected = entries_only(listing)
    assert accessed(archive, payload) == expected
    reused = [item for item in expected if item["kind"] == "file" and item["entry_end"] == item["offset"] + 16]
    reused = [item for item in reused if item["size"] and payload is not None]
    assert bool(reused) == (day == 16)
    sequential = decoded(archive, payload)
    for item in sequential:
        if any(item.get("path") == other["path"] for other in reused):
            item["entry_end"] -= item["size"]
    assert sequential == expected
    written, stream = encode(listing, split=day != 14)
    assert written == archive
    if day == 15:
        assert stream == payload


# -- damage ------------------------------------------------------------------------------------------------------------


_NUMBERS = [0, 1, 15, 16, 17, 24, 255, 4096, 4097, 65535, 1 << 31, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1]
_NUMBERS += [*ITEM_NAMES, 0xEF5EED5B753E1555]


def _flip(data: bytearray, random: Random) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data))
    data[at : at + 8] = struct.pack("<Q", random.choice(_NUMBERS))


def _nudge(data: bytearray, random: Random) -> None:
    """A u64 at a place where one may stand becomes a little larger or smaller."""
    at = random.randrange(max(1, len(data) - 8))
    (value,) = struct.unpack_from("<Q", data.ljust(at + 8, b"\0"), at)
    data[at : at + 8] = struct.pack("<Q", (value + random.choice([-24, -16, -1, 1, 16, 24, 40])) % 2**64)


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def _remove(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randrange(1, 200)]


def _repeat(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data))
    data[at:at] = data[at : at + random.randrange(1, 500)]


def _insert(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.randrange(1, 50))


_DAMAGE: list[Callable[[bytearray, Random], None]] = [_flip, _overwrite, _nudge, _cut, _remove, _repeat, _insert]


def _survives(read: Callable[[bytes, bytes | None], object], archive: bytes, payload: bytes | None) -> bool:
    """Whether ``read`` gave a value; any error but a FormatError goes up."""
    try:
        read(archive, payload)
    except FormatError as error:
        assert str(error)
        return False
    return True


def _read_random(archive: bytes, payload: bytes | None) -> int:
    access: Accessor = accessor(archive, payload)
    seen = 0
    stack = [access.root]
    while stack:
        node = stack.pop()
        seen += 1
        assert seen < 100_000
        if node.kind == "dir":
            stack += access.entries(node)
        elif node.kind == "hardlink":
            access.follow_hardlink(node)
        elif node.kind == "file":
            stream, offset, size = access.content(node)
            source = archive if stream == "archive" else payload
            assert source is not None and offset + size <= len(source)
    return seen


def _read_sequential(archive: bytes, payload: bytes | None) -> int:
    decoder = Decoder(Memory(archive), None if payload is None else Memory(payload))
    seen = 0
    for event in decoder:
        seen += 1
        assert seen < 100_000
        if isinstance(event, Entry) and event.kind == "file" and seen % 2:
            while decoder.read_content(65536):
                pass
    return seen


def _list(archive: bytes, payload: bytes | None) -> int:
    return sum(1 for _ in Decoder(Memory(archive)))


@pytest.mark.parametrize("name", golden_names(legacy=True))
def test_damaged_archives(name: str) -> None:
    archive, payload, _ = load(name)
    random = Random(name)
    refused = 0
    rounds = 200 if len(archive) > 30_000 else 800
    for round_ in range(rounds):
        damaged, damaged_payload = bytearray(archive), bytearray(payload or b"")
        for _ in range(random.choice([1, 1, 1, 3])):
            if damaged:
                random.choice(_DAMAGE)(damaged, random)
        if payload is not None and round_ % 4 == 0:
            random.choice(_DAMAGE)(damaged_payload, random)
        stream = None if payload is None else bytes(damaged_payload)
        results = [_survives(read, bytes(damaged), stream) for read in (_read_sequential, _read_random)]
        _survives(_list, bytes(damaged), None)
        refused += not all(results)
    assert refused > rounds // 3, "most damage hits the structure"


@pytest.mark.parametrize("name", ["features.v1", "synth.v2"])
def test_every_truncation(name: str) -> None:
    archive, _, _ = load(name)
    for length in range(0, len(archive), 1 if len(archive) < 5000 else 997):
        assert not _survives(_list, archive[:length], None)
        assert not _survives(_read_random, archive[:length], None)
