"""One datastore, opened: the door to its chunks, snapshots and database."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from archiver.core.clock import Clock, Random, system_random
from archiver.core.disk import Disk, explain, is_directory, nearly_full, no_space
from archiver.core.events import Listener, Notice, ignore
from archiver.core.locks import DirectoryLock
from archiver.errors import ArchiverError, Locked, NotFound, TargetAbsent, UsageError
from archiver.store import creation, reserve, snapshots
from archiver.store.chunks import ChunkReader, ChunkStore
from archiver.store.creation import Identity
from archiver.store.database import location
from archiver.store.layout import GroupRef, Layout, SnapshotRef, namespace_path, parse_reference
from archiver.store.sessions import Session
from archiver.store.snapshots import SnapshotInfo, Stamp
from formats.crypt import CryptConfig
from formats.manifest import Manifest

if TYPE_CHECKING:
    from archiver.store.database.database import Database


class Store:
    """Use :meth:`open` or :meth:`create`; a context manager.

    Reading writes nothing into the store, but for the database of one that is ours and not read-only.
    """

    def __init__(
        self,
        layout: Layout,
        identity: Identity | None,
        *,
        read_only: bool,
        listener: Listener,
        clock: Clock,
        random: Random,
    ) -> None:
        self.layout = layout
        self.identity = identity
        self.read_only = read_only
        self.listener = listener
        self.clock = clock
        self.random = random
        self.disk = Disk(random)
        self.chunks = ChunkStore(layout, self.disk, clock)
        self._database: Database | None = None
        self._database_tried = False
        self._held = ExitStack()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        listener: Listener = ignore,
        clock: Clock | None = None,
        random: Random = system_random,
    ) -> Store:
        """Open the store in directory ``path``, one made by PBS too.

        Raises NotFound when there is none, TargetAbsent when the directory itself is missing, TooNew, Damaged.
        """
        base = os.path.abspath(os.fspath(path))
        layout = Layout(base)
        try:
            present = stat.S_ISDIR(os.stat(layout.chunks).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            present = False
        except OSError as error:
            raise explain(error, "open", base) from error
        if not present and not os.path.exists(base):
            raise TargetAbsent(
                f"there is no directory {base}", hint=f"plug in its drive, or make a store: archiver init {base}"
            )
        if not present:
            raise NotFound(f"{base} is not a store", hint="make one with: archiver init DIRECTORY")
        read_only = read_only or bool(os.statvfs(base).f_flag & os.ST_RDONLY) or not os.access(layout.chunks, os.W_OK)
        identity = creation.read_identity(base)
        return cls(layout, identity, read_only=read_only, listener=listener, clock=clock or Clock(), random=random)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        complete_shards: bool = False,
        random: Random = system_random,
    ) -> Identity:
        """Make an empty store; UsageError when the place is in use or cannot hold one."""
        base = os.path.abspath(os.fspath(path))
        return creation.create(base, name=name, complete_shards=complete_shards, disk=Disk(random), random=random)

    @classmethod
    def renew(cls, path: str | os.PathLike[str], *, random: Random = system_random) -> Identity:
        """Make the copy of a store a store of its own. Raises as ``open``; UsageError where it cannot be written."""
        with cls.open(path, random=random) as store:
            store.check_writable()
            return creation.renew(store.layout.base, store.disk, random)

    def close(self) -> None:
        self._held.close()
        self._close_database()

    def _close_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        self.chunks.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- database ----------------------------------------------------------------------------------------------------

    @property
    def uuid(self) -> str:
        """The store's identity. One that PBS made gets its own from the first session; until then it is known by
        where it lies."""
        if self.identity is not None:
            return self.identity.uuid
        status = os.stat(self.layout.chunks)
        from uuid import NAMESPACE_URL, uuid5

        return str(uuid5(NAMESPACE_URL, f"store:{status.st_dev}:{status.st_ino}"))

    @property
    def database(self) -> Database | None:
        """The index over the store, up to date with its files; None when there can be none."""
        if not self._database_tried:
            self._database_tried = True
            from archiver.store.database.database import open_database  # numpy: a mere listing needs none of it

            directory = self._database_directory()
            self._database = open_database(directory, self.uuid, self.listener, self._make_room_in)
            if self._database is not None:
                self._refresh(self._database)
        return self._database if self._database is not None and self._database.usable else None

    def require_database(self) -> Database:
        """The same. Raises NoSpace where its disk is full, ArchiverError where there can be none for another reason."""
        database = self.database
        if database is None:
            directory = self._database_directory()
            if os.path.isdir(directory) and nearly_full(directory):
                raise no_space("use the database in", directory)
            raise ArchiverError("there is no usable database here", hint="everything else works without it, slower")
        return database

    def _database_directory(self) -> str:
        writable = self.identity is not None and not self.read_only
        return location.database_directory(self.layout, self.uuid, writable=writable)

    def _refresh(self, database: Database) -> None:
        from archiver.store.database.refresh import refresh

        try:
            refresh(self.layout, database, self.listener)
        except ArchiverError as error:  # a directory that cannot be read
            self.listener(Notice(f"the database is not up to date: {error}", "warning"))

    def _make_room_in(self, directory: str) -> bool:
        """For the database in ``directory``, when its disk is full."""
        try:
            is_here = os.stat(directory).st_dev == os.stat(self.layout.base).st_dev
        except OSError:
            return False
        return is_here and self.give_up_reserve()

    def rebuild_database(self) -> None:
        """Forget everything in the database and read it again from the files."""
        database = self.database
        if database is not None:
            database.reset(self.uuid)
            self._refresh(database)

    # -- reading -----------------------------------------------------------------------------------------------------

    def reader(self, crypt: CryptConfig | None = None) -> ChunkReader:
        """A chunk reader for one thread."""
        return ChunkReader(self.layout, crypt)

    def namespaces(self, below: str = "") -> Iterator[str]:
        """``below`` and every namespace in it. NotFound when there is none."""
        if below and not os.path.isdir(self.layout.namespace(below)):
            raise NotFound(f"there is no namespace {below}")
        return snapshots.namespaces(self.layout, below)

    def groups(self, namespace: str = "") -> list[GroupRef]:
        return snapshots.groups(self.layout, namespace)

    def times(self, group: GroupRef) -> list[int]:
        return snapshots.times(self.layout, group)

    def snapshots(self, namespace: str = "") -> Iterator[SnapshotRef]:
        """Every snapshot directory at or below ``namespace``, unfinished ones too; of each group the newest first."""
        for below in self.namespaces(namespace):
            for group in self.groups(below):
                for when in reversed(self.times(group)):
                    yield SnapshotRef(group, when)

    def owner(self, group: GroupRef) -> str | None:
        return snapshots.owner(self.layout, group)

    def group_note(self, group: GroupRef) -> str | None:
        return snapshots.group_note(self.layout, group)

    def manifest(self, ref: SnapshotRef, *, from_file: bool = False) -> Manifest:
        """Raises NotFound (also for an unfinished snapshot) or Damaged. ``from_file``: whatever the database says."""
        return snapshots.decode_manifest(ref, self._manifest_json(ref, from_file))

    def _manifest_json(self, ref: SnapshotRef, from_file: bool) -> bytes:
        database = None if from_file else self._database  # as it is: a listing must not wait for a rebuild
        row = database.snapshot(ref.path) if database is not None else None
        if row is not None and row.stamp == snapshots.manifest_stamp(self.layout, ref):
            return row.manifest
        return snapshots.read_manifest_json(self.layout, ref)

    def info(self, ref: SnapshotRef) -> SnapshotInfo:
        """What a listing shows of one snapshot; a damaged manifest is told in ``problem``."""
        return self._info(ref, self.owner(ref.group))

    def infos(self, group: GroupRef) -> Iterator[SnapshotInfo]:
        """The same of all snapshots of a group, oldest first."""
        owner = self.owner(group)
        for when in self.times(group):
            yield self._info(SnapshotRef(group, when), owner)

    def _info(self, ref: SnapshotRef, owner: str | None) -> SnapshotInfo:
        manifest, problem = None, None
        try:
            manifest = self.manifest(ref)
        except NotFound:
            pass
        except ArchiverError as error:
            problem = error
        return SnapshotInfo(ref, manifest, problem, snapshots.is_protected(self.layout, ref), owner)

    def is_finished(self, ref: SnapshotRef) -> bool:
        return snapshots.manifest_stamp(self.layout, ref) is not None

    def newest(self, group: GroupRef) -> SnapshotRef | None:
        """The group's newest finished snapshot."""
        for when in reversed(self.times(group)):
            ref = SnapshotRef(group, when)
            if self.is_finished(ref):
                return ref
        return None

    @staticmethod
    def qualified(text: str, namespace: str) -> str:
        """``text`` with the namespace that was given apart from it."""
        text = text.strip("/")
        return text if not namespace or text.startswith("ns/") else f"{namespace_path(namespace)}/{text}"

    def find(self, text: str, namespace: str = "") -> SnapshotRef:
        """``[ns/a/ns/b/]TYPE/ID[/TIME]`` or ``latest`` (of ``namespace``). Raises UsageError or NotFound."""
        if text == "latest":
            found = [ref for group in self.groups(namespace) if (ref := self.newest(group)) is not None]
            if not found:
                raise NotFound("there is no finished snapshot yet", hint="make one with: archiver backup DIR")
            return max(found, key=lambda ref: ref.time)
        reference = parse_reference(self.qualified(text, namespace))
        if isinstance(reference, SnapshotRef):
            if not os.path.isdir(self.layout.snapshot(reference)):
                raise NotFound(f"there is no snapshot {reference}", hint="see the list with: archiver snapshots")
            if not self.is_finished(reference):
                raise NotFound(f"snapshot {reference} is unfinished", hint="its backup did not come to its end")
            return reference
        newest = self.newest(reference)
        if newest is None:
            raise NotFound(f"the group {reference} has no finished snapshot", hint="see: archiver groups")
        return newest

    def find_group(self, text: str, namespace: str = "") -> GroupRef:
        """``[ns/a/ns/b/]TYPE/ID``, a group that is there. Raises UsageError or NotFound."""
        group = parse_reference(self.qualified(text, namespace))
        if isinstance(group, SnapshotRef):
            raise UsageError(f"{text!r} is one snapshot, not a group", hint=f"its group is {group.group}")
        if not is_directory(self.layout.group(group)):
            raise NotFound(f"there is no group {group}", hint="see: archiver groups")
        return group

    @contextmanager
    def held(self, ref: SnapshotRef) -> Iterator[None]:
        """While inside, nobody removes the snapshot. Raises NotFound, or Locked when it is just being removed.

        Where a directory cannot be locked (some network file systems) it is read all the same.
        """
        path = self.layout.snapshot(ref)
        with ExitStack() as held:
            try:
                lock = held.enter_context(DirectoryLock(path, exclusive=False))
                if not lock.is_at(path):
                    raise FileNotFoundError
            except FileNotFoundError as error:
                raise NotFound(f"there is no snapshot {ref} any more", hint="it was removed just now") from error
            except BlockingIOError as error:
                raise Locked(f"{ref} is locked by another process", hint="it is being removed or changed") from error
            except OSError:
                pass
            yield

    def hold(self, ref: SnapshotRef) -> None:
        """The same until the store is closed."""
        self._held.enter_context(self.held(ref))

    def own_directories(self) -> frozenset[tuple[int, int]]:
        """(st_dev, st_ino) of the store and its database, which must never be archived into themselves."""
        _ = self.database  # its directory is made on first use
        paths = [self.layout.base, self._database_directory()]
        return frozenset((status.st_dev, status.st_ino) for status in map(os.stat, filter(os.path.isdir, paths)))

    # -- writing -----------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raises UsageError when the store is not to be written to."""
        if self.read_only:
            raise UsageError(f"the store {self.layout.base} is read-only", hint="is its drive mounted read-only?")

    def session(self) -> Session:
        """Register a writer. Raises UsageError on a store that cannot be written, Locked during a gc, NoSpace where
        there is no use in beginning."""
        self.identify()
        reserve.keep(self.layout, self.disk)
        session = Session(self.layout, self.disk, self.clock, self.random, self.listener, self.chunks.lock)
        self.chunks.began(session.start)
        return session

    def identify(self) -> None:
        """A store made by PBS gets an identity of its own. Raises UsageError on one that cannot be written."""
        self.check_writable()
        if self.identity is None:
            self._close_database()  # readers have had their database elsewhere
            self._database_tried = False
            self.identity = creation.identify(self.layout.base, self.disk, self.random)

    def give_up_reserve(self) -> bool:
        """The disk is full: make some room. False when there is none to be made."""
        return not self.read_only and reserve.give_up(self.layout, self.disk)

    def record(self, ref: SnapshotRef) -> None:
        """Tell the database of a snapshot that was just published; a failure here costs time later, no data."""
        database = self.database
        from archiver.store.database.refresh import record_snapshot

        try:
            stamp = snapshots.manifest_stamp(self.layout, ref)
            if database is not None and stamp is not None:
                record_snapshot(self.layout, database, ref, stamp)
        except ArchiverError as error:
            self.listener(Notice(f"{ref} is not in the database: {error}", "warning"))

    def replace_record(self, ref: SnapshotRef, before: Stamp, manifest: bytes) -> bool:
        """Tell the database that a manifest, whose stamp was ``before``, was replaced by one that lists the same files.
        False when it did not know that snapshot so."""
        from archiver.store.database.records import SnapshotRow

        database, stamp = self.database, snapshots.manifest_stamp(self.layout, ref)
        if database is None or stamp is None:
            return database is None
        return database.replace_manifest(SnapshotRow(ref.path, stamp, manifest), before)

    def forget_records(self, refs: Sequence[SnapshotRef]) -> None:
        """Tell the database of snapshots that were removed; when it cannot be told now, it finds out later."""
        database = self.database  # which finds out when it is opened just now
        if database is None:
            return
        from archiver.store.database.refresh import forget_snapshots

        try:
            forget_snapshots(self.layout, database, [ref.path for ref in refs])
        except ArchiverError as error:
            self.listener(Notice(f"the database still knows removed snapshots: {error}", "warning"))

    def update_records(self) -> None:
        """Tell the database of all snapshots that have come, gone or changed since it was opened."""
        if self._database_tried and self._database is not None:
            self._refresh(self._database)
        else:
            _ = self.database
