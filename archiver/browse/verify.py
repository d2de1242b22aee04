"""Reading everything back: manifests, index checksums, blobs, every chunk once (spec datastore.md 10).

The result of each snapshot is written into its manifest, where a PBS reads it too: ``snapshots`` shows it, a backup
takes nothing over from a snapshot that failed, and a prune keeps the newest that was good. With a budget that is done
for damaged snapshots, and for those of which every chunk was read in this cycle. Good is only a snapshot all of whose
chunks were proven; where no damage was found, but some chunks were checked without their key and by their CRC alone,
the last word stays, as it is of somebody who knew more. (A PBS, which never has the key, is content with the CRC.)

A snapshot that is removed while this runs is no error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from archiver.browse.chunk_check import ChunkCheck, Task
from archiver.browse.damage import bad_chunks, files_of
from archiver.browse.seen import Rows, SeenChunks, pairs_of
from archiver.browse.snapshot import Snapshot
from archiver.browse.verify_budget import Kind, Plan
from archiver.browse.verify_result import Budget, Found, VerifyError, VerifyOptions, VerifyResult
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, KeyProblem, Locked, NotFound
from archiver.store.chunks import check_present
from archiver.store.digests import Prefixes, prefixes_of
from archiver.store.indexes import Index, is_index
from archiver.store.labels import set_verify_state, verify_task
from archiver.store.layout import MANIFEST, SnapshotRef
from archiver.store.snapshots import made_with_key, verify_state
from archiver.store.store import Store
from formats.crypt import CryptConfig, short_fingerprint
from formats.manifest import Manifest

__all__ = [
    "Budget",
    "VerifyError",
    "VerifyOptions",
    "VerifyResult",
    "any_made_with_key",
    "require_fitting_key",
    "verify",
]

_NAMES_KEPT = 16 << 20  # characters of the names of damaged files
_DAY = 86400
_COMPARED_AT_ONCE = 1 << 18  # entries of an index
_READ_ONLY = VerifyOptions()


def verify(
    store: Store,
    refs: Iterable[SnapshotRef],
    crypt: CryptConfig | None,
    listener: Listener,
    options: VerifyOptions = _READ_ONLY,
) -> VerifyResult:
    """Check ``refs``; every chunk is read once however many snapshots use it, and once more for another size that an
    index gives it. Damage is in the result, not raised."""
    return _Verification(store, crypt, listener, options).run(refs)


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
    def __init__(self, store: Store, crypt: CryptConfig | None, listener: Listener, options: VerifyOptions) -> None:
        self._store = store
        self._crypt = crypt
        self._listener = listener
        self._options = options
        self._steady = store.clock.steady()
        self._began = store.clock.now()
        self._tasks = itertools.count()
        self._result = VerifyResult()
        self._check = ChunkCheck(store, crypt, self._result, listener, set_aside=options.set_aside)
        self._seen = {Kind(*kind): SeenChunks() for kind in ((False, False), (True, False), (True, True))}
        self._found = Found()  # of the snapshot that is looked at
        self._names_room = _NAMES_KEPT

    def run(self, refs: Iterable[SnapshotRef]) -> VerifyResult:
        if self._options.budget is None:
            self._completely(refs)
        else:
            self._within(self._options.budget, refs)
        check_present(self._store.layout)
        self._check.record()
        return self._result

    def _completely(self, refs: Iterable[SnapshotRef]) -> None:
        """Snapshot by snapshot; nobody removes one while it is looked at."""
        for ref in refs:
            try:
                with self._store.held(ref):
                    snapshot = self._opened(ref)
                    if snapshot is not None:
                        indexes = self._indexes(snapshot)
                        self._check.run(
                            Task(digest, size, kind.encrypted, kind.with_key)
                            for kind, rows in self._new(snapshot, indexes)
                            for digest, size in pairs_of(rows)
                        )
                        self._report(snapshot, indexes)
                        is_proven = not _has_any(indexes, [self._check.unproven()])
                        self._end(ref, self._state(is_proven), self._began)
            except Locked:
                self._result.busy.append(str(ref))
            except NotFound:  # it was removed meanwhile
                check_present(self._store.layout)

    def _within(self, budget: Budget, refs: Iterable[SnapshotRef]) -> None:
        """All manifests, blobs and indexes first, then as many chunks as the budget is enough for."""
        looked_at: list[tuple[Snapshot, Found]] = []
        for ref in refs:
            snapshot = self._opened(ref)
            if snapshot is not None:
                for _ in self._new(snapshot, self._indexes(snapshot)):
                    pass
                looked_at.append((snapshot, self._found))
        check_present(self._store.layout)
        plan = Plan(self._store, self._seen, self._options.scope, budget, self._began, self._steady, self._listener)
        try:
            self._check.run(plan.always(), done=plan.done)
            for tasks in plan.others():
                self._check.run(tasks, goes_on=plan.goes_on, done=plan.done)
        finally:
            self._check.record()
            plan.save()
        self._result.budget = plan.result()
        unproven = [each for each in (*plan.unproven(), self._check.unproven()) if len(each)]
        for snapshot, self._found in looked_at:
            is_proven = not unproven
            if self._check.bad or not is_proven:
                self._found = Found()  # which are told anew
                indexes = self._indexes(snapshot)
                is_proven = not _has_any(indexes, unproven)
                self._report(snapshot, indexes)
            self._end(snapshot.ref, self._state(is_proven), plan.began)

    def _state(self, is_proven: bool) -> str | None:
        """What is to be said of a snapshot; None: nothing."""
        return "failed" if self._found.count else "ok" if is_proven else None

    # -- one snapshot ------------------------------------------------------------------------------------------------

    def _opened(self, ref: SnapshotRef) -> Snapshot | None:
        """None when there is nothing to look at: it is gone or unfinished, is to be skipped, or its manifest is bad."""
        self._found = Found()
        state = None
        try:
            manifest = self._store.manifest(ref, from_file=True)
            if self._skips(manifest):
                return None
            state = "failed"  # there is a manifest to say so in
            snapshot = self._unlocked(ref, manifest)
        except NotFound:
            if os.path.isdir(self._store.layout.snapshot(ref)):  # else it was removed meanwhile
                self._result.unfinished += 1
            return None
        except ArchiverError as error:
            self._fail(ref, MANIFEST, str(error))
            self._end(ref, state, self._began)
            return None
        return snapshot

    def _skips(self, manifest: Manifest) -> bool:
        days, state = self._options.outdated_after, verify_state(manifest)
        if state is None or not (self._options.skip_verified or days is not None):
            return False
        if days is not None and (self._began - state.time) // _DAY > days:
            return False
        self._result.skipped += 1
        self._result.skipped_failed += state.state == "failed"
        return True

    def _unlocked(self, ref: SnapshotRef, manifest: Manifest) -> Snapshot:
        snapshot = Snapshot(self._store, ref, manifest=manifest, allow_unsigned=True)
        try:
            if self._crypt is not None and snapshot.made_with_key:
                snapshot.unlock(self._crypt)
        except KeyProblem as error:
            self._listener(Notice(f"{error}; its chunks are checked without a key", "warning"))
        state = "unsigned" if not snapshot.made_with_key else "unchecked" if snapshot.crypt is None else "valid"
        self._result.signatures[state].append(str(ref))
        return snapshot

    def _fail(self, ref: SnapshotRef, archive: str, reason: str) -> None:
        self._found.add(VerifyError(str(ref), archive, "", reason, []))

    def _indexes(self, snapshot: Snapshot) -> dict[str, Index]:
        """Checks blobs and indexes; the sound indexes by their file names."""
        opened: dict[str, Index] = {}
        for file in snapshot.manifest.files:
            try:
                if is_index(file.filename):
                    opened[file.filename] = snapshot.index(file)
                else:
                    snapshot.check_blob(file)
            except ArchiverError as error:
                self._fail(snapshot.ref, file.filename, str(error))
        return opened

    def _new(self, snapshot: Snapshot, indexes: dict[str, Index]) -> Iterator[tuple[Kind, Rows]]:
        """The chunks of these indexes that were not met before."""
        for file in snapshot.manifest.files:
            if file.filename in indexes:
                encrypted = file.crypt_mode == "encrypt"
                kind = Kind(encrypted, encrypted and snapshot.crypt is not None)
                for rows in self._seen[kind].add(indexes[file.filename]):
                    yield kind, rows

    def _end(self, ref: SnapshotRef, state: str | None, when: int) -> None:
        """What was found counts, and is written down, unless the snapshot has gone meanwhile."""
        found, self._found = self._found, Found()
        if not os.path.isdir(self._store.layout.snapshot(ref)):
            check_present(self._store.layout)
            return
        self._result.snapshots += 1
        self._result.take(found)
        if state is None and not found.count:
            self._result.unproven.append(str(ref))
        if state is None or not self._options.write_state or self._store.read_only:
            return
        try:
            set_verify_state(self._store, ref, state, verify_task(self._store, next(self._tasks), when))
        except NotFound:
            return
        except ArchiverError as error:
            self._result.unwritten.append(str(ref))
            self._listener(Notice(f"the verify state {state} of {ref} could not be written: {error}", "warning"))

    # -- damage ------------------------------------------------------------------------------------------------------

    def _report(self, snapshot: Snapshot, opened: dict[str, Index]) -> None:
        """Which places of a snapshot the damaged chunks concern."""
        if not self._check.bad:
            return
        try:
            archive_of = {file.filename: archive for archive in snapshot.archives() for file in archive.files}
        except ArchiverError as error:
            self._fail(snapshot.ref, MANIFEST, str(error))
            archive_of = {}
        for file in snapshot.manifest.files:
            index = opened.get(file.filename)
            bad = [] if index is None else bad_chunks(index, file.crypt_mode == "encrypt", self._check.bad)
            if index is None or not bad:
                continue
            ranges = [(index.start(chunk.position), index.end(chunk.position)) for chunk in bad]
            archive = archive_of.get(file.filename)  # none for a catalog
            files = files_of(snapshot, archive, file, ranges, self._names_room)
            self._names_room -= sum(len(name.path) for names in files for name in names)
            for chunk, names in zip(bad, files, strict=True):
                where = str(snapshot.ref), file.filename, chunk.digest.hex()
                self._found.add(VerifyError(*where, chunk.reason, [name.path for name in names]))


def _has_any(indexes: dict[str, Index], those: Sequence[Prefixes]) -> bool:
    """Whether a digest in them begins as one of ``those`` says, which are sorted."""
    for prefixes in those:
        for index in indexes.values() if len(prefixes) else ():
            for start in range(0, len(index), _COMPARED_AT_ONCE):
                found = prefixes_of(index.digests[start : start + _COMPARED_AT_ONCE])
                places = np.minimum(np.searchsorted(prefixes, found), len(prefixes) - 1)
                if (prefixes[places] == found).any():
                    return True
    return False
