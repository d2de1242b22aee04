"""The frame structure of a zstd stream, followed without decompressing it (RFC 8878 3.1; spec blob-index-crypto.md 13).

A blob's payload is one frame or several, back to back. The streaming decompressor ends quietly when its input ends in
the middle of a frame, so whether a stream is whole must be found out here.

| item            | parts, with their sizes                                                                            |
|-----------------|----------------------------------------------------------------------------------------------------|
| frame           | magic fd2fb528 (4), descriptor (1), window (0-1), dictionary id (0-4), content size (0-8), blocks, |
|                 | checksum (0 or 4)                                                                                  |
| descriptor bits | 7-6 length of content size, 5 single segment (no window), 3 reserved, 2 checksum,                  |
|                 | 1-0 length of dictionary id                                                                        |
| block           | header (3), then data. Header bits: 0 last, 1-2 kind (0 raw, 1 one byte repeated, 2 compressed),   |
|                 | 3-23 size                                                                                          |
| skippable frame | magic 184d2a50 to 184d2a5f (4), size (4), data                                                     |
"""

from __future__ import annotations

from collections.abc import Generator

from formats.errors import FormatError
from formats.wire import U32, Buffer

LEVEL = 1  # what the reference writes
MAX_BLOCK = 128 << 10  # plain bytes of one block at most

_FRAME_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50


class FrameWalker:
    """Feed it a zstd stream piece by piece, then call ``finish``.

    ``content_size`` is the sum of the sizes that the frames announce, None when one does not. ``limit`` is what the
    blocks can hold at most: both are claims to allocate by, not facts. Raises FormatError.
    """

    __slots__ = ("_head", "_need", "_steps", "_whole", "content_size", "limit", "position")

    def __init__(self) -> None:
        self.content_size: int | None = 0
        self.limit = 0
        self.position = 0
        self._whole = False
        self._head = b""
        self._steps = self._frames()
        self._need = next(self._steps)

    def feed(self, data: Buffer) -> None:
        view = memoryview(data)
        pos, end = 0, len(view)
        while pos < end:
            if self._need < 0:  # bytes to pass over
                step = min(-self._need, end - pos)
                self._need += step
            else:
                step = min(self._need - len(self._head), end - pos)
                self._head += bytes(view[pos : pos + step])
            pos += step
            self.position += step
            while self._need == len(self._head):
                head, self._head = self._head, b""
                self._need = self._steps.send(head)

    def finish(self) -> None:
        """Raise FormatError unless the stream ended with the end of a frame."""
        if not self._whole or self._head:
            raise FormatError("zstd stream ends inside a frame", offset=self.position)

    def _frames(self) -> Generator[int, bytes, None]:
        """Asks for n bytes by yielding n > 0, passes over them by yielding -n."""
        while True:
            magic = U32.unpack((yield 4))[0]
            self._whole = False
            if magic & ~0xF == _SKIPPABLE_MAGIC:
                yield -U32.unpack((yield 4))[0]
            elif magic == _FRAME_MAGIC:
                yield from self._frame()
            else:
                raise FormatError("zstd frame magic", offset=self.position - 4, got=f"{magic:08x}")
            self._whole = True

    def _frame(self) -> Generator[int, bytes, None]:
        descriptor = (yield 1)[0]
        if descriptor & 0x08:
            raise FormatError("zstd frame descriptor: reserved bit", offset=self.position - 1, expected=0, got=1)
        single_segment = descriptor >> 5 & 1
        skipped = (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
        size_length = (single_segment, 2, 4, 8)[descriptor >> 6]
        fields = yield skipped + size_length
        if size_length == 0:
            self.content_size = None
        elif self.content_size is not None:
            # two bytes count from 256
            self.content_size += int.from_bytes(fields[skipped:], "little") + (256 if size_length == 2 else 0)
        last = 0
        while not last:
            header = int.from_bytes((yield 3), "little")
            last, kind, size = header & 1, header >> 1 & 3, header >> 3
            if kind == 3 or size > MAX_BLOCK:
                raise FormatError("zstd block header", offset=self.position - 3, got=f"{header:06x}")
            self.limit += MAX_BLOCK
            yield -1 if kind == 1 else -size
        if descriptor & 0x04:
            yield -4
