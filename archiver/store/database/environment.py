"""One LMDB environment: opening it safely, transactions, growing the map (DESIGN.md 3, measured.md).

Rules kept here: a large map of address space only, never writemap; the map is never grown while a transaction of this
process is open; one environment per file in a process; never used across fork; keys of at most 511 bytes; a full disk
is told from corruption by statvfs; where files are never written in place, a nearly full one is left alone.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import lmdb

from archiver.core import linux
from archiver.core.disk import nearly_full, no_space
from archiver.core.locks import lock_range
from archiver.store.database import inspection, records

T = TypeVar("T")

_FIRST_MAP = 64 << 30
_SMALLEST_MAP = 1 << 30
_TABLES = 16
_USE_LOCK = "use.lock"
_DAMAGED = "damaged"
_LOCK = "lock.mdb"
_LOCKS = 4096  # bytes
_POLL_SECONDS = 0.05


# Never a consequence of a full disk, however full it is.
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class DatabaseDamaged(Exception):
    """The LMDB file cannot be used; it is to be dropped and built again."""


class _Interrupted(DatabaseDamaged):
    """A signal came while LMDB waited for the disk: to be done again."""


def _was_interrupted(error: lmdb.Error) -> bool:
    return str(error).endswith(os.strerror(errno.EINTR))


class Environment:
    """An open LMDB file. Get one from :func:`attach`, give it back with :func:`release`."""

    def __init__(self, directory: str, tables: Sequence[bytes] = records.TABLES) -> None:
        """Raises DatabaseDamaged when the file that is there cannot be used; NoSpace, OSError, lmdb.Error otherwise."""
        self.directory = directory
        self.users = 0
        self.broken = False
        self._pid = os.getpid()
        self._gate = threading.Condition()
        self._inside = 0
        self._resizing = False
        self._wrote = False
        self._use_fd = -1
        self.recreated: str | None = None  # why the file that was there could not be used
        data = os.path.join(directory, inspection.DATA)
        opened = ExitStack()
        try:
            self._use_fd = _open_use_lock(directory)
            alone = _take_use_lock(self._use_fd)
            damage = _damage(directory, data, alone)
            if damage is not None:
                if not alone:
                    raise DatabaseDamaged(damage)  # not ours to remove: another process has it mapped
                _remove_files(directory)
                self.recreated = damage
            self._is_moving = _is_moving(directory)
            if nearly_full(directory):
                self._check_room()
                _allocate_locks(directory)
            self.map_size, self.env = _open(directory, data)
            opened.callback(self.env.close)
            # Here, where no other thread has the environment: LMDB cannot open tables in two threads at once.
            self._tables = {name: self._open_table(name) for name in tables}
            self.env.reader_check()
            lock_range(self._use_fd, 0, 1, exclusive=False)
            opened.pop_all()
        except BaseException:
            opened.close()
            if self._use_fd >= 0:
                os.close(self._use_fd)
            raise

    def table(self, name: bytes) -> Any:
        """Handle of one of the tables that it was opened with."""
        return self._tables[name]

    def _open_table(self, name: bytes) -> Any:
        while True:
            try:
                with self._guarded():
                    return self.env.open_db(name)
            except lmdb.MapResizedError:
                self._resize(0)
            except _Interrupted:
                pass

    def _check_room(self) -> None:
        """Every transaction writes into the map of the file of locks. Raises NoSpace where that must not be tried."""
        if self._is_moving and nearly_full(self.directory):
            raise no_space("use the database in", self.directory)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise RuntimeError("an LMDB environment must not be used after fork")
        self._check_room()
        with self._gate:
            while self._resizing:
                self._gate.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._gate:
                self._inside -= 1
                self._gate.notify_all()

    def _resize(self, size: int) -> None:
        """Change the map size with no transaction of this process open; 0 takes over what another process set."""
        with self._gate:
            while self._resizing:
                self._gate.wait()
            self._resizing = True
            while self._inside:
                self._gate.wait()
        try:
            self.env.set_mapsize(size)
            self.map_size = self.env.info()["map_size"]
        finally:
            with self._gate:
                self._resizing = False
                self._gate.notify_all()

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A short read transaction."""
        while True:
            try:
                with self._entered(), self._guarded(), self.env.begin() as txn:
                    yield txn
                    return
            except lmdb.MapResizedError:
                self._resize(0)

    def write(self, work: Callable[[Any], T]) -> T:
        """Run ``work`` in a write transaction and commit it durably; run again from the start when the map had to grow.

        Raises NoSpace on a full disk (everything committed before stays), DatabaseDamaged on corruption.
        """
        while True:
            try:
                with self._entered(), self._guarded(), self.env.begin(write=True) as txn:
                    result = work(txn)
                self._wrote = True
                return result
            except lmdb.MapFullError:
                self._resize(self.map_size * 2)
            except lmdb.MapResizedError:
                self._resize(0)
            except _Interrupted:
                pass

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.MapFullError, lmdb.MapResizedError):
            raise
        except lmdb.Error as error:
            if _was_interrupted(error):
                raise _Interrupted from error
            is_full = isinstance(error, lmdb.DiskError) or nearly_full(self.directory)
            if is_full and not isinstance(error, _DAMAGE):
                raise no_space("write the database in", self.directory) from error
            self.condemn()
            raise DatabaseDamaged(str(error)) from error

    def condemn(self) -> None:
        """What is in the file is wrong: the next process that has it for itself makes a new one."""
        self.broken = True
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(OSError):
            os.close(os.open(os.path.join(self.directory, _DAMAGED), flags, 0o600))

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        self.env.close()
        if self._use_fd >= 0:
            # Only the last user knows that nothing will be written behind the stamp's back.
            with suppress(OSError):  # without a stamp it is looked through the next time
                if self._wrote and not self.broken and lock_range(self._use_fd, 0, 1, exclusive=True):
                    inspection.stamp(self.directory)
            os.close(self._use_fd)


def _open_use_lock(directory: str) -> int:
    return os.open(os.path.join(directory, _USE_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _take_use_lock(fd: int) -> bool:
    """True with the lock held alone; False when held together with processes that have checked the file."""
    while True:
        if lock_range(fd, 0, 1, exclusive=True):
            return True
        if lock_range(fd, 0, 1, exclusive=False):
            return False
        time.sleep(_POLL_SECONDS)  # another process is checking the file just now


def _damage(directory: str, data: str, alone: bool) -> str | None:
    """Why the data file must not be mapped; None when it may."""
    for name in (inspection.DATA, _LOCK, inspection.STAMP):  # a symlink would have LMDB write anywhere
        path = os.path.join(directory, name)
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            return f"{name} is not a regular file"
    if not os.path.lexists(data) or os.path.getsize(data) == 0:
        return None if alone else "the file was removed while another process uses it"
    if os.path.lexists(os.path.join(directory, _DAMAGED)):
        return "damage was found in it earlier"
    if not inspection.complete(data):
        return "the file is cut short or not an LMDB file"
    if alone and not inspection.stamped(directory) and not inspection.walk_in_child(directory):
        return "its pages are damaged"
    return None


def _is_moving(directory: str) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return linux.filesystem_type(fd) in linux.MOVING
    finally:
        os.close(fd)


def _allocate_locks(directory: str) -> None:
    """LMDB writes its file of locks through a map: on a full disk a hole in it would kill the process (SIGBUS). Its
    first page has room for more than 50 readers. Raises OSError where there is no room for that."""
    fd = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, _LOCKS)
    finally:
        os.close(fd)


def _remove_files(directory: str) -> None:
    for name in (inspection.DATA, _LOCK, inspection.STAMP, _DAMAGED):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))


def _open(directory: str, data: str) -> tuple[int, Any]:
    smallest = max(_SMALLEST_MAP, 2 * (os.path.getsize(data) if os.path.exists(data) else 0))
    size = max(_FIRST_MAP, smallest)
    while True:
        try:
            env = lmdb.open(
                os.fsencode(directory),  # as text it must be UTF-8
                map_size=size,
                max_dbs=_TABLES,
                max_readers=512,
                mode=0o600,
                readahead=False,
                meminit=True,  # or what lay about in memory gets into the file, names of encrypted archives too
            )
            return size, env
        except (MemoryError, lmdb.MemoryError):
            if size <= smallest:
                raise
            size = max(size // 2, smallest)
        except lmdb.Error as error:
            if _was_interrupted(error):
                continue
            if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PanicError)):
                raise DatabaseDamaged(str(error)) from error
            raise


_environments: dict[tuple[int, int], Environment] = {}
_registry = threading.Lock()
os.register_at_fork(after_in_child=_environments.clear)


def attach(directory: str, tables: Sequence[bytes] = records.TABLES) -> Environment:
    """The environment in ``directory``, with these ``tables``, shared by all users in this process (LMDB allows one per
    file and process)."""
    with _registry:
        status = os.stat(directory)
        key = (status.st_dev, status.st_ino)
        environment = _environments.get(key)
        if environment is None:
            environment = Environment(directory, tables)
            _environments[key] = environment
        environment.users += 1
        return environment


def release(environment: Environment) -> None:
    with _registry:
        environment.users -= 1
        if environment.users > 0:
            return
        for key, value in list(_environments.items()):
            if value is environment:
                del _environments[key]
        environment.close()
