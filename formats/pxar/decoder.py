"""Reads an archive from its start to its end (spec pxar.md 10.1, 10.4).

    archive stream   [FORMAT_VERSION [PRELUDE]] root, then for each directory { FILENAME entry }* GOODBYE
    payload stream   PAYLOAD_START_MARKER { PAYLOAD | padding }*           version 2, read where contents are asked for

Besides what the items themselves must look like (items.py) this is checked: references into the payload stream grow and
do not overlap; each goodbye table says exactly what was read, hashes, positions and sizes; no directory has a name
twice. The last two are known only when a directory ends, so a consumer must not rely on them before LEAVE. What follows
the root's goodbye table is not looked at.

The archive stream is read ahead in blocks; a usual file takes two unpack calls.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import Enum
from typing import Final, Protocol

from siphashc import siphash

from formats.errors import FormatError
from formats.pxar import constants as c
from formats.pxar import goodbye
from formats.pxar.items import (
    AHEAD,
    Entry,
    Window,
    check_payload_header,
    read_child,
    read_preamble,
    read_root,
    usual_child,
)

_BLOCK = 256 << 10  # read ahead
_SMALL_READ = 64 << 10  # contents up to this size are fetched together with their header


class Input(Protocol):
    """A stream that is read once, forwards."""

    def read(self, length: int, /) -> bytes:
        """The next ``length`` bytes; fewer only at the end of the stream."""

    def skip(self, length: int, /) -> None:
        """Pass over ``length`` bytes, any number below 2^64; beyond the end, the next ``read`` gives nothing."""


class LeaveDirectory(Enum):
    """The event behind the last entry of a directory; its only value is LEAVE."""

    LEAVE = 0


LEAVE: Final = LeaveDirectory.LEAVE


class _Ahead(Window):
    """The archive stream, read ahead; goes forwards only."""

    __slots__ = ("_input",)

    def __init__(self, source: Input) -> None:
        super().__init__()
        self._input = source

    def fill(self, position: int, length: int) -> None:
        kept = self.data[position - self.base :]
        end = self.base + len(self.data)
        if position > end:
            self._input.skip(position - end)
        self.base = position
        self.data = kept + self._input.read(max(_BLOCK, length - len(kept)))

    def read(self, position: int, length: int) -> bytes:
        """``length`` bytes of contents, fewer at the end of the stream; much of them at once is not copied again."""
        start = position - self.base
        piece = self.data[start : start + length]
        missing = length - len(piece)
        if not missing:
            return piece
        position += len(piece)
        if missing < _BLOCK:
            self.fill(position, missing)
            return piece + self.data[:missing]
        end = self.base + len(self.data)
        if position > end:
            self._input.skip(position - end)
        rest = self._input.read(missing)
        self.base = position + len(rest)
        self.data = b""
        return piece + rest if piece else rest


class Decoder:
    """Iterates over an archive: an Entry for each entry, the root first, and LEAVE at the end of each directory.

    Attributes: ``version`` (1 or 2), ``prelude`` (bytes or None), ``position`` (in the archive stream, behind the event
    yielded last: at LEAVE the end of the directory). ``payload`` may be left out: a version 2 archive can be listed by
    itself. FormatError comes from the constructor and from iterating; memory: 24 bytes for each child seen so far of
    each open directory.
    """

    def __init__(self, archive: Input, payload: Input | None = None) -> None:
        self._window = _Ahead(archive)
        self.version, self.prelude, start = read_preamble(self._window)
        root = read_root(self._window, start, self.version)
        self.position = root.entry_end
        self._payload = payload
        self._payload_position = 0
        if payload is not None:
            if self.version == 1:
                raise FormatError("archive with a payload stream", expected="version 2", got="version 1")
            self._read_payload_header(payload.read(c.HEADER_SIZE), c.PAYLOAD_START_MARKER, 0)
        self._file: Entry | None = None  # the current entry, if it has contents
        self._consumed = 0  # bytes of its contents
        self._opened: Entry | None = None  # the entry whose header in the payload stream was read last
        self._events = self._run(root)

    def __iter__(self) -> Iterator[Entry | LeaveDirectory]:
        return self._events

    def read_content(self, length: int) -> bytes:
        """The next ``length`` bytes of the current file, fewer only at its end.

        ValueError when the current entry is no file, or its contents are in a payload stream that was not given.
        """
        entry = self._file
        if entry is None:
            raise ValueError("the current entry has no contents")
        length = max(0, min(length, entry.size - self._consumed))
        if self.version == 1:
            piece = self._window.read(entry.content_offset + self._consumed, length)
        else:
            piece = self._read_payload(entry, length)
        if len(piece) != length:
            raise FormatError("contents of a file end early", offset=entry.content_offset, expected=entry.size)
        self._consumed += length
        return piece

    def _read_payload(self, entry: Entry, length: int) -> bytes:
        payload = self._payload
        if payload is None:
            raise ValueError("the contents are in a payload stream that was not given")
        if self._opened is entry:
            piece = payload.read(length) if length else b""
        else:
            self._opened = entry
            gap = entry.content_offset - c.HEADER_SIZE - self._payload_position
            if gap:
                payload.skip(gap)
                self._payload_position += gap
            together = length <= _SMALL_READ
            data = payload.read(c.HEADER_SIZE + length if together else c.HEADER_SIZE)
            self._read_payload_header(data[: c.HEADER_SIZE], c.PAYLOAD, entry.size)
            piece = data[c.HEADER_SIZE :] if together else payload.read(length)
        self._payload_position += len(piece)
        return piece

    def _read_payload_header(self, data: bytes, kind: int, size: int) -> None:
        """``data`` is what stands at the current position of the payload stream."""
        check_payload_header(data, kind, size, self._payload_position)
        self._payload_position += c.HEADER_SIZE

    def _run(self, root: Entry) -> Iterator[Entry | LeaveDirectory]:
        window, version = self._window, self.version
        outer: list[tuple[array[int], int, bytes, bool]] = []  # the directories around the innermost open one
        children, start, last, ascending = array("Q"), 0, b"", True  # the innermost; ``last``: name of its last child
        references_end = c.FIRST_PAYLOAD
        position, depth = self.position, 1
        yield root
        while True:
            if position - window.base + AHEAD > len(window.data):
                window.fill(position, AHEAD)
            entry = usual_child(window, position, depth, version)
            if entry is None:
                kind, length = window.header(position)
                if kind == c.GOODBYE:
                    position = self._leave(position, length, children, start, ascending)
                    self._file = None
                    yield LEAVE
                    if not outer:
                        return
                    children, start, last, ascending = outer.pop()
                    depth -= 1
                    continue
                entry = read_child(window, position, depth, version)
            name = entry.name
            extra = 0
            if entry.payload_offset is not None:
                if entry.payload_offset < references_end:
                    raise FormatError(
                        "payload reference overlaps an earlier one",
                        offset=position,
                        expected=f"at least {references_end}",
                        got=entry.payload_offset,
                    )
                extra = entry.size
                references_end = entry.content_offset + extra
            children.extend((siphash(goodbye.HASH_KEY, name), position, extra))
            ascending = ascending and name > last
            last = name
            self.position = position = entry.entry_end
            self._file = None
            if entry.kind == "file":
                self._file = entry
                self._consumed = 0
            elif entry.kind == "dir":
                outer.append((children, start, last, ascending))
                children, start, last, ascending = array("Q"), entry.entry_start, b"", True
                depth += 1
            yield entry

    def _leave(self, position: int, length: int, children: array[int], start: int, ascending: bool) -> int:
        """Check the GOODBYE item at ``position``; the position behind it."""
        expected = goodbye.table_size(len(children) // 3) - c.HEADER_SIZE
        table = self._window.fixed(position, c.GOODBYE, length, expected)
        goodbye.check(table, children, position, start, ascending=ascending)
        self.position = position + c.HEADER_SIZE + length
        return self.position
