"""The set of chunks that a verification has met, against a Python set."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import tracemalloc

import numpy as np
import pytest

from archiver.browse import seen as module
from archiver.browse.seen import SeenChunks, pairs_of
from archiver.errors import NoSpace
from formats.index import DynamicIndex, DynamicIndexWriter, decode_index

DIGESTS = [bytes(31) + bytes([last]) for last in range(3)] + [bytes([first]) + bytes(31) for first in (1, 128, 255)]


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the smallest sets are in files, and made of many pieces."""
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", 50)
    monkeypatch.setattr(module, "_IN_MEMORY", 64)
    monkeypatch.setattr(module, "_MERGED_AT_ONCE", 16)


def index_of(chunks: list[tuple[bytes, int]]) -> DynamicIndex:
    writer = DynamicIndexWriter(bytes(16), 0)
    for digest, size in chunks:
        writer.add(writer.size + size, digest)
    entries = writer.take()
    index = decode_index(writer.finish() + entries)
    assert isinstance(index, DynamicIndex)
    return index


def added(seen: SeenChunks, chunks: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    """What was new among them."""
    return [pair for rows in seen.add(index_of(chunks)) for pair in pairs_of(rows)]


def test_like_a_set() -> None:
    """Digests that begin or end with zeros, sizes of more than 32 bits, and chunks that come twice in one index."""
    rng = random.Random(1)
    seen, known = SeenChunks(), set[tuple[bytes, int]]()
    for _ in range(200):
        chunks = [(rng.choice(DIGESTS), rng.choice([1, 2, 255, 256, 1 << 40])) for _ in range(rng.randint(1, 6))]
        assert added(seen, chunks) == sorted(set(chunks) - known)
        known |= set(chunks)
    assert len(known) == 5 * len(DIGESTS)
    assert list(pairs_of(seen.rows())) == sorted(known)


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("spread", [255, 3], ids=["even", "in clusters"])
def test_like_a_set_on_disk(spread: int) -> None:
    rng = random.Random(spread)
    seen, known = SeenChunks(), set[tuple[bytes, int]]()
    for round_ in range(60):
        first = bytes([rng.randrange(256)]) if spread == 3 else b""
        chunks = [
            (first + bytes(rng.randint(0, spread) for _ in range(4 - len(first))) + bytes(28), rng.choice([1, 1, 2]))
            for _ in range(rng.randint(1, 300))
        ]
        new = added(seen, chunks)
        assert len(new) == len(set(new)) and set(new) == set(chunks) - known
        known |= set(chunks)
        if round_ % 20 == 19:
            assert list(pairs_of(seen.rows())) == sorted(known)
    assert len(known) > 4000 // spread
    assert added(seen, sorted(known)) == []


def test_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", 2048)
    monkeypatch.setattr(module, "_MERGED_AT_ONCE", 512)
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", 1000)
    seen, count = SeenChunks(), 20_000
    digests = np.random.default_rng(1).bytes(32 * count)
    index = index_of([(digests[at : at + 32], 1) for at in range(0, len(digests), 32)])
    tracemalloc.start()
    try:
        assert sum(len(rows) for rows in seen.add(index)) == count
        kept, most = tracemalloc.get_traced_memory()
        assert kept < 40 * 4096 and most < 40 * 8192  # all of them take 40 * 20,000
        assert len(seen.rows()) == count
        kept, _ = tracemalloc.get_traced_memory()
        assert kept < 40 * 512
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("on_disk")
def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "nameless_file", full)
    with pytest.raises(NoSpace, match=tempfile.gettempdir()):
        added(SeenChunks(), [(bytes([number]) + bytes(31), 1) for number in range(200)])
