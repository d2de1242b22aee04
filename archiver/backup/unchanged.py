"""Recognising files whose contents are stored already (spec change-detection.md 5.2).

Those that are as they were in the run before, and those that an interrupted run has stored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from archiver.backup.audit import Audit
from archiver.backup.directory import Leaf, Level, row_of, without_times
from archiver.backup.journal import Interrupted
from archiver.backup.reference import Reference
from archiver.backup.tally import Tally
from archiver.core.row import file_row
from archiver.source.content import Replaced, open_file
from archiver.source.walk import SourceEntry
from formats.pxar.constants import HEADER_SIZE, REF_SIZE
from formats.pxar.encoder import encode_attributes, encode_file

_FILE = ord("f")


class Unchanged(NamedTuple):
    """How unchanged files are taken over: from the streams of ``reference``, in chunks of ``average`` bytes.

    ``has_previous``: the first of them is that of the archive which the run before recorded; behind come those of
    ``interrupted`` runs.
    """

    reference: Reference
    average: int
    has_previous: bool
    interrupted: Sequence[Interrupted]
    audit: Audit | None = None


class Found(NamedTuple):
    """A file whose contents are stored: its row, its encoded item, and where its contents are in the reference."""

    row: bytes
    item: bytes
    offset: int


class Recognizer:
    """Looks for one file at a time. ``trusted``: the rows of the run before prove that a file is as it was."""

    def __init__(self, unchanged: Unchanged, tally: Tally, trusted: bool) -> None:
        self._unchanged = unchanged
        self._tally = tally
        self._trusted = trusted

    def find(self, level: Level, leaf: Leaf, entry: SourceEntry) -> Found | None:
        """None: the file is to be read."""
        return self._as_before(level, leaf, entry) or self._as_interrupted(level, leaf, entry)

    def _as_before(self, level: Level, leaf: Leaf, entry: SourceEntry) -> Found | None:
        found = leaf.find(entry.name)
        if found is None or not self._unchanged.has_previous:
            return None
        part, number = found
        record = part.record
        if record.kinds[number] != _FILE or not part.is_placed:
            return None
        item, row, stored = record.item(number), _row(level, entry), record.row(number)
        if row[8:24] != stored[8:24]:  # size and modification time
            return None
        is_known = row[24:] != bytes(8) != stored[:8]
        if is_known and row != stored:
            return None
        if not (is_known and self._trusted) and not _has_metadata(level, entry, item):
            return None
        offset = int(part.offsets(number, number + 1)[0])
        return Found(row, item, offset) if self._passes_audit(level, entry, offset) else None

    def _passes_audit(self, level: Level, entry: SourceEntry, offset: int) -> bool:
        """False when the contents of an unchanged file were looked at, and are to be stored again."""
        audit = self._unchanged.audit
        if audit is None or not audit.chooses(file_row(entry.stat)):
            return True
        try:
            with open_file(level.source, entry) as file:
                finding = audit.compare(file, offset, entry.stat.st_size)
                if file_row(os.fstat(file.fd)) != file_row(entry.stat):
                    return False  # it is changing now
        except (OSError, Replaced):
            return False  # reading it will tell
        self._tally.audited(level.source, entry.name, entry.stat.st_size, finding)
        return finding is None

    def _as_interrupted(self, level: Level, leaf: Leaf, entry: SourceEntry) -> Found | None:
        row = _row(level, entry)
        if not leaf.proves(row):
            return None
        origins = self._unchanged.reference.origins[self._unchanged.has_previous :]
        for interrupted, origin in zip(self._unchanged.interrupted, origins, strict=True):
            offset = interrupted.find(row, level.source.features)
            if offset is None:
                continue
            try:
                with open_file(level.source, entry) as file:
                    if file_row(file.stat) != file_row(entry.stat):
                        return None
                    self._tally.problems = 0
                    metadata = level.source.metadata_of(entry.name, file)
            except (OSError, Replaced):
                return None  # reading it will tell
            row = without_times(row) if self._tally.problems else row
            return Found(row, encode_file(entry.name, metadata, 0, entry.stat.st_size), origin + offset)
        return None


def _row(level: Level, entry: SourceEntry) -> bytes:
    return row_of(entry.stat, level.source.features, stable=level.stable)


def _has_metadata(level: Level, entry: SourceEntry, item: bytes) -> bool:
    """Whether all metadata of a file are as in its old items (spec change-detection.md 5.2)."""
    if entry.stat.st_size != int.from_bytes(item[-8:], "little"):
        return False
    try:
        with open_file(level.source, entry) as file:
            metadata = level.source.metadata_of(entry.name, file)
            attributes = item[HEADER_SIZE + len(entry.name) + 1 : -REF_SIZE]
            return file_row(file.stat) == file_row(entry.stat) and encode_attributes(metadata) == attributes
    except (OSError, Replaced):
        return False  # reading it will tell
