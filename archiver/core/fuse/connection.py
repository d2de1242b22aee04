"""Mounting: the connection to the kernel, which the setuid program fusermount3 opens for ordinary users too."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence

from archiver.errors import ArchiverError, UsageError

_DEVICE = "/dev/fuse"
_PROGRAMS = ("fusermount3", "fusermount")
_HINT = "install it, on Debian and Ubuntu with: apt install fuse3"
_PATIENCE = 10  # seconds for an unmount


class Connection:
    """A mounted file system: ``fd`` is its open /dev/fuse."""

    def __init__(self, fd: int, mountpoint: str, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        self.fd = fd
        self.mountpoint = mountpoint
        self._process = process  # waits for the other end of ``ours`` to be closed, by our death at the latest
        self._ours = ours

    @classmethod
    def open(cls, mountpoint: str, options: Sequence[str]) -> Connection:
        """Mount at an existing directory; ``options`` are those of mount(8). Raises UsageError, ArchiverError."""
        place = os.path.realpath(mountpoint)
        if not os.path.isdir(place):
            raise UsageError(f"{mountpoint} is not a directory", hint="make it first: it is where the files appear")
        program = _program()
        if not os.path.exists(_DEVICE):
            raise ArchiverError(f"there is no {_DEVICE} here", hint="load the kernel module fuse: modprobe fuse")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, tempfile.TemporaryFile() as complaints:
            command = [program, "-o", ",".join((*options, "auto_unmount")), "--", place]
            running = subprocess.Popen(
                command,
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C is for us
            )
            theirs.close()
            _, found, _, _ = socket.recv_fds(ours, 1, 1)
            if not found:
                ours.close()
                running.wait()
                complaints.seek(0)
                reason = complaints.read(1000).decode("utf-8", "replace").strip().partition(": ")[2]
                raise ArchiverError(f"cannot mount at {mountpoint}: {reason or 'fusermount3 failed'}")
        os.set_inheritable(found[0], False)
        return cls(found[0], place, running, ours)

    def unmount(self) -> None:
        """Take the file system out of the tree, at once also where it is in use. For one that is mounted still."""
        command = [_program(), "-u", "-q", "-z", "--", self.mountpoint]
        try:
            subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            pass  # the one that watches us does it when we are gone

    def close(self) -> None:
        """End the connection: whoever waits for an answer gets an error."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._ours.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pass


def _program() -> str:
    for name in _PROGRAMS:
        path = shutil.which(name) or shutil.which(name, path="/usr/bin:/bin:/usr/local/bin:/sbin:/usr/sbin")
        if path is not None:
            return path
    raise ArchiverError("mounting needs the program fusermount3, which is not installed", hint=_HINT)
