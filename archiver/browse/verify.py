"""Reading everything back: manifests, index checksums, blobs, every chunk once (spec datastore.md 10).

Without the key an encrypted chunk is checked by its CRC, and by the BLAKE3 of its stored bytes where the database has
it: rot is found without the key. These sums come from who had the contents at hand, a backup or a verification with the
key; here none is ever written for what could not be checked otherwise.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from archiver.browse.damage import Range, damaged_files
from archiver.browse.seen import SeenChunks
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.core.events import Listener, Notice, Progress
from archiver.core.pipeline import Channel, Pipeline
from archiver.errors import ArchiverError, KeyProblem, NotFound
from archiver.store.chunks import ChunkDamaged, check_present
from archiver.store.indexes import Index, is_index
from archiver.store.layout import MANIFEST, SnapshotRef
from archiver.store.snapshots import made_with_key
from archiver.store.store import Store
from formats.crypt import CryptConfig, short_fingerprint
from formats.manifest import FileInfo

_WORKERS = 2
_QUEUED = 16
_RECORD_AT_ONCE = 4096
_ERRORS_KEPT = 10_000
_NAMES_KEPT = 16 << 20  # characters of the names of damaged files
_SIGNATURE_STATES = ("valid", "unchecked", "unsigned")


class _BadChunk(NamedTuple):
    """A place of an index whose chunk is damaged."""

    position: int
    digest: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyError:
    """``chunk`` and ``files`` are empty where the damage is not that of a chunk."""

    snapshot: str
    archive: str
    chunk: str
    reason: str
    files: list[str]


@dataclass(slots=True)
class VerifyResult:
    """``bytes`` are plain bytes of the chunks read; ``unchecked`` chunks could only be checked without their key, and
    ``without_sum`` of these by their CRC alone. ``signatures``: names of the snapshots whose signature is "valid",
    could not be checked without its key ("unchecked"), and of those that are wholly plain and "unsigned".
    ``unfinished`` snapshots, that have no manifest, were passed over. ``errors`` holds the first 10,000 of
    ``error_count``."""

    snapshots: int = 0
    chunks: int = 0
    bytes: int = 0
    unchecked: int = 0
    without_sum: int = 0
    signatures: dict[str, list[str]] = field(default_factory=lambda: {state: [] for state in _SIGNATURE_STATES})
    unfinished: int = 0
    error_count: int = 0
    errors: list[VerifyError] = field(default_factory=list)

    def add(self, error: VerifyError) -> None:
        self.error_count += 1
        if len(self.errors) < _ERRORS_KEPT:
            self.errors.append(error)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "snapshots": self.snapshots,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "without_key": self.unchecked,
            "without_sum": self.without_sum,
            "signatures": self.signatures,
            "unfinished": self.unfinished,
            "error_count": self.error_count,
            "errors": [asdict(error) for error in self.errors],
        }


def verify(store: Store, refs: Iterable[SnapshotRef], crypt: CryptConfig | None, listener: Listener) -> VerifyResult:
    """Check ``refs``; every chunk is read once however many snapshots use it, and once more for another size that an
    index gives it. Damage is in the result, not raised."""
    return _Verification(store, crypt, listener).run(refs)


def any_made_with_key(store: Store, refs: Iterable[SnapshotRef]) -> bool:
    """Whether a key is of use to check ``refs``. It looks at manifests only."""
    for ref in refs:
        with suppress(ArchiverError):  # unfinished or damaged
            if made_with_key(store.manifest(ref)):
                return True
    return False


def require_fitting_key(store: Store, refs: Iterable[SnapshotRef], crypt: CryptConfig) -> None:
    """Raises KeyProblem when ``refs`` were made with keys, but none with this one. It looks at manifests only."""
    others: set[str] = set()
    for ref in refs:
        try:
            manifest = store.manifest(ref)
        except ArchiverError:
            continue
        fingerprint = manifest.fingerprint
        if fingerprint == crypt.fingerprint or (fingerprint is None and made_with_key(manifest)):
            return
        if fingerprint is not None:
            others.add(short_fingerprint(fingerprint))
    if others:
        raise KeyProblem(
            f"nothing here was made with the key {short_fingerprint(crypt.fingerprint)},"
            f" but with {', '.join(sorted(others))}",
            hint="--without-key checks everything that can be checked without one",
        )


class _Verification:
    def __init__(self, store: Store, crypt: CryptConfig | None, listener: Listener) -> None:
        self._store = store
        self._crypt = crypt
        self._listener = listener
        self._database = store.database  # opened here, not by one of the workers
        self._result = VerifyResult()
        self._lock = threading.Lock()
        self._seen = {encrypted: SeenChunks() for encrypted in (False, True)}
        self._bad: dict[tuple[bytes, int, bool], str] = {}  # digest, size, encrypted
        self._good: list[tuple[bytes, bytes, int]] = []
        self._names_room = _NAMES_KEPT

    def run(self, refs: Iterable[SnapshotRef]) -> VerifyResult:
        for ref in refs:
            try:
                snapshot = self._open(ref)
            except NotFound:
                if os.path.isdir(self._store.layout.snapshot(ref)):  # else it was removed meanwhile
                    self._result.unfinished += 1
                continue
            except ArchiverError as error:
                self._fail(ref, MANIFEST, str(error))
            else:
                self._snapshot(snapshot)
            self._result.snapshots += 1
        check_present(self._store.layout)
        self._record()
        return self._result

    def _open(self, ref: SnapshotRef) -> Snapshot:
        snapshot = Snapshot(self._store, ref, manifest=self._store.manifest(ref, from_file=True), allow_unsigned=True)
        try:
            if self._crypt is not None and snapshot.made_with_key:
                snapshot.unlock(self._crypt)
        except KeyProblem as error:
            self._listener(Notice(f"{error}; its chunks are checked without a key", "warning"))
        state = "unsigned" if not snapshot.made_with_key else "unchecked" if snapshot.crypt is None else "valid"
        self._result.signatures[state].append(str(ref))
        return snapshot

    def _fail(self, ref: SnapshotRef, archive: str, reason: str) -> None:
        self._result.add(VerifyError(str(ref), archive, "", reason, []))

    def _snapshot(self, snapshot: Snapshot) -> None:
        opened: dict[str, Index] = {}
        for file in snapshot.manifest.files:
            try:
                if is_index(file.filename):
                    opened[file.filename] = snapshot.index(file)
                else:
                    snapshot.check_blob(file)
            except ArchiverError as error:
                self._fail(snapshot.ref, file.filename, str(error))
        encrypted = {file.filename: file.crypt_mode == "encrypt" for file in snapshot.manifest.files}
        for filename, index in opened.items():
            self._chunks(snapshot, index, encrypted[filename])
        if self._bad:
            self._report(snapshot, opened, encrypted)

    # -- chunks ------------------------------------------------------------------------------------------------------

    def _chunks(self, snapshot: Snapshot, index: Index, encrypted: bool) -> None:
        with Pipeline() as pipeline:
            tasks: Channel[tuple[bytes, int]] = Channel(pipeline, _QUEUED)
            for number in range(_WORKERS):
                pipeline.start(lambda: self._work(snapshot, tasks, encrypted), f"verify-{number}")
            for chunk in self._seen[encrypted].add(index):
                tasks.put(chunk)
                self._listener(Progress("verify", self._result.chunks, self._result.bytes))
            tasks.close()
            pipeline.join()

    def _work(self, snapshot: Snapshot, tasks: Channel[tuple[bytes, int]], encrypted: bool) -> None:
        reader = self._store.reader(snapshot.crypt)
        while (task := tasks.get()) is not None:
            digest, size = task
            try:
                total, stored = reader.verify(digest, size, encrypted=encrypted)
                has_sum = reader.has_key or not encrypted or self._has_recorded_sum(digest, total)
            except ChunkDamaged as error:
                with self._lock:
                    self._bad[(digest, size, encrypted)] = error.reason
                    self._result.chunks += 1
                if self._database is not None:
                    self._database.mark_damaged(digest)
                continue
            with self._lock:
                self._result.chunks += 1
                self._result.bytes += size
                if encrypted and not reader.has_key:
                    self._result.unchecked += 1
                    self._result.without_sum += not has_sum
                else:
                    self._good.append((digest, total, stored))
                full = len(self._good) >= _RECORD_AT_ONCE
            if full:
                self._record()

    def _has_recorded_sum(self, digest: bytes, total: bytes) -> bool:
        """Whether ``total`` is the sum that was recorded of a chunk's stored bytes. False when none was, or when its
        file was written since: another program has stored the chunk again, encrypted with another IV. Raises
        ChunkDamaged when the bytes have changed by themselves."""
        recorded = self._database.recorded_sum(digest) if self._database is not None else None
        if recorded is None:
            return False
        if recorded[0] == total:
            return True
        status = self._store.chunks.seen(digest)
        if status is not None and status.st_mtime > recorded[1] + 1:
            return False
        raise ChunkDamaged(digest, "is not what was stored: its bytes have another BLAKE3 than the database says")

    def _record(self) -> None:
        """Tell the database which chunks were read and found good."""
        with self._lock:
            good, self._good = self._good, []
        if good and self._database is not None:
            self._database.mark_verified(good, self._store.clock.now())

    # -- damage ------------------------------------------------------------------------------------------------------

    def _report(self, snapshot: Snapshot, opened: dict[str, Index], encrypted: dict[str, bool]) -> None:
        try:
            archive_of = {file.filename: archive for archive in snapshot.archives() for file in archive.files}
        except ArchiverError as error:
            self._fail(snapshot.ref, MANIFEST, str(error))
            archive_of = {}
        for file in snapshot.manifest.files:
            index = opened.get(file.filename)
            bad = [] if index is None else self._bad_chunks(index, encrypted[file.filename])
            if index is None or not bad:
                continue
            ranges = [(index.start(chunk.position), index.end(chunk.position)) for chunk in bad]
            archive = archive_of.get(file.filename)  # none for a catalog
            files = [[] for _ in bad] if archive is None else self._files(snapshot, archive, file, ranges)
            for chunk, names in zip(bad, files, strict=True):
                where = str(snapshot.ref), file.filename, chunk.digest.hex()
                self._result.add(VerifyError(*where, chunk.reason, names))

    def _bad_chunks(self, index: Index, encrypted: bool) -> list[_BadChunk]:
        """The damaged chunks of an index in its order. Few others start with the same 8 bytes as one of them."""
        starts = np.frombuffer(b"".join(digest[:8] for digest, _, _ in self._bad), np.uint64)
        candidates = np.isin(np.ascontiguousarray(index.digests[:, :8]).view(np.uint64).ravel(), starts)
        found = []
        for position in np.flatnonzero(candidates).tolist():
            digest = index.digest(position)
            size = index.end(position) - index.start(position)
            reason = self._bad.get((digest, size, encrypted))
            if reason is not None:
                found.append(_BadChunk(position, digest, reason))
        return found

    def _files(self, snapshot: Snapshot, archive: ArchiveFiles, file: FileInfo, ranges: list[Range]) -> list[list[str]]:
        """The files that each of the damaged ranges of ``file`` concerns."""
        if archive.kind != "tree":
            return [[archive.name] for _ in ranges]
        try:
            tree = snapshot.tree(archive)
        except ArchiverError:
            return [[] for _ in ranges]
        if file is archive.files[-1]:
            found = damaged_files(tree, ranges, self._names_room)
            self._names_room -= sum(len(name) for names in found for name in names)
            return found
        (hidden,) = damaged_files(tree, [(0, 0)], 0)  # of names and attributes: it is not known what they were
        return [hidden for _ in ranges]
