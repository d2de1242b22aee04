"""Virtual tapes: directories that hold media as files, in the layout that a PBS reads (spec tape.md 3).

    .drive.lck                  locked (flock) while a drive has the directory open; its presence says that it is one
    drive-status.json           {"current_tape": {"name": LABEL, "pos": FILE}} or {"current_tape": null}
    tape-LABEL.json             {"files": N}; its presence makes the medium
    tapefile-FILE-LABEL.json    the blocks of a file, and nothing else

What a PBS does not do, for attached drives: files are made durable; a full file system looks like the end of the
medium; a directory that is not there, or whose drive is not mounted, is never made; no medium comes into being by
loading it. A medium whose own file was lost or emptied by a power cut (FAT) has the files that are there from 0 on; one
whose last files were lost ends before them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from archiver.core import linux
from archiver.core.disk import Disk, NewFile, available, explained, is_full
from archiver.core.locks import DirectoryLock, FileLock
from archiver.errors import ArchiverError, NotFound, TargetAbsent, UsageError
from archiver.tape.drive.interface import (
    DriveStatus,
    EndOfData,
    FileReader,
    FileWriter,
    MediumFull,
    NoMedium,
    WriteProtected,
)
from archiver.tape.drive.virtual_file import RESERVE_BLOCKS, FileOnDisk, NewFileOnDisk
from archiver.tape.drive.virtual_place import (
    FILE,
    FILE_MODE,
    STATUS,
    check_there,
    encoded,
    failed,
    identity,
    labels_in,
    lock_drive,
    read_object,
)
from formats.naming import check_media_name
from formats.tape.blocks import BLOCK_SIZE

_DIRECTORY_MODE = 0o755
_WAIT_SECONDS = 10.0  # for another who has the drive
_LEAST_BLOCKS = 2  # of a file, on however full a medium
_LARGEST_RESERVE = 64 << 20  # bytes that are left free of a file system, for what follows the early warning
_FAT_FILE = ((4 << 30) - 1) // BLOCK_SIZE * BLOCK_SIZE
_UNSYNCED_AT_MOST = 64  # files


class VirtualDrive:
    """A drive of the interface. It holds the directory ``path`` alone from its making until ``close``.

    ``max_size``: bytes that a medium holds, None for what the file system holds. ``mount``: the mount point that has
    to be one for ``path`` to be there.
    """

    can_encrypt = False

    def __init__(
        self,
        name: str,
        path: str,
        *,
        max_size: int | None = None,
        mount: str | None = None,
        new: bool = False,
        wait_seconds: float = _WAIT_SECONDS,
        disk: Disk | None = None,
    ) -> None:
        """``new``: make the directory where its parent is there. Raises TargetAbsent, Locked, ArchiverError."""
        self._name = name
        self.path = path
        self.max_size = max_size
        self._mount = mount
        self._wait_seconds = wait_seconds
        self._disk = disk or Disk()
        self._unsynced: list[tuple[NewFile, str]] = []
        self._changed = False
        self._lock: FileLock | DirectoryLock | None = None
        self._identity: tuple[int, int] | None = None  # of the directory that is locked
        self._label: str | None = None
        self._position = 0
        check_there(path, mount, new=new)
        if new and not os.path.isdir(path):
            with explained("make", path):
                self._disk.make_directories(path, _DIRECTORY_MODE)
        self._take(new=new)

    def _take(self, *, new: bool = False) -> None:
        """Have the directory alone. Raises TargetAbsent, Locked, ArchiverError."""
        check_there(self.path, self._mount, new=new)
        lock = lock_drive(self._name, self.path, self._wait_seconds)
        try:
            with explained("look into", self.path):
                self._is_fat = linux.filesystem_type(lock.fd) == linux.MSDOS
            self._identity = identity(self.path)
            self._label, self._position = self._loaded()
        except BaseException:
            lock.close()
            raise
        self._lock = lock

    def _check_same(self) -> None:
        """What is at ``path`` is still what was locked: its disk was not taken away meanwhile, which would leave the
        bare mount point, or another disk, there. Raises TargetAbsent."""
        if self._lock is None or identity(self.path) != self._identity:
            raise TargetAbsent(
                f"the disk with {self.path} was taken away while the drive {self._name} was in use",
                hint="plug in and mount it, and run this again",
            )

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Nothing of the directory is held meanwhile, so that its disk can be taken away and another one come. Where
        none is there afterwards, the next ``load`` looks again."""
        self.flush()
        if self._lock is not None:
            self._lock.close()
        self._lock, self._label = None, None
        try:
            yield
        finally:
            with suppress(TargetAbsent):
                self._take()

    @property
    def name(self) -> str:
        return self._name

    @property
    def largest_file(self) -> int | None:
        return _FAT_FILE if self._is_fat else None

    # -- what is in the directory ------------------------------------------------------------------------------------

    @property
    def label(self) -> str | None:
        """Text of the medium in the drive, as its files are called."""
        return self._label

    def labels(self) -> list[str]:
        """The media in the directory, sorted. Raises TargetAbsent."""
        if self._lock is None:
            self._take()
        self._check_same()
        return labels_in(self.path)

    def load(self, label: str) -> None:
        """Put that medium in, rewound. Raises NotFound when it is not in the directory."""
        if label not in self.labels():
            raise NotFound(f"there is no medium {label} in {self.path}", hint="see: archiver tape inventory")
        self._set(label, 0)

    def add(self, label: str) -> None:
        """Make a new, empty medium and put it in. Raises WriteProtected, UsageError where one has that name."""
        check_media_name("label text", label)
        self._check_writable()
        path = self._tape_path(label)
        with explained("make", path):
            if label in self.labels() or os.path.lexists(path):
                raise UsageError(f"there is a medium {label} in {self.path} already", hint="choose another label text")
            self._put_files(label, 0)
        self._set(label, 0)

    def _tape_path(self, label: str) -> str:
        return os.path.join(self.path, f"tape-{label}.json")

    def _file_path(self, number: int) -> str:
        return os.path.join(self.path, f"tapefile-{number}-{self._label}.json")

    def _set(self, label: str | None, position: int) -> None:
        self._label, self._position = label, position
        if self.write_protected or identity(self.path) != self._identity:
            return  # then only this process knows
        current = None if label is None else {"name": label, "pos": position}
        path = os.path.join(self.path, STATUS)
        with suppress(OSError):  # a full disk; it is where the drive stood, no fact of a medium
            self._disk.put(path, [encoded({"current_tape": current})], FILE_MODE, sync=False)

    def _loaded(self) -> tuple[str | None, int]:
        document = read_object(os.path.join(self.path, STATUS))
        current = None if document is None else document.get("current_tape")
        if not isinstance(current, dict):
            return None, 0
        label, position = current.get("name"), current.get("pos")
        if not isinstance(label, str) or label not in labels_in(self.path):
            return None, 0
        return label, position if isinstance(position, int) and position >= 0 else 0

    def _numbers(self) -> set[int]:
        """Of the files of the loaded medium that are there, whether they belong to it or were left over."""
        with explained("read", self.path):
            matches = (FILE.fullmatch(name) for name in os.listdir(self.path))
            return {int(match[1]) for match in matches if match is not None and match[2] == self._label}

    def _count(self) -> int:
        """How many files the loaded medium has."""
        if self._label is None:
            raise NoMedium(f"there is no medium in the drive {self._name}", hint="see: archiver tape inventory")
        self._check_same()
        document = read_object(self._tape_path(self._label))
        count = None if document is None else document.get("files")
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 10**9:
            numbers = self._numbers()
            return next(number for number in range(len(numbers) + 1) if number not in numbers)
        if not count or os.path.lexists(self._file_path(count - 1)):
            return count
        return max((number for number in self._numbers() if number < count), default=-1) + 1

    def _put_files(self, label: str, count: int) -> None:
        """Durable: on a file system without a journal an emptied file would be a medium without contents."""
        self._check_same()
        self._disk.put(self._tape_path(label), [encoded({"files": count})], FILE_MODE, sync=True)

    def _sizes(self, below: int) -> int:
        total = 0
        for number in self._numbers():
            if number < below:
                with suppress(OSError):
                    total += os.lstat(self._file_path(number)).st_size
        return total

    # -- the interface -----------------------------------------------------------------------------------------------

    @property
    def write_protected(self) -> bool:
        """A directory without write permission for anybody, or on a read-only file system."""
        try:
            is_off = not os.stat(self.path).st_mode & 0o222
            return is_off or bool(os.statvfs(self.path).f_flag & os.ST_RDONLY) or not os.access(self.path, os.W_OK)
        except OSError:
            return True

    def _check_writable(self) -> None:
        if self.write_protected:
            raise WriteProtected(
                f"the directory {self.path} of the drive {self._name} is write-protected",
                hint="mount it for writing, or give it back its write permission",
            )

    def status(self) -> DriveStatus:
        used = None
        position = None
        if self._label is not None:
            position, used = self._position, self._sizes(self._count())
        capacity = self.max_size
        if capacity is None and used is not None:
            with explained("look into", self.path):
                capacity = used + available(self.path)
        return DriveStatus(
            self._label is not None, self.write_protected, position, used, capacity, f"directory {self.path}"
        )

    def complaint(self) -> str | None:
        """Nothing watches over a directory."""
        return None

    def wait_until_ready(self, seconds: float) -> bool:
        """Nobody else can put a medium in while this one has the directory."""
        return self._label is not None

    def rewind(self) -> None:
        self.locate(0)

    def locate(self, file: int) -> None:
        count = self._count()
        if file > count:
            raise EndOfData(f"medium {self._label} has no file {file}, its data ends behind {count} files")
        if file != self._position:
            self._set(self._label, file)

    def locate_end(self) -> int:
        count = self._count()
        if count != self._position:
            self._set(self._label, count)
        return count

    def open_file(self) -> FileReader:
        count = self._count()
        if self._position >= count:
            raise EndOfData(f"medium {self._label} has no file {self._position}, its data ends behind {count} files")
        number = self._position
        reader = FileOnDisk(self._file_path(number), f"file {number} of medium {self._label}", self._check_same)
        self._set(self._label, number + 1)
        return reader

    def create_file(self) -> FileWriter:
        count = self._count()
        self._check_writable()
        number, label = self._position, self._label
        assert label is not None
        if number > count:
            raise EndOfData(f"medium {label} has no file {number}, its data ends behind {count} files")
        path = self._file_path(number)
        try:
            with explained("write", path):
                self._drop_files(label, number, count)
                limit = self._limit(number)
                file = self._disk.create(path, FILE_MODE)
        except ArchiverError as error:
            if is_full(error):
                raise MediumFull(f"there is no room for file {number} on medium {label}") from error
            raise
        self._remember(file, path)
        try:
            with explained("write", path):
                self._put_files(label, number + 1)
        except ArchiverError as error:
            if is_full(error):
                raise MediumFull(f"there is no room for file {number} on medium {label}") from error
            raise
        self._set(label, number + 1)
        what = f"file {number} of medium {label}"
        return NewFileOnDisk(file, self.path, what, limit, self._reserve(), self._check_same)

    def _drop_files(self, label: str, number: int, count: int) -> None:
        """Remove the files from ``number`` on; the medium says first that it has fewer."""
        if number < count:
            self._put_files(label, number)
        gone = {self._file_path(each) for each in self._numbers() if each >= number}
        for file, path in [*self._unsynced]:
            if path in gone:
                file.close()
                self._unsynced.remove((file, path))
        for path in gone:
            self._disk.remove_file(path)

    def _limit(self, number: int) -> int | None:
        """Blocks of the file ``number`` that come before the early warning; None when nothing is agreed."""
        if self.max_size is None:
            return None
        return max(_LEAST_BLOCKS, max(0, self.max_size - self._sizes(number)) // BLOCK_SIZE)

    def _reserve(self) -> int:
        space = os.statvfs(self.path)
        share = min(_LARGEST_RESERVE, space.f_blocks * space.f_frsize // 100)
        return max(share, 2 * RESERVE_BLOCKS * BLOCK_SIZE)

    def _remember(self, file: NewFile, path: str) -> None:
        self._changed = True
        if len(self._unsynced) >= _UNSYNCED_AT_MOST:
            self._sync(*self._unsynced.pop(0))
        self._unsynced.append((file, path))

    def _sync(self, file: NewFile, path: str) -> None:
        try:
            file.sync()
        except OSError as error:
            self._check_same()
            raise failed(self.path, f"{path} cannot be written", error) from error
        finally:
            file.close()

    def flush(self) -> None:
        if not self._changed:
            return
        while self._unsynced:
            self._sync(*self._unsynced.pop(0))
        with explained("write", self.path):
            self._disk.sync_directory(self.path)
        self._check_same()
        self._changed = False

    def format(self, *, fast: bool) -> None:
        self._count()
        self._check_writable()
        label = self._label
        assert label is not None
        with explained("erase", self._tape_path(label)):
            self._put_files(label, 0)
            self._drop_files(label, 0, 0)
            self._disk.sync_directory(self.path)
        self._check_same()
        self._set(label, 0)

    def eject(self) -> None:
        self._count()
        self.flush()
        self._set(None, 0)

    def set_key(self, key: bytes | None) -> None:
        if key is not None:
            raise ArchiverError(
                f"the drive {self._name} cannot encrypt",
                hint="a virtual tape has no hardware for it: encrypt the backups themselves",
            )

    def close(self) -> None:
        for file, _ in self._unsynced:
            file.close()
        self._unsynced.clear()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
