"""Finding what is lost: manifests, blobs and indexes by their checksums; chunks that have no file, or one of another
length than the database says, or that it knows to be damaged. In snapshots of which a verification failed every chunk
is read that was not found good by then; all of them with ``read_all``.

Where another place has a lost manifest or index, what it names is looked for too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from archiver.browse.chunk_check import ChunkCheck, Task
from archiver.browse.damage import BadChunk, bad_chunks
from archiver.browse.seen import Rows, SeenChunks, digests_of, pairs_of
from archiver.browse.snapshot import Snapshot
from archiver.browse.verify_budget import Kind
from archiver.browse.verify_result import VerifyResult
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, Damaged, KeyProblem, Locked, NotFound
from archiver.heal.candidates import Candidates, fits
from archiver.heal.damage import Key, LostFile, stored_path
from archiver.store import snapshots
from archiver.store.chunks import check_present
from archiver.store.database.rounds import known_of
from archiver.store.indexes import Index, is_index, load_index
from archiver.store.layout import SnapshotRef
from archiver.store.snapshots import read_small
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.manifest import FileInfo, Manifest

_AT_ONCE = 1 << 16  # chunks
_LOST_AT_MOST = 100_000  # chunks in a run: each takes memory
_LARGEST_BLOB_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER


@dataclass(slots=True)
class Subject:
    """A snapshot that is looked at. ``manifest_file``: the whole file from ``manifest_source``, where that here
    is lost. ``lost``: what of it is, with the keys of the chunks; ``has_failed``: a verification found damage in it."""

    snapshot: Snapshot
    candidates: Sequence[Candidates]
    manifest_file: bytes | None = None
    manifest_source: str | None = None
    has_failed: bool = False
    files: list[LostFile] = field(default_factory=list)
    lost: set[Key] = field(default_factory=set)

    @property
    def ref(self) -> SnapshotRef:
        return self.snapshot.ref

    def indexes(self) -> Iterator[tuple[FileInfo, Index]]:
        """The sound indexes, and those that are to be had elsewhere; opened one by one, as they may be large."""
        for file in self.snapshot.manifest.files:
            if is_index(file.filename):
                index = self._index(file)
                if index is not None:
                    yield file, index

    def _index(self, file: FileInfo) -> Index | None:
        with suppress(ArchiverError):
            return self.snapshot.index(file)
        return self.elsewhere(file)

    def elsewhere(self, file: FileInfo) -> Index | None:
        """An index that is lost here; None for a blob."""
        if not is_index(file.filename):
            return None
        return next((found for each in self.candidates if (found := each.index(self.ref, file)) is not None), None)

    def bad_chunks(self, bad: dict[Key, str]) -> Iterator[tuple[FileInfo, Index, list[BadChunk]]]:
        """The places of chunks that are ``bad``, index by index."""
        if not bad:
            return
        for file, index in self.indexes():
            found = bad_chunks(index, file.crypt_mode == "encrypt", bad)
            if found:
                yield file, index, found

    def is_with_key(self, file: FileInfo) -> bool:
        return file.crypt_mode == "encrypt" and self.snapshot.crypt is not None


class Search:
    """``subjects``: the snapshots that could be looked at, ``bad``: their lost chunks and why. ``hopeless``: manifests
    that nobody has. ``since``: chunks that were verified then or later were not read again. ``is_complete``: the search
    was not ended early because so much is lost."""

    def __init__(
        self,
        store: Store,
        crypt: CryptConfig | None,
        candidates: Sequence[Candidates],
        listener: Listener,
        *,
        read_all: bool,
    ) -> None:
        self._store, self._crypt = store, crypt
        self._candidates = candidates
        self._read_all = read_all
        self._listener = listener
        self._read = VerifyResult()
        self._check = ChunkCheck(store, crypt, self._read, listener, set_aside=False)
        self._seen = {Kind(*kind): SeenChunks() for kind in ((False, False), (True, False), (True, True))}
        self.began = store.clock.now()
        self.since = self.began
        self.subjects: list[Subject] = []
        self.hopeless: list[LostFile] = []
        self.is_complete = True
        self.unfinished = 0
        self.busy: list[str] = []

    @property
    def bad(self) -> dict[Key, str]:
        return self._check.bad

    def may_be_good(self, subject: Subject) -> bool:
        """Whether a snapshot that has failed is good when nothing of it is lost: without the key the last word may be
        of who had it."""
        lacks_key = subject.snapshot.crypt is None and any(
            file.crypt_mode == "encrypt" for file in subject.snapshot.manifest.files
        )
        return self.is_complete and not (lacks_key and self._read.without_sum)

    def run(self, refs: Iterable[SnapshotRef]) -> None:
        """Raises TargetAbsent when the store goes away meanwhile, ArchiverError."""
        met = [subject for ref in refs if (subject := self._met(ref)) is not None]
        failed = [when for subject in met if (when := self._failed(subject)) is not None]
        if failed and not self._read_all and self._store.database is not None:
            self.since = max(failed)
        met.sort(key=lambda subject: not subject.has_failed)  # those of which more is read come first
        for subject in met:
            try:
                with self._store.held(subject.ref):
                    self._look_at(subject)
            except Locked:
                self.busy.append(str(subject.ref))
            except NotFound:  # it was removed meanwhile
                check_present(self._store.layout)
            else:
                self.subjects.append(subject)
        self._check.record()
        check_present(self._store.layout)

    def decoded(self, ref: SnapshotRef, data: bytes) -> Snapshot:
        """A snapshot with the manifest in the file ``data``. Raises Damaged."""
        return self.opened(ref, snapshots.decode_manifest(ref, snapshots.manifest_json(ref, data)))

    def opened(self, ref: SnapshotRef, manifest: Manifest) -> Snapshot:
        """A snapshot with this manifest. Raises Damaged when it was altered."""
        snapshot = Snapshot(self._store, ref, manifest=manifest, allow_unsigned=True)
        try:
            if self._crypt is not None and snapshot.made_with_key:
                snapshot.unlock(self._crypt)
        except KeyProblem as error:
            self._listener(Notice(f"{error}; its chunks are looked at without a key", "warning"))
        return snapshot

    def _failed(self, subject: Subject) -> int | None:
        """When a verification failed."""
        state = snapshots.verify_state(subject.snapshot.manifest)
        if state is None or state.state != "failed":
            return None
        subject.has_failed = True
        return state.time

    # -- manifests ---------------------------------------------------------------------------------------------------

    def _met(self, ref: SnapshotRef) -> Subject | None:
        try:
            return Subject(self.opened(ref, self._store.manifest(ref, from_file=True)), self._candidates)
        except NotFound:
            lost = LostFile(ref, None, "is missing", is_missing=True)
            if not os.path.isdir(self._store.layout.snapshot(ref)):
                return None  # it was removed
        except ArchiverError as error:
            lost = LostFile(ref, None, str(error))
        for source, data in ((each.name, data) for each in self._candidates for data in each.manifests(ref)):
            with suppress(ArchiverError):
                snapshot = self.decoded(ref, data)
                other = self._contradiction(ref, snapshot.manifest)
                if other is None:
                    return Subject(snapshot, self._candidates, data, source, files=[lost])
                text = f"a manifest of {ref} is not taken: its {other} is another one than the sound one that is here"
                self._listener(Notice(text, "warning"))
        if lost.is_missing:
            self.unfinished += 1
        else:
            self.hopeless.append(lost)
        return None

    def _contradiction(self, ref: SnapshotRef, manifest: Manifest) -> str | None:
        """The name of a file here that is sound in itself and not that of ``manifest``: it may be another snapshot's.
        None also when any file here is the one of the manifest."""
        others = []
        for info in manifest.files:
            path = stored_path(self._store, ref, info.filename)
            with suppress(OSError, FormatError, Damaged):
                if is_index(info.filename):
                    index = load_index(path)
                    csum = index.csum()
                    if (csum, index.size) == (info.csum, info.size):
                        return None
                    is_sound = csum == index.stored_csum
                else:
                    data = read_small(path, _LARGEST_BLOB_FILE)
                    if fits(data, info):
                        return None
                    blob.BlobDecoder().check_stored(data)
                    is_sound = True
                if is_sound:
                    others.append(info.filename)
        return others[0] if others else None

    # -- indexes, blobs and chunks -----------------------------------------------------------------------------------

    def _look_at(self, subject: Subject) -> None:
        snapshot = subject.snapshot
        for file in snapshot.manifest.files:
            index = None
            try:
                if is_index(file.filename):
                    index = snapshot.index(file)
                else:
                    snapshot.check_blob(file)
            except ArchiverError as error:
                subject.files.append(LostFile(subject.ref, file, str(error)))
                index = subject.elsewhere(file)
            if index is not None:
                kind = Kind(file.crypt_mode == "encrypt", subject.is_with_key(file))
                for rows in self._seen[kind].add(index):
                    self._check.run(self._suspects(rows, kind, subject.has_failed), goes_on=self._goes_on)
                    if not self.is_complete:
                        break

    def _goes_on(self) -> bool:
        self.is_complete = len(self.bad) < _LOST_AT_MOST
        return self.is_complete

    def _suspects(self, rows: Rows, kind: Kind, has_failed: bool) -> Iterator[Task]:
        """Chunks that are to be read: something may be wrong with them."""
        database = self._store.database
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            known = known_of(database, digests_of(part)) if database is not None else None
            for place, (digest, size) in enumerate(pairs_of(part)):
                stored = verified = 0
                if known is not None:
                    stored, verified = int(known.stored[place]), int(known.verified[place])
                if (
                    self._read_all
                    or (known is not None and not stored)
                    or (has_failed and verified < self.since)
                    or not self._looks_sound(digest, stored)
                ):
                    yield Task(digest, size, kind.encrypted, kind.with_key)

    def _looks_sound(self, digest: bytes, stored: int) -> bool:
        """Whether there is a file, of ``stored`` bytes unless that is 0."""
        try:
            status = os.lstat(self._store.layout.chunk(digest.hex()))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size > 0 and stored in (0, status.st_size)
