"""What is on a medium, file by file, whatever it is (spec tape.md 12, ``scan``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archiver.tape.drive.interface import Drive, EndOfData, MediumError
from archiver.tape.reading import Patience
from formats.errors import FormatError
from formats.tape.blocks import BLOCK_SIZE, BlockReader
from formats.tape.content import Content, read_content

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """``content`` None where it cannot be read; ``warnings`` say what is wrong."""

    number: int
    content: Content | None
    blocks: int
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.blocks * BLOCK_SIZE


def scan(drive: Drive) -> Iterator[ScannedFile]:
    """Every file of the medium in the drive, read to its end. Raises Damaged where that is hopeless."""
    number, patience = 0, Patience("in the drive")
    while True:
        try:
            drive.locate(number)
            with drive.open_file() as file:
                found = _scan(number, BlockReader(file.read_block))
            patience.renew()
        except EndOfData:
            return
        except MediumError as error:
            found = ScannedFile(number, None, 0, (str(error),))
            patience.lose(number)
        yield found
        number += 1


def _scan(number: int, stream: BlockReader) -> ScannedFile:
    content = None
    warnings = []
    try:
        if stream.at_end() and not stream.blocks:
            return ScannedFile(number, None, 0, ("there is nothing in it",))
        content = read_content(stream.read)
        while stream.skip(_PIECE):
            pass
    except (FormatError, MediumError) as error:
        warnings.append(str(error))
    except EndOfData:
        warnings.append("the data end without a file mark")
    if stream.incomplete:
        warnings.append("it is marked as incomplete")
    elif not warnings and not stream.has_end_marker:
        warnings.append("it has no end marker: its writing was interrupted")
    return ScannedFile(number, content, stream.blocks, tuple(warnings))
