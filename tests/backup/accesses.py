"""Which files are read, as the kernel tells it (inotify): the program has no say in it."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType

_IN_ACCESS = 0x1
_IN_Q_OVERFLOW = 0x4000
_IN_ISDIR = 0x40000000
_EVENT = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Accesses:
    """Watches a tree while it is the context of a ``with`` statement. Directories made meanwhile are not watched."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directories: dict[int, Path] = {}

    def __enter__(self) -> Accesses:
        self._fd = _checked(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        for place, _, _ in os.walk(self._root):
            watch = _checked(_LIBC.inotify_add_watch(self._fd, os.fsencode(place), _IN_ACCESS))
            self._directories[watch] = Path(place)
        return self

    def files(self) -> set[Path]:
        """The names by which bytes of files were read since this was last asked."""
        found: set[Path] = set()
        while True:
            try:
                events = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(events):
                watch, mask, _, length = _EVENT.unpack_from(events, at)
                name = events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                assert not mask & _IN_Q_OVERFLOW, "more was read than the kernel keeps account of"
                if name and not mask & _IN_ISDIR:
                    found.add(self._directories[watch] / os.fsdecode(name))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
