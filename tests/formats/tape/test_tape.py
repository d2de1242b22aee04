"""The tape format against media that the reference implementation wrote, against computed vectors, and broken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import blob
from formats.errors import FormatError
from formats.keyfile import KeyFile
from formats.pxar.metadata import Stat
from formats.tape import content as c
from formats.tape.blocks import BLOCK_SIZE, PAYLOAD_SIZE, BlockReader, BlockWriter
from formats.tape.catalog import (
    MAGIC,
    ChunkFile,
    SnapshotEntry,
    catalog_archive,
    decode_catalog,
    encode_chunk_file,
    encode_labels,
    encode_snapshot,
)
from formats.tape.chunk_archive import chunk_archive, encode_entry, read_chunks, read_digests
from formats.tape.content import Content, decode_uuid, encode_uuid, read_content
from formats.tape.labels import MediaLabel, MediaSetLabel
from formats.tape.snapshot_archive import SnapshotArchiveWriter, read_files, snapshot_archive
from tests.formats.tape.media import SETS, TapeFile, all_files, document, logs, reader
from tests.golden_data import GOLDEN

UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
MEDIUM = decode_uuid("13998850-57f6-4bad-be54-b4392eb4e340", "medium")
SET = decode_uuid("7488bcea-cd05-4648-89ba-d9ee0ff5aade", "set")
THEN = 1_700_000_000


def written(fill: Callable[[BlockWriter], object], *, incomplete: bool = False) -> bytes:
    """The blocks of a file."""
    blocks: list[bytes] = []

    def put(block: memoryview) -> bool:
        blocks.append(bytes(block))
        return False

    writer = BlockWriter(put)
    fill(writer)
    writer.finish(incomplete=incomplete)
    assert writer.bytes_written == len(blocks) * BLOCK_SIZE
    return b"".join(blocks)


def stream_of(file: TapeFile) -> bytes:
    stream = file.stream()
    data = stream.read(1 << 30)
    assert stream.has_end_marker
    return data


ALL = pytest.mark.parametrize("file", all_files(), ids=lambda file: f"{file.label}-{file.number}")


# -- golden media ----------------------------------------------------------------------------------------------------


@ALL
def test_blocks_again(file: TapeFile) -> None:
    """Each golden file is made again from its stream, however the stream is handed over."""
    stream, rng = stream_of(file), random.Random(file.number)
    assert len(file.data) == file.said["bytes"]

    def fill(writer: BlockWriter) -> None:
        position = 0
        while position < len(stream):
            length = rng.choice((1, 7, 4096, PAYLOAD_SIZE - 1, PAYLOAD_SIZE, 600_000))
            writer.write(stream[position : position + length])
            position += length

    assert written(fill, incomplete=file.said.get("incomplete", False)) == file.data


@ALL
def test_content(file: TapeFile) -> None:
    found = read_content(file.stream().read)
    said = file.said
    assert (found.magic.hex(), encode_uuid(found.uuid), found.time) == (
        said["content_magic"],
        said["uuid"],
        said["ctime"],
    )
    assert found.fields == said["header"]
    head = found.encode()
    assert head[48:].decode() == said["header_text"]
    assert stream_of(file).startswith(head)


@ALL
def test_archives(file: TapeFile) -> None:
    """What is in them, and that they are written so again."""
    stream, said = file.stream(), file.said
    found = read_content(stream.read)
    match found.kind:
        case "media label":
            label = MediaLabel.decode(found)
            assert (label.label_text, label.pool) == (said["header"]["label_text"], said["header"].get("pool"))
            assert label.content(found.uuid, found.time).encode() == found.encode()
            assert stream.read(1) == b""
        case "media-set label":
            place = MediaSetLabel.decode(found)
            assert (place.seq_nr, place.pool) == (said["header"]["seq_nr"], said["header"]["pool"])
            assert place.content(found.uuid, found.time).encode() == found.encode()
        case "chunk archive":
            chunks = list(read_chunks(stream))
            listed = [
                {"digest": chunk.digest.hex(), "sha256": sha256(chunk.blob).hexdigest(), "size": len(chunk.blob)}
                for chunk in chunks
            ]
            assert listed == said["chunks"]
            again = file.stream()
            read_content(again.read)
            assert [(chunk.digest, len(chunk.blob)) for chunk in chunks] == list(read_digests(again))

            def fill(writer: BlockWriter) -> None:
                writer.write(chunk_archive(found.text("store"), found.uuid, found.time).encode())
                for chunk in chunks:
                    writer.write(encode_entry(chunk.digest, len(chunk.blob)))
                    writer.write(chunk.blob)

            assert written(fill) == file.data
        case "snapshot archive":
            check_snapshot(file, found, stream)
        case "catalog archive":
            catalog = decode_catalog(stream.read(1 << 30))
            assert catalog.torn is None and described(catalog) == said["catalog"]
            assert found.uuid_of("uuid") == catalog.media and found.uuid_of("media_set_uuid") == catalog.media_set


def check_snapshot(file: TapeFile, found: Content, stream: BlockReader) -> None:
    entries = [(name, stat, size, b"".join(contents)) for name, stat, size, contents in read_files(stream)]
    said = [entry for entry in file.said["pxar"] if entry["kind"] == "file"]
    assert [("/" + name, sha256(data).hexdigest(), size) for name, _, size, data in entries] == [
        (entry["path"], entry["sha256"], entry["size"]) for entry in said
    ]

    def fill(writer: BlockWriter) -> None:
        writer.write(snapshot_archive(found.text("store"), found.text("snapshot"), found.uuid, found.time).encode())
        archive = SnapshotArchiveWriter(writer.write)
        for name, stat, size, data in entries:
            archive.start_file(name, stat, size)
            archive.write(data)
        archive.finish()

    assert written(fill) == file.data


def described(catalog: Any) -> list[dict[str, Any]]:
    """The records as the golden JSON has them."""
    found: list[dict[str, Any]] = [{"file_number": 0, "seq_nr": 0, "type": "L", "uuid": encode_uuid(catalog.media)}]
    if catalog.media_set is not None:
        found.append({"file_number": 1, "seq_nr": catalog.seq_nr, "type": "L", "uuid": encode_uuid(catalog.media_set)})
    for entry in sorted([*catalog.archives, *catalog.snapshots]):
        head = {"file_number": entry.file, "uuid": encode_uuid(entry.uuid)}
        if isinstance(entry, ChunkFile):
            found.append({**head, "store": entry.store, "type": "A"})
            found += [{"digest": digest.tobytes().hex(), "type": "C"} for digest in entry.digests]
            found.append({**head, "type": "E"})
        else:
            found.append({**head, "store": entry.store, "snapshot": entry.path, "type": "S"})
    return found


@pytest.mark.parametrize("name", SETS)
def test_catalogs(name: str) -> None:
    for file, data in logs(name).items():
        catalog = decode_catalog(data)
        assert catalog.torn is None and catalog.end == len(data)
        assert described(catalog) == document(name)["catalogs"][file]
        again = decode_catalog(encoded(catalog))
        assert described(again) == described(catalog) and len(encoded(catalog)) == len(data)


def encoded(catalog: Any) -> bytes:
    parts = [encode_labels(catalog.media, catalog.media_set, catalog.seq_nr)]
    for entry in sorted([*catalog.archives, *catalog.snapshots]):
        parts.append(encode_chunk_file(entry) if isinstance(entry, ChunkFile) else encode_snapshot(entry))
    return b"".join(parts)


# -- vectors (spec tape.md 15) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 262127, 262128, 262129, 524256])
def test_split(length: int) -> None:
    data = random.Random(length).randbytes(length)
    blocks = written(lambda writer: writer.write(data))
    heads = [
        (blocks[at + 8], int.from_bytes(blocks[at + 9 : at + 12], "little")) for at in range(0, len(blocks), BLOCK_SIZE)
    ]
    full, rest = divmod(length, PAYLOAD_SIZE)
    assert heads == [(0, PAYLOAD_SIZE)] * full + [(1, rest)]
    assert reader(blocks).read(1 << 30) == data


def test_media_label_vector() -> None:
    label = MediaLabel("TAPE01", MEDIUM, THEN, "daily")
    block = written(lambda writer: writer.write(label.content(UUID, THEN).encode()))
    assert block[:64].hex() == (
        "dcbdafcaeba0a52801a800000000000063ee149fcdf29b0c2a05bf3cb030aa39"
        "00112233445566778899aabbccddeeff00f15365000000007800000000000000"
    )
    assert sha256(block).hexdigest() == "f5597e13773cd2d8e38a7a421e9e588b4a6589833852e25ade9515016e9691bb"


def test_chunk_archive_vector() -> None:
    digest = sha256(b"hello").digest()
    stored = blob.encode(b"hello")
    entry = encode_entry(digest, len(stored)) + stored
    assert entry.hex() == (
        "48576df2de428fdc2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        "110000000000000042ab3807be8370a186a6103668656c6c6f"
    )

    def fill(writer: BlockWriter) -> None:
        writer.write(chunk_archive("s", UUID, THEN).encode())
        writer.write(entry)

    block = written(fill)
    assert sha256(block).hexdigest() == "573d2dfa12486bca2cbd467b6d8ad72aafb75946ee71a86bcb9b5abf6098cfda"


def small_log() -> bytes:
    digests = np.frombuffer(sha256(b"hello").digest(), np.uint8).reshape(1, 32)
    return b"".join(
        (
            encode_labels(MEDIUM, SET, 0),
            encode_chunk_file(ChunkFile(2, UUID, "s", digests)),
            encode_snapshot(SnapshotEntry(3, UUID, "s", "host/a/2023-11-14T22:13:20Z")),
        )
    )


def test_catalog_vector() -> None:
    log = small_log()
    assert len(log) == 228
    assert sha256(log).hexdigest() == "3ac407d778a6b2841aee89a51289bc1b49ff24898bb453c2f86f16df2ecabdde"


# -- what golden media do not show -----------------------------------------------------------------------------------


def test_key_in_a_set_label() -> None:
    key = KeyFile.decode((GOLDEN / "keys/key-scrypt.json").read_bytes())
    label = MediaSetLabel("daily", SET, 3, THEN, bytes(range(32)), key)
    text = label.content(UUID, THEN).encode()[48:].decode()
    fields = json.loads(text)
    assert list(fields) == sorted(fields) and list(fields["key-config"]) == sorted(fields["key-config"])
    again = read_content(reader(written(lambda writer: writer.write(label.content(UUID, THEN).encode()))).read)
    assert MediaSetLabel.decode(again) == label


def test_cut_last_chunk() -> None:
    first, second = blob.encode(b"first"), blob.encode(random.Random(1).randbytes(100_000))

    def fill(writer: BlockWriter, cut: int) -> None:
        for data in (first, second):
            writer.write(encode_entry(sha256(data).digest(), len(data)))
            writer.write(data if data is first else data[:cut])

    for cut in (0, 1, len(second) - 1):
        file = written(partial(fill, cut=cut))
        assert [chunk.blob for chunk in read_chunks(reader(file))] == [first]
        assert [length for _, length in read_digests(reader(file))] == [len(first)]
    whole = reader(written(partial(fill, cut=len(second))))
    assert [chunk.blob for chunk in read_chunks(whole)] == [first, second]
    with pytest.raises(FormatError, match="ends early"):
        list(read_chunks(reader(written(lambda writer: writer.write(encode_entry(bytes(32), 5)[:30])))))


def test_end_markers() -> None:
    data = bytes(300_000)
    blocks = written(lambda writer: writer.write(data), incomplete=True)
    stream = reader(blocks)
    assert stream.read(1 << 20) == data and stream.has_end_marker and stream.incomplete
    cut = reader(blocks[:BLOCK_SIZE])
    assert len(cut.read(1 << 20)) == PAYLOAD_SIZE and not cut.has_end_marker


def test_blocks_in_one_buffer() -> None:
    """A block is valid until the next one is asked for: drives have one buffer."""
    data = random.Random(5).randbytes(3 * PAYLOAD_SIZE)
    file = written(lambda writer: writer.write(data))
    buffer, starts = bytearray(BLOCK_SIZE), iter(range(0, len(file), BLOCK_SIZE))

    def read_block() -> memoryview | None:
        start = next(starts, None)
        if start is None:
            return None
        buffer[:] = file[start : start + BLOCK_SIZE]
        return memoryview(buffer)

    stream = BlockReader(read_block)
    assert stream.read(100) + stream.read(1 << 30) == data


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda b: b.__setitem__(0, 0), "magic of a block"),
        (lambda b: b.__setitem__(slice(12, 16), b"\1\0\0\0"), "number of a block"),
        (lambda b: b.__setitem__(slice(9, 12), b"\xff\xff\xff"), "used bytes"),
        (lambda b: b.__setitem__(slice(8, 12), bytes(4)), "empty block"),
        (lambda b: b.__delitem__(slice(1000, None)), "length of a block"),
        (lambda b: b.extend(b), "behind the last one"),
    ],
)
def test_broken_blocks(change: Callable[[bytearray], object], text: str) -> None:
    block = bytearray(written(lambda writer: writer.write(b"text")))
    change(block)
    with pytest.raises(FormatError, match=text):
        reader(bytes(block)).read(100)


def test_near_end() -> None:
    answers = iter([False, True, False])
    writer = BlockWriter(lambda block: next(answers))
    assert not writer.write(bytes(PAYLOAD_SIZE))
    assert writer.write(bytes(PAYLOAD_SIZE)) and writer.near_end
    assert writer.finish(), "once seen it stays"


@pytest.mark.parametrize("magic", ["3eada75f314c066e", "09b6021f7de87285", "0000000000000000"])
def test_unknown_content(magic: str) -> None:
    data = bytearray(chunk_archive("s", UUID, THEN).encode())
    data[8:16] = bytes.fromhex(magic)
    with pytest.raises(FormatError, match=r"never released|unknown content"):
        read_content(reader(written(lambda writer: writer.write(data))).read)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"label_text": "x", "uuid": encode_uuid(MEDIUM), "ctime": 1}, "label text"),
        ({"label_text": "a/b", "uuid": encode_uuid(MEDIUM), "ctime": 1}, "label text"),
        ({"label_text": "TAPE", "uuid": "no", "ctime": 1}, "uuid"),
        ({"label_text": "TAPE", "uuid": encode_uuid(MEDIUM), "ctime": -1}, "ctime"),
        ({"label_text": "TAPE", "uuid": encode_uuid(MEDIUM), "ctime": True}, "ctime"),
        ({"label_text": "TAPE", "uuid": encode_uuid(MEDIUM), "ctime": 1, "pool": 5}, "pool"),
        ({"uuid": encode_uuid(MEDIUM), "ctime": 1}, "label_text"),
    ],
)
def test_wrong_labels(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(FormatError, match=text):
        MediaLabel.decode(Content(c.MEDIA_LABEL, UUID, THEN, fields))
    with pytest.raises(FormatError, match="expected a media-set label"):
        MediaSetLabel.decode(Content(c.MEDIA_LABEL, UUID, THEN, fields))


def test_torn_catalog() -> None:
    """Whatever is cut off, what was complete before is still known."""
    log = small_log()
    whole = decode_catalog(log)
    assert whole.end == len(log) and whole.torn is None
    snapshot = encode_snapshot(SnapshotEntry(3, UUID, "s", "host/a/2023-11-14T22:13:20Z"))
    labels, archive = len(encode_labels(MEDIUM, SET, 0)), len(log) - len(snapshot)
    for length in range(len(log)):
        if length < 8 + 33:
            with pytest.raises(FormatError):
                decode_catalog(log[:length])
            continue
        cut = decode_catalog(log[:length])
        assert cut.end == max(end for end in (8 + 33, labels, archive, len(log)) if end <= length)
        assert (cut.torn is None) == (length == cut.end)
    garbage = decode_catalog(log + b"\0" * 500)
    assert garbage.end == len(log) and garbage.torn is not None and described(garbage) == described(whole)


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (encode_snapshot(SnapshotEntry(3, UUID, "s", "host/a/2023-11-14T22:13:20Z")), "at least 4"),
        (encode_chunk_file(ChunkFile(1, UUID, "s", np.empty((0, 32), np.uint8))), "at least 4"),
        (encode_labels(MEDIUM, SET, 0)[41:], "behind others"),
    ],
)
def test_contradictions(tail: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        decode_catalog(small_log() + tail)


@given(st.binary(max_size=400), st.integers(0, 227))
def test_mutated_catalogs(junk: bytes, at: int) -> None:
    """A value or a FormatError, never anything else."""
    data = bytearray(small_log())
    data[at : at + len(junk)] = junk
    for log in (bytes(data), MAGIC + junk):
        try:
            decode_catalog(log)
        except FormatError:
            pass


@settings(deadline=None)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=30))
def test_mutated_files(at: int, junk: bytes) -> None:
    """The same of whole files; what cannot be read is said."""
    for file in all_files():
        data = bytearray(file.data[:BLOCK_SIZE])
        data[at : at + len(junk)] = junk
        stream = reader(bytes(data[:BLOCK_SIZE]))
        try:
            found = read_content(stream.read)
            match found.kind:
                case "media label":
                    MediaLabel.decode(found)
                case "media-set label":
                    MediaSetLabel.decode(found)
                case "chunk archive":
                    list(read_chunks(stream))
                case "snapshot archive":
                    for _, _, _, contents in read_files(stream):
                        for _ in contents:
                            pass
                case _:
                    decode_catalog(stream.read(1 << 20))
        except FormatError:
            pass


def test_a_million_chunks() -> None:
    """Rows of chunks are arrays, not objects."""
    digests = np.frombuffer(random.Random(1).randbytes(32 << 20), np.uint8).reshape(-1, 32)
    log = encode_labels(MEDIUM, SET, 0) + encode_chunk_file(ChunkFile(2, UUID, "s", digests))
    catalog = decode_catalog(log)
    assert np.array_equal(catalog.archives[0].digests, digests)


def test_catalog_header() -> None:
    found = catalog_archive(MEDIUM, SET, 4, UUID, THEN, namespaces=True)
    assert list(found.fields) == ["uuid", "media_set_uuid", "seq_nr"] and found.kind == "catalog archive"
    assert found.magic != catalog_archive(MEDIUM, SET, 4, UUID, THEN, namespaces=False).magic


def test_snapshot_files_are_files() -> None:
    def fill(writer: BlockWriter) -> None:
        archive = SnapshotArchiveWriter(writer.write)
        archive.start_file("index.json.blob", Stat(0o100644, 0, 0, 0, THEN, 0), 4)
        archive.write(b"text")
        archive.finish()

    stream = reader(written(fill))
    assert [(name, b"".join(contents)) for name, _, _, contents in read_files(stream)] == [("index.json.blob", b"text")]
