"""Small files, most of what a first backup meets: read one behind the other, then encoded together.

The way is straight: few calls a file, no objects on the way. It is for files that are as they were listed, have no odd
attributes and give no trouble; whatever else is met goes the careful way of contents.py, and leaves no trace here: what
is in a stream's memory and was not committed does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from archiver.backup.streams import Stream
from archiver.core.linux import open_noatime
from archiver.core.row import ROW, file_row
from archiver.source.ahead import ReadAhead
from archiver.source.content import may_have_holes
from archiver.source.metadata import plain_flags
from archiver.source.walk import SourceDirectory
from formats.pxar.constants import HEADER, HEADER_SIZE, PAYLOAD
from formats.pxar.encoder import Encoder, PlainFile

_LARGEST = 256 << 10  # bytes; with larger files the time goes into reading them
_BYTES_AT_ONCE = 512 << 10
_FILES_AT_ONCE = 256


class SmallFiles:
    """Files of one directory, in archive order, that are in the memory of the payload stream but not in the stream.

    Those of ``take``, which are ``files`` and go into the archive by ``add``, or those of ``take_known``, which
    ``add_known`` puts there; not both at a time. ``are_many``: it is time to add them.
    """

    __slots__ = ("_encoder", "_end", "_room", "_stream", "are_many", "files")

    def __init__(self, encoder: Encoder, stream: Stream) -> None:
        self._encoder = encoder
        self._stream = stream
        self._room = memoryview(b"")
        self._end = 0  # bytes of it that are in use
        self.files: list[PlainFile] = []
        self.are_many = False

    def take(self, directory: SourceDirectory, name: bytes, stat: os.stat_result, ahead: ReadAhead) -> bool:
        """Read the file that lstat told of, one of those of ``ahead``. False: it was not done, for whatever reason.

        One fstat is enough, behind everything else: a file of which it says the same as lstat did before it was opened
        is the listed one, and has not changed in between.
        """
        features, size, start = directory.features, stat[6], self._end
        if not start:
            self._room = self._stream.reserve()
        room, contents = self._room, start + HEADER_SIZE
        end = contents + size
        if size > _LARGEST or end > len(room) or stat[2] != features.device or may_have_holes(stat):
            return False
        try:
            fd = open_noatime(name, os.O_NONBLOCK, directory.fd)
            try:
                flags = plain_flags(fd, features)
                if flags is None or (size and not ahead.read(name, fd, room[contents:end], stat[2])):
                    return False
                now = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError:
            return False
        mtime = stat.st_mtime_ns
        if now[:7] != stat[:7] or now.st_mtime_ns != mtime or now.st_ctime_ns != stat.st_ctime_ns:
            return False
        HEADER.pack_into(room, start, PAYLOAD, end - start)
        self._end = end
        seconds, nanoseconds = divmod(mtime, 1_000_000_000)
        self.files.append((name, (stat[0], flags, stat[4], stat[5], seconds, nanoseconds), size))
        self.are_many = end >= _BYTES_AT_ONCE or len(self.files) >= _FILES_AT_ONCE
        return True

    def take_known(self, directory: SourceDirectory, name: bytes, row: bytes, ahead: ReadAhead) -> bool:
        """Read a file again of which all but its contents is known, one of those of ``ahead``: it is still the one with
        that row, and was when its contents had been read. False: it was not done, for whatever reason."""
        size, start = ROW.unpack(row)[1], self._end
        if not start:
            self._room = self._stream.reserve()
        room, contents = self._room, start + HEADER_SIZE
        end = contents + size
        if size > _LARGEST or end > len(room):
            return False
        try:
            fd = open_noatime(name, os.O_NONBLOCK, directory.fd)
            try:
                if size and not ahead.read(name, fd, room[contents:end], directory.features.device):
                    return False
                now = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError:
            return False
        if now.st_dev != directory.features.device or file_row(now) != row:
            return False
        HEADER.pack_into(room, start, PAYLOAD, end - start)
        self._end = end
        self.are_many = end >= _BYTES_AT_ONCE
        return True

    def add_known(self, items: bytearray, names: Sequence[bytes], lengths: Sequence[int], sizes: Sequence[int]) -> int:
        """Put the files of ``take_known`` into the archive, and forget them: ``items`` of these ``lengths``, which have
        their references, and contents of these ``sizes``. Returns how many bytes of contents."""
        assert not self.files
        end, self._end = self._end, 0
        offset = self._encoder.payload_position
        self._encoder.add_encoded_files(items, names, lengths, sizes)
        self._stream.suggest(*self._begins(offset, sizes))
        self._stream.commit(end)
        return end - HEADER_SIZE * len(sizes)

    def add(self) -> list[bytes]:
        """Put all of ``files`` into the archive, and forget them; the items of each."""
        files, self.files = self.files, []
        end, self._end = self._end, 0
        offset = self._encoder.payload_position
        items = self._encoder.add_plain_files(files)
        self._stream.suggest(*self._begins(offset, [size for _, _, size in files]))
        self._stream.commit(end)
        return items

    @staticmethod
    def _begins(offset: int, sizes: Sequence[int]) -> Iterator[int]:
        """Where files begin whose contents have these sizes, the first at ``offset``."""
        for size in sizes:
            yield offset
            offset += HEADER_SIZE + size
