"""The medium that is being written: its allocation, labels and catalogs of earlier media; commits; the change to the
next one (spec tape.md 7.4, 8, 9).

Order of a commit: the drive is flushed, then the inventory, the catalog log and the database are told. So no catalog
ever knows more than the medium holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from archiver.core.clock import Clock, Random
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, Damaged, NotFound, UsageError
from archiver.tape.digests import without
from archiver.tape.drive.interface import Drive, MediumError, WriteProtected
from archiver.tape.known_set import KnownSet
from archiver.tape.labels import read_labels, write_set_label
from archiver.tape.loading import set_of
from archiver.tape.members import Loader, Member
from archiver.tape.reading import FIRST_ARCHIVE
from archiver.tape.state.catalog_log import CatalogLogs, LogWriter
from archiver.tape.state.inventory import InventoryFile, Medium
from archiver.tape.state.place import TapePlace
from archiver.tape.state.session import WriteSession, new_uuid
from archiver.tape.tail import adopt, check_end
from archiver.tape.write.archives import write_catalog
from formats.tape.catalog import ChunkFile, Digests, SnapshotEntry, catalog_archive
from formats.tape.labels import MediaSetLabel

COMMIT_EVERY = 128 << 30  # bytes, where flushing is expensive
_CHEAP_FLUSH = 1.0  # seconds
_MANY_MEDIA = 20


class Foreign(Damaged):
    """A medium holds something else than the inventory says."""

    code = "foreign-medium"


@dataclass(slots=True)
class _Current:
    medium: Medium
    drive: Drive
    log: LogWriter
    next_file: int


UseKey = Callable[[Drive, MediaSetLabel | None], None]


def no_key(drive: Drive, label: MediaSetLabel | None) -> None:
    """For sets that no drive encrypts."""


class Media:
    """``complete``: the label of the set as it goes onto the medium, with the wrapped key where there is one;
    ``use_key``: has the drive encrypt for that set, or for none."""

    def __init__(
        self,
        place: TapePlace,
        session: WriteSession,
        known: KnownSet,
        loader: Loader,
        listener: Listener,
        clock: Clock,
        random: Random,
        *,
        namespaces: bool,
        complete: Callable[[MediaSetLabel], MediaSetLabel] = lambda label: label,
        use_key: UseKey = no_key,
    ) -> None:
        self._session, self._known, self._loader = session, known, loader
        self._listener, self._clock, self._random = listener, clock, random
        self._inventory = InventoryFile(place)
        self._logs = CatalogLogs(place)
        self._namespaces = namespaces
        self._complete, self._use_key = complete, use_key
        self._current: _Current | None = None
        self._fresh: list[tuple[str, Digests]] = []  # of archives that were not committed yet
        self._fresh_snapshots: set[tuple[str, str]] = set()
        self._bytes = 0  # since the last commit
        self._flush_seconds = 0.0
        self.used: list[str] = []
        self.failure: ArchiverError | None = None  # why there is no medium that can be written
        self.adopted = 0
        self.has_written = False  # whether the catalog of the medium is another one than before

    # -- what the set holds ------------------------------------------------------------------------------------------

    def holds_snapshot(self, store: str, path: str) -> bool:
        return (store, path) in self._fresh_snapshots or self._known.holds_snapshot(store, path)

    def knows_snapshot(self, store: str, path: str) -> bool:
        """Whether it is on the media and committed."""
        return self._known.holds_snapshot(store, path)

    def absent(self, store: str, digests: Digests) -> Digests:
        found = self._known.absent(store, digests)
        for name, fresh in self._fresh:
            if name == store:
                found = without(found, fresh)
        return found

    # -- the medium --------------------------------------------------------------------------------------------------

    def ready(self) -> Drive:
        """A drive that stands behind the data of a medium that can be written. Raises NoMediaLeft, TargetAbsent,
        WriteProtected, Damaged."""
        if self._current is None:
            try:
                self._current = self._next()
            except ArchiverError as error:
                self.failure = error
                raise
        return self._current.drive

    def content(self) -> tuple[bytes, int]:
        """Uuid and time for the header of the next file."""
        return new_uuid(self._random), self._clock.now()

    def _next(self) -> _Current:
        chosen = self._session.next_medium()
        before = chosen.in_set
        goes_on = before is not None and before.uuid == self._session.media_set
        drive = self._loader.load(Member(0 if before is None else before.seq_nr, chosen.uuid, chosen.name))
        there = set_of(read_labels(drive))
        self._check_drive(drive, chosen)
        if not goes_on:  # once it is allocated, what was on it is forgotten
            _check_may_overwrite(chosen.name, before, there)
            for member in self._known.members:
                self._log_of(member)
        medium = self._session.allocate(chosen).medium
        place = medium.in_set
        assert place is not None
        if medium.name not in self.used:
            self.used.append(medium.name)
        if there is None or there.uuid != place.uuid:
            if goes_on:
                self._check_unwritten(medium, place, there)
            return self._begin(drive, medium, place)
        if (there.seq_nr, there.fingerprint) != (place.seq_nr, place.fingerprint):
            raise Foreign(
                f"medium {medium.name} is number {there.seq_nr} of its set, not {place.seq_nr} as the inventory says",
                hint="read its labels again: archiver tape inventory --read-all-labels",
            )
        return self._go_on(drive, medium, place)

    def _check_drive(self, drive: Drive, medium: Medium) -> None:
        """Whether the medium can be written at all, before anything is changed. The drive has the key of the set from
        now on, with which the end of what is on the medium can be read."""
        why = drive.complaint()
        if why is not None:
            self._session.set_status(medium.uuid, "damaged")
            raise MediumError(
                f"the drive {drive.name} gives an alert with the medium {medium.name} in it: {why}",
                hint=f"it counts as damaged now; if it is not: archiver tape media set-status {medium.name} none",
            )
        if drive.status().write_protected:
            raise WriteProtected(
                f"medium {medium.name} is write-protected", hint="flip its switch, or make its directory writable"
            )
        label = self._session.label
        if label.fingerprint is not None and not drive.can_encrypt:
            raise UsageError(
                f"the drive {drive.name} cannot encrypt, and the pool {label.pool} has a key",
                hint="use a drive with hardware encryption, or a pool without a key for encrypted backups",
            )
        self._use_key(drive, label)

    def _check_unwritten(self, medium: Medium, place: MediaSetLabel, there: MediaSetLabel | None) -> None:
        """The labels of the medium are not those of the set, or not yet: a run ended before it wrote them. What has
        joined another set later than this one is not written over."""
        log = self._logs.load(medium.uuid)
        is_newer = there is not None and there.time > place.time
        if is_newer or (log is not None and log.last_file >= FIRST_ARCHIVE):
            raise Foreign(f"medium {medium.name} was written elsewhere since: it belongs to another media set now")

    def _begin(self, drive: Drive, medium: Medium, place: MediaSetLabel) -> _Current:
        """The set label, and the catalogs of the earlier media."""
        log = self._logs.load(medium.uuid)
        if log is None or (log.media_set, log.seq_nr) != (place.uuid, place.seq_nr) or log.last_file >= FIRST_ARCHIVE:
            self._logs.create(medium.uuid, place.uuid, place.seq_nr)
        try:
            self._write_set_label(drive, place)
        except MediumError:
            self._session.set_status(medium.uuid, "damaged")
            raise
        current = _Current(medium, drive, self._logs.open(medium.uuid, place.uuid, place.seq_nr), FIRST_ARCHIVE)
        self._known.refresh(self._session.members())
        for member in self._known.members:
            if member.seq_nr < place.seq_nr:
                self._earlier(current, member, place)
        if place.seq_nr >= _MANY_MEDIA:
            text = f"the media set has {place.seq_nr + 1} media; a restore may need all of them"
            self._listener(Notice(text, "warning"))
        drive.flush()
        return current

    def _write_set_label(self, drive: Drive, place: MediaSetLabel) -> None:
        """Never encrypted; what follows is."""
        self._use_key(drive, None)
        write_set_label(drive, self._complete(place), self._clock.now(), self._random)
        self._use_key(drive, place)

    def _earlier(self, current: _Current, member: Member, place: MediaSetLabel) -> None:
        uuid, now = self.content()
        head = catalog_archive(member.uuid, place.uuid, member.seq_nr, uuid, now, namespaces=self._namespaces)
        if not write_catalog(current.drive, head, self._log_of(member)):
            raise ArchiverError(
                f"the catalogs of the earlier media do not fit onto medium {current.medium.name}",
                hint="use larger media, or begin a new set",
            )
        current.next_file += 1

    def _log_of(self, member: Member) -> memoryview:
        """The catalog of an earlier medium, which each later one carries."""
        if not self._logs.is_of(member.uuid, self._session.media_set, member.seq_nr):
            raise NotFound(
                f"there is no catalog of the medium {member.label}, which the next one of its set has to carry",
                hint="read it from the medium: archiver tape catalog; or begin a new set: --new-set",
            )
        return self._logs.read(member.uuid)

    def _go_on(self, drive: Drive, medium: Medium, place: MediaSetLabel) -> _Current:
        writer = self._logs.open(medium.uuid, place.uuid, place.seq_nr)
        log = self._logs.load(medium.uuid)
        assert log is not None
        count = check_end(drive, medium.name, log)
        current = _Current(medium, drive, writer, count)
        first = max(log.last_file + 1, FIRST_ARCHIVE)
        adopted = adopt(drive, medium.name, first, writer, self.absent, self._listener) if count > first else 0
        if not adopted and log.last_file < FIRST_ARCHIVE and count <= FIRST_ARCHIVE + place.seq_nr:
            return self._begin(drive, medium, place)  # a run ended before the catalogs of the earlier media were whole
        if adopted:
            self.adopted += adopted
            self.has_written = True
            self._commit(current)
        if log.torn is not None:  # what came behind has been looked at
            self._logs.set_unsure(medium.uuid, None)
        drive.locate_end()
        return current

    # -- what was written --------------------------------------------------------------------------------------------

    def add_chunks(self, store: str, uuid: bytes, digests: Digests, size: int) -> None:
        """A chunk archive that is whole, at the position of the medium."""
        current = self._written()
        current.log.add(ChunkFile(current.next_file, uuid, store, digests))
        self._fresh.append((store, digests))
        self.has_written = True
        current.next_file += 1
        self._bytes += size

    def add_snapshot(self, store: str, uuid: bytes, path: str) -> None:
        current = self._written()
        current.log.add(SnapshotEntry(current.next_file, uuid, store, path))
        self._fresh_snapshots.add((store, path))
        self.has_written = True
        current.next_file += 1

    def pass_over(self) -> None:
        """A file that is of no use, or that no catalog knows."""
        self._written().next_file += 1

    def _written(self) -> _Current:
        assert self._current is not None
        return self._current

    def settle(self) -> None:
        """A snapshot is complete: commit, unless that would keep a tape waiting."""
        if self._flush_seconds < _CHEAP_FLUSH or self._bytes >= COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """What was written is known from now on, and durable."""
        if self._current is not None:
            self._commit(self._current)

    def _commit(self, current: _Current) -> None:
        began = self._clock.steady()
        current.drive.flush()
        self._flush_seconds = self._clock.steady() - began
        if not current.log.pending:
            return
        self._session.set_bytes_used(current.medium.uuid, current.drive.status().bytes_used)
        current.log.commit()
        self._known.refresh(self._session.members())
        self._fresh.clear()
        self._fresh_snapshots.clear()
        self._bytes = 0

    def full(self) -> None:
        """The end of the medium was met: the next file goes onto another one."""
        current = self._written()
        self._commit(current)
        self._session.set_full(current.medium.uuid)
        self._listener(Notice(f"medium {current.medium.name} is full"))
        self._current = None
        if self._session.by_hand:
            with suppress(ArchiverError):  # else the person presses the button
                current.drive.eject()

    def damaged(self) -> None:
        """The drive could not write: nothing more is written on this medium."""
        if self._current is not None:
            current, self._current = self._current, None
            self._session.set_status(current.medium.uuid, "damaged")

    def write_catalog(self) -> None:
        """The catalog archive of the current medium, at the end of a run; where it does not fit, the next medium begins
        with it. One that is full has none: its catalog is on the next one, should there be one."""
        self.commit()
        for _ in range(2):
            if self._current is None:
                return
            current, drive = self._current, self._current.drive
            place = current.medium.in_set
            assert place is not None
            uuid, now = self.content()
            head = catalog_archive(
                current.medium.uuid, place.uuid, place.seq_nr, uuid, now, namespaces=self._namespaces
            )
            fits = write_catalog(drive, head, self._logs.read(current.medium.uuid))
            self.pass_over()
            if fits:
                drive.flush()
                return
            self.full()
            self.ready()
        raise ArchiverError("the catalog of the medium fits onto no other medium", hint="use larger media")


def _check_may_overwrite(name: str, known: MediaSetLabel | None, there: MediaSetLabel | None) -> None:
    """A set is overwritten when the inventory knows that it is on the medium, and has chosen it; not otherwise."""
    if there is not None and (known is None or known.uuid != there.uuid):
        raise Foreign(
            f"medium {name} belongs to a media set that the inventory does not know; it is not overwritten",
            hint="see archiver tape inventory --read-all-labels; to erase it: archiver tape format",
        )
