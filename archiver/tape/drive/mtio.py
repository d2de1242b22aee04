"""The kernel's tape nodes (/dev/nst*) through their ioctls (spec tape.md 4.7), and SCSI commands beside them (SG_IO).

request (64 bit)   number       argument
-----------------  -----------  ----------------------------------------------------------------------------------
MTIOCTOP           0x40086d01   8 bytes: short operation, int count
MTIOCGET           0x80306d02   48 bytes: longs type, resid, dsreg, gstat, erreg; ints fileno, blkno
MTIOCPOS           0x80086d03   long: number of the block
SG_IO              0x2285       struct sg_io_hdr, 88 bytes, version 3

``Kernel`` is all that touches a device: tests hand in one that answers as the driver does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from fcntl import ioctl

from formats.wire import Buffer

MTIOCTOP = 0x40086D01
MTIOCGET = 0x80306D02
MTIOCPOS = 0x80086D03
SG_IO = 0x2285

# operations of MTIOCTOP
FORWARD_FILES = 1  # MTFSF
WRITE_MARKS = 5  # MTWEOF; count 0: only have the drive write what it holds in memory
REWIND = 6  # MTREW
UNLOAD = 7  # MTOFFL
BACK_FILES_BEHIND = 10  # MTBSFM: back over marks, then forward over the last one
TO_END = 12  # MTEOM
ERASE = 13  # MTERASE; count 0: short
SET_BLOCK_SIZE = 20  # MTSETBLK; 0: records have the length that they are written with
SET_OPTIONS = 24  # MTSETDRVBUFFER
WRITE_MARKS_AT_ONCE = 35  # MTWEOFI: does not wait until they are on the medium

# count of SET_OPTIONS: which options to switch off
CLEAR_OPTIONS = 0x40000000
TWO_MARKS = 0x10  # at the end of what was written
FAST_END = 0x20  # TO_END forgets the number of the file
SYSTEM_V = 0x1000  # a read that meets a file mark stays before it

# bits of gstat
AT_MARK = 0x80000000  # the start of a file
AT_START = 0x40000000  # of the medium
AT_MEDIUM_END = 0x20000000  # the early warning, or the end itself
AT_DATA_END = 0x08000000
PROTECTED = 0x04000000
ONLINE = 0x01000000
NO_MEDIUM = 0x00040000
WANTS_CLEANING = 0x00008000

_OPERATION = struct.Struct("=hxxi")
_STATUS = struct.Struct("@lllllii")
_LONG = struct.Struct("@l")
_SG_HEADER = struct.Struct("@iiBBHIPPPIIiPBBBBHHiII4x")
_SG_INTERFACE = ord("S")
_TO_DEVICE, _FROM_DEVICE, _NO_DATA = -2, -3, -1
_SENSE_SIZE = 96


@dataclass(frozen=True, slots=True)
class TapeState:
    """What MTIOCGET says. ``file`` and ``block`` are None where the driver does not know them."""

    flags: int
    file: int | None
    block: int | None
    block_size: int
    density: int

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


@dataclass(frozen=True, slots=True)
class ScsiAnswer:
    """``data``: what came, cut at what the transport says. ``sense`` is empty when the command succeeded."""

    data: bytes
    sense: bytes
    ok: bool


class Kernel:
    """The system calls that a drive is driven by. All raise OSError."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, buffer: memoryview) -> int:
        return os.readv(fd, [buffer])

    def write(self, fd: int, block: Buffer) -> int:
        return os.write(fd, block)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        """What the kernel answers is in ``argument`` then."""
        ioctl(fd, request, argument)

    def scsi(self, fd: int, command: bytes, *, send: bytes, receive: int, seconds: float) -> ScsiAnswer:
        """One SCSI command, that sends bytes to the device or gets at most ``receive``."""
        size = len(send) or receive
        data = ctypes.create_string_buffer(send, size) if send else ctypes.create_string_buffer(max(size, 1))
        cdb = ctypes.create_string_buffer(command, len(command))
        sense = ctypes.create_string_buffer(_SENSE_SIZE)
        header = bytearray(
            _SG_HEADER.pack(
                _SG_INTERFACE,
                _TO_DEVICE if send else _FROM_DEVICE if receive else _NO_DATA,
                len(command),
                _SENSE_SIZE,
                0,
                size,
                ctypes.addressof(data) if size else 0,
                ctypes.addressof(cdb),
                ctypes.addressof(sense),
                int(seconds * 1000),
                *(0,) * 12,
            )
        )
        self.ioctl(fd, SG_IO, header)
        fields = _SG_HEADER.unpack(header)
        status, sense_size, host, driver, left = fields[13], fields[16], fields[17], fields[18], fields[19]
        got = data.raw[: max(0, receive - max(0, left))] if receive else b""
        # 8 in the driver's status only says that there is sense data
        return ScsiAnswer(got, sense.raw[:sense_size], status == 0 and host == 0 and driver & 0xF in (0, 8))


class TapeNode:
    """An open tape node. While it is open, another opening of it gives EBUSY."""

    def __init__(self, path: str, kernel: Kernel) -> None:
        """Does not wait for a medium: a plain opening of an empty drive waits two minutes. Raises OSError."""
        self._kernel = kernel
        self.is_read_only = False
        try:
            self._fd = kernel.open(path, os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            self._fd = kernel.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self.is_read_only = True

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._kernel.close(fd)

    def read(self, buffer: memoryview) -> int:
        return self._kernel.read(self._fd, buffer)

    def write(self, block: Buffer) -> int:
        return self._kernel.write(self._fd, block)

    def operate(self, operation: int, count: int = 1) -> None:
        self._kernel.ioctl(self._fd, MTIOCTOP, bytearray(_OPERATION.pack(operation, count)))

    def state(self) -> TapeState:
        argument = bytearray(_STATUS.size)
        self._kernel.ioctl(self._fd, MTIOCGET, argument)
        _, _, registers, flags, _, file, block = _STATUS.unpack(argument)
        return TapeState(
            flags & 0xFFFFFFFF,
            file if file >= 0 else None,
            block if block >= 0 else None,
            registers & 0xFFFFFF,
            registers >> 24 & 0xFF,
        )

    def position(self) -> int | None:
        """The drive's own number of the next block; None where it has none to tell."""
        argument = bytearray(_LONG.size)
        try:
            self._kernel.ioctl(self._fd, MTIOCPOS, argument)
        except OSError:
            return None
        number: int = _LONG.unpack(argument)[0]
        return number if number >= 0 else None
