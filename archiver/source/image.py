"""What an image is read from: a regular file, a block device, or a stream (a fifo, standard input, a command's output).

A file or device has a size when it is opened, and that many bytes are saved whatever happens to it meanwhile; a stream
has none, its end is where it ends. Symlinks are followed: devices are named by them.
"""

from __future__ import annotations

import errno
import os
import stat as st
import subprocess
from collections.abc import Iterator
from types import TracebackType

from archiver.core.disk import explain
from archiver.core.environment import without_secrets
from archiver.core.linux import device_size, mount_points
from archiver.errors import ArchiverError
from archiver.source.content import data_extents, may_have_holes, unchanged

STANDARD_INPUT = "-"

_SECTOR = 4096  # bytes that are given up together when a device cannot read them
# What a medium that can be read elsewhere says of a bad place; ENXIO and ENODEV mean that the device has gone.
_BAD_PLACE = {errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EREMOTEIO}
_UNREADABLE_AT_MOST = 64 << 20  # bytes; with more the medium as a whole has failed, or has gone


class Source:
    """An open source, read from its start on. ``size`` in bytes, None for a stream. ``stat`` was taken after opening.

    ``unreadable``: (offset, length) of what a medium could not give; the bytes that were handed out there are zeros.
    """

    def __init__(self, name: str, fd: int, *, command: subprocess.Popen[bytes] | None = None) -> None:
        is_standard_input = command is None and name == STANDARD_INPUT
        self.name = "standard input" if is_standard_input else name
        self.fd = fd
        self.stat = os.fstat(fd)
        self.unreadable: list[tuple[int, int]] = []
        self._command = command
        self.is_file = command is None and not is_standard_input and st.S_ISREG(self.stat.st_mode)
        self.is_device = command is None and st.S_ISBLK(self.stat.st_mode)
        self.size: int | None = None
        if self.is_file:
            self.size = self.stat.st_size
        elif self.is_device:
            self.size = device_size(fd)

    def mounted(self) -> list[str]:
        """Where the file system on a device is mounted."""
        return mount_points(self.stat.st_rdev) if self.is_device else []

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, is_data) from 0 to ``size``, as ``data_extents``."""
        assert self.size is not None
        if self.is_file and may_have_holes(self.stat):
            return data_extents(self.fd, self.size)
        return iter([(0, self.size, True)])

    def read_into(self, view: memoryview, offset: int) -> int:
        """The next bytes, ``offset`` is how many there were: how many, 0 at the end. Raises ArchiverError when the
        source cannot be read any more."""
        try:
            if self.size is None:
                return os.readv(self.fd, [view])
            return os.preadv(self.fd, [view], offset)
        except OSError as error:
            if self.size is None or error.errno not in _BAD_PLACE:
                raise self.failed(error) from error
        return self._salvage(view, offset)

    def _salvage(self, view: memoryview, offset: int) -> int:
        """Read sector by sector what cannot be read at once."""
        done = 0
        while done < len(view):
            length = min(_SECTOR - (offset + done) % _SECTOR, len(view) - done)
            part = view[done : done + length]
            try:
                got = os.preadv(self.fd, [part], offset + done)
                if not got:
                    break
                done += got
            except OSError as error:
                if error.errno not in _BAD_PLACE or self._has_gone():
                    raise self.failed(error) from error
                part[:] = bytes(length)
                self._give_up(offset + done, length, error)
                done += length
        return done

    def _give_up(self, offset: int, length: int, error: OSError) -> None:
        ranges = self.unreadable
        if ranges and sum(ranges[-1]) == offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((offset, length))
        if sum(length for _, length in ranges) > _UNREADABLE_AT_MOST:
            raise ArchiverError(
                f"more than {_UNREADABLE_AT_MOST >> 20} MiB of {self.name} cannot be read: {error.strerror}",
                hint="save what is left with ddrescue, then back up its copy",
            ) from error

    def _has_gone(self) -> bool:
        """Whether it is a device that was taken away: then every read of it fails, and its name has vanished."""
        try:
            return self.is_device and (
                device_size(self.fd) != self.size or os.stat(self.name).st_rdev != self.stat.st_rdev
            )
        except OSError:
            return True

    def failed(self, error: OSError) -> ArchiverError:
        """It cannot be read any more. This is no damage in the store."""
        hint = "is the device still there?" if self.is_device else None
        return ArchiverError(f"cannot read {self.name}: {(error.strerror or str(error)).lower()}", hint=hint)

    def changed(self) -> bool:
        """Whether it shows that it was changed since it was opened; nothing tells that of a stream, and of a device
        only its size does."""
        if self.is_device:
            return self._has_gone()
        return self.is_file and not unchanged(self.stat, self.fd)

    def finish(self) -> None:
        """The stream has ended: raises ArchiverError unless the command that made it says that all went well."""
        if self._command is None:
            return
        code = self._command.wait()
        if code:
            how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
            raise ArchiverError(f"the command {how}, so nothing is saved: {self.name}")

    def close(self) -> None:
        """A command that is still running is stopped."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        if self._command is not None and self._command.poll() is None:
            self._command.kill()
            self._command.wait()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def kind_of(path: str) -> str:
    """What a path leads to: ``file``, ``device``, ``fifo``, ``directory``, or another word. Raises OSError."""
    mode = os.stat(path).st_mode
    kinds = {st.S_IFREG: "file", st.S_IFBLK: "device", st.S_IFIFO: "fifo", st.S_IFDIR: "directory"}
    others = {st.S_IFCHR: "character device", st.S_IFSOCK: "socket"}
    return (kinds | others).get(st.S_IFMT(mode), "special file")


def size_of(path: str) -> int:
    """Bytes that a file, holes apart, or a device has; 0 for a stream, which does not tell, and for what cannot be
    looked at."""
    try:
        status = os.stat(path)
        if st.S_ISREG(status.st_mode):
            return min(status.st_size, status.st_blocks * 512)
        if not st.S_ISBLK(status.st_mode):
            return 0
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return device_size(fd)
        finally:
            os.close(fd)
    except OSError:
        return 0


def open_source(path: str, command: str | None = None) -> Source:
    """Open a file, a device or a fifo (which waits for its writer), or standard input for ``-``; with ``command``, run
    it in a shell and read what it prints. Raises ArchiverError."""
    if command is not None:
        return _run(command)
    if path == STANDARD_INPUT:
        try:
            return Source(path, os.dup(0))
        except OSError as error:
            raise explain(error, "read", "standard input") from error
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        try:
            fd = os.open(path, flags | os.O_NOATIME)
        except PermissionError as error:
            if error.errno != errno.EPERM:
                raise
            fd = os.open(path, flags)
        try:
            return Source(path, fd)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise explain(error, "open", path) from error


def _run(command: str) -> Source:
    """It is not told passphrases, and has nothing to read: what is typed is for this program."""
    told = without_secrets(os.environ)
    try:
        process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=told, bufsize=0
        )
    except OSError as error:
        raise explain(error, "run", command) from error
    assert process.stdout is not None
    fd = os.dup(process.stdout.fileno())
    process.stdout.close()
    return Source(command, fd, command=process)
