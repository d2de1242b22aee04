"""What a run does to a directory tree, operation by operation; and a run that ends before one, as if it was killed.

The recorder stands where the program calls the system: ``os``, ``syncfs`` and ``exchange`` of the durable-write door
(``archiver.core.disk``), and the commits of the database. It keeps a model of the tree below ``root``: inodes of its
own numbering, directories as names to inodes. That nothing passes it by is proved in ``test_recording``: the tree that
the operations make is the tree on the disk, and ``strace`` counts the same calls.

Every file is linked into ``attic`` when it is first seen, so that a state can be laid out later with the very inodes
that the run has written: what the database remembers of a manifest (inode, size, mtime) is then true or not as it would
be on the disk.

Access times and modes are not modelled. Of the database only what was committed is kept, see ``states``.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from archiver.core import linux
from archiver.store.database import inspection
from archiver.store.database.environment import Environment

ROOT = 1
DATABASE = "/.archiver/db"
_NEW = os.O_CREAT | os.O_TRUNC
_NAMELESS = os.O_TMPFILE & ~os.O_DIRECTORY

DIRECTORY_KINDS = ("create", "link", "unlink", "rename", "exchange", "mkdir", "rmdir")
SYNC_KINDS = ("fsync", "syncfs")
STEP_KINDS = (*DIRECTORY_KINDS, *SYNC_KINDS)


class Killed(BaseException):
    """Ends a run like kill -9: nothing catches it."""


class Entry(NamedTuple):
    """``name`` in ``directory`` is ``inode`` from now on; 0: there is none."""

    directory: int
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. ``entries``: what it does to directories; ``inode``: whose data, fsync or rmdir it is; a write has
    its ``data`` at ``offset``, a truncation sets the size to ``offset``, an allocation to no less, a commit has the
    whole database as ``data``."""

    kind: str
    entries: tuple[Entry, ...] = ()
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    path: str = ""


@dataclass(slots=True)
class History:
    """A tree and what was done to it. ``contents``: of the files at the start; ``database``: what was in its file then,
    None without one. ``attic``: a directory with a link to each file, named by its inode in the model.
    ``is_acknowledged``: at the end somebody was told that it is done."""

    attic: Path
    directories: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    contents: dict[int, bytes] = field(default_factory=dict)
    database: bytes | None = None
    ops: list[Op] = field(default_factory=list)
    is_acknowledged: bool = True


class Recorder:
    """Records what happens below ``root`` while ``recording``. With ``kill_at`` the run ends before the directory
    operation or sync of that number, and whatever it still tries to do then is not done either."""

    def __init__(self, root: Path, attic: Path, kill_at: int = -1) -> None:
        self.history = History(attic)
        self.steps = 0  # directory operations and syncs so far
        self.calls: Counter[str] = Counter()
        self._root = os.path.realpath(root)
        self._kill_at = kill_at
        self._lock = threading.RLock()
        self._next = ROOT
        self._now: dict[int, dict[str, int]] = {ROOT: {}}
        self._by_number: dict[int, int] = {}  # inode numbers of files -> inodes
        attic.mkdir(exist_ok=True)
        self._link = os.link
        if os.path.isdir(self._root):
            self._scan(ROOT, self._root)
        self.history.directories = {number: dict(names) for number, names in self._now.items()}
        self.history.database = self._read_database()
        self._last_database = self.history.database

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _inode(self) -> int:
        self._next += 1
        return self._next

    def _scan(self, number: int, path: str) -> None:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if self._is_database(entry.path):
                    continue
                inode = self._now[number][entry.name] = self._inode()
                if entry.is_dir(follow_symlinks=False):
                    self._now[inode] = {}
                    self._scan(inode, entry.path)
                else:
                    self.history.contents[inode] = Path(entry.path).read_bytes()
                    self._keep(entry.path, inode)

    def _keep(self, path: str, inode: int) -> None:
        self._by_number[os.lstat(path).st_ino] = inode
        self._link(path, self.history.attic / str(inode), follow_symlinks=False)

    def _is_database(self, path: str) -> bool:
        place = self._root + DATABASE
        return path == place or path.startswith(place + "/")

    def _inside(self, path: str) -> bool:
        return path.startswith(self._root + "/") and not self._is_database(path)

    def _find(self, path: str) -> int:
        """The inode at ``path``; 0 when there is none."""
        inode = ROOT
        for part in path.removeprefix(self._root).split("/"):
            if part:
                inode = self._now.get(inode, {}).get(part, 0)
        return inode

    def _entry(self, path: str, inode: int) -> Entry:
        return Entry(self._find(os.path.dirname(path)), os.path.basename(path), inode)

    # -- operations --------------------------------------------------------------------------------------------------

    def _do(self, real: Callable[[], Any], op: Callable[[], Op]) -> Any:
        """An operation on directories, or a sync: ``op`` describes it, from what the tree was before it."""
        with self._lock:
            self._check_alive()
            described = op()
            result = real()
            self.steps += 1
            self._apply(described)
            return result

    def _note(self, op: Op) -> None:
        self.history.ops.append(op)
        self.calls[op.kind] += 1

    def _apply(self, op: Op) -> None:
        self._note(op)
        for directory, name, inode in op.entries:
            if inode:
                self._now[directory][name] = inode
            else:
                self._now[directory].pop(name, None)

    @property
    def killed(self) -> bool:
        return self.steps == self._kill_at

    def revive(self) -> None:
        """The next process begins."""
        self._kill_at = -1

    def _check_alive(self) -> None:
        if self.killed:
            raise Killed

    def _read_database(self) -> bytes | None:
        try:
            return Path(self._root + DATABASE, inspection.DATA).read_bytes()
        except OSError:
            return None

    def commit(self) -> None:
        """The database may have been written."""
        with self._lock:
            data = self._read_database()
            if data is not None and data != self._last_database:
                self._last_database = data
                self.history.ops.append(Op("commit", data=data))

    # -- the system's calls ------------------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        with pytest.MonkeyPatch.context() as patched:
            self.patch(patched)
            yield self

    def patch(self, patched: pytest.MonkeyPatch) -> None:
        for name in ("unlink", "remove", "rmdir", "mkdir", "rename", "replace", "link"):
            patched.setattr(os, name, self._names(name.replace("remove", "unlink").replace("replace", "rename"), name))
        for name in ("fsync", "fdatasync"):
            patched.setattr(os, name, self._syncing(getattr(os, name)))
        for name in ("write", "writev", "pwrite", "pwritev"):
            patched.setattr(os, name, self._writing(name, getattr(os, name)))
        for name in ("truncate", "ftruncate"):
            patched.setattr(os, name, self._truncating(getattr(os, name)))
        for name in ("symlink", "mknod", "mkfifo", "sendfile", "copy_file_range", "splice"):
            patched.setattr(os, name, self._refusing(name, getattr(os, name)))
        patched.setattr(os, "posix_fallocate", self._allocating(os.posix_fallocate))
        patched.setattr(os, "open", self._opening(os.open))
        patched.setattr("archiver.core.disk.exchange", self._exchanging(linux.exchange))
        patched.setattr("archiver.core.disk.syncfs", self._syncing(linux.syncfs, everything=True))
        write, begin = Environment.write, Environment.__init__

        def committing(environment: Environment, work: Any) -> Any:
            self._check_alive()
            result = write(environment, work)
            self.commit()
            return result

        def beginning(environment: Environment, directory: str, *tables: Any) -> None:
            self._check_alive()
            begin(environment, directory, *tables)
            self.commit()  # the tables may be new

        patched.setattr(Environment, "write", committing)
        patched.setattr(Environment, "__init__", beginning)

    def _absolute(self, path: Any, dir_fd: int | None = None) -> str:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        return os.path.normpath(os.path.abspath(text))

    def _names(self, kind: str, name: str) -> Any:
        real = getattr(os, name)

        def naming(path: Any, *rest: Any, **options: Any) -> Any:
            two = kind in ("rename", "link")
            place = self._absolute(path, options.get("src_dir_fd" if two else "dir_fd"))
            target = self._absolute(rest[0], options.get("dst_dir_fd")) if two else place
            if not self._inside(target):
                assert not self._inside(place), f"{place} leaves the tree"
                return real(path, *rest, **options)
            return self._do(lambda: real(path, *rest, **options), lambda: self._named(kind, place, target))

        def linking(path: Any, target: Any, **options: Any) -> None:
            with self._lock:
                naming(path, target, **options)
                inode = self._find(self._absolute(target))
                if inode and not (self.history.attic / str(inode)).exists():  # it had no name before
                    self._keep(self._absolute(target), inode)

        return linking if kind == "link" else naming

    def _named(self, kind: str, place: str, target: str) -> Op:
        inode = self._find(place) or self._nameless(place)
        if kind == "mkdir":
            inode = self._inode()
            self._now[inode] = {}
        entries = [self._entry(place, 0)] if kind in ("unlink", "rmdir", "rename") else []
        if kind in ("mkdir", "link", "rename"):
            entries.append(self._entry(target, inode))
        return Op(kind, tuple(entries), inode if kind == "rmdir" else 0, path=target)

    def _exchanging(self, real: Callable[[str, str], None]) -> Any:
        def exchanging(first: str, second: str) -> None:
            if not self._inside(first):
                real(first, second)
                return

            def described() -> Op:
                entries = self._entry(first, self._find(second)), self._entry(second, self._find(first))
                return Op("exchange", entries, path=second)

            self._do(lambda: real(first, second), described)

        return exchanging

    def _syncing(self, real: Callable[[int], None], *, everything: bool = False) -> Any:
        def syncing(fd: int) -> None:
            place = self._absolute(fd)
            if not self._inside(place) and place != self._root:
                real(fd)
                return
            number = self._file(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else self._find(place)
            op = Op("syncfs") if everything else Op("fsync", inode=number, path=place)
            self._do(lambda: real(fd), lambda: op)

        return syncing

    def _opening(self, real: Any) -> Any:
        def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if not flags & (_NEW | _NAMELESS):
                return int(real(path, flags, mode, dir_fd=dir_fd))
            place = self._absolute(path, dir_fd)
            if not self._inside(place) and not (flags & _NAMELESS and place == self._root):
                return int(real(path, flags, mode, dir_fd=dir_fd))
            with self._lock:
                if flags & _NAMELESS == _NAMELESS:
                    self._check_alive()
                    fd = real(path, flags, mode, dir_fd=dir_fd)
                    self._by_number[os.fstat(fd).st_ino] = self._inode()
                    return int(fd)
                if os.path.lexists(place):
                    assert not flags & os.O_TRUNC, f"{place} is written over"
                    return int(real(path, flags, mode, dir_fd=dir_fd))
                return int(self._do(lambda: self._created(real, path, flags, mode, dir_fd), lambda: self._new(place)))

        return opening

    def _created(self, real: Any, path: Any, flags: int, mode: int, dir_fd: int | None) -> int:
        fd = real(path, flags, mode, dir_fd=dir_fd)
        self._keep(self._absolute(fd), self._next)
        return int(fd)

    def _new(self, place: str) -> Op:
        inode = self._inode()
        return Op("create", (self._entry(place, inode),), inode, path=place)

    def _file(self, fd: int) -> int:
        return self._by_number[os.fstat(fd).st_ino]

    def _nameless(self, place: str) -> int:
        """The inode of a file that has no name yet, by the path of its descriptor."""
        return self._by_number[os.stat(place).st_ino] if place.startswith("/proc/self/fd/") else 0

    def _is_ours(self, fd: int) -> bool:
        return self._inside(self._absolute(fd)) and os.fstat(fd).st_ino in self._by_number

    def _writing(self, name: str, real: Any) -> Any:
        def writing(fd: int, data: Any, *rest: Any) -> int:
            if not self._is_ours(fd):
                return int(real(fd, data, *rest))
            with self._lock:
                self._check_alive()
                count = int(real(fd, data, *rest))
                offset = rest[0] if name.startswith("p") else os.lseek(fd, 0, os.SEEK_CUR) - count
                plain = b"".join(data) if name.endswith("v") else bytes(data)
                self._note(Op("write", (), self._file(fd), offset, plain[:count], self._absolute(fd)))
                return count

        return writing

    def _truncating(self, real: Any) -> Any:
        def truncating(path: Any, length: int) -> None:
            place = self._absolute(path)
            if not self._inside(place):
                real(path, length)
                return
            with self._lock:
                self._check_alive()
                real(path, length)
                self._note(Op("truncate", (), self._find(place), length, path=place))

        return truncating

    def _allocating(self, real: Any) -> Any:
        def allocating(fd: int, offset: int, length: int) -> None:
            if not self._is_ours(fd):
                real(fd, offset, length)
                return
            with self._lock:
                self._check_alive()
                real(fd, offset, length)
                self._note(Op("allocate", (), self._file(fd), offset + length, path=self._absolute(fd)))

        return allocating

    def _refusing(self, name: str, real: Any) -> Any:
        def refusing(*arguments: Any, **options: Any) -> Any:
            for each in arguments[:2]:
                if isinstance(each, (str, bytes, os.PathLike)):
                    assert not self._inside(self._absolute(each)), f"{name} is not recorded"
            return real(*arguments, **options)

        return refusing
