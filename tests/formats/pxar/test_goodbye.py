"""Goodbye tables: name hashes, the tree's order, small and big tables the same."""

from __future__ import annotations

import json
import struct
from array import array
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.pxar import goodbye
from tests.golden_data import GOLDEN

HASHES = {
    b"a": 0x0C26E9067C2C7BCF,
    b"x": 0xDC196E50D6D8DF05,
    b"sub": 0x1D68161405AF1BD0,
    b"file_0": 0xA72D4EEC8843FA66,
    b"file_9": 0x3E776E94C727FFF5,
    b"folder_0": 0xE093B923517A4B01,
    b"lost+found": 0xEDC93CB8247896C7,
    b".pxarexclude-cli": 0x046975CE672E09EB,
    bytes(range(1, 9)): 0x007000A313F60CC0,
    b"\xc3\xa4": 0x26B1EC6690696ABF,
}


def test_name_hash() -> None:
    for name, expected in HASHES.items():
        assert goodbye.name_hash(name) == expected
    for text, value in json.loads((GOLDEN / "pxar" / "name-hashes.json").read_text()).items():
        assert goodbye.name_hash(text.encode()) == int(value, 16)


def _place(count: int) -> list[int]:
    """The permutation as spec 7 words it."""
    result = [-1] * count

    def place(n: int, o: int, e: int, i: int) -> None:
        p = 1 << e
        q = p + p // 2 - 1
        m = p - 1 if n > q else p - 1 - (q - n)
        result[i] = o + m
        if m > 0:
            place(m, o, e - 1, 2 * i + 1)
        if m + 1 < n:
            place(n - m - 1, o + m + 1, e - 1, 2 * i + 2)

    if count:
        place(count, 0, count.bit_length() - 1, 0)
    return result


def test_tree_order() -> None:
    assert list(goodbye.tree_order(9)) == [5, 3, 7, 1, 4, 6, 8, 0, 2]
    assert list(goodbye.tree_order(16)) == [8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0]
    for count in [*range(1, 300), 1023, 1024, 1025, 5000]:
        assert list(goodbye.tree_order(count)) == _place(count)


def _children(count: int, seed: int) -> array[int]:
    random = Random(seed)
    children = array("Q")
    position = 100
    for _ in range(count):
        size = random.randrange(1, 1000)
        children.extend((random.getrandbits(64), position, size))
        position += size
    return children


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 1023, 1024, 1025, 5000])
def test_small_and_big_tables_are_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    children = _children(count, count)
    end = sum(children[-2:]) if count else 100
    tables = []
    for limit in (10**9, 1):
        monkeypatch.setattr(goodbye, "_NUMPY_FROM", limit)
        tables.append(goodbye.build(children, end, 44))
    assert tables[0] == tables[1]
    table = tables[0]
    assert len(table) == goodbye.table_size(count)
    assert goodbye.read_tail(table[-24:], end + len(table)) == (end, 44)
    truth = children[:]
    truth[2::3] = array("Q", bytes(8 * count))  # sizes are those of the items
    for limit in (10**9, 1):
        monkeypatch.setattr(goodbye, "_NUMPY_FROM", limit)
        rows = list(goodbye.stream_order(table[16:-24], end))
        assert rows == sorted(zip(children[1::3], children[0::3], children[2::3], strict=True))
        goodbye.check(table[16:], truth, end, 44, ascending=False)
        assert not goodbye.has_equal_hashes(table[16:-24])
        assert goodbye.has_equal_hashes(table[16:-24] + table[16:40]) == (count > 0)
        for wrong in range(len(truth)):
            if wrong % 3 == 2:
                continue
            truth[wrong] ^= 1
            if count < 200:
                with pytest.raises(FormatError):
                    goodbye.check(table[16:], truth, end, 44, ascending=True)
            truth[wrong] ^= 1
        for start, at in ((43, end), (44, end + 1)):
            with pytest.raises(FormatError):
                goodbye.check(table[16:], truth, at, start, ascending=True)


def test_sizes_may_count_contents_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = array("Q", [5, 100, 1000, 3, 150, 7])  # two files of 50 and 60 bytes of items, 1000 and 7 of contents
    for limit in (10**9, 1):
        monkeypatch.setattr(goodbye, "_NUMPY_FROM", limit)
        for sizes, good in (((1050, 67), True), ((50, 60), True), ((1050, 60), True), ((1049, 60), False)):
            table = goodbye.build(array("Q", [5, 100, sizes[0], 3, 150, sizes[1]]), 210, 0)
            if good:
                goodbye.check(table[16:], truth, 210, 0, ascending=True)
            else:
                with pytest.raises(FormatError, match="entries"):
                    goodbye.check(table[16:], truth, 210, 0, ascending=True)


@pytest.mark.parametrize(
    ("marker", "distance", "length", "message"),
    [
        (goodbye.TAIL_MARKER + 1, 0, 40, "tail marker"),
        (goodbye.TAIL_MARKER, 0, 39, "size"),
        (goodbye.TAIL_MARKER, 0, 41, "size"),
        (goodbye.TAIL_MARKER, 0, 16, "size"),
        (goodbye.TAIL_MARKER, 0, 0, "size"),
        (goodbye.TAIL_MARKER, 0, 2**64 - 1, "size"),
        (goodbye.TAIL_MARKER, 0, 40 + 24 * 50, "size"),
        (goodbye.TAIL_MARKER, 961, 40, "start"),
    ],
)
def test_wrong_tails(marker: int, distance: int, length: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        goodbye.read_tail(struct.pack("<QQQ", marker, distance, length), 1000)
    assert goodbye.read_tail(struct.pack("<QQQ", goodbye.TAIL_MARKER, 960, 40), 1000) == (960, 0)


@given(st.integers(1, 400))
def test_search_tree(count: int) -> None:
    """Each place holds something not smaller than all of its left and not larger than all of its right side."""
    order = list(goodbye.tree_order(count))
    assert sorted(order) == list(range(count))
    for place, rank in enumerate(order):
        parent = (place - 1) // 2
        if place:
            assert (rank < order[parent]) == (place % 2 == 1)
