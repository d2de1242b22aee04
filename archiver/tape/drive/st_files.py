"""One file of a medium in a real drive, read or written record by record (spec tape.md 4.7)."""

from __future__ import annotations

import errno
from contextlib import suppress
from types import TracebackType
from typing import Self

from archiver.errors import ArchiverError
from archiver.tape.drive import mtio
from archiver.tape.drive.interface import MediumError, MediumFull
from archiver.tape.drive.st_medium import StMedium
from formats.tape.blocks import BLOCK_SIZE
from formats.wire import Buffer


class StReader:
    """A file reader of the interface. Its first record is read at once: only that tells whether there is a file."""

    def __init__(self, medium: StMedium) -> None:
        """Raises EndOfData, MediumError."""
        self._medium = medium
        self._file = medium.start_of_file()
        # two in turn: the file mark is read while the last block is still looked at, and some drives send zeros with it
        self._buffer, self._other = (memoryview(bytearray(BLOCK_SIZE)) for _ in range(2))
        self._ahead: int | None = medium.read(self._buffer, self._file, first=True)
        self._is_ahead = True

    def read_block(self) -> Buffer | None:
        if self._is_ahead:
            length = self._ahead
            self._is_ahead = length is None  # the file mark is passed only once
        else:
            self._buffer, self._other = self._other, self._buffer
            length = self._medium.read(self._buffer, self._file, first=False)
            self._ahead, self._is_ahead = None, length is None
        return None if length is None else self._buffer[:length]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class StWriter:
    """A file writer of the interface."""

    def __init__(self, medium: StMedium) -> None:
        self._medium = medium
        self._file = medium.start_of_file()
        self._start = medium.node.position()
        self._start_block = medium.node.state().block
        self._written = 0
        self._near_end = False
        if medium.warned is not None and medium.warned >= self._file:
            medium.warned = None
        self._warned = medium.warned is not None
        self._full = False
        self._finished = False

    def write(self, block: Buffer) -> bool:
        self._medium.file = None
        for _ in range(2):  # what the driver refused since it told of the early warning before, it takes now
            if self._put(block):
                self._written += 1
                return self._near_end
        self._full = True
        raise MediumFull(f"the medium in drive {self._medium.drive} is full")

    def finish(self) -> None:
        self._finished = True
        self._medium.file = None
        try:
            self._medium.mark()
        except (MediumError, MediumFull) as error:
            if self._full:
                return  # the caller knows; nothing can be written here any more, not even a file mark
            if self._warned and isinstance(error, MediumError):
                raise MediumFull(f"the medium in drive {self._medium.drive} is full: no file mark fits") from error
            raise
        self._medium.file = self._file + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        if error is None:
            self.finish()
        else:
            with suppress(ArchiverError):
                self.finish()

    def _put(self, block: Buffer) -> bool:
        """Whether the block is on the medium now. False: it was refused, for the end is near."""
        try:
            length = self._medium.node.write(block)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise self._failed(error) from error
            return self._was_written_in_spite()
        if length != len(block):
            raise self._failed(OSError(errno.EIO, f"{length} of {len(block)} bytes were written"))
        try:
            if self._medium.node.state().has(mtio.AT_MEDIUM_END):
                self._warn()
        except OSError as error:  # asking has the driver wait for what it still writes
            if error.errno != errno.ENOSPC:
                raise self._failed(error) from error
            return self._was_written_in_spite()
        return True

    def _was_written_in_spite(self) -> bool:
        """ENOSPC says that the end is near; where the drive is now says whether the block was written before."""
        self._warn()
        # block 0 in a later file is no position: the drive does not tell
        if self._start is not None and (self._start > 0 or self._file == 0):
            moved = _moved(self._start + self._written, self._medium.node.position())
            if moved is not None:
                return moved
        if self._start_block is not None:
            moved = _moved(self._start_block + self._written, self._medium.node.state().block)
            if moved is not None:
                return moved
        self._full = True
        raise MediumFull(f"the medium in drive {self._medium.drive} is full, and its last block is not known")

    def _warn(self) -> None:
        self._near_end = self._warned = True
        if self._medium.warned is None:
            self._medium.warned = self._file

    def _failed(self, error: OSError) -> ArchiverError:
        """What fails behind the early warning fails for want of room."""
        failed = self._medium.failed(error, "write")
        if self._warned and isinstance(failed, MediumError):
            self._full = True
            return MediumFull(f"the medium in drive {self._medium.drive} is full")
        return failed


def _moved(before: int, now: int | None) -> bool | None:
    """Whether the drive is one block further; None when that is not what it counts."""
    return now == before + 1 if now in (before, before + 1) else None
