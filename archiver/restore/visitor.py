"""What a pass through an archive with a target directory beside it hands to whoever works in it."""

from __future__ import annotations

import os
import stat as st
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from archiver.restore.existing import look
from archiver.restore.names import NameSet
from archiver.restore.staging import staged_name
from formats.pxar.items import Entry
from formats.pxar.metadata import Metadata
from formats.wire import Buffer

_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """A directory of the target.

    number    that of its entry
    above     it is only gone through to what was chosen below it
    fd        -1 while it is closed to save descriptors, or when it is not ``usable``
    found     what it was when the visitor opened it, None where the visitor made it
    staged    the name it has until it is complete (see staging.py); empty when it has its own
    left      an interrupted restore has made it: what is in there is not the user's
    names     of the archive's entries in it, where the visitor asks for them
    """

    __slots__ = (
        "above",
        "fd",
        "found",
        "identity",
        "left",
        "metadata",
        "name",
        "names",
        "number",
        "parent",
        "pending",
        "staged",
        "usable",
    )

    def __init__(self, parent: Directory | None, number: int, name: bytes, metadata: Metadata, *, above: bool) -> None:
        self.parent = parent
        self.number = number
        self.name = name
        self.metadata = metadata
        self.above = above
        self.fd = -1
        self.usable = False
        self.found: os.stat_result | None = None
        self.staged = b""
        self.left: bool = parent is not None and parent.left
        self.names: NameSet | None = None
        self.identity = (0, 0)
        self.pending = 1  # itself, until it is left

    @property
    def path(self) -> bytes:
        """``b"/a/b"``; ``b"/"`` for the root."""
        names = []
        directory: Directory | None = self
        while directory is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(names)) or b"/"

    @property
    def present_name(self) -> bytes:
        return self.staged or self.name

    def look_for_left(self) -> os.stat_result | None:
        """In the parent, after nothing was found by its own name: what an interrupted restore has left of it. Raises
        OSError."""
        assert self.parent is not None
        staged = staged_name(self.name)
        found = None if staged is None else look(staged, self.parent.fd)
        if staged is None or found is None or not st.S_ISDIR(found.st_mode):
            return None
        self.staged, self.left = staged, True
        return found

    def path_of(self, name: bytes) -> bytes:
        return self.path.rstrip(b"/") + b"/" + name


class Piece(NamedTuple):
    """``length`` bytes of a file at ``offset``. Without a digest they are zeros that were not written."""

    offset: int
    length: int
    digest: bytes


@dataclass(slots=True)
class FileItem:
    """A regular file on its way. ``parts`` segments are not done yet; ``state`` belongs to the visitor."""

    directory: Directory
    number: int  # of its entry
    name: bytes
    metadata: Metadata
    size: int
    header: bytes  # the payload header that must precede the contents; empty in a version 1 archive
    parts: int = 1
    lock: threading.Lock | None = None  # for files of several segments
    fd: int = -1
    direct: int = -1  # the same file, past the page cache
    failed: str | None = None  # why it cannot be restored
    refused: bool = False  # by the target: the archive is not to blame
    found: os.stat_result | None = None  # what is in its place
    temp: bytes = b""  # the name it has while it is not complete
    told: bool = False  # that not all attributes could be set
    piece: Piece | None = None  # what was written of one in a single segment
    settled: bool = False  # it is different, or was given up: there is nothing more to be read again


class Segment(NamedTuple):
    """A part of a file's contents: bytes ``start`` to ``end`` of the chunk, at ``offset`` in the file (negative: the
    payload header)."""

    item: FileItem
    start: int
    end: int
    offset: int


class Visitor(Protocol):
    """What is done at each entry. ``number`` counts the entries of the pass from 1 and is the same in every pass.
    Methods marked (worker) are called from worker threads."""

    @property
    def keeps_names(self) -> bool:
        """Whether directories get to know the names of their entries."""

    @property
    def threads(self) -> int:
        """How many workers there are."""

    @property
    def segments_at_once(self) -> int:
        """How many segments a worker gets at a time, at most."""

    def open_directory(self, directory: Directory) -> int:
        """Descriptor of the directory, the root or a child of a usable one; -1 when there is none to work in."""

    def unreachable(self, directory: Directory, entry: Entry, number: int) -> None:
        """An entry of a directory that is not usable."""

    def leaf(self, directory: Directory, entry: Entry, number: int) -> None:
        """A symlink, device, fifo, socket."""

    def hardlink(self, directory: Directory, entry: Entry, number: int, root: Directory) -> None:
        """The target is complete."""

    def wants_file(self, item: FileItem) -> bool:
        """Whether its segments shall come; else it has been dealt with."""

    def segment(self, segment: Segment, data: Buffer | None, damage: str | None, *, zeros: bool) -> None:
        """(worker) A part of a file's contents, in ``data`` of its chunk; ``damage`` says why there is none. ``zeros``:
        it is known to be nothing else."""

    def finish_file(self, item: FileItem) -> None:
        """(worker) All segments are done."""

    def abandon(self, item: FileItem) -> None:
        """The pass ends early, with this file begun and not finished."""

    def finish_directory(self, directory: Directory) -> None:
        """(worker) Everything in it is complete; it is closed afterwards."""

    def abandon_directory(self, directory: Directory) -> None:
        """The pass ends early, with this directory open and not finished. Its files have been abandoned before."""


@contextmanager
def link_target(entry: Entry, root: Directory) -> Iterator[tuple[int, bytes]]:
    """What a hard link leads to: its open directory, and its name in there. It is looked for name by name, and no
    symlink is followed; OSError when there is no such directory."""
    *parents, name = entry.target.split(b"/")
    fd = root.fd
    try:
        for part in parents:
            inner = _enter(part, fd)
            if fd != root.fd:
                os.close(fd)
            fd = inner
        yield fd, name
    finally:
        if fd != root.fd:
            os.close(fd)


def _enter(name: bytes, dir_fd: int) -> int:
    try:
        return os.open(name, _PATH_ONLY, dir_fd=dir_fd)
    except FileNotFoundError:
        staged = staged_name(name)
        if staged is None:
            raise
        return os.open(staged, _PATH_ONLY, dir_fd=dir_fd)
