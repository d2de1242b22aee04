"""Unchanged files, held back until it is decided whether their chunks are taken over (spec change-detection.md 5).

Chunks are taken over whole, so it does not pay for every file; which ones is known when their neighbours are. Entries
that come after a held file wait behind it: an archive is written in order. What is decided against is read again, and
files that have changed wait for their turn too: the decision needs to know of them.

What is held are encoded entries, a whole directory of them at a time where nothing in it has changed. The payload
references of a window are moved to their new places in one go, and its entries written as they lie.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from archiver.backup.reference import Reference
from archiver.backup.reuse import injections, plan, runs
from archiver.backup.streams import Stream
from archiver.store.catalog.record import read_references, reference_places, write_offsets
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.encoder import Encoder
from formats.wire import Buffer

_AT_MOST = 8192  # entries and segments held, some 4 KB each at worst; larger windows give nearly the same plan
_INJECTED_AT_ONCE = 1 << 16  # entries of an index that are numbers of Python
_FILE = ord("f")
TO_BE_READ = -1

Action = Callable[[], object]
Moved = int | NDArray[np.int64]  # by how much contents were moved, or the new offset of each file
Span = tuple[int, int]  # where contents that are referred to begin and end


class Owner(Protocol):
    """Whom the entries of a segment belong to, numbered from 0."""

    def kept(self, start: int, stop: int, items: Buffer, moved: Moved, span: Span | None) -> None:
        """The entries [start, stop) stay: encoded, with their new references. ``items`` are valid during the call."""

    def read(self, start: int, stop: int) -> None:
        """The entries [start, stop), files all, are to be read again."""


class Segment(NamedTuple):
    """Encoded entries: ``items`` of the given ``lengths`` (u32 each) and ``kinds`` (a byte each).

    Contents begin at ``base`` in the previous stream (TO_BE_READ: a file that has changed), one file's behind the
    other's, but for ``shifts``: how far each is from there.
    """

    owner: Owner
    items: bytes
    lengths: bytes
    kinds: bytes
    base: int
    shifts: NDArray[np.int64] | None = None


class Holding:
    """The queue of one archive."""

    def __init__(self, reference: Reference, encoder: Encoder, stream: Stream, average: int) -> None:
        self._reference = reference
        self._encoder = encoder
        self._stream = stream
        self._average = average
        self._queue: list[Segment | Action] = []
        self._entries = 0
        self._links: set[bytes] = set()
        self._injected_to = -1  # payload position behind the chunks injected last
        self._last = (-1, 0)  # the index entry among them that came last, and where it starts in the new stream
        self.injected = 0  # bytes of injected chunks
        self.referenced = 0  # bytes of them that files refer to, headers included

    def hold(self, segment: Segment, link: bytes | None = None) -> None:
        """``link``: what other names of the one file in it are told by."""
        self._queue.append(segment)
        self._entries += 1 + len(segment.kinds)  # also that of an empty directory takes memory
        if link is not None:
            self._links.add(link)
        if self._entries >= _AT_MOST:
            self.flush()

    def holds(self, link: bytes) -> bool:
        """Whether another name of the file is held."""
        return link in self._links

    def then(self, action: Action) -> None:
        """Do ``action`` when everything held before it is in the archive: at once when nothing is."""
        if not self._queue:
            action()
            return
        self._queue.append(action)
        self._entries += 1
        if self._entries >= _AT_MOST:
            self.flush()

    def flush(self) -> None:
        """Put everything held into the archive."""
        queue, self._queue, self._entries = self._queue, [], 0
        self._links.clear()
        segments = [item for item in queue if isinstance(item, Segment)]
        window: _Window | None = None
        if segments:
            at_end = self._encoder.payload_position == self._injected_to
            window = _Window(segments, self._reference, self._average, self._last[0] if at_end else -1)
        for item in queue:
            if isinstance(item, Segment):
                assert window is not None
                self._place(window, item)
            else:
                item()

    def _place(self, window: _Window, segment: Segment) -> None:
        start, stop = window.next_files()
        count = len(segment.kinds)
        if start == stop:
            segment.owner.kept(0, count, window.next_items(len(segment.items)), 0, None)
            return
        if window.kept(start, stop):
            if not self._has_room(window, start):
                self._make_room(window, start)
            if window.placed_to >= stop:
                self._keep(window, segment, (0, count), (start, stop), len(segment.items))
                return
        self._place_pieces(window, segment, start)

    def _place_pieces(self, window: _Window, segment: Segment, file: int) -> None:
        """Place a segment whose files, the first of which is ``file``, do not all stay, or not in one run."""
        # Entries and files from these numbers on are not told yet: ``size`` bytes of ones that stay, or files to read.
        first, first_file, size, stayed = 0, file, 0, True
        for number, length in enumerate(np.frombuffer(segment.lengths, "<u4").tolist()):
            is_file = segment.kinds[number] == _FILE
            stays = not is_file or window.kept(file, file + 1)
            needs_room = is_file and stays and not self._has_room(window, file)
            if stays != stayed or needs_room:
                self._tell(window, segment, (first, number), (first_file, file), size, stayed)
                first, first_file, size, stayed = number, file, 0, stays
                if needs_room and not self._has_room(window, file):
                    self._make_room(window, file)
            size += length
            file += is_file
        self._tell(window, segment, (first, len(segment.kinds)), (first_file, file), size, stayed)

    def _tell(
        self,
        window: _Window,
        segment: Segment,
        entries: tuple[int, int],
        files: tuple[int, int],
        size: int,
        stayed: bool,
    ) -> None:
        if stayed:
            self._keep(window, segment, entries, files, size)
        elif entries[0] < entries[1]:
            window.next_items(size)
            segment.owner.read(*entries)

    def _keep(
        self, window: _Window, segment: Segment, entries: tuple[int, int], files: tuple[int, int], size: int
    ) -> None:
        """Some entries of a segment stay, with some files, ``size`` bytes of items."""
        if entries[0] == entries[1]:
            return
        if files[0] == files[1]:
            segment.owner.kept(*entries, window.next_items(size), 0, None)
            return
        self.referenced += window.bytes(*files)
        segment.owner.kept(*entries, window.next_items(size), window.moved(*files), window.span(*files))

    def _has_room(self, window: _Window, file: int) -> bool:
        """Whether the chunks of a kept file were put into the stream, and nothing since."""
        return file < window.placed_to and self._encoder.payload_position == self._injected_to

    def _make_room(self, window: _Window, file: int) -> None:
        """Put the chunks of a kept file and of the rest of its run into the stream."""
        entries, bases = window.injections(file)
        window.place(file, self._inject(entries, int(bases[0])) + bases)

    def _inject(self, entries: NDArray[np.intp], first: int) -> int:
        """Put chunks of the previous archive into the stream; where the first of them starts. ``first``: how far into
        that the first file begins."""
        encoder = self._encoder
        origin = encoder.payload_position
        last, start = self._last
        if origin == self._injected_to and entries[0] == last and start + first >= encoder.references_end:
            origin = start  # the chunk is still the last one of the stream
            entries = entries[1:]
        for at in range(0, len(entries), _INJECTED_AT_ONCE):
            for entry in entries[at : at + _INJECTED_AT_ONCE].tolist():
                digest, size = self._reference.chunk(entry)
                self._last = entry, encoder.payload_position
                self._stream.inject(digest, size)
                encoder.inject(size)
                self.injected += size
        self._injected_to = encoder.payload_position
        return origin


class _Window:
    """The files of some segments as arrays, n of them; entries are taken out in order."""

    def __init__(self, segments: list[Segment], reference: Reference, average: int, injected: int) -> None:
        self._previous = reference.payload
        self._items = bytearray().join([segment.items for segment in segments])
        self._view = memoryview(self._items)
        lengths = np.frombuffer(b"".join([segment.lengths for segment in segments]), "<u4").astype(np.int64)
        self._places = reference_places(lengths, b"".join([segment.kinds for segment in segments]))
        counts = np.array([segment.kinds.count(_FILE) for segment in segments], np.int64)
        firsts = np.cumsum(counts) - counts
        self._ranges = iter(zip(firsts.tolist(), (firsts + counts).tolist(), strict=True))
        self._sizes = read_references(self._items, self._places)[:, 1] + HEADER_SIZE
        behind = np.zeros(len(self._sizes) + 1, np.int64)  # where the files were if all followed each other
        np.cumsum(self._sizes, out=behind[1:])
        self._total = behind.tolist()
        bases = np.array([segment.base for segment in segments], np.int64)
        self._offsets = behind[:-1] + np.repeat(bases - behind[firsts], counts)
        for first, count, segment in zip(firsts.tolist(), counts.tolist(), segments, strict=True):
            if segment.shifts is not None:
                self._offsets[first : first + count] += segment.shifts
        reusable = np.repeat(bases != TO_BE_READ, counts)
        keep = plan(self._offsets, self._sizes, reusable, self._previous, average, injected)
        self._kept = np.concatenate(([0], np.cumsum(keep))).tolist()
        self._run_ends = np.zeros(len(keep), np.int64)
        for start, end in runs(keep, self._offsets, self._sizes):
            self._run_ends[start:end] = end
        self._new = np.zeros(len(keep), np.int64)  # new offsets of the files that were placed
        self._moved = 0  # by how much those placed last were, if all by the same
        self._breaks: list[int] = []  # those among them that moved otherwise than the one before
        self.placed_to = 0
        self._at = 0

    def next_files(self) -> tuple[int, int]:
        """The range of the files of the next segment."""
        return next(self._ranges)

    def next_items(self, length: int) -> memoryview:
        """The bytes of the next entries. Must be taken after their references were placed."""
        start = self._at
        self._at = end = start + length
        return self._view[start:end]

    def kept(self, start: int, stop: int) -> bool:
        """Whether all of these files stay."""
        kept: bool = self._kept[stop] - self._kept[start] == stop - start
        return kept

    def bytes(self, start: int, stop: int) -> int:
        total: int = self._total[stop] - self._total[start]
        return total

    def injections(self, file: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        run = slice(file, int(self._run_ends[file]))
        return injections(self._offsets[run], self._sizes[run], self._previous)

    def place(self, file: int, offsets: NDArray[np.int64]) -> None:
        """The files from ``file`` on have these offsets now."""
        stop = file + len(offsets)
        self._new[file:stop] = offsets
        write_offsets(self._items, self._places[file:stop], offsets)
        moved = offsets - self._offsets[file:stop]
        self._moved = int(moved[0])
        self._breaks = (file + 1 + np.flatnonzero(moved[1:] != moved[:-1])).tolist()
        self.placed_to = stop

    def moved(self, start: int, stop: int) -> Moved:
        """By how much these files were moved, or where they are now if not all of them by the same."""
        if not self._breaks:
            return self._moved
        if bisect_left(self._breaks, start + 1) != bisect_left(self._breaks, stop):
            return self._new[start:stop].copy()
        return int(self._new[start] - self._offsets[start])

    def span(self, start: int, stop: int) -> Span:
        last = stop - 1
        return self._new.item(start), self._new.item(last) + self._total[stop] - self._total[last]
