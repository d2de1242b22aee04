"""Some snapshots of a media set. The media are visited from the last one on. Of each the snapshots' archives are read
first; their indexes say which chunks are missing here, and the catalogs where those are: on this medium or an earlier
one. So every medium is needed once, and on it only the files that hold something that is missing.
"""

from __future__ import annotations

import numpy as np

from archiver.core.events import Notice
from archiver.errors import ArchiverError, Damaged, TargetAbsent
from archiver.tape.digests import keys
from archiver.tape.drive.interface import Drive, EndOfData
from archiver.tape.reading import only, opened
from archiver.tape.restore.plan import RestorePlan, Step, Visit
from archiver.tape.restore.receiving import Place, Receiving, Waiting
from formats.tape.blocks import BLOCK_SIZE


class Chosen(Receiving):
    """Carries out a plan for some snapshots."""

    def run(self, plan: RestorePlan) -> None:
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
            waiting = Waiting(landing, arrival)
            self._waiting.append(waiting)
            self._want(waiting, step.source)

    def _want(self, waiting: Waiting, source: str) -> None:
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
                    landing.chunks.bring(only(file, digests), self._damaged)
                finally:
                    self._count(file)
        except EndOfData as error:
            self._file_failed(place, _not_as_catalogued(label, place[1], "chunks", str(error)))
        except Damaged as error:
            self._listener(Notice(str(error), "warning"))
            self._file_failed(place, error)
        for each in self._waiting:
            each.waits_for.discard(place)

    def survey(self, plan: RestorePlan) -> None:
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
        is_wanted = np.isin(keys(digests), keys(wanted))
        count = int(is_wanted.nonzero()[0][-1]) + 1 if is_wanted.any() else len(wanted)
        indexes = [index for each in self._waiting for _, index in each.arrival.indexes()]
        mean = sum(index.size for index in indexes) / max(1, sum(map(len, indexes)))
        return -(-int(count * mean) // BLOCK_SIZE) * BLOCK_SIZE


def _not_as_catalogued(label: str, file: int, name: str, why: str = "it holds something else") -> Damaged:
    return Damaged(
        f"file {file} of medium {label} should hold {name}: {why}",
        hint="the medium was written elsewhere since; make its catalog anew: archiver tape catalog --force",
    )
