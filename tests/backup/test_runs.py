"""Whole backups: the second one of a tree has nothing new, every total is a sum, small chunks and large catalogs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from archiver.backup import deduplicator
from archiver.backup.deduplicator import Deduplicator
from archiver.backup.run import Mode
from archiver.core.spill import SpillTable
from archiver.store.indexes import load_index
from archiver.store.layout import Layout, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.compare import differences
from tests.random_trees import build_plain
from tests.stores import KEY, bring_back, make_store, save

pytestmark = pytest.mark.in_memory

PROJECT = Path(__file__).parent.parent.parent


def chunks_of(store: Path, ref: SnapshotRef) -> dict[str, list[tuple[int, bytes]]]:
    """The chunk list of every index of a snapshot."""
    directory = Path(Layout(str(store)).snapshot(ref))
    found = {}
    for path in directory.glob("*.didx"):
        index = load_index(str(path))
        found[path.name] = [(index.end(number), index.digest(number)) for number in range(len(index))]
    return found


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_the_same_tree_twice(tmp_path: Path, mode: Mode, crypt: CryptConfig | None) -> None:
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    build_plain(tree, 21, files=150, max_size=400_000)
    first = save(store, tree, mode=mode, crypt=crypt)
    files = {path for path in (store / ".chunks").rglob("*") if path.is_file()}
    again = save(store, tree, mode=mode, crypt=crypt)
    assert chunks_of(store, first.snapshot) == chunks_of(store, again.snapshot)
    assert {path for path in (store / ".chunks").rglob("*") if path.is_file()} == files
    for archive in again.result.archives:
        assert (archive.counters.new_chunks, archive.counters.new_bytes, archive.counters.stored_bytes) == (0, 0, 0)
    new = [archive.counters for archive in first.result.archives]
    assert sum(counters.new_chunks for counters in new) == len(files)
    assert sum(counters.stored_bytes for counters in new) == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_no_digest_is_kept_where_there_is_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Each chunk is stored once all the same, and found again wherever it is met."""
    store = make_store(tmp_path / "store")
    build_plain(tmp_path / "one", 5, files=60, max_size=300_000)
    build_plain(tmp_path / "two", 5, files=60, max_size=300_000)
    made: list[Deduplicator] = []
    begin, insert, inserted = Deduplicator.__init__, Deduplicator.store, Counter[bytes]()

    def remember(self: Deduplicator, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    def count(self: Deduplicator, digest: bytes, *arguments: Any) -> tuple[bool, int]:
        inserted[digest] += 1
        if len(inserted) == 25 and self._database is not None:
            self._database._give_up("a test")
        return insert(self, digest, *arguments)

    monkeypatch.setattr(Deduplicator, "__init__", remember)
    monkeypatch.setattr(Deduplicator, "store", count)
    monkeypatch.setattr(deduplicator, "SpillTable", partial(SpillTable, in_memory=5000))
    monkeypatch.setattr(deduplicator, "_ROWS_AT_ONCE", 8)
    if when == "from the start":
        monkeypatch.setenv("ARCHIVER_DB_DIR", "/proc/nowhere")
    saved = save(store, {"one": tmp_path / "one", "two": tmp_path / "two"})
    files = [path for path in (store / ".chunks").rglob("*") if path.is_file()]
    assert len(inserted) == len(files) > 50
    # What had a number when the database was given up is looked for, and found, once more.
    assert set(inserted.values()) <= ({1} if when == "from the start" else {1, 2})
    assert sum(archive.counters.new_chunks for archive in saved.result.archives) == len(files)
    assert len(made[0]._claimed) < 20
    assert list((store / ".archiver" / "sessions").iterdir()) == []
    assert bring_back(store, saved.snapshot, tmp_path / "out").problems == []
    assert differences(tmp_path / "one", tmp_path / "out" / "one.pxar") == []
    assert differences(tmp_path / "two", tmp_path / "out" / "two.pxar") == []


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_totals_agree_with_the_indexes(tmp_path: Path, mode: Mode) -> None:
    """Two sources of one run share chunks; each chunk is counted as new once."""
    store = make_store(tmp_path / "store")
    build_plain(tmp_path / "one", 5, files=60, max_size=300_000)
    build_plain(tmp_path / "two", 5, files=60, max_size=300_000)
    saved = save(store, {"one": tmp_path / "one", "two": tmp_path / "two"}, mode=mode)
    lists = chunks_of(store, saved.snapshot)
    counters = [archive.counters for archive in saved.result.archives]
    assert sum(c.chunks for c in counters) == sum(map(len, lists.values()))
    assert sum(c.size for c in counters) == sum(chunks[-1][0] for chunks in lists.values())
    assert sum(c.new_chunks for c in counters) == len({digest for chunks in lists.values() for _, digest in chunks})
    with Store.open(store, read_only=True) as opened:
        manifest = opened.manifest(saved.snapshot)
        assert {file.filename: file.size for file in manifest.files} == {
            name: chunks[-1][0] for name, chunks in lists.items()
        }
        stats = manifest.unprotected["chunk_upload_stats"]
    assert stats["count"] == sum(c.chunks for c in counters)
    assert stats["duplicates"] == sum(c.chunks - c.new_chunks for c in counters)
    bring_back(store, saved.snapshot, tmp_path / "out")
    for name in ("one", "two"):
        assert differences(tmp_path / name, tmp_path / "out" / f"{name}.pxar") == []


@pytest.mark.parametrize("chunk_size", [64 << 10, 4 << 20])
def test_a_catalog_larger_than_its_buffers(tmp_path: Path, chunk_size: int) -> None:
    """The catalog's chunks have a size of their own, which may be larger than that of the archives."""
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    for number in range(60):
        directory = tree / f"{number:04}"
        directory.mkdir(parents=True)
        for _ in range(3):  # links cost no inode
            os.symlink("x", directory / str(_))
    names = [os.urandom(120).hex() for _ in range(200)]
    first = tree / "0000" / "file"
    first.write_bytes(b"one file, thousands of names")
    for number in range(60):
        for name in names:
            os.link(first, tree / f"{number:04}" / (name + f"{number:04}"))
    saved = save(store, tree, mode="legacy", chunk_size=chunk_size)
    catalog = chunks_of(store, saved.snapshot)["catalog.pcat1.didx"]
    assert catalog[-1][0] > 2 << 20
    assert bring_back(store, saved.snapshot, tmp_path / "out", verify=False).problems == []
    assert differences(tree, tmp_path / "out") == []


_MEASURED = """
import sys, threading
from pathlib import Path
from tests import stores
peak, done = 0, threading.Event()
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
store, source, target = map(Path, sys.argv[1:4])
saved = stores.save(store, source, mode=sys.argv[4], crypt=stores.KEY, chunk_size=4 << 20)
saved_with = max(peak, anonymous())
peak = 0
assert stores.bring_back(store, saved.snapshot, target, crypt=stores.KEY).problems == []
done.set()
watcher.join()
print(saved_with, peak)
"""


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_memory(tmp_path: Path, mode: Mode) -> None:
    """At most 256 MiB of anonymous memory for many names and a large file, backup and restore."""
    tree = tmp_path / "tree"
    (tree / "many").mkdir(parents=True)
    first = tree / "first"
    first.write_bytes(b"x")
    for number in range(20_000):
        os.link(first, tree / "many" / f"entry-{number}")
    block = os.urandom(1 << 20)
    with (tree / "large").open("wb") as file:
        for number in range(100):
            file.write(block[number:] + block[:number])
    store = make_store(tmp_path / "store")
    arguments = [str(store), str(tree), str(tmp_path / "out"), mode]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(text) for text in done.stdout.split()]
    assert all(0 < peak < 256 << 10 for peak in peaks), f"{peaks} KiB"
