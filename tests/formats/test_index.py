from __future__ import annotations

import functools
import hashlib
import json
import mmap
import random
import struct
import tarfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.index import (
    HEADER_SIZE,
    LARGE_HEADER_SIZE,
    DynamicIndex,
    DynamicIndexWriter,
    FixedIndex,
    FixedIndexWriter,
    decode_index,
)
from tests.golden_data import GOLDEN

SAMPLES: dict[str, Any] = json.loads((GOLDEN / "index/index.json").read_text())
UUID = bytes(range(16))
A10 = hashlib.sha256(b"A" * 10).digest()
B5 = hashlib.sha256(b"B" * 5).digest()

Writer = DynamicIndexWriter | FixedIndexWriter


def write(writer: Writer, chunks: list[tuple[int, bytes]], take_every: int = 3) -> bytes:
    """The file a caller would end up with."""
    file = bytearray(writer.header())
    for number, (end, digest) in enumerate(chunks):
        writer.add(end, digest)
        if number % take_every == 0:
            file += writer.take()
    file += writer.take()
    file[:HEADER_SIZE] = writer.finish()
    return bytes(file)


def rewrite(index: DynamicIndex | FixedIndex) -> bytes:
    chunks = [(int(end), digest.tobytes()) for end, digest in zip(index.ends, index.digests, strict=True)]
    if isinstance(index, FixedIndex):
        return write(FixedIndexWriter(index.uuid, index.ctime, index.size, index.chunk_size), chunks)
    return write(DynamicIndexWriter(index.uuid, index.ctime), chunks)


def check_against(index: DynamicIndex | FixedIndex, fields: dict[str, Any], chunks: list[tuple[int, str]]) -> None:
    assert isinstance(index, FixedIndex if fields["type"] == "fidx" else DynamicIndex)
    assert index.uuid == uuid.UUID(fields["uuid"]).bytes
    assert index.ctime == fields["ctime"]
    assert index.size == fields["size"]
    assert index.stored_csum.hex() == fields["index_csum"]
    assert index.csum().hex() == fields["computed_csum"]
    if isinstance(index, FixedIndex):
        assert index.chunk_size == fields["chunk_size"]
    assert len(index) == len(chunks)
    assert index.ends.dtype == np.uint64
    assert index.digests.shape == (len(chunks), 32)
    assert index.ends.tolist() == [end for end, _ in chunks]
    start = 0
    for i, (end, digest) in enumerate(chunks):
        assert (index.start(i), index.end(i)) == (start, end)
        assert index.sizes()[i] == end - start
        assert index.sizes(i, i + 1).tolist() == [end - start]
        assert index.sizes(i).tolist() == index.sizes()[i:].tolist()
        assert index.sizes(0, i).tolist() == index.sizes()[:i].tolist()
        assert index.digest(i).hex() == digest
        assert index.digests[i].tobytes().hex() == digest
        assert index.find(start) == index.find((start + end) // 2) == index.find(end - 1) == i
        start = end
    for outside in (-1, index.size, 2**70):
        with pytest.raises(FormatError, match="stream offset"):
            index.find(outside)


@functools.cache
def datastore_indexes() -> dict[str, bytes]:
    with tarfile.open(GOLDEN / "datastore.tar") as tar:
        return {
            member.name.removeprefix("datastore/"): tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in tar
            if member.name.endswith((".didx", ".fidx"))
        }


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name: str) -> None:
    data = (GOLDEN / "index" / name).read_bytes()
    fields = SAMPLES[name]
    index = decode_index(data)
    check_against(index, fields, [(chunk["end"], chunk["digest"]) for chunk in fields["chunks"]])
    assert rewrite(index) == data


def test_datastore() -> None:
    described = json.loads((GOLDEN / "datastore.json").read_text())["indexes"]
    files = datastore_indexes()
    assert files.keys() == described.keys()
    for name, fields in described.items():
        index = decode_index(files[name])
        check_against(index, fields, fields["chunks"])
        assert rewrite(index) == files[name]


def test_vectors() -> None:
    dynamic = DynamicIndexWriter(UUID, 5)
    assert decode_index(write(dynamic, [(10, A10), (15, B5)])).csum() == dynamic.csum
    assert dynamic.csum.hex() == "71b05457563242f455292742ab6c3fd09f6e04a65fecab6ed2f38afe6ce5e451"
    assert (dynamic.size, dynamic.count) == (15, 2)
    fixed = FixedIndexWriter(UUID, 5, 15, 16)
    fixed.add(15, A10)
    assert fixed.csum == hashlib.sha256(A10).digest()
    two = FixedIndexWriter(UUID, 5, 12, 8)
    assert decode_index(write(two, [(8, A10), (12, B5)])).csum() == two.csum
    assert two.csum.hex() == "b577678d86ae0c6acce0fea584728a91af6d9fb0bb6099df9e247d22e48b2821"
    assert (two.size, two.count) == (12, 2)


def test_views_are_not_copies(tmp_path: Path) -> None:
    data = write(DynamicIndexWriter(UUID, -1), [(10, A10), (15, B5)])
    path = tmp_path / "x.didx"
    path.write_bytes(data)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for buffer in (data, bytearray(data), memoryview(data), mapped, memoryview(mapped)):
        index = decode_index(buffer)
        assert isinstance(index, DynamicIndex)
        assert index.ctime == -1
        assert np.shares_memory(index.ends, np.frombuffer(buffer, np.uint8))
        assert np.shares_memory(index.digests, np.frombuffer(buffer, np.uint8))


@pytest.mark.parametrize("name", ["sample.didx", "sample.fidx", "aligned.fidx"])
def test_large_header_of_other_builds(name: str) -> None:
    data = (GOLDEN / "index" / name).read_bytes()
    larger = data[:HEADER_SIZE] + bytes(LARGE_HEADER_SIZE - HEADER_SIZE) + data[HEADER_SIZE:]
    assert rewrite(decode_index(larger)) == data


@pytest.mark.parametrize("name", SAMPLES)
def test_lengths(name: str) -> None:
    data = (GOLDEN / "index" / name).read_bytes()
    for length in {*range(100), HEADER_SIZE - 1, HEADER_SIZE, *range(HEADER_SIZE + 1, HEADER_SIZE + 32)}:
        with pytest.raises(FormatError):
            decode_index(data[:length])
    for other in (data[:-1], data + b"\0", data[:LARGE_HEADER_SIZE] + bytes(LARGE_HEADER_SIZE - len(data))):
        with pytest.raises(FormatError, match="length"):
            decode_index(other)


def test_only_the_kind_that_was_asked_for() -> None:
    with pytest.raises(FormatError, match="magic"):
        DynamicIndex.decode((GOLDEN / "index/sample.fidx").read_bytes())
    with pytest.raises(FormatError, match="magic"):
        FixedIndex.decode((GOLDEN / "index/sample.didx").read_bytes())
    with pytest.raises(FormatError, match="magic"):
        decode_index(bytes(5000))


@pytest.mark.parametrize("i", [0, 1, 5, 8])
def test_ends_must_increase(i: int) -> None:
    data = bytearray((GOLDEN / "index/sample.didx").read_bytes())
    at = HEADER_SIZE + 40 * i
    before = struct.unpack_from("<Q", data, at - 40)[0] if i else 0
    for end in {before, max(before - 1, 0), 0}:
        struct.pack_into("<Q", data, at, end)
        with pytest.raises(FormatError, match=f"entry {i}: end") as caught:
            decode_index(data)
        assert (caught.value.offset, caught.value.got) == (at, end)


@pytest.mark.parametrize("block_end", [2**20 - 1, 2**20, 2**20 + 1])
def test_ends_must_increase_across_blocks(block_end: int) -> None:
    entries = np.zeros(2**20 + 10, np.dtype([("end", "<u8"), ("digest", "u1", 32)]))
    entries["end"] = np.arange(1, len(entries) + 1) * 1000
    header = DynamicIndexWriter(UUID, 0).header()
    index = decode_index(header + entries.tobytes())
    assert index.find(999) == 0
    assert index.find(2**20 * 1000) == 2**20
    entries["end"][block_end] = entries["end"][block_end - 1]
    with pytest.raises(FormatError, match=f"entry {block_end}:"):
        decode_index(header + entries.tobytes())


@pytest.mark.parametrize(
    ("size", "chunk_size", "word"),
    [
        (0, 4096, "image size"),
        (100, 0, "chunk size"),
        (100, 3, "chunk size"),
        (100, 2**63 + 1, "chunk size"),
        (100, 1, "length"),
        (2**64 - 1, 1, "length"),
        (2**64 - 1, 2**63, "length"),
    ],
)
def test_image_sizes(size: int, chunk_size: int, word: str) -> None:
    header = bytearray(FixedIndexWriter(UUID, 0, 1, 1).header())
    struct.pack_into("<QQ", header, 64, size, chunk_size)
    with pytest.raises(FormatError, match=word):
        decode_index(bytes(header) + A10)


def test_huge_offsets() -> None:
    top = 2**64 - 1
    index = decode_index(write(DynamicIndexWriter(UUID, 0), [(2**63, A10), (top, B5)]))
    assert index.size == top
    assert index.find(2**63) == index.find(top - 1) == 1
    fixed = decode_index(write(FixedIndexWriter(UUID, 0, top, 2**63), [(2**63, A10), (top, B5)]))
    assert fixed.ends.tolist() == [2**63, top]
    assert fixed.sizes().tolist() == [2**63, 2**63 - 1]


def test_dynamic_writer_refuses() -> None:
    with pytest.raises(FormatError, match="uuid"):
        DynamicIndexWriter(b"short", 0)
    writer = DynamicIndexWriter(UUID, 0)
    with pytest.raises(FormatError, match="without a chunk"):
        writer.finish()
    for end in (0, -1, 2**64):
        with pytest.raises(FormatError):
            writer.add(end, A10)
    writer.add(5, A10)
    for end, digest in ((5, A10), (4, A10), (6, A10[:31]), (6, A10 + b"x")):
        with pytest.raises(FormatError):
            writer.add(end, digest)
    with pytest.raises(ValueError, match="take"):
        writer.finish()
    assert writer.take() == struct.pack("<Q", 5) + A10
    assert writer.take() == b""
    assert writer.finish()[32:64] == writer.csum


def test_fixed_writer_refuses() -> None:
    for size, chunk_size in ((0, 4), (None, 0), (None, 3), (5, 6), (-1, 4)):
        with pytest.raises(FormatError):
            FixedIndexWriter(UUID, 0, size, chunk_size)
    writer = FixedIndexWriter(UUID, 0, 10, 4)
    for end in (0, 3, 5, 8):
        with pytest.raises(FormatError):
            writer.add(end, A10)
    writer.add(4, A10)
    writer.take()
    with pytest.raises(FormatError, match="missing"):
        writer.finish()
    writer.add(8, A10)
    for end in (9, 11, 12):
        with pytest.raises(FormatError):
            writer.add(end, A10)
    writer.add(10, A10)
    with pytest.raises(FormatError):
        writer.add(10, A10)


@pytest.mark.parametrize(("ends", "size"), [([4, 8, 9], 9), ([4, 8], 8), ([1], 1), ([4], 4)])
def test_fixed_writer_with_unknown_size(ends: list[int], size: int) -> None:
    writer = FixedIndexWriter(UUID, 0, None, 4)
    assert writer.header()[64:72] == bytes(8)
    index = decode_index(write(writer, [(end, A10) for end in ends]))
    assert index.size == writer.size == size
    assert index.ends.tolist() == ends
    if size % 4:
        with pytest.raises(FormatError):
            writer.add(size + 1, A10)


@given(st.lists(st.tuples(st.integers(1, 2**40), st.binary(min_size=32, max_size=32)), min_size=1, max_size=50))
@settings(max_examples=50)
def test_dynamic_round_trip(chunks: list[tuple[int, bytes]]) -> None:
    ends = np.cumsum([size for size, _ in chunks]).tolist()
    index = decode_index(write(DynamicIndexWriter(UUID, 7), list(zip(ends, (d for _, d in chunks), strict=True))))
    assert index.sizes().tolist() == [size for size, _ in chunks]
    assert [index.digest(i) for i in range(len(index))] == [digest for _, digest in chunks]
    assert index.csum() == index.stored_csum


@given(st.integers(1, 2**24), st.integers(16, 22), st.booleans())
@settings(max_examples=50)
def test_fixed_round_trip(size: int, power: int, known: bool) -> None:
    chunk_size = 2**power
    ends = [min(end, size) for end in range(chunk_size, size + chunk_size, chunk_size)]
    writer = FixedIndexWriter(UUID, 7, size if known else None, chunk_size)
    index = decode_index(write(writer, [(end, hashlib.sha256(b"%d" % end).digest()) for end in ends]))
    assert (index.size, index.ends.tolist()) == (size, ends)
    assert int(index.sizes().sum()) == size
    for i in range(len(index)):
        assert index.find(index.start(i)) == index.find(index.end(i) - 1) == i


@pytest.mark.parametrize("name", SAMPLES)
def test_mutations(name: str) -> None:
    original = (GOLDEN / "index" / name).read_bytes()
    rng = random.Random(name)
    refused = 0
    for _ in range(1500):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            # mostly where it matters: the 80 bytes of header fields, the entries
            at = rng.choice((rng.randrange(80), rng.randrange(HEADER_SIZE, len(data)), rng.randrange(len(data))))
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            index = decode_index(data)
        except FormatError:
            refused += 1
            continue
        assert (np.diff(index.ends) > 0).all()
        assert int(index.sizes().sum(dtype=object)) == index.size
        assert index.find(index.size - 1) == len(index) - 1
        assert len(index.csum()) == 32
    assert refused > 100


@pytest.mark.parametrize("size", [None, 29])
def test_runs_of_a_fixed_index(size: int | None) -> None:
    """A run of equal chunks is the same as each of them by itself."""
    chunks = [A10, *[B5] * 5, A10, B5]
    ends = [*range(4, 29, 4), 29]
    one = FixedIndexWriter(UUID, 7, size, 4)
    two = FixedIndexWriter(UUID, 7, size, 4)
    for end, digest in zip(ends, chunks, strict=True):
        one.add(end, digest)
    two.add(4, A10)
    two.add_run(B5, 5)
    two.add(28, A10)
    two.add(29, B5)
    assert (one.count, one.csum, one.take(), one.finish()) == (two.count, two.csum, two.take(), two.finish())


def test_run_of_equal_dynamic_chunks() -> None:
    """As if they had come one by one."""
    one, two = DynamicIndexWriter(UUID, 7), DynamicIndexWriter(UUID, 7)
    ends = [3, *range(8, 8 + 5 * 6, 5), 40]
    for end, digest in zip(ends, [A10, *[B5] * 6, A10], strict=True):
        one.add(end, digest)
    two.add(3, A10)
    two.add_run(B5, 5, 6)
    two.add(40, A10)
    assert (one.count, one.size, one.csum, one.take(), one.finish()) == (
        two.count, two.size, two.csum, two.take(), two.finish()
    )  # fmt: skip
    for digest, size, count in ((A10, 5, 0), (A10, 0, 5), (b"short", 5, 5), (A10, 1 << 62, 4)):
        with pytest.raises(FormatError):
            two.add_run(digest, size, count)


def test_runs_that_do_not_fit() -> None:
    writer = FixedIndexWriter(UUID, 7, 10, 4)
    for digest, count in ((A10, 3), (A10, 0), (A10, -1), (b"short", 1)):
        with pytest.raises(FormatError):
            writer.add_run(digest, count)
    writer.add_run(A10, 2)
    writer.add(10, B5)
    with pytest.raises(FormatError):
        writer.add_run(A10, 1)
    stream = FixedIndexWriter(UUID, 7, None, 4)
    stream.add(3, A10)
    with pytest.raises(FormatError):
        stream.add_run(A10, 1)
