"""Unchanged files, held back until it is decided whether their chunks are taken over (spec change-detection.md 5).

Chunks are taken over whole, so it does not pay for every file; which ones is known when their neighbours are. Entries
that come after a held file wait behind it: an archive is written in order. What is decided against is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from archiver.backup.reference import Reference
from archiver.backup.reuse import injections, plan, runs
from archiver.backup.streams import Stream
from archiver.source.walk import SourceDirectory, SourceEntry
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.encoder import Encoder
from formats.pxar.metadata import Metadata

_AT_MOST = 8192  # entries held, some 1.5 KB each; the plan is nearly the same with larger windows


class HeldFile(NamedTuple):
    """``offset``: of its payload header in the previous stream."""

    directory: SourceDirectory
    entry: SourceEntry
    metadata: Metadata
    offset: int


Action = Callable[[], object]


class Holding:
    """The queue of one archive. ``read`` encodes a file anew; ``placed`` hears of a file that was taken over, with the
    position of its FILENAME item."""

    def __init__(
        self,
        reference: Reference,
        encoder: Encoder,
        stream: Stream,
        average: int,
        read: Callable[[HeldFile], object],
        placed: Callable[[HeldFile, int], object],
    ) -> None:
        self._reference = reference
        self._encoder = encoder
        self._stream = stream
        self._average = average
        self._read = read
        self._placed = placed
        self._queue: list[HeldFile | Action] = []
        self._links: set[bytes] = set()
        self._injected_to = -1  # payload position behind the chunks injected last
        self._last = (-1, 0)  # the index entry among them that came last, and where it starts in the new stream
        self.injected = 0  # bytes of injected chunks
        self.referenced = 0  # bytes of them that files refer to, headers included

    def hold(self, file: HeldFile, link: bytes | None) -> None:
        """``link``: what other names of the file are told by."""
        self._queue.append(file)
        if link is not None:
            self._links.add(link)
        if len(self._queue) >= _AT_MOST:
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
        if len(self._queue) >= _AT_MOST:
            self.flush()

    def flush(self) -> None:
        """Put everything held into the archive."""
        queue, self._queue = self._queue, []
        self._links.clear()
        files = [item for item in queue if isinstance(item, HeldFile)]
        if not files:
            return
        offsets = np.array([file.offset for file in files], np.int64)
        sizes = np.array([file.entry.stat.st_size + HEADER_SIZE for file in files], np.int64)
        keep = plan(offsets, sizes, np.ones(len(files), np.bool_), self._reference.payload, self._average)
        ends = np.zeros(len(files), np.int64)  # of a kept file's run
        for start, end in runs(keep, offsets, sizes):
            ends[start:end] = end
        number = 0
        bases, first, origin = np.empty(0, np.int64), 0, 0
        for item in queue:
            if not isinstance(item, HeldFile):
                item()
                continue
            if not keep[number]:
                self._read(item)
            else:
                if first + len(bases) <= number or self._encoder.payload_position != self._injected_to:
                    run = slice(number, int(ends[number]))
                    entries, bases = injections(offsets[run], sizes[run], self._reference.payload)
                    first, origin = number, self._inject(entries.tolist())
                size = item.entry.stat.st_size
                offset = origin + int(bases[number - first])
                self._placed(item, self._encoder.add_reference(item.entry.name, item.metadata, size, offset))
                self.referenced += HEADER_SIZE + size
            number += 1

    def _inject(self, entries: list[int]) -> int:
        """Put chunks of the previous archive into the stream; where the first of them starts."""
        encoder = self._encoder
        origin = encoder.payload_position
        if origin == self._injected_to and entries[0] == self._last[0]:
            origin = self._last[1]  # the chunk is still the last one of the stream
            entries = entries[1:]
        for entry in entries:
            digest, size = self._reference.chunk(entry)
            self._last = entry, encoder.payload_position
            self._stream.inject(digest, size)
            encoder.inject(size)
            self.injected += size
        self._injected_to = encoder.payload_position
        return origin
