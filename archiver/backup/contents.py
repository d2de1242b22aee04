"""Reading the contents of regular files into the streams of an archive.

Split archives (version 2) write contents first and the entry after them: a file that changed while it was read becomes
unreferenced padding and is read again. In a version 1 archive the entry comes first, so a torn file is filled to its
declared size at once and marked.
"""

from __future__ import annotations

import errno
import os
import stat as st
from typing import NamedTuple

from archiver.backup.streams import Stream
from archiver.backup.tally import Tally
from archiver.source.content import OpenFile, Replaced, data_extents, may_have_holes, open_file, read_into, unchanged
from archiver.source.problem import explain
from archiver.source.walk import SourceDirectory, SourceEntry
from formats.pxar.constants import HEADER_SIZE, MAX_FILE_SIZE
from formats.pxar.encoder import Encoder

_ATTEMPTS = 3  # to read a file that keeps changing
_PADDING_AT_MOST = 256 << 20  # bytes of failed attempts of one file; beyond that it is torn
_READ_AT_ONCE = 4 << 20


class Added(NamedTuple):
    """A file that is in the archive: position of its FILENAME item, and its stat when it was read."""

    position: int
    stat: os.stat_result


class Contents:
    """Adds regular files to one archive; ``payload`` None: of version 1, with its contents in ``archive``."""

    def __init__(self, encoder: Encoder, archive: Stream, payload: Stream | None, tally: Tally) -> None:
        self._encoder = encoder
        self._archive = archive
        self._payload = payload
        self._tally = tally
        self.padding = 0  # bytes of the payload stream that failed attempts left

    def add(self, directory: SourceDirectory, entry: SourceEntry) -> Added | None:
        """Read a listed file into the archive; None when that cannot be done."""
        if self._payload is None:
            return self._add_whole(directory, entry, self._archive)
        return self._add_split(directory, entry, self._payload)

    def _add_split(self, directory: SourceDirectory, entry: SourceEntry, stream: Stream) -> Added | None:
        """Contents first; read again when the file changed meanwhile."""
        encoder, name = self._encoder, entry.name
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
                        self._tally.torn(directory, name, failure)
                    position = encoder.add_file(name, metadata, size, offset)
                    return Added(position, file.stat)
            except Replaced:
                try:
                    entry = directory.look(name)
                except OSError as error:
                    self._tally.cannot(directory, name, error)
                    return None
                if not st.S_ISREG(entry.stat.st_mode) or attempt == _ATTEMPTS:
                    self._tally.cannot(directory, name, Replaced())
                    return None
            except OSError as error:
                self._tally.cannot(directory, name, error)
                return None
        return None

    def _add_whole(self, directory: SourceDirectory, entry: SourceEntry, stream: Stream) -> Added | None:
        """Entry first, contents behind it; there is only one attempt."""
        encoder, name = self._encoder, entry.name
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
                    self._tally.torn(directory, name, failure)
                return Added(position, file.stat)
        except OSError as error:
            self._tally.cannot(directory, name, error)
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
                    self._tally.has_read(got)
        except OSError as error:
            explain(error)  # running out of descriptors or memory is no property of the file
            return done, error
        return done, None


def _size(file: OpenFile) -> int:
    """Raises OSError for a sparse file so large that the format cannot hold it."""
    if file.stat.st_size > MAX_FILE_SIZE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return file.stat.st_size
