"""Whom held entries belong to: what is done with them when it is decided whether their contents are taken over."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from archiver.backup.directory import Before, Child, Leaf, Level
from archiver.backup.holding import Moved, Owner, Segment, Span
from archiver.source.walk import SourceEntry
from formats.wire import Buffer

if TYPE_CHECKING:
    from archiver.backup.archive import TreeArchiver


def held(owner: Owner, before: Before, start: int, stop: int) -> Segment:
    """The entries [start, stop) of an old directory, or leaf."""
    items, lengths, kinds = before.record.part(start, stop)
    return Segment(owner, items, lengths, kinds, before.base(start, stop), before.shifts(start, stop))


class Part(NamedTuple):
    """Entries of ``before``, a part of a leaf, from ``first`` on: they are as they were and follow each other still."""

    archiver: TreeArchiver
    level: Level
    leaf: Leaf
    before: Before
    first: int

    def kept(self, start: int, stop: int, items: Buffer, moved: Moved, span: Span | None) -> None:
        record, start, stop = self.before.record, self.first + start, self.first + stop
        if stop - start == record.count and self.leaf.draft is None and self.level.copies_table:
            self.level.table = record.table
            self.archiver.encoder.add_encoded(items, (), (), span)
        else:
            names, lengths = record.names[start:stop], record.lengths[start:stop].tolist()
            self.archiver.encoder.add_encoded(items, names, lengths, span)
        self.leaf.copied(self.before, start, stop, items, moved)
        self.archiver.tally.took_over(self.before.count_files(start, stop))

    def read(self, start: int, stop: int) -> None:
        self.leaf.begin_draft()
        self.archiver.files.read_known(self.level, self.leaf, self.before, self.first + start, self.first + stop)


class Whole(NamedTuple):
    """A directory in which nothing has changed, without directories in it. While all of it stays it is one entry."""

    archiver: TreeArchiver
    level: Level
    child: Child

    def kept(self, start: int, stop: int, items: Buffer, moved: Moved, span: Span | None) -> None:
        archiver, before, child = self.archiver, self.level.before, self.child
        assert before is not None
        record = before.record
        if stop - start < record.count:
            self._part(start).kept(start, stop, items, moved, span)
            self._end_after(stop)
            return
        archiver.encoder.add_directory(child.entry.name, record.own, items, record.table, span)
        child.leaf.directory(child.entry.name, child.row, child.number)
        archiver.keep(before.number, before.moved(moved))
        archiver.tally.took_over(before.count_files(0, record.count))

    def read(self, start: int, stop: int) -> None:
        self._part(start).read(start, stop)
        self._end_after(stop)

    def _part(self, start: int) -> Part:
        """Its entries, once it is known that not all of them stay; ``start`` is the one whose turn it is."""
        level, before = self.level, self.level.before
        assert before is not None
        if start == 0:
            level.leaf = level.whole_leaf(before)
            self.archiver.start(level, self.child)
        return Part(self.archiver, level, level.leaf, before, 0)

    def _end_after(self, stop: int) -> None:
        assert self.level.before is not None
        if stop == self.level.before.record.count:
            self.archiver.end(self.level, self.level.leaf)


class One(NamedTuple):
    """A file, held."""

    archiver: TreeArchiver
    level: Level
    leaf: Leaf
    entry: SourceEntry
    row: bytes

    def kept(self, start: int, stop: int, items: Buffer, moved: Moved, span: Span | None) -> None:
        archiver, name = self.archiver, self.entry.name
        position = archiver.encoder.add_encoded(items, (name,), (len(items),), span)
        self.leaf.add(b"f", name, self.row, items)
        archiver.tally.took_over(1)
        archiver.files.may_be_linked(self.level.source, name, self.entry.stat, position)

    def read(self, start: int, stop: int) -> None:
        self.archiver.files.read_again(self.level, self.leaf, self.entry)
