"""Reading a medium file by file (spec tape.md 2.2, 2.10, 4.3): what each file is, and whether it is whole.

A file that was cut while it was written is no error here: its reader is told when its stream has ended. What cannot be
read is :class:`FileDamaged`, and the next file can be gone on with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archiver.errors import Damaged
from archiver.tape.drive.interface import Drive, EndOfData, FileReader, MediumError
from archiver.tape.state.catalog_log import mapped
from formats.errors import FormatError
from formats.tape.blocks import BLOCK_SIZE, BlockReader
from formats.tape.catalog import MediaCatalog, decode_catalog
from formats.tape.chunk_archive import StoredChunk, read_chunks
from formats.tape.content import Content, read_content
from formats.wire import Buffer

FIRST_ARCHIVE = 2
_HOPELESS = 100  # files in a row

_LARGEST_CATALOG = 1 << 31  # bytes: 65 million chunks
_PIECE = 1 << 20


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


def read_catalog(file: MediumFile) -> tuple[memoryview, MediaCatalog] | None:
    """The log in a catalog archive, and what it says; None where it was not written to its end. Raises FormatError for
    one that is cut, or is not the one of its header."""
    with tempfile.TemporaryFile(prefix="archiver-") as spool:
        left = _LARGEST_CATALOG
        while left and (piece := file.stream.read(min(left, _PIECE))):
            left -= spool.write(piece)
        if not file.is_whole():
            return None
        data = mapped(spool)
    catalog = decode_catalog(data)
    said = file.content.uuid_of("uuid"), file.content.uuid_of("media_set_uuid"), file.content.number("seq_nr")
    if catalog.torn is not None or (catalog.media, catalog.media_set, catalog.seq_nr) != said:
        raise FormatError("a catalog that is not the one of its header", got=catalog.torn)
    return data, catalog


@contextmanager
def opened(drive: Drive, label: str, number: int) -> Iterator[MediumFile]:
    """The file ``number`` of the medium with that label text. Raises EndOfData behind the last one; inside, whatever
    is wrong with the file becomes FileDamaged."""
    drive.locate(number)
    with damage_told(label, number), drive.open_file() as reader:
        stream = BlockReader(lambda: _next_block(reader))
        is_empty = stream.at_end() and not stream.blocks
        yield MediumFile(number, None if is_empty else read_content(stream.read), stream)


def _next_block(reader: FileReader) -> Buffer | None:
    """Data that end without a file mark (power failure) end like a file that was cut."""
    try:
        return reader.read_block()
    except EndOfData:
        return None


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


def only(file: MediumFile, wanted: set[bytes]) -> Iterator[StoredChunk]:
    """Those chunks of a chunk archive; it is read no further than to the last of them. Raises FormatError at its end
    where some are not in it."""
    left = set(wanted)
    for chunk in read_chunks(file.stream):
        if chunk.digest in left:
            yield chunk
            left.discard(chunk.digest)
            if not left:
                return
    if left:
        raise FormatError(f"{len(left)} chunks that its catalog knows are not in it")


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
