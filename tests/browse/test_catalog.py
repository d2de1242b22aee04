"""The file catalog, recorded from archives."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest

from archiver.browse.catalog import ensure, open_catalog
from archiver.browse.files import listing
from archiver.browse.history import open_histories
from archiver.browse.recorded import RunTree
from archiver.browse.snapshot import Snapshot, Tree
from archiver.browse.view import ArchiveView
from archiver.core.row import ROW, signed
from archiver.errors import KeyProblem
from archiver.store.catalog.catalog import CLEARED, GONE, LIVE, Catalog, Place
from archiver.store.catalog.record import (
    NOWHERE,
    Draft,
    Layout,
    Record,
    path_key,
    read_references,
    reference_places,
    write_offsets,
)
from archiver.store.catalog.writer import RunWriter
from archiver.store.database import records
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.patterns import Pattern
from formats.pxar import constants as c
from formats.pxar.accessor import Accessor, Node
from formats.pxar.encoder import encode_entry
from formats.pxar.items import Entry
from tests import golden_store, stores
from tests.stores import Heard

pytestmark = pytest.mark.in_memory


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return golden_store.unpack(tmp_path)


def parts(catalog: Catalog, time: int, key: int) -> list[tuple[Record, Layout]]:
    """A directory's record, or its leaves, with where their contents lie (NOWHERE unless the run is the newest)."""
    newest = catalog.newest()
    place = catalog.find(time, key)
    assert place is not None
    record = catalog.load(place)
    assert record is not None
    found = [(record, key)]
    if record.is_split:
        found = []
        for leaf, first in record.leaves:
            place = catalog.find(time, leaf)
            assert place is not None
            part = catalog.load(place)
            assert part is not None and part.names[0] == first
            found.append((part, leaf))
    based = []
    for part, leaf in found:
        number = -1 if newest is None else newest.find(leaf)
        based.append((part, newest.layout(number) if newest is not None and newest.time == time else NOWHERE))
    return based


def offsets(accessor: Accessor, node: Node, record: Record) -> list[int]:
    """Where the contents of a record's files lie, for a run that does not know."""
    found = {child.name: child.payload_offset for child in accessor.entries(node) if child.kind == "file"}
    return [found[name] or 0 for name in record.names if name in found]


def check_directory(catalog: Catalog, tree: Tree, accessor: Accessor, node: Node, key: int) -> int:
    """Compare a directory and all below with what the archive says; the number of entries."""
    count = 0
    found = {}
    for record, layout in parts(catalog, tree.snapshot.ref.time, key):
        items = bytearray(record.items)
        places = reference_places(record.lengths.astype("i8"), record.kinds)
        if len(places) and accessor.version == 2:
            sizes = read_references(items, places)[:, 1]
            known = layout.offsets(sizes) if layout.base else np.array(offsets(accessor, node, record))
            write_offsets(items, places, known)
        at = 0
        for number, name in enumerate(record.names):
            end = at + int(record.lengths[number])
            found[name] = (record.kinds[number : number + 1], record.row(number), bytes(items[at:end]))
            at = end
    for child in accessor.entries(node):
        kind, row, item = found.pop(child.name)
        count += 1
        if child.kind == "dir":
            assert (kind, item) == (b"d", b"")
            inode, size, where, _ = ROW.unpack(row)
            assert (inode, size) == (0, -1)
            count += check_directory(catalog, tree, accessor, child, where % 2**64)
            continue
        if child.kind == "hardlink":
            assert kind == b"h"
            assert item == encode_entry(child._replace(link_offset=0))
            continue
        assert item == encode_entry(child._replace(payload_offset=child.payload_offset or 0))
        if child.payload_offset is not None:
            stored = tree.archive.read_at(child.filename_offset, len(item))
            assert stored == item, "the items are those of the archive, byte for byte"
            assert c.PAIR.unpack(item[-16:]) == (child.payload_offset, child.size)
        assert child.metadata is not None
        stat = child.metadata.stat
        assert ROW.unpack(row) == (0, child.size, signed(stat.mtime_secs * 10**9 + stat.mtime_nanos), 0)
    assert not found
    return count


@pytest.mark.parametrize("text", golden_store.TREES)
def test_what_is_recorded_is_what_the_archive_says(golden: Path, text: str) -> None:
    with Store.open(golden) as store:
        snapshot = Snapshot(store, store.find(text), golden_store.KEY)
        name = snapshot.restorable()[0].name
        catalog = ensure(snapshot, name)
        assert catalog is not None
        tree = snapshot.tree(snapshot.archive(name))
        accessor = tree.accessor()
        run = catalog.run(snapshot.ref.time)
        assert run is not None and run.csum == tree.metadata_file.csum.hex()
        count = check_directory(catalog, tree, accessor, accessor.root, run.root)
        assert count == len(golden_store.listing(text)) - 1  # without the root


ALPHA = [text for text in golden_store.PLAIN if text.startswith("host/alpha")]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_snapshots_are_recorded_in_any_order(golden: Path, order: tuple[int, ...]) -> None:
    with Store.open(golden) as store:
        snapshots = [Snapshot(store, store.find(text)) for text in ALPHA]
        name = snapshots[0].restorable()[0].name
        for number in order:
            assert ensure(snapshots[number], name) is not None
        for snapshot in snapshots:
            catalog = ensure(snapshot, name)
            assert catalog is not None
            accessor = snapshot.tree(snapshot.archive(name)).accessor()
            run = catalog.run(snapshot.ref.time)
            assert run is not None
            check_directory(catalog, snapshot.tree(snapshot.archive(name)), accessor, accessor.root, run.root)
            newest = catalog.newest()
            assert newest is not None and newest.time == snapshots[-1].ref.time
        assert catalog is not None
        times = sorted(snapshots[number].ref.time for number in order)
        assert catalog.times() == times
        parents = {time: run.parent for time in times if (run := catalog.run(time)) is not None}
        recorded: list[int] = []
        for number in order:
            time = snapshots[number].ref.time
            assert parents[time] == max((earlier for earlier in recorded if earlier < time), default=None)
            recorded.append(time)


def test_a_run_that_fits_is_not_recorded_again_and_one_that_does_not_is(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(golden) as store:
        snapshot = Snapshot(store, store.find(ALPHA[0]))
        archive = snapshot.restorable()[0]
        catalog = ensure(snapshot, archive.name)
        assert catalog is not None
        before = catalog.places(snapshot.ref.time)
        with monkeypatch.context() as patch:
            patch.setattr(Tree, "decoder", lambda tree: pytest.fail("the archive is read again"))
            assert ensure(snapshot, archive.name) is not None
        writer = RunWriter(catalog, None, catalog.database.directory)
        raw, base = Draft().encode()
        writer.put(path_key(b""), raw, base)
        assert writer.record(snapshot.ref.time, csum=bytes(32), fields="archive", root=path_key(b""))
        writer.close()
        fresh = ensure(snapshot, archive.name)
        assert fresh is not None
        run, after = fresh.run(snapshot.ref.time), fresh.places(snapshot.ref.time)
        assert run is not None and run.csum == archive.files[0].csum.hex() and run.directories > 1
        assert before is not None and after is not None and before.mark == after.mark


def test_an_encrypted_archive_needs_its_key(golden: Path) -> None:
    with Store.open(golden) as store:
        ref = store.find(golden_store.ENCRYPTED[0])
        with pytest.raises(KeyProblem):
            ensure(Snapshot(store, ref), "root.pxar")
        name = "root.pxar"
        assert ensure(Snapshot(store, ref, golden_store.KEY), name) is not None
        for key in (None, stores.KEY):
            catalog = open_catalog(store, ref.group, name, key)
            assert catalog is not None
            assert catalog.run(ref.time) is None
            assert catalog.newest() is None and catalog.places(ref.time) is None


def test_a_damaged_archive_is_told_and_leaves_no_run(golden: Path) -> None:
    heard = Heard()
    with Store.open(golden, listener=heard) as store:
        snapshot = Snapshot(store, store.find(ALPHA[0]))
        archive = snapshot.restorable()[0]
        index = snapshot.index(archive.files[0])
        for number in range(len(index)):
            path = Path(store.layout.chunk(index.digest(number).hex()))
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert ensure(snapshot, archive.name) is None
        assert any("is not in the database" in notice for notice in heard.notices)
        catalog = open_catalog(store, snapshot.ref.group, archive.name, None)
        assert catalog is not None and catalog.times() == []


def test_without_a_database_there_is_no_catalog(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_DB_DIR", "/proc/none")
    with Store.open(golden) as store:
        snapshot = Snapshot(store, store.find(ALPHA[0]))
        assert ensure(snapshot, snapshot.restorable()[0].name) is None


@pytest.mark.parametrize("limits", [{"SPLIT_FROM": 3}, {"_LARGEST_RECORD": 400}, {"_LARGEST_HELD": 1000}])
def test_large_directories_are_split_while_they_are_read(
    golden: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    """Whatever is too much to hold: names of one directory, their items, those of all open ones."""
    for name, value in limits.items():
        monkeypatch.setattr(f"archiver.browse.recording.{name}", value)
    with Store.open(golden) as store:
        for text in ALPHA:
            snapshot = Snapshot(store, store.find(text))
            archive = snapshot.restorable()[0]
            catalog = ensure(snapshot, archive.name)
            assert catalog is not None
            tree = snapshot.tree(archive)
            accessor = tree.accessor()
            run = catalog.run(snapshot.ref.time)
            assert run is not None
            recorded = RunTree(catalog, snapshot.ref.time)
            directories = sum(found.node.kind == "dir" for found in listing(ArchiveView(tree), b"/", recursive=True))
            assert run.directories > 1 + directories  # there are leaves too
            check_directory(catalog, tree, accessor, accessor.root, run.root)
            for child in accessor.entries(accessor.root):
                found = recorded.lookup(run.root, child.name)
                assert found is not None and found.kind == child.kind
            assert recorded.lookup(run.root, b"not there") is None


def test_the_catalog_answers_as_the_archive_does(golden: Path) -> None:
    for text in golden_store.TREES:
        with Store.open(golden) as store:
            snapshot = Snapshot(store, store.find(text), golden_store.KEY)
            archive = snapshot.restorable()[0]
            histories, missing = open_histories([snapshot], archive.name)
            assert missing == [] and len(histories) == 1
            catalog = ensure(snapshot, archive.name)
            assert catalog is not None
            recorded = RunTree(catalog, snapshot.ref.time)
            paths = set()
            for found in listing(ArchiveView(snapshot.tree(archive)), b"/", recursive=True):
                paths.add(found.shown)
                item = recorded.open_path(found.path)
                assert item is not None
                entry = recorded.entry(item)
                for name in ("kind", "name", "metadata", "size", "target", "major", "minor"):
                    assert getattr(entry, name) == getattr(found.node, name)
                (version,) = histories[0].versions(found.path)
                assert version.times == (snapshot.ref.time,) and version.entry == entry
            everything = histories[0].glob(Pattern.parse(b"**"))  # of the snapshot before too
            assert {path for path in everything if histories[0].versions(path)} == paths
            (version,) = histories[0].versions(b"/")
            assert version.entry.kind == "dir"


def test_versions_over_snapshots_of_a_server(golden: Path) -> None:
    """One archive of version 1, two split ones, of one group."""
    with Store.open(golden) as store:
        snapshots = [Snapshot(store, store.find(text)) for text in ALPHA]
        histories, missing = open_histories(snapshots, "root.pxar")
        assert missing == [] and len(histories) == 1
        trees = {one.ref.time: one.tree(one.archive("root.pxar")) for one in snapshots}
        states: dict[bytes, dict[int, Entry]] = {}
        for time, tree in trees.items():
            for found in listing(ArchiveView(tree), b"/", recursive=True):
                states.setdefault(found.shown, {})[time] = found.node
        several = 0
        for path, by_time in states.items():
            versions = histories[0].versions(path)
            assert sorted(time for version in versions for time in version.times) == sorted(by_time)
            for version in versions:
                for time in version.times:
                    entry = by_time[time]
                    assert (entry.kind, entry.metadata, entry.size, entry.target) == (
                        version.entry.kind, version.entry.metadata, version.entry.size, version.entry.target
                    )  # fmt: skip
            several += len(versions) > 1
        assert several


@pytest.mark.parametrize("crypt", [None, stores.KEY], ids=["plain", "encrypted"])
def test_a_snapshot_that_is_gone_gives_its_space_back(tmp_path: Path, crypt: CryptConfig | None) -> None:
    """The middle one of three: what only it has goes, what the last one has of it stays."""
    path, source = stores.make_store(tmp_path / "store"), tmp_path / "source"
    random = Random(4)
    refs = []
    for night in range(3):
        for number in range(40):
            folder = source / f"{number % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            if night < 2 or number % 4 < 2:
                (folder / random.randbytes(60).hex()).write_bytes(random.randbytes(20))
        refs.append(stores.save(path, source, time=1_700_000_000 + night, crypt=crypt).snapshot)
    with Store.open(path) as store:
        for ref in refs:
            assert ensure(Snapshot(store, ref, crypt), "tree.pxar") is not None
        before = {ref.time: content(store, ref, crypt) for ref in refs}
        shutil.rmtree(store.layout.snapshot(refs[1]))
    with Store.open(path) as store:  # looks what is there, without any key
        assert store.database is not None
    with Store.open(path) as store:
        catalog = ensure(Snapshot(store, refs[2], crypt), "tree.pxar")
        assert catalog is not None and store.database is not None
        assert [head.state for head in catalog.heads().values()] == [LIVE, CLEARED, LIVE]
        for ref in (refs[0], refs[2]):
            assert content(store, ref, crypt) == before[ref.time]
        kept = [catalog.load(place) for place in all_places(catalog, refs[1].time)]
        assert None in kept and any(kept)
        shutil.rmtree(store.layout.snapshot(refs[2]))
        shutil.rmtree(store.layout.snapshot(refs[0]))
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        for table in (records.RUN, records.PACK, records.PLACE, records.NAMES, records.NEWEST):
            assert database.keys(table, b"") == []


def content(store: Store, ref: SnapshotRef, crypt: CryptConfig | None) -> list[tuple[bytes, Entry]]:
    """All of a snapshot as the catalog has it; the archive is not looked at."""
    catalog = open_catalog(store, ref.group, "tree.pxar", crypt)
    assert catalog is not None
    tree = RunTree(catalog, ref.time)
    found = []
    todo = [(b"", tree.root)]
    while todo:
        path, key = todo.pop()
        for item in tree.entries(key):
            found.append((path + b"/" + item.name, tree.entry(item)))
            if item.kind == "dir":
                todo.append((path + b"/" + item.name, item.key))
    return found


def all_places(catalog: Catalog, time: int) -> list[Place]:
    own = catalog.own_places(time)
    assert own is not None
    return [Place(*map(int, row)) for row in zip(*own[1:], strict=True) if row[1] != GONE]
