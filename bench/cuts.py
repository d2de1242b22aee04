"""Which window of chunk sizes the payload rule should have (formats/chunker.py): ``python -m bench.cuts``.

A window is a minimum, in eighths of the average, and a test that passes N times as often (xN) as that of PBS, whose own
window is 2/8 x1; tests are matched so that the mean size stays near the average. The reach is how far behind the cut of
the hash, in eighths again, the beginning of a file is taken instead.

Where the hash passes is real (programs, a tree of small files) or drawn (random bytes); then the streams are edited,
cut anew as a whole, and the old bytes that are stored again are counted, in averages: 1.00 is one chunk. In files:
100 bytes put in, up to 16 MiB put in (shift), 100 bytes taken out, 64 KiB overwritten, scattered pages of 8 KiB
overwritten; in trees: one file added, deleted, rewritten, moved.

Average 4 MiB, 500 edits of each kind. CPU: of a first backup of 1 GiB random and 1 GiB programs, seconds.

                          random               programs             /usr/share
    window  hashed  CPU   usual shift  mean    usual shift  mean    add  delete rewrite move   mean
    2/8 x1    73 %    -    1.42  1.49  0.92     1.25  1.33  0.86    1.29   1.32   1.27  2.72   1.19
    3/8 x1    64 %    -    1.47  1.61  1.04     1.31  1.44  0.99    1.39   1.43   1.36  2.88   1.36
    4/8 x2    40 % 11.0    0.94  1.28  0.83     1.03  1.41  0.87    1.00   0.97   0.97  2.01   0.98
    5/8 x2    34 % 10.8    1.03  1.64  0.95     1.14  1.74  1.00    1.12   1.11   1.10  2.24   1.07
    6/8 x2    30 %    -    1.14  1.94  1.08     1.26  2.00  1.15    1.19   1.19   1.19  2.41   1.21
    6/8 x4    18 %  9.8    0.94  3.17  0.92     0.97  2.46  0.95    1.07   0.97   0.99  2.00   0.97   chosen
    7/8 x4    16 %  9.6    1.02  4.34  1.04     1.11  3.44  1.07    1.13   1.10   1.10  2.20   1.13
    7/8 x8     9 %    -    0.96  7.11  0.96     0.98 10.24  0.97    1.12   1.05   0.98  1.99   1.01

6/8 x4 hashes half of what 5/8 x2 did and a quarter of PBS's, and stores the least or nearly so after all usual changes:
sizes differ little, and an edit rarely meets the short part of a chunk where a cut is decided. Only where much is put
into a large file does it store one or two averages more, once. Beyond it (7/8) little is saved and shifts get dear.
The reach makes no difference from 1/8 to 1/2 (below 2 % everywhere), so it stays 1/4.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from bench import datasets, trees
from formats.buzhash import BLOCK, WINDOW, CandidateScanner
from formats.chunker import PAYLOAD_DENSITY, PAYLOAD_MINIMUM, PAYLOAD_REACH, HashCutter

Ints = NDArray[np.int64]

EIGHTHS = 8
LARGEST = 4  # times the average
DENSITIES = (1, 2, 4, 8)  # how many times as often as PBS's the test passes
PASSES = 1.5  # of PBS's test in ``average`` bytes
WINDOWS = ((2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (6, 4), (7, 4), (7, 8))  # minimum in eighths of the average, density
REACHES = (1, 2, 4)  # in eighths of the average
HEADER = 16  # before each file in the stream
PIECE = 1 << 20
SPEED_BYTES = 256 << 20
RANDOM_BYTES = 1 << 30
PROGRAM_BYTES = 1 << 30
PAGE = 8192


@dataclass(frozen=True, slots=True)
class Rule:
    """The payload rule with another window. ``minimum`` and ``reach`` are eighths of the average."""

    minimum: int
    density: int
    reach: int

    def __str__(self) -> str:
        return f"{self.minimum}/8 x{self.density}"


CURRENT = Rule(PAYLOAD_MINIMUM, PAYLOAD_DENSITY, PAYLOAD_REACH)


@dataclass(frozen=True, slots=True)
class Stream:
    """Of ``size`` bytes; where the test of each density passes (offsets behind the byte), and where files begin."""

    size: int
    passes: dict[int, Ints]
    borders: Ints


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an edited stream: ``length`` bytes from offset ``source`` of the old one, or new ones (None)."""

    source: int | None
    length: int
    is_file: bool = False  # new bytes that are a file


def cut(stream: Stream, rule: Rule, average: int) -> Ints:
    """Where chunks end, and 0 before them; as PayloadChunker for the rule that it has."""
    minimum, reach, maximum = average * rule.minimum // EIGHTHS, average * rule.reach // EIGHTHS, average * LARGEST
    passes, borders, size = stream.passes[rule.density], stream.borders, stream.size
    ends = [0]
    start = 0
    while start < size:
        i = int(passes.searchsorted(start + minimum))
        plain = min(int(passes[i]) if i < passes.size else size, start + maximum, size)
        i = int(borders.searchsorted(plain))
        border = int(borders[i]) if i < borders.size else size + reach + 1
        start = border if border <= plain + reach and border < start + maximum else plain
        ends.append(start)
    return np.array(ends)


def hashed(ends: Ints, rule: Rule, stream: Stream, average: int) -> float:
    """The share of the stream that is looked at by the rolling hash."""
    minimum = average * rule.minimum // EIGHTHS
    passes = stream.passes[rule.density]
    found = np.append(passes, stream.size)[passes.searchsorted(ends[:-1] + minimum)]
    looked = np.clip(np.minimum(found, ends[:-1] + average * LARGEST) - ends[:-1] - minimum, 0, None)
    return float(looked.sum() / stream.size)


def scan(pieces: Iterable[bytes], average: int) -> tuple[int, dict[int, Ints]]:
    """(size, passes) of a stream that comes in pieces."""
    scanners = {density: CandidateScanner(average // density) for density in DENSITIES}
    dense = scanners[DENSITIES[-1]]
    found: dict[int, list[int]] = {density: [] for density in DENSITIES}
    before = 0  # bytes of the stream that are not in the buffer any more
    lo = WINDOW - 1
    buffer = bytearray()
    size = 0

    def look() -> None:
        nonlocal before
        data = np.frombuffer(bytes(buffer), dtype=np.uint8)
        for first in range(lo, data.size, BLOCK):
            for hit in dense.candidates(data, first, min(first + BLOCK, data.size)).tolist():
                for density, scanner in scanners.items():
                    if density == DENSITIES[-1] or scanner.candidates(data, hit, hit + 1).size:
                        found[density].append(before + hit + 1)
        kept = min(WINDOW - 1, len(buffer))
        before += len(buffer) - kept
        del buffer[: len(buffer) - kept]

    for piece in pieces:
        size += len(piece)
        buffer += piece
        if len(buffer) >= PIECE:
            look()
    look()
    return size, {density: np.array(offsets, np.int64) for density, offsets in found.items()}


def fresh(size: int, average: int, rng: np.random.Generator) -> dict[int, Ints]:
    """Where the tests pass in random bytes; each denser test passes where the others do."""
    densest = DENSITIES[-1]
    where = np.sort(rng.integers(0, size, rng.poisson(size * densest * PASSES / average)))
    marks = rng.integers(0, densest, where.size)
    return {density: where[marks < density] for density in DENSITIES}


def random_stream(size: int, average: int, rng: np.random.Generator) -> Stream:
    return Stream(size, fresh(size, average, rng), np.zeros(1, np.int64))


def program_stream(average: int, size: int) -> Stream:
    """Executables and libraries, one after the other, as one large file."""

    def pieces() -> Iterator[bytes]:
        for path in datasets.programs(datasets.PROGRAM_DIRECTORIES, size):
            yield path.read_bytes()

    length, passes = scan(pieces(), average)
    return Stream(length, passes, np.zeros(1, np.int64))


def tree_stream(root: Path, average: int) -> Stream:
    """The files below ``root`` in the order of an archive, with their headers."""
    borders: list[int] = []

    def pieces() -> Iterator[bytes]:
        at = 0
        for path in sorted(Path(entry.path) for entry in trees.walk(root) if entry.is_file):
            try:
                data = path.read_bytes()
            except PermissionError:
                continue
            borders.append(at)
            at += HEADER + len(data)
            yield len(data).to_bytes(HEADER, "little") + data

    size, passes = scan(pieces(), average)
    return Stream(size, passes, np.array(borders, np.int64))


def edited(stream: Stream, segments: Sequence[Segment], average: int, rng: np.random.Generator) -> Stream:
    """The stream that the segments make. Where the hash sees a joint, it passes nowhere."""
    passes: dict[int, list[Ints]] = {density: [] for density in DENSITIES}
    borders: list[Ints] = []
    at = 0
    for segment in segments:
        source, length = segment.source, segment.length
        if source is None:
            for density, where in fresh(length, average, rng).items() if length else ():
                passes[density].append(where + at)
            if segment.is_file:
                borders.append(np.array([at], np.int64))
        else:
            first = source + WINDOW if at else source
            for density, where in stream.passes.items():
                lo, hi = where.searchsorted((first, source + length), "right")
                passes[density].append(where[lo:hi] + (at - source))
            lo, hi = stream.borders.searchsorted((source, source + length))
            borders.append(stream.borders[lo:hi] + (at - source))
        at += length
    return Stream(at, {density: np.concatenate(parts) for density, parts in passes.items()}, np.concatenate(borders))


def stored_again(old: Ints, new: Ints, segments: Sequence[Segment]) -> int:
    """Old bytes in those chunks of the edited stream (they end at ``new``) that the old one did not have."""
    lengths = np.array([segment.length for segment in segments])
    sources = np.array([-1 if segment.source is None else segment.source for segment in segments])
    ends = np.cumsum(lengths)
    starts, stops = new[:-1], new[1:]
    inside = ends.searchsorted(starts, "right")
    known = (sources[inside] >= 0) & (stops <= ends[inside])
    shift = sources[inside] - (ends - lengths)[inside]
    place = np.minimum(old.searchsorted(starts + shift), old.size - 2)
    known &= (old[place] == starts + shift) & (old[place + 1] == stops + shift)
    return int((stops - starts)[~known].sum() - lengths[sources < 0].sum())


Edit = Callable[[Stream, np.random.Generator], list[Segment]]


def _without(stream: Stream, lo: int, hi: int, *between: Segment) -> list[Segment]:
    """``between`` in the place of bytes lo to hi."""
    parts = [Segment(0, lo), *between, Segment(hi, stream.size - hi)]
    return [part for part in parts if part.length]


def insert(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """A hundred bytes are put in somewhere."""
    at = int(rng.integers(stream.size))
    return _without(stream, at, at, Segment(None, 100))


def shift(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """Up to 16 MiB are put in somewhere, so that the chunks behind begin anywhere."""
    at = int(rng.integers(stream.size))
    return _without(stream, at, at, Segment(None, int(rng.integers(1, 16 << 20))))


def delete(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """A hundred bytes are taken out somewhere."""
    at = int(rng.integers(stream.size - 100))
    return _without(stream, at, at + 100)


def overwrite(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """64 KiB somewhere get other bytes."""
    length = 64 << 10
    at = int(rng.integers(stream.size - length))
    return _without(stream, at, at + length, Segment(None, length))


def pages(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """64 pages of 8 KiB within a GiB get other bytes."""
    count = stream.size // PAGE
    parts, at = [], 0
    for page in np.sort(rng.choice(count, max(stream.size >> 24, 1), replace=False)).tolist():
        parts += [Segment(at, page * PAGE - at), Segment(None, PAGE)]
        at = (page + 1) * PAGE
    parts.append(Segment(at, stream.size - at))
    return [part for part in parts if part.length]


def _some_file(stream: Stream, rng: np.random.Generator) -> tuple[int, int]:
    """Where a file begins and ends."""
    number = int(rng.integers(stream.borders.size))
    end = stream.borders[number + 1] if number + 1 < stream.borders.size else stream.size
    return int(stream.borders[number]), int(end)


def add_file(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """A file as large as some other appears."""
    lo, hi = _some_file(stream, rng)
    at, _ = _some_file(stream, rng)
    return _without(stream, at, at, Segment(None, hi - lo, True))


def delete_file(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    return _without(stream, *_some_file(stream, rng))


def rewrite_file(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """A file gets other contents of its size."""
    lo, hi = _some_file(stream, rng)
    return _without(stream, lo, hi, Segment(None, hi - lo, True))


def rename_file(stream: Stream, rng: np.random.Generator) -> list[Segment]:
    """A file moves to another place."""
    lo, hi = _some_file(stream, rng)
    at, _ = _some_file(stream, rng)
    if at <= lo:
        parts = [Segment(0, at), Segment(lo, hi - lo), Segment(at, lo - at), Segment(hi, stream.size - hi)]
    else:
        parts = [Segment(0, lo), Segment(hi, at - hi), Segment(lo, hi - lo), Segment(at, stream.size - at)]
    return [part for part in parts if part.length]


FILE_EDITS: dict[str, Edit] = {
    "insert": insert,
    "shift": shift,
    "delete": delete,
    "overwrite": overwrite,
    "pages": pages,
}
TREE_EDITS: dict[str, Edit] = {"add": add_file, "delete": delete_file, "rewrite": rewrite_file, "rename": rename_file}


def again(
    stream: Stream, edits: dict[str, Edit], rules: Sequence[Rule], average: int, trials: int, rng: np.random.Generator
) -> dict[Rule, dict[str, float]]:
    """Old bytes stored again after an edit of each kind, mean of the trials, in averages (``pages``: for each)."""
    before = {rule: cut(stream, rule, average) for rule in rules}
    found: dict[Rule, dict[str, float]] = {rule: {} for rule in rules}
    for name, edit in edits.items():
        amounts: dict[Rule, list[float]] = {rule: [] for rule in rules}
        for _ in range(trials):
            segments = edit(stream, rng)
            changed = edited(stream, segments, average, rng)
            count = max(sum(segment.source is None for segment in segments), 1)
            for rule in rules:
                bytes_again = stored_again(before[rule], cut(changed, rule, average), segments)
                amounts[rule].append(bytes_again / average / count)
        for rule in rules:
            found[rule][name] = mean(amounts[rule])
    return found


def speed(rule: Rule, average: int, data: NDArray[np.uint8]) -> float:
    """MB/s (10^6 bytes) of one thread over data in memory that arrives in pieces, the best of three runs."""
    seconds = []
    for _ in range(3):
        scanner = CandidateScanner(average // rule.density)
        cutter = HashCutter(average * rule.minimum // EIGHTHS, average * LARGEST, scanner)
        started, start = time.perf_counter(), 0
        for end in range(PIECE, data.size + PIECE, PIECE):
            while length := cutter.scan(data[start:end], final=end >= data.size):
                start += length
        seconds.append(time.perf_counter() - started)
    return data.size / min(seconds) / 1e6


def report(average: int, trials: int, root: Path, rng: np.random.Generator) -> Iterator[str]:
    """The lines of the tables."""
    rules = [Rule(minimum, density, reach) for minimum, density in WINDOWS for reach in REACHES]
    data = rng.integers(0, 256, SPEED_BYTES, dtype=np.uint8)
    rates = {window: speed(Rule(*window, CURRENT.reach), average, data) for window in WINDOWS}
    del data
    for name, stream, edits in (
        ("random", random_stream(RANDOM_BYTES, average, rng), FILE_EDITS),
        ("programs", program_stream(average, PROGRAM_BYTES), FILE_EDITS),
        (str(root), tree_stream(root, average), TREE_EDITS),
    ):
        shown = rules if stream.borders.size > 1 else [rule for rule in rules if rule.reach == CURRENT.reach]
        amounts = again(stream, edits, shown, average, trials, rng)
        yield f"{name}, {stream.size / 2**20:.0f} MiB"
        yield f"{'window':8} {'reach':>5} {'MB/s':>6} {'chunks':>6} {'mean':>5} {'hashed':>6} " + " ".join(
            f"{edit:>9}" for edit in (*edits, "all")
        )
        for rule in shown:
            ends = cut(stream, rule, average)
            rate = rates[rule.minimum, rule.density]
            kinds = amounts[rule]
            yield (
                f"{rule!s:8} {rule.reach:3}/8 {rate:6.0f} {ends.size - 1:6}"
                f" {stream.size / (ends.size - 1) / average:5.2f} {hashed(ends, rule, stream, average):6.0%} "
                + " ".join(f"{value:9.2f}" for value in (*kinds.values(), mean(kinds.values())))
                + (" *" if rule == CURRENT else "")
            )
        yield ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cuts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--average", type=int, default=4096, metavar="KIB", help="chunk size; default: 4096")
    parser.add_argument("--trials", type=int, default=300, metavar="N", help="edits of each kind; default: 300")
    parser.add_argument("--tree", type=Path, default=datasets.SMALL, metavar="DIR", help="default: /usr/share")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    average = options.average << 10
    if average < 1 or average & (average - 1) or options.trials < 1:
        parser.error("--average is a power of two, --trials at least 1")
    for line in report(average, options.trials, options.tree, np.random.default_rng(options.seed)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
