"""A file of the user's, made new: it has no name before it is complete, so an interruption leaves nothing half."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from archiver.core.disk import explain, explained
from archiver.errors import UsageError

_TEMPORARY = os.O_RDWR | os.O_CLOEXEC
_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}


def check_new(path: str, store: str) -> None:
    """Raises UsageError unless ``path`` names a file that can be made, outside of the store at ``store``."""
    if not path:
        raise UsageError("the target has no name")
    with explained("look into", path):
        if lies_in(path, store):
            raise UsageError(f"{path} lies in the store itself", hint="write to a place outside of it")
        if os.path.lexists(path):
            raise UsageError(f"{path} exists already", hint="name a file that does not exist")
        if path.endswith("/"):
            raise UsageError(f"{path} names a directory", hint="name a file that does not exist")


def lies_in(place: str, directory: str) -> bool:
    """Whether ``place`` would be in ``directory``, whatever symlinks and mounts lead there."""
    inner = os.path.realpath(place)
    while not os.path.exists(inner) or not os.path.samefile(inner, directory):
        inner, before = os.path.dirname(inner), inner
        if inner == before:
            return False
    return True


def make_parents(path: str) -> None:
    """The directories above ``path``, however many are missing."""
    missing = []
    above = os.path.dirname(path)
    with explained("make", above):
        while above and not os.path.isdir(above):
            missing.append(above)
            above = os.path.dirname(above)
        for directory in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)


@contextmanager
def new_file(path: str) -> Iterator[int]:
    """A file that becomes ``path`` when the block has ended well, and vanishes otherwise; nothing is overwritten."""
    directory = os.path.dirname(path) or "."
    temporary = ""
    with explained("make", path):
        try:
            fd = os.open(directory, _TEMPORARY | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
            temporary = os.path.join(directory, f".{os.path.basename(path)[:200]}.{os.getpid()}.tmp")
            fd = os.open(temporary, _TEMPORARY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
        _give_name(fd, temporary, path)
        temporary = ""
    except OSError as error:
        raise explain(error, "write", path) from error
    finally:
        os.close(fd)
        if temporary:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _give_name(fd: int, temporary: str, path: str) -> None:
    parent = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not temporary:
            # Only with a directory does Python follow the link that stands for the open file.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=parent, follow_symlinks=True)
        else:
            _rename_new(temporary, path)
        os.fsync(parent)
    finally:
        os.close(parent)


def _rename_new(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if isinstance(error, FileExistsError) or os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        os.rename(temporary, path)  # no hard links here (FAT)
    else:
        os.unlink(temporary)
