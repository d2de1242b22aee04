"""Writing past the page cache (O_DIRECT), whole blocks of large files.

In the cache they would take the memory from everybody else, and filling fresh pages costs more than all else that is
done with them: 2 GiB took 6 to 8 s of kernel time on a virtual machine, this way 2 s. Pieces go through aligned
buffers, a few at a time, so that the disk has always something to do (Linux native AIO; a call that waits for the disk
would keep all others from the file).

struct iocb, 64 bytes       data u64, key u32, rw_flags u32, opcode u16, priority s16, fd u32, address u64, length u64,
                            offset s64, reserved u64, flags u32, eventfd u32
struct io_event, 32 bytes   data u64, iocb u64, result s64 (bytes or -errno), result2 s64
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from typing import NamedTuple

import numpy as np

BLOCK = max(mmap.PAGESIZE, 4096)  # bytes; no disk has larger ones, and no page is shared with what goes another way
_SLOTS = 4
_SLOT = 1 << 20  # bytes

_IOCB = struct.Struct("<QIiHhIQQqQII")
_EVENT = struct.Struct("<QQqq")
_PREAD, _PWRITE = 0, 1
_DEFINITE = {errno.EIO, errno.ENOSPC, errno.EDQUOT}  # of everything else the usual way tells whether it matters
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  # a Python that was made for old C libraries does not have it

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Calls(NamedTuple):
    """Numbers of system calls."""

    setup: int
    destroy: int
    submit: int
    get_events: int


_CALLS = {"x86_64": _Calls(206, 207, 209, 208), "aarch64": _Calls(0, 1, 2, 4), "riscv64": _Calls(0, 1, 2, 4)}


class NotDirect(Exception):
    """It cannot be written this way: the file system, or the kernel, has no such thing."""


def reopen(fd: int) -> int:
    """One more descriptor of an open file, for writing and reading past the page cache. Raises NotDirect."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise NotDirect from error


def is_cached(fd: int, offset: int) -> bool:
    """Whether a byte of an open file is in the page cache, as far as the kernel tells: then it did not go past it. Some
    file systems accept O_DIRECT and do as usual, for encrypted files or in memory."""
    if _NOWAIT is None:
        return False
    try:
        return os.preadv(fd, [bytearray(1)], offset, _NOWAIT) > 0
    except OSError:
        return False


class DirectWriter:
    """Memory for some MiB on their way; for one thread at a time."""

    def __init__(self) -> None:
        """Raises NotDirect."""
        calls = _CALLS.get(platform.machine())
        memory = mmap.mmap(-1, _SLOTS * _SLOT)  # begins with a page; shared, so that a fork does not exchange pages
        self._context = ctypes.c_ulong(0)
        # A process of 32 bits has other numbers.
        if calls is None or ctypes.sizeof(ctypes.c_void_p) != 8:
            raise NotDirect
        if _call(calls.setup, ctypes.c_uint(_SLOTS), ctypes.byref(self._context)) < 0:
            raise NotDirect
        self._calls = calls
        self._memory = np.frombuffer(memory, np.uint8).reshape(_SLOTS, _SLOT)
        self._address = self._memory.ctypes.data
        self._iocb = ctypes.create_string_buffer(_IOCB.size)
        self._pointer = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._events = ctypes.create_string_buffer(_SLOTS * _EVENT.size)

    def write(self, fd: int, data: memoryview, offset: int, *, check: bool) -> bool:
        """Write whole blocks: ``offset`` and the length of ``data`` are multiples of BLOCK. With ``check`` they are
        read again, from the disk: whether they are what was written.

        Raises NotDirect when it cannot be done this way, OSError when it cannot be done at all.
        """
        source = np.frombuffer(data, np.uint8)
        starts = iter(range(0, len(source), _SLOT))
        free = list(range(_SLOTS))
        flying: dict[int, tuple[int, int]] = {}  # by slot: what is done with it, and where its piece begins
        failed = 0
        is_same = True
        while True:
            while free and not failed and (start := next(starts, None)) is not None:
                slot = free.pop()
                piece = source[start : start + _SLOT]
                np.copyto(self._memory[slot, : len(piece)], piece)
                failed = self._submit(_PWRITE, fd, slot, len(piece), offset + start)
                if not failed:
                    flying[slot] = _PWRITE, start
            if not flying:
                break
            for slot, result in self._done():
                operation, start = flying.pop(slot)
                piece = source[start : start + _SLOT]
                memory = self._memory[slot, : len(piece)]
                if result != len(piece):
                    failed = failed or min(result, 0) or -errno.EINVAL
                elif operation == _PREAD:
                    is_same = is_same and np.array_equal(memory, piece)
                elif check and not failed:
                    memory[::BLOCK] ^= 0xFF  # what is not read must not look as if it were
                    failed = self._submit(_PREAD, fd, slot, len(piece), offset + start)
                    if not failed:
                        flying[slot] = _PREAD, start
                        continue
                free.append(slot)
        if -failed in _DEFINITE:
            raise OSError(-failed, os.strerror(-failed))
        if failed:
            raise NotDirect
        return is_same

    def _submit(self, operation: int, fd: int, slot: int, length: int, offset: int) -> int:
        """Begin something with a slot. 0, or -errno."""
        address = self._address + slot * _SLOT
        _IOCB.pack_into(self._iocb, 0, slot, 0, 0, operation, 0, fd, address, length, offset, 0, 0, 0)
        return min(_call(self._calls.submit, self._context, ctypes.c_long(1), self._pointer), 0)

    def _done(self) -> list[tuple[int, int]]:
        """Wait for something that was begun: slots, and bytes or -errno of each."""
        at_most = ctypes.c_long(_SLOTS)
        while (
            count := _call(self._calls.get_events, self._context, ctypes.c_long(1), at_most, self._events, None)
        ) < 0:
            if count != -errno.EINTR:
                raise OSError(-count, os.strerror(-count))
        found = _EVENT.iter_unpack(self._events.raw[: count * _EVENT.size])
        return [(slot, result) for slot, _, result, _ in found]

    def close(self) -> None:
        _call(self._calls.destroy, self._context)


def _call(number: int, *arguments: object) -> int:
    """What a system call returns, or -errno."""
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    return result if result >= 0 else -ctypes.get_errno()
