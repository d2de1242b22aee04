"""Where things lie in a datastore, and how groups and snapshots are named (spec datastore.md 1, 2)."""

from __future__ import annotations

import os
from typing import NamedTuple

from archiver.errors import UsageError
from formats.errors import FormatError
from formats.naming import BACKUP_TYPES, check_backup_id, check_namespace, format_time, parse_time

CHUNKS = ".chunks"
LOCK = ".lock"
PRIVATE = ".archiver"  # everything of ours: PBS does not look into hidden directories
SESSIONS = "sessions"
REMOVED = "removed"
DATABASE = "db"
IDENTITY = "store.json"
SYNC_TARGETS = "sync-targets.json"
CHUNK_LOCK = "chunks.lock"
UNLISTED = "unlisted"
RESERVE = "reserve"
GC_STATUS = ".gc-status"

MANIFEST = "index.json.blob"
CLIENT_LOG = "client.log.blob"
WRAPPED_KEY = "rsa-encrypted.key.blob"  # carries the snapshot's mode but is never encrypted with its key
PROTECTED = ".protected"
OWNER = "owner"
NOTES = "notes"

BASE_MODE = 0o755
CHUNKS_MODE = 0o750
SNAPSHOT_MODE = 0o755
FILE_MODE = 0o644
PRIVATE_MODE = 0o700

DEFAULT_OWNER = "root@pam"


def namespace_path(namespace: str) -> str:
    """``a/b`` -> ``ns/a/ns/b``; the root namespace is the empty string in both forms."""
    return "/".join(f"ns/{part}" for part in namespace.split("/")) if namespace else ""


class GroupRef(NamedTuple):
    """A backup group: all snapshots of one thing."""

    namespace: str
    type: str
    id: str

    @property
    def path(self) -> str:
        """Relative to the store; also the printed form."""
        return os.path.join(namespace_path(self.namespace), self.type, self.id)

    def __str__(self) -> str:
        return self.path


class SnapshotRef(NamedTuple):
    """One snapshot; ``time`` in Unix seconds."""

    group: GroupRef
    time: int

    @property
    def path(self) -> str:
        return f"{self.group.path}/{format_time(self.time)}"

    def __str__(self) -> str:
        return self.path


def parse_reference(text: str) -> GroupRef | SnapshotRef:
    """``[ns/a/ns/b/]TYPE/ID[/TIME]``; UsageError when it is neither a group nor a snapshot."""
    parts = text.strip("/").split("/")
    namespaces: list[str] = []
    while len(parts) >= 2 and parts[0] == "ns":
        namespaces.append(parts[1])
        parts = parts[2:]
    problem = UsageError(
        f"{text!r} is not a snapshot", hint="write [ns/NAME/]TYPE/ID[/TIME], for example host/laptop, or latest"
    )
    if len(parts) not in (2, 3) or parts[0] not in BACKUP_TYPES:
        raise problem
    try:
        check_backup_id(parts[1])
        namespace = "/".join(namespaces)
        check_namespace(namespace)
        group = GroupRef(namespace, parts[0], parts[1])
        return SnapshotRef(group, parse_time(parts[2])) if len(parts) == 3 else group
    except FormatError as error:
        raise problem from error


class Layout(NamedTuple):
    """Absolute paths in the store at ``base``."""

    base: str

    @property
    def chunks(self) -> str:
        return os.path.join(self.base, CHUNKS)

    @property
    def lock(self) -> str:
        return os.path.join(self.base, LOCK)

    @property
    def private(self) -> str:
        return os.path.join(self.base, PRIVATE)

    @property
    def sessions(self) -> str:
        return os.path.join(self.base, PRIVATE, SESSIONS)

    @property
    def removed(self) -> str:
        """Where removed snapshots lie until their files are unlinked."""
        return os.path.join(self.base, PRIVATE, REMOVED)

    @property
    def sync_targets(self) -> str:
        return os.path.join(self.base, PRIVATE, SYNC_TARGETS)

    @property
    def identity(self) -> str:
        return os.path.join(self.base, PRIVATE, IDENTITY)

    @property
    def chunk_lock(self) -> str:
        return os.path.join(self.base, PRIVATE, CHUNK_LOCK)

    @property
    def unlisted(self) -> str:
        return os.path.join(self.base, PRIVATE, UNLISTED)

    @property
    def reserve(self) -> str:
        return os.path.join(self.base, PRIVATE, RESERVE)

    @property
    def gc_status(self) -> str:
        return os.path.join(self.base, GC_STATUS)

    def shard(self, digest_hex: str) -> str:
        return f"{self.base}/{CHUNKS}/{digest_hex[:4]}"

    def chunk(self, digest_hex: str) -> str:
        return f"{self.base}/{CHUNKS}/{digest_hex[:4]}/{digest_hex}"

    def namespace(self, namespace: str) -> str:
        return os.path.join(self.base, namespace_path(namespace)) if namespace else self.base

    def group(self, group: GroupRef) -> str:
        return os.path.join(self.base, group.path)

    def snapshot(self, snapshot: SnapshotRef) -> str:
        return os.path.join(self.base, snapshot.path)

    def manifest(self, snapshot: SnapshotRef) -> str:
        return os.path.join(self.base, snapshot.path, MANIFEST)
