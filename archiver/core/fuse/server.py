"""Answers the kernel's requests about a read-only file system, with several threads."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from archiver.core.fuse import protocol as p
from archiver.core.fuse.protocol import Found, Listed, Request

_BUFFER = 64 << 10  # bytes of the largest request: names and small numbers, no one writes
_READAHEAD = 1 << 20  # bytes that the kernel may read ahead
_MOST_PAGES = 256  # in one request
_BACKGROUND = 16  # requests of reading ahead at a time
_NO_DATA = {errno.ENOENT, errno.EINTR, errno.EAGAIN}
_GONE = (errno.ENODEV, errno.EBADF, errno.ECONNABORTED)


class FileSystem(Protocol):
    """What is served. Methods are called from several threads; OSError becomes the answer."""

    def lookup(self, parent: int, name: bytes) -> Found: ...

    def forget(self, node: int, count: int) -> None:
        """The kernel gives back that many of the times that it was told of a node."""

    def attributes(self, node: int) -> Found: ...

    def target(self, node: int) -> bytes: ...

    def open(self, node: int) -> None: ...

    def release(self, node: int) -> None: ...

    def read(self, node: int, offset: int, size: int) -> list[bytes | memoryview]:
        """``size`` bytes in pieces; fewer only at the end of the file."""

    def seek(self, node: int, offset: int, whence: int) -> int:
        """The next data or hole (os.SEEK_DATA, os.SEEK_HOLE)."""

    def list_directory(self, node: int) -> Iterator[Listed]:
        """All entries, in the same order each time. Nodes in there are not counted as told."""

    def keeps(self, node: int) -> bool:
        """Whether a directory never changes, so that the kernel may keep its listing."""

    def extended(self, node: int) -> dict[bytes, bytes]: ...

    def control(self, node: int, command: int, size: int) -> bytes:
        """The answer to an ioctl that asks for ``size`` bytes."""


class _Directory:
    """An open directory: where its listing is, and the entry that did not fit the last time."""

    __slots__ = ("entries", "held", "lock", "node", "position")

    def __init__(self, node: int) -> None:
        self.node = node
        self.lock = threading.Lock()
        self.entries: Iterator[Listed] | None = None
        self.position = 0
        self.held: Listed | None = None

    def next(self) -> Listed | None:
        held, self.held = self.held, None
        return held if held is not None else next(self.entries or iter(()), None)


class Server:
    """Serves the device ``fd`` until it is closed or unmounted. ``tell`` hears of what no answer to a request can tell:
    that the program itself is wrong."""

    def __init__(self, fd: int, system: FileSystem, tell: Callable[[Exception], None], *, check_acls: bool) -> None:
        self._fd = fd
        self._system = system
        self._tell = tell
        self._check_acls = check_acls
        self._directories: dict[int, _Directory] = {}
        self._handles = 0
        self._lock = threading.Lock()
        self._answers: dict[int, Callable[[Request], list[bytes | memoryview]]] = {
            p.INIT: self._init,
            p.LOOKUP: self._lookup,
            p.GETATTR: lambda request: [p.encode_attr_out(system.attributes(request.node))],
            p.READLINK: lambda request: [system.target(request.node)],
            p.OPEN: self._open,
            p.READ: self._read,
            p.RELEASE: self._release,
            p.OPENDIR: self._open_directory,
            p.READDIR: lambda request: self._list(request, plus=False),
            p.READDIRPLUS: lambda request: self._list(request, plus=True),
            p.RELEASEDIR: self._release_directory,
            p.GETXATTR: self._get_extended,
            p.LISTXATTR: self._list_extended,
            p.LSEEK: self._seek,
            p.IOCTL: self._control,
            p.STATFS: lambda request: [p.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)],
        }
        self._silent: dict[int, Callable[[Request], None]] = {
            p.FORGET: lambda request: system.forget(request.node, *p.FORGET_IN.unpack_from(request.body)),
            p.BATCH_FORGET: self._forget,
        }

    def serve(self) -> None:
        """Answer requests until there is no file system any more. For any number of threads."""
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except OSError as error:
                if error.errno in _NO_DATA:  # that request was taken back
                    continue
                if error.errno in _GONE:
                    return
                raise
            if not data:
                return
            try:
                request = p.decode_request(data)
            except (struct.error, ValueError) as error:
                self._tell(error)
                continue
            if not self._answer(request):
                return

    def _answer(self, request: Request) -> bool:
        """False when the file system has gone."""
        code, parts = 0, list[bytes | memoryview]()
        try:
            if request.opcode in self._silent:
                self._silent[request.opcode](request)
                return True
            answer = self._answers.get(request.opcode)
            if answer is None:
                code = errno.ENOSYS
            else:
                parts = answer(request)
        except OSError as error:
            code, parts = error.errno or errno.EIO, []
        except Exception as error:  # a bug of ours must not leave anybody waiting
            self._tell(error)
            code, parts = errno.EIO, []
        length = p.REPLY.size + sum(map(len, parts))
        try:
            os.writev(self._fd, [p.REPLY.pack(length, -code, request.unique), *parts])
        except OSError as error:
            if error.errno in _GONE:
                return False
            if error.errno not in _NO_DATA:  # whoever asked was killed
                raise
        return True

    def _init(self, request: Request) -> list[bytes | memoryview]:
        major, minor, readahead, offered = p.INIT_IN.unpack_from(request.body)
        if (major, minor) < (7, p.OLDEST_MINOR):
            raise OSError(errno.EPROTO, "the kernel is too old")
        wanted = p.ASYNC_READ | p.READDIRPLUS_SUPPORT | p.PARALLEL_DIRECTORIES
        wanted |= p.MAX_PAGES
        if self._check_acls:
            wanted |= p.POSIX_ACL
        reply = p.INIT_OUT.pack(
            7, p.NEWEST_MINOR, min(readahead, _READAHEAD), wanted & offered,
            _BACKGROUND, _BACKGROUND * 3 // 4, 4096, 1, _MOST_PAGES, 0, 0, 0,
        )  # fmt: skip
        return [reply]

    def _lookup(self, request: Request) -> list[bytes | memoryview]:
        name = bytes(request.body).partition(b"\0")[0]
        return [p.encode_entry(self._system.lookup(request.node, name))]

    def _forget(self, request: Request) -> None:
        count, _ = p.BATCH_FORGET_IN.unpack_from(request.body)
        rest = request.body[p.BATCH_FORGET_IN.size :][: count * p.FORGET_ONE.size]
        for node, times in p.FORGET_ONE.iter_unpack(rest):
            self._system.forget(node, times)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> list[bytes | memoryview]:
        self._system.open(request.node)
        return [p.OPEN_OUT.pack(0, p.KEEP_CACHE | p.NO_FLUSH, 0)]

    def _release(self, request: Request) -> list[bytes | memoryview]:
        self._system.release(request.node)
        return []

    def _read(self, request: Request) -> list[bytes | memoryview]:
        _, offset, size, _, _, _, _ = p.READ_IN.unpack_from(request.body)
        return self._system.read(request.node, offset, size)

    def _seek(self, request: Request) -> list[bytes | memoryview]:
        _, offset, whence, _ = p.LSEEK_IN.unpack_from(request.body)
        return [p.LSEEK_OUT.pack(self._system.seek(request.node, offset, whence))]

    def _control(self, request: Request) -> list[bytes | memoryview]:
        _, _, command, _, _, size = p.IOCTL_IN.unpack_from(request.body)
        return [p.IOCTL_OUT.pack(0, 0, 0, 0), self._system.control(request.node, command, size)]

    def _get_extended(self, request: Request) -> list[bytes | memoryview]:
        size, _ = p.XATTR_IN.unpack_from(request.body)
        name = bytes(request.body[p.XATTR_IN.size :]).partition(b"\0")[0]
        value = self._system.extended(request.node).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return _sized(value, size)

    def _list_extended(self, request: Request) -> list[bytes | memoryview]:
        size, _ = p.XATTR_IN.unpack_from(request.body)
        return _sized(b"".join(name + b"\0" for name in self._system.extended(request.node)), size)

    # -- directories ---------------------------------------------------------------------------------------------------

    def _open_directory(self, request: Request) -> list[bytes | memoryview]:
        flags = p.KEEP_CACHE | p.CACHE_DIRECTORY if self._system.keeps(request.node) else 0
        self._system.open(request.node)
        with self._lock:
            self._handles += 1
            handle = self._handles
            self._directories[handle] = _Directory(request.node)
        return [p.OPEN_OUT.pack(handle, flags, 0)]

    def _release_directory(self, request: Request) -> list[bytes | memoryview]:
        handle, _, _, _ = p.RELEASE_IN.unpack_from(request.body)
        with self._lock:
            self._directories.pop(handle, None)
        self._system.release(request.node)
        return []

    def _list(self, request: Request, *, plus: bool) -> list[bytes | memoryview]:
        handle, offset, size, _, _, _, _ = p.READ_IN.unpack_from(request.body)
        directory = self._directories.get(handle)
        if directory is None:
            raise OSError(errno.EBADF, "no such open directory")
        parts: list[bytes | memoryview] = []
        room = size
        with directory.lock:
            try:
                self._wind(directory, offset)
                while (entry := directory.next()) is not None:
                    packed = p.encode_listed(entry, directory.position + 1, plus=plus)
                    if len(packed) > room:
                        directory.held = entry
                        break
                    room -= len(packed)
                    parts.append(packed)
                    directory.position += 1
            except OSError:
                directory.entries = None  # what comes next is not known any more
                if not parts:
                    raise
        return parts

    def _wind(self, directory: _Directory, offset: int) -> None:
        """Have entry number ``offset`` come next."""
        if directory.entries is None or directory.position != offset:
            directory.entries = self._system.list_directory(directory.node)
            directory.held = None
            directory.position = sum(1 for _ in islice(directory.entries, offset))


def _sized(value: bytes, size: int) -> list[bytes | memoryview]:
    """The value of an attribute, or its length for whoever has given no room."""
    if not size:
        return [p.XATTR_OUT.pack(len(value), 0)]
    if len(value) > size:
        raise OSError(errno.ERANGE, "the value is longer")
    return [value]
