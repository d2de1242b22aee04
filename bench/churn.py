"""How a store fares when a tree changes a little every night: our reuse planner against PBS's own rule.

Nothing is read or written. A file is a size and the number of its contents, a stream is a row of chunk numbers. Where
the hash passes is drawn once for each contents (a Poisson process), so equal data is cut alike and equal chunks are
found again. Modelled after spec change-detection.md: 2 (cuts), 5.4 to 5.6 (PBS's rule), 5.10 (ours).

All columns are multiples of the tree's own size, except entries (of the payload index) and distinct chunks among them:
read: contents read this night; stored: bytes new in the store this night; sum: the same since the beginning, the first
backup not counted; stream: length of the payload stream; kept: bytes of the distinct chunks of this night's snapshot.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.backup.reuse import Bools, Ints, Previous, injections, plan, runs
from formats.chunker import BORDER_SHARE, PAYLOAD_DENSITY, PAYLOAD_MINIMUM, PAYLOAD_REACH, small_chunk

MIB = 1 << 20
HEADER = 16
WINDOW = 65_536  # files planned at once
DIRECTORY = 16  # files in a row that change together in the clustered kinds


@dataclass
class Tree:
    """Files in archive order, arrays of shape (n,)."""

    contents: Ints  # number of the contents; an appended file keeps it
    sizes: Ints  # header and contents
    offsets: Ints  # in the last night's payload stream
    unchanged: Bools  # since then
    moved: Bools  # since then; PBS looks by path and does not find it

    def take(self, order: NDArray[np.intp]) -> Tree:
        return Tree(*(getattr(self, name)[order] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Segment:
    """Files [start, stop) of the tree: encoded anew, or, with ``entries`` to inject, referenced.

    ``bases`` is the files' new offsets from the first byte of what is injected; ``joins``: that is the last injected
    chunk of the segment before, which ``entries`` does not repeat.
    """

    start: int
    stop: int
    entries: Ints | None = None
    bases: Ints | None = None
    joins: bool = False


Rule = Callable[[Tree, Previous, int], Iterator[Segment]]


class Contents:
    """Where the hash passes in each contents, and a name for equal bytes."""

    def __init__(self, rng: np.random.Generator, average: int) -> None:
        self._rng, self._average = rng, average
        self._passes: dict[int, list[int]] = {}
        self._count = 0

    def new(self, sizes: Ints) -> Ints:
        numbers = np.arange(self._count, self._count + len(sizes))
        self._count += len(sizes)
        self.grow(numbers, np.zeros(len(sizes), np.int64), sizes)
        return numbers

    def grow(self, numbers: Ints, old: Ints, new: Ints) -> None:
        """Contents of ``old`` bytes have ``new`` bytes now."""
        counts = self._rng.poisson((new - old) * 1.5 * BORDER_SHARE / small_chunk(self._average))
        for i in np.flatnonzero(counts):
            where = self._rng.integers(old[i], new[i], counts[i])
            self._passes.setdefault(int(numbers[i]), []).extend(np.sort(where).tolist())

    def passes(self, tree: Tree) -> tuple[Ints, Ints]:
        """Offsets at which the hash passes, counted as if all files followed each other."""
        begins = np.cumsum(tree.sizes) - tree.sizes
        known = self._passes
        found = [
            begin + where
            for begin, number in zip(begins.tolist(), tree.contents.tolist(), strict=True)
            for where in known.get(number, ())
        ]
        return begins, np.array(found, np.int64)


def our_cut(start: int, end: int, average: int, passes: list[int], begins: list[int]) -> int:
    """End of the chunk at ``start`` (formats/chunker.py, payload rule), ``end`` being the end of the data.

    ``passes`` are those of the test for chunks of small files; one in so many is one of the rarer test's.
    """
    small = small_chunk(average)
    maximum = min(start + 4 * average, end)
    i = bisect_left(passes, start + average // 8 * PAYLOAD_MINIMUM)
    while i < len(passes) and passes[i] < maximum and passes[i] % (BORDER_SHARE * average // small // PAYLOAD_DENSITY):
        i += 1
    plain = min(passes[i] if i < len(passes) else maximum, maximum)
    border = bisect_left(begins, start + small // 8 * PAYLOAD_MINIMUM)
    while small < average and border < len(begins) and begins[border] < plain:
        i = bisect_left(passes, begins[border] - small // BORDER_SHARE)
        if i < len(passes) and passes[i] <= begins[border]:
            return begins[border]
        border += 1
    i = bisect_left(begins, plain)
    is_near = i < len(begins) and begins[i] <= plain + average // 8 * PAYLOAD_REACH and begins[i] < maximum
    return begins[i] if is_near else plain


def pbs_cut(start: int, end: int, average: int, passes: list[int], begins: list[int]) -> int:
    """The same by PBS's rule, for data that arrives byte by byte: where a file begins, or else the hash passes."""
    rarer = BORDER_SHARE * average // small_chunk(average)
    maximum = min(start + 4 * average, end)
    smallest = start + average // 4
    i = bisect_left(begins, smallest)
    border = begins[i] if i < len(begins) else maximum
    i = bisect_left(passes, smallest)
    while i < len(passes) and passes[i] < border and passes[i] % rarer:
        i += 1
    return min(passes[i] if i < len(passes) else maximum, border, maximum)


Cut = Callable[[int, int, int, list[int], list[int]], int]


def our_rule(tree: Tree, previous: Previous, average: int) -> Iterator[Segment]:
    for first in range(0, len(tree.sizes), WINDOW):
        part = slice(first, first + WINDOW)
        offsets, sizes = tree.offsets[part], tree.sizes[part]
        done = 0
        for start, stop in runs(plan(offsets, sizes, tree.unchanged[part], previous, average), offsets, sizes):
            if done < start:
                yield Segment(first + done, first + start)
            yield Segment(first + start, first + stop, *injections(offsets[start:stop], sizes[start:stop], previous))
            done = stop
        if done < len(sizes):
            yield Segment(first + done, first + len(sizes))


def pbs_rule(tree: Tree, previous: Previous, average: int) -> Iterator[Segment]:
    """Ranges without holes, each taken if its padding is at most a tenth; the last chunk waits for the next range."""
    ends = tree.offsets + tree.sizes
    reusable = tree.unchanged & ~tree.moved
    begins = np.ones(len(ends), np.bool_)
    begins[1:] = ~(reusable[1:] & reusable[:-1] & (tree.offsets[1:] == ends[:-1]))
    bounds = np.append(np.flatnonzero(begins), len(ends)).tolist()
    held, used = -1, 0  # an entry whose injection waits, and how much of it is needed
    for start, stop in pairwise(bounds):
        if not reusable[start]:
            yield Segment(start, stop)
            held = -1
            continue
        a, b = int(tree.offsets[start]), int(ends[stop - 1])
        first = int(previous.starts.searchsorted(a, "right")) - 1
        last = min(int(previous.starts.searchsorted(b, "right")), len(previous.numbers)) - 1
        before, after = a - int(previous.starts[first]), int(previous.starts[last + 1]) - b
        total = b - a + before + after
        joins = held == first
        if before + after - (used if joins else 0) > total / 10:
            yield Segment(start, stop)
            held = -1
            continue
        entries = np.arange(first + joins, last + 1)
        bases = tree.offsets[start:stop] - previous.starts[first]
        yield Segment(start, stop, entries, bases, joins)
        if stop < len(ends) and reusable[stop]:
            inside = b - max(a, int(previous.starts[last]))
            used = inside + (used if joins and last == first else 0)
            held = last
        else:
            held = -1


@dataclass(frozen=True)
class Night:
    """Bytes, but for the last two."""

    read: int
    stored: int
    stream: int
    kept: int
    entries: int
    distinct: int


class Store:
    """All chunks ever made, and the stream of the last night."""

    def __init__(self, rule: Rule, cut: Cut, contents: Contents, average: int) -> None:
        self._rule, self._cut, self._contents, self._average = rule, cut, contents, average
        self._numbers: dict[tuple[int, ...], int] = {}
        self._sizes: list[int] = []
        self.previous: Previous | None = None

    def backup(self, tree: Tree) -> Night:
        """Puts the new stream together; ``tree`` then has its offsets and counts as unchanged."""
        begins, passes = self._contents.passes(tree)
        names = _mixed(tree.contents, tree.sizes)
        named = np.concatenate(([np.uint64(0)], np.cumsum(names)))  # modulo 2^64
        numbers: list[int] = []
        position = read = 0
        known = len(self._sizes)
        segments = [Segment(0, len(tree.sizes))]
        if self.previous:
            segments = _joined(self._rule(tree, self.previous, self._average))
        for segment in segments:
            files = slice(segment.start, segment.stop)
            if segment.entries is None:
                end = int(begins[segment.stop - 1] + tree.sizes[segment.stop - 1])
                start = int(begins[segment.start])
                tree.offsets[files] = begins[files] + (position - start)
                cuts = self._cuts(start, end, passes, begins[files])
                for x, y in pairwise(cuts):
                    first = int(begins.searchsorted(x, "right")) - 1
                    until = int(begins.searchsorted(y))
                    inner = first + (int(begins[first]) < x)
                    key = (
                        int(tree.contents[first]),
                        x - int(begins[first]),
                        (int(named[until]) - int(named[inner])) % 2**64,
                        y - x,
                    )
                    numbers.append(self._numbers.setdefault(key, len(self._sizes)))
                    if numbers[-1] == len(self._sizes):
                        self._sizes.append(y - x)
                read += end - start
                position += end - start
            else:
                assert self.previous is not None and segment.bases is not None
                joined = self._sizes[numbers[-1]] if segment.joins else 0
                tree.offsets[files] = segment.bases + (position - joined)
                numbers += self.previous.numbers[segment.entries].tolist()
                position += int(self.previous.sizes(segment.entries).sum())
        row, sizes = np.array(numbers, np.uint32), np.array(self._sizes)
        starts = np.concatenate(([0], np.cumsum(sizes[row])))
        self.previous = Previous(starts, row, np.ones(len(row), np.bool_))
        tree.unchanged[:], tree.moved[:] = True, False
        distinct = np.unique(row)
        return Night(read, int(sizes[known:].sum()), position, int(sizes[distinct].sum()), len(row), len(distinct))

    def _cuts(self, start: int, end: int, passes: Ints, begins: Ints) -> list[int]:
        """Where the chunks of raw data begin and end: ``start``, the cuts, ``end``."""
        first, last = passes.searchsorted((start, end))
        there = passes[first:last].tolist()
        borders = begins.tolist()
        cuts = [start]
        while cuts[-1] < end:
            cuts.append(self._cut(cuts[-1], end, self._average, there, borders))
        return cuts


def _joined(segments: Iterator[Segment]) -> list[Segment]:
    """Neighbours that are encoded anew are one piece of raw data."""
    result: list[Segment] = []
    for segment in segments:
        if segment.entries is None and result and result[-1].entries is None:
            segment = Segment(result.pop().start, segment.stop)
        result.append(segment)
    return result


def _mixed(contents: Ints, sizes: Ints) -> NDArray[np.uint64]:
    """A number for each file's header and contents, so that sums of them name rows of files."""
    value = (contents.astype(np.uint64) << np.uint64(36)) ^ sizes.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value


def small_sizes(rng: np.random.Generator, count: int) -> Ints:
    return np.minimum(rng.lognormal(7.8, 1.6, count), 30 * MIB).astype(np.int64) + HEADER


def large_sizes(rng: np.random.Generator, count: int) -> Ints:
    return np.minimum(rng.lognormal(14.5, 1.8, count), 2048 * MIB).astype(np.int64) + HEADER


Sizes = Callable[[np.random.Generator, int], Ints]


class Churn:
    """Changes a tree as one night does; ``rate``: share of the files that change."""

    def __init__(self, kind: str, rate: float, sizes: Sizes, contents: Contents, rng: np.random.Generator) -> None:
        self._kind, self._rate, self._new_sizes, self._contents, self._rng = kind, rate, sizes, contents, rng

    def apply(self, tree: Tree) -> Tree:
        change = KINDS[self._kind]
        return change(self, tree)

    def rewritten(self, tree: Tree) -> Tree:
        """Single files anywhere get other contents of the same size."""
        self._rewrite(tree, self._rng.random(len(tree.sizes)) < self._rate)
        return tree

    def clustered(self, tree: Tree) -> Tree:
        """The same, but half of the files of some directories."""
        self._rewrite(tree, self._some_directories(tree, 2 * self._rate) & (self._rng.random(len(tree.sizes)) < 0.5))
        return tree

    def mixed(self, tree: Tree) -> Tree:
        """A fifth each: rewritten, rewritten in directories, appended to, removed, new."""
        rate, rng, count = self._rate / 5, self._rng, len(tree.sizes)
        self._rewrite(tree, rng.random(count) < rate)
        self._rewrite(tree, self._some_directories(tree, 2 * rate) & (rng.random(count) < 0.5))
        grown = np.flatnonzero(rng.random(count) < rate)
        sizes = tree.sizes[grown] + 1 + (tree.sizes[grown] * rng.exponential(0.1, len(grown))).astype(np.int64)
        self._contents.grow(tree.contents[grown], tree.sizes[grown], sizes)
        tree.sizes[grown], tree.unchanged[grown] = sizes, False
        tree = tree.take(np.flatnonzero(rng.random(count) >= rate))
        added = new_tree(self._new_sizes(rng, int(rng.poisson(count * rate))), self._contents)
        places = np.concatenate((np.arange(len(tree.sizes)) + 0.5, rng.integers(0, count, len(added.sizes))))
        both = Tree(*(np.concatenate((getattr(tree, n), getattr(added, n))) for n in tree.__dataclass_fields__))
        return both.take(np.argsort(places, kind="stable"))

    def moves(self, tree: Tree) -> Tree:
        """Half is rewritten, and as many files move with their directories."""
        self._rewrite(tree, self._rng.random(len(tree.sizes)) < self._rate / 2)
        moved = self._some_directories(tree, self._rate / 2)
        tree.moved |= moved
        directory = np.arange(len(tree.sizes)) // DIRECTORY
        target = self._rng.random(int(directory[-1]) + 1) * len(directory) / DIRECTORY
        return tree.take(np.argsort(np.where(moved, target[directory], directory), kind="stable"))

    def _rewrite(self, tree: Tree, changed: Bools) -> None:
        tree.contents[changed] = self._contents.new(tree.sizes[changed])
        tree.unchanged[changed] = False

    def _some_directories(self, tree: Tree, rate: float) -> Bools:
        count = -(-len(tree.sizes) // DIRECTORY)
        return np.repeat(self._rng.random(count) < rate, DIRECTORY)[: len(tree.sizes)]


KINDS: dict[str, Callable[[Churn, Tree], Tree]] = {
    "rewritten": Churn.rewritten,
    "clustered": Churn.clustered,
    "mixed": Churn.mixed,
    "moves": Churn.moves,
}
RULES: dict[str, tuple[Rule, Cut]] = {"ours": (our_rule, our_cut), "PBS": (pbs_rule, pbs_cut)}
TREES: dict[str, tuple[Sizes, int]] = {"small": (small_sizes, 1), "large": (large_sizes, 50)}  # --files through this


def new_tree(sizes: Ints, contents: Contents) -> Tree:
    count = len(sizes)
    nothing = np.zeros(count, np.bool_)
    return Tree(contents.new(sizes), sizes, np.full(count, -1), nothing, nothing.copy())


def simulate(
    tree_name: str, kind: str, rule: str, *, nights: int, files: int, rate: float, seed: int, average: int = 4 * MIB
) -> tuple[list[Night], list[int]]:
    """The nights after the first backup, and the tree's size in each; the same changes whatever the rule is."""
    rng = np.random.default_rng(seed)
    contents = Contents(rng, average)
    sizes, divisor = TREES[tree_name]
    tree = new_tree(sizes(rng, max(files // divisor, 1)), contents)
    store = Store(*RULES[rule], contents, average)
    store.backup(tree)
    churn = Churn(kind, rate, sizes, contents, rng)
    rows, live = [], []
    for _ in range(nights):
        tree = churn.apply(tree)
        rows.append(store.backup(tree))
        live.append(int(tree.sizes.sum()))
    return rows, live


def curve(rows: Sequence[Night], live: Sequence[int], shown: Sequence[int]) -> Iterator[str]:
    yield f"{'night':>7} {'read':>7} {'stored':>7} {'sum':>7} {'stream':>7} {'kept':>6} {'entries':>8} {'distinct':>8}"
    for n in shown:
        night, size = rows[n - 1], live[n - 1]
        total = sum(row.stored / tree for row, tree in zip(rows[:n], live[:n], strict=True))
        yield (
            f"{n:7} {night.read / size:7.1%} {night.stored / size:7.1%} {total:7.2f} {night.stream / size:7.2f}"
            f" {night.kept / size:6.2f} {night.entries:8} {night.distinct:8}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.churn", description=__doc__)
    parser.add_argument("--nights", type=int, default=100, metavar="N")
    parser.add_argument("--files", type=int, default=46_000, metavar="N", help="of the small tree; the large has 1/50")
    parser.add_argument("--rate", type=float, default=0.01, metavar="R", help="share of the files that change a night")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tree", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every night there too")
    options = parser.parse_args(arguments)
    if options.nights < 1 or options.files < 1 or not 0 <= options.rate <= 1:
        parser.error("--nights and --files are at least 1, --rate is from 0 to 1")
    steps = (1, 2, 5, 10, 20, 50)
    shown = [n * scale for scale in (1, 100, 10_000) for n in steps if n * scale < options.nights] + [options.nights]
    document: list[dict[str, Any]] = []
    for tree in options.tree:
        for kind in options.kind:
            for rule in RULES:
                rows, live = simulate(
                    tree, kind, rule, nights=options.nights, files=options.files, rate=options.rate, seed=options.seed
                )
                print(f"{tree} files, {kind}, {options.rate:.1%} a night: {rule}")
                print(*curve(rows, live, shown), "", sep="\n", flush=True)
                nights = [asdict(row) | {"live": size} for row, size in zip(rows, live, strict=True)]
                document.append({"tree": tree, "kind": kind, "rule": rule, "nights": nights})
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
