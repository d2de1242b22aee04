"""Bounds-checked reading of little-endian fields from a buffer."""

from __future__ import annotations

import struct

from formats.errors import FormatError

Buffer = bytes | bytearray | memoryview

U16 = struct.Struct("<H")
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
I64 = struct.Struct("<q")


class Reader:
    """A cursor over ``data`` (a stored byte string). ``base`` is the offset of ``data[0]`` in its file, for messages.

    Every read past the end raises FormatError; nothing is copied until ``take`` is turned into bytes by the caller.
    """

    __slots__ = ("base", "data", "pos", "what")

    def __init__(self, data: Buffer, what: str, base: int = 0) -> None:
        self.data = memoryview(data).cast("B")
        self.what = what
        self.base = base
        self.pos = 0

    def remaining(self) -> int:
        return len(self.data) - self.pos

    def take(self, length: int) -> memoryview:
        """The next ``length`` bytes as a view."""
        if length < 0 or length > len(self.data) - self.pos:
            raise FormatError(
                f"{self.what} ends early",
                offset=self.base + self.pos,
                expected=f"{length} bytes",
                got=f"{len(self.data) - self.pos}",
            )
        view = self.data[self.pos : self.pos + length]
        self.pos += length
        return view

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        value: int = U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = U64.unpack(self.take(8))[0]
        return value

    def i64(self) -> int:
        value: int = I64.unpack(self.take(8))[0]
        return value

    def finish(self) -> None:
        """Raise FormatError unless everything was consumed."""
        if self.pos != len(self.data):
            raise FormatError(
                f"{self.what} has trailing bytes", offset=self.base + self.pos, got=f"{self.remaining()} bytes"
            )
