"""The index of the run before: which of its chunks may be taken over, each asked for once, in little memory."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archiver.backup import reference
from archiver.backup.reference import Reference
from archiver.store.layout import SnapshotRef
from formats.index import HEADER_SIZE, DynamicIndex, DynamicIndexWriter, decode_index
from tests.backup.test_mode_switches import rewrite_manifest
from tests.random_trees import noise
from tests.stores import make_store, restored_differences, save


def index_of(chunks: Sequence[tuple[bytes, int]]) -> DynamicIndex:
    writer = DynamicIndexWriter(bytes(16), 0)
    end = 0
    for digest, size in chunks:
        end += size
        writer.add(end, digest)
    entries = writer.take()
    index = decode_index(writer.finish() + entries)
    assert isinstance(index, DynamicIndex)
    return index


def digest(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "big") + bytes(24)


@pytest.mark.parametrize("at_once", [1, 3, 4096])
def test_two_streams(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of both is that of the first one, for which alone it is asked."""
    monkeypatch.setattr(reference, "_ASKED_AT_ONCE", at_once)
    asked: list[tuple[str, bytes, int]] = []

    def usable(name: str, bad: int) -> reference.Usable:
        def answer(digests: Sequence[bytes], sizes: Sequence[int]) -> list[bool]:
            assert 0 < len(digests) <= at_once
            asked.extend((name, *chunk) for chunk in zip(digests, sizes, strict=True))
            return [each != digest(bad) for each in digests]

        return answer

    first = [(digest(number), 10 + number) for number in (1, 2, 1, 3)]
    second = [(digest(number), 10 + number) for number in (4, 2, 5, 4)]
    found = Reference([(index_of(first), usable("first", 2)), (index_of(second), usable("second", 5))])
    assert sorted(asked) == sorted(
        [("first", digest(n), 10 + n) for n in (1, 2, 3)] + [("second", digest(n), 10 + n) for n in (4, 5)]
    )
    numbers = found.payload.numbers.tolist()
    assert numbers[0] == numbers[2] and numbers[1] == numbers[5] and numbers[4] == numbers[7]
    assert len(set(numbers)) == 5 == max(numbers) + 1
    assert found.payload.usable.tolist() == [True, False, True, True, True, False, False, True]
    assert found.payload.starts.tolist() == np.cumsum([0, *(size for _, size in first + second)]).tolist()
    assert found.origins == [0, 47] and [found.chunk(entry) for entry in range(8)] == first + second
    found.give_up(47, 48)
    assert not found.payload.usable[[4, 7]].any() and found.payload.usable[[0, 2, 3]].all()


def test_an_entry_of_another_size_than_that_which_was_asked_about() -> None:
    chunks = [(digest(1), 10), (digest(2), 20), (digest(1), 11), (digest(1), 10)]
    asked: list[int] = []

    def usable(digests: Sequence[bytes], sizes: Sequence[int]) -> list[bool]:
        asked.extend(sizes)
        return [True] * len(digests)

    found = Reference([(index_of(chunks), usable)])
    assert sorted(asked) == [10, 20]
    assert found.payload.usable.tolist() == [True, True, False, True]


def rewritten(store: Path, ref: SnapshotRef, change: Callable[[list[tuple[int, bytes]]], None]) -> None:
    """Another index of contents, by somebody who can make its checksum and the manifest fit."""
    path = store / str(ref) / "tree.ppxar.didx"
    data = path.read_bytes()
    entries = list(struct.iter_unpack("<Q32s", data[HEADER_SIZE:]))
    change(entries)
    body = b"".join(struct.pack("<Q32s", *entry) for entry in entries)
    csum = hashlib.sha256(body).digest()
    path.write_bytes(data[:32] + csum + data[64:HEADER_SIZE] + body)

    def fit(manifest: dict[str, Any]) -> None:
        (file,) = (file for file in manifest["files"] if file["filename"] == path.name)
        file["csum"], file["size"] = csum.hex(), entries[-1][0]

    rewrite_manifest(store, ref, fit)


def huge(entries: list[tuple[int, bytes]]) -> None:
    entries += [((1 << 63) - 1, entries[0][1]), *(((1 << 63) + number, entries[1][1]) for number in range(2))]


def of_two_sizes(entries: list[tuple[int, bytes]]) -> None:
    entries[-1:] = [(entries[-1][0] - 1, entries[0][1]), entries[-1]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", [huge, of_two_sizes])
@pytest.mark.parametrize("has_database", [True, False])
def test_hostile_indexes(tmp_path: Path, change: Callable[[list[tuple[int, bytes]]], None], has_database: bool) -> None:
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    for number in range(40):
        (source / f"f{number}").write_bytes(noise(number, 150_000))
    save(store, source, mode="metadata")
    (source / "n").write_bytes(noise(99, 300_000))
    saved = save(store, source, mode="metadata")
    rewritten(store, saved.snapshot, change)
    if not has_database:
        shutil.rmtree(store / ".archiver/db")
    for number in range(2):
        after = save(store, source, mode="metadata")
        assert restored_differences(store, after.snapshot, source, tmp_path / f"out-{number}") == []


def test_many_chunks_take_little_memory() -> None:
    count = 100_000
    index = index_of([(digest(number), 1000) for number in range(1, count + 1)])
    tracemalloc.start()
    try:
        found = Reference([(index, lambda digests, sizes: [True] * len(digests))])
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.payload.usable.all() and kept < 15 * count and peak < 50 * count + (2 << 20)
