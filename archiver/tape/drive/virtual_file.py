"""The files of virtual tapes while they are read and written.

An error of a disk that was taken away meanwhile is its absence, and no damage: ``check_there`` raises that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from archiver.core.disk import NewFile, available, is_full
from archiver.errors import ArchiverError
from archiver.tape.drive.interface import MediumFull
from archiver.tape.drive.virtual_place import failed
from formats.tape.blocks import BLOCK_SIZE
from formats.wire import Buffer

RESERVE_BLOCKS = 2  # behind the early warning
_WRITE_BACK_BLOCKS = 32


class FileOnDisk:
    def __init__(self, path: str, what: str, check_there: Callable[[], None]) -> None:
        self._what = what
        self._directory = os.path.dirname(path)
        self._check_there = check_there
        self._buffer = bytearray(BLOCK_SIZE)
        self._view = memoryview(self._buffer)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise OSError(errno.ELOOP, "not a regular file")
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ArchiverError:
        self._check_there()
        return failed(self._directory, f"{self._what} cannot be read", error)

    def read_block(self) -> Buffer | None:
        filled = 0
        try:
            while filled < BLOCK_SIZE:
                read = os.readv(self._fd, [self._view[filled:]])
                if not read:
                    break
                filled += read
        except OSError as error:
            raise self._failed(error) from error
        return self._view[:filled] if filled else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class NewFileOnDisk:
    """``limit``: blocks before the early warning; ``reserve``: bytes that are to stay free in the file system."""

    def __init__(
        self,
        file: NewFile,
        directory: str,
        what: str,
        limit: int | None,
        reserve: int,
        check_there: Callable[[], None],
    ) -> None:
        self._file = file
        self._check_there = check_there
        self._directory = directory
        self._what = what
        self._limit = limit
        self._reserve = reserve
        self._blocks = 0
        self._open = True

    def write(self, block: Buffer) -> bool:
        if len(block) != BLOCK_SIZE or not self._open:
            raise ValueError("one block of a file that is open")
        limit = self._limit
        if limit is not None and self._blocks >= limit + RESERVE_BLOCKS:
            raise MediumFull(f"the medium is full: {self._what} does not fit")
        try:
            self._file.append(block)
            self._blocks += 1
            if self._blocks % _WRITE_BACK_BLOCKS == 0:
                self._file.write_back()
            return (limit is not None and self._blocks > limit) or available(self._directory) < self._reserve
        except OSError as error:
            self._check_there()
            with suppress(OSError):
                self._file.cut(self._blocks * BLOCK_SIZE)
            if is_full(error):
                raise MediumFull(f"the file system of {self._directory} is full: {self._what} does not fit") from error
            raise failed(self._directory, f"{self._what} cannot be written", error) from error

    def finish(self) -> None:
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
