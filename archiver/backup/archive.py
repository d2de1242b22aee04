"""One directory tree into one archive: walks the source, encodes entries, puts contents into the stream.

Split archives (version 2) write contents first and the entry after them: a file that changed while it was read becomes
unreferenced padding and is read again. In a version 1 archive the entry comes first, so a torn file is filled to its
declared size at once and marked.

With a reference, the contents of files whose metadata are unchanged are not read: see holding.py.
"""

from __future__ import annotations

import errno
import json
import os
import stat as st
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from archiver.backup.holding import Action, HeldFile, Holding
from archiver.backup.reference import PreviousDirectory, Reference
from archiver.backup.streams import Stream
from archiver.core.events import FileProblem, Listener, Progress
from archiver.core.spill import SpillTable
from archiver.source.content import OpenFile, Replaced, data_extents, may_have_holes, open_file, read_into, unchanged
from archiver.source.metadata import plain
from archiver.source.problem import Problem, explain
from archiver.source.walk import SourceDirectory, SourceEntry, Walk
from formats.catalog import CatalogWriter
from formats.pxar.constants import HEADER_SIZE, MAX_FILE_SIZE, MAX_NAME
from formats.pxar.encoder import Encoder
from formats.pxar.metadata import Metadata, Stat

_ATTEMPTS = 3  # to read a file that keeps changing
_PADDING_AT_MOST = 256 << 20  # bytes of failed attempts of one file; beyond that it is torn
_LINK_KEY = struct.Struct("<QQQqq")
_LINK_POSITION = struct.Struct("<Q")
_READ_AT_ONCE = 4 << 20
_PROGRESS_EVERY = 512  # entries
_PROGRESS_BYTES = 64 << 20
_CLI_EXCLUDES = b".pxarexclude-cli"


@dataclass(slots=True)
class FileCounters:
    """Files of a run. ``problems`` are reported one by one as events and kept here for the result."""

    total: int = 0
    unchanged: int = 0
    reencoded: int = 0
    read_errors: int = 0
    torn: int = 0
    vanished: int = 0
    bytes_read: int = 0


class _Added(NamedTuple):
    """A file that is in the archive: position of its FILENAME item, and its stat when it was read."""

    position: int
    stat: os.stat_result


def _link_key(stat: os.stat_result) -> bytes:
    """What two names of one file have in common. Size and times tell it from a later file that got the same inode.

    The change time is the one that nobody can set. A file that is changed in any way during the run, be it only its
    mode, is not linked any more: its later names become a file of their own.
    """
    return _LINK_KEY.pack(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _size(file: OpenFile) -> int:
    """Raises OSError for a sparse file so large that the format cannot hold it."""
    if file.stat.st_size > MAX_FILE_SIZE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return file.stat.st_size


class TreeArchiver:
    """Archives one source. ``payload`` is None for a version 1 archive, which has its contents in ``archive``.

    ``reference``: the archive that unchanged files are taken from, for chunks of ``average`` bytes.
    """

    def __init__(
        self,
        walk: Walk,
        archive: Stream,
        payload: Stream | None,
        *,
        catalog: CatalogWriter | None,
        counters: FileCounters,
        listener: Listener,
        spill_directory: str,
        reference: Reference | None = None,
        average: int = 0,
    ) -> None:
        self._walk = walk
        self._archive = archive
        self._payload = payload
        self._catalog = catalog
        self._counters = counters
        self._listener = listener
        self._links = SpillTable(spill_directory)
        self._reference = reference
        self._average = average
        self._holding: Holding | None = None
        self.padding = 0  # bytes of the payload stream that no entry refers to
        self._said = 0
        self._said_bytes = 0

    def run(self) -> None:
        """Archive the whole tree. Raises ArchiverError when the source itself cannot be read."""
        try:
            self._run()
        finally:
            self._links.close()

    def _run(self) -> None:
        root = self._walk.open_root()
        prelude = self._prelude()
        payload = self._payload
        if payload is not None:
            self._encoder = Encoder(self._archive.write, payload.write, prelude=prelude)
            if self._reference is not None:
                self._holding = Holding(
                    self._reference, self._encoder, payload, self._average, self._read_held, self._placed
                )
        else:
            self._encoder = Encoder(self._archive.write)
        self._encoder.start_root(root.metadata)
        before = self._reference.root if self._reference is not None else None
        stack: list[tuple[SourceDirectory, Iterator[SourceEntry], PreviousDirectory | None]]
        stack = [(root, iter(root.entries), before)]
        while stack:
            directory, entries, before = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                if not stack and payload is None:
                    self._add_cli_excludes()
                if self._holding is not None and not stack:
                    self._holding.flush()  # while the walk can still go back
                self._put(self._encoder.end_directory)
                if stack:
                    self._walk.leave()
                    if self._catalog is not None:
                        self._catalog.end_directory()
                continue
            if st.S_ISDIR(entry.stat.st_mode):
                child = self._walk.enter(entry)
                if child is not None:
                    self._put(partial(self._encoder.start_directory, entry.name, child.metadata))
                    if self._catalog is not None:
                        self._catalog.start_directory(entry.name)
                    within = before.directory(entry.name) if before is not None else None
                    stack.append((child, iter(child.entries), within))
                    self._count()
            else:
                self._add(directory, entry, before)
        self._encoder.finish()
        if self._holding is not None:
            self.padding += self._holding.injected - self._holding.referenced

    def _put(self, action: Action) -> None:
        """Do ``action`` behind whatever is held."""
        if self._holding is None:
            action()
        else:
            self._holding.then(action)

    # -- entries -----------------------------------------------------------------------------------------------------

    def _add(self, directory: SourceDirectory, entry: SourceEntry, before: PreviousDirectory | None) -> None:
        mode = entry.stat.st_mode
        if st.S_ISREG(mode):
            if self._holding is None:
                self._add_regular(directory, entry)
            elif not self._hold(self._holding, directory, entry, before):
                self._holding.flush()
                self._add_regular(directory, entry)
        elif st.S_ISLNK(mode):
            try:
                target = os.readlink(entry.name, dir_fd=directory.fd)
            except OSError as error:
                self._cannot(directory, entry.name, error)
                return
            self._put(partial(self._encoder.add_symlink, entry.name, plain(entry.stat), target))
            self._list(b"l", entry.name)
        elif st.S_ISCHR(mode) or st.S_ISBLK(mode):
            device = entry.stat.st_rdev
            numbers = os.major(device), os.minor(device)
            self._put(partial(self._encoder.add_device, entry.name, plain(entry.stat), *numbers))
            self._list(b"c" if st.S_ISCHR(mode) else b"b", entry.name)
        else:
            self._put(partial(self._encoder.add_special, entry.name, plain(entry.stat)))
            self._list(b"p" if st.S_ISFIFO(mode) else b"s", entry.name)
        self._count()

    def _add_regular(self, directory: SourceDirectory, entry: SourceEntry) -> None:
        first = self._links.get(_link_key(entry.stat)) if entry.stat.st_nlink > 1 else None
        if first is not None:
            (position,) = _LINK_POSITION.unpack_from(first)
            self._encoder.add_hardlink(entry.name, first[_LINK_POSITION.size :], position)
            self._list(b"h", entry.name)
            self._counters.total += 1
            return
        added = self._add_split(directory, entry) if self._payload is not None else self._add_whole(directory, entry)
        if added is None:
            return
        self._counters.total += 1
        self._counters.reencoded += 1
        self._may_be_linked(directory, entry.name, added)

    def _may_be_linked(self, directory: SourceDirectory, name: bytes, added: _Added) -> None:
        if added.stat.st_nlink > 1:
            path = directory.path_of(name).lstrip(b"/")
            if len(path) <= MAX_NAME:  # else nothing can refer to it: its other names become files of their own
                self._links.put(_link_key(added.stat), _LINK_POSITION.pack(added.position) + path)

    # -- unchanged files ---------------------------------------------------------------------------------------------

    def _hold(
        self, holding: Holding, directory: SourceDirectory, entry: SourceEntry, before: PreviousDirectory | None
    ) -> bool:
        """Hold a file whose contents are in the previous archive; False when it has to be read."""
        if entry.stat.st_nlink > 1:
            key = _link_key(entry.stat)
            if holding.holds(key) or self._links.get(key) is not None:
                holding.then(partial(self._add_regular, directory, entry))
                return True
        if before is None or not before.has_file(entry.name, entry.stat.st_size):
            return False
        try:
            with open_file(directory, entry) as file:
                metadata = directory.metadata_of(entry.name, file)
                offset = before.unchanged(entry.name, metadata, file.stat.st_size)
        except (OSError, Replaced):
            return False  # reading it will tell
        if offset is None:
            return False
        link = _link_key(file.stat) if file.stat.st_nlink > 1 else None
        holding.hold(HeldFile(directory, SourceEntry(entry.name, file.stat), metadata, offset), link)
        return True

    def _placed(self, file: HeldFile, position: int) -> None:
        self._counters.total += 1
        self._counters.unchanged += 1
        self._may_be_linked(file.directory, file.entry.name, _Added(position, file.entry.stat))

    def _read_held(self, file: HeldFile) -> None:
        """It does not pay to keep the old chunks of this file."""
        try:
            with self._walk.revisit(file.directory):
                self._add_regular(file.directory, file.entry)
        except OSError as error:
            self._cannot(file.directory, file.entry.name, error)

    def _add_split(self, directory: SourceDirectory, entry: SourceEntry) -> _Added | None:
        """Contents first; read again when the file changed meanwhile."""
        encoder, stream = self._encoder, self._payload
        assert stream is not None
        name = entry.name
        attempted = 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with open_file(directory, entry) as file:
                    metadata = directory.metadata_of(name, file)
                    size = _size(file)
                    stream.suggest(encoder.payload_position)
                    offset = encoder.start_payload(size)
                    read, failure = self._copy(file, size, stream)
                    torn = failure is not None or read < size or not unchanged(file.stat, file.fd)
                    attempted += read
                    if torn and attempt < _ATTEMPTS and attempted <= _PADDING_AT_MOST and failure is None:
                        encoder.abandon_payload()
                        self.padding += HEADER_SIZE + read
                        entry = directory.look(name)
                        if not st.S_ISREG(entry.stat.st_mode):
                            raise Replaced
                        continue
                    if read < size:
                        stream.write_zeros(size - read)
                        encoder.advance(size - read)
                    if torn:
                        self._torn(directory, name, failure)
                    position = encoder.add_file(name, metadata, size, offset)
                    self._list_file(name, size, metadata)
                    return _Added(position, file.stat)
            except Replaced:
                try:
                    entry = directory.look(name)
                except OSError as error:
                    self._cannot(directory, name, error)
                    return None
                if not st.S_ISREG(entry.stat.st_mode) or attempt == _ATTEMPTS:
                    self._cannot(directory, name, Replaced())
                    return None
            except OSError as error:
                self._cannot(directory, name, error)
                return None
        return None

    def _add_whole(self, directory: SourceDirectory, entry: SourceEntry) -> _Added | None:
        """Entry first, contents behind it; there is only one attempt."""
        encoder, stream, name = self._encoder, self._archive, entry.name
        try:
            with open_file(directory, entry) as file:
                metadata = directory.metadata_of(name, file)
                size = _size(file)
                position = encoder.start_file(name, metadata, size)
                read, failure = self._copy(file, size, stream)
                if read < size:
                    stream.write_zeros(size - read)
                    encoder.advance(size - read)
                if failure is not None or read < size or not unchanged(file.stat, file.fd):
                    self._torn(directory, name, failure)
                self._list_file(name, size, metadata)
                return _Added(position, file.stat)
        except OSError as error:
            self._cannot(directory, name, error)
            return None

    def _copy(self, file: OpenFile, size: int, stream: Stream) -> tuple[int, OSError | None]:
        """Put up to ``size`` bytes of the file into the stream; (bytes put, the error that ended it early or None)."""
        encoder = self._encoder
        done = 0
        try:
            extents = data_extents(file.fd, size) if may_have_holes(file.stat) else ((0, size, True),)
            for start, length, is_data in extents:
                if not is_data:
                    stream.write_zeros(length)
                    encoder.advance(length)
                    done += length
                    continue
                end = start + length
                while done < end:
                    room = stream.reserve()
                    got = read_into(file.fd, room[: min(end - done, _READ_AT_ONCE)], done)
                    if got == 0:
                        return done, None
                    stream.commit(got)
                    encoder.advance(got)
                    done += got
                    self._counters.bytes_read += got
                    if self._counters.bytes_read - self._said_bytes >= _PROGRESS_BYTES:
                        self._say()
        except OSError as error:
            explain(error)  # running out of descriptors or memory is no property of the file
            return done, error
        return done, None

    # -- the exclude patterns of the command line --------------------------------------------------------------------

    def _prelude(self) -> bytes | None:
        """spec pxar.md 9"""
        patterns = self._walk.prelude_patterns
        if not patterns or self._payload is None:
            return None
        text = b"".join(pattern.line() for pattern in patterns).decode("utf-8", "replace")
        return json.dumps({"exclude-patterns": text}, separators=(",", ":"), ensure_ascii=False).encode()

    def _add_cli_excludes(self) -> None:
        """spec pxar.md 13.4: a generated file, last in the root of a version 1 archive."""
        data = b"".join(pattern.line() for pattern in self._walk.prelude_patterns)
        if not data:
            return
        metadata = Metadata(Stat(st.S_IFREG | 0o600, 0, os.getuid(), os.getgid(), 0, 0))
        self._encoder.start_file(_CLI_EXCLUDES, metadata, len(data))
        self._archive.write(data)
        self._encoder.advance(len(data))
        self._list_file(_CLI_EXCLUDES, len(data), metadata)

    # -- telling -----------------------------------------------------------------------------------------------------

    def _list(self, kind: bytes, name: bytes) -> None:
        if self._catalog is not None:
            self._catalog.add(kind, name)

    def _list_file(self, name: bytes, size: int, metadata: Metadata) -> None:
        if self._catalog is not None:
            self._catalog.add_file(name, size, metadata.stat.mtime_secs)

    def _cannot(self, directory: SourceDirectory, name: bytes, error: OSError) -> None:
        kind, reason = explain(error)
        self.report(Problem(directory.path_of(name), reason, kind))

    def _torn(self, directory: SourceDirectory, name: bytes, failure: OSError | None) -> None:
        self._counters.torn += 1
        reason = "changed while it was read" if failure is None else f"could not be read to its end: {failure.strerror}"
        self._listener(FileProblem(directory.path_of(name), reason, "torn"))

    def report(self, problem: Problem) -> None:
        """Receives the walk's problems too."""
        if problem.kind == "unreadable":
            self._counters.read_errors += 1
        elif problem.kind == "vanished":
            self._counters.vanished += 1
        self._listener(FileProblem(problem.path, problem.reason, problem.kind))

    def _count(self) -> None:
        self._said += 1
        if self._said % _PROGRESS_EVERY == 0:
            self._say()

    def _say(self) -> None:
        self._said_bytes = self._counters.bytes_read
        self._listener(Progress("backup", self._said, self._counters.bytes_read))
