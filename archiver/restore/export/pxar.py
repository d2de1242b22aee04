"""Archives of version 1, one stream (spec pxar.md 4-9): what the pxar tools of PBS read."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable

from archiver.restore.export.members import Member
from formats.errors import FormatError
from formats.pxar.encoder import Encoder
from formats.wire import Buffer


class PxarWriter:
    """Writes through ``write``: the root first, ``leave`` behind the last entry of each directory."""

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write
        self._encoder = Encoder(write)
        self._before = array("Q")  # positions of the files in the archive that is read, and where they are here
        self._here = array("Q")

    def add(self, member: Member, below: bytes) -> list[str]:
        """Nothing is lost."""
        entry, encoder = member.entry, self._encoder
        metadata, name = entry.metadata, entry.name
        if metadata is None:
            encoder.add_hardlink(name, entry.target, self._position(entry.link_target))
            return []
        match entry.kind:
            case "dir" if not name:
                encoder.start_root(metadata)
                return []
            case "dir":
                encoder.start_directory(name, metadata)
                return []
            case "file":
                position = encoder.start_file(name, metadata, entry.size)
                for piece in member.contents():
                    self._write(piece)
                    encoder.advance(len(piece))
            case "symlink":
                position = encoder.add_symlink(name, metadata, entry.target)
            case "char" | "block":
                position = encoder.add_device(name, metadata, entry.major, entry.minor)
            case _:
                position = encoder.add_special(name, metadata)
        self._before.append(entry.filename_offset)
        self._here.append(position)
        return []

    def _position(self, before: int) -> int:
        place = bisect_left(self._before, before)
        if place == len(self._before) or self._before[place] != before:
            raise FormatError("a hard link leads to something that was not written", offset=before)
        return self._here[place]

    def leave(self) -> None:
        self._encoder.end_directory()

    def finish(self) -> None:
        self._encoder.finish()
