"""The file catalog, recorded from archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.browse.catalog import ensure, open_catalog
from archiver.browse.snapshot import Snapshot, Tree
from archiver.errors import KeyProblem
from archiver.store.catalog.catalog import Catalog
from archiver.store.catalog.record import (
    ROW,
    Draft,
    Record,
    path_key,
    read_references,
    reference_places,
    signed,
    write_offsets,
)
from archiver.store.catalog.writer import RunWriter
from archiver.store.store import Store
from formats.pxar import constants as c
from formats.pxar.accessor import Accessor, Node
from formats.pxar.encoder import encode_entry
from tests import golden_store, stores
from tests.stores import Heard


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return golden_store.unpack(tmp_path)


def parts(catalog: Catalog, time: int, key: int) -> list[tuple[Record, int]]:
    """A directory's record, or its leaves, with where their contents begin (0 unless the run is the newest)."""
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
        based.append((part, newest.base(number) if newest is not None and newest.time == time else 0))
    return based


def first_offset(accessor: Accessor, node: Node, record: Record) -> int:
    """Where the contents of a record begin, for a run that does not know."""
    names = set(record.names)
    return next(
        child.payload_offset or 0 for child in accessor.entries(node) if child.name in names and child.kind == "file"
    )


def check_directory(catalog: Catalog, tree: Tree, accessor: Accessor, node: Node, key: int) -> int:
    """Compare a directory and all below with what the archive says; the number of entries."""
    count = 0
    found = {}
    for record, base in parts(catalog, tree.snapshot.ref.time, key):
        items = bytearray(record.items)
        places = reference_places(record.lengths.astype("i8"), record.kinds)
        if len(places) and accessor.version == 2:
            base = base or first_offset(accessor, node, record)
            write_offsets(items, places, read_references(items, places)[:, 0] + base)
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
        snapshot = Snapshot(store, store.find(text), golden_store.KEY if "ct/200" in text else None)
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
