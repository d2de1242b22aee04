"""A kernel with tape drives that answers as Linux's ``st`` driver was seen to answer (spec tape.md 4.7, 16).

``Traits`` are the ways in which devices differ; EMULATED is the target of tgt over iSCSI as seen on Linux 6.1.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field, replace
from typing import Literal

from archiver.tape.drive.mtio import Kernel, ScsiAnswer
from formats.wire import Buffer

_MTIOCTOP, _MTIOCGET, _MTIOCPOS = 0x40086D01, 0x80306D02, 0x80086D03
_MTFSF, _MTWEOF, _MTREW, _MTOFFL, _MTBSFM, _MTEOM, _MTERASE = 1, 5, 6, 7, 10, 12, 13
_MTSETBLK, _MTSETDRVBUFFER, _MTWEOFI = 20, 24, 35
_GMT_EOF, _GMT_BOT, _GMT_EOT, _GMT_EOD = 0x80000000, 0x40000000, 0x20000000, 0x08000000
_GMT_WR_PROT, _GMT_ONLINE, _GMT_DR_OPEN = 0x04000000, 0x01000000, 0x00040000
_ALL_FILES = 0x7FFFFF
_STALE = bytes.fromhex("0000 0008") + b"\xff" * 8  # like a log parameter, behind what the drive really says
NODE, GENERIC = "/dev/nst0", "/dev/sg1"


@dataclass(frozen=True)
class Traits:
    counts: bool = True  # it says how many marks it passed, and that it met the end of the data
    position: Literal["real", "none", "zeros"] = "real"
    warning: Literal["alternates", "written-in-spite"] = "alternates"
    end_of_data: Literal["nothing", "rubbish"] = "nothing"
    blank: Literal["end-of-data", "error", "zeros"] = "end-of-data"  # zeros: also behind data without a mark
    passes_empty: bool = False  # moving forward from a mark, it does not count that one
    full: Literal["no-space", "error"] = "no-space"
    erases: bool = True
    marks_at_once: bool = True
    privileged: bool = True  # may set options
    block_is_off: bool = False  # mt_blkno is one too high


REAL = Traits()
EMULATED = Traits(counts=False, position="none", end_of_data="rubbish", blank="zeros", erases=False)
MISCOUNTS = replace(EMULATED, passes_empty=True)
ALL = {
    "real": REAL,
    "emulated": EMULATED,
    "written-in-spite": Traits(warning="written-in-spite", full="error"),
    "in-spite-without-position": Traits(warning="written-in-spite", position="zeros", marks_at_once=False),
    "block-is-off": Traits(warning="written-in-spite", block_is_off=True),
    "blank-is-error": Traits(blank="error", privileged=False, full="error"),
}


@dataclass
class Medium:
    """``items``: records, and None for marks. ``capacity``: blocks until the early warning; ``reserve``: behind it."""

    items: list[bytes | None] = field(default_factory=list)
    capacity: int = 1 << 40
    reserve: int = 4
    protected: bool = False
    bad: set[int] = field(default_factory=set)  # indexes of items that cannot be read

    @property
    def files(self) -> list[list[bytes]]:
        """What is between marks; what is behind the last one is not among them."""
        found: list[list[bytes]] = []
        records: list[bytes] = []
        for item in self.items:
            if item is None:
                found.append(records)
                records = []
            else:
                records.append(item)
        return found


class SimulatedKernel(Kernel):
    """One drive, NODE, with its GENERIC node. ``medium`` may be changed at any time, as a person does."""

    def __init__(self, traits: Traits = REAL, medium: Medium | None = None) -> None:
        self.traits = traits
        self.medium = medium
        self.gone = False
        self.in_use = False
        self.busy = False  # another process has it
        self.becomes_ready_after = 0  # openings
        self.read_only_node = False
        self.options: list[int] = []
        self.block_size = 10240  # as another program left it
        self.moves = 0
        self.bytes_read = 0
        self.fast_end = False
        self.fails: dict[int, int] = {}  # operation -> errno
        self.write_error: int | None = None
        self._seen: Medium | None = None
        self._ready = False
        self._at, self._file, self._block = 0, -1, -1
        self._met: Literal["", "data-end", "medium-end"] = ""
        self._warned = False
        self._writing = False
        self.scsi_device = SimulatedScsi()

    # -- calls -------------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        if path == GENERIC:
            return 100
        if path != NODE:
            raise _error(errno.ENOENT)
        if self.gone:
            raise _error(errno.ENXIO)
        if self.in_use or self.busy:
            raise _error(errno.EBUSY)
        assert flags & os.O_NONBLOCK, "waits two minutes where there is no medium"
        if self.read_only_node and flags & os.O_ACCMODE != os.O_RDONLY:
            raise _error(errno.EROFS)
        self.in_use = True
        self._ready = self.medium is not None and self.becomes_ready_after <= 0
        self.becomes_ready_after -= 1
        if self.medium is not self._seen:
            self._seen = self.medium
            self._at, self._file, self._block, self._met = 0, -1, -1, ""
        return 7

    def close(self, fd: int) -> None:
        if fd == 7:
            self.in_use = False
            self.mark_of_driver()

    def mark_of_driver(self) -> None:
        """Closing writes a file mark behind what was written, also when the process is killed."""
        if self._writing and self.medium is not None:
            self._put_marks(self.medium, 1)

    def power_cut(self) -> None:
        """No mark, and everything is as after switching on."""
        self._writing, self.in_use, self._seen = False, False, None

    def read(self, fd: int, buffer: memoryview) -> int:
        medium = self._loaded()
        self._writing = False
        if self._at == len(medium.items):
            return self._read_end(medium, buffer)
        item = medium.items[self._at]
        self._met = ""
        if item is None:
            self._at, self._file, self._block = self._at + 1, self._file + 1, 0
            if self.traits.end_of_data == "rubbish":
                buffer[:] = bytes(len(buffer))  # as seen: zeros come with a file mark
            return 0
        if self._at in medium.bad:
            self._block = -1
            raise _error(errno.EIO)
        self._at += 1
        self._count_block()
        if len(item) > len(buffer):
            raise _error(errno.ENOMEM)
        buffer[: len(item)] = item
        self.bytes_read += len(item)
        return len(item)

    def _read_end(self, medium: Medium, buffer: memoryview) -> int:
        if not medium.items and self.traits.blank == "error":
            self._block = -1
            raise _error(errno.EIO)
        if (not medium.items or medium.items[-1] is not None) and self.traits.blank == "zeros":
            self._met = "medium-end"
        elif self._met == "data-end" and self.traits.end_of_data == "nothing":
            raise _error(errno.EIO)
        else:
            self._met = "data-end"
            if self.traits.end_of_data == "nothing":
                self._block = -1
                return 0
        self._count_block()
        buffer[:] = bytes(len(buffer))
        return len(buffer)

    def write(self, fd: int, block: Buffer) -> int:
        medium = self._writable()
        if self.write_error is not None:
            raise _error(self.write_error)
        if self._warned:
            self._warned = False
            self._met = "data-end"
            raise _error(errno.ENOSPC)
        del medium.items[self._at :]
        used = sum(item is not None for item in medium.items)
        if used >= medium.capacity + medium.reserve:
            self._met = "medium-end"
            raise _error(errno.ENOSPC if self.traits.full == "no-space" else errno.EIO)
        medium.items.append(bytes(block))
        self._at += 1
        self._count_block()
        self._writing = True
        if used < medium.capacity:
            self._met = "medium-end" if self._met == "data-end" else ""  # as seen: it is taken for an early warning
            return len(block)
        self._met = "medium-end"
        if self.traits.warning == "alternates":
            self._warned = True
            return len(block)
        raise _error(errno.ENOSPC)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        if self.gone:
            raise _error(errno.ENODEV)
        if request == _MTIOCTOP:
            assert len(argument) == 8
            operation, count = struct.unpack("=hxxi", argument)
            self._operate(operation, count)
        elif request == _MTIOCGET:
            argument[:] = self._status()
        elif request == _MTIOCPOS:
            argument[:] = struct.pack("@l", self._position())
        else:
            raise AssertionError(hex(request))

    def scsi(self, fd: int, command: bytes, *, send: bytes, receive: int, seconds: float) -> ScsiAnswer:
        assert fd == 100
        return self.scsi_device.command(command, send, receive)

    # -- the driver --------------------------------------------------------------------------------------------------

    def _operate(self, operation: int, count: int) -> None:
        if operation in self.fails:
            raise _error(self.fails[operation])
        if operation == _MTSETDRVBUFFER:
            if not self.traits.privileged:
                raise _error(errno.EPERM)
            self.options.append(count)
            self.fast_end = self.fast_end and not count & 0x20
            return
        if operation in (_MTWEOF, _MTWEOFI, _MTERASE):
            self._write_operation(operation, count)
            return
        medium = self._loaded()
        self._writing = False
        self.moves += 1
        if operation == _MTREW:
            self._at, self._file, self._block, self._met, self._warned = 0, 0, 0, "", False
        elif operation == _MTFSF:
            self._forward(medium, count)
        elif operation == _MTBSFM:
            self._back(medium, count)
        elif operation == _MTEOM:
            self._to_end(medium)
        elif operation == _MTSETBLK:
            self.block_size = count
        elif operation == _MTOFFL:
            self.medium, self._ready, self._seen = None, False, None
        else:
            raise AssertionError(operation)

    def _forward(self, medium: Medium, count: int) -> None:
        self._met = ""
        start = self._file
        if self.traits.passes_empty and medium.items[self._at : self._at + 1] == [None]:
            self._at += 1
        for _ in range(count):
            try:
                self._at = medium.items.index(None, self._at) + 1
            except ValueError:
                self._at, self._block = len(medium.items), -1
                if self.traits.counts:
                    self._met = "data-end"
                else:
                    self._file = start + count  # as seen: it believes to have passed them all
                raise _error(errno.EIO) from None
            self._file += 1
        self._block = 0

    def _back(self, medium: Medium, count: int) -> None:
        at, self._met = self._at, ""
        for passed in range(count):
            while at > 0 and medium.items[at - 1] is not None:
                at -= 1
            if at == 0:
                self._at, self._block = 0, -1
                raise _error(errno.EIO)
            at -= 1
            self._file -= passed > 0
        self._at, self._block = at + 1, 0

    def _to_end(self, medium: Medium) -> None:
        if not medium.items and self.traits.blank == "error":
            self._file, self._block = 0, -1
            raise _error(errno.EIO)
        if self.fast_end:
            self._file = -1
        elif self.traits.counts:
            self._file += medium.items[self._at :].count(None)
        else:
            self._file += _ALL_FILES
        self._at, self._block, self._met = len(medium.items), -1, "data-end"

    def _write_operation(self, operation: int, count: int) -> None:
        medium = self._writable()
        if operation == _MTERASE:
            if not self.traits.erases:
                raise _error(errno.EIO)
            del medium.items[self._at :]
            return
        if operation == _MTWEOFI and not self.traits.marks_at_once:
            raise _error(errno.EINVAL)
        self._put_marks(medium, count)

    def _put_marks(self, medium: Medium, count: int) -> None:
        if count:
            del medium.items[self._at :]
            medium.items += [None] * count
            self._at = len(medium.items)
            self._file += count
        self._block, self._met, self._warned, self._writing = 0, "", False, False

    def _status(self) -> bytes:
        flags = {"": 0, "data-end": _GMT_EOD, "medium-end": _GMT_EOT}[self._met]
        if self._block == 0 and self._file >= 0:
            flags |= _GMT_BOT if self._file == 0 else _GMT_EOF
        medium = self.medium if self._ready else None
        flags |= _GMT_DR_OPEN if medium is None else _GMT_ONLINE
        if medium is not None and medium.protected:
            flags |= _GMT_WR_PROT
        block = self._block + (self.traits.block_is_off and self._block > 0)
        return struct.pack("@lllllii", 0x72, 0, 0x5E << 24 | self.block_size, flags, 0, self._file, block)

    def _position(self) -> int:
        if self.traits.position == "none":
            raise _error(errno.EIO)
        return self._at if self.traits.position == "real" else 0

    def _loaded(self) -> Medium:
        if not self._ready or self.medium is None:
            raise _error(errno.ENOMEDIUM)
        return self.medium

    def _writable(self) -> Medium:
        medium = self._loaded()
        if medium.protected:
            raise _error(errno.EACCES)
        return medium

    def _count_block(self) -> None:
        if self._block >= 0:
            self._block += 1


class SimulatedScsi:
    """The drive as it is spoken to beside the driver: encrypts, has alerts and statistics where it is told so."""

    def __init__(self) -> None:
        self.encrypts = False
        self.refuses_key = False
        self.key: bytes | None = None
        self.alerts: list[int] | None = None
        self.parameters: dict[int, bytes] = {}
        self.attention = False
        self.pads = True  # sends as much as it was asked for
        self.commands: list[bytes] = []

    def command(self, command: bytes, send: bytes, receive: int) -> ScsiAnswer:
        self.commands.append(command)
        if self.attention:
            self.attention = False
            return ScsiAnswer(b"", bytes.fromhex("70000600000000 0a 00000000 2800 0000"), False)
        data = self._answer(command, send)
        if data is None:
            return ScsiAnswer(b"", bytes.fromhex("70000500000000 0a 00000000 2000 0000"), False)
        if self.pads and receive:
            data += _STALE * ((receive - len(data)) // len(_STALE))
        return ScsiAnswer(data[:receive], b"", True)

    def _answer(self, command: bytes, send: bytes) -> bytes | None:
        if command[0] == 0xA2 and self.encrypts:
            assert command[1] == 0x20 and int.from_bytes(command[6:10], "big") == 8192
            page = int.from_bytes(command[2:4], "big")
            return self._capabilities() if page == 0x10 else self._key_status() if page == 0x20 else None
        if command[0] == 0xB5 and self.encrypts:
            assert command[1:4] == b"\x20\x00\x10" and int.from_bytes(command[6:10], "big") == len(send)
            return self._take_key(send)
        if command[0] == 0x4D:
            page = command[2] & 0x3F
            if page == 0x12 and self.alerts is not None:
                flags = sum(1 << (64 - number) for number in self.alerts)
                return _log_page(page, {0: flags.to_bytes(8, "big")})
            if page == 0x17 and self.parameters:
                return _log_page(page, self.parameters)
        return None

    def _capabilities(self) -> bytes:
        other = struct.pack(">BxHBx4xHH8xI", 1, 0x14, 0b1010, 0, 16, 0x00010010)[:24].ljust(24, b"\0")
        ours = bytearray(24)
        ours[0], ours[3], ours[4], ours[11] = 5, 0x14, 0b1010, 32
        ours[20:24] = (0x00010014).to_bytes(4, "big")
        body = bytes(16) + other + bytes(ours)
        return struct.pack(">HH", 0x10, len(body)) + body

    def _key_status(self) -> bytes:
        modes = (2, 3) if self.key else (0, 0)
        body = bytes((0x40, *modes)) + bytes(17)
        return struct.pack(">HH", 0x20, len(body)) + body

    def _take_key(self, page: bytes) -> bytes:
        code, length, scope, lock, encrypt, decrypt, index, form = struct.unpack_from(">HHBBBBBB", page)
        assert (code, length, scope, lock, index, form) == (0x10, len(page) - 4, 0x40, 0, 5, 0)
        size = int.from_bytes(page[18:20], "big")
        assert len(page) == 20 + size and (encrypt, decrypt, size) in ((2, 3, 32), (0, 0, 0))
        if not self.refuses_key:
            self.key = page[20:] or None
        return b""


def with_traits(traits: Traits, **changes: object) -> Traits:
    return replace(traits, **changes)  # type: ignore[arg-type]


def _log_page(page: int, parameters: dict[int, bytes]) -> bytes:
    body = b"".join(struct.pack(">HBB", code, 0, len(value)) + value for code, value in parameters.items())
    return struct.pack(">BBH", page, 0, len(body)) + body


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
