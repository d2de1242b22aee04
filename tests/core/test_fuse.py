"""The FUSE protocol: requests are understood, and answers are as the kernel wants them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from archiver.core.fuse import protocol as p
from archiver.core.fuse.protocol import Attributes, Found, Listed
from archiver.core.fuse.server import Server

DIRECTORY, FILE = 0o040755, 0o100644


def test_sizes() -> None:
    """Those of the structures in linux/fuse.h."""
    sizes = {
        p.REQUEST: 40, p.REPLY: 16, p.INIT_OUT: 64, p.ATTRIBUTES: 88, p.ENTRY: 40, p.ATTR_OUT: 16, p.OPEN_OUT: 16,
        p.READ_IN: 40, p.RELEASE_IN: 24, p.DIRENT: 24, p.LSEEK_IN: 24, p.IOCTL_IN: 32, p.IOCTL_OUT: 16,
        p.STATFS_OUT: 80,
    }  # fmt: skip
    assert {layout.size for layout in sizes if layout.size != sizes[layout]} == set()
    found = Found(7, Attributes(FILE))
    assert len(p.encode_entry(found)) == 128 and len(p.encode_attr_out(found)) == 104
    for length in range(1, 20):
        assert len(p.encode_listed(Listed(b"n" * length, 7, FILE), 1, plus=False)) == 24 + (length + 7) // 8 * 8
        assert len(p.encode_listed(Listed(b"n" * length, 7, FILE), 1, plus=True)) == 152 + (length + 7) // 8 * 8


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (1, 3), (259, 70_000), (4095, 1_048_575), (8, 255), (8, 256)])
def test_devices(major: int, minor: int) -> None:
    attributes = p.encode_attributes(1, Attributes(0o060644, device=os.makedev(major, minor)))
    encoded = p.ATTRIBUTES.unpack(attributes)[13]
    assert ((encoded & 0xFFF00) >> 8, encoded & 0xFF | encoded >> 12 & 0xFFF00) == (major, minor)


class Small:
    """A directory with numbered files; node 13 is wrong in a way that nobody thought of."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[int, int]] = []
        self.listings = 0

    def lookup(self, parent: int, name: bytes) -> Found:
        if name != b"file":
            raise OSError(errno.ENOENT, "none")
        return Found(2, Attributes(FILE, 5), 1.5)

    def forget(self, node: int, count: int) -> None:
        self.forgotten.append((node, count))

    def attributes(self, node: int) -> Found:
        if node == 13:
            raise RuntimeError("a bug")
        return Found(node, Attributes(DIRECTORY, mtime=-5, mtime_nanos=7))

    def target(self, node: int) -> bytes:
        return b"else/where"

    def open(self, node: int) -> None:
        pass

    def release(self, node: int) -> None:
        pass

    def read(self, node: int, offset: int, size: int) -> list[bytes | memoryview]:
        return [b"01234", memoryview(b"56789")[: max(0, size - 5)]]

    def seek(self, node: int, offset: int, whence: int) -> int:
        return offset + 1

    def list_directory(self, node: int) -> Iterator[Listed]:
        self.listings += 1
        for number in range(100):
            yield Listed(b"%03d" % number, number + 10, FILE)

    def keeps(self, node: int) -> bool:
        return True

    def extended(self, node: int) -> dict[bytes, bytes]:
        return {b"user.a": b"value", b"user.b": b""}

    def control(self, node: int, command: int, size: int) -> bytes:
        return bytes(size)


class Kernel:
    """The other side: a socket that keeps messages apart, as the device does."""

    def __init__(self) -> None:
        self.system = Small()
        self.told: list[Exception] = []
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(20)
        self._theirs = theirs
        server = Server(theirs.fileno(), self.system, self.told.append, check_acls=True)
        self.thread = threading.Thread(target=server.serve)
        self.thread.start()
        self.unique = 0

    def send(self, opcode: int, node: int, body: bytes = b"", *, length: int | None = None) -> None:
        self.unique += 1
        total = p.REQUEST.size + len(body) if length is None else length
        self.ours.send(p.REQUEST.pack(total, opcode, self.unique, node, 0, 0, 0, 0, 0) + body)

    def ask(self, opcode: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        """(error number, what was answered)."""
        self.send(opcode, node, body)
        answer = self.ours.recv(1 << 20)
        length, code, unique = p.REPLY.unpack_from(answer)
        assert length == len(answer) and unique == self.unique
        return -code, answer[p.REPLY.size :]

    def end(self) -> None:
        self.ours.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self._theirs.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.end()


def read_in(handle: int, offset: int, size: int) -> bytes:
    return p.READ_IN.pack(handle, offset, size, 0, 0, 0, 0)


def test_answers(kernel: Kernel) -> None:
    code, init = kernel.ask(p.INIT, 0, p.INIT_IN.pack(7, 45, 1 << 17, 0xFFFF_FFFF) + bytes(48))
    fields = p.INIT_OUT.unpack(init)
    assert code == 0 and fields[:3] == (7, p.NEWEST_MINOR, 1 << 17) and fields[3] & p.POSIX_ACL
    assert kernel.ask(p.INIT, 0, p.INIT_IN.pack(7, 10, 0, 0))[0] == errno.EPROTO
    code, entry = kernel.ask(p.LOOKUP, 1, b"file\0")
    assert p.ENTRY.unpack_from(entry) == (2, 0, 1, 1, 500_000_000, 500_000_000)
    assert kernel.ask(p.LOOKUP, 1, b"other\0") == (errno.ENOENT, b"")
    code, attributes = kernel.ask(p.GETATTR, 1, bytes(16))
    assert p.ATTRIBUTES.unpack_from(attributes, p.ATTR_OUT.size)[3:9] == (-5, -5, -5, 7, 7, 7)
    assert kernel.ask(p.READLINK, 2) == (0, b"else/where")
    assert kernel.ask(p.READ, 2, read_in(0, 0, 8)) == (0, b"01234567")
    assert kernel.ask(p.LSEEK, 2, p.LSEEK_IN.pack(0, 41, os.SEEK_DATA, 0)) == (0, struct.pack("=Q", 42))
    assert kernel.ask(p.LISTXATTR, 1, p.XATTR_IN.pack(0, 0)) == (0, p.XATTR_OUT.pack(14, 0))
    assert kernel.ask(p.LISTXATTR, 1, p.XATTR_IN.pack(20, 0)) == (0, b"user.a\0user.b\0")
    assert kernel.ask(p.GETXATTR, 1, p.XATTR_IN.pack(5, 0) + b"user.a\0") == (0, b"value")
    assert kernel.ask(p.GETXATTR, 1, p.XATTR_IN.pack(4, 0) + b"user.a\0")[0] == errno.ERANGE
    assert kernel.ask(p.GETXATTR, 1, p.XATTR_IN.pack(4, 0) + b"user.c\0")[0] == errno.ENODATA
    assert kernel.ask(9999)[0] == errno.ENOSYS
    kernel.send(p.FORGET, 2, p.FORGET_IN.pack(3))
    kernel.send(p.BATCH_FORGET, 0, p.BATCH_FORGET_IN.pack(2, 0) + p.FORGET_ONE.pack(4, 1) + p.FORGET_ONE.pack(5, 6))
    assert kernel.ask(p.STATFS)[0] == 0  # what comes before was not answered
    assert kernel.system.forgotten == [(2, 3), (4, 1), (5, 6)] and kernel.told == []


def test_what_is_wrong_leaves_nobody_waiting(kernel: Kernel) -> None:
    assert kernel.ask(p.GETATTR, 13, bytes(16)) == (errno.EIO, b"")
    assert kernel.ask(p.READ, 2, b"short")[0] == errno.EIO
    assert kernel.ask(p.READDIR, 1, read_in(77, 0, 4096))[0] == errno.EBADF
    kernel.send(p.GETATTR, 1, length=1000)  # no answer is possible
    assert kernel.ask(p.READLINK, 2) == (0, b"else/where")
    assert len(kernel.told) == 3


def names(data: bytes) -> list[tuple[bytes, int]]:
    found, at = [], 0
    while at < len(data):
        _, after, length, _ = p.DIRENT.unpack_from(data, at)
        found.append((data[at + 24 : at + 24 + length], after))
        at += 24 + (length + 7) // 8 * 8
    return found


def test_directories(kernel: Kernel) -> None:
    """In pieces without a gap, and again from any place."""
    handle, flags, _ = p.OPEN_OUT.unpack(kernel.ask(p.OPENDIR, 1, bytes(8))[1])
    assert flags & p.CACHE_DIRECTORY
    listed: list[bytes] = []
    offset = 0
    while piece := names(kernel.ask(p.READDIR, 1, read_in(handle, offset, 500))[1]):
        listed += [name for name, _ in piece]
        offset = piece[-1][1]
    assert listed == [b"%03d" % number for number in range(100)] and kernel.system.listings == 1
    assert names(kernel.ask(p.READDIR, 1, read_in(handle, 50, 40))[1]) == [(b"050", 51)]
    assert kernel.system.listings == 2
    plus = kernel.ask(p.READDIRPLUS, 1, read_in(handle, 51, 200))[1]
    assert plus[:128] == bytes(128) and names(plus[128:]) == [(b"051", 52)]
    assert kernel.ask(p.RELEASEDIR, 1, p.RELEASE_IN.pack(handle, 0, 0, 0)) == (0, b"")
    assert kernel.ask(p.READDIR, 1, read_in(handle, 0, 500))[0] == errno.EBADF
