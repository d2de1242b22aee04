"""A running backup or sync: registered under a kernel lock, its snapshot built out of sight, published in one rename.

``.archiver/sessions/ID/`` holds ``session.json`` and ``snapshot/``, the directory that becomes the snapshot. The flock
on the session directory lives as long as its process; a session nobody holds was interrupted. The name says when it
began (``started``), which a garbage collection asks. One that has a
``resume.json`` is kept for 30 days, for a run that goes on where it was interrupted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType

from archiver.core.clock import Clock, Random
from archiver.core.disk import Barrier, Disk, explain, explained
from archiver.core.events import Listener, Notice
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import Damaged, Locked, UsageError
from archiver.store import layout as names
from archiver.store import reserve, snapshots
from archiver.store.chunk_lock import ChunkLock, tell_unlisted
from archiver.store.layout import GroupRef, Layout, SnapshotRef
from archiver.store.snapshots import read_small
from formats.errors import FormatError
from formats.naming import MAX_TIME, format_time, parse_time

_GC_WAIT = 60.0  # seconds that a session waits for a garbage collection that ends early for it
_POLL = 0.02  # seconds
_GROUP_WAIT = 60.0  # seconds that a publishing backup waits for another one to finish publishing
_GROUP_ATTEMPTS = 100
RESUME = "resume.json"
SNAPSHOT = "snapshot"

_TIME_LENGTH = 20
_LARGEST_RESUME = 4096  # bytes
KEPT = 30 * 86400.0  # seconds that an interrupted session is kept
_STALE_NEW = 3600.0  # seconds after which a session directory that was never registered is removed


def started(name: str) -> int:
    """When the session with this name began, Unix seconds; 0 when the name does not tell."""
    try:
        return parse_time(name[:_TIME_LENGTH])
    except FormatError:
        return 0


def is_unfinished(path: str) -> bool:
    """Whether an interrupted session can be gone on with: not one that was killed just after it had published."""
    return os.path.exists(os.path.join(path, RESUME)) and os.path.isdir(os.path.join(path, SNAPSHOT))


def discard_interrupted(layout: Layout, disk: Disk, paths: list[str]) -> list[str]:
    """Remove what interrupted sessions left, also where they could be gone on with; those of the directories ``paths``
    that are gone. A collection does it that keeps others out: what a refused one discards is lost for nothing."""
    gone = []
    for path in paths:
        with suppress(OSError), DirectoryLock(path, follow=False):  # a session goes on with it, or it went meanwhile
            tell_unlisted(layout, disk)
            disk.remove_tree(path)
            gone.append(path)
    return gone


class Session:
    """Use as a context manager; leaving it removes what was not published, unless it can be resumed."""

    def __init__(
        self, layout: Layout, disk: Disk, clock: Clock, random: Random, listener: Listener, chunks: ChunkLock
    ) -> None:
        """Raises Locked while a garbage collection runs that needs the store for itself, and goes on doing so."""
        self._layout = layout
        self._chunk_lock = chunks
        self.disk = disk
        self._clock = clock
        self._listener = listener
        self._is_kept = self._is_published = False
        self._interrupted: list[str] = []
        with ExitStack() as opened:
            with explained("open", layout.lock):
                with suppress(FileExistsError):
                    disk.create(layout.lock, names.FILE_MODE).close()
                lock_fd = os.open(layout.lock, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, lock_fd)
            with explained("lock", layout.lock):
                is_free = lock_range(lock_fd, 0, 1, exclusive=False)
            if not is_free:
                self._wait_for_collection(lock_fd)
            with explained("write into", layout.private):
                self.barrier = Barrier(disk, layout.base)
                opened.callback(self.barrier.close)
                self._register(random, opened)
            self._opened = opened.pop_all()

    def _wait_for_collection(self, lock_fd: int) -> None:
        deadline = self._clock.steady() + _GC_WAIT
        with self._chunk_lock.waiting():
            while True:
                yields = self._chunk_lock.yields()  # asked first: one that is ending gives up the store before this
                if lock_range(lock_fd, 0, 1, exclusive=False):
                    return
                if not yields or self._clock.steady() > deadline:
                    base = self._layout.base
                    raise Locked(f"{base} is locked by a garbage collection", hint="try again when it has finished")
                time.sleep(_POLL)

    def _register(self, random: Random, opened: ExitStack) -> None:
        disk, sessions = self.disk, self._layout.sessions
        for path in (self._layout.private, sessions):
            disk.ensure_directory(path, names.PRIVATE_MODE)
        self._remove_dead()
        self.start = self._clock.now()
        self.id = f"{format_time(self.start)}-{random(4).hex()}"
        self.path = os.path.join(sessions, f".new-{self.id}")
        disk.make_directory(self.path, names.PRIVATE_MODE)
        opened.enter_context(DirectoryLock(self.path))  # locked before anybody can take it for a dead one
        opened.callback(self._remove)
        os.rename(self.path, os.path.join(sessions, self.id))
        self.path = os.path.join(sessions, self.id)
        self.snapshot_path = os.path.join(self.path, SNAPSHOT)
        disk.make_directory(self.snapshot_path, names.SNAPSHOT_MODE)
        about = json.dumps({"schema": 1, "pid": os.getpid(), "start": self.start}).encode()
        disk.put(os.path.join(self.path, "session.json"), [about], names.FILE_MODE, sync=False)

    def _remove_dead(self) -> None:
        """What interrupted sessions left; their chunks stay in the store and are found again by their digests."""
        with os.scandir(self._layout.sessions) as entries:
            found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        for entry in found:
            with suppress(OSError):  # alive, gone meanwhile, or somebody else's: a later session may remove it
                age = self._clock.now() - entry.stat(follow_symlinks=False).st_mtime
                if entry.name.startswith(".") and age < _STALE_NEW:
                    continue
                if age < KEPT and is_unfinished(entry.path):
                    continue
                with DirectoryLock(entry.path):
                    tell_unlisted(self._layout, self.disk)
                    self.disk.remove_tree(entry.path)

    def resumable(self, about: bytes) -> None:
        """From now on the session is worth keeping when it is interrupted; ``about`` tells for whom."""
        if not self._is_published:
            path = os.path.join(self.path, RESUME)
            with explained("write", path):
                self.disk.put(path, [about], names.FILE_MODE, sync=False)
            self._is_kept = True

    def interrupted(self, about: bytes) -> list[str]:
        """Directories of interrupted sessions that were kept for the same, the newest first. They belong to this
        session now: they are removed when it has published its snapshot, or by ``supersede``."""
        found = []
        for name in sorted(os.listdir(self._layout.sessions), reverse=True):
            path = os.path.join(self._layout.sessions, name)
            with suppress(OSError, Damaged):  # alive, gone meanwhile, or somebody else's
                if path != self.path and read_small(os.path.join(path, RESUME), _LARGEST_RESUME) == about:
                    self._opened.enter_context(DirectoryLock(path))
                    found.append(path)
        self._interrupted += found
        return found

    def file(self, name: str) -> str:
        """Path of a file of the snapshot under construction."""
        return os.path.join(self.snapshot_path, name)

    def publish(self, group: GroupRef, wanted_time: int, owner: str, manifest: Callable[[int], bytes]) -> SnapshotRef:
        """Make the snapshot visible, complete and durable. ``manifest(time)`` gives the encoded manifest blob.

        The time is moved past the group's newest snapshot when it is not later. Raises ArchiverError; the snapshot
        is not visible then, but for an fsync error after the rename: it is complete, and only its name may be lost
        in a power cut.
        """
        disk, layout = self.disk, self._layout
        reserve.before_publishing(layout, disk)
        with self._locked_group(group, owner):
            newest = max(snapshots.times(layout, group), default=0)
            when = max(wanted_time, newest + 1, 1)
            if when > MAX_TIME:
                raise UsageError(f"{group} has a snapshot of the last possible time", hint="choose another --id")
            if when != wanted_time:
                text = f"the snapshot time is moved to {format_time(when)}: the group already has a later one"
                self._listener(Notice(text, "warning"))
            ref = SnapshotRef(group, when)
            try:
                self._complete(manifest(when))
                disk.rename_directory(self.snapshot_path, layout.snapshot(ref))
            except OSError as error:
                raise explain(error, "publish", layout.snapshot(ref)) from error
        self._end()
        return ref

    def publish_copy(self, ref: SnapshotRef, owner: str, manifest: bytes, *, replace: bool) -> bool:
        """The same for a snapshot that has its time already; ``manifest`` is the file as it is to be.

        False when there is a finished one of that name and it is not to be replaced. One that is replaced is there
        until the new one is; it stays protected if it is. Locked while somebody reads it.
        """
        path = self._layout.snapshot(ref)
        reserve.before_publishing(self._layout, self.disk)
        with self._locked_group(ref.group, owner):
            try:
                if os.path.lexists(path):
                    published = self._exchange(ref, path, manifest, replace)
                else:
                    self._complete(manifest)
                    self.disk.rename_directory(self.snapshot_path, path)
                    published = True
            except OSError as error:
                raise explain(error, "publish", path) from error
        self._end()
        return published

    def _exchange(self, ref: SnapshotRef, path: str, manifest: bytes, replace: bool) -> bool:
        try:
            lock = DirectoryLock(path, follow=False)
        except BlockingIOError as error:
            raise Locked(f"{ref} is in use by another process", hint="try again later") from error
        with lock:
            if not lock.is_at(path):
                raise Locked(f"{ref} is being removed by another process", hint="try again later")
            if snapshots.manifest_stamp(self._layout, ref) is not None and not replace:
                return False
            if snapshots.is_protected(self._layout, ref):
                self.disk.put(self.file(names.PROTECTED), [], names.FILE_MODE, sync=False)
                self.barrier.note(self.file(names.PROTECTED))
            self._complete(manifest)
            self.disk.exchange_directories(self.snapshot_path, path)
        return True

    def _complete(self, manifest: bytes) -> None:
        """The snapshot under construction and all chunks are durable then."""
        self.disk.put(self.file(names.MANIFEST), [manifest], names.FILE_MODE, sync=False)
        self.barrier.note(self.file(names.MANIFEST))
        self.barrier.note_directory(self.snapshot_path)
        self.barrier.commit()

    def _end(self) -> None:
        self._is_published, self._is_kept = True, False
        self.supersede()

    def supersede(self) -> None:
        """Remove the interrupted sessions that belong to this one: all they tell is in this one."""
        for old in self._interrupted:
            tell_unlisted(self._layout, self.disk)
            with suppress(OSError):  # it is removed when it is too old
                self.disk.remove_tree(old)
        self._interrupted.clear()

    def _locked_group(self, group: GroupRef, owner: str) -> DirectoryLock:
        """The lock on the group's directory, which is made again when it is removed just now with its last snapshot."""
        path = self._layout.group(group)
        for attempt in range(_GROUP_ATTEMPTS):
            try:
                self._make_group(group, owner)
                lock = DirectoryLock(path, wait_seconds=_GROUP_WAIT)
            except BlockingIOError as error:
                raise Locked(f"the group {group} is locked by another process", hint="try again later") from error
            except OSError as error:
                if isinstance(error, FileNotFoundError) and attempt + 1 < _GROUP_ATTEMPTS:
                    continue
                raise explain(error, "make", path) from error
            try:
                if lock.is_at(path):
                    self._make_group(group, owner)  # its owner may have been removed in between
                    return lock
            except BaseException as error:
                lock.close()
                if isinstance(error, OSError):
                    raise explain(error, "make", path) from error
                raise
            lock.close()
        raise Locked(f"the group {group} is removed again and again by another process", hint="try again later")

    def _make_group(self, group: GroupRef, owner: str) -> None:
        path = self._layout.group(group)
        self.disk.make_directories(path, names.SNAPSHOT_MODE, inside=self._layout.base)
        self.disk.ensure_directory(path, names.SNAPSHOT_MODE)
        owner_file = os.path.join(path, names.OWNER)
        if not os.path.lexists(owner_file):
            self.disk.put(owner_file, [owner.encode() + b"\n"], names.FILE_MODE, sync=True)

    def _remove(self) -> None:
        if self._is_kept:
            return
        if not self._is_published and self.barrier.noted:
            tell_unlisted(self._layout, self.disk)
        with suppress(OSError):  # what is left is removed by the next session
            self.disk.remove_tree(self.path)

    def close(self) -> None:
        """End the session; an unpublished snapshot is removed."""
        self._opened.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
