"""Digests are sorted and numbered as sorting whole rows does it, also where many begin alike."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from archiver.store import digests
from archiver.store.database.database import Database
from archiver.store.database.records import ChunkRow
from archiver.store.digests import DistinctDigests, distinct_digests, distinct_parts
from archiver.store.store import Store
from tests.random_trees import noise
from tests.stores import CHUNK_SIZE, make_store, save

# Few different bytes at few places, so that many rows are equal, or begin alike, or end in zeros.
rows = st.lists(
    st.tuples(st.sampled_from([b"", b"\x00", b"\x01", b"\xff" * 8]), st.sampled_from([b"", b"\x02", b"\xfe" * 24])).map(
        lambda parts: parts[0].ljust(8, b"\0") + parts[1].rjust(24, b"\0")
    ),
    max_size=40,
)


def array_of(found: list[bytes], *, wide: bool) -> NDArray[np.uint8]:
    whole = np.frombuffer(b"".join(b"01234567" + row for row in found), np.uint8).reshape(-1, 40)
    return whole[:, 8:] if wide else whole[:, 8:].copy()


@given(rows, st.booleans())
def test_rows_are_sorted_and_numbered(found: list[bytes], wide: bool) -> None:
    array, expected = array_of(found, wide=wide), sorted(set(found))
    distinct = DistinctDigests(array)
    assert len(distinct) == len(expected)
    assert [row.tobytes() for part in distinct.parts() for row in part] == expected
    assert [expected[position] for position in distinct.positions.tolist()] == found
    assert [row.tobytes() for row in distinct_digests(array)] == expected
    assert [row.tobytes() for part in distinct_parts(array) for row in part] == expected


@pytest.mark.parametrize("alike", [0, 1, 500])
def test_many_rows(alike: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``alike``: rows that begin as another one does."""
    monkeypatch.setattr(digests, "_COMPARED_AT_ONCE", 64)
    chance = np.random.default_rng(alike)
    array = chance.integers(0, 256, (20_000, 32), np.uint8)
    array[chance.integers(0, 20_000, 3000)] = array[7]
    if alike:
        array[chance.integers(0, 20_000, alike), :8] = array[11, :8]
    expected, positions = np.unique(array.view("V32").ravel(), return_inverse=True)
    distinct = DistinctDigests(array)
    assert b"".join(part.tobytes() for part in distinct.parts()) == expected.tobytes()
    assert np.array_equal(distinct.positions, positions)
    chosen = distinct.one_of(np.arange(20_000))
    assert np.array_equal(array[chosen], np.concatenate(list(distinct.parts())))
    parts = list(distinct.parts_with(chosen))
    assert all(np.array_equal(array[column], digests) for digests, column in parts)
    assert np.array_equal(np.concatenate([column for _, column in parts]), chosen)


@pytest.mark.parametrize(("alike", "most"), [(False, 26), (True, 49)])
def test_little_memory(alike: bool, most: int) -> None:
    array = np.random.default_rng(1).integers(0, 256, (200_000, 40), np.uint8)[:, 8:]
    if alike:
        array[7, :8] = array[11, :8]
    tracemalloc.start()
    try:
        distinct = DistinctDigests(array)
        assert sum(map(len, distinct.parts())) == len(array)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 13 * len(array) and peak < most * len(array) + (4 << 20)


def test_an_index_is_recorded_with_few_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit waits for the disk: not one for each part of an index."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(noise(1, 30 * CHUNK_SIZE))
    path = make_store(tmp_path / "store")
    save(path, tmp_path / "source")
    monkeypatch.setattr(digests, "_PART", 2)
    calls = 0
    original = Database.add_chunks

    def add_chunks(self: Database, rows: Iterable[ChunkRow]) -> None:
        nonlocal calls
        calls += 1
        original(self, rows)

    monkeypatch.setattr(Database, "add_chunks", add_chunks)
    with Store.open(path) as store:
        assert store.database is not None
        before = sorted(store.database.sizes()[0].tolist())
        store.rebuild_database()
        after = sorted(size for size in store.database.sizes()[0].tolist() if size)
    assert after == before and len(before) > 20
    assert 0 < calls <= 2  # an index for the entries, one for the contents
