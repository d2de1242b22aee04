"""Carrying out a restore from media (spec tape.md 10).

Some snapshots: the media are visited from the last one of the set on. Of each the snapshots' archives are read first;
their indexes say which chunks are missing here, and the catalogs where those are: on this medium or an earlier one. So
every medium is needed once, and on it only the files that hold something that is missing.

A whole set: from the first medium on, in the order of the files, which needs no catalogs; where there are some, files
that hold nothing missing are passed over. What was read is catalogued on the way.

A snapshot whose chunks did not all come is not published, and named; the others are. What stops the run leaves chunks
that the next run finds.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archiver.core.disk import explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, Damaged, NoSpace, TargetAbsent
from archiver.store.chunks import check_present
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from archiver.tape.drive.interface import Drive, EndOfData
from archiver.tape.members import Digests, Loader, Member, SetCatalog
from archiver.tape.reading import FIRST_ARCHIVE, FileDamaged, MediumFile, Patience, opened
from archiver.tape.restore.arrival import Arrival, CutArchive, publish, receive
from archiver.tape.restore.chunks import Brought, Chunks
from archiver.tape.restore.plan import Problem, RestorePlan, Step, Visit
from archiver.tape.restore.routes import Routes, snapshot_on_medium
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.tape.blocks import BLOCK_SIZE
from formats.tape.catalog import ChunkFile, SnapshotEntry
from formats.tape.chunk_archive import StoredChunk, read_chunks, read_digests

_ENDS_ALL = (NoSpace,)
_NAMED = 3  # damaged chunks in a message

Place = tuple[int, int]  # of a file: place of its medium in the set, number


@dataclass(slots=True)
class RestoreResult:
    """``restored``: names of the snapshots that came, as the media call them; ``present``: of those that were here by
    then. ``stopped``: why the run ended before its end. ``files``: of media, that were read; ``bytes_read`` from them.
    """

    restored: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    brought: Brought = field(default_factory=Brought)
    media: list[str] = field(default_factory=list)
    files: int = 0
    bytes_read: int = 0
    stopped: ArchiverError | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> list[ArchiverError]:
        found = [problem.error for problem in self.problems]
        return found if self.stopped is None else [self.stopped, *found]

    def as_json(self) -> dict[str, Any]:
        return {
            "restored": self.restored,
            "present": self.present,
            "problems": [problem.as_json() for problem in self.problems],
            "new_chunks": self.brought.chunks,
            "new_bytes": self.brought.bytes,
            "present_chunks": self.brought.present,
            "media_read": self.media,
            "files_read": self.files,
            "bytes_read": self.bytes_read,
            "duration_s": round(self.seconds, 3),
        }


Catalogued = Callable[[Member, list[ChunkFile | SnapshotEntry]], None]


def carry_out(
    catalog: SetCatalog,
    plan: RestorePlan,
    routes: Routes,
    media: Loader,
    crypt: CryptConfig | None,
    listener: Listener,
    *,
    catalogued: Catalogued = lambda member, entries: None,
) -> RestoreResult:
    """Do what the plan says. ``catalogued`` is told what is on a medium of which there was no catalog, once all of it
    was read. Raises UsageError when a store cannot be written, Locked during a gc; all else is in the result."""
    result = RestoreResult(problems=list(plan.problems))
    if not plan.visits:
        return result
    with _Run(catalog, routes, media, crypt, listener, result) as run:
        try:
            if plan.whole:
                run.whole(plan, catalogued)
            else:
                run.chosen(plan)
        except ArchiverError as error:
            for landing in run.landings:
                landing.rescue()
            result.stopped = error
    return result


def survey(
    catalog: SetCatalog,
    plan: RestorePlan,
    routes: Routes,
    media: Loader,
    crypt: CryptConfig | None,
    listener: Listener,
) -> None:
    """Complete a plan: read the snapshots' archives from the media that are at hand, so that it tells exactly which
    files with chunks are needed. The stores stay as they are."""
    if plan.visits:
        with _Run(catalog, routes, media, crypt, listener, RestoreResult(), is_dry=True) as run:
            run.survey(plan)


class _Landing:
    """A store that gets something; nothing at all in a dry run."""

    def __init__(
        self, store: Store, crypt: CryptConfig | None, listener: Listener, opened: ExitStack, is_dry: bool
    ) -> None:
        self.store = store
        session = None
        if is_dry:
            self._place = opened.enter_context(tempfile.TemporaryDirectory(prefix="archiver-"))
        else:
            session = opened.enter_context(store.session())
            self._place = session.path
            with explained("write into", store.layout.base):  # a killed run may have published what is found there
                store.disk.sync_file_system(store.layout.base)
        self.chunks = Chunks(store, session, self._place, crypt, listener)
        opened.callback(self.chunks.close)
        self._count = 0

    def directory(self) -> str:
        """For one more snapshot that waits."""
        self._count += 1
        return os.path.join(self._place, f"tape-{self._count}")

    def rescue(self) -> None:
        """The run ends early: what it has stored need not be read again."""
        self.store.give_up_reserve()
        with suppress(ArchiverError):
            self.chunks.flush()


@dataclass(slots=True)
class _Waiting:
    landing: _Landing
    arrival: Arrival
    waits_for: set[Place] = field(default_factory=set)
    nowhere: int = 0  # chunks that no catalog knows


class _Run:
    """The stores are open for writing as long as this."""

    def __init__(
        self,
        catalog: SetCatalog,
        routes: Routes,
        media: Loader,
        crypt: CryptConfig | None,
        listener: Listener,
        result: RestoreResult,
        *,
        is_dry: bool = False,
    ) -> None:
        self._is_dry = is_dry
        self._catalog, self._routes, self._media = catalog, routes, media
        self._crypt, self._listener, self._result = crypt, listener, result
        self._members = {member.seq_nr: member for member in catalog.members}
        self._waiting: list[_Waiting] = []
        self._wanted: dict[Place, list[tuple[_Landing, Digests]]] = {}
        self._damaged: dict[bytes, str] = {}
        self._lost: dict[Place, ArchiverError] = {}  # files that could not be read
        self._opened = ExitStack()

    def __enter__(self) -> _Run:
        with ExitStack() as opened:
            self._landings = {
                id(store): _Landing(store, self._crypt, self._listener, opened, self._is_dry)
                for store in self._routes.all_stores()
            }
            self._began = next(iter(self._landings.values())).store.clock.steady()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for landing in self.landings:
            brought = landing.chunks.brought
            self._result.brought.chunks += brought.chunks
            self._result.brought.bytes += brought.bytes
            self._result.brought.present += brought.present
            self._result.seconds = landing.store.clock.steady() - self._began
        self._opened.close()

    @property
    def landings(self) -> list[_Landing]:
        return list(self._landings.values())

    def _landing(self, source: str) -> _Landing | None:
        store = self._routes.store(source)
        return None if store is None else self._landings[id(store)]

    def _problem(self, name: str, error: ArchiverError) -> None:
        """Only this is not done."""
        if isinstance(error, _ENDS_ALL):
            raise error
        for landing in self.landings:
            check_present(landing.store.layout)
        self._result.problems.append(Problem(name, error))
        self._listener(Notice(f"{name} is not restored: {error}", "warning"))

    def _load(self, member: Member) -> Drive:
        drive = self._media.load(member)
        if member.label not in self._result.media:
            self._result.media.append(member.label)
        return drive

    # -- some snapshots ----------------------------------------------------------------------------------------------

    def chosen(self, plan: RestorePlan) -> None:
        steps: dict[int, list[Step]] = {}
        for step in plan.work:
            steps.setdefault(step.seq_nr, []).append(step)
        while steps or self._wanted:
            seq_nr = max([*steps, *(place[0] for place in self._wanted)])
            mine = sorted(steps.pop(seq_nr, []), key=lambda step: step.file)
            try:
                drive = self._load(self._members[seq_nr])
                for step in mine:
                    self._snapshot(drive, step)
                for place in sorted(place for place in self._wanted if place[0] == seq_nr):
                    self._wanted_chunks(drive, place)
            except (TargetAbsent, Damaged) as error:
                self._medium_failed(seq_nr, mine, error)
            self._publish_ready()
        self._publish_rest()

    def _medium_failed(self, seq_nr: int, steps: list[Step], error: ArchiverError) -> None:
        """The others may be at hand."""
        told = {each.arrival.name for each in self._waiting} | {problem.name for problem in self._result.problems}
        for step in steps:
            if step.name not in told:
                self._problem(step.name, error)
        for place in [place for place in self._wanted if place[0] == seq_nr]:
            self._file_failed(place, error)

    def _file_failed(self, place: Place, error: ArchiverError) -> None:
        self._lost[place] = error
        self._wanted.pop(place, None)
        for each in self._waiting:
            each.waits_for.discard(place)

    def _snapshot(self, drive: Drive, step: Step) -> None:
        landing = self._landing(step.source)
        assert landing is not None
        label = self._members[step.seq_nr].label
        try:
            with opened(drive, label, step.file) as file:
                try:
                    if file.is_empty or file.content.kind != "snapshot archive":
                        raise _not_as_catalogued(label, step.file, step.name)
                    found = file.content.store, file.content.text("snapshot")
                    if found != (step.source, step.ref.path):
                        raise _not_as_catalogued(label, step.file, step.name)
                    arrival = self._receive(landing, file, step.name, step.targets)
                finally:
                    self._count(file)
        except EndOfData as error:
            self._problem(step.name, _not_as_catalogued(label, step.file, step.name, str(error)))
        except Damaged as error:
            self._problem(step.name, error)
        else:
            waiting = _Waiting(landing, arrival)
            self._waiting.append(waiting)
            self._want(waiting, step.source)

    def _receive(self, landing: _Landing, file: MediumFile, name: str, targets: tuple[SnapshotRef, ...]) -> Arrival:
        directory = landing.directory()
        try:
            return receive(landing.store.disk, file, name, targets, directory, self._crypt)
        except BaseException:
            landing.store.disk.remove_tree(directory)
            raise

    def _missing(self, waiting: _Waiting) -> Iterator[Digests]:
        """Per index, the chunks that the store does not have. Raises Damaged."""
        arrival = waiting.arrival
        for info, index in arrival.indexes():
            encrypted = info.crypt_mode == "encrypt"
            yield waiting.landing.chunks.missing(index, encrypted=encrypted, with_key=encrypted and arrival.with_key)

    def _want(self, waiting: _Waiting, source: str) -> None:
        """Note in which files the chunks are that are missing."""
        for digests in self._missing(waiting):
            seq_nrs, files = self._catalog.find_chunks(source, digests)
            waiting.nowhere += int((seq_nrs < 0).sum())
            places = seq_nrs << 32 | files
            for place in np.unique(places[seq_nrs >= 0]).tolist():
                key = place >> 32, place & 0xFFFF_FFFF
                waiting.waits_for.add(key)
                self._wanted.setdefault(key, []).append((waiting.landing, digests[places == place]))

    def _wanted_chunks(self, drive: Drive, place: Place) -> None:
        wanted = self._wanted.pop(place)
        label = self._members[place[0]].label
        try:
            with opened(drive, label, place[1]) as file:
                try:
                    if file.is_empty or file.content.kind != "chunk archive":
                        raise _not_as_catalogued(label, place[1], "chunks")
                    landing, digests = wanted[0][0], {row.tobytes() for _, rows in wanted for row in rows}
                    landing.chunks.bring(_only(file, digests), self._damaged)
                    if digests:
                        raise FormatError(f"{len(digests)} chunks that its catalog knows are not in it")
                finally:
                    self._count(file)
        except EndOfData as error:
            self._file_failed(place, _not_as_catalogued(label, place[1], "chunks", str(error)))
        except Damaged as error:
            self._listener(Notice(str(error), "warning"))
            self._file_failed(place, error)
        for each in self._waiting:
            each.waits_for.discard(place)

    def _count(self, file: MediumFile) -> None:
        self._result.files += 1
        self._result.bytes_read += file.bytes_read

    # -- publishing --------------------------------------------------------------------------------------------------

    def _publish_ready(self) -> None:
        for waiting in [each for each in self._waiting if not each.waits_for]:
            self._waiting.remove(waiting)
            self._publish(waiting)

    def _publish_rest(self) -> None:
        while self._waiting:
            self._publish(self._waiting.pop(0))

    def _publish(self, waiting: _Waiting) -> None:
        arrival, landing = waiting.arrival, waiting.landing
        try:
            self._check_complete(waiting)
            landing.chunks.flush()
            published = [ref for ref in arrival.targets if publish(landing.store, arrival, ref, self._routes.owner)]
        except ArchiverError as error:
            self._problem(arrival.name, error)
        else:
            done = self._result.restored if published else self._result.present
            done.append(arrival.name)
            self._listener(Notice(f"{arrival.name} is restored"))
        finally:
            landing.store.disk.remove_tree(arrival.directory)

    def _check_complete(self, waiting: _Waiting) -> None:
        """Raises what kept a chunk away: an absent medium, a damaged file, its own damage."""
        chunks, count, name = waiting.landing.chunks, 0, waiting.arrival.name
        reasons: list[str] = []
        for digests in self._missing(waiting):
            count += len(digests)
            reasons += [
                f"chunk {digest.tobytes().hex()}: {self._damaged[digest.tobytes()]}"
                for digest in digests
                if len(reasons) < _NAMED and digest.tobytes() in self._damaged
            ]
        if count:
            why = "; ".join(reasons[:_NAMED])
            absent = next((error for error in self._lost.values() if isinstance(error, TargetAbsent)), None)
            if absent is not None and not reasons:
                raise type(absent)(f"{count} chunks of {name} are missing: {absent}", hint=absent.hint)
            why = why or "; ".join(list(dict.fromkeys(map(str, self._lost.values())))[:_NAMED])
            why = why or "no catalog says where they are" + (
                "" if all(self._catalog.log(member) for member in self._catalog.members) else "; see: tape catalog"
            )
            raise Damaged(f"{count} chunks of {name} are missing: {why}")
        if waiting.arrival.with_key and chunks.unproven:
            for info, index in waiting.arrival.indexes():
                if info.crypt_mode == "encrypt":
                    for digest in map(bytes, index.digests):
                        if digest in chunks.unproven:
                            raise Damaged(f"chunk {digest.hex()} of {name} is damaged: its key does not open it")

    # -- a whole set -------------------------------------------------------------------------------------------------

    def whole(self, plan: RestorePlan, catalogued: Catalogued) -> None:
        for visit in plan.visits:
            try:
                drive = self._load(visit.member)
                entries = self._medium(drive, visit)
            except (TargetAbsent, Damaged) as error:
                self._lost[visit.member.seq_nr, 0] = error
                self._problem(f"medium {visit.member.label}", error)
                continue
            if visit.all_files:
                catalogued(visit.member, entries)
        self._publish_rest()

    def _medium(self, drive: Drive, visit: Visit) -> list[ChunkFile | SnapshotEntry]:
        """Read the files that are needed; what is on the medium."""
        member, entries = visit.member, list[ChunkFile | SnapshotEntry]()
        patience = Patience(member.label)
        for number in self._numbers(visit):
            try:
                with opened(drive, member.label, number) as file:
                    try:
                        self._archive(member, file, entries)
                    finally:
                        self._count(file)
                patience.renew()
            except EndOfData:
                return entries
            except FileDamaged as error:
                self._lost[member.seq_nr, number] = error
                self._problem(f"file {number} of medium {member.label}", error)
                patience.lose(number)
        return entries

    def _numbers(self, visit: Visit) -> Iterator[int]:
        """Of the files that are needed, in their order: of each is asked when its turn comes."""
        log = None if visit.all_files else self._catalog.log(visit.member)
        if log is None:
            yield from itertools.count(FIRST_ARCHIVE)
            return
        archives = {archive.file: archive for archive in log.archives}
        for number in sorted({*archives, *visit.snapshots}):
            if number in visit.snapshots or self._is_needed(archives[number]):
                yield number

    def _is_needed(self, archive: ChunkFile) -> bool:
        landing = self._landing(archive.store)
        return landing is not None and not landing.chunks.has_all(archive.digests)

    def _archive(self, member: Member, file: MediumFile, entries: list[ChunkFile | SnapshotEntry]) -> None:
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

    def _chunk_archive(self, member: Member, file: MediumFile, entries: list[ChunkFile | SnapshotEntry]) -> None:
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
            self._lost[member.seq_nr, file.number] = cut  # which matters where chunks are missing
            self._listener(Notice(f"file {file.number} of medium {member.label} was not written to its end", "warning"))

    def _snapshot_archive(self, member: Member, file: MediumFile, entries: list[ChunkFile | SnapshotEntry]) -> None:
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
        waiting = _Waiting(landing, arrival)
        if any(len(digests) for digests in self._missing(waiting)):
            self._waiting.append(waiting)  # the same chunks may be on another medium once more
        else:
            self._publish(waiting)

    # -- a dry run ---------------------------------------------------------------------------------------------------

    def survey(self, plan: RestorePlan) -> None:
        if plan.whole:
            for visit in plan.visits:
                log = None if visit.all_files else self._catalog.log(visit.member)
                if log is not None:
                    visit.chunks = [each.file for each in log.archives if self._is_needed(each)]
            return
        for visit in list(plan.visits):
            try:
                drive = self._load(visit.member)
            except TargetAbsent:
                return  # what it needs is not known then
            for step in plan.work:
                if step.seq_nr == visit.member.seq_nr:
                    self._snapshot(drive, step)
        plan.problems += self._result.problems
        plan.bytes = self._result.bytes_read
        for visit in plan.visits:
            visit.chunks = []
        visits = {visit.member.seq_nr: visit for visit in plan.visits}
        for seq_nr, number in sorted(self._wanted):
            visit = visits.setdefault(seq_nr, Visit(self._members[seq_nr], chunks=[]))
            assert visit.chunks is not None
            visit.chunks.append(number)
            plan.bytes += self._about((seq_nr, number))
        plan.visits[:] = sorted(visits.values(), key=lambda visit: -visit.member.seq_nr)

    def _about(self, place: Place) -> int:
        """Bytes that are read of an archive to the last wanted chunk: chunks of the usual size, whole blocks."""
        log = self._catalog.log(self._members[place[0]])
        archives = () if log is None else (each for each in log.archives if each.file == place[1])
        digests = next((each.digests for each in archives), np.empty((0, 32), np.uint8))
        wanted = np.concatenate([rows for _, rows in self._wanted[place]])
        is_wanted = np.isin(_as_keys(digests), _as_keys(wanted))
        count = int(is_wanted.nonzero()[0][-1]) + 1 if is_wanted.any() else len(wanted)
        indexes = [index for each in self._waiting for _, index in each.arrival.indexes()]
        mean = sum(index.size for index in indexes) / max(1, sum(map(len, indexes)))
        return -(-int(count * mean) // BLOCK_SIZE) * BLOCK_SIZE


def _as_keys(digests: Digests) -> Any:
    return np.ascontiguousarray(digests).view("V32").ravel()


def _not_as_catalogued(label: str, file: int, name: str, why: str = "it holds something else") -> Damaged:
    return Damaged(
        f"file {file} of medium {label} should hold {name}: {why}",
        hint="the medium was written elsewhere since; make its catalog anew: archiver tape catalog --force",
    )


def _only(file: MediumFile, digests: set[bytes]) -> Iterator[StoredChunk]:
    """Those chunks of an archive; it is read no further than to the last of them."""
    for chunk in read_chunks(file.stream):
        if chunk.digest in digests:
            yield chunk
            digests.discard(chunk.digest)
            if not digests:
                return


def _noted(file: MediumFile, digests: list[bytes]) -> Iterator[StoredChunk]:
    for chunk in read_chunks(file.stream):
        digests.append(chunk.digest)
        yield chunk
