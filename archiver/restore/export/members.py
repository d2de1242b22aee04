"""The entries of a tree one after the other, with their contents: what goes into a tar, zip or pxar file.

A small file is read whole before anything of it is written: when it is damaged it is left out and told, and so are its
further names. Of a large one the start is written by then, and half a file must not look like one: the export ends
there.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archiver.browse.ahead import AheadStream
from archiver.browse.snapshot import Tree
from archiver.core.events import FileProblem, Listener, Progress
from archiver.errors import Damaged
from archiver.restore.choice import Above, Choice, Step
from archiver.store.chunks import ChunkDamaged
from archiver.store.digests import prefixes_of
from archiver.store.indexes import Index
from formats.crypt import chunk_digest
from formats.errors import FormatError
from formats.pxar.constants import HEADER_SIZE, PAYLOAD
from formats.pxar.decoder import LEAVE, LeaveDirectory
from formats.pxar.items import Entry, check_payload_header
from formats.wire import Buffer

_READ_WHOLE = 16 << 20  # bytes
_PROGRESS_EVERY = 512  # entries
KIND_NAMES = {"char": "character device", "block": "block device", "fifo": "fifo", "socket": "socket"}


_Read = Callable[[int, int], Iterable[Buffer]]


class NotHeld(Exception):
    """An entry that the file to be written has no place for; the text says why."""


class Member(NamedTuple):
    """``path`` is relative to the root, ``b""`` for the root itself; ``read``: the contents between two offsets."""

    path: bytes
    entry: Entry
    read: _Read
    holes: Sequence[tuple[int, int]] = ()  # from, to; only zeros are there

    def contents(self) -> Iterable[Buffer]:
        return self.read(0, self.entry.size)


class Members:
    """``entries``, ``files`` and ``bytes`` count what was handed out. Without ``links`` hard links come as files."""

    def __init__(self, tree: Tree, choice: Choice, listener: Listener, *, links: bool) -> None:
        self._tree = tree
        self._choice = choice
        self._links = links
        self._listener = listener
        self._positions = array("Q")  # the same of what a hard link may lead to, and hashes of the paths
        self._paths = array("I")
        self._left_out = array("Q")  # positions of FILENAME items in the archive, in its order
        self.entries = 0
        self.files = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[Member | LeaveDirectory]:
        """Raises Damaged when the archive cannot be read on, or a large file not."""
        tree = self._tree
        self._path = b""
        try:
            with AheadStream(tree.snapshot, tree.content_file) as self._content:
                self._holes = _Holes(tree, self._content.index)
                yield from self._members(self._choice.steps(tree, links=self._links))
        except (FormatError, ChunkDamaged) as error:
            raise self.ended(error) from error

    def leave_out(self, entry: Entry) -> None:
        """The entry that was handed out last was not written: no other name can lead to it."""
        self._left_out.append(entry.filename_offset)

    def _is_left_out(self, entry: Entry) -> bool:
        """Whether a hard link leads to something that is not there."""
        place = bisect_left(self._left_out, entry.link_target)
        return place < len(self._left_out) and self._left_out[place] == entry.link_target

    def _is_known(self, link: Entry) -> bool:
        """Whether position and path lead to the same file: readers of other formats go by either."""
        place = bisect_left(self._positions, link.link_target)
        is_there = place < len(self._positions) and self._positions[place] == link.link_target
        return is_there and self._paths[place] == _hash(link.target)

    def ended(self, error: Exception) -> Damaged:
        """Why nothing can follow the entry that was handed out last."""
        return Damaged(
            f"{self._tree.files.name} of {self._tree.snapshot.ref} is damaged at /{os.fsdecode(self._path)}: {error}",
            hint="the file is not made without it; a restore into a directory goes on where it can",
        )

    def _members(self, steps: Iterator[Step]) -> Iterator[Member | LeaveDirectory]:
        above: list[int] = []  # lengths of the paths of the open directories
        directory = b""
        for step in steps:
            if step is LEAVE:
                directory = directory[: above.pop()]
                yield LEAVE
                continue
            entry = step.entry if isinstance(step, Above) else step
            assert isinstance(entry, Entry)
            self._path = path = directory + entry.name
            if entry.kind == "file":
                yield from self._file(path, entry)
            elif entry.kind == "hardlink" and self._is_left_out(entry):
                target = os.fsdecode(entry.target)
                self._listener(FileProblem(b"/" + path, f"is a further name of /{target}, left out", "not-restored"))
            elif entry.kind == "hardlink" and not self._is_known(entry):
                self._listener(FileProblem(b"/" + path, "is a hard link that leads to no file", "damaged"))
            else:
                yield self._told(Member(path, entry, _nothing))
            if entry.kind == "dir":
                above.append(len(directory))
                directory = path + b"/" if path else b""

    def _told(self, member: Member) -> Member:
        self.entries += 1
        entry = member.entry
        if self._links and entry.kind not in ("dir", "hardlink"):
            self._positions.append(entry.filename_offset)
            self._paths.append(_hash(member.path))
        if self.entries % _PROGRESS_EVERY == 0:
            self._listener(Progress("export", self.entries, self.bytes, self._tree.content.size))
        return member

    def _file(self, path: bytes, entry: Entry) -> Iterator[Member]:
        holes: Sequence[tuple[int, int]] = ()
        start, size = entry.content_offset, entry.size
        if size <= _READ_WHOLE:
            try:
                self._check(entry)
                data = memoryview(self._content.read_at(start, size))
            except (FormatError, ChunkDamaged) as error:
                self._listener(FileProblem(b"/" + path, str(error), "damaged"))
                self.leave_out(entry)
                return
            read: _Read = lambda lower, upper: [data[lower:upper]]  # noqa: E731
        else:
            self._check(entry)
            holes = self._holes.find(start, start + size)
            read = lambda lower, upper: self._pieces(start + lower, upper - lower)  # noqa: E731
        self.files += 1
        self.bytes += size
        yield self._told(Member(path, entry, read, holes))

    def _pieces(self, start: int, length: int) -> Iterator[Buffer]:
        try:
            yield from self._content.pieces(start, length)
        except ChunkDamaged as error:
            raise self.ended(error) from error

    def _check(self, entry: Entry) -> None:
        start, size = entry.content_offset, entry.size
        if start + size > self._content.size:
            raise FormatError("contents lie beyond the end of the archive", offset=start)
        if self._tree.split:
            position = start - HEADER_SIZE
            check_payload_header(self._content.read_at(position, HEADER_SIZE), PAYLOAD, size, position)


def _hash(path: bytes) -> int:
    """Another one in each process, so that nobody can make a path with the hash of another."""
    return hash(path) & 0xFFFFFFFF


def _nothing(start: int, end: int) -> Iterable[Buffer]:
    return ()


class _Holes:
    """Where a file has nothing but zeros, as far as whole chunks show it: of a hole, a backup makes chunks of the
    largest size there is, all with the same digest."""

    def __init__(self, tree: Tree, index: Index) -> None:
        self._index = index
        encrypted = tree.content_file.crypt_mode == "encrypt"
        self._crypt = tree.snapshot.crypt if encrypted else None

    @cached_property
    def _zeros(self) -> NDArray[np.bool_]:
        """For each chunk of the index."""
        index = self._index
        sizes = index.sizes()
        largest = int(sizes.max())
        digest = chunk_digest(memoryview(bytes(largest)), self._crypt)
        begin = np.uint64(int.from_bytes(digest[:8]))
        found: NDArray[np.bool_] = (sizes == largest) & (prefixes_of(index.digests) == begin)
        for number in np.flatnonzero(found).tolist():
            found[number] = index.digest(number) == digest
        return found

    def find(self, start: int, end: int) -> list[tuple[int, int]]:
        """Of the contents from ``start`` to ``end`` of the stream: (from, to), relative to ``start``."""
        index = self._index
        first, last = index.find(start), index.find(end - 1)
        holes: list[tuple[int, int]] = []
        for number in (first + np.flatnonzero(self._zeros[first : last + 1])).tolist():
            lower, upper = max(index.start(number), start) - start, min(index.end(number), end) - start
            if holes and holes[-1][1] == lower:
                lower = holes.pop()[0]
            holes.append((lower, upper))
        return holes
