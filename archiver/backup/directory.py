"""What a run knows of a directory: how it was in the run before, and the record that is made of it now.

While nothing in it is found changed, a directory needs no new record. It gets a draft from the first change on, with
what came before taken from the old record. All of this happens in the order in which the archive is written.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from siphashc import siphash

from archiver.backup.holding import Moved
from archiver.backup.reuse import Bools
from archiver.core.row import ROW, file_row, signed
from archiver.source.metadata import Features
from archiver.source.walk import Looked, SourceDirectory, SourceEntry
from archiver.store.catalog.catalog import Catalog, Newest
from archiver.store.catalog.record import (
    HAS_DIRECTORIES,
    NO_SELECTION,
    NO_TIME,
    NOWHERE,
    SPLIT_FROM,
    Draft,
    Layout,
    Record,
    leaves,
    read_references,
    reference_places,
    write_offsets,
)
from archiver.store.catalog.writer import RunWriter
from formats.pxar.goodbye import HASH_KEY, build
from formats.wire import Buffer

RACY = 2 * 10**9  # ns; a file that changed so shortly before it was looked at may change again without a trace
_LEAST_SPLIT = SPLIT_FROM // 2
_FILE = ord("f")
_KEY = struct.Struct("<Q")
_DIRECTORY, _HARDLINK = ord("d"), ord("h")


class Before:
    """A directory, or a leaf, as it was in the run before: its number there, record, and where its contents are."""

    def __init__(self, number: int, record: Record, layout: Layout) -> None:
        self.number = number
        self.record = record
        self.layout = layout

    @property
    def is_placed(self) -> bool:
        """Whether it is known where its contents are."""
        return self.layout.base > 0 or _FILE not in self.record.kinds

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """Of each file."""
        record = self.record
        places = reference_places(record.lengths.astype(np.int64), record.kinds)
        return self.layout.offsets(read_references(record.items, places)[:, 1])

    def count_files(self, start: int, stop: int) -> int:
        """Among the entries [start, stop)."""
        return self.record.kinds.count(_FILE, start, stop)

    def moved(self, moved: Moved) -> Layout:
        """Where the contents are when all of them were moved by so much, or are at these offsets now."""
        if not self.layout.base:
            return NOWHERE
        if isinstance(moved, int):
            return Layout(self.layout.base + moved, self.layout.jumps)
        places = reference_places(self.record.lengths.astype(np.int64), self.record.kinds)
        return Layout.of(moved, read_references(self.record.items, places)[:, 1])

    def files(self, start: int, stop: int) -> slice:
        """The numbers among all files of those among the entries [start, stop)."""
        kinds = self.record.kinds
        first = kinds.count(_FILE, 0, start)
        return slice(first, first + kinds.count(_FILE, start, stop))

    def offsets(self, start: int, stop: int) -> NDArray[np.int64]:
        """Of the files among the entries [start, stop)."""
        return self._offsets[self.files(start, stop)]

    def base(self, start: int, stop: int) -> int:
        """The first of them; 0 when there is none."""
        if start == 0:
            return self.layout.base
        offsets = self.offsets(start, stop)
        return int(offsets[0]) if len(offsets) else 0

    def shifts(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """How far these files are from where they were if they followed the first of them; None: not at all."""
        if not self.layout.jumps:
            return None
        shifts = self._shifts[self.files(start, stop)]
        return shifts - shifts[0] if len(shifts) else None

    @cached_property
    def _shifts(self) -> NDArray[np.int64]:
        """Of each file."""
        return self.layout.shifts(0, self.record.kinds.count(_FILE))


class PreviousRun:
    """The newest run of a catalog. ``trusted``: its rows were made under the same conditions as the ones made now."""

    def __init__(self, catalog: Catalog, newest: Newest, csum: str, *, trusted: bool) -> None:
        self.trusted = trusted
        self._csum = csum
        self._catalog = catalog
        self._newest = newest

    def is_of(self, time: int, csum: bytes) -> bool:
        """Whether it is of that snapshot, and was made of the same entries."""
        return (self._newest.time, self._csum) == (time, csum.hex())

    def find(self, key: int) -> Before | None:
        number = self._newest.find(key)
        record = self._catalog.load(self._newest.place(number)) if number >= 0 else None
        return Before(number, record, self._newest.layout(number)) if record is not None else None

    def names(self, record: Record) -> list[bytes] | None:
        """All names of a directory; None when not all of its leaves can be read."""
        if not record.is_split:
            return record.names
        names: list[bytes] = []
        for key, _ in record.leaves:
            leaf = self.find(key)
            if leaf is None:
                return None
            names += leaf.record.names
        return names

    def number(self, key: int) -> int:
        """Of the directory with this key; -1 when there was none."""
        return self._newest.find(key)

    def is_at(self, number: int, key: int) -> bool:
        """Whether the record ``number`` is that of ``key``."""
        return self._newest.key(number) == key


def row_of(stat: os.stat_result, features: Features, *, stable: bool) -> bytes:
    """The row of a file; without inode and change time where they prove nothing."""
    if not stable or stat.st_dev != features.device:
        return ROW.pack(0, stat.st_size, signed(stat.st_mtime_ns), 0)
    return file_row(stat)


def key_of(row: bytes) -> int:
    """The key of the record of a directory with this row."""
    key: int = _KEY.unpack_from(row, 16)[0]
    return key


def without_times(row: bytes) -> bytes:
    """A row that no file will be equal to."""
    inode, size, _, _ = ROW.unpack(row)
    return ROW.pack(inode, size, NO_TIME, 0)


class Run(NamedTuple):
    """The names [start, stop) of a leaf are the entries of ``part`` from ``first`` on."""

    start: int
    stop: int
    part: Before
    first: int


class Child(NamedTuple):
    """A directory to be entered; ``number``: of its entry in the old leaf where that is copied, else -1."""

    entry: SourceEntry
    leaf: Leaf
    row: bytes
    number: int

    @property
    def key(self) -> int:
        return key_of(self.row)


class Leaf:
    """Some names of a directory that follow each other: all of them, but in a split directory.

    ``parts``: where in the run before its entries may be. ``same``: the one that has exactly its names, if any.
    """

    __slots__ = ("_done", "_racy", "draft", "first", "key", "parts", "same")

    def __init__(self, key: int, first: bytes, parts: list[Before], same: Before | None, now_ns: int) -> None:
        self.key = key
        self.first = first
        self.parts = parts
        self.same = same
        self.draft: Draft | None = None if same is not None else Draft()
        self._done: list[tuple[int, int, Moved]] = []  # entries of ``same`` that were put into the archive as they were
        self._racy = now_ns - RACY

    @property
    def count(self) -> int:
        """Of the entries that its record has."""
        if self.draft is not None:
            return len(self.draft.names)
        return self.same.record.count if self.same is not None else 0

    def find(self, name: bytes) -> tuple[Before, int] | None:
        """Where the entry ``name`` was before."""
        for part in self.parts:
            number = part.record.place.get(name)
            if number is not None:
                return part, number
        return None

    def runs(self, names: list[bytes], rows: Sequence[bytes], eligible: Bools | None) -> list[Run]:
        """The entries that have the rows they had, in order; those that follow each other in one part as here together.

        No directories, nor names of a file that had several. ``eligible`` (n,): which ones to take, None: all of them.
        """
        here = np.frombuffer(b"".join(rows), "<i8").reshape(-1, 4)
        source = np.full(len(names), -1)  # which part an entry is in
        numbers = np.full(len(names), -1)  # its number there
        for place, part in enumerate(self.parts):
            if not part.is_placed or not part.record.count:
                continue
            record = part.record
            if part is self.same:
                found = np.arange(len(names))
            else:
                found = np.array([record.place.get(name, -1) for name in names], np.int64)
            was = np.frombuffer(record.rows, "<i8").reshape(-1, 4)[found]
            kinds = np.frombuffer(record.kinds, np.uint8)[found]
            is_same = (found >= 0) & (was == here).all(axis=1) & (here[:, 3] != 0)  # a change time of 0 proves nothing
            is_same &= (kinds != _DIRECTORY) & (kinds != _HARDLINK)
            source[is_same], numbers[is_same] = place, found[is_same]
        if eligible is not None:
            source[~eligible] = -1
        taken = np.flatnonzero(source >= 0)
        begins = np.ones(len(taken), np.bool_)
        follows = (np.diff(taken) == 1) & (np.diff(numbers[taken]) == 1) & (np.diff(source[taken]) == 0)
        begins[1:] = ~follows
        starts = taken[begins]
        lengths = np.diff(np.flatnonzero(begins), append=len(taken))
        columns = (column.tolist() for column in (starts, starts + lengths, source[starts], numbers[starts]))
        return [Run(start, stop, self.parts[part], first) for start, stop, part, first in zip(*columns, strict=True)]

    def copied(self, part: Before, start: int, stop: int, items: Buffer, moved: Moved) -> None:
        """The entries [start, stop) of one of its parts are in the archive, as ``items``."""
        if self.draft is None and part is self.same:
            self._done.append((start, stop, moved))
        else:
            self.begin_draft().add_all(part.record, start, stop, items)

    def directory(self, name: bytes, row: bytes, number: int) -> None:
        """A directory was entered; ``number``: of its entry in ``same``."""
        if self.draft is None:
            self._done.append((number, number + 1, 0))
        else:
            self.draft.add(b"d", name, row, b"")

    def add(self, kind: bytes, name: bytes, row: bytes, item: Buffer) -> None:
        """Another entry. Its times are kept unless it changed just now: then it may change again without a trace."""
        _, _, mtime, ctime = ROW.unpack(row)
        is_settled = (ctime or mtime) <= self._racy
        self.begin_draft().add(kind, name, row if is_settled else without_times(row), item)

    def add_files(self, names: list[bytes], rows: list[bytes], items: list[bytes]) -> list[bool]:
        """Files, each as by ``add``; which of them are proven to be the same by their rows (``proves``)."""
        racy, joined = self._racy, b"".join(rows)
        proven = [0 != ctime <= racy for _, _, _, ctime in ROW.iter_unpack(joined)]
        if not all(proven):
            settled = [(ctime or mtime) <= racy for _, _, mtime, ctime in ROW.iter_unpack(joined)]
            rows = [row if is_settled else without_times(row) for row, is_settled in zip(rows, settled, strict=True)]
        self.begin_draft().add_files(names, rows, items)
        return proven

    def proves(self, row: bytes) -> bool:
        """Whether a file with this row will be the same: its change time is known, and not of just now."""
        time: int = ROW.unpack(row)[3]
        return time != 0 and time <= self._racy

    def begin_draft(self) -> Draft:
        """The draft; from now on there is one."""
        if self.draft is None:
            self.draft = Draft()
            done, self._done = self._done, []
            for start, stop, moved in done:
                assert self.same is not None
                self.draft.add_all(self.same.record, start, stop, self._placed(start, stop, moved))
        return self.draft

    def _new_offsets(self, start: int, stop: int, moved: Moved) -> NDArray[np.int64]:
        assert self.same is not None
        return moved if not isinstance(moved, int) else self.same.offsets(start, stop) + moved

    def _placed(self, start: int, stop: int, moved: Moved) -> bytes:
        """The items of entries that were put into the archive."""
        assert self.same is not None
        items, lengths, kinds = self.same.record.part(start, stop)
        placed = bytearray(items)
        places = reference_places(np.frombuffer(lengths, "<u4").astype(np.int64), kinds)
        write_offsets(placed, places, self._new_offsets(start, stop, moved))
        return bytes(placed)

    def complete(self) -> Layout | None:
        """Where its contents are now, when all of it is as it was; else None, and there is a draft."""
        same = self.same
        if self.draft is not None or same is None:
            return None
        if sum(stop - start for start, stop, _ in self._done) != same.record.count:
            self.begin_draft()
            return None
        kinds = same.record.kinds
        moves = [moved for start, stop, moved in self._done if _FILE in kinds[start:stop]]
        if not moves:
            return NOWHERE
        first = moves[0]
        if isinstance(first, int) and all(isinstance(moved, int) and moved == first for moved in moves):
            return same.moved(first)
        return same.moved(np.concatenate([self._new_offsets(*done) for done in self._done]))


class Level:
    """A directory of the tree that is being archived; ``own``: its encoded attributes.

    ``is_moved``: its entries have other paths than in the run before.
    """

    __slots__ = (
        "_finished",
        "_now_ns",
        "_recorded",
        "before",
        "is_doubtful",
        "is_moved",
        "is_same",
        "is_split",
        "key",
        "leaf",
        "looked",
        "own",
        "source",
        "stable",
        "table",
    )

    def __init__(self, source: SourceDirectory, key: int, *, stable: bool, now_ns: int) -> None:
        self.source = source
        self.key = key
        self.stable = stable and source.fd >= 0  # inode numbers and change times prove something here
        self.before: Before | None = None
        self.is_moved = True
        self.own = b""
        self.is_same = False  # attributes, and how its names are chosen, are as in ``before``
        self.table: bytes | None = None  # the old goodbye table, when it is still the right one
        self.is_split = False
        self.is_doubtful = False  # something about its attributes could not be read
        self.leaf: Leaf  # the one that is visited
        self.looked: Looked | None = None  # what is in it, if it was looked at already
        self._now_ns = now_ns
        self._finished: list[tuple[int, bytes]] = []  # leaves of a split directory
        self._recorded = 0  # entries of its finished leaves

    def row(self, stat: os.stat_result) -> bytes:
        """That of a file in it."""
        return row_of(stat, self.source.features, stable=self.stable)

    @property
    def copies_table(self) -> bool:
        """Whether the goodbye table is the old one when all entries are."""
        before = self.before
        return (
            before is not None
            and self.source.parent is not None  # the root's table ends otherwise
            and not self.is_split
            and len(self.own) == len(before.record.own)
            and bool(before.record.table)
        )

    def split(self, previous: PreviousRun | None) -> Iterator[tuple[Leaf, list[bytes]]]:
        """The leaves of its names, and these; one at a time is in memory."""
        names, before = self.source.names, self.before
        was_split = before is not None and before.record.is_split
        self.is_split = len(names) > (_LEAST_SPLIT if was_split else SPLIT_FROM)
        known = before.record.leaves if before is not None and was_split else []
        if not self.is_split:
            parts = [before] if before is not None and not was_split else _parts(previous, known, names)
            same = before if before is not None and not was_split and before.record.names == names else None
            yield (self.whole_leaf(same) if same is not None else Leaf(self.key, b"", parts, None, self._now_ns)), names
            return
        for key, start, stop in leaves(self.key, names):
            part = names[start:stop]
            parts = [before] if before is not None and not was_split else _parts(previous, known, part)
            same = parts[0] if len(parts) == 1 and was_split and parts[0].record.names == part else None
            if same is not None and previous is not None and not previous.is_at(same.number, key):
                same = None
            yield Leaf(key, part[0], parts, same, self._now_ns), part

    def whole_leaf(self, same: Before) -> Leaf:
        """The leaf of a directory that is not split and has the names it had."""
        return Leaf(self.key, b"", [same], same, self._now_ns)

    # -- its record ----------------------------------------------------------------------------------------------------

    def end_leaf(self, leaf: Leaf, writer: RunWriter) -> None:
        """A leaf of a split directory is complete."""
        self._tell_names(leaf, writer)
        layout = leaf.complete()
        if layout is not None and leaf.same is not None:
            writer.keep(leaf.same.number, layout)
        else:
            writer.put(leaf.key, *leaf.begin_draft().encode())
        self._finished.append((leaf.key, leaf.first))
        self._recorded += leaf.count

    def end(self, leaf: Leaf | None, writer: RunWriter) -> None:
        """The directory is complete; ``leaf``: its only one if it is not split."""
        if leaf is None:
            writer.put(self.key, self._head(Draft()).encode_split(self._finished), NOWHERE)
            return
        self._tell_names(leaf, writer)
        layout = leaf.complete()
        if layout is not None and self.is_same and self.before is not None:
            writer.keep(self.before.number, layout)
            return
        self._recorded += leaf.count
        draft = self._head(leaf.begin_draft())
        writer.put(self.key, *draft.encode(_table(draft) if self.source.parent is not None else b""))

    def _tell_names(self, leaf: Leaf, writer: RunWriter) -> None:
        if leaf.draft is None and not self.is_moved:
            return
        assert leaf.draft is not None or leaf.same is not None
        names = leaf.draft.names if leaf.draft is not None else leaf.same.record.names if leaf.same is not None else []
        new = names if self.is_moved else [name for name in names if leaf.find(name) is None]
        if new:
            writer.names(self.source.path.lstrip(b"/"), new)

    def _head(self, draft: Draft) -> Draft:
        """Fill in what the record says of the directory itself."""
        source = self.source
        draft.own = self.own
        if self.stable and not self.is_doubtful and source.stat.st_ctime_ns <= self._now_ns - RACY:
            draft.inode, draft.mtime = source.stat.st_ino, signed(source.stat.st_mtime_ns)
            draft.ctime = signed(source.stat.st_ctime_ns)
            is_whole = self._recorded == len(source.names)  # else the next run is to look for what was left out
            draft.selection = source.selection if is_whole and not source.decided else NO_SELECTION
        return draft


def _parts(previous: PreviousRun | None, known: list[tuple[int, bytes]], names: list[bytes]) -> list[Before]:
    """The leaves that may hold some sorted ``names``; ``known``: key and first name of all there are."""
    if previous is None or not names:
        return []
    first = max(bisect_right(known, names[0], key=_first_name) - 1, 0)
    last = bisect_right(known, names[-1], key=_first_name)
    found = (previous.find(key) for key, _ in known[first:last])
    return [part for part in found if part is not None]


def _first_name(leaf: tuple[int, bytes]) -> bytes:
    return leaf[1]


def _table(draft: Draft) -> bytes:
    """The goodbye table of a directory whose entries are all where the draft has them; none for others."""
    if draft.flags & HAS_DIRECTORIES or b"h" in draft.kinds:
        return b""
    children = array("Q")
    at = len(draft.own)
    for name, length in zip(draft.names, draft.lengths, strict=True):
        children.extend((siphash(HASH_KEY, name), at, length))
        at += length
    return build(children, at, 0)
