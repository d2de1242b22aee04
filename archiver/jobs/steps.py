"""What each step of a job does: it calls the room that does it, as the command of that name would, and says how that
ended.

A step raises ArchiverError when it fails. What it has to tell beyond that is its ``Done``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from archiver.backup.run import BackupOptions, BackupResult, backup
from archiver.backup.specification import ArchiveSpec, check_source
from archiver.browse.snapshot import Snapshot
from archiver.browse.verify import VerifyOptions, any_made_with_key, verify
from archiver.core.events import Notice
from archiver.errors import (
    EXIT_DAMAGED,
    EXIT_DIFFERENT,
    EXIT_PARTIAL,
    ArchiverError,
    Damaged,
    Held,
    KeyProblem,
    UsageError,
    worst_of,
)
from archiver.jobs import guard
from archiver.jobs.drill import DrillOptions, drill
from archiver.jobs.history import State
from archiver.jobs.keys import JobKey
from archiver.jobs.profile import COPY, Drill, Profile, Sync, Tape, Verify
from archiver.jobs.surroundings import Surroundings
from archiver.source.walk import WalkOptions
from archiver.store.filters import GroupFilter, chosen
from archiver.store.gc.collect import collect
from archiver.store.layout import SnapshotRef, parse_reference
from archiver.store.removal import remove, shortfall
from archiver.store.retention import plan_prune
from archiver.store.store import Store
from archiver.sync.partners import open_target, remember
from archiver.sync.plan import SyncOptions, make_plan
from archiver.sync.run import carry_out
from formats.crypt import CryptConfig


@dataclass(frozen=True, slots=True)
class Done:
    """How a step ended that did not fail; see StepResult."""

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    state: State = "ok"
    exit_code: int = 0


class Steps:
    """The steps of one run. Each opens the stores that it needs: a drive may go at any time between two of them."""

    def __init__(self, profile: Profile, around: Surroundings) -> None:
        self._profile = profile
        self._around = around
        self._key = JobKey(profile.key, around.environment, around.prompt)

    def _open(self, path: str) -> Store:
        return Store.open(path, listener=self._around.listener, clock=self._around.clock)

    # -- backup ------------------------------------------------------------------------------------------------------

    def backup(self, path: str) -> Done:
        with self._open(path) as store:
            options = self._options()
            self._check_as_secret(store, options)
            result = self._backed_up(store, options)
            identity = store.uuid
        counters = [archive.counters for archive in result.archives]
        files = result.files
        figures = {
            "snapshot": str(result.snapshot),
            "uuid": identity,
            "mode": options.mode,
            "size": sum(each.size for each in counters),
            "new_bytes": sum(each.new_bytes for each in counters),
            "stored_bytes": sum(each.stored_bytes for each in counters),
            "bytes_read": files.bytes_read,
            "files": files.total,
            "unchanged": files.unchanged,
            "reencoded": files.reencoded,
            "read_errors": files.read_errors,
            "torn": files.torn,
            "encrypted": options.crypt_mode == "encrypt",
        }
        if result.errors:
            text = (
                f"{result.snapshot}, but {files.read_errors} files could not be read and {files.torn} changed meanwhile"
            )
            return Done(text, figures, "partial", EXIT_PARTIAL)
        return Done(str(result.snapshot), figures)

    def _check_as_secret(self, store: Store, options: BackupOptions) -> None:
        """A key file that is gone does not make the next night readable: only the profile can say so. Raises
        KeyProblem."""
        times = store.times(options.group)
        if options.crypt_mode != "none" or self._profile.key.crypt == "none" or not times:
            return
        newest = SnapshotRef(options.group, times[-1])
        with suppress(Damaged):
            if any(file.crypt_mode == "encrypt" for file in store.manifest(newest).files):
                raise KeyProblem(
                    f"{newest} is encrypted, and now there is no key",
                    hint='put the key file back, or write crypt = "none" into [key] of the profile',
                )

    def _backed_up(self, store: Store, options: BackupOptions) -> BackupResult:
        """An error goes into records and mails: it does not tell the commands, which may have passwords in them."""
        try:
            return backup(store, self._sources(), options, self._around.listener)
        except ArchiverError as error:
            text = str(error)
            for spec in self._profile.sources.specs:
                text = text.replace(spec.command, spec.archive) if spec.command is not None else text
            error.args = (text,)
            raise

    def _options(self) -> BackupOptions:
        profile, key = self._profile, self._key.unlocked()
        sources, crypt = profile.sources, key.crypt if key is not None else None
        walk = WalkOptions(
            excludes=sources.excludes,
            all_file_systems=sources.all_file_systems,
            include_dev=frozenset(_device(path) for path in sources.include_dev),
            exclude_caches=sources.exclude_caches,
        )
        return BackupOptions(
            group=profile.group,
            mode=sources.mode,
            audit=sources.audit,
            crypt_mode=profile.key.crypt or ("encrypt" if crypt is not None else "none"),
            crypt=crypt,
            wrapped_key=self._key.wrapped(),
            walk=walk,
            owner=profile.owner,
            note=profile.note,
        )

    def _sources(self) -> Sequence[ArchiveSpec]:
        """With the profile itself: who has nothing but the store can read there what was wanted."""
        profile = self._profile
        for spec in profile.sources.specs:
            try:
                check_source(spec)
            except UsageError as error:  # the profile is right, the machine is not as it says
                raise ArchiverError(str(error), hint=error.hint) from error
        name, _, extension = COPY.partition(".")
        return [*profile.sources.specs, ArchiveSpec(name, profile.path, extension)]

    # -- guard -------------------------------------------------------------------------------------------------------

    def judge(
        self,
        path: str,
        figures: Mapping[str, Any],
        before: Mapping[str, Any],
        past: Sequence[Mapping[str, Any]],
        *,
        only_counted: bool,
    ) -> Done:
        """``figures`` and ``before``: of this backup and the one it is compared with; ``only_counted``: the counters
        tell what has changed since."""
        if figures["mode"] != "legacy" and (not only_counted or guard.is_open(figures, before)):
            with self._open(path) as store, ExitStack() as held:
                old, new = (self._snapshot(store, str(each["snapshot"]), held) for each in (before, figures))
                change = guard.compared(old, new, figures, before)
        elif figures["mode"] == "legacy":
            gone = max(int(before["files"]) - int(figures["files"]), 0)
            change = guard.Change(int(before["files"]), gone, guard.density(figures))
        else:
            change = guard.counted(figures, before)
        verdict = guard.judge(self._profile.guard, change, past)
        if verdict.reason is None:
            return Done(f"{change.lost} of {change.files} files changed or removed", verdict.figures())
        if change.ending is not None:
            self._around.listener(Notice(f"many of the new files are called *{change.ending}", "warning"))
        return Done(verdict.reason, verdict.figures(), "held", Held.exit_code)

    def still_there(self, path: str, figures: Mapping[str, Any]) -> bool:
        """Whether the snapshot of a backup is."""
        with self._open(path) as store:
            ref = parse_reference(str(figures["snapshot"]))
            return isinstance(ref, SnapshotRef) and store.is_finished(ref)

    def _snapshot(self, store: Store, text: str, held: ExitStack) -> Snapshot:
        ref = parse_reference(text)
        assert isinstance(ref, SnapshotRef)
        held.enter_context(store.held(ref))
        snapshot = Snapshot(store, ref)
        unlocked = self._key.unlocked() if snapshot.made_with_key else None
        if unlocked is not None:
            snapshot.unlock(unlocked.crypt)
        return snapshot

    # -- keeping house -----------------------------------------------------------------------------------------------

    def prune(self, path: str, *, accepted: bool) -> Done:
        """``accepted``: a person has seen why the last one was held."""
        with self._open(path) as store:
            plan = plan_prune(store, [self._profile.group], self._profile.retention)
            if plan.holds and not accepted:
                reasons = "; ".join(f"{hold.group}: {hold.reason}" for hold in plan.holds)
                raise Held(f"nothing is removed: {reasons}", hint=_ACK.format(self._profile.name))
            outcome = remove(store, plan)
        error = shortfall(plan, outcome)
        if error is not None:
            raise error
        kept = len(plan.items) - len(outcome.removed)
        return Done(f"{len(outcome.removed)} removed, {kept} kept", {"removed": len(outcome.removed), "kept": kept})

    def gc(self, path: str) -> Done:
        with self._open(path) as store:
            result = collect(store)
        figures = {
            "removed_chunks": result.removed_chunks,
            "removed_bytes": result.removed_bytes,
            "kept_chunks": result.kept_chunks,
            "kept_bytes": result.kept_bytes,
            "pending_bytes": result.pending_bytes,
            "index_bytes": result.index_bytes,
            "complete": result.complete,
        }
        return Done(f"{result.removed_chunks} chunks removed, {result.kept_chunks} kept", figures)

    def verify(self, path: str, verify_: Verify) -> Done:
        namespace = self._profile.namespace
        options = VerifyOptions(set_aside=True, write_state=True, budget=verify_.budget, scope=f"{namespace}:")
        with self._open(path) as store:
            refs = list(store.snapshots(namespace))
            result = verify(store, refs, self._crypt_for(store, refs), self._around.listener, options)
        figures: dict[str, Any] = {
            "snapshots": result.snapshots,
            "chunks": result.chunks,
            "bytes": result.bytes,
            "errors": result.error_count,
            "without_key": result.unchecked,
        }
        budget = result.budget
        if budget is not None:
            figures |= {
                "reached_bytes": budget.reached_bytes,
                "not_reached_bytes": budget.not_reached_bytes,
                "left_bytes": budget.left_bytes,
                "oldest": budget.oldest,
                "cycle_began": budget.began,
            }
        text = f"{result.snapshots} snapshots, {result.chunks} chunks: {result.error_count} errors"
        if result.error_count:
            return Done(f"{text}; see: archiver verify", figures, "failed", EXIT_DAMAGED)
        return Done(text, figures)

    def _crypt_for(self, store: Store, refs: Sequence[SnapshotRef]) -> CryptConfig | None:
        """A verification does without the key what can be done so."""
        if not any_made_with_key(store, refs):
            return None
        try:
            unlocked = self._key.unlocked()
        except KeyProblem as error:
            self._around.listener(Notice(f"{error}; chunks are checked without a key", "warning"))
            return None
        return unlocked.crypt if unlocked is not None else None

    # -- copies ------------------------------------------------------------------------------------------------------

    def sync(self, path: str, sync: Sync, *, accepted: bool) -> Done:
        profile, listener = self._profile, self._around.listener
        options = SyncOptions(
            profile.namespace,
            sync.to_namespace,
            None,
            sync.filters,
            sync.remove_vanished,
            sync.transfer_last,
            sync.verified_only,
            owner=profile.owner,
        )
        with self._open(path) as ours, open_target(ours, sync.target, listener, new_target=False) as theirs:
            theirs.identify()
            remember(ours, theirs)
            plan = make_plan(ours, theirs, options)
            if plan.removal.holds and not accepted:
                reasons = "; ".join(f"{hold.group}: {hold.reason}" for hold in plan.removal.holds)
                raise Held(f"nothing is copied or removed: {reasons}", hint=_ACK.format(profile.name))
            result = carry_out(ours, theirs, plan, options, listener, rate=sync.rate)
            error = worst_of(result.errors) or self._missing(ours, theirs, sync)
        if error is not None:
            raise error
        figures = {
            "snapshots": len(result.done),
            "chunks": result.copied.chunks,
            "bytes": result.copied.bytes,
            "removed": len(result.removal.removed),
        }
        return Done(f"{len(result.done)} snapshots, {result.copied.chunks} chunks copied", figures)

    def _missing(self, ours: Store, theirs: Store, sync: Sync) -> ArchiverError | None:
        """A sync copies what is newer than the newest there. Where a clock was wrong once that may be nothing for
        years: who asked only whether it failed would have no copy, and not know it."""
        group = self._profile.group
        newest = ours.newest(group)
        if newest is None or sync.verified_only or not chosen(group, sync.filters):
            return None
        copy = SnapshotRef(group._replace(namespace=sync.to_namespace), newest.time)
        if theirs.is_finished(copy):
            return None
        there = theirs.newest(copy.group)
        return ArchiverError(
            f"the newest snapshot is not in the copy, which has a later one: {there}",
            hint=f"if that is of a clock that was wrong: archiver --store {sync.target} forget {there}",
        )

    def tape(self, path: str, tape: Tape) -> Done:
        """Nobody is there to put another medium in: what is not in the drive or its changer now is not waited for."""
        from archiver.tape.access import open_access
        from archiver.tape.keys import TapeKeys
        from archiver.tape.state.place import TapePlace
        from archiver.tape.state.pools import Pools
        from archiver.tape.write.job import JobOptions, back_up
        from archiver.tape.write.plan import WriteOptions

        profile, environment = self._profile, self._around.environment
        place = TapePlace.default(environment)
        pool = Pools(place).get(tape.pool)
        drive = tape.drive or environment.get("ARCHIVER_TAPE_DRIVE") or None
        group = GroupFilter.parse(f"group:{profile.backup_type}/{profile.backup_id}")
        options = JobOptions(WriteOptions(profile.namespace, 0, [group], require_encryption=pool.require_encryption))
        with self._open(path) as store, open_access(place, drive) as access:
            _, result = back_up(access, store, pool, options, TapeKeys.default(environment), self._around.listener)
        error = worst_of(result.errors)
        if error is not None:
            raise error
        figures = {"snapshots": len(result.written), "chunks": result.chunks, "bytes": result.bytes}
        return Done(f"{len(result.written)} snapshots, {result.chunks} chunks written", figures)

    # -- drill -------------------------------------------------------------------------------------------------------

    def drill(self, path: str, wanted: Drill, turn: int) -> Done:
        sources = {spec.archive: spec.path for spec in self._profile.sources.specs if spec.kind == "tree"}
        options = DrillOptions(wanted.files, wanted.size, turn, wanted.scratch, sources)
        with self._open(path) as store, ExitStack() as held:
            newest = store.find(str(self._profile.group))
            try:
                result = drill(self._snapshot(store, str(newest), held), options, self._around.listener)
            except Damaged as error:  # which names files, and the record must not
                self._around.listener(Notice(str(error), "warning"))
                text = f"files of {newest} did not come back as they were saved"
                raise Damaged(text, hint=f"see: archiver drill {newest} --turn {turn}") from error
        figures = {key: value for key, value in result.as_json().items() if key != "schema"}
        text = f"{result.files} files restored, {result.compared} compared with live ones"
        if result.different:
            return Done(f"{text}: {result.different} differ", figures, "failed", EXIT_DIFFERENT)
        return Done(text, figures)


_ACK = "if that is right: archiver job ack {}"


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError as error:
        raise ArchiverError(f"include-dev {path}: {(error.strerror or str(error)).lower()}") from error
