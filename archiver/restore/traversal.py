"""Going through an archive with a target directory beside it: used to write a tree, and again to check it.

The main thread decodes entries and keeps the directories; files are handed to workers chunk by chunk, so each chunk is
read, decoded and verified once. A directory is finished when it was left and all files and directories in it are.
At most some hundred descriptors are open, however deep or wide the tree is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from archiver.browse.snapshot import Tree
from archiver.core.events import Listener, Progress
from archiver.core.pipeline import Channel, Pipeline
from archiver.errors import Damaged
from archiver.store.chunks import ChunkDamaged
from formats.errors import FormatError
from formats.pxar.constants import HEADER, HEADER_SIZE, PAYLOAD
from formats.pxar.decoder import LEAVE
from formats.pxar.items import Entry
from formats.pxar.metadata import Metadata
from formats.wire import Buffer

_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_QUEUED_TASKS = 4
_STACK_OPEN = 64
_DIRECTORIES_OPEN = 400
_PROGRESS_EVERY = 512  # entries


class Directory:
    """A directory of the target. ``fd`` is -1 while it is closed to save descriptors, or when it is not ``usable``.
    ``number``: that of its entry."""

    __slots__ = ("fd", "identity", "metadata", "name", "number", "parent", "pending", "usable")

    def __init__(self, parent: Directory | None, number: int, name: bytes, metadata: Metadata, fd: int) -> None:
        self.parent = parent
        self.number = number
        self.name = name
        self.metadata = metadata
        self.fd = fd
        self.usable = fd >= 0
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

    def path_of(self, name: bytes) -> bytes:
        return self.path.rstrip(b"/") + b"/" + name


@dataclass(slots=True)
class FileItem:
    """A regular file on its way. ``parts`` segments are not done yet; ``state`` belongs to the visitor."""

    directory: Directory
    number: int  # of its entry
    name: bytes
    metadata: Metadata
    size: int
    header: bytes  # the payload header that must precede the contents; empty in a version 1 archive
    parts: int
    lock: threading.Lock | None  # for files of several segments
    fd: int = -1
    failed: str | None = None  # why it cannot be restored
    refused: bool = False  # by the target: the archive is not to blame


class Segment(NamedTuple):
    """A part of a file's contents: bytes ``start`` to ``end`` of the chunk, at ``offset`` in the file (negative: the
    payload header). No two segments with contents have the same ``number``, and it is the same in every pass."""

    item: FileItem
    start: int
    end: int
    offset: int
    number: int


class Task(NamedTuple):
    chunk: int  # -1: none is needed
    segments: list[Segment]


class Visitor(Protocol):
    """What is done at each entry. ``number`` counts the entries of the archive from 1 and is the same in every pass.
    Methods marked (worker) are called from worker threads."""

    @property
    def needs_contents(self) -> bool:
        """Whether segments come with their data."""

    @property
    def threads(self) -> int:
        """How many workers there are."""

    @property
    def segments_at_once(self) -> int:
        """How many segments a worker gets at a time, at most."""

    def open_root(self, entry: Entry) -> int: ...

    def open_directory(self, parent: Directory, entry: Entry, number: int) -> int:
        """Descriptor of the child directory; -1 when there is none to work in (reported)."""

    def leaf(self, directory: Directory, entry: Entry, number: int) -> None:
        """A symlink, device, fifo, socket."""

    def hardlink(self, directory: Directory, entry: Entry, number: int, root: Directory) -> None:
        """The target is complete."""

    def prepare(self, segments: Sequence[Segment]) -> None:
        """(worker) These come next."""

    def segment(self, segment: Segment, data: Buffer | None, damage: str | None) -> None:
        """(worker) A part of a file's contents, in ``data`` of its chunk; ``damage`` says why there is none."""

    def finish_file(self, item: FileItem) -> None:
        """(worker) All segments are done."""

    def abandon(self, item: FileItem) -> None:
        """The pass ends early, with this file begun and not finished."""

    def finish_directory(self, directory: Directory) -> None:
        """(worker) Everything in it is complete; it is closed afterwards."""


@contextmanager
def link_target(entry: Entry, root: Directory) -> Iterator[tuple[int, bytes]]:
    """What a hard link leads to: its open directory, and its name in there. It is looked for name by name, and no
    symlink is followed; OSError when there is no such directory."""
    *parents, name = entry.target.split(b"/")
    fd = root.fd
    try:
        for part in parents:
            inner = os.open(part, _PATH_ONLY, dir_fd=fd)
            if fd != root.fd:
                os.close(fd)
            fd = inner
        yield fd, name
    finally:
        if fd != root.fd:
            os.close(fd)


class Traversal:
    """One pass through a tree with a visitor."""

    def __init__(self, tree: Tree, visitor: Visitor, task: str, listener: Listener) -> None:
        self._tree = tree
        self._visitor = visitor
        self._task_name = task
        self._listener = listener
        self._index = tree.content.index
        self._encrypted = tree.content_file.crypt_mode == "encrypt"
        self._lock = threading.Lock()
        self._stack: list[Directory] = []
        self._closed = 1  # outer directories before this one are closed, but for the root: links start there
        self._open: set[Directory] = set()
        self._segments: list[Segment] = []
        self._begun: dict[int, FileItem] = {}  # by id(): files with some segments done
        self._chunk = -1
        self._chunk_start = 0
        self._chunk_end = 0
        self._submitted = 0
        self._completed = 0
        self._drained_to = 0
        self.entries = 0
        self.files = 0
        self.bytes = 0

    def run(self) -> None:
        """Raises ArchiverError when the archive cannot be read on: Damaged once everything before is done."""
        try:
            self._run()
        except (FormatError, ChunkDamaged) as error:
            place = os.fsdecode(self._stack[-1].path) if self._stack else "/"
            raise Damaged(
                f"{self._tree.files.name} of {self._tree.snapshot.ref} is damaged in {place}: {error}",
                hint="what comes before is restored; verify tells which files are concerned",
            ) from error

    def _run(self) -> None:
        try:
            with Pipeline() as pipeline:
                self._pipeline = pipeline
                self._tasks: Channel[Task] = Channel(pipeline, _QUEUED_TASKS)
                for number in range(self._visitor.threads):
                    pipeline.start(self._work, f"{self._task_name}-{number}")
                damage: Exception | None = None
                try:
                    self._walk()
                except (FormatError, ChunkDamaged) as error:
                    damage = error
                self._flush()
                self._tasks.close()
                pipeline.join()
                if damage is not None:
                    raise damage
        finally:  # only now: the workers have ended, nobody uses a descriptor any more
            for item in self._begun.values():
                self._visitor.abandon(item)
            self._close_all()

    def _walk(self) -> None:
        tree = self._tree
        root: Directory | None = None
        for event in tree.decoder():
            if event is LEAVE:
                self._leave()
                continue
            entry: Entry = event
            self.entries += 1
            if self.entries % _PROGRESS_EVERY == 0:
                self._listener(Progress(self._task_name, self.entries, self.bytes, tree.content.size))
            kind = entry.kind
            if kind == "dir":
                if root is None:
                    root = self._push(None, entry, self._visitor.open_root(entry))
                else:
                    self._enter(self._stack[-1], entry)
                continue
            directory = self._stack[-1]
            if not directory.usable:
                continue
            if kind == "file":
                self._add_file(directory, entry)
            elif kind == "hardlink":
                assert root is not None
                if entry.filename_offset - entry.link_offset >= self._drained_to:
                    self._drain()
                    self._drained_to = entry.filename_offset
                self._visitor.hardlink(directory, entry, self.entries, root)
            else:
                self._visitor.leaf(directory, entry, self.entries)

    # -- directories -------------------------------------------------------------------------------------------------

    def _push(self, parent: Directory | None, entry: Entry, fd: int) -> Directory:
        assert entry.metadata is not None
        directory = Directory(parent, self.entries, entry.name, entry.metadata, fd)
        if parent is not None:
            with self._lock:
                parent.pending += 1
        if fd >= 0:
            self._open.add(directory)
        self._stack.append(directory)
        return directory

    def _enter(self, parent: Directory, entry: Entry) -> None:
        if len(self._open) >= _DIRECTORIES_OPEN:
            self._drain()
        fd = self._visitor.open_directory(parent, entry, self.entries) if parent.usable else -1
        self._push(parent, entry, fd)
        if fd >= 0 and len(self._stack) - self._closed > _STACK_OPEN:
            outer = self._stack[self._closed]
            self._closed += 1
            self._drain()
            status = os.fstat(outer.fd)
            outer.identity = (status.st_dev, status.st_ino)
            self._close(outer)

    def _leave(self) -> None:
        directory = self._stack.pop()
        if self._stack:
            parent = self._stack[-1]
            self._closed = max(1, min(self._closed, len(self._stack) - 1))
            if parent.usable and parent.fd < 0:
                self._reopen(parent, directory.fd)
        self._release(directory)

    def _reopen(self, parent: Directory, child_fd: int) -> None:
        """Back to an outer directory; only the very same one is accepted."""
        fd = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=child_fd)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != parent.identity:
            os.close(fd)
            raise Damaged(f"{os.fsdecode(parent.path)} was moved or replaced while it was in use")
        parent.fd = fd
        self._open.add(parent)

    def _release(self, directory: Directory) -> None:
        """One of the things that ``directory`` waits for is done."""
        current: Directory | None = directory
        while current is not None:
            with self._lock:
                current.pending -= 1
                if current.pending:
                    return
            if current.fd >= 0:
                self._visitor.finish_directory(current)
                self._close(current)
            current = current.parent

    def _close(self, directory: Directory) -> None:
        fd, directory.fd = directory.fd, -1  # closed even when that fails
        os.close(fd)
        self._open.remove(directory)

    def _close_all(self) -> None:
        for directory in list(self._open):
            self._close(directory)

    # -- files -------------------------------------------------------------------------------------------------------

    def _add_file(self, directory: Directory, entry: Entry) -> None:
        assert entry.metadata is not None
        size = entry.size
        start = entry.content_offset
        header = b""
        if self._tree.split:
            header = HEADER.pack(PAYLOAD, HEADER_SIZE + size)
            start -= HEADER_SIZE
        end = entry.content_offset + size
        item = FileItem(directory, self.entries, entry.name, entry.metadata, size, header, 1, None)
        with self._lock:
            directory.pending += 1
        self.files += 1
        self.bytes += size
        if end > self._tree.content.size:
            item.failed = "its contents lie beyond the end of the archive"
        if start == end or item.failed:
            self._append(self._chunk, item, 0, 0, 0)
            return
        if self._chunk_start <= start and end <= self._chunk_end:
            self._append(self._chunk, item, start - self._chunk_start, end - self._chunk_start, -len(header))
            return
        item.parts = self._index.find(end - 1) - self._index.find(start) + 1
        if item.parts > 1:
            item.lock = threading.Lock()
        for chunk, lower, upper, position in self._pieces(start, end):
            self._append(chunk, item, lower, upper, position - entry.content_offset)

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(chunk, from, to, stream offset) for every chunk that holds a part of the range."""
        number = self._index.find(start)
        while start < end:
            lower, upper = self._index.start(number), self._index.end(number)
            self._chunk_start, self._chunk_end = lower, upper
            stop = min(end, upper)
            yield number, start - lower, stop - lower, start
            start = stop
            number += 1

    def _append(self, chunk: int, item: FileItem, start: int, end: int, offset: int) -> None:
        if self._segments and (chunk != self._chunk or len(self._segments) >= self._visitor.segments_at_once):
            self._flush()
        self._chunk = chunk
        # Contents lie in the order of their entries, so each segment is in a later chunk, or of a later entry, than the
        # one before: the sum grows. Entries below a directory that is not usable count too.
        self._segments.append(Segment(item, start, end, offset, chunk + self.entries))

    def _flush(self) -> None:
        if self._segments:
            segments, self._segments = self._segments, []
            self._submitted += 1
            self._tasks.put(Task(self._chunk, segments))

    def _drain(self) -> None:
        """Wait until everything handed out so far is complete."""
        self._flush()
        changed = self._pipeline.changed
        with changed:
            while self._completed < self._submitted:
                self._pipeline.wait()

    # -- workers -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        snapshot = self._tree.snapshot
        reader = snapshot.store.reader(snapshot.crypt)
        loaded: tuple[bytes, Buffer] | None = None  # the last chunk; sparse files repeat one chunk again and again
        while (task := self._tasks.get()) is not None:
            data, damage = None, None
            if task.chunk >= 0 and self._visitor.needs_contents:
                digest = self._index.digest(task.chunk)
                size = self._index.end(task.chunk) - self._index.start(task.chunk)
                try:
                    if loaded is None or loaded[0] != digest or len(loaded[1]) != size:
                        loaded = None  # the buffer is about to be used again
                        loaded = digest, reader.read(digest, size, encrypted=self._encrypted)
                    data = loaded[1]
                except ChunkDamaged as error:
                    damage = str(error)
            for segment in task.segments:
                self._begun[id(segment.item)] = segment.item
            self._visitor.prepare(task.segments)
            for segment in task.segments:
                item = segment.item
                self._visitor.segment(segment, data, damage)
                if item.lock is None or self._is_last(item):
                    self._visitor.finish_file(item)
                    del self._begun[id(item)]
                    self._release(item.directory)
            changed = self._pipeline.changed
            with changed:
                self._completed += 1
                changed.notify_all()

    def _is_last(self, item: FileItem) -> bool:
        assert item.lock is not None
        with item.lock:
            item.parts -= 1
            return item.parts == 0
