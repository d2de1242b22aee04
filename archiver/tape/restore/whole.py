"""A whole media set, from the first medium on, in the order of the files, which needs no catalogs; where there are
some, files that hold nothing missing are passed over. What was read is catalogued on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from archiver.core.events import Notice
from archiver.errors import Damaged, TargetAbsent
from archiver.store.layout import SnapshotRef
from archiver.tape.drive.interface import Drive, EndOfData
from archiver.tape.members import Member
from archiver.tape.reading import FIRST_ARCHIVE, FileDamaged, MediumFile, Patience, opened
from archiver.tape.restore.arrival import CutArchive
from archiver.tape.restore.plan import RestorePlan, Visit
from archiver.tape.restore.receiving import Receiving, Waiting
from archiver.tape.restore.routes import snapshot_on_medium
from formats.errors import FormatError
from formats.tape.catalog import ChunkFile, Entry, MediaCatalog, SnapshotEntry
from formats.tape.chunk_archive import StoredChunk, read_chunks, read_digests

Catalogued = Callable[[Member, list[Entry], int], None]  # with how many files could not be read


class Whole(Receiving):
    """Carries out a plan for a whole set."""

    def run(self, plan: RestorePlan, catalogued: Catalogued) -> None:
        for visit in plan.visits:
            try:
                drive = self._load(visit.member)
                entries, damaged = self._medium(drive, visit)
            except (TargetAbsent, Damaged) as error:
                self._lost[visit.member.seq_nr, 0] = error
                self._problem(f"medium {visit.member.label}", error)
                continue
            if visit.all_files:
                catalogued(visit.member, entries, damaged)
        self._publish_rest()

    def _medium(self, drive: Drive, visit: Visit) -> tuple[list[Entry], int]:
        """Read the files that are needed; what is on the medium, and how many of them are damaged."""
        member, entries, damaged = visit.member, list[Entry](), 0
        log = None if visit.all_files else self._catalog.log(member)
        last = FIRST_ARCHIVE - 1 if log is None else log.last_file
        patience = Patience(member.label)
        for number in self._numbers(visit, log):
            try:
                try:
                    with opened(drive, member.label, number) as file:
                        if log is None or number <= last:
                            self._read(member, file, entries)
                        else:
                            self._behind(member, file)
                    patience.renew()
                except EndOfData as error:
                    if number > last:
                        break
                    reason = "its catalog knows it, the medium does not have it"
                    raise FileDamaged(member.label, number, reason) from error
            except FileDamaged as error:
                if log is None or number <= last:
                    damaged += 1
                    self._lost[member.seq_nr, number] = error
                    self._problem(f"file {number} of medium {member.label}", error)
                else:
                    self._listener(Notice(str(error), "warning"))
                patience.lose(number)
        return entries, damaged

    def _numbers(self, visit: Visit, log: MediaCatalog | None) -> Iterator[int]:
        """Of the files that are needed, in their order: of each is asked when its turn comes. Then of those behind what
        the catalog here knows, as many as there may be."""
        last = FIRST_ARCHIVE - 1
        if log is not None:
            last = max(last, log.last_file)
            archives = {archive.file: archive for archive in log.archives}
            for number in sorted({*archives, *visit.snapshots}):
                if number in visit.snapshots or self._is_needed(archives[number]):
                    yield number
        yield from itertools.count(last + 1)

    def _read(self, member: Member, file: MediumFile, entries: list[Entry]) -> None:
        try:
            self._archive(member, file, entries)
        finally:
            self._count(file)

    def _behind(self, member: Member, file: MediumFile) -> None:
        """A file that the catalog here does not know: the last catalog archive, what an interrupted backup has left, or
        what another machine has written."""
        if file.is_empty or file.content.kind == "catalog archive":
            return
        text = f"file {file.number} of medium {member.label} is not in its catalog here, it is read"
        self._listener(Notice(text, "warning"))
        self._read(member, file, [])

    def _is_needed(self, archive: ChunkFile) -> bool:
        landing = self._landing(archive.store)
        return landing is not None and not landing.chunks.has_all(archive.digests)

    def _archive(self, member: Member, file: MediumFile, entries: list[Entry]) -> None:
        if file.is_empty:
            self._listener(Notice(f"file {file.number} of medium {member.label} is empty", "warning"))
            return
        match file.content.kind:
            case "chunk archive":
                self._chunk_archive(member, file, entries)
            case "snapshot archive":
                self._snapshot_archive(member, file, entries)
            case "catalog archive":
                pass
            case kind:
                raise FormatError(f"a {kind} among the archives")

    def _chunk_archive(self, member: Member, file: MediumFile, entries: list[Entry]) -> None:
        source = file.content.store
        landing = self._landing(source)
        digests: list[bytes] = []
        if landing is None:
            digests += [digest for digest, _ in read_digests(file.stream)]
        else:
            landing.chunks.bring(_noted(file, digests), self._damaged)
        if file.is_whole():
            rows = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
            entries.append(ChunkFile(file.number, file.content.uuid, source, rows))
        else:
            cut = FileDamaged(member.label, file.number, "it was not written to its end")
            self._cut[member.seq_nr, file.number] = cut
            self._listener(Notice(f"file {file.number} of medium {member.label} was not written to its end", "warning"))

    def _snapshot_archive(self, member: Member, file: MediumFile, entries: list[Entry]) -> None:
        source, path = file.content.store, file.content.text("snapshot")
        ref = snapshot_on_medium(path)
        name, landing = f"{source}:{path}", self._landing(source)
        targets = self._routes.targets(source, ref)
        missing: tuple[SnapshotRef, ...] = ()
        if landing is not None:
            missing = tuple(target for target in targets if not landing.store.is_finished(target))
        arrival = None
        try:
            if landing is not None and missing:
                arrival = self._receive(landing, file, name, missing)
            elif not file.is_whole():
                raise CutArchive(f"the archive of {name} was not written to its end")
        except CutArchive as error:
            self._listener(Notice(str(error), "warning"))  # it follows on the next medium
            return
        except (FileDamaged, FormatError):
            raise
        except Damaged as error:
            self._problem(name, error)
            return
        entries.append(SnapshotEntry(file.number, file.content.uuid, source, path))
        if arrival is None or landing is None:
            if landing is not None and targets:
                self._result.present.append(name)
            return
        waiting = Waiting(landing, arrival)
        if any(len(digests) for digests in self._missing(waiting)):
            self._waiting.append(waiting)  # the same chunks may be on another medium once more
        else:
            self._publish(waiting)

    def survey(self, plan: RestorePlan) -> None:
        """Which files are needed, in a dry run."""
        for visit in plan.visits:
            log = None if visit.all_files else self._catalog.log(visit.member)
            if log is not None:
                visit.chunks = [each.file for each in log.archives if self._is_needed(each)]


def _noted(file: MediumFile, digests: list[bytes]) -> Iterator[StoredChunk]:
    for chunk in read_chunks(file.stream):
        digests.append(chunk.digest)
        yield chunk
