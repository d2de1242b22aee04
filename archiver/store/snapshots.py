"""Groups and snapshots as the directories show them, and what their manifests say."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

from archiver.core.disk import explain, read_at
from archiver.errors import ArchiverError, Damaged, NotFound
from archiver.store import layout as names
from archiver.store.layout import GroupRef, Layout, SnapshotRef
from formats import blob
from formats.errors import FormatError
from formats.manifest import MAX_TEXT, Manifest
from formats.naming import BACKUP_TYPES, check_backup_id, check_backup_time, check_namespace, parse_time

_LARGEST_MANIFEST = MAX_TEXT + blob.PLAIN_HEADER  # bytes of the file
_MAX_SMALL_FILE = 1 << 20
_READ_AT_LEAST = 1 << 16  # bytes, where there are so many: files of /proc have no size, and a file may grow
Stamp = tuple[int, int, int]
VERIFY_STATES = ("ok", "failed")


class SnapshotInfo(NamedTuple):
    """One snapshot directory. ``manifest`` is None while unfinished, or when ``problem`` says why it is unreadable."""

    ref: SnapshotRef
    manifest: Manifest | None
    problem: ArchiverError | None
    protected: bool
    owner: str | None

    @property
    def finished(self) -> bool:
        return self.manifest is not None

    @property
    def signature(self) -> str | None:
        """What the manifest claims: "signed", "unsigned" (nothing in it was made with a key), "lost" (it should have a
        signature). Whether a signature is valid is not known here."""
        if self.manifest is None:
            return None
        if self.manifest.signature is not None:
            return "signed"
        return "lost" if made_with_key(self.manifest) else "unsigned"

    @property
    def verify_state(self) -> dict[str, object] | None:
        state = None if self.manifest is None else verify_state(self.manifest)
        return None if state is None else dict(state._asdict())

    @property
    def size(self) -> int | None:
        """Sum of the sizes in the manifest, bytes."""
        return None if self.manifest is None else sum(file.size for file in self.manifest.files)


def made_with_key(manifest: Manifest) -> bool:
    """Whether a snapshot was encrypted or signed, or says anything that only a key has it say."""
    modes = {file.crypt_mode for file in manifest.files}
    return manifest.signature is not None or manifest.fingerprint is not None or not modes <= {"none"}


class VerifyState(NamedTuple):
    state: str  # ok or failed
    time: int  # Unix seconds


def verify_state(manifest: Manifest) -> VerifyState | None:
    """The result of the last verify; its time is in the task id (spec blob-index-crypto.md 8.1). None for one that a
    PBS could not read either."""
    state = manifest.unprotected.get("verify_state")
    if not isinstance(state, Mapping) or state.get("state") not in VERIFY_STATES:
        return None
    from formats.upid import Upid

    try:
        when = Upid.decode(str(state.get("upid"))).start
        check_backup_time(when)
    except FormatError:
        return None
    return VerifyState(str(state["state"]), when)


def namespaces(layout: Layout, below: str = "") -> Iterator[str]:
    """``below`` and every namespace in it, parents first. Directories with impossible names are passed over."""
    todo = [below]
    while todo:
        current = todo.pop()
        yield current
        found = []
        for name in _directories(os.path.join(layout.namespace(current), "ns")):
            child = f"{current}/{name}" if current else name
            try:
                check_namespace(child)
            except FormatError:
                continue
            found.append(child)
        todo.extend(sorted(found, reverse=True))


def groups(layout: Layout, namespace: str) -> list[GroupRef]:
    """The groups of one namespace level, sorted."""
    found = []
    base = layout.namespace(namespace)
    for kind in BACKUP_TYPES:
        for name in _directories(os.path.join(base, kind)):
            try:
                check_backup_id(name)
            except FormatError:
                continue
            found.append(GroupRef(namespace, kind, name))
    return sorted(found)


def times(layout: Layout, group: GroupRef) -> list[int]:
    """Times of all snapshot directories of a group, oldest first, unfinished ones too."""
    found = []
    for name in _directories(layout.group(group)):
        try:
            found.append(parse_time(name))
        except FormatError:
            continue
    return sorted(found)


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise explain(error, "list", path) from error


def manifest_stamp(layout: Layout, ref: SnapshotRef) -> Stamp | None:
    """(inode, size, mtime in ns) of the manifest; None for an unfinished snapshot."""
    path = layout.manifest(ref)
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise explain(error, "look at", path) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_manifest_json(layout: Layout, ref: SnapshotRef) -> bytes:
    """The JSON text in the manifest blob. NotFound for no snapshot or an unfinished one, Damaged otherwise."""
    return manifest_json(ref, read_manifest_blob(layout, ref))


def read_manifest_blob(layout: Layout, ref: SnapshotRef) -> bytes:
    """The manifest file as it is. NotFound for no snapshot or an unfinished one."""
    path = layout.manifest(ref)
    try:
        return read_small(path, _LARGEST_MANIFEST)
    except FileNotFoundError as error:
        if os.path.isdir(layout.snapshot(ref)):
            raise NotFound(f"snapshot {ref} is unfinished", hint="its backup did not come to its end") from error
        raise NotFound(f"there is no snapshot {ref}", hint="see the list with: archiver snapshots") from error
    except OSError as error:
        raise explain(error, "read", path) from error


def manifest_json(ref: SnapshotRef, data: bytes) -> bytes:
    """The JSON text in a manifest file. Raises Damaged."""
    try:
        return bytes(blob.decode(data, max_size=MAX_TEXT, encrypted=False))
    except FormatError as error:
        raise Damaged(f"the manifest of {ref} is damaged: {error}") from error


def decode_manifest(ref: SnapshotRef, text: bytes) -> Manifest:
    """Raises Damaged when it is no manifest, or that of another snapshot."""
    try:
        manifest = Manifest.decode(text)
    except FormatError as error:
        raise Damaged(f"the manifest of {ref} is damaged: {error}") from error
    if (manifest.backup_type, manifest.backup_id, manifest.backup_time) != (ref.group.type, ref.group.id, ref.time):
        raise Damaged(
            f"the manifest in {ref} belongs to another snapshot", hint="was the directory copied or renamed by hand?"
        )
    return manifest


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read it; OSError, Damaged when it is something else."""
    return os.fdopen(_open_regular(path)[0], "rb")


def _open_regular(path: str) -> tuple[int, int]:
    """The same without a file object, which takes longer than all the rest with a small file; its size too."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Damaged(f"{path} is not a regular file")
    return fd, status.st_size


def read_small(path: str, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes; OSError, Damaged when it is something else."""
    fd, size = _open_regular(path)
    try:
        if size > limit:
            raise Damaged(f"{path} is too large: {size} bytes")
        return read_at(fd, min(max(size, _READ_AT_LEAST), limit))
    finally:
        os.close(fd)


def owner(layout: Layout, group: GroupRef) -> str | None:
    """The group's owner line; None when it is missing or unreadable."""
    try:
        text = read_small(os.path.join(layout.group(group), names.OWNER), _MAX_SMALL_FILE)
    except (OSError, Damaged):
        return None
    return text.split(b"\n", 1)[0].decode("utf-8", "replace").strip() or None


def group_note(layout: Layout, group: GroupRef) -> str | None:
    """The group's notes; None when there are none, or they are unreadable."""
    try:
        text = read_small(os.path.join(layout.group(group), names.NOTES), _MAX_SMALL_FILE)
    except (OSError, Damaged):
        return None
    return text.decode("utf-8", "replace") or None


def is_protected(layout: Layout, ref: SnapshotRef) -> bool:
    return os.path.lexists(os.path.join(layout.snapshot(ref), names.PROTECTED))
