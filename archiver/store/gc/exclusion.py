"""Who else uses the store while it is collected, and from which access time on a chunk may be in use.

``.lock`` byte 0 is held shared by every session of ours, the whole file by a PBS that writes. A collection takes bytes
1 to the end for itself: there is one at a time, and no backup, pull or collection of a PBS beside it. With byte 0 too
nobody writes at all: what nothing refers to can go at once (*immediate*). Otherwise access times decide (*cutoff*).
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from archiver.core import linux
from archiver.core.disk import explained, nameless_file
from archiver.core.locks import DirectoryLock, lock_range, range_is_locked, unlock_range
from archiver.errors import ArchiverError, Locked
from archiver.store import layout as names
from archiver.store.layout import Layout
from archiver.store.sessions import KEPT, RESUME, started
from archiver.store.store import Store

Mode = Literal["immediate", "cutoff"]

DEFAULT_CUTOFF = 1445  # minutes: a day, as an access time may be that old with relatime, and five minutes
_GAP = 300  # seconds before the oldest session
_PBS_USER = "backup"
_PBS_UID = 34


@dataclass(slots=True)
class Others:
    """What the sessions directory tells. ``live``: start of each session that lives; ``kept``: directories of those and
    of interrupted ones that may be gone on with; ``unfinished``: an interrupted one left nothing to go on with;
    ``interrupted``: directories of all those."""

    live: list[int]
    kept: list[str]
    unfinished: bool
    interrupted: list[str]


class Terms(NamedTuple):
    """How a collection is done, and why. Times in ns: a chunk that nothing refers to goes when its access time is
    before ``minimum``, and from ``oldest`` on it may be of a backup that runs."""

    mode: Mode
    reason: str
    start: int
    oldest: int
    minimum: int


@contextmanager
def exclusive(
    store: Store, asked: Mode | None, cutoff: int, *, dry_run: bool, interrupted: bool = False
) -> Iterator[tuple[Terms, Others]]:
    """Keep others out as far as needed. ``asked``: the mode, None for what is right; ``cutoff`` in minutes;
    ``interrupted``: interrupted sessions need nothing any more. A dry run only looks who is there.

    Raises Locked; ArchiverError when access times cannot be relied on but would have to be.
    """
    layout, lock = store.layout, store.chunks.lock
    with ExitStack() as opened:
        with explained("open", layout.lock):
            if not dry_run:
                with suppress(FileExistsError):
                    store.disk.create(layout.lock, names.FILE_MODE).close()
            fd = os.open(layout.lock, (os.O_RDONLY if dry_run else os.O_RDWR) | os.O_CLOEXEC)
        opened.callback(os.close, fd)

        def free(start: int, length: int) -> bool:
            with explained("lock", layout.lock):
                if dry_run:
                    return not range_is_locked(fd, start, length)
                return lock_range(fd, start, length, exclusive=True)

        def give_back() -> None:
            with suppress(OSError):  # closing the file does it too
                unlock_range(fd, 0, 1)

        if not free(1, 0):
            raise Locked(
                f"{layout.base} is in use by another garbage collection or by a Proxmox Backup Server",
                hint="try again when it has finished",
            )
        if not dry_run:
            opened.enter_context(lock.yielding())
            opened.callback(give_back)  # before writers that wait are told that nobody yields any more
        mode, reason = _mode(layout, asked, free)
        if mode == "cutoff" and not dry_run:
            with explained("unlock", layout.lock):
                unlock_range(fd, 0, 1)
            check_access_times(layout)
            lock.begin(store.clock.now_ns())  # before the sessions are looked at: a later one touches nothing earlier
        others = sessions_of(store, alone=mode == "immediate", interrupted=interrupted)
        yield _terms(store, mode, reason, cutoff, others.live), others


def _mode(layout: Layout, asked: Mode | None, free: Callable[[int, int], bool]) -> tuple[Mode, str]:
    if asked == "cutoff":
        return "cutoff", "it was asked for"
    alone = free(0, 1)
    if asked == "immediate":
        if not alone:
            raise Locked(f"a backup into {layout.base} is running", hint="try again when it has finished")
        return "immediate", "it was asked for"
    if not alone:
        return "cutoff", "a backup is running"
    reason = _shared_with(layout)
    return ("immediate", "nobody else uses the store") if reason is None else ("cutoff", reason)


def _shared_with(layout: Layout) -> str | None:
    """Why locks do not prove that nobody else uses the store; None when they do.

    A PBS runs as user ``backup`` and has to own what it touches.
    """
    with explained("look at", layout.chunks):
        fd = os.open(layout.chunks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if linux.filesystem_type(fd) not in linux.STABLE:
                return "its file system may be shared with other machines"
            owners = {os.fstat(fd).st_uid, os.stat(layout.base).st_uid}
        finally:
            os.close(fd)
    try:
        pbs = pwd.getpwnam(_PBS_USER).pw_uid
    except KeyError:
        pbs = _PBS_UID
    return "a Proxmox Backup Server may share it" if pbs in owners else None


def _terms(store: Store, mode: Mode, reason: str, cutoff: int, live: list[int]) -> Terms:
    """Spec 7.2; the gap before the oldest session is kept always, as file times are some ms behind the clock."""
    start = store.clock.now_ns()
    oldest = min([start, *(when * 10**9 for when in live)])
    return Terms(mode, reason, start, oldest, min(start - cutoff * 60 * 10**9, oldest - _GAP * 10**9))


def sessions_of(store: Store, *, alone: bool, interrupted: bool = False) -> Others:
    """Who needs chunks besides the snapshots. ``alone``: nobody lives; ``interrupted``: as above."""
    others = Others([], [], False, [])
    sessions = store.layout.sessions
    try:
        with explained("list", sessions), os.scandir(sessions) as entries:
            found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except ArchiverError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return others
        raise
    for entry in sorted(found, key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue  # it was not registered yet: whatever it touches, it touches later than now
        try:
            age = store.clock.now() - entry.stat(follow_symlinks=False).st_mtime
        except FileNotFoundError:
            continue
        if not alone and _lives(entry.path):
            others.live.append(started(entry.name))
            others.kept.append(entry.path)
            continue
        others.interrupted.append(entry.path)
        if interrupted or age >= KEPT or not os.path.lexists(os.path.join(entry.path, RESUME)):
            others.unfinished = True
        else:
            others.kept.append(entry.path)
    return others


def _lives(path: str) -> bool:
    try:
        DirectoryLock(path, exclusive=False).close()
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True  # who knows
    return False


def check_access_times(layout: Layout) -> None:
    """Raises ArchiverError where a file does not keep the access time that it is given (spec 7.3).

    PBS waits a second on a chunk that it makes for this; a time that was chosen shows at once, on a file without name.
    """
    when = 1_000_000_000_000_000_000  # with every file system of today
    with explained("try a file in", layout.chunks):
        fd = nameless_file(layout.chunks)
        try:
            os.utime(fd, ns=(when, when))
            kept = os.fstat(fd).st_atime_ns == when
        finally:
            os.close(fd)
    if not kept:
        raise ArchiverError(
            f"the file system of {layout.chunks} does not keep access times: it cannot be told which chunks are in use",
            hint="run it when no backup runs, with --immediate",
        )
