"""Streams become the same chunks however their bytes arrive, and every number about them is an exact sum."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.backup.deduplicator import Deduplicator
from archiver.backup.run import CATALOG_CHUNK_SIZE
from archiver.backup.slabs import SlabPool
from archiver.backup.streams import Machinery, Stream, StreamResult
from archiver.core.pipeline import Pipeline
from archiver.store.indexes import load_index
from archiver.store.store import Store
from formats.chunker import Chunker, PayloadChunker, small_chunk
from formats.crypt import chunk_digest
from tests.random_trees import noise
from tests.stores import CHUNK_SIZE, make_store

DATA = noise(11, 1 << 20) + bytes(1 << 20) + b"some text, again and again\n" * 20_000 + noise(12, 2 << 20)


class Piece(NamedTuple):
    """How the next bytes of DATA are handed over. ``starts_file``: a suggestion is made before them."""

    length: int
    how: str  # write, room (reserve and commit), zeros (where DATA has them)
    starts_file: bool


def push(stream: Stream, pieces: Sequence[Piece]) -> None:
    at = 0
    for piece in pieces:
        if piece.starts_file:
            stream.suggest(at)
        end = min(at + piece.length, len(DATA))
        if piece.how == "zeros" and not any(DATA[at:end]):
            stream.write_zeros(end - at)
        elif piece.how == "room":
            while at < end:
                room = stream.reserve()
                count = min(len(room), end - at)
                room[:count] = DATA[at : at + count]
                stream.commit(count)
                at += count
        else:
            stream.write(DATA[at:end])
        at = end
    stream.write(DATA[at:])


class Run:
    """The chunks of one stream in a store, through the real workers."""

    def __init__(self, path: Path, chunker: Chunker | PayloadChunker, pieces: Sequence[Piece], body: int) -> None:
        with Store.open(path) as store, store.session() as session:
            deduplicator = Deduplicator(store, session, None)
            with Pipeline() as pipeline:
                machinery = Machinery(pipeline, deduplicator, session, None, lambda: bytes(16), 1)
                slabs = SlabPool(pipeline, headroom=chunker.maximum, body=body, count=3)
                stream = Stream(machinery, "x.didx", chunker, slabs)
                push(stream, pieces)
                self.result: StreamResult = stream.finish()
                machinery.close()
                pipeline.join()
            deduplicator.flush()
            index = load_index(session.file("x.didx"))
            self.chunks = [(index.end(number), index.digest(number)) for number in range(len(index))]
            self.csum = index.csum()
            reader = store.reader()
            self.data = b"".join(
                bytes(reader.read(index.digest(n), index.end(n) - index.start(n), encrypted=False))
                for n in range(len(index))
            )


def all_at_once(chunker: Chunker | PayloadChunker, files: Sequence[int]) -> list[tuple[int, bytes]]:
    """The chunks of DATA cut from memory with all suggestions known."""
    if isinstance(chunker, PayloadChunker):
        for offset in files:
            chunker.suggest(offset)
    found, start = [], 0
    while length := chunker.scan(DATA[start:], True):
        found.append((start + length, chunk_digest(DATA[start : start + length], None)))
        start += length
    return found


_pieces = st.lists(
    st.builds(
        Piece,
        st.integers(1, 300) | st.integers(1000, 100_000) | st.integers(200_000, 1_500_000),
        st.sampled_from(["write", "room", "zeros"]),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=_pieces, payload=st.booleans(), body=st.sampled_from([64 << 10, 300_001, 1 << 20, 8 << 20]))
def test_cuts_do_not_depend_on_how_the_bytes_arrive(
    tmp_path: Path, pieces: list[Piece], payload: bool, body: int
) -> None:
    store = tmp_path / "store"
    if not store.exists():
        make_store(store)

    def chunker() -> Chunker | PayloadChunker:
        return PayloadChunker(CHUNK_SIZE) if payload else Chunker(CHUNK_SIZE)

    files, at = [], 0
    for piece in pieces:
        if piece.starts_file:
            files.append(at)
        at = min(at + piece.length, len(DATA))
    run = Run(store, chunker(), pieces, body)
    assert run.data == DATA
    assert run.chunks == all_at_once(chunker(), files)
    assert run.result.size == len(DATA) and run.result.csum == run.csum


@pytest.mark.parametrize("average", [CHUNK_SIZE, CATALOG_CHUNK_SIZE])
def test_chunks_of_a_payload_stream_end_where_files_do(tmp_path: Path, average: int) -> None:
    """With small files almost every chunk is made of whole files, and none is too small or too large."""
    rng = random.Random(5)
    pieces: list[Piece] = []
    while sum(piece.length for piece in pieces) < len(DATA):
        pieces.append(Piece(rng.randrange(200, 4000), "write", True))
    run = Run(make_store(tmp_path / "store"), PayloadChunker(average), pieces, 1 << 20)
    starts, at = set(), 0
    for piece in pieces:
        starts.add(at)
        at += piece.length
    ends = [end for end, _ in run.chunks]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert all(size <= 4 * average for size in sizes)
    assert all(size >= small_chunk(average) // 4 for size in sizes[:-1])
    aligned = sum(end in starts for end in ends[:-1])
    assert aligned >= len(ends) * 0.7  # the zeros in the middle are cut at the largest size


def test_counters_are_exact(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    first = Run(store, Chunker(CHUNK_SIZE), [], 1 << 20)
    sizes = {
        digest: end - start
        for (end, digest), start in zip(first.chunks, [0, *(e for e, _ in first.chunks)], strict=False)
    }
    counters = first.result.counters
    files = [path for path in (store / ".chunks").rglob("*") if path.is_file()]
    assert counters.chunks == len(first.chunks) and counters.size == len(DATA)
    assert counters.new_chunks == len(sizes) == len(files) < counters.chunks, "equal chunks are stored once"
    assert counters.new_bytes == sum(sizes.values())
    assert counters.stored_bytes == sum(path.stat().st_size for path in files)
    again = Run(store, Chunker(CHUNK_SIZE), [Piece(777, "write", False)] * 50, 300_001)
    assert again.chunks == first.chunks
    counters = again.result.counters
    assert (counters.chunks, counters.size) == (len(first.chunks), len(DATA))
    assert (counters.new_chunks, counters.new_bytes, counters.stored_bytes) == (0, 0, 0)
