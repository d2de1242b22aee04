"""Calls of this process to the kernel that fail, or do less than they were asked for, where a test says so.

A *site* is a call by its name and by the lines of the program that lead to it; the same work done twice has the same
sites, whichever thread does it. What goes through Python is met here; what libraries do by themselves (LMDB, the
interpreter) is met by ``traced``.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import mmap
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.core import linux

SHORT = "short"  # fewer bytes are written or read than asked for; they are really written or read

_ROOT = str(Path(__file__).parent.parent.parent / "archiver")
_SPACE = ("EIO", "ENOSPC")
_READING, _WRITING = ("EIO", SHORT), ("EIO", "ENOSPC", SHORT)

# name -> what such a call may end with on a disk that fails or is full, or where the machine is short of something
OF_OS = {
    "open": ("EIO", "ENOSPC", "EMFILE"),
    "read": _READING,
    "readv": _READING,
    "pread": _READING,
    "preadv": _READING,
    "write": _WRITING,
    "writev": _WRITING,
    "pwrite": _WRITING,
    "fsync": _SPACE,
    "rename": _SPACE,
    "link": _SPACE,
    "symlink": _SPACE,
    "mknod": _SPACE,
    "mkdir": _SPACE,
    "unlink": ("EIO",),
    "rmdir": ("EIO",),
    "ftruncate": _SPACE,
    "posix_fallocate": _SPACE,
    "stat": ("EIO",),
    "lstat": ("EIO",),
    "fstat": ("EIO",),
    "statvfs": ("EIO",),
    "scandir": ("EIO", "EMFILE"),
    "listdir": ("EIO", "EMFILE"),
    "utime": ("EIO",),
    "chmod": ("EIO",),
    "fchmod": ("EIO",),
    "fchown": ("EIO",),
    "chown": ("EIO",),
    "readlink": ("EIO",),
    "access": ("EIO",),
    "close": ("EIO",),
    "lseek": ("EIO",),
    "listxattr": ("EIO",),
    "getxattr": ("EIO",),
    "setxattr": _SPACE,
    "posix_fadvise": ("EIO",),
}
OF_FCNTL = {"fcntl": ("ENOLCK",), "flock": ("ENOLCK",), "ioctl": ("EIO",)}
OF_LIBC = {
    "fstatfs": ("EIO", "EINTR"),
    "renameat2": _SPACE,
    "syncfs": ("EIO", "ENOSPC", "EINTR"),
    "sync_file_range": ("EIO",),
    "futimens": ("EIO",),
    "utimensat": ("EIO",),
    "statx": ("EIO",),
}
KINDS: dict[str, tuple[str, ...]] = {
    **OF_OS,
    **OF_FCNTL,
    **OF_LIBC,
    "file": ("EIO", "ENOSPC", "EMFILE"),  # the function open
    "mmap": ("ENOMEM",),
}
_CLOSES_WRITTEN = re.compile(r"core/disk:put|core/disk:close:\d+ < (?!store/sessions)|restore/write:")
_TRANSFERS = ("read", "readv", "pread", "preadv", "write", "writev", "pwrite")


@dataclass(frozen=True, slots=True)
class Fault:
    """The ``occurrence``-th call at ``site`` (0: each call; site "": any that can) ends so."""

    call: str
    site: str
    occurrence: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} at call {self.occurrence} of {self.call} in {self.site}"


class Injector:
    """``calls`` counts the calls of each (name, site) from ``install`` on."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.hits = 0
        self._fault = fault
        self._lock = threading.Lock()

    def install(self) -> None:
        """For good: in a process that ends with what is tried."""
        for name in OF_OS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        for name in OF_FCNTL:
            setattr(fcntl, name, self._wrapped(name, getattr(fcntl, name)))
        setattr(linux, "ioctl", fcntl.ioctl)  # noqa: B010  it is no public name there
        for name in OF_LIBC:
            setattr(linux._libc, name, self._wrapped(name, getattr(linux._libc, name)))
        builtins.open = self._wrapped("file", builtins.open)
        mmap.mmap = self._wrapped("mmap", mmap.mmap)  # type: ignore[assignment,misc]

    def _wrapped(self, name: str, real: Any) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            kind = self._met(name)
            if kind is None:
                return real(*arguments, **options)
            if kind == SHORT:
                return shortened(real, name, arguments)
            number = getattr(errno, kind)
            if name in OF_LIBC:
                ctypes.set_errno(number)
                return -1
            if name == "close":  # it is closed all the same
                real(*arguments)
            if name == "access":
                return False
            path = [argument for argument in arguments[:1] if isinstance(argument, (str, bytes, os.PathLike))]
            raise OSError(number, os.strerror(number), *path)

        return wrapped

    def _met(self, name: str) -> str | None:
        """How this call is to end; None: as it does."""
        site = _site()
        if not site:
            return None  # the test's own, or the interpreter's
        fault = self._fault
        with self._lock:
            self.calls[name, site] += 1
            if fault is None or fault.call not in (name, ""):
                return None
            if fault.occurrence == 0 and fault.kind == SHORT:
                if name not in _TRANSFERS:
                    return None
            elif fault.site != site or fault.occurrence not in (0, self.calls[name, site]):
                return None
            self.hits += 1
            return fault.kind


def faults(calls: Mapping[tuple[str, str], int]) -> list[Fault]:
    """Every kind of end at the first and at the last call of each site. Closing matters only where something was
    written that is to stay."""
    return [
        Fault(call, site, occurrence, kind)
        for (call, site), count in sorted(calls.items())
        if call != "close" or _CLOSES_WRITTEN.match(site)
        for kind in KINDS[call]
        for occurrence in sorted({1, count})
    ]


def shortened(real: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    """The same transfer of about half as many bytes, one at least; the arguments are those of ``os``."""
    fd, what, *rest = arguments
    if name in ("read", "pread"):
        return real(fd, max(1, what // 2) if what else 0, *rest)
    if name in ("write", "pwrite"):
        return real(fd, _half(what), *rest)
    first = next((part for part in what if len(part)), b"")
    return real(fd, [_half(first)], *rest)


def _half(part: Any) -> memoryview:
    view = memoryview(part).cast("B")
    return view[: max(1, len(view) // 2)]


def _site() -> str:
    frame = sys._getframe(2)
    lines: list[str] = []
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_ROOT):
            if path.endswith("cli/main.py"):
                break
            lines.append(f"{path[len(_ROOT) + 1 : -3]}:{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)
