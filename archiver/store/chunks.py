"""The chunk files: insert, touch, read, set aside (spec datastore.md 5, blob-index-crypto.md 2)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from blake3 import blake3

from archiver.core.clock import Clock
from archiver.core.disk import Barrier, Disk, explain
from archiver.errors import ArchiverError, Damaged, KeyProblem, TargetAbsent
from archiver.store import layout as names
from archiver.store.chunk_lock import ChunkLock, tell_unlisted
from archiver.store.layout import Layout
from formats import blob
from formats.blob import BlobDecoder
from formats.blob.layout import RETIRED_MAGICS
from formats.crypt import CryptConfig, chunk_digest
from formats.errors import FormatError, KeyMissing, LimitExceeded
from formats.wire import Buffer

MAX_CHUNK = 16 << 20  # plain bytes
_MAX_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER
_BAD_NAMES = 10

T = TypeVar("T")


class ChunkDamaged(Damaged):
    """One chunk cannot be used; ``digest`` says which, ``reason`` why in a few words."""

    code = "chunk-damaged"

    def __init__(self, digest: bytes, reason: str) -> None:
        super().__init__(f"chunk {digest.hex()} {reason}", hint="run verify to see which files it belongs to")
        self.digest = digest
        self.reason = reason


class Inserted(NamedTuple):
    """``duplicate``: a usable chunk of that digest was there. ``stored``: length of the file that is there now."""

    duplicate: bool
    stored: int


class ChunkStore:
    """Writes into ``.chunks``. Usable from several threads and processes at once."""

    def __init__(self, layout: Layout, disk: Disk, clock: Clock) -> None:
        self._layout = layout
        self._disk = disk
        self._clock = clock
        self.lock = ChunkLock(layout, disk)
        self._began_ns = 0

    def close(self) -> None:
        self.lock.close()

    def began(self, start: int) -> None:
        """A session began at ``start``, in seconds: what it touches or writes is spared as long as it lives, however
        the clock is set meanwhile."""
        self._began_ns = max(self._began_ns, start * 10**9)

    def seen(self, digest: bytes) -> os.stat_result | None:
        """lstat of the chunk file; None when there is none."""
        path = self._layout.chunk(digest.hex())
        try:
            return os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explain(error, "look at", path) from error

    def touch(self, digest: bytes, status: os.stat_result) -> bool:
        """Set the access time to now, so that no garbage collection takes the chunk; mtime stays. False when one has
        taken it since it was seen."""
        with self.lock.used(digest) as earliest:
            return self._touch(digest, status, earliest)

    def touch_all(self, found: Iterable[tuple[bytes, os.stat_result]]) -> list[bool]:
        """The same for many chunks: some thousands, as a garbage collection waits meanwhile."""
        with self.lock.used() as earliest:
            return [self._touch(digest, status, earliest) for digest, status in found]

    def _touch(self, digest: bytes, status: os.stat_result, earliest: int) -> bool:
        path = self._layout.chunk(digest.hex())
        when = max(self._clock.now_ns(), self._began_ns, earliest)
        try:
            os.utime(path, ns=(when, status.st_mtime_ns), follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise explain(error, "touch", path) from error
        return True

    def keep(self, digest: bytes, status: os.stat_result, barrier: Barrier) -> bool:
        """Use the file that is there: it is spared by garbage collections, and durable after ``barrier.commit``. False
        when it is gone."""
        kept = self.touch(digest, status)
        if kept:
            self._note(self._layout.chunk(digest.hex()), barrier)
        return kept

    def insert(self, digest: bytes, header: bytes, body: Buffer, *, encrypted: bool, barrier: Barrier) -> Inserted:
        """Store an encoded chunk unless a usable one is there already (the table of spec datastore.md 5.1).

        The file is durable after ``barrier.commit``. Raises ArchiverError (NoSpace on a full disk).
        """
        path = self._layout.chunk(digest.hex())
        length = len(header) + len(body)
        status = self.seen(digest)
        if (
            status is not None
            and self._keep_existing(path, status, length, header, encrypted)
            and self.keep(digest, status, barrier)
        ):
            return Inserted(True, status.st_size)
        with self.lock.used(digest) as earliest:
            try:
                self._write(path, [header, body])
                # Whatever the kernel's clock says, which may have been set meanwhile.
                when = max(self._clock.now_ns(), self._began_ns, earliest)
                os.utime(path, ns=(when, os.lstat(path).st_mtime_ns), follow_symlinks=False)
            except OSError as error:
                raise explain(error, "write", path) from error
        self._note(path, barrier)
        return Inserted(False, length)

    def _note(self, path: str, barrier: Barrier) -> None:
        """The shard may be one that another process made just now and has not made durable yet."""
        barrier.note(path)
        barrier.note_directory(self._layout.chunks)

    def _keep_existing(self, path: str, status: os.stat_result, length: int, header: bytes, encrypted: bool) -> bool:
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{path} is not a regular file", hint="move it away; it cannot be a chunk")
        if status.st_size == length:
            return True
        if status.st_size == 0:
            return False  # left by a crash before the data reached the disk
        if not encrypted:
            return status.st_size < length
        magic = _read_start(path)
        if magic in (blob.PLAIN_MAGIC, blob.PLAIN_ZSTD_MAGIC):
            raise Damaged(f"{path} is not encrypted, but has the name of an encrypted chunk", hint="run verify")
        if magic == blob.ENCRYPTED_MAGIC and header[:8] == blob.ENCRYPTED_MAGIC:
            raise Damaged(f"{path} has another length than the same chunk encrypted now", hint="run verify")
        return True

    def _write(self, path: str, parts: list[Buffer]) -> None:
        try:
            self._disk.put(path, parts, names.FILE_MODE, sync=False)
        except FileNotFoundError:
            try:
                self._disk.make_directory(os.path.dirname(path), names.CHUNKS_MODE)
            except FileExistsError:
                pass
            self._disk.put(path, parts, names.FILE_MODE, sync=False)

    def set_aside_unless(self, digest: bytes, check: Callable[[], T]) -> T | None:
        """Set aside a chunk that was found damaged, and is so still: ``check`` raises ChunkDamaged. What it returns
        when another process has stored a good one meanwhile, as it may be the only one that has the contents."""
        with self.lock.cleared(int.from_bytes(digest[:2])):
            try:
                return check()
            except ChunkDamaged:
                self.set_aside(digest)
                return None

    def set_aside(self, digest: bytes) -> str | None:
        """Rename a bad chunk to ``.N.bad`` so that the next backup stores it again; None when it is gone."""
        path = self._layout.chunk(digest.hex())
        for number in range(_BAD_NAMES):
            target = f"{path}.{number}.bad"
            if number < _BAD_NAMES - 1 and os.path.lexists(target):
                continue
            try:
                os.rename(path, target)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise explain(error, "rename", path) from error
            tell_unlisted(self._layout, self._disk)
            return target
        return None


class ChunkReader:
    """Reads chunks and hands out only what passed every check. One per thread.

    With ``crypt`` encrypted chunks are decrypted; without it they raise KeyProblem.
    """

    def __init__(self, layout: Layout, crypt: CryptConfig | None) -> None:
        self._layout = layout
        self._crypt = crypt
        self._decoder = BlobDecoder(crypt)
        self.has_key = crypt is not None
        self._buffer = bytearray()

    def read(self, digest: bytes, size: int, *, encrypted: bool) -> Buffer:
        """The ``size`` plain bytes of a chunk: kind, CRC, tag, digest and length are enforced.

        The buffer is valid until the next call. Raises ChunkDamaged (of a chunk that another key encrypted, too: its
        tag does not tell them apart), KeyProblem without a key, or ArchiverError.
        """
        _check_size(digest, size)
        try:
            return self._decoder.decode_chunk(self.stored(digest), digest=digest, size=size, encrypted=encrypted)
        except KeyMissing as error:
            raise KeyProblem(f"chunk {digest.hex()} is encrypted", hint="give the key with --keyfile") from error
        except FormatError as error:
            raise ChunkDamaged(digest, f"is damaged: {error}") from error

    def verify(self, digest: bytes, size: int, *, encrypted: bool) -> tuple[bytes, int]:
        """Check a chunk as far as the key at hand allows (without it: kind and CRC of an encrypted one).

        Returns (BLAKE3 of the stored bytes, their length). Raises ChunkDamaged.
        """
        data, total = self.checked(digest, size, encrypted=encrypted)
        return total, len(data)

    def checked(self, digest: bytes, size: int, *, encrypted: bool) -> tuple[memoryview, bytes]:
        """The same check: (the stored bytes, valid until the next call; their BLAKE3)."""
        data = self.checked_bytes(digest, size, encrypted=encrypted)
        return data, blake3(data).digest()

    def checked_bytes(self, digest: bytes, size: int, *, encrypted: bool) -> memoryview:
        """The same check: the stored bytes, valid until the next call."""
        _check_size(digest, size)
        data = self.stored(digest)
        try:
            if blob.inspect(data).encrypted != encrypted:
                self._decoder.check_stored(data)
                raise ChunkDamaged(digest, "is not encrypted" if encrypted else "is encrypted, its archive is not")
            if self.has_key or not encrypted:
                self._decoder.decode_chunk(data, digest=digest, size=size, encrypted=encrypted)
            else:
                self._decoder.check_stored(data)
        except FormatError as error:
            raise ChunkDamaged(digest, f"is damaged: {error}") from error
        return data

    def is_bad(self, digest: bytes) -> bool:
        """Whether what lies in the place of a chunk is certainly not it, whatever is said of the chunk elsewhere.

        False for a missing one, when the device fails, and for an encrypted one whose CRC is right when its key is
        missing. The key at hand must be that of the chunk.
        """
        try:
            status = os.lstat(self._layout.chunk(digest.hex()))
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE:
                return True
            data = self.stored(digest)
        except (OSError, ArchiverError):
            return False
        try:
            info = self._decoder.check_stored(data)
        except FormatError:
            return bytes(data[:8]) not in RETIRED_MAGICS
        if info.encrypted and self._crypt is None:
            return False
        try:
            plain = self._decoder.decode(data, max_size=MAX_CHUNK)
        except LimitExceeded:
            return False
        except FormatError:
            return True
        return chunk_digest(plain, self._crypt if info.encrypted else None) != digest

    def stored(self, digest: bytes) -> memoryview:
        """The bytes of the chunk file, unchecked; valid until the next call."""
        path = self._layout.chunk(digest.hex())
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE:
                    raise ChunkDamaged(digest, "is not a chunk file")
                return self._read(fd, status.st_size)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            check_present(self._layout)
            raise ChunkDamaged(digest, "is missing") from error
        except OSError as error:
            if error.errno in (errno.EIO, errno.ELOOP, errno.ENXIO, errno.EUCLEAN):
                raise ChunkDamaged(digest, f"cannot be read: {error.strerror}") from error
            raise explain(error, "read", path) from error

    def _read(self, fd: int, length: int) -> memoryview:
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        view = memoryview(self._buffer)
        filled = 0
        while filled < length:
            count = os.readv(fd, [view[filled:length]])
            if not count:
                break
            filled += count
        return view[:filled]


def check_present(layout: Layout) -> None:
    """Raises TargetAbsent when the store as a whole has gone: then nothing that is missing in it is damage."""
    if not os.path.isdir(layout.chunks):
        raise TargetAbsent(f"the store {layout.base} is not there any more", hint="is its drive still plugged in?")


def _check_size(digest: bytes, size: int) -> None:
    if size > MAX_CHUNK:
        raise ChunkDamaged(digest, f"is said to hold {size} bytes, more than a chunk can")


def _read_start(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError as error:
        raise explain(error, "read", path) from error
