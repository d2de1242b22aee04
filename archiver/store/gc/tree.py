"""Every index file of a store, wherever it lies: what PBS counts, its second net included (spec datastore.md 7.4)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from archiver.core.disk import explained
from archiver.errors import UsageError
from archiver.store.indexes import is_index
from archiver.store.layout import Layout, SnapshotRef, parse_reference

_LOST = "lost+found"
TEMPORARY = re.compile(r".\.tmp(_[A-Za-z0-9]+)?\Z")


class Directory(NamedTuple):
    """A snapshot, or another directory that has something. ``ref``: the snapshot that it is, or would be; paths are
    relative to the store. ``leftovers`` are files with the names of temporary ones."""

    path: str
    ref: SnapshotRef | None
    indexes: tuple[str, ...]
    leftovers: tuple[str, ...]


def directories(layout: Layout) -> Iterator[Directory]:
    """Hidden names are passed over and symlinks not followed, as PBS does. Raises ArchiverError for a directory that
    cannot be read: nobody knows what is in it."""
    todo = [""]
    while todo:
        path = todo.pop()
        indexes, leftovers = [], []
        for name, is_directory in _entries(layout, path):
            if name.startswith(".") or (not path and name == _LOST):
                continue
            if is_directory:
                todo.append(f"{path}/{name}" if path else name)
            elif is_index(name):
                indexes.append(name)
            elif TEMPORARY.search(name) or name.endswith((".tmp_didx", ".tmp_fidx")):
                leftovers.append(name)
        ref = _snapshot(path)
        if indexes or leftovers or ref is not None:
            yield Directory(path, ref, tuple(sorted(indexes)), tuple(leftovers))


def _entries(layout: Layout, path: str) -> list[tuple[str, bool]]:
    full = os.path.join(layout.base, path)
    try:
        with explained("list", full), os.scandir(full) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except Exception as error:
        if path and isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return []  # removed just now
        raise


def _snapshot(path: str) -> SnapshotRef | None:
    try:
        found = parse_reference(path)
    except UsageError:
        return None
    return found if isinstance(found, SnapshotRef) and found.path == path else None
