"""What can go wrong with one source file or directory without ending the run."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["unreadable", "vanished", "skipped", "mount", "pattern"]

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Problem(NamedTuple):
    """``path`` is relative to the source, as in the archive (``b"/a/b"``). Kinds:

    unreadable  it, or the named part of it, is not in the backup although it exists: the run ends with exit code 3
    vanished    it was listed and is gone: nothing to save, no error
    skipped     left out because an option or a default says so
    mount       a mount point that is not entered; the directory itself is stored, empty
    pattern     an exclude file, or a line of one, that has no effect
    """

    path: bytes
    reason: str
    kind: Kind


Report = Callable[[Problem], None]
Note = Callable[[Kind, str], None]  # a report about a file whose path the receiver knows


def explain(error: OSError) -> tuple[Kind, str]:
    """Kind and reason for an error met on one source file.

    Running out of descriptors or memory says nothing about the file: then ``error`` itself is raised.
    """
    if error.errno in _OUT_OF_RESOURCES:
        raise error
    if error.errno == errno.ENOENT:
        return "vanished", "vanished before it was read"
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return "unreadable", "was replaced by something else while it was read"
    if error.errno == errno.EBADF:
        return "unreadable", "its directory was moved or replaced while it was read"
    return "unreadable", (error.strerror or str(error)).lower()
