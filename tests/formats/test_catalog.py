from __future__ import annotations

import functools
import json
import random
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import catalog
from formats.catalog import (
    BARE_KINDS,
    DIRECTORY,
    FILE,
    MAX_NAME,
    SYMLINK,
    CatalogEntry,
    CatalogReader,
    CatalogWriter,
    decode_i64,
    decode_u64,
    encode_i64,
    encode_u64,
)
from formats.errors import FormatError, LimitExceeded
from formats.index import decode_index
from tests.golden_data import GOLDEN

LISTINGS: dict[str, list[dict[str, Any]]] = json.loads((GOLDEN / "catalog/catalog.json").read_text())
SPEC: list[Any] = json.loads((GOLDEN / "catalog/synthetic.spec.json").read_text())
MAGIC = catalog.MAGIC
VECTOR = bytes.fromhex(
    "91fd60f9c46758d5010019036605612e7478740580e2cfaa066403737562026c036c6e6b1201640e726f6f742e707861722e64"
    "6964781a2400000000000000"
)


def golden(name: str) -> bytes:
    return (GOLDEN / "catalog" / name).read_bytes()


def reader(data: bytes) -> CatalogReader:
    return CatalogReader(lambda offset, length: data[offset : offset + length], len(data))


def written(fill: Callable[[CatalogWriter], object]) -> bytes:
    out = bytearray()
    writer = CatalogWriter(out.extend)
    fill(writer)
    writer.finish()
    return bytes(out)


def listing(data: bytes) -> list[dict[str, Any]]:
    """As in catalog.json."""
    found = []
    for path, entry in reader(data).walk():
        item: dict[str, Any] = {"type": entry.kind.decode()}
        try:
            item["path"] = path.decode()
        except UnicodeDecodeError:
            item["path_hex"] = path.hex()
        item |= {key: getattr(entry, key) for key in ("size", "mtime", "start") if getattr(entry, key) is not None}
        found.append(item)
    return found


def block(table: bytes) -> bytes:
    return encode_u64(len(table)) + table


def with_root(blocks: bytes, root: int) -> bytes:
    return MAGIC + blocks + root.to_bytes(8, "little")


@contextmanager
def bounded(seconds: float = 120.0, mebibytes: int = 64) -> Iterator[None]:
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
        assert time.process_time() - started < seconds
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**32, "8080808010"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_unsigned_vectors(value: int, text: str) -> None:
    assert encode_u64(value).hex() == text
    assert decode_u64(bytes.fromhex(text)) == (value, len(text) // 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "00"),
        (1, "01"),
        (-1, "8100"),
        (127, "7f"),
        (-127, "ff00"),
        (128, "8001"),
        (-128, "808100"),
        (1700000000, "80e2cfaa06"),
        (-(2**63), "8080808080808080808100"),
        (2**63 - 1, "ffffffffffffffff7f"),
    ],
)
def test_signed_vectors(value: int, text: str) -> None:
    assert encode_i64(value).hex() == text
    assert decode_i64(bytes.fromhex(text)) == (value, len(text) // 2)


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_varints_round_trip(unsigned: int, signed: int, before: bytes, after: bytes) -> None:
    data = before + encode_u64(unsigned) + encode_i64(signed) + after
    value, pos = decode_u64(data, len(before))
    assert value == unsigned
    assert decode_i64(data, pos) == (signed, len(data) - len(after))


@pytest.mark.parametrize("value", [-1, 2**64])
def test_unsigned_range(value: int) -> None:
    with pytest.raises(FormatError):
        encode_u64(value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_signed_range(value: int) -> None:
    with pytest.raises(FormatError):
        encode_i64(value)


@pytest.mark.parametrize("text", ["", "80", "ff" * 9, "80" * 10, "80" * 10 + "01", "ff" * 9 + "02", "ff" * 9 + "7f"])
def test_bad_unsigned(text: str) -> None:
    with pytest.raises(FormatError):
        decode_u64(bytes.fromhex(text))


@pytest.mark.parametrize(
    "text",
    ["", "80", "81" * 10, "80" * 11, "80" * 11 + "00", "80" * 9 + "01", "ff" * 9 + "01", "818080808080808080" + "8100"],
)
def test_bad_signed(text: str) -> None:
    with pytest.raises(FormatError):
        decode_i64(bytes.fromhex(text))


def test_padded_varints_are_read() -> None:
    assert decode_u64(bytes.fromhex("808000")) == (0, 3)
    assert decode_i64(bytes.fromhex("8000")) == (0, 2)


@pytest.mark.parametrize("name", LISTINGS)
def test_golden_reading(name: str) -> None:
    assert listing(golden(name)) == LISTINGS[name]


@pytest.mark.parametrize("name", LISTINGS)
def test_golden_lookup(name: str) -> None:
    found = reader(golden(name))
    for path, entry in found.walk():
        assert found.lookup(path) == found.lookup(path[1:]) == entry
        assert found.lookup(path + b"/x") is None or entry.kind == DIRECTORY
        if entry.start is not None:
            below = found.read_directory(entry.start)
            assert [found.lookup(path + b"/" + child.name) for child in below] == below
    assert found.lookup(b"/") == found.lookup(b"") == CatalogEntry(DIRECTORY, b"", start=found.root_start)
    for absent in (b"x", b"/x/y", b"//", b"/archive.pxar.didx/", b"//archive.pxar.didx", b"\0"):
        assert found.lookup(absent) is None


def test_golden_root() -> None:
    assert [entry.name for entry in reader(golden("synthetic.pcat1")).root()] == [
        b"archive.pxar.didx",
        b"second.mpxar.didx",
    ]
    assert reader(golden("empty.pcat1")).root() == []


def write_spec(writer: CatalogWriter, items: list[Any]) -> None:
    for kind, name, *rest in items:
        raw = bytes.fromhex(name["hex"]) if isinstance(name, dict) else name.encode()
        if kind == "d":
            writer.start_directory(raw)
            write_spec(writer, rest[0])
            writer.end_directory()
        elif kind == "f":
            writer.add_file(raw, *rest)
        else:
            writer.add(kind.encode(), raw)


def write_archives(writer: CatalogWriter, archives: list[Any]) -> None:
    for _, name, items in archives:
        writer.start_archive(name)
        write_spec(writer, items)
        writer.end_archive()


def rewrite(data: bytes) -> bytes:
    """The same catalog, written from what is read."""
    source = reader(data)

    def copy(writer: CatalogWriter, entries: list[CatalogEntry]) -> None:
        for entry in entries:
            if entry.start is not None:
                writer.start_directory(entry.name)
                copy(writer, source.read_directory(entry.start))
                writer.end_directory()
            elif entry.kind == FILE:
                assert entry.size is not None
                assert entry.mtime is not None
                writer.add_file(entry.name, entry.size, entry.mtime)
            else:
                writer.add(entry.kind, entry.name)

    def fill(writer: CatalogWriter) -> None:
        for archive in source.root():
            assert archive.start is not None
            writer.start_archive(archive.name.decode())
            copy(writer, source.read_directory(archive.start))
            writer.end_archive()

    return written(fill)


def test_golden_writing() -> None:
    assert written(lambda writer: write_archives(writer, SPEC)) == golden("synthetic.pcat1")
    assert written(lambda writer: None) == golden("empty.pcat1")
    assert rewrite(golden("features.pcat1")) == golden("features.pcat1")


def test_vector() -> None:
    items = [["f", "a.txt", 5, 1700000000], ["d", "sub", []], ["l", "lnk"]]
    assert written(lambda writer: write_archives(writer, [["d", "root.pxar.didx", items]])) == VECTOR
    assert list(reader(VECTOR).walk()) == [
        (b"/root.pxar.didx", CatalogEntry(DIRECTORY, b"root.pxar.didx", start=10)),
        (b"/root.pxar.didx/a.txt", CatalogEntry(FILE, b"a.txt", 5, 1700000000)),
        (b"/root.pxar.didx/sub", CatalogEntry(DIRECTORY, b"sub", start=8)),
        (b"/root.pxar.didx/lnk", CatalogEntry(SYMLINK, b"lnk")),
    ]


@functools.cache
def datastore_catalogs() -> dict[str, bytes]:
    """The catalogs of the unencrypted snapshots, put together from their chunks (plain or zstd blobs)."""
    found = {}
    with tarfile.open(GOLDEN / "datastore.tar") as tar:
        for name in tar.getnames():
            if name.startswith("datastore/host/") and name.endswith("/catalog.pcat1.didx"):
                index = decode_index(tar.extractfile(name).read())  # type: ignore[union-attr]
                parts = []
                for i in range(len(index)):
                    digest = index.digest(i).hex()
                    blob = tar.extractfile(f"datastore/.chunks/{digest[:4]}/{digest}").read()  # type: ignore[union-attr]
                    body = blob[12:]
                    if blob.startswith(bytes.fromhex("31b958426fb6a37f")):
                        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
                    parts.append(body)
                found[name.removeprefix("datastore/").removesuffix("/catalog.pcat1.didx")] = b"".join(parts)
    return found


def test_golden_datastore() -> None:
    described = json.loads((GOLDEN / "datastore.json").read_text())
    checks = {check["snapshot"]: check["files"] for check in described["check"] if "snapshot" in check}
    kinds = {
        "dir": "d",
        "file": "f",
        "symlink": "l",
        "hardlink": "h",
        "block": "b",
        "char": "c",
        "fifo": "p",
        "socket": "s",
    }
    assert len(datastore_catalogs()) == 3
    for snapshot, data in datastore_catalogs().items():
        entries = listing(data)
        assert len(entries) == checks[snapshot]["catalog.pcat1.didx"]["entries"]
        assert rewrite(data) == data
        (name,) = (name for name in described["archives"] if name.startswith(f"{snapshot}/"))
        archive = described["archives"][name]
        if isinstance(archive, list):  # else a reference to the features tree
            top = "/" + name.rpartition("/")[2]
            expected = [
                (kinds[entry["kind"]], top + entry["path"].rstrip("/"), entry.get("size"), entry.get("mtime_secs"))
                for entry in archive
                if entry["kind"] in kinds
            ]
            got = [(entry["type"], entry["path"], entry.get("size"), entry.get("mtime")) for entry in entries]
            assert [item if item[0] == "f" else (*item[:2], None, None) for item in expected] == got


NAMES = st.binary(min_size=1, max_size=6).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
TREE = st.recursive(
    st.lists(
        st.tuples(NAMES, st.tuples(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)))
        | st.tuples(NAMES, st.sampled_from(sorted(BARE_KINDS))),
        max_size=4,
    ),
    lambda inner: st.lists(st.tuples(NAMES, inner), max_size=4),
    max_leaves=12,
)


@given(TREE)
@settings(max_examples=100, deadline=None)
def test_round_trip(tree: Any) -> None:
    expected: list[tuple[bytes, Any]] = [(b"/x.pxar.didx", None)]

    def write(writer: CatalogWriter, items: Any, path: bytes) -> None:
        for name, what in items:
            below = path + b"/" + name
            match what:
                case list():
                    expected.append((below, None))
                    writer.start_directory(name)
                    write(writer, what, below)
                    writer.end_directory()
                case (size, mtime):
                    expected.append((below, (FILE, name, size, mtime, None)))
                    writer.add_file(name, size, mtime)
                case _:
                    expected.append((below, (what, name, None, None, None)))
                    writer.add(what, name)

    def fill(writer: CatalogWriter) -> None:
        writer.start_archive("x.pxar.didx")
        write(writer, tree, b"/x.pxar.didx")
        writer.end_archive()

    data = written(fill)
    assert [(path, None if entry.kind == DIRECTORY else entry) for path, entry in reader(data).walk()] == expected
    assert rewrite(data) == data


def test_writer_out_of_turn() -> None:
    writer = CatalogWriter(lambda data: None)
    wrong: list[Callable[[], None]] = [
        writer.end_archive,
        writer.end_directory,
        lambda: writer.start_directory(b"d"),
        lambda: writer.add_file(b"f", 1, 1),
        lambda: writer.add(SYMLINK, b"l"),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="out of turn"):
            call()
    writer.start_archive("a.pxar.didx")
    wrong = [writer.end_directory, writer.finish, lambda: writer.start_archive("b"), lambda: writer.add(FILE, b"f")]
    for call in wrong:
        with pytest.raises(ValueError, match="out of turn"):
            call()
    writer.start_directory(b"d")
    for call in (writer.end_archive, writer.finish):
        with pytest.raises(ValueError, match="out of turn"):
            call()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"n" * (MAX_NAME + 1)])
def test_writer_refuses_names(name: bytes) -> None:
    writer = CatalogWriter(lambda data: None)
    writer.start_archive("a.pxar.didx")
    with pytest.raises(FormatError, match="name"):
        writer.add_file(name, 1, 1)
    with pytest.raises(FormatError, match="name"):
        writer.add(SYMLINK, name)
    with pytest.raises(FormatError, match="name"):
        writer.start_directory(name)


def test_writer_memory_is_one_table_per_open_directory() -> None:
    def fill(writer: CatalogWriter) -> None:
        writer.start_archive("a.pxar.didx")
        for i in range(300):
            writer.start_directory(b"%d" % i)
            for j in range(100):
                writer.add_file(b"%0100d" % j, j, j)
            writer.end_directory()
        writer.end_archive()

    with bounded(mebibytes=1):
        writer = CatalogWriter(lambda data: None)
        fill(writer)
        writer.finish()


def test_largest_name() -> None:
    name = b"n" * MAX_NAME

    def fill(writer: CatalogWriter) -> None:
        writer.start_archive("a")
        writer.add(SYMLINK, name)
        writer.end_archive()

    found = reader(written(fill)).lookup(b"a/" + name)
    assert found == CatalogEntry(SYMLINK, name)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        (b"\x01", "varint"),
        (b"\x01l", "varint"),
        (b"\x01l\x01", "name length"),
        (b"\x01l\x00", "name length"),
        (b"\x01l\x80\x20" + b"n" * 4096, "name length"),
        (b"\x01l\x01/", "name"),
        (b"\x01l\x01.", "name"),
        (b"\x01l\x02..", "name"),
        (b"\x01l\x01\0", "name"),
        (b"\x01x\x01a", "kind"),
        (b"\x01\x00\x01a", "kind"),
        (b"\x01f\x01a", "varint"),
        (b"\x01f\x01a\x01", "varint"),
        (b"\x01f\x01a" + b"\xff" * 9 + b"\x02\x00", "varint"),
        (b"\x01d\x01a", "varint"),
        (b"\x01d\x01a\x00", "distance"),
        (b"\x01d\x01a\x01", "distance"),
        (b"\x01d\x01a\x08", "distance"),
        (b"\x00l\x01a", "trailing"),
        (b"\x01l\x01a\x00", "trailing"),
        (b"\x02l\x01a", "varint"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01l\x01a", "varint"),
    ],
)
def test_bad_tables(table: bytes, word: str) -> None:
    found = reader(with_root(block(table), 8))
    for call in (found.root, lambda: list(found.walk()), lambda: found.lookup(b"zz")):
        with pytest.raises(FormatError, match=word) as caught:
            call()
        assert caught.value.offset is not None
        assert 8 <= caught.value.offset <= 8 + 2 + len(table)


@pytest.mark.parametrize("length", [b"\x00", b"\x03", b"\xff" * 9 + b"\x01", b"\xff" * 12])
def test_bad_table_lengths(length: bytes) -> None:
    with pytest.raises(FormatError, match=r"table length|varint") as caught:
        reader(with_root(length + b"\0\0", 8)).root()
    assert caught.value.offset == 8


def test_errors_tell_the_offset_in_the_catalog() -> None:
    damaged = bytearray(VECTOR)
    damaged[VECTOR.index(b"l\x03lnk")] = ord("x")
    with pytest.raises(FormatError, match="kind") as caught:
        list(reader(bytes(damaged)).walk())
    assert caught.value.offset == VECTOR.index(b"l\x03lnk")


@pytest.mark.parametrize("length", range(18))
def test_too_short(length: int) -> None:
    with pytest.raises(FormatError, match="length"):
        reader(golden("empty.pcat1")[:length])


@pytest.mark.parametrize("root", [0, 7, 10, 11, 2**63, 2**64 - 1])
def test_bad_root(root: int) -> None:
    with pytest.raises(FormatError, match="offset"):
        reader(with_root(b"\x01\x00", root))


def test_bad_magic() -> None:
    with pytest.raises(FormatError, match="magic"):
        reader(b"\0" + VECTOR[1:])


def test_short_reads_are_noticed() -> None:
    with pytest.raises(FormatError, match="ends early"):
        CatalogReader(lambda offset, length: VECTOR[offset : offset + length][:7], len(VECTOR))
    with pytest.raises(FormatError):
        CatalogReader(lambda offset, length: VECTOR[offset : offset + length], len(VECTOR) + 1)


@pytest.mark.parametrize("start", [-1, 0, 7, len(VECTOR) - 8, 2**64])
def test_directories_outside(start: int) -> None:
    with pytest.raises(FormatError, match="block offset"):
        reader(VECTOR).read_directory(start)


def test_shared_directories_do_not_multiply() -> None:
    """40 levels whose two entries are the same directory: 2^40 paths."""
    blocks, start = bytearray(b"\x01\x00"), 8
    for _ in range(40):
        here = len(MAGIC) + len(blocks)
        distance = encode_u64(here - start)
        blocks += block(b"\x02d\x01a" + distance + b"d\x01b" + distance)
        start = here
    with bounded(), pytest.raises(FormatError, match="two directories"):
        for _ in reader(with_root(bytes(blocks), start)).walk():
            pass


def nested(depth: int, name: bytes) -> bytes:
    def fill(writer: CatalogWriter) -> None:
        writer.start_archive("a")
        for _ in range(depth):
            writer.start_directory(name)
        for _ in range(depth):
            writer.end_directory()
        writer.end_archive()

    return written(fill)


def test_deep_nesting() -> None:
    with bounded():
        assert sum(1 for _ in reader(nested(10_000, b"d")).walk()) == 10_001
        with pytest.raises(LimitExceeded, match="path"):
            for _ in reader(nested(35_000, b"d")).walk():
                pass


def test_large_tables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = catalog.MAX_TABLE + 1

    def read_at(offset: int, length: int) -> bytes:
        assert length <= 10
        data = MAGIC + encode_u64(claimed) + bytes(16) if offset < 100 else (8).to_bytes(8, "little")
        return data[offset : offset + length] if offset < 100 else data

    with pytest.raises(LimitExceeded, match="table length"):
        CatalogReader(read_at, claimed + 1000).root()
    monkeypatch.setattr(catalog, "MAX_TABLE", 200)
    with pytest.raises(LimitExceeded, match="open tables"):
        list(reader(nested(3, b"d" * 100)).walk())
    wide = written(lambda writer: write_archives(writer, [["d", f"{i}", [["l", "n" * 100]]] for i in range(10)]))
    assert sum(1 for _ in reader(wide).walk()) == 20  # only what is open counts


@pytest.mark.parametrize("name", ["synthetic.pcat1", "features.pcat1"])
def test_mutations(name: str) -> None:
    original = golden(name)
    rng = random.Random(name)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(1000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(3):
                case 0:
                    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
                case 1:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 2:
                    at = rng.randrange(len(data))
                    data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        try:
            entries = list(reader(bytes(data)).walk())
        except FormatError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert len(entries) <= len(data) // 3
        for path, entry in entries:
            assert path.endswith(b"/" + entry.name)
            assert entry.start is None or 8 <= entry.start < len(data) - 8
    assert min(outcomes.values()) > 50, outcomes
