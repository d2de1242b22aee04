"""Writing lost files of snapshots again: indexes and blobs first, the manifest when what it names is there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from archiver.core.disk import explained
from archiver.errors import ArchiverError, Damaged, Skipped
from archiver.heal.candidates import fits
from archiver.heal.damage import LostFile, stored_path
from archiver.store import labels
from archiver.store import layout as names
from archiver.store.indexes import is_index, open_index, open_index_file
from archiver.store.layout import SnapshotRef
from archiver.store.removal import check_inside
from archiver.store.sessions import Session
from archiver.store.snapshots import read_small
from archiver.store.store import Store
from formats.manifest import FileInfo

_PIECE = 1 << 20  # bytes


def write_file(store: Store, session: Session, lost: LostFile, info: FileInfo, file: BinaryIO) -> None:
    """Put an index or blob back, durably, unless that has been done by now. ``file`` is closed; what arrives is checked
    once more. Raises NotFound when the snapshot is gone, Damaged, ArchiverError."""
    path = stored_path(store, lost.ref, lost.name)
    check_inside(store.layout, path)
    new = session.file(store.disk.temp_name(lost.name))
    with file, explained("write", new):
        written = store.disk.create(new, names.FILE_MODE)
        try:
            for piece in iter(partial(file.read, _PIECE), b""):
                written.append(piece)
        finally:
            written.close()
    if is_index(lost.name):
        open_index_file(new, str(lost.ref), info)
    elif not fits(read_small(new, info.size), info):
        raise Damaged(f"{lost.name} of {lost.ref} was read once rightly, then otherwise")
    with store.held(lost.ref), explained("write", path):
        if is_sound(store, lost.ref, info):
            store.disk.remove_file(new)
            return
        session.barrier.note(new)
        session.barrier.commit()
        store.disk.replace_file(new, path)


def is_sound(store: Store, ref: SnapshotRef, info: FileInfo) -> bool:
    """Whether an index or blob is the one that the manifest describes."""
    try:
        if is_index(info.filename):
            open_index(store.layout, ref, info)
            return True
        return fits(read_small(stored_path(store, ref, info.filename), info.size), info)
    except (OSError, ArchiverError):
        return False


def write_manifest(store: Store, lost: LostFile, data: bytes, is_damaged: Callable[[bytes], bool]) -> None:
    """Put a manifest back, durably. ``is_damaged``: asked of the file that is there by now. Skipped when that is sound;
    NotFound, Locked, ArchiverError."""
    ref = lost.ref

    def check(there: bytes) -> None:
        if not is_damaged(there):
            raise Skipped(f"the manifest of {ref} is sound by now")

    if not lost.is_missing:
        labels.replace_manifest(store, ref, data, check)
        return
    path = store.layout.manifest(ref)
    check_inside(store.layout, path)
    with labels.locked_group(store, ref.group), store.held(ref), explained("write", path):
        try:
            store.disk.put_new(path, [data], names.FILE_MODE)
        except FileExistsError as error:
            raise Skipped(f"{ref} has a manifest by now") from error
