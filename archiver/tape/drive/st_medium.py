"""A medium in an open tape node: where it is, moving it, and what the driver's answers mean (spec tape.md 4.7)."""

from __future__ import annotations

import errno
from contextlib import suppress

from archiver.errors import ArchiverError, TargetAbsent
from archiver.tape.drive import mtio
from archiver.tape.drive.interface import EndOfData, MediumError, MediumFull, NoMedium, WriteProtected
from archiver.tape.drive.mtio import TapeNode, TapeState
from formats.tape.blocks import BLOCK_SIZE

_PROTECTED = {errno.EACCES, errno.EROFS, errno.EPERM}
_GONE = {errno.ENODEV, errno.ENXIO}
_REFUSED = {errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP}


_FAR = 0x7FFFFF  # files that the driver asks for to go to the end, and its number for the end if no drive counts


class StMedium:
    """Made for each opening of the node. ``drive``: its name, for messages.

    ``file``: at whose start the medium is; None: somewhere else, or not known. ``warned``: the file in which the end of
    the medium came near.
    """

    def __init__(self, drive: str, node: TapeNode) -> None:
        self.drive = drive
        self.node = node
        self.file: int | None = None
        self.warned: int | None = None
        self._marks_at_once = True

    def begin(self) -> None:
        """After an opening: variable blocks, no options in our way, and a position that is known. Raises NoMedium."""
        if not self.is_ready():
            raise NoMedium(f"there is no medium in drive {self.drive}")
        with suppress(OSError):  # only root may
            unwanted = mtio.TWO_MARKS | mtio.FAST_END | mtio.SYSTEM_V
            self.node.operate(mtio.SET_OPTIONS, mtio.CLEAR_OPTIONS | unwanted)
        self.rewind()
        if self.state().block_size != 0:
            self._do(mtio.SET_BLOCK_SIZE, 0, "take blocks of any size")

    def state(self) -> TapeState:
        try:
            return self.node.state()
        except OSError as error:
            raise self.failed(error, "tell where it is") from error

    def is_ready(self) -> bool:
        return self.node.is_open and self.state().has(mtio.ONLINE)

    def is_protected(self) -> bool:
        return self.node.is_read_only or self.state().has(mtio.PROTECTED)

    def check_writable(self) -> None:
        if self.is_protected():
            raise self._protected()

    def start_of_file(self) -> int:
        if self.file is None:
            raise MediumError(f"drive {self.drive} is not at the start of a file")
        return self.file

    # -- moving ------------------------------------------------------------------------------------------------------

    def rewind(self) -> None:
        self.file = None
        self._do(mtio.REWIND, 1, "rewind the medium")
        self.file = 0

    def locate(self, file: int) -> None:
        if self.file == file:
            return
        state = self.state()
        self.file = None
        # after a move that failed the driver has a file number that is none, but no block number
        if file > 0 and state.file is not None and state.block is not None and self._move(state.file, file):
            return
        self.rewind()
        if file == 0 or self._move(0, file):
            return
        files, _ = self._find_end()
        if files >= file:
            raise MediumError(f"drive {self.drive} cannot find file {file} of {files}")
        raise EndOfData(f"the medium in drive {self.drive} has no file {file}")

    def locate_end(self) -> int:
        """How many files there are. The last one gets its file mark if that is missing."""
        files, is_cut = self._find_end()
        if is_cut:
            self._do(mtio.TO_END, 1, "find the end of the data")
            if self.is_protected():
                return files + 1
            self.mark()
            files += 1
            if not self._is_at(files):
                return self._find_end()[0]
            self.file = files
        return files

    def _find_end(self) -> tuple[int, bool]:
        """How many file marks there are, and whether there is data behind the last one. If not, the position is there.

        What is behind it is read, since not every drive can go back by one record and say whether it met a mark. A
        drive that does not tell how far it went (emulated ones) has the whole medium read: nor does it pass over marks
        as it should.
        """
        self.file = None
        refused: OSError | None = None
        try:
            self.node.operate(mtio.TO_END)
        except OSError as error:  # a blank medium may refuse; what is found below decides
            refused = error
        files = self.state().file
        counts = files is None or files < _FAR
        if files is None or (0 < files < _FAR and not self._move(files, files)):
            files = self._count_marks()
        elif files == 0 or files >= _FAR:
            files = 0
            self.rewind()
        buffer, is_cut = memoryview(bytearray(BLOCK_SIZE)), False
        try:
            while not (is_cut and counts):
                if self.read(buffer, files, first=not is_cut) is None:
                    files, is_cut = files + 1, False
                else:
                    is_cut = True
        except EndOfData:
            return files, is_cut
        if refused is not None:
            raise self.failed(refused, "find the end of the data")
        return files, is_cut

    def _move(self, here: int, file: int) -> bool:
        """From a known file to the start of another, or of the same; False when the medium came out elsewhere."""
        try:
            if file > here:
                self.node.operate(mtio.FORWARD_FILES, file - here)
            else:
                self.node.operate(mtio.BACK_FILES_BEHIND, here - file + 1)
        except OSError as error:
            if error.errno == errno.ENOMEDIUM:
                raise self.failed(error, f"find file {file}") from error
            return False
        if not self._is_at(file):
            return False
        self.file = file
        return True

    def _is_at(self, file: int) -> bool:
        state = self.state()
        return state.file == file and state.block == 0 and not state.has(mtio.AT_DATA_END)

    def _count_marks(self) -> int:
        """Where going to the end at once leaves no number. The position is behind the last mark."""
        self.rewind()
        files = 0
        while self._move(files, files + 1):
            files += 1
            if files == _FAR:
                raise MediumError(f"drive {self.drive} does not find the end of the data")
        self.rewind()
        if files > 0 and not self._move(0, files):
            raise MediumError(f"drive {self.drive} does not find file {files} again")
        return files

    def _is_blank(self) -> bool:
        """Whether the whole medium holds nothing. The position is lost."""
        try:
            self.node.operate(mtio.REWIND)
        except OSError:
            return False
        with suppress(OSError):  # some refuse to go to an end that is the start
            self.node.operate(mtio.TO_END)
        return self.state().file == 0 and self.node.position() in (0, None)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, buffer: memoryview, file: int, *, first: bool) -> int | None:
        """The length of the next record of ``file``; None at the file mark, and then the position is the next file.

        Raises EndOfData, MediumError.
        """
        self.file = None
        try:
            length = self.node.read(buffer)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MediumError(
                    f"the medium in drive {self.drive} holds a record of more than {BLOCK_SIZE} bytes in file {file}:"
                    " another program wrote it"
                ) from error
            if self.state().has(mtio.AT_DATA_END):
                raise self._no_more(file, first) from error
            if first and file == 0 and error.errno == errno.EIO and self._is_blank():
                raise self._no_more(file, first) from error
            raise self.failed(error, f"read file {file}") from error
        state = self.state()
        if state.has(mtio.AT_DATA_END):  # whatever came is no record
            raise self._no_more(file, first)
        if length == 0:
            if state.file is None or state.file > file:
                self.file = file + 1
                return None
            raise self._no_more(file, first)
        if state.has(mtio.AT_MEDIUM_END) and buffer[:length] == bytes(length):  # nor is this, after no file mark
            raise self._no_more(file, first)
        return length

    def mark(self) -> None:
        """A file mark, that the drive may still hold in memory when this returns."""
        before = self.state().file
        if self._marks_at_once:
            try:
                self.node.operate(mtio.WRITE_MARKS_AT_ONCE)
                return
            except OSError as error:
                is_unknown = error.errno in _REFUSED or (
                    error.errno == errno.EIO and before is not None and self.state().file == before
                )
                if not is_unknown:
                    raise self.failed(error, "write a file mark") from error
                self._marks_at_once = False
        self._do(mtio.WRITE_MARKS, 1, "write a file mark")

    def flush(self) -> None:
        self._do(mtio.WRITE_MARKS, 0, "write all that it holds")

    def erase(self, *, fast: bool) -> None:
        self.rewind()
        self.file = None
        try:
            self.node.operate(mtio.ERASE, 0 if fast else 1)
        except OSError as error:
            if error.errno in _PROTECTED:
                raise self._protected() from error
            self.rewind()
            self.mark()
        self.rewind()

    def unload(self) -> None:
        self.file = None
        self._do(mtio.UNLOAD, 1, "eject the medium")

    # -- errors ------------------------------------------------------------------------------------------------------

    def failed(self, error: OSError, what: str) -> ArchiverError:
        if error.errno == errno.ENOMEDIUM:
            return NoMedium(f"there is no medium in drive {self.drive}")
        if error.errno in _GONE:
            return TargetAbsent(f"drive {self.drive} is not there any more", hint="is it switched on?")
        if error.errno in _PROTECTED:
            return self._protected()
        if error.errno == errno.ENOSPC:
            return MediumFull(f"the medium in drive {self.drive} is full")
        return MediumError(f"drive {self.drive} cannot {what}: {error.strerror}")

    def _do(self, operation: int, count: int, what: str) -> None:
        try:
            self.node.operate(operation, count)
        except OSError as error:
            raise self.failed(error, what) from error

    def _protected(self) -> WriteProtected:
        return WriteProtected(
            f"the medium in drive {self.drive} is write-protected", hint="take it out and move the switch on it"
        )

    def _no_more(self, file: int, first: bool) -> EndOfData:
        if not first:
            return EndOfData(f"file {file} of the medium in drive {self.drive} ends without its file mark")
        # only a move makes the driver forget that it met the end, which it would tell of the next block written
        if file == 0:
            self.rewind()
        elif not self._move(file, file):
            self.file = None
        return EndOfData(f"the medium in drive {self.drive} has no file {file}")
