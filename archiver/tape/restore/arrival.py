"""A snapshot that has come from a medium and waits, out of sight in the session of the run, until all of its chunks are
in the store. Then it is published as a backup is: whole, durable, in one rename.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from archiver.core.disk import Disk, explained
from archiver.errors import Damaged
from archiver.store import layout as names
from archiver.store import snapshots
from archiver.store.indexes import Index, is_index, open_index_file
from archiver.store.layout import SnapshotRef
from archiver.store.sessions import Session
from archiver.store.snapshots import read_small
from archiver.store.store import Store
from archiver.tape.reading import MediumFile
from archiver.tape.restore.routes import snapshot_on_medium
from formats import blob
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.manifest import FileInfo, Manifest, with_unprotected
from formats.naming import check_file_name
from formats.tape.snapshot_archive import SnapshotFile, read_files

_LARGEST_BLOB_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER


class CutArchive(Damaged):
    """A snapshot archive whose writer did not come to its end: the snapshot is not in it."""

    code = "cut-archive"


@dataclass(slots=True)
class Arrival:
    """``name``: what the snapshot is called on the medium; ``targets``: what it becomes here; ``directory``: where its
    files are; ``with_key``: the key at hand is its key."""

    name: str
    targets: tuple[SnapshotRef, ...]
    directory: str
    manifest: Manifest
    manifest_file: bytes
    has_log: bool
    with_key: bool

    def indexes(self) -> Iterator[tuple[FileInfo, Index]]:
        """One by one: they may be large. Raises Damaged."""
        for file in self.manifest.files:
            if is_index(file.filename):
                yield file, open_index_file(os.path.join(self.directory, file.filename), self.name, file)


def receive(
    disk: Disk,
    file: MediumFile,
    name: str,
    targets: tuple[SnapshotRef, ...],
    directory: str,
    crypt: CryptConfig | None,
) -> Arrival:
    """Read a snapshot archive into ``directory``, which is made, and check its files against its manifest. Raises
    CutArchive, Damaged, FormatError."""
    with explained("write into", directory):
        disk.make_directory(directory, names.SNAPSHOT_MODE)
    for each in read_files(file.stream):
        _write(disk, directory, each)
    if not file.is_whole():
        raise CutArchive(f"the archive of {name} was not written to its end")
    return _checked(disk, name, targets, directory, crypt)


@contextmanager
def looked_at(file: MediumFile, crypt: CryptConfig | None) -> Iterator[Arrival]:
    """A snapshot archive that is read without restoring it. Raises CutArchive, Damaged, FormatError."""
    source, path = file.content.store, file.content.text("snapshot")
    ref = snapshot_on_medium(path)
    with tempfile.TemporaryDirectory(prefix="archiver-") as place:
        yield receive(Disk(), file, f"{source}:{path}", (ref,), f"{place}/snapshot", crypt)


def _write(disk: Disk, directory: str, file: SnapshotFile) -> None:
    if file.name not in (names.MANIFEST, names.CLIENT_LOG):
        check_file_name(file.name)
    path = os.path.join(directory, file.name)
    if os.path.lexists(path):
        raise FormatError(f"{file.name} twice in a snapshot archive")
    with explained("write", path):
        new = disk.create(path, names.FILE_MODE)
    try:
        for piece in file.contents:
            with explained("write", path):
                new.append(piece)
    finally:
        new.close()


def _checked(
    disk: Disk, name: str, targets: tuple[SnapshotRef, ...], directory: str, crypt: CryptConfig | None
) -> Arrival:
    try:
        data = read_small(os.path.join(directory, names.MANIFEST), _LARGEST_BLOB_FILE)
    except FileNotFoundError as error:
        raise Damaged(f"the archive of {name} has no manifest") from error
    text = snapshots.manifest_json(targets[0], data)
    manifest = snapshots.decode_manifest(targets[0], text)
    for info in manifest.files:
        _check_file(name, os.path.join(directory, info.filename), info)
    named = {info.filename for info in manifest.files}
    for found in os.listdir(directory):
        if found not in named and found not in (names.MANIFEST, names.CLIENT_LOG):
            disk.remove_file(os.path.join(directory, found))
    if "verify_state" in manifest.unprotected:  # of another store, which had its own chunks
        kept = {key: value for key, value in manifest.unprotected.items() if key != "verify_state"}
        data = blob.encode(with_unprotected(text, kept))
    with_key = crypt is not None and manifest.fingerprint == crypt.fingerprint
    has_log = os.path.lexists(os.path.join(directory, names.CLIENT_LOG))
    return Arrival(name, targets, directory, manifest, data, has_log, with_key)


def _check_file(name: str, path: str, info: FileInfo) -> None:
    if is_index(info.filename):
        open_index_file(path, name, info)
        return
    try:
        data = read_small(path, _LARGEST_BLOB_FILE)
    except FileNotFoundError as error:
        raise Damaged(f"{info.filename} of {name} is missing") from error
    if len(data) != info.size or sha256(data).digest() != info.csum:
        raise Damaged(f"{info.filename} of {name} is not the file that its manifest describes")


def publish(store: Store, arrival: Arrival, ref: SnapshotRef, owner: str) -> bool:
    """Make it visible under one of its names. Its chunks are durable. False when there is one of that name by now."""
    with store.session() as session:
        for file in arrival.manifest.files:
            _place(store, session, arrival, file.filename)
        if arrival.has_log:
            _place(store, session, arrival, names.CLIENT_LOG)
        published = session.publish_copy(ref, owner, arrival.manifest_file, replace=False)
    if published:
        store.record(ref)
    return published


def _place(store: Store, session: Session, arrival: Arrival, name: str) -> None:
    """Another name of the same file where that can be, else a copy: no two snapshots share a file."""
    source, path = os.path.join(arrival.directory, name), session.file(name)
    is_single = len(arrival.targets) == 1
    with explained("write", path):
        if not (is_single and store.disk.link_file(source, path)):
            with open(source, "rb") as file:
                new = store.disk.create(path, names.FILE_MODE)
                try:
                    while piece := file.read(1 << 20):
                        new.append(piece)
                finally:
                    new.close()
    session.barrier.note(path)
