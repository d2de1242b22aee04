"""The one door for durable writes: temp file, rename, fsync, and the barrier that makes a batch of files durable.

File modes are set explicitly, so the umask does not matter. An fsync error is never retried: after one the kernel may
have dropped the dirty pages, and a second fsync would lie.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from archiver.core.clock import Random, system_random
from archiver.core.linux import exchange, start_write_back, syncfs
from archiver.errors import ArchiverError, Damaged, NoSpace

Buffers = Sequence[bytes | bytearray | memoryview]

# A bad block, or something else than a regular file where one was expected.
_UNREADABLE = {errno.EIO, errno.EUCLEAN, errno.ELOOP, errno.ENXIO, errno.EISDIR}
# What file systems without files that have no name say.
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
# What file systems say that cannot exchange two names.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
# What file systems without hard links say.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_FULL = (errno.ENOSPC, errno.EDQUOT)

_WRITE_BACK_FROM = 256 << 10  # bytes
FSYNC_AT_MOST = 256  # files; beyond that one syncfs is cheaper than one fsync each
_NEARLY_FULL = 16 << 20  # bytes free
_PIECE = 1 << 20


@contextmanager
def explained(doing: str, path: str) -> Iterator[None]:
    """Turn an OSError into an ArchiverError that names what was being done to which file."""
    try:
        yield
    except OSError as error:
        raise explain(error, doing, path) from error


def explain(error: OSError, doing: str, path: str) -> ArchiverError:
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return no_space(doing, path)
    kind = Damaged if doing == "read" and error.errno in _UNREADABLE else ArchiverError
    return kind(f"cannot {doing} {path}: {reason}")


def no_space(doing: str, path: str) -> NoSpace:
    return NoSpace(
        f"no space left to {doing} {path}",
        hint="free some space on that file system; everything stored before is unharmed",
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left, or that a quota is used up."""
    return isinstance(error, NoSpace) or (isinstance(error, OSError) and error.errno in _FULL)


def available(path: str) -> int:
    """Bytes that may be written to the file system of ``path``."""
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def nearly_full(path: str) -> bool:
    """True where a write error that LMDB calls an I/O error means a full disk."""
    return available(path) < _NEARLY_FULL


class Disk:
    """Writes that either happen completely or leave no trace under the final name. Usable from several threads."""

    def __init__(self, random: Random = system_random) -> None:
        self._random = random

    def temp_name(self, path: str) -> str:
        """A sibling name of PBS's form ``<name>.tmp_XXXXXX``."""
        return f"{path}.tmp_{self._random(4).hex()}"

    def put(self, path: str, parts: Buffers, mode: int, *, sync: bool, like: os.stat_result | None = None) -> None:
        """Write ``parts`` to a temp file and rename it to ``path``. With ``sync`` file and directory are durable on
        return, else the caller runs a :class:`Barrier`. ``like``: whose owner the file gets where we may give it away.
        Raises OSError; the temp file is gone then."""
        temp = self.temp_name(path)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            try:
                _set_mode(fd, mode)
                if like is not None:
                    with suppress(PermissionError):
                        os.fchown(fd, like.st_uid, like.st_gid)
                write_all(fd, parts)
                if sync:
                    os.fsync(fd)
                elif sum(map(len, parts)) >= _WRITE_BACK_FROM:
                    start_write_back(fd)  # the barrier will have less to wait for
            finally:
                os.close(fd)
            os.rename(temp, path)
        except BaseException:
            self.remove_file(temp)
            raise
        if sync:
            self.sync_directory(os.path.dirname(path))

    def put_new(self, path: str, parts: Buffers, mode: int) -> None:
        """Like ``put`` with ``sync``, but FileExistsError when something is there."""
        temp = self.temp_name(path)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.put(temp, parts, mode, sync=True)
        try:
            try:
                os.link(temp, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.rename(temp, path)
        finally:
            self.remove_file(temp)
        self.sync_directory(os.path.dirname(path))

    def create(self, path: str, mode: int) -> NewFile:
        """A new file to be written piece by piece; made durable by a :class:`Barrier`."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        _set_mode(fd, mode)
        return NewFile(fd)

    def append(self, path: str, parts: Buffers, size: int) -> None:
        """Write ``parts`` behind the first ``size`` bytes of a file that is there, durably; what was behind them is
        dropped. Raises OSError; then nothing is behind them, or what a reader can see to be cut."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, size)
            os.lseek(fd, size, os.SEEK_SET)
            try:
                write_all(fd, parts)
                os.fdatasync(fd)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def allocate(self, path: str, size: int, mode: int) -> None:
        """Have a file at ``path`` that takes ``size`` bytes of the disk; what was in one that is there is lost. Nothing
        is made durable. Raises OSError; the file is gone then."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
        try:
            try:
                os.fchmod(fd, mode)
                os.posix_fallocate(fd, 0, size)
                if os.fstat(fd).st_blocks * 512 < size:  # zeros take nothing where contents are compressed
                    for start in range(0, size, _PIECE):
                        write_all(fd, [self._random(min(_PIECE, size - start))])
                    os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            self.remove_file(path)
            raise

    def make_directory(self, path: str, mode: int) -> None:
        """mkdir with exactly ``mode``. FileExistsError when something is there."""
        os.mkdir(path, mode)
        os.chmod(path, mode)

    def ensure_directory(self, path: str, mode: int) -> None:
        """mkdir where there is nothing. Raises Damaged where there is something else, a symlink too: with it, whoever
        had the drive could have us write, and remove, anywhere."""
        try:
            self.make_directory(path, mode)
        except FileExistsError:
            if not is_directory(path):
                raise Damaged(f"{path} is not a directory", hint="look at what it is, then remove it") from None

    def make_directories(self, path: str, mode: int, *, inside: str | None = None) -> None:
        """mkdir with parents; existing ones are left as they are. Each new directory's parent is made durable; with
        ``inside``, one above ``path``, the whole way from there: what is there may be what a killed process has made,
        and a power cut would take all that is put into it since."""
        is_there = os.path.isdir(path)
        if path == inside or (is_there and inside is None):
            return
        parent = os.path.dirname(path)
        self.make_directories(parent, mode, inside=inside)
        if not is_there:
            with suppress(FileExistsError):  # another process was faster
                self.make_directory(path, mode)
        self.sync_directory(parent)

    def rename_directory(self, source: str, target: str) -> None:
        """Durable rename of a complete directory; ``target`` must not exist (or be an empty directory)."""
        os.rename(source, target)
        self.sync_directory(os.path.dirname(target))
        self.sync_directory(os.path.dirname(source))

    def link_file(self, source: str, target: str) -> bool:
        """Give a file another name; False where the file system cannot. Nothing is made durable."""
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        return True

    def replace_file(self, source: str, target: str) -> None:
        """Durable rename of a file whose contents are durable; whatever file is at ``target`` is gone then."""
        os.rename(source, target)
        self.sync_directory(os.path.dirname(target))

    def exchange_directories(self, new: str, old: str) -> None:
        """Durable exchange: what was ``new`` is at ``old`` then, and the other way round. At one instant where the file
        system can do that, else nothing is at ``old`` for a moment."""
        try:
            exchange(new, old)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            aside = self.temp_name(new)
            os.rename(old, aside)
            os.rename(new, old)
            os.rename(aside, new)
        self.sync_directory(os.path.dirname(old))
        self.sync_directory(os.path.dirname(new))

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_file(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_file_system(self, path: str) -> None:
        """Make everything durable that was done on the file system of the directory ``path``, by whomever."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)

    def remove_directory(self, path: str) -> None:
        """rmdir, durable. OSError when it is not empty."""
        os.rmdir(path)
        self.sync_directory(os.path.dirname(path))

    def remove_file(self, path: str) -> None:
        """unlink; a missing file is fine."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def remove_tree(self, path: str) -> None:
        """Remove a directory of plain files and directories (ours: two levels at most); missing is fine.

        Raises OSError, also for a symlink: what it leads to is not ours.
        """
        if os.path.islink(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        try:
            with os.scandir(path) as entries:
                children = list(entries)
        except FileNotFoundError:
            return
        for child in children:
            if child.is_dir(follow_symlinks=False):
                self.remove_tree(child.path)
            else:
                self.remove_file(child.path)
        os.rmdir(path)


class NewFile:
    """A file under construction, from :meth:`Disk.create`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def append(self, data: bytes | bytearray | memoryview) -> None:
        write_all(self._fd, [data])

    def cut(self, size: int) -> None:
        """Drop what is behind the first ``size`` bytes; what is appended next follows them."""
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)

    def write_back(self) -> None:
        """Have the kernel write what was appended, so that a later ``sync`` has less to wait for."""
        start_write_back(self._fd)

    def sync(self) -> None:
        """Make the contents durable, not the name. After an OSError what was written is lost."""
        os.fsync(self._fd)

    def patch(self, data: bytes, offset: int) -> None:
        """Overwrite ``data`` at ``offset``."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # closed even when that fails
            os.close(fd)


class Barrier:
    """Makes everything written since its creation (or the last commit) durable. Usable from several threads.

    The descriptor for syncfs is opened before the first write, so that a write-back error is reported to it. That
    happens once, so after a failure every later commit fails too.
    """

    def __init__(self, disk: Disk, root: str) -> None:
        self._disk = disk
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._failed: OSError | None = None
        self.noted = False  # whether any file was
        self._files: set[str] | None = set()
        self._directories: set[str] = set()

    def note(self, path: str) -> None:
        """``path`` was written or renamed into place and must be durable after ``commit``."""
        with self._lock:
            self.noted = True
            if self._files is not None:
                self._files.add(path)
                if len(self._files) > FSYNC_AT_MOST:
                    self._files = None
                    self._directories.clear()

    def note_directory(self, path: str) -> None:
        """A directory whose entries changed."""
        with self._lock:
            if self._files is not None:
                self._directories.add(path)

    def commit(self) -> None:
        """Raises OSError when anything could not be written: nothing that depends on it may be published then.

        What another thread has begun to commit is waited for: it may be what this one has noted.
        """
        with self._committing:
            if self._failed is not None:
                raise self._failed
            try:
                self._commit()
            except OSError as error:
                self._failed = error
                raise

    def _commit(self) -> None:
        with self._lock:
            files, directories = self._files, self._directories
            self._files, self._directories = set(), set()
        if files is None:
            syncfs(self._fd)
            return
        for path in files:
            self._disk.sync_file(path)
            directories.add(os.path.dirname(path))
        for path in sorted(directories):
            self._disk.sync_directory(path)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # closed even when that fails
            os.close(fd)


def _set_mode(fd: int, mode: int) -> None:
    """Of a file that was made just now. File systems without modes (FAT) refuse: there it stays what mounting said."""
    with suppress(PermissionError):
        os.fchmod(fd, mode)


def write_all(fd: int, parts: Iterable[bytes | bytearray | memoryview]) -> int:
    """writev until every byte of ``parts`` is written; returns the number of bytes."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    total = 0
    while views:
        written = os.writev(fd, views)
        total += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
    return total


def read_at(fd: int, length: int, offset: int = 0) -> bytes:
    """The bytes from ``offset`` on; fewer than ``length`` only where the file ends. Raises OSError."""
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def is_directory(path: str) -> bool:
    """True for a real directory (not a symlink to one)."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def nameless_file(directory: str) -> int:
    """Open a new file that vanishes when it is closed. Raises OSError."""
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    import tempfile

    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd
