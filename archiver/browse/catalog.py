"""The file catalog of archives that are in the store: recorded from what the archives say where it is missing
(recording.py).

A backup records the run of its snapshot itself. Of all others (made by a PBS, by a sync, before the database was lost)
the archive is read, once. Paths are those inside the archive, ``b""`` for its root, ``b"a/b"`` below.
"""

from __future__ import annotations

from archiver.browse.recorded import RunTree
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.core.events import Notice
from archiver.errors import ArchiverError, KeyProblem
from archiver.store.catalog.catalog import LIVE, Catalog
from archiver.store.catalog.seal import Seal
from archiver.store.layout import GroupRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.errors import FormatError

_SAY_FROM = 64 << 20  # bytes of an archive that takes so long to read that it is worth telling


def open_catalog(store: Store, group: GroupRef, name: str, crypt: CryptConfig | None) -> Catalog | None:
    """The catalog of the archives ``name`` (``x.pxar``) of a group. ``crypt``: the key if they are encrypted or signed:
    what the next backup leans on must be proven, too. None without a database."""
    database = store.database
    return None if database is None else Catalog(database, group, name, Seal(crypt, store.random))


Catalogs = dict[tuple[GroupRef, str, bytes], Catalog]
"""Those that are open, by group, archive and what they are sealed with."""


def ensure(snapshot: Snapshot, name: str, catalogs: Catalogs | None = None) -> Catalog | None:
    """The catalog of an archive, with a run of this snapshot in it that fits its manifest; it is recorded if need be.
    ``catalogs``: see ``catalog_of``.

    None when that cannot be, without a database for instance: the archive itself must be read then. Raises NotFound
    and KeyProblem. Of several snapshots the oldest is best asked for first: a later one then leans on it.
    """
    archive = snapshot.archive(name)
    catalog = catalog_of(snapshot, archive, catalogs)
    if catalog is None or is_recorded(catalog, snapshot, archive):
        return catalog
    from archiver.browse.recording import record_archive

    listener = snapshot.store.listener
    try:
        tree = snapshot.tree(archive)
        if tree.archive.size >= _SAY_FROM and tree.split:
            listener(Notice(f"reading the directories of {archive.name} of {snapshot.ref} into the database"))
        return catalog if record_archive(catalog, tree) else None
    except KeyProblem:
        raise
    except (ArchiverError, FormatError) as error:
        if snapshot.store.is_finished(snapshot.ref):  # or it was removed meanwhile
            listener(Notice(f"{archive.name} of {snapshot.ref} is not in the database: {error}", "warning"))
        return None


def recorded_tree(snapshot: Snapshot, archive: ArchiveFiles, catalogs: Catalogs | None = None) -> RunTree | None:
    """The tree of an archive as its run has it, if there is one. Raises KeyProblem, Unsigned."""
    catalog = catalog_of(snapshot, archive, catalogs)
    if catalog is None or not has_run(catalog, snapshot, archive):
        return None
    return RunTree(catalog, snapshot.ref.time)


def catalog_of(snapshot: Snapshot, archive: ArchiveFiles, catalogs: Catalogs | None = None) -> Catalog | None:
    """The catalog that has the run of an archive or could take it: one of ``catalogs`` if it is there, else it is put
    there. None without a database, and for an archive that is taken without proof.

    Raises KeyProblem, Unsigned.
    """
    for file in archive.files:
        snapshot.require_key(file)
    key = snapshot.crypt if archive.files[0].crypt_mode != "none" else None
    if key is None and archive.files[0].crypt_mode != "none":
        return None
    group = snapshot.ref.group
    which = group, archive.name, b"" if key is None else key.fingerprint
    if catalogs is not None and which in catalogs:
        return catalogs[which]
    catalog = open_catalog(snapshot.store, group, archive.name, key)
    if catalog is not None and key is not None:
        from archiver.store.catalog.forget import clear

        clear(catalog)  # could not be done when the snapshots were forgotten
    if catalog is not None and catalogs is not None:
        catalogs[which] = catalog
    return catalog


def has_run(catalog: Catalog, snapshot: Snapshot, archive: ArchiveFiles) -> bool:
    """Whether there is a run that fits the manifest."""
    time = snapshot.ref.time
    run, head = catalog.run(time), catalog.head(time)
    return run is not None and run.csum == archive.files[0].csum.hex() and head is not None and head.state == LIVE


def is_recorded(catalog: Catalog, snapshot: Snapshot, archive: ArchiveFiles) -> bool:
    """Whether there is a run that fits the manifest. Of the newest one the places must be known too: change detection
    needs them."""
    if not has_run(catalog, snapshot, archive):
        return False
    row, time = catalog.row(), snapshot.ref.time
    return row is not None and (row.newest == time or catalog.times()[-1] != time)
