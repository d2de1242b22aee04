"""Reading a medium file by file (spec tape.md 2.2, 2.10, 4.3): what each file is, and whether it is whole.

A file that was cut while it was written is no error here: its reader is told when its stream has ended. What cannot be
read is :class:`FileDamaged`, and the next file can be gone on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archiver.errors import Damaged
from archiver.tape.drive.interface import Drive, EndOfData, MediumError
from formats.errors import FormatError
from formats.tape.blocks import BLOCK_SIZE, BlockReader
from formats.tape.content import Content, read_content
from formats.wire import Buffer

FIRST_ARCHIVE = 2
_HOPELESS = 100  # files in a row


class FileDamaged(Damaged):
    """One file of a medium cannot be read to its end; ``file`` says which, ``reason`` why."""

    code = "medium-file-damaged"

    def __init__(self, label: str, file: int, reason: str) -> None:
        super().__init__(f"file {file} of medium {label} cannot be read: {reason}")
        self.label, self.file, self.reason = label, file, reason


class MediumFile:
    """One file that is being read: ``content`` says what it is, behind its header begins ``stream``."""

    def __init__(self, number: int, content: Content | None, stream: BlockReader) -> None:
        self.number = number
        self.stream = stream
        self._content = content

    @property
    def is_empty(self) -> bool:
        """Two file marks with nothing between them."""
        return self._content is None

    @property
    def content(self) -> Content:
        assert self._content is not None
        return self._content

    @property
    def bytes_read(self) -> int:
        return self.stream.blocks * BLOCK_SIZE

    def is_whole(self) -> bool:
        """Whether its writer had come to its end. Passes over what has not been read."""
        while self.stream.skip(1 << 40):
            pass
        return self.stream.has_end_marker and not self.stream.incomplete


class _Blocks:
    """Data that end without a file mark (power failure) end like a file that was cut."""

    def __init__(self, read_block: Callable[[], Buffer | None]) -> None:
        self._read_block = read_block
        self.count = 0

    def __call__(self) -> Buffer | None:
        try:
            block = self._read_block()
        except EndOfData:
            return None
        self.count += block is not None
        return block


@contextmanager
def opened(drive: Drive, label: str, number: int) -> Iterator[MediumFile]:
    """The file ``number`` of the medium with that label text. Raises EndOfData behind the last one; inside, whatever
    is wrong with the file becomes FileDamaged."""
    drive.locate(number)
    with damage_told(label, number), drive.open_file() as reader:
        blocks = _Blocks(reader.read_block)
        stream = BlockReader(blocks)
        try:
            content = read_content(stream.read)
        except FormatError:
            if blocks.count:
                raise
            content = None
        yield MediumFile(number, content, stream)


@contextmanager
def damage_told(label: str, number: int) -> Iterator[None]:
    """What is wrong with a file is raised as FileDamaged."""
    try:
        yield
    except (FormatError, MediumError) as error:
        reason = str(error).removeprefix(f"file {number} of medium {label} cannot be read: ")
        raise FileDamaged(label, number, reason) from error


def visit_files(
    drive: Drive,
    label: str,
    first: int,
    visit: Callable[[MediumFile], None],
    damaged: Callable[[FileDamaged], None],
) -> int:
    """Have ``visit`` look at every file from ``first`` to the end of the data, and tell ``damaged`` of those that
    cannot be read; how many files the medium has. Raises Damaged where that is hopeless."""
    number, patience = first, Patience(label)
    while True:
        try:
            with opened(drive, label, number) as file:
                visit(file)
            patience.renew()
        except EndOfData:
            return number
        except FileDamaged as error:
            damaged(error)
            patience.lose(number)
        number += 1


class Patience:
    """What says that it has a thousand million files is not tried file by file."""

    def __init__(self, label: str) -> None:
        self._label, self._lost = label, 0

    def renew(self) -> None:
        self._lost = 0

    def lose(self, number: int) -> None:
        """One more file that cannot be read. Raises Damaged."""
        self._lost += 1
        if self._lost >= _HOPELESS:
            raise Damaged(f"no file of medium {self._label} from {number - _HOPELESS + 1} to {number} can be read")
