"""Going through an archive with a target directory beside it: used to compare a tree, and to write one.

The main thread decodes entries and keeps the directories; files are handed to workers chunk by chunk, so each chunk is
read, decoded and verified once. A directory is finished when it was left and all files and directories in it are.
At most some hundred descriptors are open, however deep or wide the tree is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

from archiver.browse.snapshot import Tree
from archiver.core.events import Listener, Progress
from archiver.core.holes import is_zeros
from archiver.core.pipeline import Channel, Pipeline
from archiver.errors import Damaged
from archiver.restore.choice import Above, Choice
from archiver.restore.names import NameSet
from archiver.restore.visitor import Directory, FileItem, Segment, Visitor
from archiver.store.chunks import ChunkDamaged
from formats.errors import FormatError
from formats.pxar.constants import HEADER, HEADER_SIZE, PAYLOAD
from formats.pxar.decoder import LEAVE
from formats.pxar.items import Entry
from formats.wire import Buffer

_QUEUED_TASKS = 4
_STACK_OPEN = 64
_DIRECTORIES_OPEN = 400
_PROGRESS_EVERY = 512  # entries


class Task(NamedTuple):
    chunk: int  # -1: none is needed
    segments: list[Segment]


class Traversal:
    """One pass through a tree, or through what was chosen of it, with a visitor."""

    def __init__(self, tree: Tree, choice: Choice, visitor: Visitor, task: str, listener: Listener) -> None:
        self._tree = tree
        self._choice = choice
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
        self.chosen = 0  # of them
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
            spoiled = set()
            for item in self._begun.values():
                try:
                    self._visitor.abandon(item)
                except OSError:  # nothing can be written there any more: the next run takes away what is left
                    spoiled.add(item.directory)
            for directory in self._open - spoiled:
                self._visitor.abandon_directory(directory)
            self._close_all()

    def _walk(self) -> None:
        tree, visitor = self._tree, self._visitor
        root: Directory | None = None
        for step in self._choice.steps(tree):
            if step is LEAVE:
                self._leave()
                continue
            above = type(step) is Above
            entry: Entry = step.entry if above else step  # type: ignore[union-attr,assignment]
            self.entries += 1
            self.chosen += not above
            if self.entries % _PROGRESS_EVERY == 0:
                self._listener(Progress(self._task_name, self.entries, self.bytes, tree.content.size))
            directory = self._stack[-1] if self._stack else None
            if directory is not None and directory.names is not None:
                directory.names.add(entry.name)
            kind = entry.kind
            if kind == "dir":
                entered = self._enter(directory, entry, above=above)
                root = root or entered
            elif directory is None:
                raise FormatError("an entry outside of any directory")
            elif kind == "file":
                self._add_file(directory, entry)
            elif not directory.usable:
                visitor.unreachable(directory, entry, self.entries)
            elif kind == "hardlink":
                assert root is not None
                if entry.filename_offset - entry.link_offset >= self._drained_to:
                    self._drain()
                    self._drained_to = entry.filename_offset
                visitor.hardlink(directory, entry, self.entries, root)
            else:
                visitor.leaf(directory, entry, self.entries)

    # -- directories -------------------------------------------------------------------------------------------------

    def _enter(self, parent: Directory | None, entry: Entry, *, above: bool) -> Directory:
        assert entry.metadata is not None
        if len(self._open) >= _DIRECTORIES_OPEN:
            self._drain()
        directory = Directory(parent, self.entries, entry.name, entry.metadata, above=above)
        if parent is not None:
            with self._lock:
                parent.pending += 1
        if parent is not None and not parent.usable:
            self._visitor.unreachable(parent, entry, self.entries)
        else:
            directory.fd = self._visitor.open_directory(directory)
        directory.usable = directory.fd >= 0
        if directory.usable:
            self._open.add(directory)
            if self._visitor.keeps_names:
                directory.names = NameSet()
        self._stack.append(directory)
        if directory.usable and len(self._stack) - self._closed > _STACK_OPEN:
            outer = self._stack[self._closed]
            self._closed += 1
            self._drain()
            status = os.fstat(outer.fd)
            outer.identity = (status.st_dev, status.st_ino)
            self._close(outer)
        return directory

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
        self.files += 1
        self.bytes += size
        inside = self._chunk_start <= start and end <= self._chunk_end
        parts = 1
        if end > self._tree.content.size:
            parts = 0
        elif not inside and start < end:
            parts = self._index.find(end - 1) - self._index.find(start) + 1
        if not directory.usable:
            self._visitor.unreachable(directory, entry, self.entries)
            return
        item = FileItem(directory, self.entries, entry.name, entry.metadata, size, header, max(parts, 1))
        if parts == 0:
            item.failed = "its contents lie beyond the end of the archive"
        if not self._visitor.wants_file(item):
            return
        with self._lock:
            directory.pending += 1
        if start == end or item.failed:
            self._append(self._chunk, Segment(item, 0, 0, 0))
        elif inside:
            offset = -len(header)
            self._append(self._chunk, Segment(item, start - self._chunk_start, end - self._chunk_start, offset))
        else:
            if parts > 1:
                item.lock = threading.Lock()
            for chunk, lower, upper, position in self._pieces(start, end):
                self._append(chunk, Segment(item, lower, upper, position - entry.content_offset))

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

    def _append(self, chunk: int, segment: Segment) -> None:
        if self._segments and (chunk != self._chunk or len(self._segments) >= self._visitor.segments_at_once):
            self._flush()
        self._chunk = chunk
        self._segments.append(segment)

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
        zeros = False  # it is nothing else
        while (task := self._tasks.get()) is not None:
            data, damage = None, None
            if task.chunk >= 0:
                digest = self._index.digest(task.chunk)
                size = self._index.end(task.chunk) - self._index.start(task.chunk)
                try:
                    if loaded is None or loaded[0] != digest or len(loaded[1]) != size:
                        loaded = None  # the buffer is about to be used again
                        loaded = digest, reader.read(digest, size, encrypted=self._encrypted)
                        zeros = len(task.segments) == 1 and is_zeros(loaded[1])
                    data = loaded[1]
                except ChunkDamaged as error:
                    damage = str(error)
            for segment in task.segments:
                self._begun[id(segment.item)] = segment.item
            for segment in task.segments:
                item = segment.item
                self._visitor.segment(segment, data, damage, zeros=zeros and data is not None)
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
