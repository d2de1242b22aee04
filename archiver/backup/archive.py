"""One directory tree into one archive: walks the source, encodes entries, has files added (see regular_files.py).

With a reference, the contents of files that are as they were are not read, and directories in which nothing has changed
are copied as a whole from their records (see directory.py, holding.py). What is found is told to the catalog.
"""

from __future__ import annotations

import json
import os
import stat as st
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np

from archiver.backup.contents import Contents
from archiver.backup.directory import Before, Child, Leaf, Level, PreviousRun, Run, key_of
from archiver.backup.hard_links import HardLinks, link_key
from archiver.backup.holding import TO_BE_READ, Action, Holding, Segment
from archiver.backup.journal import Journal
from archiver.backup.owners import One, Part, Whole, held
from archiver.backup.regular_files import RegularFiles
from archiver.backup.small_files import SmallFiles
from archiver.backup.streams import Stream
from archiver.backup.tally import FileCounters, Tally
from archiver.backup.unchanged import Found, Recognizer, Unchanged
from archiver.core.events import Listener
from archiver.core.row import ROW, signed
from archiver.source.ahead import ReadAhead
from archiver.source.metadata import plain
from archiver.source.walk import Looked, SourceDirectory, SourceEntry, Walk, WalkOptions
from archiver.store.catalog.record import HAS_DIRECTORIES, Layout, inode_key, path_key
from archiver.store.catalog.writer import RunWriter
from formats.catalog import CatalogWriter
from formats.pxar.constants import FOUR, HEADER_SIZE, PAYLOAD_REF, REF_SIZE
from formats.pxar.encoder import Encoder, encode_attributes
from formats.pxar.metadata import Metadata, Stat

Compare = Literal["auto", "inode", "metadata"]

_LENGTH = struct.Struct("<I")
_CLI_EXCLUDES = b".pxarexclude-cli"
_DIRECTORY = ord("d")
_NO_ROW = ROW.pack(0, 0, 0, 0)


class TreeArchiver:
    """Archives one source. ``payload`` is None for a version 1 archive, which has its contents in ``archive``.

    ``writer`` is told of every directory, ``journal`` of every file that was read; ``previous`` is the run before.
    ``unchanged`` None: everything is read. ``compare``: whether inode numbers and change times are believed: where the
    file system keeps them, everywhere, or nowhere.
    """

    def __init__(
        self,
        source: str,
        options: WalkOptions,
        archive: Stream,
        payload: Stream | None,
        *,
        listing: CatalogWriter | None,
        counters: FileCounters,
        listener: Listener,
        spill_directory: str,
        now_ns: Callable[[], int],
        compare: Compare,
        writer: RunWriter | None,
        journal: Journal | None,
        previous: PreviousRun | None,
        unchanged: Unchanged | None,
    ) -> None:
        self.tally = Tally(counters, listener)
        self._walk = Walk(source, options, self.tally.report, self._meet)
        self._archive = archive
        self._payload = payload
        self._listing = listing
        self._links = HardLinks(spill_directory)
        self._now_ns = now_ns
        self._writer = writer
        self._journal = journal
        self._previous = previous
        self._unchanged = unchanged
        self._compare = compare
        self._audit = unchanged.audit if unchanged is not None else None
        is_trusted = previous is not None and previous.trusted
        self._recognizer = Recognizer(unchanged, self.tally, is_trusted) if unchanged is not None else None
        self._believes_rows = unchanged is not None and unchanged.has_previous and is_trusted
        self._holding: Holding | None = None
        self._small: SmallFiles | None = None
        self._levels: list[Level] = []
        self._met: Level
        self._next: Child
        self.root = 0  # the key of the root's record
        self.padding = 0  # bytes of the payload stream that no entry refers to

    def run(self) -> None:
        """Archive the whole tree. Raises ArchiverError when the source itself cannot be read."""
        try:
            with self._walk:
                self._run()
        finally:
            self._links.close()

    def _run(self) -> None:
        payload = self._payload
        write_payload = payload.write if payload is not None else None
        self.encoder = Encoder(self._archive.write, write_payload, prelude=self._prelude())
        contents = Contents(self.encoder, self._archive, payload, self.tally)
        if payload is not None:
            self._small = SmallFiles(self.encoder, payload)
        self.files = RegularFiles(
            self._walk,
            self.encoder,
            contents,
            self._small,
            self._links,
            self.tally,
            split=payload is not None,
            journal=self._journal,
            listing=self._listing,
        )
        if self._unchanged is not None and payload is not None:
            self._holding = Holding(self._unchanged.reference, self.encoder, payload, self._unchanged.average)
        self._walk.open_root()
        root = self._met
        self.root = root.key
        self.encoder.start_root(root.own)
        self._levels.append(root)
        visits = [self._visit(root)]
        while visits:
            entry = next(visits[-1], None)
            if entry is None:
                self._close_directory()
                visits.pop()
            elif self._walk.enter(entry.entry) is not None:
                child = self._met
                self.tally.count(1)
                if self._hold_whole(child, entry):
                    self._walk.leave()
                    continue
                self._put(partial(self.start, child, entry))
                if self._listing is not None:
                    self._listing.start_directory(entry.entry.name)
                self._levels.append(child)
                visits.append(self._visit(child))
        self.encoder.finish()
        self.padding = contents.padding
        if self._holding is not None:
            self.padding += self._holding.injected - self._holding.referenced

    def _put(self, action: Action) -> None:
        """Do ``action`` behind whatever is held."""
        if self._holding is None:
            action()
        else:
            self._holding.then(action)

    # -- directories -------------------------------------------------------------------------------------------------

    def _meet(self, source: SourceDirectory) -> None:
        """A directory was opened: what is known of it need not be read."""
        above = self._levels[-1] if self._levels else None
        stable = self._compare == "inode" or (self._compare == "auto" and source.features.stable)
        now_ns = self._now_ns()
        if above is None:
            self._home = source.features.identity
            key = inode_key(self._home, source.stat.st_ino, True) if stable else path_key(b"")
        else:
            key = self._next.key
        level = self._met = Level(source, key, stable=stable, now_ns=now_ns)
        if self._previous is not None:
            self._compare_directory(level, self._previous, above)
        if not level.own:
            self.tally.problems = 0
            level.own = encode_attributes(source.metadata)
            level.is_same = False
            if self.tally.problems:
                level.is_doubtful = True

    def _compare_directory(self, level: Level, previous: PreviousRun, above: Level | None) -> None:
        source = level.source
        found = previous.find(level.key)
        if found is None:
            found = previous.find(path_key(source.path.lstrip(b"/")))
        if found is None:
            return
        level.before = before = found
        level.is_moved = above is not None and not self._was_there(previous, above, before)
        record = before.record
        if (
            self._believes_rows
            and level.stable
            and record.ctime
            and record.inode == source.stat.st_ino
            and record.mtime == source.stat.st_mtime_ns
            and record.ctime == source.stat.st_ctime_ns
        ):
            level.own = record.own
            source.is_known = True
            names = previous.names(record) if record.selection == source.selection else None
            if names is not None:
                level.is_same = not record.is_split
                source.adopt(names)

    def _was_there(self, previous: PreviousRun, above: Level, before: Before) -> bool:
        """Whether the directory that is entered had this path before."""
        if above.is_moved or above.before is None:
            return False
        if self._next.number >= 0:
            return True  # the row that was the same has its key
        found = above.leaf.find(self._next.entry.name)
        if found is None:
            return False
        part, number = found
        return before.number == previous.number(key_of(part.record.row(number)))

    def _hold_whole(self, level: Level, child: Child) -> bool:
        """Hold a directory that was entered as a whole: nothing in it has changed, and no directories are in it."""
        before = level.before
        if self._holding is None or before is None or level.is_moved or not level.is_same:
            return False
        if not level.copies_table or not before.is_placed:
            return False
        record = before.record
        level.looked = looked = level.source.look_at(record.names, partial(self._child_key, level))
        if not self._is_same(level, before, looked):
            return False
        level.looked = None
        self._holding.hold(held(Whole(self, level, child), before, 0, record.count))
        self.tally.count(record.count)
        return True

    def _visit(self, level: Level) -> Iterator[Child]:
        """Archive what is in a directory; gives the directories in it, to be entered."""
        for leaf, names in level.split(self._previous):
            level.leaf = leaf
            looked, level.looked = level.looked, None
            if looked is None or len(looked.stats) != len(names):
                looked = level.source.look_at(names, partial(self._child_key, level))
            if self._is_same(level, leaf.same, looked):
                yield from self._copy(level, leaf, looked)
            else:
                leaf.begin_draft()
                yield from self._each(level, leaf, names, looked)
            if level.is_split and self._writer is not None:
                self._put(partial(level.end_leaf, leaf, self._writer))

    def _child_key(self, level: Level, name: bytes, stat: os.stat_result) -> int:
        """The key of a directory's record, signed as in rows."""
        features = level.source.features
        if level.stable and stat.st_dev == features.device:
            key = inode_key(features.identity, stat.st_ino, features.identity == self._home)
        else:
            key = path_key(level.source.path_of(name).lstrip(b"/"))
        return signed(key)

    def _is_same(self, level: Level, before: Before | None, looked: Looked) -> bool:
        """Whether no entry of a directory, or a leaf, has changed. The cost of a quiet night."""
        return (
            before is not None
            and before.is_placed
            and self._believes_rows
            and level.stable
            and looked.usual
            and b"".join(looked.rows) == before.record.rows
            and (self._audit is None or not self._audit.chooses(before.record.rows))
        )

    def _copy(self, level: Level, leaf: Leaf, looked: Looked) -> Iterator[Child]:
        """Take over entries as they were."""
        assert leaf.same is not None
        same, record = leaf.same, leaf.same.record
        start, kinds = 0, record.kinds
        places = [n for n, kind in enumerate(kinds) if kind == _DIRECTORY] if record.flags & HAS_DIRECTORIES else []
        for number in (*places, record.count):
            self._hold_part(level, leaf, same, start, number)
            if number < record.count:
                stat = looked.stats[number]
                assert stat is not None
                yield self._child(leaf, SourceEntry(record.names[number], stat), looked.rows[number], number)
            start = number + 1

    def _hold_part(self, level: Level, leaf: Leaf, part: Before, start: int, stop: int) -> None:
        """Hold the entries [start, stop) of a part of a leaf, which are as they were."""
        if start < stop:
            assert self._holding is not None
            self._holding.hold(held(Part(self, level, leaf, part, start), part, start, stop))
            self.tally.count(stop - start)

    def _child(self, leaf: Leaf, entry: SourceEntry, row: bytes, number: int) -> Child:
        self._next = Child(entry, leaf, row, number)
        return self._next

    def start(self, level: Level, child: Child) -> None:
        self.encoder.start_directory(child.entry.name, level.own)
        child.leaf.directory(child.entry.name, child.row, child.number)

    def _close_directory(self) -> None:
        level = self._levels[-1]
        is_root = len(self._levels) == 1
        if is_root and self._payload is None:
            self._add_cli_excludes(level)
        if is_root and self._holding is not None:
            self._holding.flush()  # while the walk can still go back
        self._put(partial(self.end, level, None if level.is_split else level.leaf))
        self._levels.pop()
        if not is_root:
            self._walk.leave()
            if self._listing is not None:
                self._listing.end_directory()

    def end(self, level: Level, leaf: Leaf | None) -> None:
        self.encoder.end_directory(level.table)
        if self._writer is not None:
            level.end(leaf, self._writer)

    # -- entries -----------------------------------------------------------------------------------------------------

    def _each(self, level: Level, leaf: Leaf, names: list[bytes], looked: Looked) -> Iterator[Child]:
        """Archive entries one by one, but for those that are as they were."""
        at = 0
        for start, stop, part, first in self._unchanged_runs(level, leaf, names, looked):
            yield from self._changed(level, leaf, names[at:start], looked, at)
            self._hold_part(level, leaf, part, first, first + stop - start)
            at = stop
        yield from self._changed(level, leaf, names[at:], looked, at)

    def _unchanged_runs(self, level: Level, leaf: Leaf, names: list[bytes], looked: Looked) -> list[Run]:
        """The entries whose rows prove that they are as they were."""
        if not self._believes_rows or not level.stable or not leaf.parts:
            return []
        eligible = None
        if not looked.usual:
            device = level.source.features.device
            usual = [stat is not None and stat.st_nlink == 1 and stat.st_dev == device for stat in looked.stats]
            eligible = np.array(usual, np.bool_)
        if self._audit is not None:
            chosen = self._audit.choices(b"".join(looked.rows))
            eligible = ~chosen if eligible is None else eligible & ~chosen
        return leaf.runs(names, looked.rows, eligible)

    def _changed(self, level: Level, leaf: Leaf, names: list[bytes], looked: Looked, first: int) -> Iterator[Child]:
        """Archive entries that are not known; ``first``: number of the first one among all that were looked at."""
        directory, small = level.source, self._small if self._holding is None else None
        ahead = ReadAhead(directory, names, looked.stats[first : first + len(names)])
        read: list[bytes] = []  # rows of the files that ``small`` has
        for number, name in enumerate(names, first):
            stat = looked.stats[number]
            if stat is None:
                continue
            mode = stat[0]
            if small is not None and st.S_ISREG(mode) and stat[3] == 1 and small.take(directory, name, stat, ahead):
                read.append(looked.rows[number] if level.stable else level.row(stat))
                self.tally.count(1)
                if small.are_many:
                    self.files.add_small(small, level, leaf, read)
                continue
            if read and small is not None:
                self.files.add_small(small, level, leaf, read)
            entry = SourceEntry(name, stat)
            if st.S_ISDIR(mode):
                yield self._child(leaf, entry, looked.rows[number], -1)
                continue
            self.tally.count(1)
            if st.S_ISREG(mode):
                if stat.st_nlink > 1:  # whose name it is may have changed while the entries before it were read
                    try:
                        entry = directory.look(name)
                    except OSError as error:
                        self._walk.report_unseen(directory, name, error)
                        continue
                if self._holding is None:
                    self.files.add_carefully(level, leaf, entry)
                else:
                    self._hold(self._holding, level, leaf, entry)
            elif st.S_ISLNK(mode):
                try:
                    target = os.readlink(name, dir_fd=directory.fd)
                except OSError as error:
                    self.tally.cannot(directory, name, error)
                    continue
                add = partial(self.encoder.add_symlink, name, plain(stat), target)
                self._put(partial(self._other, level, leaf, b"l", entry, add))
            elif st.S_ISCHR(mode) or st.S_ISBLK(mode):
                numbers = os.major(stat.st_rdev), os.minor(stat.st_rdev)
                add = partial(self.encoder.add_device, name, plain(stat), *numbers)
                self._put(partial(self._other, level, leaf, b"c" if st.S_ISCHR(mode) else b"b", entry, add))
            else:
                add = partial(self.encoder.add_special, name, plain(stat))
                self._put(partial(self._other, level, leaf, b"p" if st.S_ISFIFO(mode) else b"s", entry, add))
        if read and small is not None:
            self.files.add_small(small, level, leaf, read)

    def _other(self, level: Level, leaf: Leaf, kind: bytes, entry: SourceEntry, add: Callable[[], object]) -> None:
        """An entry without contents."""
        add()
        leaf.add(kind, entry.name, level.row(entry.stat), self.encoder.last)
        self._list(kind, entry.name)

    # -- unchanged files ---------------------------------------------------------------------------------------------

    def _hold(self, holding: Holding, level: Level, leaf: Leaf, entry: SourceEntry) -> None:
        """Hold a file: as one whose contents are there, or one to be read when its turn comes."""
        link = None
        if entry.stat.st_nlink > 1:
            link = link_key(entry.stat)
            if holding.holds(link) or self._links.first(entry.stat) is not None:
                holding.then(partial(self.files.read_again, level, leaf, entry))
                return
        assert self._recognizer is not None
        found = self._recognizer.find(level, leaf, entry)
        if found is None:
            found = Found(_NO_ROW, FOUR.pack(PAYLOAD_REF, REF_SIZE, 0, entry.stat.st_size), TO_BE_READ)
        owner = One(self, level, leaf, entry, found.row)
        segment = Segment(owner, found.item, _LENGTH.pack(len(found.item)), b"f", found.offset)
        holding.hold(segment, link)

    def keep(self, number: int, layout: Layout) -> None:
        """The directory ``number`` of the run before is as it was; its contents lie there now."""
        if self._writer is not None:
            self._writer.keep(number, layout)

    # -- the exclude patterns of the command line --------------------------------------------------------------------

    def _prelude(self) -> bytes | None:
        """spec pxar.md 9"""
        patterns = self._walk.prelude_patterns
        if not patterns or self._payload is None:
            return None
        text = b"".join(pattern.line() for pattern in patterns).decode("utf-8", "replace")
        return json.dumps({"exclude-patterns": text}, separators=(",", ":"), ensure_ascii=False).encode()

    def _add_cli_excludes(self, root: Level) -> None:
        """spec pxar.md 13.4: a generated file, last in the root of a version 1 archive."""
        data = b"".join(pattern.line() for pattern in self._walk.prelude_patterns)
        if not data:
            return
        metadata = Metadata(Stat(st.S_IFREG | 0o600, 0, os.getuid(), os.getgid(), 0, 0))
        self.encoder.start_file(_CLI_EXCLUDES, metadata, len(data))
        self._archive.write(data)
        self.encoder.advance(len(data))
        item = self.encoder.last[:-HEADER_SIZE] + FOUR.pack(PAYLOAD_REF, REF_SIZE, 0, len(data))
        root.leaf.add(b"f", _CLI_EXCLUDES, _NO_ROW, item)
        if self._listing is not None:
            self._listing.add_file(_CLI_EXCLUDES, len(data), 0)

    # -- telling -----------------------------------------------------------------------------------------------------

    def _list(self, kind: bytes, name: bytes) -> None:
        if self._listing is not None:
            self._listing.add(kind, name)
