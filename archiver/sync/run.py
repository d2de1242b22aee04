"""Carrying out a plan: snapshot by snapshot, each built out of sight in the target and published in one rename.

The index files come first, into the session of the snapshot, which says that it may be gone on with: from then on no
garbage collection takes a chunk that they name, whatever ends this run. Then the chunks, then the manifest. A session
around all of them spares, as long as the run lives, what was found in the target.

What is damaged in the source keeps its snapshot from being published, and no other one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from archiver.core.disk import explain, explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, Damaged, Locked, NoSpace, NotFound, Skipped
from archiver.store import labels, snapshots
from archiver.store import layout as names
from archiver.store.chunks import ChunkDamaged, check_present
from archiver.store.indexes import is_index, open_index_file
from archiver.store.layout import SnapshotRef
from archiver.store.namespaces import delete_levels
from archiver.store.removal import Outcome, remove
from archiver.store.sessions import Session
from archiver.store.snapshots import open_regular, read_small
from archiver.store.store import Store
from archiver.sync.chunks import Chunks, Copied
from archiver.sync.plan import (
    Problem,
    Step,
    SyncOptions,
    SyncPlan,
    check_not_failed,
    make_plan,
    resume_text,
    signed_contents,
)
from archiver.sync.rate import Rate
from archiver.sync.room import check_room
from formats import blob
from formats.errors import FormatError
from formats.manifest import FileInfo, Manifest

_PIECE = 1 << 20  # bytes
_LARGEST_BLOB_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER


@dataclass(slots=True)
class SyncResult:
    """``done``: steps that were carried out; ``problems``: those of the plan too; ``stopped``: why the run ended before
    it had looked at all steps. Then nothing was removed."""

    done: list[Step] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    copied: Copied = field(default_factory=Copied)
    removal: Outcome = field(default_factory=Outcome)
    removed_namespaces: list[str] = field(default_factory=list)
    stopped: ArchiverError | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> list[ArchiverError]:
        """All that went wrong."""
        found = [problem.error for problem in self.problems] + [error for _, error in self.removal.failed]
        found += [Skipped(f"not removed: {reason}") for _, reason in self.removal.skipped]
        return found if self.stopped is None else [self.stopped, *found]

    def as_json(self) -> dict[str, Any]:
        return {
            "done": [step.as_json() for step in self.done],
            "problems": [problem.as_json() for problem in self.problems],
            "copied_chunks": self.copied.chunks,
            "copied_bytes": self.copied.bytes,
            "present_chunks": self.copied.present,
            **self.removal.as_json(),
            "removed_namespaces": self.removed_namespaces,
            "duration_s": round(self.seconds, 3),
        }


def carry_out(
    source: Store, target: Store, plan: SyncPlan, options: SyncOptions, listener: Listener, *, rate: int | None = None
) -> SyncResult:
    """Do what the plan says; ``rate``: bytes a second read from the source at most. Holds are the caller's to respect.

    Raises UsageError when the target cannot be written, Locked during a gc, NoSpace when there is no use in beginning;
    all else is in the result.
    """
    began = target.clock.steady()
    check_room(source, target, plan)
    result = SyncResult(problems=list(plan.problems))
    with target.session() as session:
        with explained("write into", target.layout.base):  # a killed run may have published what is found there
            target.disk.sync_file_system(target.layout.base)
        _ = source.database, target.database  # opened here, not by one of the threads
        chunks = Chunks(source, target, Rate(rate, target.clock), session.path, listener)
        result.copied = chunks.copied
        try:
            _Run(source, target, options, chunks, listener, result).run(plan)
        finally:
            chunks.close()
    if result.stopped is None and (plan.removal.items or plan.removal.groups or plan.vanished):
        try:
            _remove_vanished(source, target, plan, options, result)
        except ArchiverError as error:  # the source is gone: nothing is taken for vanished then
            result.stopped = error
    result.seconds = target.clock.steady() - began
    return result


def _remove_vanished(source: Store, target: Store, plan: SyncPlan, options: SyncOptions, result: SyncResult) -> None:
    """Copying may have taken hours: what has come back to the source meanwhile stays."""
    now = make_plan(source, target, options)
    gone = {item.ref for item in now.removal.removed}
    items = tuple(item for item in plan.removal.items if item.keep or item.ref in gone)
    groups = tuple(group for group in plan.removal.groups if group in now.removal.groups)
    if items or groups:
        result.removal = remove(target, plan.removal._replace(items=items, groups=groups))
    for level in reversed(plan.vanished):
        if level in now.vanished and os.path.isdir(target.layout.namespace(level)):
            result.removed_namespaces += delete_levels(target, level)


class _Run:
    def __init__(
        self,
        source: Store,
        target: Store,
        options: SyncOptions,
        chunks: Chunks,
        listener: Listener,
        result: SyncResult,
    ) -> None:
        self._source, self._target = source, target
        self._options = options
        self._chunks = chunks
        self._listener = listener
        self._result = result

    def run(self, plan: SyncPlan) -> None:
        try:
            for level in plan.namespaces:
                path = self._target.layout.namespace(level)
                with explained("make", path):
                    self._target.disk.make_directories(path, names.SNAPSHOT_MODE, inside=self._target.layout.base)
            for ref in plan.unreadable:
                self._begin(ref)
            for step in plan.work:
                self._step(step)
        except ArchiverError as error:  # the disk is full, a drive is gone: the next one would fail too
            self._result.stopped = error

    def _begin(self, ref: SnapshotRef) -> None:
        """Later ones are copied before this one can be: it counts as begun, so that it is tried again."""
        about = resume_text(ref)
        with self._target.session() as session:
            session.interrupted(about)
            session.resumable(about)
            session.supersede()

    def _step(self, step: Step) -> None:
        try:
            with self._source.held(step.source):
                done = self._update(step) if step.action == "update" else self._copy(step)
        except NotFound:
            self._listener(Notice(f"{step.source} was forgotten meanwhile"))
        except (Damaged, Locked, Skipped) as error:
            check_present(self._source.layout)
            check_present(self._target.layout)
            self._result.problems.append(Problem(str(step.source), error))
        else:
            if done:
                self._result.done.append(step)
                self._listener(Notice(f"{step.target} is {'updated' if step.action == 'update' else 'copied'}"))

    # -- a snapshot that is there ------------------------------------------------------------------------------------

    def _update(self, step: Step) -> bool:
        target = self._target
        data = snapshots.read_manifest_blob(self._source.layout, step.source)
        ours = snapshots.decode_manifest(step.source, snapshots.manifest_json(step.source, data))

        def check(there: bytes) -> None:
            """The plan may be hours old."""
            theirs = snapshots.decode_manifest(step.target, snapshots.manifest_json(step.target, there))
            check_not_failed(step.target, theirs)
            if signed_contents(ours) != signed_contents(theirs):
                raise Skipped(f"{step.target} of the target has changed since it was looked at")

        if data != snapshots.read_manifest_blob(target.layout, step.target):
            labels.replace_manifest(target, step.target, data, check)
        log = self._log(step.source)
        path = os.path.join(target.layout.snapshot(step.target), names.CLIENT_LOG)
        if log is not None and not os.path.lexists(path):
            with target.held(step.target), explained("write", path):
                target.disk.put(path, [log], names.FILE_MODE, sync=True)
        return True

    # -- a whole snapshot --------------------------------------------------------------------------------------------

    def _copy(self, step: Step) -> bool:
        """False when another process has copied it meanwhile."""
        ref = step.source
        data = snapshots.read_manifest_blob(self._source.layout, ref)
        manifest = snapshots.decode_manifest(ref, snapshots.manifest_json(ref, data))
        about = resume_text(step.target)
        with self._target.session() as session:
            session.interrupted(about)
            session.resumable(about)
            try:
                self._fill(session, step, manifest)
                replace = step.action == "replace"
                published = session.publish_copy(step.target, self._options.owner, data, replace=replace)
            except (Damaged, Locked, Skipped):
                self._chunks.flush(session.barrier)  # the run goes on: what it has stored is durable
                raise
            except NoSpace:
                self._target.give_up_reserve()
                with suppress(ArchiverError):
                    self._chunks.flush(session.barrier)  # the next run need not read it again
                raise
            if published:
                self._chunks.record()
            else:
                self._chunks.flush(session.barrier)
        if published:
            self._target.record(step.target)
        return published

    def _fill(self, session: Session, step: Step, manifest: Manifest) -> None:
        """Everything but the manifest, and the chunks."""
        try:
            for file in manifest.files:
                self._copy_file(session, step.source, file)
        finally:
            session.supersede()
        for file in manifest.files:
            if is_index(file.filename):
                self._bring(session, step, file)
        log = self._log(step.source)
        if log is not None:
            self._put(session, names.CLIENT_LOG, log)

    def _bring(self, session: Session, step: Step, file: FileInfo) -> None:
        index = open_index_file(session.file(file.filename), str(step.source), file)
        is_encrypted, doubted = file.crypt_mode == "encrypt", step.action == "replace"
        try:
            self._chunks.bring(index, session.barrier, encrypted=is_encrypted, doubted=doubted)
        except ChunkDamaged as error:
            raise Damaged(
                f"{step.source} is not copied: chunk {error.digest.hex()} of {file.filename} {error.reason}",
                hint=f"see which files it belongs to: archiver --store {self._source.layout.base} verify {step.source}",
            ) from error

    def _copy_file(self, session: Session, ref: SnapshotRef, file: FileInfo) -> None:
        """A file of the snapshot, checked as it arrived against the manifest. Raises Damaged."""
        if not is_index(file.filename):
            self._put(session, file.filename, self._blob(ref, file))
            return
        path, place = os.path.join(self._source.layout.snapshot(ref), file.filename), session.file(file.filename)
        try:
            with open_regular(path) as ours:
                self._write(place, iter(partial(ours.read, _PIECE), b""))
        except FileNotFoundError as error:
            raise Damaged(f"{file.filename} of {ref} is missing") from error
        except OSError as error:
            raise explain(error, "read", path) from error
        session.barrier.note(place)
        open_index_file(place, str(ref), file)

    def _write(self, place: str, pieces: Iterator[bytes]) -> None:
        with explained("write", place):
            new = self._target.disk.create(place, names.FILE_MODE)
        try:
            for piece in pieces:
                with explained("write", place):
                    new.append(piece)
        finally:
            new.close()

    def _blob(self, ref: SnapshotRef, file: FileInfo) -> bytes:
        path = os.path.join(self._source.layout.snapshot(ref), file.filename)
        try:
            data = read_small(path, _LARGEST_BLOB_FILE)
        except FileNotFoundError as error:
            raise Damaged(f"{file.filename} of {ref} is missing") from error
        except OSError as error:
            raise explain(error, "read", path) from error
        if len(data) != file.size or sha256(data).digest() != file.csum:
            raise Damaged(f"{file.filename} of {ref} is not the file that its manifest describes")
        try:
            blob.BlobDecoder().check_stored(data)
        except FormatError as error:
            raise Damaged(f"{file.filename} of {ref} is damaged: {error}") from error
        return data

    def _log(self, ref: SnapshotRef) -> bytes | None:
        """The client's log of a snapshot; one that cannot be read is left out, it is no part of the backup."""
        path = os.path.join(self._source.layout.snapshot(ref), names.CLIENT_LOG)
        try:
            return read_small(path, _LARGEST_BLOB_FILE)
        except FileNotFoundError:
            return None
        except (OSError, Damaged) as error:
            self._listener(Notice(f"the log of {ref} is not copied: {error}", "warning"))
            return None

    def _put(self, session: Session, name: str, data: bytes) -> None:
        path = session.file(name)
        with explained("write", path):
            self._target.disk.put(path, [data], names.FILE_MODE, sync=False)
        session.barrier.note(path)
