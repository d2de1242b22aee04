"""The vectorised hash against the recurrence that it stands for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from formats.buzhash import BLOCK, TABLE, WINDOW, CandidateScanner


def reference_candidates(data: bytes, average: int, lo: int, hi: int) -> list[int]:
    """The hash rolled byte by byte from the start of the data (spec change-detection.md 1.1)."""
    table = TABLE.tolist()
    mask = 2 * average - 1
    found, value = [], 0
    for i, byte in enumerate(data[:hi]):
        value = (value << 1 | value >> 31) & 0xFFFF_FFFF ^ table[byte]
        if i >= WINDOW:
            value ^= table[data[i - WINDOW]]
        if i >= lo and value & mask >= mask - 2:
            found.append(i)
    return found


def scan(data: bytes, average: int, lo: int, hi: int) -> list[int]:
    found = CandidateScanner(average).candidates(np.frombuffer(data, dtype=np.uint8), lo, hi)
    return [int(i) for i in found]


def random_bytes(seed: int, length: int, alphabet: int = 256) -> bytes:
    values: NDArray[np.uint8] = np.random.default_rng(seed).integers(0, alphabet, length, dtype=np.uint8)
    return values.tobytes()


def test_table_is_the_known_one() -> None:
    digest = hashlib.sha256(TABLE.astype("<u4").tobytes()).hexdigest()
    assert digest == "5b52080d38287da9d2e278466e3e0db7ec98e5e8b226f50612a56fa012b1f660"
    assert np.bitwise_xor.reduce(TABLE) == 0


@pytest.mark.parametrize("alphabet", [2, 26, 256])
@pytest.mark.parametrize("average", [16, 1024, 64 * 1024])
def test_finds_what_the_recurrence_finds(alphabet: int, average: int) -> None:
    data = random_bytes(alphabet, 100_000, alphabet)
    lo, found = WINDOW - 1, []
    scanner = CandidateScanner(average)
    view = np.frombuffer(data, dtype=np.uint8)
    for start in range(lo, len(data), BLOCK):
        found += scanner.candidates(view, start, min(start + BLOCK, len(data))).tolist()
    assert found == reference_candidates(data, average, lo, len(data))
    assert found or average > 1024


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([4, 64, 4096]))
def test_any_range_of_any_data(data: st.DataObject, average: int) -> None:
    parts = st.one_of(
        st.binary(max_size=200),
        st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(0, 400)),
        st.builds(random_bytes, st.integers(0, 9), st.integers(0, 3000), st.sampled_from([2, 256])),
    )
    content = b"".join(data.draw(st.lists(parts, max_size=6))) + bytes(WINDOW)
    lo = data.draw(st.integers(WINDOW - 1, len(content)))
    hi = data.draw(st.integers(lo, len(content)))
    assert scan(content, average, lo, hi) == reference_candidates(content, average, lo, hi)


@pytest.mark.parametrize("byte", [0, 1, 255])
def test_equal_bytes_never_pass(byte: int) -> None:
    data = bytes([byte]) * 5000
    assert scan(data, 4, WINDOW - 1, len(data)) == reference_candidates(data, 4, WINDOW - 1, len(data)) == []


def test_block_equal_at_the_places_first_looked_at() -> None:
    data = bytearray(random_bytes(3, 4000))
    data[0] = data[2000] = data[-1] = 7
    found = scan(bytes(data), 16, WINDOW - 1, len(data))
    assert found and found == reference_candidates(bytes(data), 16, WINDOW - 1, len(data))


@pytest.mark.parametrize(("lo", "hi"), [(62, 100), (-1, 100), (100, 99), (63, 64 + BLOCK)])
def test_ranges_that_cannot_be_scanned(lo: int, hi: int) -> None:
    with pytest.raises(ValueError, match="cannot scan"):
        scan(bytes(2 * BLOCK), 64 * 1024, lo, hi)


def test_scanners_share_nothing() -> None:
    data = [np.frombuffer(random_bytes(seed, 20_000), dtype=np.uint8) for seed in (1, 2)]
    alone = [CandidateScanner(64).candidates(each, 63, 20_000).tolist() for each in data]
    scanners = [CandidateScanner(64), CandidateScanner(64)]
    results = [scanner.candidates(each, 63, 20_000) for scanner, each in zip(scanners, data, strict=True)]
    assert [result.tolist() for result in results] == alone
    assert alone[0] != alone[1]
