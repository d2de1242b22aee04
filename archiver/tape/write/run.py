"""Carrying out a backup to media: snapshot by snapshot, the chunks that the set does not hold, then the snapshot.

What cannot be read in the store keeps its snapshot from the media, and no other one. Whatever ends the run, what is
whole on the medium is known to the next one, which goes on from there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from archiver.core.events import Listener, Notice, Progress
from archiver.errors import ArchiverError, Damaged, Locked, NotFound, Skipped
from archiver.store.chunks import check_present
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from archiver.tape.drive.interface import MediumError
from archiver.tape.problem import Problem
from archiver.tape.write.archives import ChunksWritten, write_chunks, write_snapshot
from archiver.tape.write.feed import in_inode_order, reading
from archiver.tape.write.media import Media
from archiver.tape.write.plan import Step, WriteOptions, WritePlan, is_encrypted, new_chunks
from formats.manifest import Manifest
from formats.tape.catalog import Digests
from formats.tape.chunk_archive import CLOSE_FROM, chunk_archive
from formats.tape.snapshot_archive import snapshot_archive


@dataclass(slots=True)
class WriteResult:
    """``written``: snapshots that are on the media now, known and durable. ``bytes``: of chunk archives. ``adopted``:
    files that an interrupted run had left. ``stopped``: why the run ended before its end."""

    written: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    chunks: int = 0
    bytes: int = 0
    media: list[str] = field(default_factory=list)
    adopted: int = 0
    stopped: ArchiverError | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> list[ArchiverError]:
        found = [problem.error for problem in self.problems]
        return found if self.stopped is None else [self.stopped, *found]

    def as_json(self) -> dict[str, Any]:
        return {
            "written": self.written,
            "problems": [problem.as_json() for problem in self.problems],
            "chunks": self.chunks,
            "bytes": self.bytes,
            "media": self.media,
            "adopted_files": self.adopted,
            "duration_s": round(self.seconds, 3),
        }


def carry_out(
    store: Store,
    plan: WritePlan,
    options: WriteOptions,
    media: Media,
    listener: Listener,
    *,
    close_from: int = CLOSE_FROM,
) -> WriteResult:
    """Do what the plan says. ``close_from``: a chunk archive that has more bytes gets no further chunk. What goes wrong
    is in the result."""
    began = store.clock.steady()
    result = WriteResult(problems=list(plan.problems))
    run = _Run(store, plan, options, media, listener, result, close_from)
    try:
        run.run()
    except MediumError as error:
        media.damaged()
        result.stopped = error
    except ArchiverError as error:
        result.stopped = error
        with suppress(ArchiverError):
            media.commit()
    except KeyboardInterrupt:
        with suppress(ArchiverError):
            media.commit()
        raise
    result.written = run.known_written()
    result.media, result.adopted = media.used, media.adopted
    result.seconds = store.clock.steady() - began
    return result


class _Run:
    def __init__(
        self,
        store: Store,
        plan: WritePlan,
        options: WriteOptions,
        media: Media,
        listener: Listener,
        result: WriteResult,
        close_from: int,
    ) -> None:
        self._store, self._plan, self._options = store, plan, options
        self._media, self._listener, self._result = media, listener, result
        self._close_from = close_from
        self._done: list[SnapshotRef] = []

    def run(self) -> None:
        for step in self._plan.work:
            self._step(step)
        if self._media.has_written:
            self._media.write_catalog()

    def known_written(self) -> list[str]:
        """What was not committed is not on the media, as far as anybody knows."""
        return [ref.path for ref in self._done if self._media.knows_snapshot(self._plan.source, ref.path)]

    def _step(self, step: Step) -> None:
        try:
            with self._store.held(step.ref):
                manifest = self._store.manifest(step.ref, from_file=True)
                self._check(step.ref, manifest)
                self._write(step.ref, manifest)
        except NotFound as error:
            if error is self._media.failure:
                raise
            check_present(self._store.layout)
            self._listener(Notice(f"{step.ref} was forgotten meanwhile"))
        except MediumError:
            raise
        except (Damaged, Locked, Skipped) as error:
            if error is self._media.failure:
                raise
            check_present(self._store.layout)
            self._result.problems.append(Problem(str(step.ref), error))
            self._listener(Notice(f"{step.ref} is not written: {error}", "warning"))
        else:
            self._done.append(step.ref)
            self._media.settle()
            self._listener(Notice(f"{step.ref} is written"))

    def _check(self, ref: SnapshotRef, manifest: Manifest) -> None:
        if self._options.require_encryption and not is_encrypted(manifest):
            raise Skipped(
                f"{ref} is not encrypted, and the pool takes only what is",
                hint="choose another pool, or encrypt the backups",
            )

    def _write(self, ref: SnapshotRef, manifest: Manifest) -> None:
        store, source = self._store, self._plan.source
        self._media.ready()  # which may find that an interrupted run has written more than was known
        if self._media.holds_snapshot(source, ref.path):
            return
        digests = new_chunks(store, self._media, source, ref, manifest, lambda found: in_inode_order(store, found))
        self._chunks(ref, digests)
        self._snapshot(ref, manifest)

    def _chunks(self, ref: SnapshotRef, digests: Digests) -> None:
        in_vain = 0
        while len(digests):
            drive = self._media.ready()
            uuid, now = self._media.content()
            head = chunk_archive(self._plan.source, uuid, now)
            with reading(self._store, digests) as feed:
                done = write_chunks(drive, head, feed, close_from=self._close_from)
            self._register(uuid, digests, done)
            digests = digests[len(done.digests) :]
            if done.near_end:
                self._media.full()
            if done.error is not None:
                raise done.error
            in_vain = 0 if done.digests else in_vain + 1
            if in_vain > 1:
                raise ArchiverError(f"a chunk of {ref} does not fit onto a whole medium", hint="use larger media")

    def _register(self, uuid: bytes, digests: Digests, done: ChunksWritten) -> None:
        if done.is_cut:
            self._media.pass_over()
            return
        self._media.add_chunks(self._plan.source, uuid, digests[: len(done.digests)], done.bytes)
        self._result.chunks += len(done.digests)
        self._result.bytes += done.bytes
        self._listener(Progress("tape backup", self._result.chunks, self._result.bytes))

    def _snapshot(self, ref: SnapshotRef, manifest: Manifest) -> None:
        source = self._plan.source
        for _ in range(2):
            drive = self._media.ready()
            uuid, now = self._media.content()
            try:
                fits = write_snapshot(drive, snapshot_archive(source, ref.path, uuid, now), self._store, ref, manifest)
            except Damaged:
                self._media.pass_over()
                raise
            if fits:
                self._media.add_snapshot(source, uuid, ref.path)
                return
            self._media.pass_over()
            self._media.full()
        raise ArchiverError(f"{ref} does not fit onto a medium", hint="use larger media")
