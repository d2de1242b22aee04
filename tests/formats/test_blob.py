"""formats.blob: golden blobs, the vectors of the spec, every kind of damage, hostile zstd streams, streaming."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import blob
from formats.blob import BlobDecoder, BlobEncoder, BlobReader, BlobWriter
from formats.blob.zstd import FrameWalker
from formats.crypt import CryptConfig, chunk_digest
from formats.errors import FormatError, IntegrityError, KeyMissing, LimitExceeded
from tests.golden_data import GOLDEN, content

BLOBS = GOLDEN / "blobs"
GOLDEN_BLOBS = json.loads((BLOBS / "blobs.json").read_bytes())
CRYPT = CryptConfig(bytes.fromhex(GOLDEN_BLOBS["key"]))
CASES = {case["file"]: case for case in GOLDEN_BLOBS["blobs"]}
SAME_ZSTD = zstandard.ZSTD_VERSION == (1, 5, 7)  # the golden data's

K = CryptConfig(bytes(range(32)))
IV = bytes(range(16, 32))
MIB = 1 << 20
RANDOM = random.Random(7).randbytes(3 * MIB + 5)
TEXT = b"All work and no play makes Jack a dull boy. " * 80_000


def plain_blob(payload: bytes, magic: bytes = blob.PLAIN_ZSTD_MAGIC) -> bytes:
    return magic + zlib.crc32(payload).to_bytes(4, "little") + payload


def old_frame(data: bytes) -> bytes:
    """A zstd frame without content size (unless it is empty), as the reference wrote before 3.2.9."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    frame = compressor.compress(data) + compressor.flush()
    assert not data or zstandard.get_frame_parameters(frame).content_size == zstandard.CONTENTSIZE_UNKNOWN
    return frame


def stream_read(data: bytes, crypt: CryptConfig | None = None, **options: Any) -> bytes:
    return b"".join(BlobReader(io.BytesIO(data), crypt, **options))


def stream_write(
    data: bytes,
    crypt: CryptConfig | None = None,
    iv: bytes | None = None,
    compress: bool = True,
    step: int | None = None,
) -> bytes:
    file = io.BytesIO()
    writer = BlobWriter(file, crypt, iv, compress)
    step = step or max(len(data), 1)
    for pos in range(0, len(data), step):
        writer.write(data[pos : pos + step])
    size, digest = writer.finish()
    raw = file.getvalue()
    assert (size, digest) == (len(raw), hashlib.sha256(raw).digest())
    return raw


# --- golden data and vectors


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_decodes(name: str) -> None:
    case, raw = CASES[name], (BLOBS / name).read_bytes()
    expected = content(case["content"])
    info = blob.inspect(raw)
    assert (info.encrypted, info.compressed) == (case["encrypted"], case["compressed"])
    assert raw[:8].hex() == case["magic"]
    assert f"{info.crc:08x}" == case["crc"]
    assert len(raw) == case["raw_size"] and hashlib.sha256(raw).hexdigest() == case["raw_sha256"]
    assert blob.decode(raw, CRYPT) == expected
    assert stream_read(raw, CRYPT, sha256=bytes.fromhex(case["raw_sha256"])) == expected
    decoder = BlobDecoder(CRYPT if case["encrypted"] else None)
    assert decoder.check_stored(raw) == info == BlobDecoder().check_stored(raw)
    digest = bytes.fromhex(case["chunk_digest"])
    chunk = decoder.decode_chunk(raw, digest=digest, size=len(expected), encrypted=info.encrypted)
    assert chunk == expected
    assert chunk_digest(expected, CRYPT if info.encrypted else None) == digest


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_encodes(name: str) -> None:
    case, raw = CASES[name], (BLOBS / name).read_bytes()
    assert case["requested"]["encrypt"] == case["encrypted"]
    crypt = CRYPT if case["encrypted"] else None
    data, iv, compress = content(case["content"]), blob.inspect(raw).iv, case["requested"]["compress"]
    made = blob.encode(data, crypt, iv, compress)
    if not case["compressed"] or SAME_ZSTD:
        assert made == raw
    assert blob.inspect(made).compressed == case["compressed"]
    assert blob.decode(made, crypt) == data
    streamed = stream_write(data, crypt, iv, compress)
    if len(data) <= MIB:
        assert streamed == made
    assert blob.inspect(streamed).compressed == case["compressed"]
    assert blob.decode(streamed, crypt) == data


def test_spec_vectors() -> None:
    data = b"hello pbs\n"
    plain = blob.encode(data)
    assert plain.hex() == "42ab3807be8370a10e95d40068656c6c6f207062730a"
    assert hashlib.sha256(plain).hexdigest() == "6680aba7efbf4c0addc496326fe9e686d677fa8c4426a1e728643db422098397"
    sealed = blob.encode(data, K, IV)
    assert sealed.hex() == (
        "7b6785be222d4cf0222812a2101112131415161718191a1b1c1d1e1f0718f768d10424d52069544b89cdffade23f560c88514bcd1801"
    )
    assert blob.inspect(plain).crc == 0x00D4950E
    assert blob.inspect(sealed).iv == IV
    assert blob.decode(sealed, K) == data


@pytest.mark.parametrize(
    ("magic", "label"),
    [
        (blob.PLAIN_MAGIC, "Proxmox Backup uncompressed blob v1.0"),
        (blob.PLAIN_ZSTD_MAGIC, "Proxmox Backup zstd compressed blob v1.0"),
        (blob.ENCRYPTED_MAGIC, "Proxmox Backup encrypted blob v1.0"),
        (blob.ENCRYPTED_ZSTD_MAGIC, "Proxmox Backup zstd compressed encrypted blob v1.0"),
    ],
)
def test_magics_are_hashes_of_their_labels(magic: bytes, label: str) -> None:
    assert magic == hashlib.sha256(label.encode()).digest()[:8]


@pytest.mark.parametrize("magic", ["1f87eee291ce0502", "7ea60fbe911fa960"])
def test_retired_magics(magic: str) -> None:
    with pytest.raises(FormatError, match=r"retired authenticated kind"):
        blob.inspect(bytes.fromhex(magic) + bytes(100))


# --- encoding


def test_compression_is_kept_only_when_not_longer() -> None:
    assert not blob.inspect(blob.encode(b"")).compressed
    assert not blob.inspect(blob.encode(RANDOM)).compressed
    assert blob.inspect(blob.encode(TEXT)).compressed
    assert not blob.inspect(blob.encode(TEXT, compress=False)).compressed
    compressor = zstandard.ZstdCompressor(level=1)
    for size in range(200):  # the point where both have the same length belongs to compression
        data = RANDOM[:20] + bytes(size)
        packed = compressor.compress(data)
        assert blob.inspect(blob.encode(data)).compressed == (len(packed) <= len(data))


@pytest.mark.parametrize("zeros", [0, 2 << 20, 4 << 20])
def test_large_content_is_compressed_where_samples_shrink(zeros: int) -> None:
    rng = random.Random(zeros)
    data = rng.randbytes(2 << 20) + bytes(zeros) + rng.randbytes(2 << 20)
    packed = blob.inspect(blob.encode(data)).compressed
    assert packed == bool(zeros)


def test_content_that_no_sample_shows_to_shrink_is_stored_as_it_is() -> None:
    """A hole of 16 KiB in 4 MiB, between two samples: compressing would save it."""
    data = bytearray(random.Random(1).randbytes(4 << 20))
    data[100_000:116_000] = bytes(16_000)
    assert not blob.inspect(blob.encode(data)).compressed
    assert blob.decode(blob.encode(data)) == data
    assert blob.inspect(blob.encode(data[: 500 << 10])).compressed  # small content is always tried


def test_uncompressed_body_is_not_copied() -> None:
    header, body = BlobEncoder().encode(RANDOM, compress=False)
    assert isinstance(body, memoryview) and body.obj is RANDOM
    view = BlobDecoder().decode(header + RANDOM)
    assert view.readonly and isinstance(view.obj, bytes) and len(view.obj) == 12 + len(RANDOM)


def test_size_limit() -> None:
    too_much = bytes(blob.MAX_BLOB_SIZE + 1)
    assert len(blob.encode(memoryview(too_much)[1:])) < MIB
    with pytest.raises(LimitExceeded, match="134217729"):
        blob.encode(too_much)
    writer = BlobWriter(io.BytesIO())
    writer.write(memoryview(too_much)[1:])
    with pytest.raises(LimitExceeded):
        writer.write(b"x")


def test_iv_and_key_belong_together() -> None:
    for crypt, iv in ((K, None), (None, IV), (K, IV[:12])):
        with pytest.raises(ValueError, match="IV"):
            blob.encode(b"data", crypt, iv)
        with pytest.raises(ValueError, match="IV"):
            stream_write(b"data", crypt, iv)


@given(st.binary(max_size=3000) | st.binary(max_size=8).map(lambda b: b * 400), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_round_trip(data: bytes, encrypted: bool, compress: bool) -> None:
    crypt, iv = (K, IV) if encrypted else (None, None)
    raw = blob.encode(data, crypt, iv, compress)
    assert blob.decode(raw, crypt, encrypted=encrypted) == data
    assert blob.inspect(raw).encrypted == encrypted
    assert len(raw) <= len(data) + (44 if encrypted else 12)
    chunk = BlobDecoder(K).decode_chunk(raw, digest=chunk_digest(data, crypt), size=len(data), encrypted=encrypted)
    assert chunk == data
    assert stream_write(data, crypt, iv, compress, step=700) == raw
    assert stream_read(raw, crypt) == data


def test_contexts_are_used_again() -> None:
    """Sizes up and down through one encoder and one decoder: nothing of one call shows in another."""
    encoder, decoder = BlobEncoder(K), BlobDecoder(K)
    rng = random.Random(3)
    for number in range(60):
        size = rng.choice((0, 1, 100, 70_000, MIB, 2 * MIB + 3))
        data = RANDOM[:size] if number % 2 else TEXT[:size]
        iv = rng.randbytes(16)
        raw = b"".join(encoder.encode(bytearray(data), iv, compress=number % 3 > 0))
        assert decoder.decode(memoryview(raw)) == data
        if number % 7 == 0:  # a failure in between does no harm
            with pytest.raises(IntegrityError):
                decoder.decode(raw[:-1] + bytes([raw[-1] ^ 1]))
            with pytest.raises(FormatError):
                decoder.decode(plain_blob(old_frame(TEXT)[:-9]))


def test_buffer_beyond_a_chunk_is_not_kept() -> None:
    decoder = BlobDecoder()
    raw = blob.encode(bytes(40 * MIB))
    tracemalloc.start()
    assert len(decoder.decode(raw)) == 40 * MIB
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < MIB


# --- refusals


@pytest.mark.parametrize("kind", ["plain", "zstd", "encrypted", "encrypted-zstd"])
def test_every_flipped_bit_and_cut_is_refused(kind: str) -> None:
    data = b"abcdefgh" * 40 if "zstd" in kind else b"abcdefgh" * 4
    crypt, iv = (K, IV) if "encrypted" in kind else (None, None)
    raw = blob.encode(data, crypt, iv, compress="zstd" in kind)
    assert blob.inspect(raw).compressed == ("zstd" in kind)
    chunk: dict[str, Any] = {"digest": chunk_digest(data, crypt), "size": len(data), "encrypted": crypt is not None}
    decoder = BlobDecoder(K)
    assert decoder.decode_chunk(raw, **chunk) == data
    for bit in range(8 * len(raw)):
        bad = bytearray(raw)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decoder.decode(bad)
        with pytest.raises(FormatError):
            decoder.decode_chunk(bad, **chunk)
        with pytest.raises(FormatError):
            stream_read(bytes(bad), K)
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            decoder.decode_chunk(raw[:length], **chunk)
        with pytest.raises(FormatError):
            stream_read(raw[:length], K)
    with pytest.raises(IntegrityError):
        decoder.decode(raw + b"\0")


def test_crc_comes_before_everything_behind_the_header() -> None:
    raw = bytearray(blob.encode(TEXT, K, IV))
    raw[-1] ^= 1
    for check in (BlobDecoder().check_stored, BlobDecoder(K).decode, BlobDecoder().decode):
        with pytest.raises(IntegrityError, match="CRC"):
            check(raw)
    raw = bytearray(blob.encode(TEXT, K, IV))
    raw[30] ^= 1  # the tag is no business of the CRC
    BlobDecoder().check_stored(raw)
    with pytest.raises(IntegrityError, match="tag"):
        BlobDecoder(K).decode(raw)


def test_wrong_and_missing_key() -> None:
    raw = blob.encode(b"secret", K, IV)
    with pytest.raises(KeyMissing):
        blob.decode(raw)
    with pytest.raises(KeyMissing):
        stream_read(raw)
    with pytest.raises(IntegrityError, match="key"):
        blob.decode(raw, CRYPT)
    with pytest.raises(IntegrityError, match="key"):
        stream_read(raw, CRYPT)


def test_kind_is_enforced() -> None:
    plain, sealed = blob.encode(b"data"), blob.encode(b"data", K, IV)
    assert blob.decode(plain, K) == b"data"  # the magic decides, if the caller does not
    with pytest.raises(FormatError, match="expected an encrypted blob, got a plain blob"):
        blob.decode(plain, K, encrypted=True)
    with pytest.raises(FormatError, match="expected a plain blob, got an encrypted blob"):
        blob.decode(sealed, K, encrypted=False)
    with pytest.raises(FormatError, match="blob kind"):
        stream_read(plain, K, encrypted=True)
    with pytest.raises(FormatError, match="blob kind"):
        BlobDecoder(K).decode_chunk(plain, digest=chunk_digest(b"data", K), size=4, encrypted=True)


def test_chunk_must_have_digest_and_length() -> None:
    decoder = BlobDecoder(K)
    for data, compress in ((b"data" * 100, True), (b"data" * 100, False)):
        raw = blob.encode(data, compress=compress)
        good = hashlib.sha256(data).digest()
        assert decoder.decode_chunk(raw, digest=good, size=400, encrypted=False) == data
        for size in (0, 1, 399, 401, 1 << 40):
            with pytest.raises(FormatError):
                decoder.decode_chunk(raw, digest=good, size=size, encrypted=False)
        with pytest.raises(IntegrityError, match="digest"):
            decoder.decode_chunk(raw, digest=bytes(32), size=400, encrypted=False)
        with pytest.raises(IntegrityError, match="digest"):
            decoder.decode_chunk(raw, digest=chunk_digest(data, K), size=400, encrypted=False)
        sealed = blob.encode(data, K, IV, compress)
        with pytest.raises(IntegrityError, match="digest"):
            decoder.decode_chunk(sealed, digest=good, size=400, encrypted=True)


@pytest.mark.parametrize("length", [0, 1, 8, 11])
def test_short_files(length: int) -> None:
    for raw in (blob.encode(b"x")[:length], bytes(length)):
        with pytest.raises(FormatError, match="ends inside its header"):
            blob.inspect(raw)
    with pytest.raises(FormatError, match="at least 44"):
        blob.inspect(blob.encode(b"x", K, IV)[: 12 + length])


# --- zstd streams


@pytest.mark.parametrize(
    "data", [b"", b"x", TEXT, RANDOM, bytes(5 * MIB)], ids=["empty", "one", "text", "random", "zero"]
)
def test_streams_of_other_writers(data: bytes) -> None:
    level = zstandard.ZstdCompressor(level=3, write_checksum=True)
    skippable = b"\x5a\x2a\x4d\x18" + (300).to_bytes(4, "little") + bytes(300)
    half = len(data) // 2
    streams = {
        "old": old_frame(data),
        "checksum": level.compress(data),
        "two": level.compress(data[:half]) + level.compress(data[half:]),
        "two old": old_frame(data[:half]) + old_frame(data[half:]),
        "mixed": old_frame(data[:half]) + skippable + level.compress(data[half:]),
        "skippable": skippable + level.compress(data) + b"\x50\x2a\x4d\x18" + bytes(4),
    }
    decoder = BlobDecoder()
    for name, stream in streams.items():
        raw = plain_blob(stream)
        assert decoder.decode(raw) == data, name
        assert decoder.decode(raw, max_size=len(data)) == data, name
        digest = hashlib.sha256(data).digest()
        assert decoder.decode_chunk(raw, digest=digest, size=len(data), encrypted=False) == data, name
        assert stream_read(raw) == data, name
        if data:
            for read in (decoder.decode, stream_read):
                with pytest.raises(LimitExceeded):
                    read(raw, max_size=len(data) - 1)


def test_torn_streams_are_refused_at_every_length() -> None:
    """The decompressor itself ends quietly there."""
    data = RANDOM[:300] + TEXT[:3000]
    for stream in (
        old_frame(data),
        zstandard.ZstdCompressor(write_checksum=True).compress(data),
        old_frame(data[:9]) + old_frame(data[9:]),
    ):
        walker = FrameWalker()
        walker.feed(stream)
        walker.finish()
        whole = {len(stream)} | ({len(old_frame(data[:9]))} if stream.startswith(old_frame(data[:9])) else set())
        for length in set(range(len(stream))) - whole:
            raw = plain_blob(stream[:length])
            with pytest.raises(FormatError, match="zstd stream ends inside a frame"):
                blob.decode(raw)
            with pytest.raises(FormatError, match="zstd stream ends inside a frame"):
                stream_read(raw)


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_walker_in_pieces(steps: list[int], frames: int) -> None:
    stream = b"".join(old_frame(TEXT[: 50 * n]) for n in range(1, frames + 1)) + zstandard.compress(RANDOM[:900])
    walker, whole = FrameWalker(), FrameWalker()
    whole.feed(stream)
    pos = 0
    while pos < len(stream):
        step = steps[pos % len(steps)]
        walker.feed(stream[pos : pos + step])
        pos += step
    walker.finish()
    assert (walker.content_size, walker.limit, walker.position) == (whole.content_size, whole.limit, len(stream))
    assert walker.content_size == (None if frames else 900)


def frame(descriptor: int, fields: bytes, *blocks: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields + b"".join(blocks)


def rle_block(size: int, last: bool) -> bytes:
    return (last | 1 << 1 | size << 3).to_bytes(3, "little") + b"\0"


def test_content_size_fields() -> None:
    for descriptor, fields, size in (
        (0x20, b"\x05", 5),
        (0x60, b"\x05\x00", 261),
        (0xA0, b"\x00\x10\x00\x00", 4096),
        (0xE0, b"\x00\x10\x00\x00\x00\x00\x00\x00", 4096),
        (0x80, b"\x00" + b"\x00\x10\x00\x00", 4096),
    ):
        raw = plain_blob(frame(descriptor, fields, rle_block(size, True)))
        assert blob.decode(raw) == bytes(size)
        assert stream_read(raw) == bytes(size)


def test_bombs() -> None:
    rle = [rle_block(128 << 10, False)] * 20_000
    endless = plain_blob(frame(0x00, b"\x58", *rle, rle_block(1, True)))  # 80 kB of 2.5 GB
    liar_high = plain_blob(frame(0xE0, (2**63).to_bytes(8, "little"), rle_block(5, True)))
    liar_high_fits = plain_blob(frame(0xA0, (100 * MIB).to_bytes(4, "little"), rle_block(5, True)))
    liar_low = plain_blob(frame(0x20, b"\x05", *rle, rle_block(1, True)))
    tracemalloc.start()
    started = time.process_time()
    decoder = BlobDecoder()
    for raw, error in (
        (endless, LimitExceeded),
        (liar_high, LimitExceeded),
        (liar_high_fits, FormatError),
        (liar_low, FormatError),
    ):
        for size in (MIB, 16 * MIB):
            with pytest.raises(FormatError):
                decoder.decode_chunk(raw, digest=bytes(32), size=size, encrypted=False)
        with pytest.raises(error):
            stream_read(raw, max_size=MIB)
    for raw in (liar_high, liar_high_fits, liar_low):
        with pytest.raises(FormatError):
            decoder.decode(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MIB
    assert time.process_time() - started < 60
    with pytest.raises(LimitExceeded):
        decoder.decode(endless)


def test_more_than_the_frame_announces() -> None:
    blocks = [rle_block(128 << 10, False)] * 3
    raw = plain_blob(frame(0x80, b"\x58" + (1000).to_bytes(4, "little"), *blocks, rle_block(1, True)))
    for read in (blob.decode, stream_read):
        with pytest.raises(FormatError):
            read(raw)


@pytest.mark.parametrize("size", [0, 99, 101])
def test_announced_size_is_not_left_to_the_decompressor(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Decompressor:
        def stream_reader(self, *_: Any, **__: Any) -> io.BytesIO:
            return io.BytesIO(bytes(size))

    decoder = BlobDecoder()
    monkeypatch.setattr(decoder, "_decompressor", Decompressor())
    with pytest.raises(FormatError, match="size in the zstd frame header: expected 100"):
        decoder.decode(blob.encode(bytes(100)))


def test_announced_size_is_refused_before_it_is_allocated() -> None:
    raw = blob.encode(bytes(100 * MIB))
    decoder = BlobDecoder()
    tracemalloc.start()
    with pytest.raises(LimitExceeded):
        decoder.decode(raw, max_size=MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB


def test_structure_errors_are_named() -> None:
    for read in (blob.decode, stream_read):
        with pytest.raises(FormatError, match="zstd frame magic at offset 0"):
            read(plain_blob(b"garbage, no frame"))
        with pytest.raises(FormatError, match="zstd block header"):
            read(plain_blob(frame(0x20, b"\x05", b"\x07\0\0")))


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\0\0\0\0",
        b"garbage, no frame",
        frame(0x28, b"\x05", rle_block(5, True)),
        frame(0x20, b"\x05", b"\x07\0\0"),
        frame(0x20, b"\x05", rle_block(128 << 10 | 1, True)),
        frame(0x21, b"\x07\x05", rle_block(5, True)),
        frame(0x20, b"\x05", rle_block(6, True)),
        frame(0x20, b"\x06", rle_block(5, True)),
        frame(0x24, b"\x05", rle_block(5, True), bytes(4)),
        frame(0x00, b"\xff", rle_block(5, True)),
        frame(0x20, b"\x05", (1 | 2 << 1 | 40 << 3).to_bytes(3, "little"), RANDOM[:40]),
        frame(0x20, b"\x05", rle_block(5, True)) + b"\0",
        frame(0x20, b"\x05", rle_block(5, True)) + b"\0\0\0\0\0",
    ],
)
def test_invalid_streams(stream: bytes) -> None:
    for read in (blob.decode, stream_read):
        with pytest.raises(FormatError):
            read(plain_blob(stream))


def test_mutated_golden_blobs_give_the_content_or_a_format_error() -> None:
    """Also with the CRC made right, so that what lies behind it is met."""
    rng = random.Random(5)
    sources = [(BLOBS / name).read_bytes() for name in CASES]
    contents = {content(case["content"]) for case in CASES.values()}
    decoder = BlobDecoder(CRYPT)
    tracemalloc.start()
    started = time.process_time()
    outcomes = {"content": 0, "other": 0, "error": 0}
    for number in range(4000):
        raw = bytearray(rng.choice(sources))
        for _ in range(rng.choice((1, 1, 2, 6))):
            pos = rng.randrange(len(raw) + 1)
            match rng.randrange(4):
                case 0 if pos < len(raw):
                    raw[pos] ^= 1 << rng.randrange(8)
                case 1:
                    raw[pos : pos + 1] = bytes([rng.randrange(256)])
                case 2:
                    del raw[pos : pos + rng.randrange(1, 30)]
                case _:
                    raw[pos:pos] = raw[pos : pos + rng.randrange(1, 60)]
        fixed = number % 2 == 1
        header = 44 if raw[:8] in (blob.ENCRYPTED_MAGIC, blob.ENCRYPTED_ZSTD_MAGIC) else 12
        if fixed and len(raw) >= header:
            raw[8:12] = zlib.crc32(raw[header:]).to_bytes(4, "little")
        results: list[bytes | None] = []
        readers: list[Callable[[bytes], Any]] = [decoder.decode, functools.partial(stream_read, crypt=CRYPT)]
        for read in readers:
            try:
                results.append(bytes(read(bytes(raw))))
            except FormatError:
                results.append(None)
        assert results[0] == results[1]
        outcome = "error" if results[0] is None else "content" if results[0] in contents else "other"
        assert fixed or outcome != "other"
        outcomes[outcome] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(outcomes.values()) > 0, outcomes
    assert peak < 40 * MIB and time.process_time() - started < 200


# --- streaming


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 5])
def test_writer_and_reader(size: int, compress: bool, encrypted: bool) -> None:
    crypt, iv = (K, IV) if encrypted else (None, None)
    for data in (RANDOM[:size], TEXT[:size]):
        raw = stream_write(data, crypt, iv, compress, step=300_001)
        assert blob.decode(raw, crypt) == data == stream_read(raw, crypt, sha256=hashlib.sha256(raw).digest())
        assert stream_write(data, crypt, iv, compress, step=10 * MIB) == raw or size > MIB
        assert stream_write(data, crypt, iv, compress) == raw or size > MIB
        whole = blob.encode(data, crypt, iv, compress)
        assert blob.inspect(raw).compressed == blob.inspect(whole).compressed
        assert stream_read(whole, crypt) == data
        if size <= MIB or not blob.inspect(raw).compressed:
            assert raw == whole


def test_writer_keeps_what_its_first_mib_decided() -> None:
    late = RANDOM[:MIB] + TEXT[:MIB]
    assert not blob.inspect(stream_write(late)).compressed
    early = TEXT[:MIB] + RANDOM[: 2 * MIB]
    raw = stream_write(early)
    assert blob.inspect(raw).compressed and len(raw) < len(early)
    assert blob.decode(raw) == early
    assert len(stream_write(RANDOM[: MIB // 2] + bytes(MIB // 2) + RANDOM)) < len(RANDOM) + MIB


def test_writer_and_reader_start_where_the_file_stands() -> None:
    data = TEXT[: 2 * MIB]
    for step in (100, MIB):
        file = io.BytesIO(b"prefix")
        file.seek(6)
        writer = BlobWriter(file, K, IV)
        for pos in range(0, step * 2, step):
            writer.write(data[pos : pos + step])
        size, digest = writer.finish()
        raw = file.getvalue()
        assert raw[:6] == b"prefix" and len(raw) == 6 + size and hashlib.sha256(raw[6:]).digest() == digest
        file.seek(6)
        assert b"".join(BlobReader(file, K, sha256=digest, encrypted=True)) == data[: 2 * step]


def test_real_unbuffered_file(tmp_path: Path) -> None:
    with (tmp_path / "blob").open("w+b", buffering=0) as file:
        writer = BlobWriter(file, K, IV)
        writer.write(RANDOM)
        size, digest = writer.finish()
        file.seek(0)
        reader = BlobReader(file, K, sha256=digest)
        assert reader.verify().encrypted
        assert b"".join(reader) == RANDOM
        assert b"".join(reader) == RANDOM
    assert hashlib.sha256((tmp_path / "blob").read_bytes()).digest() == digest
    assert (tmp_path / "blob").stat().st_size == size


def test_short_writes_are_continued() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:1000]))

    file = Slow()
    writer = BlobWriter(file)
    writer.write(RANDOM[: MIB + 500])
    writer.finish()
    assert blob.decode(file.getvalue()) == RANDOM[: MIB + 500]


class Tracking(io.BytesIO):
    """Changes its own bytes when it is read for the second time."""

    def __init__(self, data: bytes, change: int | None = None) -> None:
        super().__init__(data)
        self.starts = 0
        self.change = change

    def seek(self, pos: int, whence: int = 0) -> int:
        if pos == 0:
            self.starts += 1
            if self.starts == 2 and self.change is not None:
                self.getbuffer()[self.change] ^= 1
        return super().seek(pos, whence)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_nothing_is_released_before_everything_was_checked(compress: bool, encrypted: bool) -> None:
    crypt, iv = (K, IV) if encrypted else (None, None)
    good = blob.encode(RANDOM + TEXT[:MIB], crypt, iv, compress=False)
    if compress:
        good = stream_write(TEXT + RANDOM, crypt, iv)
    assert blob.inspect(good).compressed == compress
    for position in (9, 13, 31, 44, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1
        released: list[bytes] = []
        with pytest.raises(IntegrityError):
            released.extend(BlobReader(io.BytesIO(bad), crypt))
        assert not released
    released = []
    with pytest.raises(IntegrityError, match="SHA-256"):
        released.extend(BlobReader(io.BytesIO(good), crypt, sha256=bytes(32)))
    assert not released


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("position", [9, -1])
def test_change_between_the_passes_is_noticed(position: int, compress: bool, encrypted: bool) -> None:
    crypt, iv = (K, IV) if encrypted else (None, None)
    raw = stream_write(TEXT[:MIB] + RANDOM, crypt, iv, compress)
    assert blob.inspect(raw).compressed == compress
    file = Tracking(raw)
    assert b"".join(BlobReader(file, crypt)) == TEXT[:MIB] + RANDOM
    assert file.starts == 2
    with pytest.raises(FormatError):
        b"".join(BlobReader(Tracking(raw, position), crypt))


def test_streaming_memory_is_bounded() -> None:
    class Counter(io.BytesIO):
        """Holds nothing: 60 MiB of zeros behind a header."""

        def __init__(self, header: bytes, size: int) -> None:
            self.header, self.size, self.pos = header, size, 0

        def tell(self) -> int:
            return self.pos

        def seek(self, pos: int, whence: int = 0) -> int:
            self.pos = pos
            return pos

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None and size >= 0
            end = min(self.pos + size, self.size)
            data = (self.header[self.pos :] + bytes(end - self.pos))[: max(end - self.pos, 0)]
            self.pos = max(self.pos, end)
            return data

        def write(self, data: Any) -> int:
            self.pos += len(data)
            self.size = max(self.size, self.pos)
            return len(data)

    size = 60 * MIB
    crc = 0
    for _ in range(60):
        crc = zlib.crc32(bytes(MIB), crc)
    zeros = Counter(blob.PLAIN_MAGIC + crc.to_bytes(4, "little"), 12 + size)
    bomb = blob.encode(bytes(100 * MIB))
    tracemalloc.start()
    assert sum(len(piece) for piece in BlobReader(zeros)) == size
    assert max(len(piece) for piece in BlobReader(io.BytesIO(bomb))) == MIB
    writer = BlobWriter(Counter(b"", 0), K, IV, compress=False)
    for _ in range(60):
        writer.write(bytes(MIB))
    assert writer.finish()[0] == 44 + size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB
