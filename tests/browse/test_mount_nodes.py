"""What a mount is made of: nodes, counts of links, chunks for many readers, snapshots in use."""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.browse.mounted import links
from archiver.browse.mounted.chunk_cache import ChunkCache
from archiver.browse.mounted.links import LinkCounts
from archiver.browse.mounted.opened import OpenSnapshots
from archiver.browse.snapshot import Snapshot, Tree
from archiver.core.locks import DirectoryLock
from archiver.errors import NotFound
from archiver.store.chunks import ChunkDamaged
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import chunk_digest
from formats.errors import FormatError
from formats.pxar import constants as c
from formats.pxar.decoder import LEAVE
from tests.stores import KEY, make_store, save
from tests.trees import build_features, unlock_tree


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tree]]:
    base = tmp_path_factory.mktemp("nodes")
    build_features(base / "tree", as_root=False)
    for number in range(300):  # links to the same file, to many, from afar
        (base / "tree" / f"many-{number:03d}").hardlink_to(base / "tree/links/a")
        (base / "tree/links" / f"own-{number:03d}").write_bytes(b"")
        (base / "tree/links/m-near" / f"own-{number:03d}").hardlink_to(base / "tree/links" / f"own-{number:03d}")
    store = make_store(base / "store")
    metadata = save(store, base / "tree", group=GroupRef("", "host", "metadata"), mode="metadata").snapshot
    legacy = save(store, base / "tree", group=GroupRef("", "host", "legacy"), mode="legacy").snapshot
    unlock_tree(base / "tree")
    with Store.open(store, read_only=True) as opened:
        found = {}
        for name, ref in (("metadata", metadata), ("legacy", legacy)):
            snapshot = Snapshot(opened, ref)
            found[name] = Tree(snapshot, snapshot.archive(None), ChunkCache(opened.layout, None))
        yield found


@pytest.mark.parametrize("mode", ["metadata", "legacy"])
def test_nodes_by_their_place(trees: dict[str, Tree], mode: str) -> None:
    """Every entry is found again by the place that its number says, and the way there by the place alone."""
    accessor = trees[mode].accessor()
    todo = [(b"", accessor.root)]
    seen = 0
    while todo:
        path, directory = todo.pop()
        for child in accessor.entries(directory):
            seen += 1
            name = path + b"/" + child.name if path else child.name
            if seen % 10 == 0 or child.kind == "dir":
                assert accessor.path_to(child.filename_offset) == name
            if child.kind == "dir":
                again = accessor.directory_at(child.entry_end)
                assert (again.metadata, again.content_offset, again.entry_end) == (
                    *(child.metadata, child.content_offset, child.entry_end),
                )
                assert [each.name for each in accessor.entries(again)] == [
                    each.name for each in accessor.entries(child)
                ]
                todo.append((name, child))
            else:
                again = accessor.entry_at(child.filename_offset)
                assert again._replace(depth=child.depth, entry_end=child.entry_end) == child
    assert seen > 1000
    for wrong in (0, 1, accessor.root.content_offset + 50, accessor.root.entry_end + 1000):
        with pytest.raises(FormatError):
            accessor.directory_at(wrong)


@pytest.mark.parametrize("mode", ["metadata", "legacy"])
@pytest.mark.parametrize("piece", [100, 997, 4 << 20])
def test_link_counts(trees: dict[str, Tree], mode: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the stream is cut into pieces."""
    monkeypatch.setattr(links, "_PIECE", piece)
    monkeypatch.setattr(links, "_SUM_UP_FROM", 100)
    counted: Counter[int] = Counter()
    files = []
    for event in trees[mode].decoder():
        if event is not LEAVE and event.kind == "hardlink":
            counted[event.link_target] += 1
        elif event is not LEAVE and event.kind == "file":
            files.append(event.filename_offset)
    assert len(counted) > 300 and max(counted.values()) > 300
    counts = LinkCounts(trees[mode])
    assert {place: counts.of(place) for place in files} == {place: 1 + counted[place] for place in files}
    assert counts.complete and counts.known


def test_what_only_looks_like_a_link() -> None:
    """The number of a link item in a name or an attribute, and items that lie."""
    number = struct.pack("<Q", c.HARDLINK)
    name = c.HEADER.pack(c.FILENAME, 18) + b"a\0"
    good = name + c.HEADER.pack(c.HARDLINK, 26) + c.U64.pack(100) + b"b\0"
    before = bytes(200)
    for data, found in (
        (before + good, [100]),
        (before + good + good, [100, 100 + len(good)]),
        (before + number + good, [108]),
        (before + name + number, []),
        (before + name[:-1] + c.HEADER.pack(c.HARDLINK, 26) + c.U64.pack(100) + b"b\0", []),
        (before + name + c.HEADER.pack(c.HARDLINK, 26) + c.U64.pack(1000) + b"b\0", []),
        (before + name + c.HEADER.pack(c.HARDLINK, 25) + c.U64.pack(100) + b"b\0", []),
    ):
        assert list(links._searched(_Bytes(data))) == found, data  # type: ignore[arg-type]


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def test_chunks_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty threads want the same ones at the same time; what is damaged is an error for each of them."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"".join(struct.pack("<Q", number) for number in range(60_000)))
    path = make_store(tmp_path / "store")
    ref = save(path, tmp_path / "tree").snapshot
    read: Counter[bytes] = Counter()
    with Store.open(path, read_only=True) as store:
        snapshot = Snapshot(store, ref)
        index = snapshot.index(snapshot.archive(None).files[1])
        cache = ChunkCache(store.layout, None)
        load = cache._load
        monkeypatch.setattr(cache, "_load", lambda key: (read.update([key[0]]), load(key))[1])
        results: list[bytes] = []

        def work() -> None:
            parts = []
            for number in range(len(index)):
                size = index.end(number) - index.start(number)
                parts.append(bytes(cache.read(index.digest(number), size, encrypted=False)))
            results.append(b"".join(parts))

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 20 and len(set(results)) == 1 and set(read.values()) == {1} and len(read) > 1
        for _ in range(2):
            with pytest.raises(ChunkDamaged):
                cache.read(bytes(32), 100, encrypted=False)
    keyed = ChunkCache(store.layout, KEY)
    assert keyed.zeros(1 << 20, encrypted=True) == chunk_digest(bytes(1 << 20), KEY)
    assert keyed.zeros(1 << 20, encrypted=False) == cache.zeros(1 << 20, encrypted=False) is not None
    assert keyed.zeros((1 << 20) + 1, encrypted=False) is None


def test_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archiver.browse.mounted.chunk_cache._KEPT", 1000)
    path = make_store(tmp_path / "store")
    with Store.open(path, read_only=True) as store:
        cache = ChunkCache(store.layout, None)

        class Reader:
            def read(self, digest: bytes, size: int, *, encrypted: bool) -> bytes:
                return bytes(size)

        while not cache._readers.empty():
            cache._readers.get()
        cache._readers.put(Reader())  # type: ignore[arg-type]
        for number in range(100):
            cache.read(number.to_bytes(32), 10 * number, encrypted=False)
            assert cache._size == sum(map(len, cache._kept.values())) <= 1000


def test_snapshots_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held while they are in use and some time longer, but not too many of them; what is gone is not found."""
    (tmp_path / "tree").mkdir()
    path = make_store(tmp_path / "store")
    refs = [save(path, tmp_path / "tree", time=1_700_000_000 + number).snapshot for number in range(4)]
    monkeypatch.setattr("archiver.browse.mounted.opened._KEPT", 2)
    monkeypatch.setattr("archiver.browse.mounted.opened._WHOLE", 1)

    def held() -> list[int]:
        found = []
        for number, ref in enumerate(refs):
            try:
                DirectoryLock(store.layout.snapshot(ref)).close()
            except BlockingIOError:
                found.append(number)
        return found

    with Store.open(path, read_only=True) as store:
        opened: list[SnapshotRef] = []

        def opener(ref: SnapshotRef) -> Snapshot:
            opened.append(ref)
            return Snapshot(store, ref)

        snapshots = OpenSnapshots(store, opener)
        for ref in refs[:3]:
            with snapshots.using(ref) as (snapshot, parts):
                assert snapshot.ref == ref
                parts["opened"] = ref
        assert held() == [1, 2]
        for ref, known in ((refs[2], True), (refs[1], False), (refs[2], False)):
            with snapshots.using(ref) as (_, parts):
                assert ("opened" in parts) == known  # of all but the last one they were closed
        with snapshots.using(refs[1]):
            snapshots.acquire(refs[1])
        assert opened == refs[:3]
        with snapshots.using(refs[3]), snapshots.using(refs[0]):
            assert {0, 1, 3} <= set(held())
        assert 1 in held() and len(held()) == 2
        monkeypatch.setattr("archiver.browse.mounted.opened._IDLE", -1.0)
        snapshots.expire()
        assert held() == [1]  # in use
        snapshots.release(refs[1])
        snapshots.close()
        assert held() == []
        missing = SnapshotRef(refs[0].group, 5)
        for _ in range(2):
            with pytest.raises(NotFound), snapshots.using(missing):
                pass
