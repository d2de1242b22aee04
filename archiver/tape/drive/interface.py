"""The one interface of all drives (spec tape.md 2.9, 3, 4). Positions are file numbers: of file marks before it.

A drive is open, and locked against other processes, from its making until ``close``. Nothing here knows what blocks
hold: ``formats.tape`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from archiver.errors import ArchiverError, Damaged, TargetAbsent
from formats.wire import Buffer


class NoMedium(TargetAbsent):
    """The drive is empty."""

    code = "no-medium"


class WriteProtected(ArchiverError):
    """The medium's switch, or its directory, forbids writing. Nothing was written."""

    code = "write-protected"


class MediumFull(ArchiverError):
    """The physical end: the block was not written. The file is cut; the caller closes it and goes on elsewhere."""

    code = "medium-full"


class MediumError(Damaged):
    """The drive could not read or write a block."""

    code = "medium-error"


class EndOfData(ArchiverError):
    """There is no file at this position: the recorded data ends here."""

    code = "end-of-data"


@dataclass(frozen=True, slots=True)
class DriveStatus:
    """``file`` is None where the drive does not know it. ``bytes_used`` and ``capacity`` are None where unknown."""

    loaded: bool
    write_protected: bool
    file: int | None
    bytes_used: int | None
    capacity: int | None
    description: str


class FileWriter(Protocol):
    """One file being written. Left without ``finish``, it still gets its file mark, and readers see that it was cut."""

    def write(self, block: Buffer) -> bool:
        """One block of ``formats.tape.blocks.BLOCK_SIZE`` bytes; True once the end of the medium is near (LEOM: the
        block was written). Raises MediumFull, WriteProtected, MediumError."""
        ...

    def finish(self) -> None:
        """Write the file mark. Durable only after ``Drive.flush``."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileReader(Protocol):
    """One file being read."""

    def read_block(self) -> Buffer | None:
        """The next record, whatever its length, valid until the next one is read; None at the file mark: it stays
        valid then. Raises MediumError, and EndOfData where the data ends without a file mark (power failure)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Drive(Protocol):
    """Any call but ``load``, ``status`` and ``close`` raises NoMedium when the drive is empty."""

    @property
    def name(self) -> str: ...

    @property
    def largest_file(self) -> int | None:
        """Bytes of the largest file that the medium can hold, whole blocks (FAT: just under 4 GiB); None where nothing
        but its capacity limits it. A writer closes an archive before."""
        ...

    @property
    def can_encrypt(self) -> bool:
        """Whether ``set_key`` works: the hardware encrypts."""
        ...

    def status(self) -> DriveStatus: ...

    def complaint(self) -> str | None:
        """Why the drive says that its medium, or itself, is not to be written with; None when it says nothing."""
        ...

    def wait_until_ready(self, seconds: float) -> bool:
        """Whether a medium is ready to be read, waited for at most ``seconds``."""
        ...

    def rewind(self) -> None: ...

    def locate(self, file: int) -> None:
        """To the start of ``file``, without moving when that is the position already. Raises EndOfData behind the last
        file."""
        ...

    def locate_end(self) -> int:
        """Behind the last file, whose file mark is written when a power failure kept it away; how many files there
        are."""
        ...

    def open_file(self) -> FileReader:
        """The file at this position. Raises EndOfData. When it was read to its file mark, the position is the next
        file; else call ``locate``."""
        ...

    def create_file(self) -> FileWriter:
        """A new file at this position: whatever was there and behind it is gone. Raises WriteProtected before it
        changes anything."""
        ...

    def flush(self) -> None:
        """What was written is durable when this returns."""
        ...

    def format(self, *, fast: bool) -> None:
        """Erase the medium: it holds no file afterwards."""
        ...

    def eject(self) -> None: ...

    def set_key(self, key: bytes | None) -> None:
        """The drive's AES-256 key, 32 bytes (spec tape.md 4.5), or none. Raises ArchiverError where it cannot."""
        ...

    def close(self) -> None: ...


class Changer(Protocol):
    """Brings media into a drive: a robot, a virtual drive's directory, or a person who is asked."""

    @property
    def name(self) -> str: ...

    def online(self) -> list[str] | None:
        """Labels that can be loaded without a person, sorted; None where that cannot be known (a person changes)."""
        ...

    def load(self, label: str) -> None:
        """Raises NotFound when it is not online."""
        ...

    def unload(self) -> None: ...

    def export(self, label: str) -> None:
        """To an import-export slot; with a person, eject."""
        ...
