"""Regular files on their way into an archive: read and encoded, and told to the catalog, the journal, the listing."""

from __future__ import annotations

import os
import stat as st

import numpy as np

from archiver.backup.contents import Contents
from archiver.backup.directory import Before, Leaf, Level, without_times
from archiver.backup.hard_links import HardLinks
from archiver.backup.journal import Journal
from archiver.backup.small_files import SmallFiles
from archiver.backup.tally import Tally
from archiver.core.row import ROW
from archiver.source.ahead import ReadAhead
from archiver.source.content import Replaced
from archiver.source.walk import SourceDirectory, SourceEntry, Walk
from archiver.store.catalog.record import REFERENCE_FROM_END, in_a_row, read_references, write_offsets
from formats.catalog import CatalogWriter
from formats.pxar.constants import FOUR, HEADER_SIZE, PAYLOAD_REF, REF_SIZE
from formats.pxar.encoder import Encoder, encode_hardlink


class RegularFiles:
    """``split``: the archive has contents in a stream of their own, which is what ``small`` is for."""

    def __init__(
        self,
        walk: Walk,
        encoder: Encoder,
        contents: Contents,
        small: SmallFiles | None,
        links: HardLinks,
        tally: Tally,
        *,
        split: bool,
        journal: Journal | None,
        listing: CatalogWriter | None,
    ) -> None:
        self._walk = walk
        self._encoder = encoder
        self._contents = contents
        self._small = small
        self._links = links
        self._tally = tally
        self._split = split
        self._journal = journal
        self._listing = listing

    def add_small(self, small: SmallFiles, level: Level, leaf: Leaf, rows: list[bytes]) -> None:
        """Put the small files that were read into the archive; ``rows`` are theirs, and cleared."""
        files, offset = small.files, self._encoder.payload_position
        items = small.add()
        proven = leaf.add_files([name for name, _, _ in files], rows, items)
        total = 0
        for (name, stat, size), row, is_proven in zip(files, rows, proven, strict=True):
            if is_proven and self._journal is not None:
                self._journal.add(row, level.source.features, size, offset + total)
            total += HEADER_SIZE + size
            if self._listing is not None:
                self._listing.add_file(name, size, stat[4])
        count = len(files)
        self._tally.encoded(count)
        self._tally.has_read(total - count * HEADER_SIZE)
        rows.clear()

    def add(self, level: Level, leaf: Leaf, entry: SourceEntry) -> None:
        """Read a file and add it, whatever it may be."""
        small, stat = self._small, entry.stat
        ahead = ReadAhead(level.source, [entry.name])
        if small is not None and stat.st_nlink == 1 and small.take(level.source, entry.name, stat, ahead):
            self.add_small(small, level, leaf, [level.row(stat)])
        else:
            self.add_carefully(level, leaf, entry)

    def add_carefully(self, level: Level, leaf: Leaf, entry: SourceEntry) -> None:
        """Add a file that may be anything: a further name of another, large, changing, with odd attributes."""
        name = entry.name
        first = self._links.first(entry.stat)
        if first is not None:
            position, target = first
            self._encoder.add_hardlink(name, target, position)
            leaf.add(b"h", name, level.row(entry.stat), encode_hardlink(name, target, 0))
            if self._listing is not None:
                self._listing.add(b"h", name)
            self._tally.counters.total += 1
            return
        self._tally.problems = 0
        added = self._contents.add(level.source, entry)
        if added is None:
            return
        position, stat = added
        row = level.row(stat)
        size, item = stat.st_size, self._encoder.last
        if self._journal is not None and leaf.proves(row) and not self._tally.problems:
            self._journal.add(row, level.source.features, size, int.from_bytes(item[-16:-8], "little"))
        if not self._split:
            item = item[:-HEADER_SIZE] + FOUR.pack(PAYLOAD_REF, REF_SIZE, 0, size)
        leaf.add(b"f", name, without_times(row) if self._tally.problems else row, item)
        if self._listing is not None:
            self._listing.add_file(name, size, stat.st_mtime_ns // 10**9)
        self._tally.encoded(1)
        self.may_be_linked(level.source, name, stat, position)

    def may_be_linked(self, directory: SourceDirectory, name: bytes, stat: os.stat_result, position: int) -> None:
        """A file is in the archive, its item at ``position``: its other names may refer to it."""
        if stat.st_nlink > 1:
            self._links.put(stat, position, directory.path_of(name).lstrip(b"/"))

    # -- files that were held ----------------------------------------------------------------------------------------

    def read_again(self, level: Level, leaf: Leaf, entry: SourceEntry) -> None:
        """Add a file whose directory may have been left. It did not pay to keep its old chunks."""
        try:
            self._walk.revisit(level.source)
            self.add(level, leaf, entry)
        except OSError as error:
            self._tally.cannot(level.source, entry.name, error)

    def read_known(self, level: Level, leaf: Leaf, before: Before, start: int, stop: int) -> None:
        """Read files again, which are the entries [start, stop) of ``before``. Their directory may have been left."""
        names, small = before.record.names, self._small
        assert small is not None
        ahead = ReadAhead(level.source, names[start:stop])
        first = start
        for number in range(start, stop):
            try:
                self._walk.revisit(level.source)
            except OSError:
                pass  # said below
            else:
                if small.take_known(level.source, names[number], before.record.row(number), ahead):
                    if small.are_many:
                        self._add_known(small, level, leaf, before, first, number + 1)
                        first = number + 1
                    continue
            self._add_known(small, level, leaf, before, first, number)
            self._read_named(level, leaf, names[number])
            first = number + 1
        self._add_known(small, level, leaf, before, first, stop)

    def _add_known(self, small: SmallFiles, level: Level, leaf: Leaf, before: Before, start: int, stop: int) -> None:
        """Put files into the archive that were read, the entries [start, stop) of ``before``."""
        if start == stop:
            return
        record, position = before.record, self._encoder.payload_position
        items = bytearray(record.part(start, stop)[0])
        lengths, names = record.lengths[start:stop].astype(np.int64), record.names[start:stop]
        places = np.cumsum(lengths) - REFERENCE_FROM_END
        sizes = read_references(items, places)[:, 1].copy()
        offsets = in_a_row(sizes) + position
        write_offsets(items, places, offsets)
        size = small.add_known(items, names, lengths.tolist(), sizes.tolist())
        leaf.copied(before, start, stop, items, offsets)
        if self._journal is not None:
            for number, offset in enumerate(offsets.tolist(), start):
                row = record.row(number)
                if leaf.proves(row):
                    self._journal.add(row, level.source.features, ROW.unpack(row)[1], offset)
        self._tally.encoded(stop - start)
        self._tally.has_read(size)

    def _read_named(self, level: Level, leaf: Leaf, name: bytes) -> None:
        """The same for a file of which no more is at hand than its name."""
        try:
            self._walk.revisit(level.source)
            entry = level.source.look(name)
            if not st.S_ISREG(entry.stat.st_mode):
                raise Replaced
            self.add(level, leaf, entry)
        except OSError as error:
            self._tally.cannot(level.source, name, error)
