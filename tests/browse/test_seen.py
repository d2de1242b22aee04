"""The set of chunks that a verification has met, against a Python set."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np

from archiver.browse.seen import SeenChunks, pairs_of
from formats.index import DynamicIndex, DynamicIndexWriter, decode_index

DIGESTS = [bytes(31) + bytes([last]) for last in range(3)] + [bytes([first]) + bytes(31) for first in (1, 128, 255)]


def index_of(chunks: list[tuple[bytes, int]]) -> DynamicIndex:
    writer = DynamicIndexWriter(bytes(16), 0)
    for digest, size in chunks:
        writer.add(writer.size + size, digest)
    entries = writer.take()
    index = decode_index(writer.finish() + entries)
    assert isinstance(index, DynamicIndex)
    return index


def test_like_a_set() -> None:
    """Digests that begin or end with zeros, sizes of more than 32 bits, and chunks that come twice in one index."""
    rng = random.Random(1)
    seen, known = SeenChunks(), set[tuple[bytes, int]]()
    for _ in range(200):
        chunks = [(rng.choice(DIGESTS), rng.choice([1, 2, 255, 256, 1 << 40])) for _ in range(rng.randint(1, 6))]
        assert list(pairs_of(seen.add(index_of(chunks)))) == sorted(set(chunks) - known)
        known |= set(chunks)
    assert len(known) == 5 * len(DIGESTS)


def test_little_is_kept() -> None:
    seen, count = SeenChunks(), 20_000
    digests = np.random.default_rng(1).bytes(32 * count)
    index = index_of([(digests[at : at + 32], 1) for at in range(0, len(digests), 32)])
    tracemalloc.start()
    try:
        assert sum(1 for _ in seen.add(index)) == count
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 41 * count
