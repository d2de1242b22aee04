"""What is different between two trees: of two snapshots, or of a snapshot and a live directory.

Two runs of one catalog have the records of unchanged directories at the same places, so only the others are compared.
Contents are read on demand alone: files of which the same chunks are used from the same place on are equal unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, Protocol

from archiver.browse.contents import SameContents
from archiver.browse.difference import differences
from archiver.browse.live import LiveNode
from archiver.browse.recorded import Lost
from archiver.browse.view import Node, RecordedNode, RecordedView, View
from archiver.core.row import file_row
from archiver.store.catalog.catalog import Catalog, Place
from archiver.store.catalog.record import HAS_DIRECTORIES, UNSORTED, Record
from formats.patterns import Pattern, PatternList
from formats.pxar.items import Entry

_NEW_CONTENTS = frozenset(("kind", "size", "mtime", "content"))

AnyNode = Any  # each view has nodes of its own kind
Pair = tuple[AnyNode | None, AnyNode | None]
_KEPT = 4  # records; who asks about a directory then asks what is in it
_Finder = Callable[[int], Place | None]


class Change(NamedTuple):
    """``path`` from the root, ``b"/"`` itself; ``what``: see difference.py, and ``content``; empty unless there was an
    entry before and there is one after."""

    path: bytes
    before: Entry | None
    after: Entry | None
    what: tuple[str, ...] = ()

    @property
    def change(self) -> str:
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    @property
    def bytes_added(self) -> int:
        """Of contents that were not there before, as far as the metadata tell."""
        return self._bytes(self.after)

    @property
    def bytes_removed(self) -> int:
        return self._bytes(self.before)

    def _bytes(self, entry: Entry | None) -> int:
        is_new = self.change != "changed" or not _NEW_CONTENTS.isdisjoint(self.what)
        return entry.size if entry is not None and entry.kind == "file" and is_new else 0


class Comparison:
    """Of two trees; one that is None has nothing."""

    def __init__(
        self,
        before: View[Any] | None,
        after: View[Any] | None,
        same: SameContents | None = None,
        excludes: Iterable[Pattern] = (),
    ) -> None:
        """``same`` tells whether two files have the same contents; without it nobody asks. What ``excludes`` fit, and
        all below that, is in neither tree: paths are those that are told."""
        self._before, self._after, self._same = before, after, same
        self._excludes = PatternList(excludes)
        self._runs: _Runs | None = None
        if (
            isinstance(before, RecordedView)
            and isinstance(after, RecordedView)
            and before.tree.catalog is after.tree.catalog
        ):
            self._runs = _Runs(before, after)

    def changes(self, old: Node | None, new: Node | None) -> Iterator[Change]:
        """Between two entries, of each tree one, and all that is below them; in the order of a walk."""
        yield from self._one(b"/", old, new)
        levels = [(b"/", self._below(old, new))]
        while levels:
            above, pairs = levels[-1]
            pair = next(pairs, None)
            if pair is None:
                levels.pop()
                continue
            old, new = pair
            node = old if new is None else new
            assert node is not None
            path = above + node.name
            if self._excludes:
                old, new = self._taken(path, old), self._taken(path, new)
            yield from self._one(path, old, new)
            levels.append((path + b"/", self._below(old, new)))

    def _taken(self, path: bytes, node: AnyNode | None) -> AnyNode | None:
        """Nothing in the place of what is excluded."""
        if node is None or self._excludes.match(path, node.kind == "dir") == "exclude":
            return None
        return node

    def _one(self, path: bytes, old: AnyNode | None, new: AnyNode | None) -> Iterator[Change]:
        if old is not None and new is not None:
            yield from self._both(path, old, new)
        elif old is not None and self._before is not None:
            yield Change(path, self._before.entry(old), None)
        elif new is not None and self._after is not None and self._after.readable(new):
            yield Change(path, None, self._after.entry(new))

    def _both(self, path: bytes, old: AnyNode, new: AnyNode) -> Iterator[Change]:
        before, after = self._before, self._after
        assert before is not None and after is not None
        if self._same is None and _is_as_recorded(old, new):
            return
        if self._runs is not None and old.kind == new.kind == "dir" and self._runs.is_same_directory(old, new):
            return
        first, second = before.entry(old), after.entry(new)
        if "hardlink" in (old.kind, new.kind) and (old.kind != new.kind or first.target != second.target):
            old, new = before.resolved(old) or old, after.resolved(new) or new  # which name comes first may change
            first, second = before.entry(old), after.entry(new)
        if not after.readable(new):
            return
        what = differences(first, second)
        if self._same is not None and first.kind == second.kind == "file":
            same = first.size == second.size and self._same(old, new)
            if not after.readable(new):
                return
            what += () if same else ("content",)
        if what:
            yield Change(path, first, second, what)

    def _below(self, old: AnyNode | None, new: AnyNode | None) -> Iterator[Pair]:
        """The entries of two directories side by side, those that cannot differ left out."""
        old = old if old is not None and old.kind == "dir" else None
        new = new if new is not None and new.kind == "dir" else None
        before, after = self._before, self._after
        if old is not None and new is not None and before is not None and after is not None:
            if self._runs is not None:
                return self._runs.pairs(old, new)
            if not after.readable(new):
                return iter(())
            return _joined(before.ordered(old), after.ordered(new))
        if old is not None and before is not None:
            return ((node, None) for node in before.ordered(old))
        if new is not None and after is not None:
            return ((None, node) for node in after.ordered(new))
        return iter(())


def _is_as_recorded(old: AnyNode, new: AnyNode) -> bool:
    """Whether a live file is the very one that a backup has seen, by inode, size and times."""
    if not (isinstance(old, RecordedNode) and isinstance(new, LiveNode) and old.item is not None):
        return False
    return old.kind == new.kind != "dir" and old.item.row[0] != 0 and old.item.raw_row == file_row(new.source.stat)


def _joined(first: Iterator[AnyNode], second: Iterator[AnyNode]) -> Iterator[Pair]:
    """Two sequences in the order of names side by side."""
    old, new = next(first, None), next(second, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old.name < new.name):
            yield old, None
            old = next(first, None)
        elif old is None or new.name < old.name:
            yield None, new
            new = next(second, None)
        else:
            yield old, new
            old, new = next(first, None), next(second, None)


class _Runs:
    """Two runs of one catalog."""

    def __init__(self, before: RecordedView, after: RecordedView) -> None:
        self._before, self._after = before, after
        self._catalog: Catalog = before.tree.catalog
        self._old, self._new = self._finder(before), self._finder(after)
        self._loaded: dict[Place, Record] = {}

    def _finder(self, view: RecordedView) -> _Finder:
        finder = self._catalog.finder(view.tree.time)
        if finder is None:
            raise Lost
        return finder

    def pairs(self, old: RecordedNode, new: RecordedNode) -> Iterator[Pair]:
        """The entries of two directories that may differ, side by side, and the directories among them."""
        place = self._place(self._old, old.key)
        if place == self._place(self._new, new.key):
            record = self._load(place)
            if not record.is_split:
                return self._inner(record)
        first, second = self._parts(self._old, old.key), self._parts(self._new, new.key)
        if first is None or second is None:
            return _joined(self._before.ordered(old), self._after.ordered(new))
        if len(first) == len(second) == 1:
            record, other = self._load(first[0]), self._load(second[0])
            different = _different_names(record, other)
            if different is not None:
                return _joined(self._before.chosen(record, different), self._after.chosen(other, different))
        common = set(first) & set(second)
        pairs = _joined(self._nodes(self._before, first, common), self._nodes(self._after, second, common))
        return (pair for pair in pairs if not _is_equal(*pair))

    def is_same_directory(self, old: RecordedNode, new: RecordedNode) -> bool:
        """Whether the archives say the same of two directories themselves."""
        place, other = self._place(self._old, old.key), self._place(self._new, new.key)
        return place == other or self._load(place).own == self._load(other).own

    def _inner(self, record: Record) -> Iterator[Pair]:
        """The directories in one that is the same in both runs."""
        if record.flags & HAS_DIRECTORIES:
            for node in self._before.chosen(record):
                yield node, RecordedNode(self._after.tree, node.item)

    def _parts(self, finder: _Finder, key: int) -> list[Place] | None:
        """Where the record of a directory is, or those of its leaves; None when these are in no order."""
        place = self._place(finder, key)
        record = self._load(place)
        if not record.is_split:
            return [place]
        return None if record.flags & UNSORTED else [self._place(finder, leaf) for leaf, _ in record.leaves]

    @staticmethod
    def _place(finder: _Finder, key: int) -> Place:
        place = finder(key)
        if place is None:
            raise Lost
        return place

    def _load(self, place: Place) -> Record:
        record = self._loaded.get(place)
        if record is None:
            record = self._catalog.load(place)
            if record is None:
                raise Lost
            if len(self._loaded) == _KEPT:
                self._loaded.clear()
            self._loaded[place] = record
        return record

    def _nodes(self, view: RecordedView, parts: list[Place], common: set[Place]) -> Iterator[RecordedNode]:
        """The entries; of the records that both have only the directories, in which something may be different."""
        for place in parts:
            record = self._load(place)
            if place not in common:
                yield from view.nodes(record)
            elif record.flags & HAS_DIRECTORIES:
                yield from view.chosen(record)


def _different_names(old: Record, new: Record) -> set[bytes] | None:
    """The names of what is not certainly the same to an archive in two directories; None where that is not to be told
    so, as a name comes twice."""
    if len(old.place) != old.count or len(new.place) != new.count:
        return None
    return {name for name, _, _ in set(_described(old)) ^ set(_described(new))}


def _described(record: Record) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, kind and items of each entry."""
    items, ends = record.items, record.ends
    parts = map(items.__getitem__, map(slice, chain((0,), ends), ends))
    return zip(record.names, record.kinds, parts, strict=True)


def _is_equal(old: RecordedNode | None, new: RecordedNode | None) -> bool:
    """Whether two entries, no directories, are certainly the same to an archive."""
    if old is None or new is None or old.kind != new.kind or old.kind == "dir" or not (old.item and new.item):
        return False
    return old.item.items == new.item.items


class AnyChange(Protocol):
    """A Change, or one of an archive that is no tree: its path is empty."""

    @property
    def path(self) -> bytes: ...
    @property
    def bytes_added(self) -> int: ...
    @property
    def bytes_removed(self) -> int: ...


class Sizes:
    """Bytes of new and gone contents of each directory down to a depth, that of what is below it included."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self.rows: dict[bytes, list[int]] = {}  # path -> [bytes added, bytes removed, entries that differ]

    def add(self, change: AnyChange) -> None:
        parts = change.path.split(b"/")[1:-1][: self._depth]
        for count in range(len(parts) + 1):
            row = self.rows.setdefault(b"/" + b"/".join(parts[:count]) if change.path else b"", [0, 0, 0])
            row[0] += change.bytes_added
            row[1] += change.bytes_removed
            row[2] += 1

    def largest_first(self) -> list[tuple[bytes, int, int, int]]:
        rows = [(path, added, removed, count) for path, (added, removed, count) in self.rows.items()]
        return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))
