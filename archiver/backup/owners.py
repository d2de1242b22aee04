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
    """Entries [start, stop) of ``before``, a part of a leaf: they are as they were, and follow each other still."""

    archiver: TreeArchiver
    level: Level
    leaf: Leaf
    before: Before
    start: int
    stop: int

    def all_kept(self, items: Buffer, moved: Moved, span: Span | None) -> None:
        record, start, stop = self.before.record, self.start, self.stop
        if self.leaf.draft is None and self.level.copies_table:
            self.level.table = record.table
            self.archiver.encoder.add_encoded(items, (), (), span)
        else:
            names, lengths = record.names[start:stop], record.lengths[start:stop].tolist()
            self.archiver.encoder.add_encoded(items, names, lengths, span)
        self.leaf.copied(self.before, start, stop, items, moved)
        self.archiver.took_over(self.before.count_files(start, stop))

    def kept(self, number: int, items: Buffer, span: Span | None) -> None:
        place = self.start + number
        self.leaf.begin_draft()
        self.archiver.encoder.add_encoded(items, (self.before.record.names[place],), (len(items),), span)
        self.leaf.copied(self.before, place, place + 1, items, 0)
        self.archiver.took_over(int(span is not None))

    def read(self, number: int) -> None:
        self.leaf.begin_draft()
        self.archiver.read_named(self.level, self.leaf, self.before.record.names[self.start + number])


class Whole(NamedTuple):
    """A directory in which nothing has changed, without directories in it. While all of it stays it is one entry."""

    archiver: TreeArchiver
    level: Level
    child: Child

    def all_kept(self, items: Buffer, moved: Moved, span: Span | None) -> None:
        archiver, before, child = self.archiver, self.level.before, self.child
        assert before is not None
        record = before.record
        archiver.encoder.add_directory(child.entry.name, record.own, items, record.table, span)
        child.leaf.directory(child.entry.name, child.row, child.number)
        archiver.keep(before.number, before.moved(moved))
        archiver.took_over(before.count_files(0, record.count))

    def kept(self, number: int, items: Buffer, span: Span | None) -> None:
        self._part(number).kept(number, items, span)
        self._end_after(number)

    def read(self, number: int) -> None:
        self._part(number).read(number)
        self._end_after(number)

    def _part(self, number: int) -> Part:
        """Its entries, once it is known that not all of them stay; ``number`` is the one whose turn it is."""
        level, before = self.level, self.level.before
        assert before is not None
        if number == 0:
            level.leaf = level.whole_leaf(before)
            self.archiver.start(level, self.child)
        return Part(self.archiver, level, level.leaf, before, 0, before.record.count)

    def _end_after(self, number: int) -> None:
        assert self.level.before is not None
        if number == self.level.before.record.count - 1:
            self.archiver.end(self.level, self.level.leaf)


class One(NamedTuple):
    """An unchanged file, held."""

    archiver: TreeArchiver
    level: Level
    leaf: Leaf
    entry: SourceEntry
    row: bytes

    def all_kept(self, items: Buffer, moved: Moved, span: Span | None) -> None:
        archiver, name = self.archiver, self.entry.name
        position = archiver.encoder.add_encoded(items, (name,), (len(items),), span)
        self.leaf.add(b"f", name, self.row, items)
        archiver.took_over(1)
        archiver.may_be_linked(self.level.source, name, self.entry.stat, position)

    def kept(self, number: int, items: Buffer, span: Span | None) -> None:
        self.all_kept(items, 0, span)

    def read(self, number: int) -> None:
        self.archiver.read_again(self.level, self.leaf, self.entry)
