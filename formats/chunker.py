"""Where a stream is cut into chunks (spec change-detection.md 1 and 2; the hash itself is in buzhash.py).

Plain rule, with minimum = average / 4 and maximum = average * 4, n counting the bytes of the chunk so far:

    cut after a byte if n == maximum, or n >= minimum and the rolling hash passes its test;
    the hash starts anew with every chunk; what is left at the end of the stream is a chunk of any size.

A test is made only where the window of 64 bytes lies in the chunk, so the new start of the hash changes nothing: where
the hash passes is a property of the stream, and only the part from minimum - 64 on of each chunk has to be looked at.

Payload rule (ours: the original's cuts depend on how the data arrives, any cut within the limits is valid). The writer
suggests the offsets where files begin. Let c be the length of the chunk by the plain rule, but with a minimum of 3/4 of
the average and a test that passes four times as often:

    cut at the first suggestion o (counted from the start of the chunk) with c <= o <= c + average / 4 and o < maximum,
    and where there is none, cut at c. The end of the stream ends the search for both.

So cuts follow the content always. They depend on the data and the suggestions alone, and are known when
min(c + average / 4 + 1, maximum) bytes of the chunk are there. The other minimum and test keep the mean size, and leave
a fifth of the stream to be hashed (the plain rule: three quarters). Sizes differ less, so that a small change costs one
chunk and hardly more. The price: streams that have shifted by any amount meet again after 2 to 3 chunks (the plain
rule: 1.5). The numbers are in bench/cuts.py.

Where files are small, chunks are smaller too. Let ``small`` be an eighth of the average, but at least 64 KiB:

    cut at the first suggestion o < c, at least 3/4 of small, where the hash passes between o - small / 128 and o; its
    test passes as often as that of the plain rule for an average of small / 128: 3 times in 2 such windows.

Between small files nearly every cut is one of these, between large ones none, and next to nothing is hashed for them.
They are for the next backup: one that takes over the chunks of unchanged files must split a chunk, or read it again,
where one of its files has changed. With 1 % of 46,000 files (407 MB) changed a night it reads 3 % of the bytes, and its
stream is 3.5 times as long as the tree at most; with chunks of 4 MiB 10 % and 12 times (bench/churn.py).
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from formats.buzhash import BLOCK, NO_CANDIDATES, CandidateScanner

SMALLEST_AVERAGE = 64 * 1024
LARGEST_AVERAGE = 4 * 1024 * 1024

# The payload rule's window; bench/cuts.py compares others.
PAYLOAD_MINIMUM = 6  # eighths of the average
PAYLOAD_DENSITY = 4  # how many times as often as by the plain rule the test passes
PAYLOAD_REACH = 2  # eighths of the average, behind the cut of the hash, in which a suggestion is taken
SMALL_SHARE = 8  # of the average: one in so many is what chunks of small files have
BORDER_SHARE = 128  # of a chunk of small files: one in so many of its bytes is looked at before a border

_DONE_AT_MOST = 4096  # suggestions

Bytes = bytes | bytearray | memoryview | NDArray[np.uint8]


def _check_average(average: int) -> None:
    if not SMALLEST_AVERAGE <= average <= LARGEST_AVERAGE or average & (average - 1):
        raise ValueError(f"average chunk size is no power of two from 64 KiB to 4 MiB: {average}")


class HashCutter:
    """Cuts where the hash passes, and at the maximum. Sizes are bytes; ``scanner`` decides how often it passes."""

    def __init__(self, minimum: int, maximum: int, scanner: CandidateScanner) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self._scanner = scanner
        self.restart()

    def restart(self) -> None:
        """Forget everything: a chunk ended by a decision from outside, the next begins where the next scan starts."""
        self._scanned = self.minimum - 1  # positions of the chunk below this one are done
        self._hits = NO_CANDIDATES  # where the hash passed, at or after the first position that counts

    def scan(self, chunk: Bytes, final: bool = False) -> int:
        """The length of the chunk at the start of ``chunk``, or 0 when more data is needed to tell.

        ``chunk`` is all of the stream from the start of the current chunk on, contiguous; it grows from call to call,
        and no byte is looked at twice. After a result other than 0 the next call is about the bytes that follow the
        cut. ``final``: no more data will come, the result is at most len(chunk), and 0 only when that is empty.
        """
        length = self.find(chunk) or (len(chunk) if final else 0)
        if length:
            self.move(length)
        return length

    def find(self, chunk: Bytes) -> int:
        """As ``scan`` without ``final``, but stays at the current chunk."""
        end = min(len(chunk), self.maximum)
        if self._scanned < end and not self._hits.size:
            data = np.frombuffer(chunk, dtype=np.uint8)
            while self._scanned < end and not self._hits.size:
                stop = min(self._scanned + BLOCK, end)
                self._hits = self._scanner.candidates(data, self._scanned, stop)
                self._scanned = stop
        if self._hits.size:
            return int(self._hits[0]) + 1
        return self.maximum if len(chunk) >= self.maximum else 0

    def advance(self, size: int) -> None:
        """As ``restart``: where a chunk lies in the stream does not matter."""
        self.restart()

    def move(self, length: int) -> None:
        """The current chunk ends after ``length`` bytes (1 to maximum, all of them seen by ``find``)."""
        first = self.minimum - 1
        self._scanned = max(self._scanned - length, first)
        if self._hits.size:  # the rest of the last block's hits
            self._hits = self._hits[np.searchsorted(self._hits, length + first) :] - length


class Chunker(HashCutter):
    """Cuts a stream by the plain rule; ``minimum``, ``average`` and ``maximum`` are bytes.

    ``average``: a power of two from SMALLEST_AVERAGE to LARGEST_AVERAGE, else ValueError.
    """

    def __init__(self, average: int) -> None:
        _check_average(average)
        super().__init__(average // 4, average * 4, CandidateScanner(average))
        self.average = average


def small_chunk(average: int) -> int:
    """The size that chunks of small files are to have, bytes; at most ``average``."""
    return min(average, max(average // SMALL_SHARE, SMALLEST_AVERAGE))


class PayloadChunker:
    """Cuts a payload stream by the payload rule. ``average`` as for Chunker, ``small`` is a power of two."""

    def __init__(self, average: int, small: int | None = None) -> None:
        _check_average(average)
        small = small_chunk(average) if small is None else small
        self._borders = _Borders(small) if small < average else None
        scanner = CandidateScanner(average // PAYLOAD_DENSITY)
        self._cutter = HashCutter(average // 8 * PAYLOAD_MINIMUM, average * 4, scanner)
        self._reach = average // 8 * PAYLOAD_REACH
        self.minimum = self._cutter.minimum
        self.average = average
        self.maximum = self._cutter.maximum
        self._start = 0  # stream offset of the current chunk
        self._seen = 0  # bytes of it that were in the last call of scan
        self._suggestions: list[int] = []
        self._first = 0  # those before this one are done with

    def suggest(self, *offsets: int) -> None:
        """Files begin at these offsets of the stream.

        Offsets never decrease. A suggestion must be made before bytes beyond it are scanned.
        """
        self._suggestions += offsets

    def scan(self, chunk: Bytes, final: bool = False) -> int:
        """As HashCutter.scan."""
        self._seen = len(chunk)
        length = self._find(chunk, final)
        if length:
            self._cutter.move(length)
            if self._borders is not None:
                self._borders.restart()
            self._start += length
            self._seen -= length
        return length

    def advance(self, size: int) -> None:
        """As ``restart``, and then the stream moves on by ``size`` bytes that are not scanned (injected chunks)."""
        self.restart()
        self._start += size

    def restart(self) -> None:
        """A cut was forced from outside at the end of the bytes that were last given to ``scan``."""
        self._cutter.restart()
        if self._borders is not None:
            self._borders.restart()
        self._start += self._seen
        self._seen = 0

    def _find(self, chunk: Bytes, final: bool) -> int:
        plain = self._cutter.find(chunk)
        reached = self._start + (plain or len(chunk) + 1)
        border = self._border(chunk, reached)
        if border:
            return border
        if not plain:
            return len(chunk) if final else 0
        limit = min(plain + self._reach + 1, self.maximum)
        following = self._suggestions[self._first] if self._first < len(self._suggestions) else None
        suggested = limit if following is None else following - self._start
        if suggested < limit and suggested <= len(chunk):
            return suggested
        # Without a suggestion in range, one can still come until the bytes up to the limit are there.
        is_settled = final or len(chunk) >= limit or (following is not None and suggested >= limit)
        return plain if is_settled else 0

    def _border(self, chunk: Bytes, reached: int) -> int:
        """Where the chunk ends between small files, before the stream offset ``reached``; 0: nowhere. Suggestions
        before ``reached`` are done with then."""
        suggestions, first = self._suggestions, self._first
        last = bisect_left(suggestions, reached, first)
        if self._borders is not None:
            for number in range(bisect_left(suggestions, self._start + self._borders.minimum, first, last), last):
                border = suggestions[number] - self._start
                if self._borders.accepts(chunk, border):
                    self._first = number
                    return border
        self._first = last
        if last > _DONE_AT_MOST:
            del suggestions[:last]
            self._first = 0
        return 0


class _Borders:
    """Decides where chunks end between small files."""

    def __init__(self, small: int) -> None:
        self.minimum = small // 8 * PAYLOAD_MINIMUM
        self._window = small // BORDER_SHARE
        self._scanner = CandidateScanner(self._window)
        self.restart()

    def restart(self) -> None:
        """A new chunk begins."""
        self._scanned = 0  # positions of the chunk below this one are done; 0: no border was tested
        self._hits = NO_CANDIDATES  # where the hash passed, at or after the first border that was tested

    def accepts(self, chunk: Bytes, border: int) -> bool:
        """Whether the chunk ends at ``border``, at least ``minimum``, all bytes up to which are there. Borders must not
        decrease, and after one that was accepted ``restart`` follows."""
        first = border - self._window
        data = np.frombuffer(chunk, dtype=np.uint8)
        if not self._scanned:  # most borders pass: one place is enough, so look from the end
            self._scanned = border
            starts = range(border - BLOCK, first - BLOCK, -BLOCK)
            return any(self._scanner.candidates(data, max(at, first), at + BLOCK).size for at in starts)
        while self._scanned < border:  # whole blocks, even beyond the border: the next ones may come soon
            at = max(self._scanned, first)
            self._scanned = min(at + BLOCK, len(chunk))
            self._hits = np.append(self._hits, self._scanner.candidates(data, at, self._scanned))
        before = self._hits[: np.searchsorted(self._hits, border)]
        return bool(before.size and before[-1] >= first)
