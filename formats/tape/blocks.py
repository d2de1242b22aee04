"""Blocks: every file on a medium is a row of them, then a file mark (spec tape.md 2.2).

    offset  size    field
    0       8       magic
    8       1       flags: bit 0 END_OF_STREAM, bit 1 INCOMPLETE (only together with bit 0)
    9       3       bytes of the payload that are used, little-endian
    12      4       le32 number of the block in its file, from 0
    16      262128  payload, zeros behind what is used

All blocks but the last are full; the last has END_OF_STREAM and is never full, so it is empty when the stream's length
is a multiple of 262128. A file that ends without it was cut while it was written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from formats.errors import FormatError
from formats.wire import Buffer

BLOCK_SIZE = 256 << 10
HEADER_SIZE = 16
PAYLOAD_SIZE = BLOCK_SIZE - HEADER_SIZE

_MAGIC = bytes.fromhex("dcbdafcaeba0a528")
_HEADER = struct.Struct("<8sII")
_END_OF_STREAM, _INCOMPLETE = 1, 2


class BlockWriter:
    """Turns a stream into blocks. ``write`` takes one block, valid during the call, and says whether the end of the
    medium is near (LEOM).

    Attributes: ``bytes_written``, of whole blocks that went out; ``near_end``, once a block met LEOM.
    """

    def __init__(self, write: Callable[[memoryview], bool]) -> None:
        self._put = write
        self._block = bytearray(BLOCK_SIZE)
        self._view = memoryview(self._block)
        self._filled = HEADER_SIZE
        self._number = 0
        self.bytes_written = 0
        self.near_end = False

    def write(self, data: Buffer) -> bool:
        """Returns ``near_end``."""
        rest = memoryview(data).cast("B")
        while len(rest) >= BLOCK_SIZE - self._filled:
            room = BLOCK_SIZE - self._filled
            self._view[self._filled :] = rest[:room]
            rest = rest[room:]
            self._send(0, PAYLOAD_SIZE)
            self._filled = HEADER_SIZE
        end = self._filled + len(rest)
        self._view[self._filled : end] = rest
        self._filled = end
        return self.near_end

    def finish(self, *, incomplete: bool = False) -> bool:
        """The last block. ``incomplete``: what was written is of no use to a reader. Returns ``near_end``."""
        self._block[self._filled :] = bytes(BLOCK_SIZE - self._filled)
        self._send(_END_OF_STREAM | (_INCOMPLETE if incomplete else 0), self._filled - HEADER_SIZE)
        return self.near_end

    def _send(self, flags: int, used: int) -> None:
        _HEADER.pack_into(self._block, 0, _MAGIC, flags | used << 8, self._number)
        self._number += 1
        self.near_end |= self._put(self._view)
        self.bytes_written += BLOCK_SIZE


class BlockReader:
    """The stream in the blocks of one file. ``read_block`` gives the next block, None at the file mark.

    Attributes, known when the stream has ended: ``has_end_marker``, ``incomplete``; ``blocks``: how many were read.
    """

    def __init__(self, read_block: Callable[[], Buffer | None]) -> None:
        self._next = read_block
        self._piece = memoryview(b"")
        self._ended = False
        self.blocks = 0
        self.has_end_marker = False
        self.incomplete = False

    def read(self, length: int) -> bytes:
        """``length`` bytes, fewer only at the end of the stream. Raises FormatError; a stream without its end marker
        ends like any other, see ``has_end_marker``."""
        pieces: list[bytes] = []
        while length > 0 and (self._piece or self._advance()):
            piece, self._piece = bytes(self._piece[:length]), self._piece[length:]
            pieces.append(piece)  # a copy: the next block may take the place of this one
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def at_end(self) -> bool:
        """Whether nothing follows. Where there is not even a block, ``blocks`` is 0 then."""
        return not self._piece and not self._advance()

    def skip(self, length: int) -> int:
        """Pass over ``length`` bytes; how many there were."""
        left = length
        while left > 0 and (self._piece or self._advance()):
            passed = min(left, len(self._piece))
            self._piece = self._piece[passed:]
            left -= passed
        return length - left

    def _advance(self) -> bool:
        """The next block that is not empty."""
        while not self._ended:
            block = self._next()
            if block is None:
                self._ended = True
                return False
            self._piece = self._payload(memoryview(block).cast("B"))
            self.blocks += 1
            if self.has_end_marker:
                self._ended = True
                if self._next() is not None:
                    raise FormatError("a block behind the last one of its stream", offset=self.blocks * BLOCK_SIZE)
            if self._piece:
                return True
        return False

    def _payload(self, block: memoryview) -> memoryview:
        position = self.blocks * BLOCK_SIZE
        if len(block) != BLOCK_SIZE:
            raise FormatError("length of a block", offset=position, expected=BLOCK_SIZE, got=len(block))
        magic, flags, number = _HEADER.unpack_from(block)
        used = flags >> 8
        if magic != _MAGIC:
            raise FormatError("magic of a block", offset=position, expected=_MAGIC.hex(), got=magic.hex())
        if number != self.blocks:
            raise FormatError("number of a block", offset=position + 12, expected=self.blocks, got=number)
        if used > PAYLOAD_SIZE:
            raise FormatError(
                "used bytes of a block", offset=position + 9, expected=f"at most {PAYLOAD_SIZE}", got=used
            )
        if flags & _END_OF_STREAM:
            self.has_end_marker = True
            self.incomplete = bool(flags & _INCOMPLETE)
        elif used == 0:
            raise FormatError("an empty block that is not the last one", offset=position)
        return block[HEADER_SIZE : HEADER_SIZE + used]
