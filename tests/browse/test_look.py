"""Looking inside, compared with plain walks of the restored trees; the catalog and the archive say the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from archiver.browse import catalog as catalogs
from archiver.browse.diff import Change, Sizes
from archiver.browse.files import Block, Found, answered_blocks, entries_below, listing
from archiver.browse.live import LiveView, walk_options
from archiver.browse.search import Query, search, versions_of
from archiver.browse.sides import live_changes, tree_changes
from archiver.browse.view import ArchiveView, RecordedNode, RecordedView, open_view
from archiver.errors import KeyProblem, NotFound
from archiver.source.problem import Problem
from archiver.store.catalog.catalog import Catalog, Place
from archiver.store.catalog.record import SPLIT_FROM, Record
from formats.crypt import CryptConfig
from formats.patterns import Pattern, PatternList
from formats.pxar.items import Entry
from tests.browse.nights import Nights, Plain, many_nights, plain, walk
from tests.stores import KEY

NAME = "tree.pxar"


@pytest.fixture(scope="module", params=[(1, None, 0), (2, KEY, 0), (3, None, 2500)], ids=["plain", "key", "many"])
def nights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    seed, crypt, many = request.param
    return many_nights(tmp_path_factory.mktemp("nights"), seed, crypt, many=many)


@pytest.fixture(params=["catalog", "archive"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who answers."""
    if request.param == "archive":
        monkeypatch.setattr(catalogs, "open_catalog", lambda *_: None)
    name: str = request.param
    return name


# Listing.


def test_listing(nights: Nights, way: str) -> None:
    for time in nights.times:
        with nights.snapshots(time) as [snapshot]:
            view: Any = open_view(snapshot, snapshot.archive(NAME))
            assert isinstance(view, RecordedView if way == "catalog" else ArchiveView)
            listed: Iterator[Found[Any]] = listing(view, b"/", recursive=True)
            found = {each.path: plain(view.entry(each.node)) for each in listed}
            assert found == nights.walk(time)
            names = list(found)
            assert names == sorted(names, key=lambda path: path.split(b"/"))


# Searching.


def queries(random: Random) -> Iterator[Query]:
    yield Query()
    for text in (
        b"*",
        b"file-1*",
        b"*.txt",
        b"/tree/dir-*/*",
        b"**/dir-1*/",
        b"*moved*",
        b"many/**",
        b"inside",
        b"[a-f]*-?",
    ):
        yield Query(pattern=Pattern.parse(text))
    for expression in (rb"\.c$", rb"/dir-\d/", rb"(?i)FILE-2", rb"^/tree/[^/]*$"):
        yield Query(expression=re.compile(expression))
    yield Query(kinds=frozenset(("dir",)))
    yield Query(kinds=frozenset(("symlink", "file")), pattern=Pattern.parse(b"*-*"))
    for _ in range(3):
        smallest = random.randrange(3000)
        yield Query(size=(smallest, smallest + random.randrange(3000)))
        first = random.randrange(1_700_000_000, 1_740_000_000) * 10**9
        yield Query(mtime=(first, first + random.randrange(10**16)))


def is_found(query: Query, path: bytes, entry: Plain) -> bool:
    return (
        (query.pattern is None or PatternList([query.pattern]).match(path, entry.kind == "dir") is not None)
        and (query.expression is None or query.expression.search(path) is not None)
        and (query.kinds is None or entry.kind in query.kinds)
        and (query.size is None or (entry.kind == "file" and query.size[0] <= entry.size <= query.size[1]))
        and (query.mtime is None or query.mtime[0] <= entry.mtime <= query.mtime[1])
    )


@pytest.mark.parametrize("few", [0, 3000], ids=["through all directories", "path by path"])
def test_search(nights: Nights, way: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found in each snapshot, and that each version is one."""
    monkeypatch.setattr("archiver.browse.search._FEW", few)
    walks = {time: nights.walk(time) for time in nights.times}
    random = Random(5)
    some = [nights.times, nights.times[2:3], sorted(random.sample(nights.times, 3))]
    for number, query in enumerate(queries(random)):
        times = some[number % len(some)]
        with nights.snapshots(*times) as snapshots:
            found = list(search(snapshots, NAME, query))
        pairs = {(hit.path, time): plain(hit.version.entry) for hit in found for time in hit.version.times}
        assert len(pairs) == sum(len(hit.version.times) for hit in found)  # none is in two versions
        dirs = {path for time in times for path, entry in walks[time].items() if entry.kind == "dir"}
        expected = {
            (path, time): entry
            for time in times
            for path, entry in walks[time].items()
            if is_found(query, path, entry)
            or (query.pattern and query.pattern.directories_only and path in dirs and is_found(query, path, entry))
        }
        if query.pattern is not None and query.pattern.directories_only:
            pairs = {key: entry for key, entry in pairs.items() if entry.kind == "dir"}  # it once was one
        assert pairs == expected
        if way == "catalog":
            paths = [hit.path for hit in found]
            assert paths == sorted(paths, key=lambda path: path.split(b"/"))
            for before, after in pairwise(found):
                assert before.path != after.path or before.version.times[0] < after.version.times[0]


def test_versions(nights: Nights, way: str) -> None:
    walks = {time: nights.walk(time) for time in nights.times}
    paths = sorted({path for found in walks.values() for path in found})
    several = 0
    for path in Random(3).sample(paths, 25):
        with nights.snapshots() as snapshots:
            versions = versions_of(snapshots, NAME, path)
        states = {time: plain(version.entry) for version in versions for time in version.times}
        assert states == {time: found[path] for time, found in walks.items() if path in found}
        assert sum(len(version.times) for version in versions) == len(states)
        if way == "archive":
            assert len(versions) == len(set(states.values()))
        several += len(versions) > 1
    assert several
    with nights.snapshots() as snapshots:
        assert versions_of(snapshots, NAME, b"absent") == versions_of(snapshots, NAME, b"tree/absent/below") == []


# Differences.


def words(before: Plain, after: Plain) -> set[str]:
    if before.kind != after.kind:
        return {"kind"}
    return {name for name in ("size", "mode", "mtime", "target") if getattr(before, name) != getattr(after, name)}


def check(found: list[Change], before: dict[bytes, Plain], after: dict[bytes, Plain]) -> None:
    """The root is not looked at here."""
    changes = {change.path: change for change in found if change.path != b"/"}
    assert len(changes) == len([change for change in found if change.path != b"/"])
    assert {path for path, one in changes.items() if one.change == "added"} == after.keys() - before.keys()
    assert {path for path, one in changes.items() if one.change == "removed"} == before.keys() - after.keys()
    differ = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    assert {path for path, one in changes.items() if one.change == "changed" and set(one.what) != {"content"}} == differ
    for path, change in changes.items():
        assert change.before is None or plain(change.before) == before[path]
        assert change.after is None or plain(change.after) == after[path]
        if change.before is not None and change.after is not None:
            assert set(change.what) - {"content"} == words(before[path], after[path])
    paths = [change.path for change in found if change.path != b"/"]
    assert paths == sorted(paths, key=lambda path: path.split(b"/"))


def pairs_of_times(nights: Nights) -> list[tuple[int, int]]:
    times = nights.times
    return [*pairwise(times), (times[0], times[-1]), (times[5], times[1]), (times[3], times[3])]


def test_diff(nights: Nights, way: str) -> None:
    for first, second in pairs_of_times(nights):
        with nights.snapshots(first, second) as [old, new]:
            found = list(tree_changes(old, new, NAME, b"/", contents=False))
        check(found, nights.walk(first), nights.walk(second))
        assert first != second or not found


def test_diff_of_contents(nights: Nights) -> None:
    """Also of files whose metadata are the same."""
    for first, second in pairs_of_times(nights)[:4]:
        with nights.snapshots(first, second) as [old, new]:
            found = list(tree_changes(old, new, NAME, b"/", contents=True))
        before, after = nights.walk(first), nights.walk(second)
        check(found, before, after)
        both = [path for path in before.keys() & after.keys() if before[path].kind == after[path].kind == "file"]
        differ = {path for path in both if nights.contents(first, path) != nights.contents(second, path)}
        assert {change.path for change in found if "content" in change.what} == differ


def test_diff_below_a_path(nights: Nights, way: str) -> None:
    first, second = nights.times[0], nights.times[-1]
    before, after = nights.walk(first), nights.walk(second)
    tops = sorted({path for path in before | after if path.count(b"/") == 1})
    for top in tops[:10]:
        with nights.snapshots(first, second) as [old, new]:
            found = list(tree_changes(old, new, NAME, top, contents=False))
        inside = [
            {path[len(top) :]: entry for path, entry in entries.items() if path.startswith(top + b"/")}
            for entries in (before, after)
        ]
        check(found, *inside)
        is_different = before.get(top) != after.get(top)
        assert [change.path for change in found if change.path == b"/"] == [b"/"] * is_different
    with nights.snapshots(first, second) as [old, new], pytest.raises(NotFound, match="of either snapshot"):
        list(tree_changes(old, new, NAME, b"/absent", contents=False))


@pytest.mark.parametrize("contents", [False, True])
def test_diff_with_a_live_directory(nights: Nights, way: str, contents: bool) -> None:
    """The source has changed since the last night, or it is another directory with the same in it."""
    problems: list[Problem] = []
    last = nights.times[-1]
    before = nights.walk(last)
    with nights.snapshots(last) as [snapshot]:
        archive = snapshot.archive(NAME)
        options = walk_options(snapshot.tree(archive), b"/", [])
        for directory in (nights.source, nights.restored[last], nights.restored[nights.times[0]]):

            def live(directory: Path = directory) -> LiveView:
                return LiveView(str(directory), options, problems.append)

            found = list(live_changes(snapshot, archive, b"/", live, contents=contents))
            check(found, before, walk(directory))
            assert found or directory != nights.source
            if directory == nights.restored[last]:
                assert found == []
    assert problems == []


def test_live_diff_reads_contents_on_demand_only(tmp_path: Path) -> None:
    """Other bytes behind the same size and times."""
    nights = many_nights(tmp_path, 9, None, count=1)
    (time,) = nights.times
    path = max(nights.walk(time).items(), key=lambda item: item[1].size)[0]
    copy = nights.restored[time] / path[1:].decode()
    status = copy.stat()
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.utime(copy.parent, ns=(0, 0))
    with nights.snapshots() as [snapshot]:
        archive = snapshot.archive(NAME)
        options = walk_options(snapshot.tree(archive), b"/", [])

        def live() -> LiveView:
            return LiveView(str(nights.restored[time]), options, lambda problem: None)

        for contents, expected in ((False, []), (True, [("content",)])):
            found = live_changes(snapshot, archive, b"/", live, contents=contents)
            assert [change.what for change in found if change.path == path] == expected


def test_bytes_of_directories(nights: Nights) -> None:
    """The sum over a directory is what its entries say, and everything is in the root's."""
    first, second = nights.times[0], nights.times[-1]
    with nights.snapshots(first, second) as [old, new]:
        found = list(tree_changes(old, new, NAME, b"/", contents=False))
    for depth in (0, 1, 9):
        sizes = Sizes(depth)
        for change in found:
            sizes.add(change)
        for path, added, removed, count in sizes.largest_first():
            inside = [one for one in found if path == b"/" or one.path.startswith(path + b"/")]
            assert path.count(b"/") - (path == b"/") <= depth
            assert (added, removed) == (sum(o.bytes_added for o in inside), sum(o.bytes_removed for o in inside))
            assert count == len(inside)


def test_unchanged_directories_are_not_compared(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two runs only the directories and the entries that changed are looked at; of directories of very many
    entries all that stand near these. No record is read again and again."""
    looked, loaded = [], []
    original, load = RecordedView._numbered, Catalog.load

    def numbered(view: RecordedView, record: Record, numbers: Iterable[int]) -> Iterator[RecordedNode]:
        for node in original(view, record, numbers):
            looked.append(node)
            yield node

    def watched(catalog: Catalog, place: Place) -> Record | None:
        loaded.append(place)
        return load(catalog, place)

    monkeypatch.setattr(RecordedView, "_numbered", numbered)
    monkeypatch.setattr(Catalog, "load", watched)
    first, second = nights.times[-2:]
    with nights.snapshots(first, second) as [old, new]:
        found = list(tree_changes(old, new, NAME, b"/", contents=False))
    changed = {change.path.rpartition(b"/")[0] for change in found}
    walks = [nights.walk(time) for time in (first, second)]
    directories = sum(one.kind == "dir" for each in walks for one in each.values())
    inside = sum(
        path.rpartition(b"/")[0] in changed or one.kind == "dir" for each in walks for path, one in each.items()
    )
    is_split = len(walks[0]) > SPLIT_FROM
    assert len(looked) <= (inside if is_split else directories + 2 * len(found))
    assert is_split or len(loaded) <= 2 * len(set(loaded))


def test_damage_of_the_catalog_is_no_damage(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a record is gone the archive answers, from where the catalog has stopped."""
    first, second = nights.times[0], nights.times[-1]
    with nights.snapshots(first, second) as [old, new]:
        expected = list(tree_changes(old, new, NAME, b"/", contents=False))
    load = Catalog.load
    for after in (0, 1, 5, 20):
        left = [after]

        def failing(catalog: Catalog, place: Place, left: list[int] = left) -> Record | None:
            left[0] -= 1
            return None if left[0] < 0 else load(catalog, place)

        monkeypatch.setattr(Catalog, "load", failing)
        with nights.snapshots(first, second) as [old, new]:
            assert [c.path for c in tree_changes(old, new, NAME, b"/", contents=False)] == [c.path for c in expected]
        assert left[0] < 0


def test_blocks_go_on_from_where_the_catalog_has_stopped(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    with nights.snapshots(nights.times[-1]) as [snapshot]:
        archive = snapshot.archive(NAME)

        def ask(use_catalog: bool) -> Iterator[Block[Entry]]:
            return entries_below(open_view(snapshot, archive, use_catalog=use_catalog), b"/", recursive=True)

        def told() -> list[bytes]:
            return [above + entry.name for _, above, those in answered_blocks(ask) for entry in those]

        expected, load = told(), Catalog.load
        for after in (0, 1, 2, 5):
            left = [after]

            def failing(catalog: Catalog, place: Place, left: list[int] = left) -> Record | None:
                left[0] -= 1
                return None if left[0] < 0 else load(catalog, place)

            monkeypatch.setattr(Catalog, "load", failing)
            assert told() == expected and left[0] < 0


def test_key_is_needed(tmp_path: Path) -> None:
    crypt = CryptConfig(bytes(32))
    nights = many_nights(tmp_path, 4, crypt, count=2)
    nights.crypt = None
    with nights.snapshots() as [old, new]:
        for work in (
            lambda: list(search([old, new], NAME, Query())),
            lambda: versions_of([old, new], NAME, b"file-0"),
            lambda: list(tree_changes(old, new, NAME, b"/", contents=False)),
            lambda: [open_view(old, old.archive(NAME))],
        ):
            with pytest.raises(KeyProblem, match="is encrypted"):
                work()


def test_mutations_reach_all_words(nights: Nights) -> None:
    """The nights have all kinds of changes, or the tests above would show little."""
    found: set[str] = set()
    for first, second in pairs_of_times(nights):
        with nights.snapshots(first, second) as [old, new]:
            for change in tree_changes(old, new, NAME, b"/", contents=False):
                found |= {change.change, *change.what}
    assert found >= {"added", "removed", "changed", "size", "mtime", "mode", "kind"}
