"""Carrying out a plan. Indexes and blobs are put back first, so that from then on no garbage collection takes a chunk
that they name; then the chunks, then the manifests. A session around all of that spares what is written meanwhile.

A chunk is durable and was read again before anything counts as healed; then what had been set aside of it is removed.
What was found good may be what a healing that was killed has put back, so all of the store is made durable first.
At last the verify states are made right: what a verification had found is no longer so, or is so now.
"""

from __future__ import annotations

import itertools
from contextlib import suppress

from archiver.core.disk import explained
from archiver.core.events import Listener, Notice, Progress
from archiver.errors import ArchiverError, Damaged, NoSpace, NotFound, Skipped, TargetAbsent
from archiver.heal.candidates import Candidates, FoundChunk, Readers, first_file
from archiver.heal.damage import HealResult, Key, LostChunk, LostFile
from archiver.heal.files import write_file, write_manifest
from archiver.heal.find import Subject
from archiver.heal.plan import HealPlan
from archiver.store import snapshots
from archiver.store.chunks import ChunkDamaged
from archiver.store.database.records import UNKNOWN_SUM, ChunkRow
from archiver.store.labels import set_verify_state, verify_task
from archiver.store.layout import SnapshotRef
from archiver.store.sessions import Session
from archiver.store.store import Store
from formats.crypt import CryptConfig

_AT_ONCE = 256  # chunks written before they are made durable
_TOUCHED_AT_ONCE = 4096
_ENDS_ALL = (NoSpace, TargetAbsent)  # the next one would fail too


def carry_out(store: Store, plan: HealPlan, crypt: CryptConfig | None, listener: Listener) -> HealResult:
    """Do what the plan says; what is healed is told in its damages. What cannot be written is in the result.

    Raises UsageError on a store that cannot be written, Locked during a gc, NoSpace, TargetAbsent.
    """
    began = store.clock.steady()
    result = HealResult()
    with explained("write into", store.layout.base):
        store.disk.sync_file_system(store.layout.base)
    if plan.damages:
        with store.session() as session:
            healing = _Healing(store, plan, crypt, session, listener, result)
            try:
                healing.run()
            except NoSpace:
                store.give_up_reserve()
                with suppress(ArchiverError):
                    healing.flush()  # the next run finds it done
                raise
            finally:
                store.update_records()
    _write_states(store, plan, result, listener)
    result.seconds = store.clock.steady() - began
    return result


class _Healing:
    def __init__(
        self,
        store: Store,
        plan: HealPlan,
        crypt: CryptConfig | None,
        session: Session,
        listener: Listener,
        result: HealResult,
    ) -> None:
        self._store, self._plan, self._session = store, plan, session
        self._listener = listener
        self._result = result
        self._database = store.database
        self._readers = Readers(store, crypt)
        self._again = Readers(store, crypt, with_database=False)  # which knows the bytes that were there before
        self._remaining = {key: lost for key, (lost, _) in plan.chunks.items()}
        self._written: list[tuple[LostChunk, bytes, bool]] = []  # BLAKE3, is proven; not durable yet

    def run(self) -> None:
        for subject in self._plan.subjects:
            if subject.files:
                self._files(subject)
        for each in self._plan.candidates:
            if self._remaining:
                self._chunks(each)
        for subject in self._plan.subjects:
            for lost in subject.files:
                if lost.info is None and subject.manifest_file is not None:
                    self._manifest(subject, lost, subject.manifest_file)

    def _failed(self, what: str, error: ArchiverError, done: str = "healed") -> None:
        """Only this is not done."""
        if isinstance(error, _ENDS_ALL):
            raise error
        self._result.failed.append(f"{what}: {error}")
        self._listener(Notice(f"{what} is not {done}: {error}", "warning"))

    # -- files -------------------------------------------------------------------------------------------------------

    def _files(self, subject: Subject) -> None:
        for lost in subject.files:
            if lost.info is None:
                continue
            found = first_file(self._plan.candidates, lost.ref, lost.info)
            if found is None:
                continue
            try:
                write_file(self._store, self._session, lost, lost.info, found[1])
            except ArchiverError as error:
                self._failed(f"{lost.name} of {lost.ref}", error)
            else:
                self._plan.files[lost].healed = True
        self._touch(subject)

    def _touch(self, subject: Subject) -> None:
        """Nothing may have referred to these chunks for long; a garbage collection that runs now must spare them."""
        chunks = self._store.chunks
        for _, index in subject.indexes():
            for start in range(0, len(index), _TOUCHED_AT_ONCE):
                digests = map(bytes, index.digests[start : start + _TOUCHED_AT_ONCE])
                seen = [(digest, status) for digest in digests if (status := chunks.seen(digest)) is not None]
                chunks.touch_all(seen)

    def _manifest(self, subject: Subject, lost: LostFile, data: bytes) -> None:
        if lost.is_missing and not self._is_whole(subject, besides=lost):
            return  # it was never seen incomplete, or not for long
        try:
            write_manifest(self._store, lost, data, lambda there: self._is_damaged(lost.ref, there))
        except ArchiverError as error:
            if not isinstance(error, Skipped):
                self._failed(f"the manifest of {lost.ref}", error)
                return
        self._plan.files[lost].healed = True

    def _is_damaged(self, ref: SnapshotRef, data: bytes) -> bool:
        try:
            self._plan.search.decoded(ref, data)
        except Damaged:
            return True
        return False

    def _is_whole(self, subject: Subject, besides: LostFile) -> bool:
        is_lost = any(lost is not besides and not self._plan.files[lost].healed for lost in subject.files)
        return not is_lost and self._remaining.keys().isdisjoint(subject.lost)

    # -- chunks ------------------------------------------------------------------------------------------------------

    def _chunks(self, candidates: Candidates) -> None:
        """Whatever one candidate has."""
        for found in candidates.chunks(list(self._remaining.values())):
            if found.lost.key not in self._remaining:
                continue
            try:
                self._store_chunk(found)
            except ArchiverError as error:
                self._failed(f"chunk {found.lost.digest.hex()}", error)
                continue
            del self._remaining[found.lost.key]
            if len(self._written) >= _AT_ONCE:
                self.flush()
            self._listener(Progress("heal", len(self._plan.chunks) - len(self._remaining), 0))
        self.flush()

    def _store_chunk(self, found: FoundChunk) -> None:
        digest, chunks = found.lost.digest, self._store.chunks
        status = chunks.seen(digest)
        if status is not None:
            there = chunks.set_aside_unless(digest, lambda: self._readers.read(found.lost))
            if there is not None and chunks.keep(digest, status, self._session.barrier):
                self._written.append((found.lost, there.total, there.is_proven))
                return
        if self._database is not None:
            self._database.about_to_store(digest)
        done = chunks.insert(
            digest, bytes(found.header), found.body, encrypted=found.lost.encrypted, barrier=self._session.barrier
        )
        self._written.append((found.lost, found.total, self._is_proven(found) and not done.duplicate))

    def _is_proven(self, found: FoundChunk) -> bool:
        """Also by what was known here of the bytes that were lost."""
        recorded = self._database.recorded_sum(found.lost.digest) if self._database is not None else None
        return found.is_proven or (recorded is not None and recorded[0] == found.total)

    def flush(self) -> None:
        """Make what was written durable, read it again, and tell the database."""
        written, self._written = self._written, []
        with explained("write into", self._store.layout.base):
            self._session.barrier.commit()
        rows = []
        for lost, total, is_proven in written:
            row = self._row(lost, total, is_proven)
            if row is None:
                self._remaining[lost.key] = lost
                continue
            rows.append(row)
            self._plan.chunks[lost.key][1].healed = True
        if self._database is not None:
            self._database.put_chunks(rows)
        for row in rows:
            try:
                self._result.removed_bad += self._store.chunks.discard_set_aside(row.digest)
            except ArchiverError as error:  # the chunk is good all the same
                self._failed(f"what was set aside of chunk {row.digest.hex()}", error, "removed")

    def _row(self, lost: LostChunk, total: bytes, is_proven: bool) -> ChunkRow | None:
        try:
            there = self._again.read(lost)
        except ChunkDamaged as error:
            self._failed(f"chunk {lost.digest.hex()}", error)
            return None
        stored = len(there.header) + len(there.body)
        if there.is_proven or (is_proven and there.total == total):
            return ChunkRow(lost.digest, lost.size, stored, there.total, self._store.clock.now())
        self._result.unproven.add(lost.key)
        return ChunkRow(lost.digest, lost.size, stored, UNKNOWN_SUM, 0)


def _write_states(store: Store, plan: HealPlan, result: HealResult, listener: Listener) -> None:
    """What each manifest says of the last verification. A snapshot that has failed is good when all of it is: each of
    its chunks was found good since then, or by this run. What was put back by its CRC alone is not enough for that."""
    numbers = itertools.count()
    lost: set[Key] = {key for key, (_, damage) in plan.chunks.items() if not damage.healed}
    for subject in plan.subjects:
        is_whole = lost.isdisjoint(subject.lost) and all(plan.files[each].healed for each in subject.files)
        if is_whole and not subject.has_failed:
            continue
        is_proven = plan.search.may_be_good(subject) and result.unproven.isdisjoint(subject.lost)
        if is_whole and not is_proven:
            text = f"the verify state of {subject.ref} stays failed: not all of it could be checked"
            listener(Notice(text, "warning"))
            continue
        state, when = ("ok", plan.search.since) if is_whole else ("failed", plan.search.began)
        try:
            known = snapshots.verify_state(store.manifest(subject.ref, from_file=True))
            if known is not None and known.state == state:
                continue
            set_verify_state(store, subject.ref, state, verify_task(store, next(numbers), when))
        except NotFound:
            continue
        except ArchiverError as error:
            result.failed.append(f"the verify state of {subject.ref}: {error}")
        else:
            result.states[str(subject.ref)] = state
