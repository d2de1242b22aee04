"""What may be changed of what is stored: notes, verify states, protection, owners (spec datastore.md 13).

A manifest is replaced under two locks: the snapshot's, shared, so that nobody removes it meanwhile, and one on the
manifest file itself for those who replace it too. Everything but ``unprotected`` stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from archiver.core.disk import explain, explained
from archiver.core.linux import process_start
from archiver.core.locks import DirectoryLock, replaced_file_lock
from archiver.errors import Damaged, Locked, NotFound, UsageError
from archiver.store import layout as names
from archiver.store import snapshots
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import check_inside
from archiver.store.store import Store
from formats import blob
from formats.errors import FormatError
from formats.manifest import with_unprotected
from formats.naming import check_owner
from formats.upid import Upid, node_name

_PATIENCE = 5.0  # seconds, as a PBS waits for a manifest
_LARGEST_NOTE = 1 << 20  # bytes

Unprotected = Mapping[str, Any]


def note_of(store: Store, ref: SnapshotRef) -> str:
    """The notes of a snapshot; empty when it has none."""
    note = store.manifest(ref).unprotected.get("notes")
    return note if isinstance(note, str) else ""


def set_note(store: Store, ref: SnapshotRef, text: str) -> None:
    """Replace the notes of a snapshot; without ``text`` it has none."""
    _check_note(text)

    def change(unprotected: Unprotected) -> Unprotected:
        rest = {key: value for key, value in unprotected.items() if key != "notes"}
        return rest | {"notes": text} if text else rest

    update_unprotected(store, ref, change)


def update_unprotected(store: Store, ref: SnapshotRef, change: Callable[[Unprotected], Unprotected]) -> None:
    """Replace the part of a manifest that is not signed by what ``change`` makes of it, durably.

    Raises NotFound, Damaged, Locked, UsageError on a store that cannot be written.
    """
    store.check_writable()
    path = store.layout.manifest(ref)
    check_inside(store.layout, path)
    with store.held(ref), _manifest_lock(ref, path) as status:
        stamp = snapshots.manifest_stamp(store.layout, ref)
        before = snapshots.read_manifest_json(store.layout, ref)
        manifest = snapshots.decode_manifest(ref, before)
        try:
            text = with_unprotected(before, change(manifest.unprotected))
        except FormatError as error:
            raise UsageError(f"the manifest of {ref} cannot be changed so: {error}") from error
        with explained("write", path):
            store.disk.put(path, [blob.encode(text)], names.FILE_MODE, sync=True, like=status)
        is_told = stamp is not None and store.replace_record(ref, stamp, text)
    if not is_told:
        store.update_records()


def replace_manifest(store: Store, ref: SnapshotRef, data: bytes, check: Callable[[bytes], None]) -> None:
    """Replace a manifest file by another one of the same contents (``unprotected`` apart), durably. ``check`` gets the
    one that is there (nothing when it is too large for one) while nobody else changes it, and raises what keeps it from
    being replaced."""
    store.check_writable()
    path = store.layout.manifest(ref)
    check_inside(store.layout, path)
    with store.held(ref), _manifest_lock(ref, path) as status:
        try:
            there = snapshots.read_manifest_blob(store.layout, ref)
        except Damaged:
            there = b""
        check(there)
        with explained("write", path):
            store.disk.put(path, [data], names.FILE_MODE, sync=True, like=status)
    store.update_records()


@contextmanager
def _manifest_lock(ref: SnapshotRef, path: str) -> Iterator[os.stat_result]:
    try:
        with replaced_file_lock(path, _PATIENCE) as status:
            yield status
    except BlockingIOError as error:
        raise Locked(f"the manifest of {ref} is locked by another process", hint="try again later") from error
    except FileNotFoundError as error:
        raise NotFound(f"snapshot {ref} is unfinished", hint="its backup did not come to its end") from error
    except OSError as error:
        raise explain(error, "read", path) from error


def _check_note(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError("the note is not UTF-8 text") from error
    if size > _LARGEST_NOTE:
        raise UsageError(f"the note is too long: {size} bytes", hint=f"at most {_LARGEST_NOTE} fit")


def set_verify_state(store: Store, ref: SnapshotRef, state: str, upid: Upid) -> None:
    """Say in the manifest how a verification ended: "ok" or "failed". Raises as ``update_unprotected``."""
    update_unprotected(store, ref, lambda known: {**known, "verify_state": {"state": state, "upid": upid.encode()}})


def verify_task(store: Store, number: int, when: int) -> Upid:
    """How a manifest names the task that found its verify state: the ``number``th of this process, of the time
    ``when``."""
    name = store.identity.name if store.identity is not None else ""
    start, node = process_start(), node_name(os.uname().nodename)
    return Upid(node, os.getpid(), start, number, when, "verify", name, names.DEFAULT_OWNER)


def protect(store: Store, ref: SnapshotRef, *, on: bool) -> None:
    """Set or take away the mark that keeps a snapshot from being removed. Raises NotFound, Locked, UsageError."""
    store.check_writable()
    path = os.path.join(store.layout.snapshot(ref), names.PROTECTED)
    check_inside(store.layout, os.path.dirname(path))
    with store.held(ref), explained("write", path):
        if not on:
            store.disk.remove_file(path)
        elif not snapshots.is_protected(store.layout, ref):
            store.disk.put(path, [], names.FILE_MODE, sync=False)
        store.disk.sync_directory(os.path.dirname(path))  # also what a killed process has done just now


def set_group_note(store: Store, group: GroupRef, text: str) -> None:
    """Replace the notes of a group; without ``text`` it has none."""
    _check_note(text)
    _put_group_file(store, group, names.NOTES, text.encode())


def set_owner(store: Store, group: GroupRef, owner: str) -> None:
    """UsageError for what cannot be an owner."""
    try:
        check_owner(owner)
    except FormatError as error:
        raise UsageError(f"{owner!r} cannot be an owner: {error}", hint="write USER@REALM, for example root@pam") from (
            error
        )
    _put_group_file(store, group, names.OWNER, owner.encode() + b"\n")


def _put_group_file(store: Store, group: GroupRef, name: str, data: bytes) -> None:
    """Replace a file of a group, durably; without ``data`` it is removed. Raises NotFound, Locked, UsageError."""
    store.check_writable()
    directory = store.layout.group(group)
    path = os.path.join(directory, name)
    check_inside(store.layout, directory)
    with locked_group(store, group), explained("write", path):
        if data:
            like = os.lstat(path) if os.path.lexists(path) else None
            store.disk.put(path, [data], names.FILE_MODE, sync=True, like=like)
        else:
            store.disk.remove_file(path)
            store.disk.sync_directory(directory)


@contextmanager
def locked_group(store: Store, group: GroupRef) -> Iterator[None]:
    """Be the only one who publishes into a group or changes it. Raises NotFound, Locked."""
    path = store.layout.group(group)
    try:
        lock = DirectoryLock(path, wait_seconds=_PATIENCE, follow=False)
    except FileNotFoundError as error:
        raise NotFound(f"there is no group {group}", hint="see: archiver groups") from error
    except BlockingIOError as error:
        raise Locked(f"the group {group} is locked by another process", hint="try again later") from error
    except OSError as error:
        raise explain(error, "lock", path) from error
    with lock:
        if not lock.is_at(path):
            raise NotFound(f"there is no group {group} any more")
        yield
