"""Bringing the database up to date with the files, snapshot by snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice

from archiver.core.clock import system_random
from archiver.core.events import Listener, Notice, Progress
from archiver.errors import ArchiverError
from archiver.store import snapshots
from archiver.store.database.database import Database
from archiver.store.database.records import UNKNOWN_SUM, ChunkRow, SnapshotRow
from archiver.store.indexes import Index, is_index, open_index
from archiver.store.layout import Layout, SnapshotRef, parse_reference
from archiver.store.snapshots import Stamp
from formats.manifest import Manifest

_CHUNKS_AT_ONCE = 1 << 14
_SAY_FROM = 100  # snapshots to be read from which on progress is worth telling


def refresh(layout: Layout, database: Database, listener: Listener) -> None:
    """Record snapshots that are new or changed, forget those that are gone."""
    recorded = database.stamps()
    new = not recorded
    missing: list[tuple[SnapshotRef, Stamp]] = []
    for namespace in snapshots.namespaces(layout):
        for group in snapshots.groups(layout, namespace):
            for when in snapshots.times(layout, group):
                ref = SnapshotRef(group, when)
                stamp = snapshots.manifest_stamp(layout, ref)
                if stamp is not None and recorded.pop(ref.path, None) != stamp:
                    missing.append((ref, stamp))
    gone = [path for path in recorded if not os.path.lexists(os.path.join(layout.base, path, "index.json.blob"))]
    forget_snapshots(layout, database, gone)
    if new and missing:
        listener(Notice(f"reading {len(missing)} snapshots into a new database", "warning"))
    for done, (ref, stamp) in enumerate(missing):
        if not database.usable:
            return
        if len(missing) >= _SAY_FROM:
            listener(Progress("reading indexes of snapshots", done, 0))
        try:
            record_snapshot(layout, database, ref, stamp)
        except ArchiverError as error:
            listener(Notice(f"{ref} is not in the database: {error}", "warning"))


def forget_snapshots(layout: Layout, database: Database, gone: Sequence[str]) -> None:
    """Remove the records of snapshots that are gone, by their paths, and what the file catalogs have of them."""
    _forget_runs(layout, database, gone)
    for path in gone:
        database.remove_snapshot(path)


def _forget_runs(layout: Layout, database: Database, gone: Sequence[str]) -> None:
    """Tell the file catalogs of the snapshots that are gone."""
    if not gone:
        return
    from archiver.store.catalog.catalog import Catalog
    from archiver.store.catalog.forget import forget
    from archiver.store.catalog.seal import Seal

    archives = set()
    for path in gone:
        reference, row = parse_reference(path), database.snapshot(path)
        if row is not None and isinstance(reference, SnapshotRef):
            manifest = snapshots.decode_manifest(reference, row.manifest)
            archives |= {(reference.group, name) for name in _trees(manifest)}
    for group, name in sorted(archives):
        finished = [
            when
            for when in snapshots.times(layout, group)
            if snapshots.manifest_stamp(layout, SnapshotRef(group, when)) is not None
        ]
        forget(Catalog(database, group, name, Seal(None, system_random)), finished)


def _trees(manifest: Manifest) -> Iterator[str]:
    """Names of the directory trees (``x.pxar``)."""
    for file in manifest.files:
        base, _, extension = file.filename.removesuffix(".didx").rpartition(".")
        if extension in ("pxar", "mpxar"):
            yield f"{base}.pxar"


def record_snapshot(layout: Layout, database: Database, ref: SnapshotRef, stamp: Stamp) -> None:
    """Read one finished snapshot's manifest and indexes into the database. Raises ArchiverError when it is damaged."""
    text = snapshots.read_manifest_json(layout, ref)
    manifest = snapshots.decode_manifest(ref, text)
    indexes = [open_index(layout, ref, file) for file in manifest.files if is_index(file.filename)]
    for index in indexes:
        _record_chunks(layout, database, index)
    database.put_snapshot(SnapshotRow(ref.path, stamp, text), [index.digests for index in indexes])


def _record_chunks(layout: Layout, database: Database, index: Index) -> None:
    """Give every chunk of ``index`` a number; lengths are those of the files, sums are not known."""
    rows = _new_rows(layout, database, index)
    while some := list(islice(rows, _CHUNKS_AT_ONCE)):
        database.add_chunks(some)


def _new_rows(layout: Layout, database: Database, index: Index) -> Iterator[ChunkRow]:
    """Of the chunks that have no number yet."""
    import numpy as np

    from archiver.store.digests import DistinctDigests

    distinct = DistinctDigests(index.digests)
    for digests, sizes in distinct.parts_with(distinct.one_of(index.sizes().astype(np.uint32))):
        for place in np.flatnonzero(database.unknown(digests)).tolist():
            yield _row(layout, digests[place].tobytes(), int(sizes[place]))


def _row(layout: Layout, digest: bytes, size: int) -> ChunkRow:
    try:
        stored = os.lstat(layout.chunk(digest.hex())).st_size
    except OSError:
        stored = 0
    return ChunkRow(digest, size, stored, UNKNOWN_SUM, 0)
