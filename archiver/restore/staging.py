"""Names of what is not complete yet.

A file that gets into a directory of the target is written beside its name and renamed. A directory that a restore makes
has another name until everything in it is complete, so that its files need no renaming. Should the restore be killed,
the next one finds such a directory by its name, and goes on with it: what is in there is its own, and may be half.
"""

from __future__ import annotations

import re
from itertools import count

_PREFIX = b".archiver-restore."
_LEFT = re.compile(rb"\.archiver-restore\.[0-9a-f]{16}\.\d+")
_DIRECTORY = _PREFIX + b"in."
_LONGEST = 255  # bytes of a name


class TempNames:
    """Names of entries that are not complete yet; those of no two restores are the same."""

    def __init__(self, secret: bytes) -> None:
        self._prefix = _PREFIX + b"%s." % secret.hex().encode()
        self._numbers = count()

    def new(self) -> bytes:
        return self._prefix + b"%d" % next(self._numbers)  # that call cannot be interrupted by another thread


def is_left(name: bytes) -> bool:
    """Whether it is a ``TempNames`` one, which an interrupted restore has left."""
    return name.startswith(_PREFIX) and _LEFT.fullmatch(name) is not None


def staged_name(name: bytes) -> bytes | None:
    """Of a directory, until it is complete; None where that would be too long."""
    staged = _DIRECTORY + name
    return staged if len(staged) <= _LONGEST else None


def final_name(name: bytes) -> bytes | None:
    """What a directory with such a name is to become; None for other names."""
    return name.removeprefix(_DIRECTORY) if name.startswith(_DIRECTORY) else None
