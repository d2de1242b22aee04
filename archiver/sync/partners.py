"""Which stores may be synced with each other, and whether the target is the one that it was the last time.

The source keeps ``.archiver/sync-targets.json``: the uuids of the stores that were synced to, by their places. So a
place where another drive is mounted now, or none, is told apart from the target. Drives that take turns are all known
there once each was accepted. A source that cannot be written keeps nothing.
"""

from __future__ import annotations

import json
import os
import uuid

from archiver.core.disk import explain, explained
from archiver.core.events import Listener
from archiver.core.locks import DirectoryLock
from archiver.errors import Damaged, NotFound, TargetAbsent, UsageError
from archiver.store import layout as names
from archiver.store.snapshots import read_small
from archiver.store.store import Store

_SCHEMA = 1
_LARGEST = 1 << 20  # bytes
_PATIENCE = 60.0  # seconds


def open_target(source: Store, path: str, listener: Listener, *, new_target: bool, read_only: bool = False) -> Store:
    """The store at ``path``. Nothing is made there. ``new_target``: a store that was not seen there before will do.

    Raises TargetAbsent where one was synced to and is not there now, NotFound where there was none; UsageError for the
    source itself or a copy of it, and for another store than before.
    """
    place = os.path.realpath(path)
    known = _read(source).get(place, [])
    try:
        target = Store.open(path, read_only=read_only, listener=listener, clock=source.clock)
    except NotFound as error:
        if known:
            raise TargetAbsent(
                f"the store that was synced to is not in {path} any more", hint="is its drive mounted there?"
            ) from error
        raise NotFound(
            f"{path} is not a store, nothing is made there", hint=f"mount its drive, or make one: archiver init {path}"
        ) from error
    try:
        _check(source, target, known, new_target)
    except BaseException:
        target.close()
        raise
    return target


def _check(source: Store, target: Store, known: list[str], new_target: bool) -> None:
    base = target.layout.base
    if os.path.samefile(source.layout.chunks, target.layout.chunks):
        raise UsageError("source and target are the same store", hint="name two stores")
    if source.uuid == target.uuid:
        raise UsageError(
            f"{base} is a copy of {source.layout.base}: both say that they are the store {source.uuid}",
            hint=f"make it a store of its own: archiver init --new-uuid {base}",
        )
    if known and target.uuid not in known and not new_target:
        raise UsageError(
            f"the store in {base} is another one than was synced to there before",
            hint="is the right drive mounted? If this one is meant too: --new-target",
        )


def remember(source: Store, target: Store) -> None:
    """From now on the target is known at its place."""
    if source.read_only or source.identity is None:
        return
    place = os.path.realpath(target.layout.base)
    path = source.layout.sync_targets
    with explained("write", path), DirectoryLock(source.layout.private, wait_seconds=_PATIENCE):
        found = _read(source)
        if target.uuid in found.get(place, []):
            return
        found[place] = [*found.get(place, []), target.uuid]
        text = json.dumps({"schema": _SCHEMA, "targets": found}, indent=2, sort_keys=True)
        source.disk.put(path, [text.encode() + b"\n"], names.FILE_MODE, sync=True)


def _read(source: Store) -> dict[str, list[str]]:
    path = source.layout.sync_targets
    try:
        data = read_small(path, _LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise explain(error, "read", path) from error
    try:
        targets = json.loads(data)["targets"]
        return {str(place): [str(uuid.UUID(each)) for each in found] for place, found in targets.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"{path} is damaged: it does not say which stores were synced to",
            hint=f"if the right drive is mounted, remove {path}",
        ) from error
