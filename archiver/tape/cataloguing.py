"""Catalogs from media (spec tape.md 10.4): fast from the catalog archives, or by reading everything.

A catalog archive is taken when it was written to its end, all of its records can be read, and it is that of a medium of
this set: of this medium, or of an earlier one that has no catalog here. The newest archive of a medium is the one that
counts, and it knows all of it only when no other file is behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archiver.core.events import Listener, Notice
from archiver.errors import Damaged, UsageError
from archiver.tape.checking import ChunkChecker
from archiver.tape.drive.interface import Drive, EndOfData, MediumError
from archiver.tape.keys import TapeKeys, use_key
from archiver.tape.labels import read_labels
from archiver.tape.loading import set_of
from archiver.tape.reading import FIRST_ARCHIVE, FileDamaged, MediumFile, opened, read_catalog, visit_files
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.place import TapePlace
from archiver.tape.tail import entry_of
from formats.errors import FormatError
from formats.tape.catalog import ChunkFile, Entry
from formats.tape.chunk_archive import read_chunks
from formats.tape.labels import MediaSetLabel


@dataclass(slots=True)
class Catalogued:
    """``method``: ``fast`` from a catalog archive, ``scan`` by reading everything, ``none`` for a medium of no set.
    ``others``: labels of earlier media whose catalogs came with it. ``damaged``: files that could not be read."""

    label: str
    method: str
    archives: int = 0
    snapshots: int = 0
    chunks: int = 0
    others: list[str] = field(default_factory=list)
    passed_over: list[int] = field(default_factory=list)
    damaged: list[FileDamaged] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "method": self.method,
            "chunk_archives": self.archives,
            "snapshots": self.snapshots,
            "chunks": self.chunks,
            "others": self.others,
            "passed_over": self.passed_over,
            "damaged": [{"file": error.file, "reason": error.reason} for error in self.damaged],
        }


def catalogue(
    place: TapePlace, drive: Drive, keys: TapeKeys, listener: Listener, *, scan: bool = False, force: bool = False
) -> Catalogued:
    """Make the catalog of the medium in the drive; its labels go into the inventory. Raises UsageError where there is a
    catalog and it is not to be replaced, NoMedium, Damaged."""
    labels = read_labels(drive)
    if labels is None:
        raise UsageError("the medium in the drive is empty", hint="label it: archiver tape label")
    logs, inventory = CatalogLogs(place), InventoryFile(place)
    media_set = set_of(labels)
    medium = labels.label.uuid
    inventory.change(lambda found: found.store_labels(labels.label, labels.set_label, keep_status=True))
    done = Catalogued(labels.label.label_text, "none")
    if media_set is None:
        if logs.stamp(medium) is not None:
            logs.remove(medium)
        return done
    if not force and _is_usable(logs, medium, media_set.uuid, media_set.seq_nr):
        raise UsageError(
            f"there is a catalog of {done.label} already",
            hint="to make it anew: --force; see: archiver tape media content",
        )
    use_key(drive, media_set, keys)
    if not scan and _Fast(drive, logs, inventory, done, medium, media_set, listener).run():
        return _told(done, logs, medium, "fast")
    _scan(drive, logs, done, medium, media_set, listener)
    return _told(done, logs, medium, "scan")


def _is_usable(logs: CatalogLogs, medium: bytes, media_set: bytes, position: int) -> bool:
    """Whether there is a catalog that needs not be made anew."""
    try:
        found = logs.load(medium)
    except Damaged:
        return False
    if found is None or (found.media_set, found.seq_nr) != (media_set, position):
        return False
    return found.torn is None and logs.unsure(medium) is None


def _told(done: Catalogued, logs: CatalogLogs, medium: bytes, method: str) -> Catalogued:
    found = logs.load(medium)
    if found is not None:
        done.method = method
        done.archives, done.snapshots = len(found.archives), len(found.snapshots)
        done.chunks = sum(len(archive.digests) for archive in found.archives)
    return done


class _Fast:
    """The catalogs at the start of the medium, and the one at its end."""

    def __init__(
        self,
        drive: Drive,
        logs: CatalogLogs,
        inventory: InventoryFile,
        done: Catalogued,
        medium: bytes,
        media_set: MediaSetLabel,
        listener: Listener,
    ) -> None:
        self._drive, self._logs, self._done = drive, logs, done
        self._medium, self._set = medium, media_set
        self._members = inventory.load().media_set(media_set.uuid).members
        self._listener = listener
        self._has_own = False

    def run(self) -> bool:
        """Whether the catalog of this medium was found."""
        number = FIRST_ARCHIVE
        while self._take(number):
            number += 1
        last = self._drive.locate_end() - 1
        if last > number:
            self._has_own = False
            self._take(last)
        return self._has_own

    def _take(self, number: int) -> bool:
        """Whether the file is a catalog archive, whatever became of it."""
        try:
            with opened(self._drive, self._done.label, number) as file:
                if file.is_empty or file.content.kind != "catalog archive":
                    self._has_own = False  # it would not know this file
                    return False
                self._read(file)
        except EndOfData:
            return False
        except FileDamaged as error:
            self._listener(Notice(str(error), "warning"))
        return True

    def _read(self, file: MediumFile) -> None:
        found = read_catalog(file)
        if found is None:
            return
        data, catalog = found
        medium, position = catalog.media, catalog.seq_nr
        if catalog.media_set != self._set.uuid:
            return
        if medium == self._medium:
            if position == self._set.seq_nr and catalog.last_file < file.number:
                self._logs.replace(medium, data)
                self._has_own = True
            return
        other = self._members.get(position)
        if other is not None and other.uuid == medium and not _is_usable(self._logs, medium, self._set.uuid, position):
            self._logs.replace(medium, data)
            self._done.others.append(other.name)


def _scan(
    drive: Drive, logs: CatalogLogs, done: Catalogued, medium: bytes, media_set: MediaSetLabel, listener: Listener
) -> None:
    """Read every file. What was cut, or cannot be read, is not catalogued; but of a chunk archive that is damaged the
    sound chunks are: else no restore would look for them there."""
    entries: list[Entry] = []

    def visit(file: MediumFile) -> None:
        entry: Entry | None = None
        if not file.is_empty and file.content.kind == "chunk archive":
            found, wrong = _sound_chunks(file)
            if wrong is not None:
                if len(found.digests):
                    entries.append(found)
                raise wrong
            entry = found if file.is_whole() else None
        elif not file.is_empty:
            entry = entry_of(file)
        if entry is not None:
            entries.append(entry)
        elif file.is_empty or file.content.kind != "catalog archive":
            done.passed_over.append(file.number)
        listener(Notice(f"file {file.number}: {'empty' if file.is_empty else file.content.kind}"))

    def damaged(error: FileDamaged) -> None:
        done.damaged.append(error)
        listener(Notice(str(error), "warning"))

    visit_files(drive, done.label, FIRST_ARCHIVE, visit, damaged)
    unsure = f"{len(done.damaged)} of its files cannot be read" if done.damaged else None
    logs.rebuild(medium, media_set.uuid, media_set.seq_nr, entries, unsure)


def _sound_chunks(file: MediumFile) -> tuple[ChunkFile, FormatError | MediumError | None]:
    """Those that can be read, and what is wrong with the first that cannot."""
    source, sound, checker = file.content.store, list[bytes](), ChunkChecker(None)
    wrong: FormatError | MediumError | None = None
    try:
        for digest, data in read_chunks(file.stream):
            try:
                checker.check(digest, data)
                sound.append(digest)
            except FormatError as error:
                wrong = wrong or error
    except (FormatError, MediumError) as error:
        wrong = wrong or error
    digests = np.frombuffer(b"".join(sound), np.uint8).reshape(-1, 32)
    return ChunkFile(file.number, file.content.uuid, source, digests), wrong
