"""Digests are sorted and numbered as sorting whole rows does it, also where many begin alike."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from archiver.store import digests
from archiver.store.digests import DistinctDigests, distinct_digests

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


def test_little_memory() -> None:
    array = np.random.default_rng(1).integers(0, 256, (200_000, 40), np.uint8)[:, 8:]
    tracemalloc.start()
    try:
        distinct = DistinctDigests(array)
        assert sum(map(len, distinct.parts())) == len(array)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 13 * len(array) and peak < 34 * len(array)
