"""Long holes are not made of zeros one by one, and nothing that is stored shows it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import Mode
from archiver.backup.streams import Stream
from archiver.browse.snapshot import Snapshot
from archiver.core.events import ignore
from archiver.restore import write
from archiver.restore.reread import Rereader
from archiver.restore.run import RestoreOptions, restore
from archiver.restore.visitor import FileItem
from archiver.store.chunks import ChunkReader
from archiver.store.counters import Counters
from archiver.store.indexes import load_index
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.attributes import write_sparse
from tests.compare import differences
from tests.random_trees import noise
from tests.stores import CHUNK_SIZE, KEY, bring_back, chunk_files, damage, make_store, restored_differences, save

MIB = 1 << 20
LARGEST = 4 * CHUNK_SIZE
GIB = 1 << 30


def zeros_one_by_one(stream: Stream, length: int) -> None:
    while length:
        room = stream.reserve()
        count = min(len(room), length, 300_001)
        room[:count] = bytes(count)
        stream.commit(count)
        length -= count


def build(source: Path) -> None:
    """Holes of some chunks and a little more or less, that begin and end anywhere in chunks."""
    source.mkdir()
    for shift in (-17, -16, -1, 0, 1, 4096):
        write_sparse(source / f"all-{shift:+}", 3 * LARGEST + shift, {})
        write_sparse(source / f"end-{shift:+}", 5 * LARGEST, {0: noise(shift + 20, LARGEST + shift)})
        write_sparse(source / f"start-{shift:+}", 4 * LARGEST + shift + 5, {4 * LARGEST + shift: b"data!"})
        (source / f"start-{shift:+}-small").write_bytes(noise(shift + 21, 5000))
    two = {0: noise(1, 100_000), 7 * LARGEST + 8192: noise(2, 70_000)}
    write_sparse(source / "two-holes", 16 * LARGEST, two)
    write_sparse(source / "zeros-before", 9 * LARGEST, {4096: bytes(2 * LARGEST), 3 * LARGEST: b"x" * 9})
    os.sync()  # what is allocated is known only then


def indexes(path: Path) -> list[dict[str, tuple[bytes, int]]]:
    """Of each snapshot; the checksum is over all ends and digests."""
    found = []
    for snapshot in sorted(path.glob("host/test/*Z")):
        opened = {file.name: load_index(str(file)) for file in sorted(snapshot.glob("*.didx"))}
        assert all(index.csum() == index.stored_csum for index in opened.values())
        found.append({name: (index.csum(), index.size) for name, index in opened.items()})
    return found


@pytest.mark.parametrize("mode", ["data", "legacy", "metadata"])
@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_stored_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, key: CryptConfig | None
) -> None:
    source, stores = tmp_path / "source", [tmp_path / "one-by-one", tmp_path / "at-once"]
    build(source)
    counters: list[list[Counters]] = [[], []]
    for number in range(2):  # the second run takes over what has not changed
        for path, told in zip(stores, counters, strict=True):
            if not path.exists():
                make_store(path)
            with monkeypatch.context() as patched:
                if path == stores[0]:
                    patched.setattr(Stream, "write_zeros", zeros_one_by_one)
                saved = save(path, source, mode=mode, crypt=key, time=1000 + number)
            told += [archive.counters for archive in saved.result.archives]
        write_sparse(source / "all-+1", 5 * LARGEST + 12, {7: b"changed"})
        os.sync()
    assert indexes(stores[0]) == indexes(stores[1]) and len(indexes(stores[0])) == 2
    assert [told.chunks for told in counters[0]] == [told.chunks for told in counters[1]]
    if key is None:
        assert counters[0] == counters[1]
        one, other = ([(file.name, file.stat().st_size) for file in chunk_files(path)] for path in stores)
        assert one == other
    assert damage(stores[1], key) == []
    write_sparse(source / "all-+1", 3 * LARGEST + 1, {})
    saved = save(stores[1], source, mode=mode, crypt=key)
    assert restored_differences(stores[1], saved.snapshot, source, tmp_path / "out", key) == []


@pytest.mark.parametrize("mode", ["data", "legacy", "metadata"])
def test_the_length_of_a_hole_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """Neither when it is saved, nor when it is restored, checked and compared."""
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_sparse(source / "hole", 300 * GIB + 5, {200 * GIB: b"data", 300 * GIB: b"end.."})
    path = make_store(tmp_path / "store")
    calls: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counted(Stream, "_hand_out")
    counted(ChunkReader, "read")
    counted(write, "write_sparse")
    counted(os, "preadv")
    counted(os, "pread")
    saved = save(path, source, mode=mode, chunk_size=4 * MIB)
    assert saved.result.archives[0].counters.size >= 300 * GIB and len(chunk_files(path)) < 12
    bring_back(path, saved.snapshot, target)
    assert calls["_hand_out"] < 20 and calls["write_sparse"] < 10 and calls["preadv"] < 100
    with Store.open(path) as store:
        snapshot = Snapshot(store, saved.snapshot)
        options = RestoreOptions(overwrite="always")
        archives = snapshot.restorable()
        again = restore(snapshot, archives, str(target), verify=True, listener=ignore, options=options)
    assert again.unchanged and not again.replaced and calls["pread"] < 100 and calls["read"] < 100
    assert differences(source, target) == []


def test_a_hole_that_does_not_stay_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read again after a restore is what lies there, also where nothing was written."""
    source = tmp_path / "source"
    source.mkdir()
    write_sparse(source / "hole", 40 * LARGEST, {20 * LARGEST + 9: b"data"})
    path = make_store(tmp_path / "store")
    saved = save(path, source)
    original = Rereader.complete

    def spoiling(self: Rereader, item: FileItem, *, told: bool) -> None:
        os.pwrite(item.fd, wrong, 30 * LARGEST)
        original(self, item, told=told)

    monkeypatch.setattr(Rereader, "complete", spoiling)
    for wrong, is_seen in ((bytes(5000), False), (b"rot", True)):
        result = bring_back(path, saved.snapshot, tmp_path / f"out-{len(wrong)}")
        assert any("other contents" in problem.reason for problem in result.problems) == is_seen
