"""Which unchanged files a metadata run takes over by reference, and how (spec change-detection.md 5.5, 5.6, 5.10).

The contents of an unchanged file lie in the previous payload stream. A whole chunk of that stream can be injected into
the new one, and the file then refers to its old bytes there, nothing is read. The format asks only that references
strictly increase in archive order. Each injection costs an index entry, and forces a cut before it; the dead bytes of a
chunk stay stored. So there is a decision to make: a file that refers (is *kept*) saves reading, a file encoded anew
frees the chunk that it was in.

A *run* is a row of kept files whose old bytes lie in the same order; each of its chunks is injected once, bytes between
the files do no harm. A *piece* is the part of a run in one entry of the previous index. Files are given up until:

* each piece saves reading LEAST_PIECE of a chunk of small files, FILE_COST for each file counted in, or is nearly all
  of a chunk; that one must not be tiny, unless the files on both sides are kept and there is nothing to merge it with;
* each chunk is live by LEAST_LIVE, all its pieces in all copies of it together. Of a file larger than chunks what lies
  in whole chunks counts for its ends, half each: it is not read again for the few bytes of its tail.

Giving up more leaves fewer reasons to keep the rest, so the result is the largest set of files that meets both.

The numbers, by bench/churn.py: 46,000 files, 407 MB, single files rewritten anywhere for 100 nights, the worst case;
read on average, new in the store in all, longest stream, most stored for one snapshot (times the tree):

    rate a night   ours: read   new  stream  stored   PBS: read   new  stream  stored
           0.1 %        0.3 %   0.2     3.3    1.13        45 %    24    1.04    1.04
             1 %          3 %   2.9     3.5    1.23        97 %    72    1.01    1.01
             5 %         13 %    13     3.5    1.22       100 %    98    1.00    1.00
    1 %, in directories  1.6 %  1.8     1.8    1.17        52 %    29    1.03    1.03

The stream gets long because a chunk is injected again behind each file in it that has changed; it is stored once. After
100 nights of 1 % the length is back to 1.3: where changes were, chunks are of about the least piece. Trees of large
files: read and new are the changes themselves, stream and stored 1.01, whatever the numbers are. Read, stream, stored
and index entries with other numbers (and a FILE_COST of 0, for what that does see below), for 60 nights of 1 %:

    1/16, 1/32, 0.5   3.2 %  3.5   1.23   8800
    LEAST_PIECE 1/32  2.3 %  5.0   1.24  11000      1/4    8.8 %   1.5   1.17   4500
    TINY 1/64         2.9 %  3.5   1.23  10300      1/16   3.6 %   3.5   1.24   7400
    LEAST_LIVE 0.3    2.8 %  3.6   1.36   9100      0.7    4.1 %   3.1   1.12   7900

With chunks of 4 MiB for small files too: 10 %, 12, 1.34, 3000 (see formats/chunker.py).

FILE_COST, on /usr/share, where most files are far smaller than the mean of 12 KB, changed by bench/changes.py: files
that are read although they have not changed, and the stream, in the tenth night:

    0    6,600  1.7        1/512  3,300  2.1        1/128    900  2.7
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from formats.chunker import small_chunk

LEAST_PIECE = 1 / 16  # of a chunk of small files: what a piece must save from being read
FILE_COST = 1 / 512  # of a chunk of small files: what could be read while a file is opened
TINY = 1 / 32  # of a chunk of small files: a chunk below is merged with what is encoded anew beside it
NEARLY_ALL = 0.9  # of a chunk
LEAST_LIVE = 0.5  # of a chunk
_ENTRIES_AT_ONCE = 1 << 16
_MOST_ROUNDS = 32  # of giving up files; in practice it is settled after a few

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Previous:
    """The index of the previous payload stream, m entries.

    ``starts`` (m + 1,): offset of each chunk, and the end of the stream; strictly increasing. ``numbers`` (m,): equal
    for equal chunks, and small. ``usable`` (m,): the chunk was seen in the store, so it may be injected.
    """

    starts: Ints
    numbers: NDArray[np.uint32]
    usable: Bools

    def sizes(self, entries: NDArray[np.intp]) -> Ints:
        """Bytes of the chunks of some entries."""
        sizes: Ints = self.starts[entries + 1] - self.starts[entries]
        return sizes

    @cached_property
    def copies(self) -> NDArray[np.float64]:
        """By number: bytes of the chunk and all of its copies."""
        return np.bincount(self.numbers, np.diff(self.starts)).astype(np.float64, copy=False)

    def span(self, offsets: Ints, ends: Ints) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and last entry with bytes of [offset, end), for ranges within the stream.

        A range that ends with a chunk needs no further one (spec 5.6, local note).
        """
        return self.starts.searchsorted(offsets, "right") - 1, self.starts.searchsorted(ends, "left") - 1


def plan(offsets: Ints, sizes: Ints, reusable: Bools, previous: Previous, average: int, injected: int = -1) -> Bools:
    """(n,): which files of a window are referenced; the others are encoded anew.

    The window is a number of consecutive regular files in archive order. ``offsets`` (n,): where the file's header is
    in the previous payload stream, anything if it is not reusable. ``sizes`` (n,): header and contents in bytes.
    ``average``: the chunk size that the streams are made with. ``injected``: the entry that the new stream ends with.
    """
    keep = np.zeros(len(offsets), np.bool_)
    files = np.flatnonzero(reusable & (offsets >= 0) & (sizes > 0) & (offsets <= previous.starts[-1] - sizes))
    if files.size:
        window = _Window(len(keep), files, offsets[files], sizes[files], previous, average, injected)
        keep[files[window.settle()]] = True
    return keep


class _Window:
    """The files of a window that could be referenced. Arrays of shape (k, 2) are about a file's first and last entry;
    for a file in one entry all is said in the first column, and the second has amounts of 0.

    The chunks in which they lie have numbers of their own, so that it does not matter how many there are elsewhere.
    """

    def __init__(
        self,
        count: int,
        files: NDArray[np.intp],
        offsets: Ints,
        sizes: Ints,
        previous: Previous,
        average: int,
        injected: int,
    ) -> None:
        self._injected = injected
        self._count, self._files, self._offsets, self._sizes = count, files, offsets, sizes
        self._previous, self._small = previous, small_chunk(average)
        ends = offsets + sizes
        first, last = previous.span(offsets, ends)
        spans = first != last
        self._entries = np.column_stack((first, last))
        self._inside = np.column_stack(
            (np.minimum(ends, previous.starts[first + 1]) - offsets, np.where(spans, ends - previous.starts[last], 0))
        )
        saved = sizes + FILE_COST * self._small
        self._saved = np.column_stack((saved, np.where(spans, saved, 0)))
        whole_chunks = (sizes - self._inside.sum(axis=1)) / 2
        self._credit = self._inside + np.column_stack((whole_chunks, whole_chunks))
        touched = np.unique(self._entries)
        self._numbers, chunks = np.unique(previous.numbers[touched], return_inverse=True)
        self._chunks = chunks[touched.searchsorted(self._entries)]
        part = slice(int(touched[0]), int(touched[-1]) + 1)
        self._unseen = self._bytes_unseen(part, int(offsets.min()), int(ends.max()))
        unusable = np.zeros(part.stop - part.start + 1, np.uint32)
        np.cumsum(~previous.usable[part], out=unusable[1:])
        self._keep: Bools = unusable[last + 1 - part.start] == unusable[first - part.start]

    def settle(self) -> Bools:
        """(k,): the files that stay after all those are given up that are not worth it."""
        count = -1
        for _ in range(_MOST_ROUNDS):
            if count == (count := int(self._keep.sum())):
                break
            self._give_up_dead_chunks()
            self._give_up_small_pieces()
        return self._keep

    def _bytes_unseen(self, part: slice, start: int, end: int) -> NDArray[np.float64]:
        """By ``_chunks``: bytes of the chunk and its copies outside of [start, end), which the entries in ``part`` have
        bytes of; they may all be live."""
        previous, names = self._previous, self._numbers
        unseen = previous.copies[names]
        for at in range(part.start, part.stop, _ENTRIES_AT_ONCE):
            numbers = previous.numbers[at : min(at + _ENTRIES_AT_ONCE, part.stop)]
            places = np.minimum(names.searchsorted(numbers), len(names) - 1)
            here = np.flatnonzero(names[places] == numbers)
            seen = np.minimum(previous.starts[at + here + 1], end) - np.maximum(previous.starts[at + here], start)
            unseen -= np.bincount(places[here], seen, minlength=len(names))
        return unseen

    def _give_up_dead_chunks(self) -> None:
        kept = self._chunks[self._keep].ravel()
        live = self._unseen + np.bincount(kept, self._credit[self._keep].ravel(), minlength=self._unseen.size)
        is_dead = live[self._chunks] < LEAST_LIVE * self._previous.sizes(self._entries)
        self._keep &= ~is_dead.any(axis=1)

    def _give_up_small_pieces(self) -> None:
        kept = np.flatnonzero(self._keep)
        run = np.cumsum(_begins_run(self._files[kept], self._offsets[kept], self._sizes[kept]))
        entries = self._entries[kept].ravel()  # never decreases within a run: the files of a piece are neighbours
        is_new = np.diff(entries, prepend=-1) != 0
        is_new[::2] |= np.diff(run, prepend=0) != 0
        piece = np.cumsum(is_new) - 1
        saved = np.bincount(piece, self._saved[kept].ravel())
        inside = np.bincount(piece, self._inside[kept].ravel())
        chunk = self._previous.sizes(entries[is_new])
        is_whole = (inside >= NEARLY_ALL * chunk) & ((chunk >= TINY * self._small) | self._is_alone(kept, is_new))
        is_small = (saved < LEAST_PIECE * self._small) & ~is_whole
        if len(kept):  # a piece that the window cuts off goes on in the one before or behind
            is_small[0] &= not (self._files[kept[0]] == 0 and entries[0] == self._injected)
            end = self._offsets[kept[-1]] + self._sizes[kept[-1]]
            is_small[-1] &= not (
                self._files[kept[-1]] == self._count - 1 and end < self._previous.starts[entries[-1] + 1]
            )
        self._keep[kept[is_small[piece].reshape(-1, 2).any(axis=1)]] = False

    def _is_alone(self, kept: NDArray[np.intp], is_new: Bools) -> Bools:
        """Per piece: whether the files before and behind it are kept too (or not in the window)."""
        place = self._files[kept]
        stays = np.zeros(self._count + 2, np.bool_)
        stays[[0, -1]] = True
        stays[place + 1] = True
        first = np.flatnonzero(is_new) // 2
        last = np.flatnonzero(np.roll(is_new, -1)) // 2
        return stays[place[first]] & stays[place[last] + 2]


def runs(keep: Bools, offsets: Ints, sizes: Ints) -> list[tuple[int, int]]:
    """The runs among the files of a window, each as the range [start, stop) of its files, in order."""
    files = np.flatnonzero(keep)
    begins = np.flatnonzero(_begins_run(files, offsets[files], sizes[files]))
    lengths = np.diff(begins, append=len(files))
    return [(start, start + length) for start, length in zip(files[begins].tolist(), lengths.tolist(), strict=True)]


def injections(offsets: Ints, sizes: Ints, previous: Previous) -> tuple[Ints, Ints]:
    """What to inject for the files of one run, and where the files then are.

    Returns the entries of the previous index in order, each once, and for each file (n,) its new offset, counted from
    the start of the first of these chunks.
    """
    first, last = previous.span(offsets, offsets + sizes)
    start, stop = int(first[0]), int(last[-1]) + 1
    used = np.bincount(first - start, minlength=stop - start + 1)
    used -= np.bincount(last - start + 1, minlength=stop - start + 1)
    entries = np.flatnonzero(np.cumsum(used, out=used))
    entries += start
    if len(entries) == stop - start:  # without a gap, and a large file may have millions
        ends = previous.starts[start + 1 : stop + 1] - previous.starts[start]
    else:
        ends = np.cumsum(previous.sizes(entries))
    number = entries.searchsorted(first)
    bases = ends[number] - previous.starts[first + 1] + offsets
    return entries, bases


def _begins_run(files: NDArray[np.intp], offsets: Ints, sizes: Ints) -> Bools:
    """(k,): whether a kept file does not continue the run of the one before; ``files``: their places in the window."""
    begins = np.ones(len(files), np.bool_)
    begins[1:] = (np.diff(files) != 1) | (offsets[1:] < offsets[:-1] + sizes[:-1])
    return begins
