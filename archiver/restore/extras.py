"""What is in a directory of the target besides what was restored there."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Iterator
from contextlib import suppress

from archiver.restore.choice import Choice
from archiver.restore.existing import is_same_file, look
from archiver.restore.names import other_case
from archiver.restore.quarantine import INSIDE
from archiver.restore.staging import final_name, is_left
from archiver.restore.visitor import Directory


def remove_left(fd: int) -> None:
    """Remove what an interrupted restore has left in an open directory."""
    for name in _names(fd):
        if is_left(name):
            with suppress(OSError):
                try:
                    os.unlink(name, dir_fd=fd)
                except IsADirectoryError:
                    os.rmdir(name, dir_fd=fd)


def extras(directory: Directory, choice: Choice) -> Iterator[bytes]:
    """Names in an open directory that the archive does not have there although they were chosen. Raises OSError."""
    assert directory.names is not None
    above = directory.path.rstrip(b"/") + b"/"
    for name in _names(directory.fd):
        if name in directory.names or is_left(name) or (directory.parent is None and INSIDE.fullmatch(name)):
            continue
        final = final_name(name)
        if final is not None and final in directory.names:
            continue  # it is gone on with
        found = look(name, directory.fd)
        if found is None or not choice.chooses(above + name, st.S_ISDIR(found.st_mode)):
            continue
        if directory.names.has_variant(name):
            # Where case is ignored this is the entry of the archive, under the name that was there before.
            variant = other_case(name)
            if variant == name or is_same_file(found, look(variant, directory.fd)):
                continue
        yield name


def _names(fd: int) -> Iterator[bytes]:
    with os.scandir(fd) as entries:
        for entry in entries:
            yield os.fsencode(entry.name)
