#!/usr/bin/env python3
"""Lists and extracts the plain snapshots of a backup store (the format of Proxmox Backup Server), with nothing but this
file: no other program is needed, and nothing is written into the store.

    python3 rescue.py list STORE                         snapshots
    python3 rescue.py list STORE SNAPSHOT                every file in one
    python3 rescue.py extract STORE SNAPSHOT TARGET      all of it, each archive to TARGET/ARCHIVE
    python3 rescue.py extract STORE SNAPSHOT TARGET --only home.pxar/me/letter.txt

SNAPSHOT is TYPE/ID/TIME as in the list, or TYPE/ID for the newest. It needs Python 3.8 or later on Linux, and one of:
Python 3.14, the Python module zstandard, or the program zstd. Encrypted snapshots are listed and not extracted: they
need archiver itself, and the key. What is signed is extracted, but nobody checks the signature.

Every chunk, index and small file is checked by its checksums; what is damaged is told and left out, exit code 20. What
this user may not restore (owners, devices, some attributes) is told, exit code 3. Attributes of chattr and project
ids are not restored.

The store, all integers little-endian:

    TYPE/ID/TIME/index.json.blob   a blob: JSON with the names, sizes and checksums of the other files
    TYPE/ID/TIME/*.didx            4096 bytes of header, then for each chunk its end u64 and its SHA-256
    TYPE/ID/TIME/*.fidx            the same with only the SHA-256; size u64 and chunk size u64 at offset 64
    TYPE/ID/TIME/*.blob            a small file
    .chunks/xxxx/SHA-256           a blob: magic 8, CRC-32 of what follows, the data or a zstd frame of it

Archives x.pxar (x.pxar.didx, or x.mpxar.didx with contents in x.ppxar.didx) are sequences of items: type u64, size u64
with these 16 bytes, content. A directory is FILENAME ENTRY attributes, its entries, GOODBYE.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import io
import json
import os
import re
import resource
import shutil
import stat as st
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from bisect import bisect_right
from collections import OrderedDict
from typing import Any, Callable, Iterator, NamedTuple, Sequence

MAX_CHUNK = 16 << 20
MAX_BLOB = 128 << 20
MAX_NAME = 4096
MAX_ATTRIBUTE = 255 + 65536
MAX_ATTRIBUTES = 32 << 20  # bytes of all attributes of one entry
PIECE = 4 << 20
BLOCK = 4096

PLAIN = bytes.fromhex("42ab3807be8370a1")
PLAIN_ZSTD = bytes.fromhex("31b958426fb6a37f")
ENCRYPTED = (bytes.fromhex("7b6785be222d4cf0"), bytes.fromhex("e6591bbf0bbfd80b"))
DYNAMIC = bytes.fromhex("1c914ea519bab3cd")
FIXED = bytes.fromhex("2f7f41ed91fd0fcd")

FORMAT_VERSION = 0x730F6C75DF16A40D
PRELUDE = 0xE309D79D9F7B771B
ENTRY = 0xD5956474E588ACEF
ENTRY_V1 = 0x11DA850A1C1CCEFF
FILENAME = 0x16701121063917B3
SYMLINK = 0x27F971E7DBF5DC5F
HARDLINK = 0x51269C8422BD7275
DEVICE = 0x9FC9E906586D5CE9
XATTR = 0x0DAB0229B57DCD03
ACL_USER = 0x2CE8540A457D55B8
ACL_GROUP = 0x136E3ECEB04C03AB
ACL_GROUP_OBJ = 0x10868031E9582876
ACL_DEFAULT = 0xBBBB13415A6896F5
ACL_DEFAULT_USER = 0xC89357B40532CD1F
ACL_DEFAULT_GROUP = 0xF90A8A5816038FFE
FCAPS = 0x2DA9DD9DB5F7FB67
QUOTA_PROJID = 0xE07540E82F7D1CBB
PAYLOAD = 0x28147A1B0B7C1A25
PAYLOAD_REF = 0x419D3D6BC4BA977E
GOODBYE = 0x2FEC4FA642D5731D
_ACLS = {  # and the lengths of what they hold
    ACL_USER: 16,
    ACL_GROUP: 16,
    ACL_GROUP_OBJ: 8,
    ACL_DEFAULT: 32,
    ACL_DEFAULT_USER: 16,
    ACL_DEFAULT_GROUP: 16,
}

TIME = re.compile(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
_NO_ID = 0xFFFFFFFF


class Damaged(Exception):
    """Something in the store is not what its checksum, or the format, says."""


class NeedsKey(Exception):
    """It is encrypted."""


class Refused(Exception):
    """It cannot be done as it was asked for."""


# -- decompression ---------------------------------------------------------------------------------------------------

Decompressor = Callable[[bytes, int], bytes]  # a zstd frame or several, at most so many bytes of what is in it


def _by_module(name: str) -> Decompressor:
    """Python 3.14's ``compression.zstd``, or the same for earlier ones."""
    module = importlib.import_module(name)

    def decompress(data: bytes, limit: int) -> bytes:
        with module.ZstdFile(io.BytesIO(data)) as file:
            return bytes(file.read(limit))

    return decompress


def _by_zstandard() -> Decompressor:
    module = importlib.import_module("zstandard")

    def decompress(data: bytes, limit: int) -> bytes:
        parts, room = [], limit
        with module.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            while room:
                part = reader.read(room)
                if not part:
                    break
                parts.append(part)
                room -= len(part)
        return b"".join(parts)

    return decompress


def _by_program() -> Decompressor:
    path = shutil.which("zstd")
    if path is None:
        raise ImportError("there is no program zstd")

    def decompress(data: bytes, limit: int) -> bytes:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            command = [path or "zstd", "-dcq"]
            with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
                assert running.stdout is not None
                found = running.stdout.read(limit)
                if len(found) == limit:
                    running.kill()
                elif running.wait():
                    raise ValueError("not a zstd frame")
        return found

    return decompress


WAYS: dict[str, Callable[[], Decompressor]] = {
    "compression.zstd": lambda: _by_module("compression.zstd"),
    "backports.zstd": lambda: _by_module("backports.zstd"),
    "zstandard": _by_zstandard,
    "zstd": _by_program,
}


def find_decompressor() -> Decompressor:
    for make in WAYS.values():
        try:
            return make()
        except ImportError:
            continue
    raise Refused("nothing here can decompress zstd: install the program zstd, or the Python module zstandard")


# -- the store -------------------------------------------------------------------------------------------------------


def read_file(path: str, limit: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if not st.S_ISREG(status.st_mode) or status.st_size > limit:
            raise Damaged(f"{path} is not a file of the store")
        return file.read()


class Info(NamedTuple):
    """A file of a snapshot, as its manifest says."""

    name: str
    encrypted: bool
    size: int
    csum: bytes


class Store:
    def __init__(self, path: str, decompress: Decompressor | None = None) -> None:
        self.path = path
        if not os.path.isdir(os.path.join(path, ".chunks")):
            raise Refused(f"{path} is not a store: it has no .chunks")
        self._decompress = decompress or find_decompressor()

    def snapshots(self) -> Iterator[str]:
        """Names of all that are finished, namespaces first, oldest first."""
        yield from self._below("")

    def _below(self, namespace: str) -> Iterator[str]:
        for inner in self._names(namespace + "ns"):
            yield from self._below(f"{namespace}ns/{inner}/")
        for kind in ("ct", "host", "vm"):
            for name in self._names(namespace + kind):
                group = f"{namespace}{kind}/{name}"
                for when in self._names(group):
                    if TIME.match(when) and os.path.lexists(os.path.join(self.path, group, when, "index.json.blob")):
                        yield f"{group}/{when}"

    def _names(self, directory: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(os.path.join(self.path, directory)) if not name.startswith("."))
        except OSError:
            return []

    def find(self, text: str) -> str:
        """A snapshot by its name, or the newest one of a group."""
        text = text.strip("/")
        found = [name for name in self.snapshots() if name == text or name.rpartition("/")[0] == text]
        if not found:
            raise Refused(f"there is no snapshot {text}")
        return found[-1]

    def blob(self, data: bytes, limit: int) -> bytes:
        """What is in a blob, whose checksum is right."""
        magic = data[:8]
        if magic in ENCRYPTED:
            raise NeedsKey("it is encrypted")
        if len(data) < 12 or magic not in (PLAIN, PLAIN_ZSTD):
            raise Damaged("it is no blob")
        if zlib.crc32(data[12:]) != struct.unpack_from("<I", data, 8)[0]:
            raise Damaged("its CRC is wrong")
        if magic == PLAIN:
            return data[12:]
        try:
            found = self._decompress(data[12:], limit + 1)
        except Exception as error:
            raise Damaged(f"it cannot be decompressed: {error}") from error
        if len(found) > limit:
            raise Damaged("it holds more than it may")
        return found

    def chunk(self, digest: bytes, size: int) -> bytes:
        name = digest.hex()
        try:
            data = self.blob(read_file(os.path.join(self.path, ".chunks", name[:4], name), MAX_BLOB + 44), size)
        except OSError as error:
            raise Damaged(f"chunk {name} cannot be read: {error.strerror}") from error
        except Damaged as error:
            raise Damaged(f"chunk {name} is damaged: {error}") from error
        if len(data) != size or hashlib.sha256(data).digest() != digest:
            raise Damaged(f"chunk {name} is damaged: it holds something else")
        return data

    def files(self, snapshot: str) -> list[Info]:
        """What the manifest lists."""
        path = os.path.join(self.path, snapshot, "index.json.blob")
        try:
            manifest = json.loads(self.blob(read_file(path, MAX_CHUNK), MAX_CHUNK))
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(manifest["backup-time"]))
            if [manifest["backup-type"], manifest["backup-id"], when] != snapshot.split("/")[-3:]:
                raise Damaged("it belongs to another snapshot")
            return [
                Info(
                    _file_name(file["filename"]),
                    file.get("crypt-mode", "none") == "encrypt" and file["filename"] != "rsa-encrypted.key.blob",
                    int(file["size"]),
                    bytes.fromhex(file["csum"]),
                )
                for file in manifest["files"]
            ]
        except (OSError, Damaged, NeedsKey, *_NONSENSE) as error:
            raise Damaged(f"the manifest of {snapshot} cannot be used: {error}") from error

    def small(self, snapshot: str, info: Info) -> bytes:
        """Contents of a .blob file."""
        try:
            data = read_file(os.path.join(self.path, snapshot, info.name), MAX_BLOB + 44)
            if len(data) != info.size or hashlib.sha256(data).digest() != info.csum:
                raise Damaged("it is not what the manifest says")
            return self.blob(data, MAX_BLOB)
        except (OSError, Damaged) as error:
            raise Damaged(f"{info.name} of {snapshot} is damaged: {error}") from error

    def stream(self, snapshot: str, info: Info) -> Stream:
        """What an index file stands for."""
        try:
            return Stream(self, read_file(os.path.join(self.path, snapshot, info.name), 1 << 40), info)
        except (OSError, Damaged, struct.error) as error:
            raise Damaged(f"{info.name} of {snapshot} is damaged: {error}") from error


_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)  # in a manifest


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or not re.match(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\Z", name):
        raise Damaged("it lists a file with an impossible name")
    return name


class Stream:
    """Bytes at any offset, from chunks that were checked."""

    def __init__(self, store: Store, index: bytes, info: Info) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._last = 0, b""  # the chunk that was read last, and where it starts
        length, header = 0, 0
        if index[:8] == DYNAMIC:
            length = 40
            header = next((size for size in (4096, 16384) if (len(index) - size) % 40 == 0), 0)
        elif index[:8] == FIXED:
            length = 32
            size, step = struct.unpack_from("<QQ", index, 64)
            header = len(index) - 32 * -(-size // max(step, 1))
        if header not in (4096, 16384) or len(index) <= header:
            raise Damaged("it is no index")
        body = memoryview(index)[header:]
        if hashlib.sha256(body).digest() != info.csum:
            raise Damaged("it is not what the manifest says")
        self._digests = [bytes(body[at - 32 : at]) for at in range(length, len(body) + 1, length)]
        if length == 40:
            self._ends = [struct.unpack_from("<Q", body, at)[0] for at in range(0, len(body), 40)]
        else:
            self._ends = [min((number + 1) * step, size) for number in range(len(self._digests))]
        self.size = self._ends[-1]
        starts = [0, *self._ends[:-1]]
        if self.size != info.size or any(not 0 < e - s <= MAX_CHUNK for s, e in zip(starts, self._ends)):
            raise Damaged("its sizes are not those of the manifest")

    def chunks(self) -> int:
        return len(self._digests)

    def chunk(self, number: int) -> bytes:
        which = self._digests[number], self._ends[number] - self.start(number)
        data = self._kept.get(which)
        if data is None:
            data = self._kept[which] = self._store.chunk(*which)
            if len(self._kept) > 3:
                self._kept.popitem(last=False)
        self._last = self.start(number), data
        return data

    def start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """``length`` bytes from ``offset``, a chunk at most each."""
        if offset + length > self.size:
            raise Damaged("the archive ends early")
        number = bisect_right(self._ends, offset) if length else 0
        while length:
            inner = offset - self.start(number)
            piece = self.chunk(number)[inner : inner + length]
            yield piece
            offset, length, number = offset + len(piece), length - len(piece), number + 1

    def read(self, offset: int, length: int) -> bytes:
        inner = offset - self._last[0]
        if 0 <= inner <= len(self._last[1]) - length:
            return self._last[1][inner : inner + length]
        return b"".join(self.pieces(offset, length))


# -- pxar ------------------------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """One entry. ``offset`` and ``size``: where the contents of a file are in their stream. ``mode`` 0: a hard link."""

    path: tuple[bytes, ...]
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: bytes = b""
    link: int = 0  # position of the FILENAME of what a hard link leads to
    offset: int = 0
    size: int = 0
    device: tuple[int, int] = (0, 0)
    attributes: tuple[tuple[int, bytes], ...] = ()
    leaves: bool = False  # not an entry: the directory ``path`` is complete


class Archive:
    """A tree: ``metadata`` is read from its start to its end, contents lie in it or in ``payload``."""

    def __init__(self, metadata: Stream, payload: Stream | None) -> None:
        self._stream = metadata
        self._payload = payload

    def contents(self, node: Node) -> Iterator[bytes]:
        """Of a regular file."""
        if self._payload is None:
            return self._stream.pieces(node.offset, node.size)
        header = struct.unpack("<QQ", self._payload.read(node.offset - 16, 16))
        if header != (PAYLOAD, node.size + 16):
            raise Damaged("its contents are not where they should be")
        return self._payload.pieces(node.offset, node.size)

    def nodes(self) -> Iterator[Node]:
        """All entries, directories before what is in them, and a node that ``leaves`` behind each directory."""
        position, version = 0, 1
        kind, length = self._header(0)
        if kind == FORMAT_VERSION:
            (version,) = struct.unpack("<Q", self._exactly(0, length, 8))
            position = 24
            kind, length = self._header(position)
            if kind == PRELUDE:
                position += 16 + length
        if version not in (1, 2) or (version == 2) != (self._payload is not None):
            raise Damaged("the archive is of another version")
        root, position = self._entry(position, ())
        if not st.S_ISDIR(root.mode):
            raise Damaged("the root of the archive is not a directory")
        yield root
        path: tuple[bytes, ...] = ()
        while True:
            kind, length = self._header(position)
            if kind == GOODBYE:
                yield root._replace(path=path, leaves=True)
                if not path:
                    return
                path, position = path[:-1], position + 16 + length
                continue
            node, position = self.named(position, path)
            yield node
            if st.S_ISDIR(node.mode):
                path = node.path

    def named(self, position: int, path: tuple[bytes, ...]) -> tuple[Node, int]:
        """The entry with its FILENAME at ``position``, in the directory ``path``; where the next one is."""
        kind, length = self._header(position)
        if kind != FILENAME:
            raise Damaged(f"no entry at offset {position}")
        name = self._text(position, length)
        if not valid_name(name):
            raise Damaged(f"an entry has an impossible name: {name[:80]!r}")
        start = position + 16 + length
        kind, length = self._header(start)
        if kind != HARDLINK:
            return self._entry(start, (*path, name))
        if length <= 8:
            raise Damaged("a hard link leads nowhere")
        (distance,) = struct.unpack("<Q", self._stream.read(start + 16, 8))
        target = self._text(start + 8, length - 8)
        if not 0 < distance <= position or not all(map(valid_name, target.split(b"/"))):
            raise Damaged("a hard link leads out of the archive")
        node = Node((*path, name), 0, 0, 0, 0, target=target, link=position - distance)
        return node, start + 16 + length

    def _entry(self, position: int, path: tuple[bytes, ...]) -> tuple[Node, int]:
        kind, length = self._header(position)
        if kind == ENTRY:
            data = self._exactly(position, length, 40)
            mode, _, uid, gid, seconds, nanos, _ = struct.unpack("<QQIIqII", data)
            mtime = seconds * 10**9 + nanos
        elif kind == ENTRY_V1:
            mode, _, uid, gid, mtime = struct.unpack("<QQIIQ", self._exactly(position, length, 32))
        else:
            raise Damaged(f"no metadata at offset {position}")
        if mode >> 16:
            raise Damaged(f"an impossible mode at offset {position}")
        node = Node(path, mode, uid, gid, mtime)
        position += 16 + length
        attributes: list[tuple[int, bytes]] = []
        total = 0
        while True:
            kind, length = self._header(position)
            if kind in (XATTR, FCAPS, QUOTA_PROJID, *_ACLS):
                total += length + 64
                if length > MAX_ATTRIBUTE or total > MAX_ATTRIBUTES or length != _ACLS.get(kind, length):
                    raise Damaged(f"impossible attributes at offset {position}")
                attributes.append((kind, self._stream.read(position + 16, length)))
                position += 16 + length
                continue
            return self._body(node._replace(attributes=tuple(attributes)), position, kind, length)

    def _body(self, node: Node, position: int, kind: int, length: int) -> tuple[Node, int]:
        mode, behind = node.mode, position + 16 + length
        if st.S_ISREG(mode) and kind == PAYLOAD and self._payload is None:
            return node._replace(offset=position + 16, size=length), behind
        if st.S_ISREG(mode) and kind == PAYLOAD_REF and self._payload is not None:
            offset, size = struct.unpack("<QQ", self._exactly(position, length, 16))
            return node._replace(offset=offset + 16, size=size), behind
        if st.S_ISLNK(mode) and kind == SYMLINK:
            return node._replace(target=self._text(position, length)), behind
        if (st.S_ISCHR(mode) or st.S_ISBLK(mode)) and kind == DEVICE:
            major, minor = struct.unpack("<QQ", self._exactly(position, length, 16))
            return node._replace(device=(major, minor)), behind
        if (st.S_ISDIR(mode) or st.S_ISFIFO(mode) or st.S_ISSOCK(mode)) and kind in (FILENAME, GOODBYE):
            return node, position
        raise Damaged(f"an entry has no end at offset {position}")

    def _header(self, position: int) -> tuple[int, int]:
        """Type and length of the content of an item."""
        kind, size = struct.unpack("<QQ", self._stream.read(position, 16))
        if size < 16:
            raise Damaged(f"an impossible item at offset {position}")
        return kind, size - 16

    def _exactly(self, position: int, length: int, wanted: int) -> bytes:
        if length != wanted:
            raise Damaged(f"an item of another length at offset {position}")
        return self._stream.read(position + 16, wanted)

    def _text(self, position: int, length: int) -> bytes:
        """Content that ends with its only NUL, without it."""
        if not 1 < length <= MAX_NAME + 1:
            raise Damaged(f"an impossible name at offset {position}")
        data = self._stream.read(position + 16, length)
        if data.find(b"\0") != length - 1:
            raise Damaged(f"a name without an end at offset {position}")
        return data[:-1]


def valid_name(name: bytes) -> bool:
    return 0 < len(name) <= MAX_NAME and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


# -- extracting ------------------------------------------------------------------------------------------------------

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Report:
    """What did not come back, or not as it was."""

    def __init__(self) -> None:
        self.damaged = self.problems = self.entries = 0
        self.keys = 0

    def tell(self, place: str, reason: str, *, damaged: bool = False, key: bool = False) -> None:
        self.damaged += damaged
        self.keys += key
        self.problems += not damaged and not key
        print(shown(f"{place}: {reason}".encode("utf-8", "surrogateescape")), file=sys.stderr)

    def code(self) -> int:
        return 12 if self.keys else 20 if self.damaged else 3 if self.problems else 0


class Extractor:
    """Writes one tree into the new directory ``target``. Names are made relative to open directories, no symlink is
    followed, nothing is overwritten: no entry can get outside."""

    def __init__(self, archive: Archive, target: str, only: Sequence[tuple[bytes, ...]], report: Report) -> None:
        self._archive = archive
        self._target = target
        self._only = only
        self._report = report
        self._open: list[tuple[Node, int]] = []  # directories and their descriptors; -1: was not made

    def run(self) -> None:
        try:
            for node in self._archive.nodes():
                if node.leaves:
                    self._leave()
                elif st.S_ISDIR(node.mode):
                    self._enter(node)
                elif self._wanted(node.path) and self._open[-1][1] >= 0:
                    self._attempt(node, lambda node=node: self._leaf(node))  # type: ignore[misc]
        finally:
            while self._open:  # of a damaged archive
                self._leave()

    def _wanted(self, path: tuple[bytes, ...]) -> bool:
        return not self._only or any(path[: len(chosen)] == chosen for chosen in self._only)

    def _leads(self, path: tuple[bytes, ...]) -> bool:
        return self._wanted(path) or any(chosen[: len(path)] == path for chosen in self._only)

    def _attempt(self, node: Node, work: Callable[[], object]) -> bool:
        place = os.fsdecode(b"/" + b"/".join(node.path))
        try:
            work()
        except Damaged as error:
            self._report.tell(place, str(error), damaged=True)
            return False
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            self._report.tell(place, getattr(error, "strerror", None) or str(error))
            return False
        self._report.entries += 1
        return True

    def _enter(self, node: Node) -> None:
        fds: list[int] = []

        def make() -> None:
            if node.path:
                os.mkdir(node.path[-1], 0o700, dir_fd=self._open[-1][1])
                fds.append(os.open(node.path[-1], _DIRECTORY, dir_fd=self._open[-1][1]))
            else:
                os.makedirs(self._target, 0o700)
                fds.append(os.open(self._target, _DIRECTORY))

        if self._leads(node.path) and (not self._open or self._open[-1][1] >= 0):
            self._attempt(node, make)
        self._open.append((node, fds[0] if fds else -1))

    def _leave(self) -> None:
        node, fd = self._open.pop()
        if fd >= 0:
            self._set(fd, node)
            os.close(fd)

    def _leaf(self, node: Node) -> None:
        parent, name = self._open[-1][1], node.path[-1]
        if not node.mode:
            self._hard_link(node, parent, name)
        elif st.S_ISREG(node.mode):
            self._file(node, node, parent, name)
        else:
            if st.S_ISLNK(node.mode):
                os.symlink(node.target, name, dir_fd=parent)
            else:
                os.mknod(name, st.S_IFMT(node.mode) | 0o600, os.makedev(*node.device), dir_fd=parent)
            self._own(node, name, parent)
            if not st.S_ISLNK(node.mode):
                os.chmod(name, node.mode & 0o777, dir_fd=parent)  # it was made just now: no symlink
            os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, node: Node, parent: int, name: bytes) -> None:
        """To what was extracted already, found name by name; else, when that was not chosen, a file of its own."""
        *directories, last = node.target.split(b"/")
        fd = os.dup(self._open[0][1])
        try:
            for directory in directories:
                inner = os.open(directory, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            os.link(last, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            file, _ = self._archive.named(node.link, ())
            if not st.S_ISREG(file.mode):
                raise Damaged("it leads to something that is no file") from None
            self._file(file, node, parent, name)
        finally:
            os.close(fd)

    def _file(self, file: Node, node: Node, parent: int, name: bytes) -> None:
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            write_sparse(fd, self._archive.contents(file), file.size)
            self._set(fd, file._replace(path=node.path))
        except BaseException:
            os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(fd)

    def _own(self, node: Node, name: bytes, parent: int) -> None:
        if os.geteuid() == 0 and _NO_ID not in (node.uid, node.gid):
            os.chown(name, node.uid, node.gid, dir_fd=parent, follow_symlinks=False)

    def _set(self, fd: int, node: Node) -> None:
        """Owner, attributes, mode and time of an open file or directory."""
        lost: list[str] = []

        def attempt(what: str, work: Callable[[], object]) -> bool:
            try:
                work()
                return True
            except (OSError, ValueError, OverflowError) as error:
                lost.append(f"{what}: {getattr(error, 'strerror', None) or error}")
                return False

        mode = node.mode & 0o7777
        if os.geteuid() == 0 and _NO_ID not in (node.uid, node.gid):
            if not attempt("owner", lambda: os.fchown(fd, node.uid, node.gid)):
                mode &= 0o1777
        elif (node.uid, node.gid) != (os.geteuid(), os.getegid()):
            mode &= 0o1777  # nobody else's program is to run with our rights
            lost.append(f"owner {node.uid}:{node.gid}: only root may set it")
        for name, value in extended(node):
            attempt(f"attribute {os.fsdecode(name)}", lambda name=name, value=value: os.setxattr(fd, name, value))  # type: ignore[misc]
        real_group = [struct.unpack("<Q", data)[0] for kind, data in node.attributes if kind == ACL_GROUP_OBJ]
        access, default = acls(node)
        if access and not attempt("access control list", lambda: os.setxattr(fd, "system.posix_acl_access", access)):
            group = real_group[0] if real_group else 0  # the mode's bits are the mask then, which may be more
            mode = (mode & ~0o070) | (mode & group << 3 & 0o070)
        if default:
            attempt("default access control list", lambda: os.setxattr(fd, "system.posix_acl_default", default))
        attempt("mode", lambda: os.fchmod(fd, mode))
        attempt("time", lambda: os.utime(fd, ns=(node.mtime_ns, node.mtime_ns)))
        for reason in lost:
            self._report.tell(os.fsdecode(b"/" + b"/".join(node.path)), reason)


def extended(node: Node) -> Iterator[tuple[bytes, bytes]]:
    """Extended attributes that archives keep; labels and signatures belong to the machine."""
    for kind, data in node.attributes:
        name, _, value = data.partition(b"\0")
        if kind == XATTR and (name.startswith((b"user.", b"trusted.")) or name == b"security.NTACL"):
            yield name, value
        elif kind == FCAPS:
            yield b"security.capability", data


def acls(node: Node) -> tuple[bytes, bytes]:
    """The values of the attributes that hold the access and the default ACL; empty when there are none."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for kind, data in node.attributes:
        if kind in _ACLS:
            found.setdefault(kind, []).append(struct.unpack(f"<{len(data) // 8}Q", data))
    owner, mask, other = node.mode >> 6 & 7, node.mode >> 3 & 7, node.mode & 7
    access = default = b""
    if found.keys() & {ACL_USER, ACL_GROUP, ACL_GROUP_OBJ}:
        group = found[ACL_GROUP_OBJ][0][0] if ACL_GROUP_OBJ in found else mask
        base = [(1, owner, _NO_ID), (4, group, _NO_ID), (16, mask, _NO_ID), (32, other, _NO_ID)]
        access = _acl(base, found.get(ACL_USER, []), found.get(ACL_GROUP, []))
    if ACL_DEFAULT in found:
        tags = (1, 4, 32, 16)
        base = [(tag, bits, _NO_ID) for tag, bits in zip(tags, found[ACL_DEFAULT][0]) if bits <= 7]
        default = _acl(base, found.get(ACL_DEFAULT_USER, []), found.get(ACL_DEFAULT_GROUP, []))
    return access, default


def _acl(base: list[tuple[int, int, int]], users: list[tuple[int, ...]], groups: list[tuple[int, ...]]) -> bytes:
    entries = base + [(2, bits, owner) for owner, bits in users]
    entries += [(8, bits, owner) for owner, bits in groups]
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    parts = [struct.pack("<HHI", tag, bits & 7, owner & _NO_ID) for tag, bits, owner in entries]
    return struct.pack("<I", 2) + b"".join(parts)


def write_sparse(fd: int, pieces: Iterator[bytes], size: int) -> None:
    """Blocks of zeros are left out."""
    offset, zeros, blank = 0, bytes(BLOCK), b""
    for piece in pieces:
        if piece is blank:  # a large hole has the same chunk again and again
            offset += len(piece)
            continue
        view = memoryview(piece)
        start = written = 0
        while start < len(view):
            end = start
            while end < len(view):
                block = view[end : end + BLOCK]
                if block[0] == 0 and block == zeros[: len(block)]:
                    break
                end += BLOCK
            end = min(end, len(view))
            done = start
            while done < end:
                done += os.pwrite(fd, view[done:end], offset + done)
            written += done - start
            start = end + BLOCK if end < len(view) else end
        blank = blank if written else piece
        offset += len(view)
    os.ftruncate(fd, size)


def trees(files: Sequence[Info]) -> Iterator[tuple[str, list[Info]]]:
    """The archives of a snapshot by the names users know, each with the files it consists of."""
    by_name = {info.name: info for info in files}
    for info in files:
        base, _, extension = info.name.rpartition(".")
        if base.endswith(".ppxar") and f"{base[:-6]}.mpxar.didx" in by_name:
            yield f"{base[:-6]}.pxar", [by_name[f"{base[:-6]}.mpxar.didx"], info]
        elif extension in ("fidx", "blob") or base.endswith(".pxar"):
            yield base, [info]


def open_tree(store: Store, snapshot: str, files: Sequence[Info]) -> Archive:
    streams = [store.stream(snapshot, info) for info in files]
    return Archive(streams[0], streams[1] if len(streams) > 1 else None)


def extract(store: Store, snapshot: str, target: str, only: Sequence[str], report: Report) -> None:
    """Everything of a snapshot, or what ``only`` names: ARCHIVE, or ARCHIVE/PATH."""
    chosen = [tuple(filter(None, os.fsencode(text).split(b"/"))) for text in only]
    found = list(trees(store.files(snapshot)))
    names = {os.fsencode(name) for name, _ in found}
    for path in chosen:
        if not path or path[0] not in names:
            raise Refused(f"{snapshot} has no archive {os.fsdecode(path[0] if path else b'')}: {sorted(names)}")
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise Refused(f"{target} is there already, and is not an empty directory")
    os.makedirs(target, 0o700, exist_ok=True)
    for name, files in found:
        inside = [path[1:] for path in chosen if path[0] == os.fsencode(name)]
        if chosen and not inside:
            continue
        place = os.path.join(target, name)
        try:
            if any(info.encrypted for info in files):
                raise NeedsKey("it is encrypted: that takes archiver, and the key")
            if name.endswith(".pxar"):
                paths = [] if () in inside else inside
                Extractor(open_tree(store, snapshot, files), place, paths, report).run()
            else:
                _extract_file(store, snapshot, files[0], place)
                report.entries += 1
        except (Damaged, NeedsKey) as error:
            report.tell(name, str(error), damaged=isinstance(error, Damaged), key=isinstance(error, NeedsKey))


def _extract_file(store: Store, snapshot: str, info: Info, place: str) -> None:
    fd = os.open(place, _NEW, 0o600)
    try:
        if info.name.endswith(".blob"):
            data = store.small(snapshot, info)
            write_sparse(fd, iter([data]), len(data))
        else:
            stream = store.stream(snapshot, info)
            write_sparse(fd, stream.pieces(0, stream.size), stream.size)
    except BaseException:
        os.unlink(place)
        raise
    finally:
        os.close(fd)


# -- listing ---------------------------------------------------------------------------------------------------------


def shown(text: bytes) -> str:
    """For a terminal: nothing in a name can steer it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.decode("utf-8", "replace"))


def list_store(store: Store, report: Report) -> None:
    for snapshot in store.snapshots():
        try:
            archives = list(trees(store.files(snapshot)))
        except Damaged as error:
            report.tell(snapshot, str(error), damaged=True)
            continue
        words = [f"{name} (encrypted)" if any(i.encrypted for i in files) else name for name, files in archives]
        print(snapshot, *words, sep="  ")


def list_snapshot(store: Store, snapshot: str, report: Report) -> None:
    for name, files in trees(store.files(snapshot)):
        try:
            if any(info.encrypted for info in files):
                raise NeedsKey("it is encrypted")
            if not name.endswith(".pxar"):
                print(f"-           {files[0].size:>14} {name}")
                continue
            for node in open_tree(store, snapshot, files).nodes():
                if not node.leaves:
                    path = shown(b"/".join((os.fsencode(name), *node.path)))
                    target = f" -> {shown(node.target)}" if node.target else ""
                    print(f"{st.filemode(node.mode or st.S_IFREG)}  {node.size:>14} {path}{target}")
        except (Damaged, NeedsKey) as error:
            report.tell(name, str(error), damaged=isinstance(error, Damaged), key=isinstance(error, NeedsKey))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="snapshots, or the files of one")
    listing.add_argument("store")
    listing.add_argument("snapshot", nargs="?")
    extracting = commands.add_parser("extract", help="write a snapshot to a new directory")
    extracting.add_argument("store")
    extracting.add_argument("snapshot")
    extracting.add_argument("target")
    extracting.add_argument("--only", action="append", default=[], metavar="ARCHIVE[/PATH]", help="repeatable")
    options = parser.parse_args(arguments)
    report = Report()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each level of directories
    try:
        store = Store(options.store)
        if options.command == "extract":
            extract(store, store.find(options.snapshot), options.target, options.only, report)
            print(f"extracted {report.entries} entries, {report.damaged} damaged, {report.problems} other problems")
        elif options.snapshot is None:
            list_store(store, report)
        else:
            list_snapshot(store, store.find(options.snapshot), report)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (Refused, Damaged, OSError) as error:
        print(f"rescue: {shown(str(error).encode('utf-8', 'surrogateescape'))}", file=sys.stderr)
        return 20 if isinstance(error, Damaged) else 2 if isinstance(error, Refused) else 1
    return report.code()


if __name__ == "__main__":
    sys.exit(main())
