"""The file catalog at size: ``python -m bench.catalog``. Many snapshots of a large tree, and how long questions take.

Nothing is archived: directories are told to the catalog as a backup tells them. Every night some of the files,
anywhere, are written again (size, times), and a few come and go. Directories lie three deep and have about 20 files.

The targets are those of the catalog's design: listing a directory < 5 ms, all versions of a path < 50 ms, a pattern
over all snapshots < 1 s, the entries before < 2 us each in the order of the walk, a night at most a tenth of the first.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from archiver.browse.diff import Comparison
from archiver.browse.files import names_below
from archiver.browse.history import History
from archiver.browse.recorded import RunTree
from archiver.browse.view import RecordedView
from archiver.core.events import ignore
from archiver.core.row import ROW
from archiver.store.catalog.catalog import Catalog
from archiver.store.catalog.forget import forget
from archiver.store.catalog.record import Draft, Layout, inode_key
from archiver.store.catalog.seal import Seal
from archiver.store.catalog.writer import RunWriter, new_names
from archiver.store.database import records
from archiver.store.database.database import Database, open_database
from archiver.store.layout import GroupRef
from formats.crypt import CryptConfig
from formats.patterns import Pattern
from formats.pxar.encoder import encode_attributes, encode_file
from formats.pxar.metadata import Metadata, Stat

GROUP = GroupRef("", "host", "bench")
NAME = "tree.pxar"
FIRST = 1_700_000_000  # time of the first snapshot
DAY = 86_400
FILES_EACH = 20  # files in a directory, on average
FAN = 36  # directories in each of the upper directories
WORDS = [b"report", b"photo", b"index", b"draft", b"notes", b"build", b"cache", b"module", b"license", b"readme"]
ENDINGS = [b".txt", b".py", b".jpg", b".html", b".o", b".log", b""]


@dataclass
class Directory:
    """``files``: name -> [inode, size, mtime in ns]."""

    path: bytes
    inode: int
    children: list[tuple[bytes, int]]
    files: dict[bytes, list[int]]
    changed: bool = True


class Tree:
    """A synthetic tree of ``count`` files."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.directories: list[Directory] = []
        self.inodes = 2
        leaves = count // FILES_EACH
        upper = -(-leaves // (FAN * FAN))
        root = self._directory(b"")
        for first in range(upper):
            top = self._child(root, b"top%03d" % first)
            for second in range(FAN):
                middle = self._child(top, b"middle-%02d" % second)
                for third in range(min(FAN, leaves)):
                    leaf = self._child(middle, b"leaf_%d" % third)
                    leaves -= 1
                    for _ in range(FILES_EACH):
                        self._file(leaf)

    def _directory(self, path: bytes) -> Directory:
        self.inodes += 1
        directory = Directory(path, self.inodes, [], {})
        self.directories.append(directory)
        return directory

    def _child(self, above: Directory, name: bytes) -> Directory:
        directory = self._directory(above.path + b"/" + name if above.path else name)
        above.children.append((name, directory.inode))
        return directory

    def _file(self, directory: Directory) -> None:
        self.inodes += 1
        word, ending, number, size = self.rng.integers(0, [len(WORDS), len(ENDINGS), 100_000, 60_000]).tolist()
        name = b"%s-%05d%s" % (WORDS[word], number, ENDINGS[ending])
        directory.files[name] = [self.inodes, size, FIRST * 10**9 - size * 7_654_321]
        directory.changed = True

    def change(self, rate: float, now: int) -> None:
        """Rewrite this share of the files; one in twenty of them is removed and another one comes."""
        with_files = [directory for directory in self.directories if directory.files]
        count = int(rate * FILES_EACH * len(with_files))
        for place, which in zip(self.rng.integers(0, len(with_files), count), self.rng.random(count), strict=True):
            directory = with_files[place]
            names = list(directory.files)
            name = names[int(which * len(names))]
            if which < 0.05 and len(names) > 1:
                del directory.files[name]
                self._file(directory)
            else:
                row = directory.files[name]
                row[1:] = int(which * 60_000), now * 10**9 + int(which * 10**9)
            directory.changed = True


def record(catalog: Catalog, tree: Tree, when: int) -> None:
    """One night's run."""
    newest = catalog.newest()
    writer = RunWriter(catalog, newest, catalog.database.directory)
    base = 16
    for directory in tree.directories:
        key = inode_key(b"", directory.inode, True)
        number = -1 if newest is None else newest.find(key)
        if not directory.changed and number >= 0:
            writer.keep(number, Layout(base))
        else:
            draft = _draft(directory, base, when)
            writer.put(key, *draft.encode())
            old = None if newest is None or number < 0 else catalog.load(newest.place(number))
            if names := new_names(old, draft.names):
                writer.names(directory.path, names)
            directory.changed = False
        base += sum(row[1] + 16 for row in directory.files.values())
    root = inode_key(b"", tree.directories[0].inode, True)
    if not writer.record(when, csum=when.to_bytes(32), fields="bench", root=root):
        raise SystemExit("the run was not recorded")
    writer.close()


def _draft(directory: Directory, base: int, when: int) -> Draft:
    own = encode_attributes(Metadata(Stat(0o40755, 0, 1000, 1000, FIRST, 0)))
    draft = Draft(directory.inode, FIRST * 10**9, FIRST * 10**9, bytes(16), own)
    entries: list[tuple[bytes, bytes, bytes, bytes]] = [
        (name, b"d", ROW.pack(inode, -1, inode, 0), b"") for name, inode in directory.children
    ]
    for name in sorted(directory.files):
        inode, size, mtime = directory.files[name]
        stat = Stat(0o100644, 0, 1000, 1000, *divmod(mtime, 10**9))
        item = encode_file(name, Metadata(stat), base, size)
        base += size + 16
        entries.append((name, b"f", ROW.pack(inode, size, mtime, mtime + 1), item))
    for name, kind, row, item in sorted(entries):
        draft.add(kind, name, row, item)
    return draft


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def used(base: Database) -> int:
    """Bytes of the pages that hold something, of all tables."""

    def look(txn: Any) -> int:
        found = [txn.stat(base.table(name)) for name in records.TABLES]
        return sum((one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"]) * one["psize"] for one in found)

    return base.change(look) or 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its target in seconds (inf: none), and how long the answers took."""

    what: str
    target: float
    times: list[float]

    def line(self) -> str:
        verdict = "MISSED" if self.missed else "met" if self.target < math.inf else ""
        times = (median(self.times), max(self.times), self.target)
        return f"{self.what:44} {' '.join(f'{time * 1000:12.4f}' for time in times)}  {verdict}"

    @property
    def missed(self) -> bool:
        return median(self.times) > self.target


def questions(open_it: Callable[[], Catalog], tree: Tree, times: list[int], rounds: int) -> Iterator[Question]:
    """Each with nothing kept in memory from the one before."""
    with_files = [directory for directory in tree.directories if directory.files]
    chosen = [with_files[place] for place in tree.rng.integers(0, len(with_files), rounds)]

    def listing(when: int, directory: Directory) -> None:
        found = RunTree(open_it(), when)
        key = found.directory(directory.path)
        assert key is not None
        assert len([found.entry(item) for item in found.entries(key)]) >= len(directory.files) > 0

    for when, name in ((times[-1], "newest"), (times[len(times) // 2], "middle"), (times[0], "oldest")):
        taken = [timed(partial(listing, when, directory)) for directory in chosen]
        yield Question(f"list a directory, {name} snapshot", 0.005, taken)

    def versions(directory: Directory) -> None:
        name = next(iter(directory.files))
        assert History(open_it(), times).versions(directory.path + b"/" + name)

    yield Question("all versions of a file", 0.05, [timed(partial(versions, directory)) for directory in chosen])

    def glob(text: bytes, found: list[bytes]) -> None:
        found.extend(History(open_it(), times).glob(Pattern.parse(text)))

    for text in (b"**/report-0421*.py", b"**/*7777*", b"**/leaf_7/*.log", b"**/middle-1?/leaf_3/*", b"**"):
        found: list[bytes] = []
        took = timed(partial(glob, text, found))
        yield Question(f"paths that match {text.decode()}: {len(found)}", 1 if text != b"**" else math.inf, [took])

    def find() -> None:
        history = History(open_it(), times)
        assert all(map(history.versions, history.glob(Pattern.parse(b"**/notes-1234*.txt"))))

    yield Question("paths that match and their versions", 1, [timed(find)])

    def diff() -> None:
        catalog = open_it()
        views = [RecordedView(RunTree(catalog, when), str(when)) for when in times[-2:]]
        assert list(Comparison(views[0], views[-1]).changes(views[0].root(), views[-1].root())) or len(times) < 2

    yield Question("what is different in the last two snapshots", 1, [timed(diff)])

    def names() -> None:
        view = RecordedView(RunTree(open_it(), times[-1]), "newest")
        assert sum(1 for _ in names_below(view, b"/", recursive=True)) >= FILES_EACH

    yield Question("the names of all entries of a snapshot", 1, [timed(names)])

    def large(when: list[int]) -> None:
        found = History(open_it(), when).walk(lambda path, is_directory: path.endswith(b".py"))
        assert all(version.entry.size >= 0 for _, versions in found for version in versions)

    for those, what in (([times[-1]], "one snapshot"), (times, "all snapshots")):
        yield Question(f"through all directories of {what}", math.inf, [timed(partial(large, those))])

    def walk() -> None:
        catalog = open_it()
        newest = catalog.newest()
        assert newest is not None
        for directory in tree.directories:
            before = catalog.load(newest.place(newest.find(directory.inode)))
            assert before is not None
            count = sum(1 for _ in zip(before.names, range(0, len(before.rows), ROW.size), strict=True))
            assert count == len(directory.files) + len(directory.children)

    entries = sum(len(directory.files) + 1 for directory in tree.directories)
    yield Question("an entry before, in the order of the walk", 2e-6, [timed(walk) / entries])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.catalog", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.01, help="share of the files that change each night")
    parser.add_argument("--rounds", type=int, default=20, help="how often the quick questions are asked")
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="keep the database here, and use the one that is here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        base = open_database(str(directory), str(uuid.UUID(int=1)), ignore)
        if base is None:
            raise SystemExit(f"no database can be opened in {directory}")
        crypt = CryptConfig(bytes(range(32))) if options.encrypt else None

        def open_it() -> Catalog:
            return Catalog(base, GROUP, NAME, Seal(crypt, os.urandom))

        tree = Tree(options.files, options.seed)
        nights(open_it, tree, options.snapshots, options.rate, base)
        times = open_it().times()
        print(f"{'question':44} {'median ms':>12} {'worst ms':>12} {'target ms':>12}")
        missed = 0
        for question in questions(open_it, tree, times, options.rounds):
            print(question.line(), flush=True)
            missed += question.missed
        if options.directory is None:
            space(open_it, times, base)
        base.close()
    return 1 if missed else 0


def space(open_it: Callable[[], Catalog], times: list[int], base: Database) -> None:
    """Forget a snapshot, then all but every tenth, and tell what that takes and gives back."""
    for alive, what in ((times[:50] + times[51:], "one snapshot"), (times[::10], "all but every tenth")):
        before = used(base)
        took = timed(partial(forget, open_it(), alive))
        print(
            f"forgetting {what}: {took:.2f} s, {(before - used(base)) / 1e6:.1f} MB of {before / 1e6:.1f} MB are free"
        )


def nights(open_it: Callable[[], Catalog], tree: Tree, count: int, rate: float, base: Database) -> None:
    """Record the snapshots that are not there yet, and tell what they cost."""
    sizes, took = [], []
    have = open_it().times()
    for night in range(count):
        when = FIRST + night * DAY
        if night:
            tree.change(rate, when)
        if when in have:
            for directory in tree.directories:
                directory.changed = False
            continue
        before = used(base)
        took.append(timed(partial(record, open_it(), tree, when)))
        sizes.append(used(base) - before)
    if len(sizes) < count:
        return
    first, rest = sizes[0], sizes[1:]
    print(f"{len(tree.directories)} directories, {sum(len(one.files) for one in tree.directories)} files")
    print(f"first snapshot {first / 1e6:.1f} MB, {took[0]:.2f} s")
    if rest:
        mean = sum(rest) / len(rest)
        print(
            f"a night with {rate:.1%} changed: {mean / 1e6:.3f} MB, {mean / first:.2%} of the first one (target 10 %),"
            f" at most {max(rest) / 1e6:.3f} MB; {median(took[1:]):.2f} s with making it up"
        )
    print(f"{count} snapshots: {used(base) / 1e6:.1f} MB in use", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
