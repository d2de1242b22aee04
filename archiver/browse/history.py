"""All recorded snapshots of an archive side by side: the versions of a path, and paths by a pattern."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from heapq import heappop, heappush
from itertools import chain
from typing import NamedTuple, TypeVar

from blake3 import blake3

from archiver.browse.catalog import Catalogs, ensure
from archiver.browse.recorded import LETTERS, Item, Lost, RunTree, candidates, directory_entry
from archiver.browse.snapshot import Snapshot
from archiver.core.clock import system_random
from archiver.core.spill import SpillTable
from archiver.store.catalog.catalog import Catalog, Place
from archiver.store.catalog.record import UNSORTED, Record
from formats.patterns import Pattern, PatternList
from formats.pxar.items import Entry

_T = TypeVar("_T")
_State = tuple[bytes, int, int]  # what the archive says, inode and change time; these are 0 where they are not known
_KEPT_DIRECTORIES = 256
_KEPT_RECORDS = 512
_SECRET = 32  # bytes
_DIRECTORY = LETTERS["dir"][0]
_BREAKS = re.compile(rb"\\.|\[[!^]?(?:\[:[a-z]+:\]|\\.|[^\]])*\]|[*?/]", re.DOTALL)


class Version(NamedTuple):
    """What one path was in the snapshots of ``times``, oldest first. ``entry`` is without positions."""

    times: tuple[int, ...]
    entry: Entry


class Part(NamedTuple):
    """An entry in one of the different records of its directory, and the times that have this record."""

    record: Record
    number: int
    times: list[int]

    @property
    def is_directory(self) -> bool:
        return self.record.kinds[self.number] == _DIRECTORY


class _Found(NamedTuple):
    """A state of an entry, when it was so, and the item that says so; without one it is a directory."""

    state: _State
    times: list[int]
    item: Item | None


Wanted = Callable[[bytes, Callable[[], bool]], bool]


class History:
    """The archives ``name`` of the snapshots of ``times``, all of which are in the catalog. Not for several threads.

    Every method raises Lost where the catalog turns out to lack something.
    """

    def __init__(self, catalog: Catalog, times: Sequence[int]) -> None:
        self.times = sorted(times)
        self._catalog = catalog
        self._directories: OrderedDict[bytes, dict[int, int]] = OrderedDict()
        self._records: OrderedDict[Place, Record] = OrderedDict()

    def of(self, times: Sequence[int]) -> History:
        """Some of the snapshots."""
        return History(self._catalog, times)

    @cached_property
    def _roots(self) -> dict[int, int]:
        return {time: RunTree(self._catalog, time).root for time in self.times}

    def versions(self, path: bytes) -> list[Version]:
        """The distinct versions of the entry at ``path`` (``b"a/b"`` or ``b"/a/b"``), oldest first.

        Two states are one version when the archive says the same of them and nothing that was recorded of the live file
        speaks against it: another inode or change time, where they are known.
        """
        path = _plain(path)
        if not path:
            return _distinct(b"", self._directory_states(self._roots))
        name = path.rpartition(b"/")[2]
        return self._versions(name, self._parts(path))

    def walk(self, wanted: Wanted) -> Iterator[tuple[bytes, list[Version]]]:
        """The paths (``b"a/b"``) below the root in all snapshots with their versions, a directory before what is in it,
        names in the order of their bytes.

        Only those that are ``wanted``, which is told the path and what says whether it is or once was a directory.
        """
        levels = [(b"", self._level(self._roots))]
        while levels:
            above, names = levels[-1]
            found = next(names, None)
            if found is None:
                levels.pop()
                continue
            name, parts = found
            path = above + name
            directories = [part for part in parts if part.is_directory]
            if wanted(path, partial(bool, directories)):
                yield path, self._versions(name, parts)
            if directories:
                levels.append((path + b"/", self._level(_keys_of(name, directories))))

    def _level(self, keys: dict[int, int]) -> Iterator[tuple[bytes, list[Part]]]:
        """The names in a directory that has the given keys, in order."""
        whole: list[tuple[Record, list[int]]] = []
        leaves: dict[tuple[bytes, int], list[int]] = {}
        for key, times in _by_value(keys):
            for record, those in self._loaded(key, times):
                if not record.is_split:
                    whole.append((record, those))
                    continue
                for leaf, first in record.leaves:
                    leaves.setdefault((b"" if record.flags & UNSORTED else first, leaf), []).extend(those)
        if leaves:
            return self._swept(whole, leaves)
        names: dict[bytes, list[Part]] = {}
        for record, those in whole:
            for number, name in enumerate(record.names):
                names.setdefault(name, []).append(Part(record, number, those))
        return iter(sorted(names.items()))

    def _swept(
        self, whole: list[tuple[Record, list[int]]], leaves: dict[tuple[bytes, int], list[int]]
    ) -> Iterator[tuple[bytes, list[Part]]]:
        """The same where some have leaves, which are loaded when their first name's turn comes."""
        heap: list[tuple[bytes, int, Part, Iterator[int]]] = []
        count = 0

        def push(record: Record, times: list[int], order: Iterator[int]) -> None:
            nonlocal count
            number = next(order, None)
            if number is not None:
                count += 1  # so that nothing else is compared
                heappush(heap, (record.names[number], count, Part(record, number, times), order))

        def begin(record: Record, times: list[int]) -> None:
            push(record, times, iter(sorted(range(record.count), key=record.names.__getitem__)))

        for record, times in whole:
            begin(record, times)
        waiting = sorted(leaves, reverse=True)
        while heap or waiting:
            while waiting and (not heap or waiting[-1][0] <= heap[0][0]):
                leaf = waiting.pop()
                for record, times in self._loaded(leaf[1], leaves[leaf]):
                    begin(record, times)
            if not heap:
                continue
            name, parts = heap[0][0], []
            while heap and heap[0][0] == name:
                _, _, part, order = heappop(heap)
                parts.append(part)
                push(part.record, part.times, order)
            yield name, parts

    def _versions(self, name: bytes, parts: list[Part]) -> list[Version]:
        return _distinct(name, chain(_states(name, parts), self._directory_states(_keys_of(name, parts))))

    def _directory_states(self, keys: dict[int, int]) -> Iterator[_Found]:
        for key, times in _by_value(keys):
            for record, those in self._loaded(key, times):
                yield _Found((record.own, 0, 0), those, None)

    def glob(self, pattern: Pattern) -> Iterator[bytes]:
        """The paths (``b"a/b"``) that match and are, or once were, in one of the snapshots, each once, in no order.

        The longest part of the pattern that stands for itself is looked for in the recorded names first, so that only
        what is around its hits has to be matched.
        """
        match = PatternList([pattern]).match
        return self.paths(lambda path, is_dir: match(b"/" + path, is_dir) is not None, literal_of(pattern.text))

    def paths(self, wanted: Wanted, literal: bytes = b"") -> Iterator[bytes]:
        """The same of the paths that are ``wanted`` (see ``walk``), all of which have ``literal`` in a name."""
        secret = system_random(_SECRET)
        newest = max(self._roots)  # which are all there
        runs = [time for time in reversed(self._catalog.times()) if time <= newest]
        with closing(SpillTable(self._catalog.database.directory)) as told:
            for time in runs:  # the first one, the largest by far, comes last: no need to remember what it has
                is_last = time == runs[-1]
                for path in chain.from_iterable(_search(part, literal) for part in self._names(time)):
                    if not wanted(path, partial(self._is_directory, path)):
                        continue
                    key = blake3(path, key=secret).digest()  # of which nobody can guess the path
                    if told.get(key) is None:
                        if not is_last:
                            told.put(key, b"")
                        yield path
        if not self._catalog.database.usable:
            raise Lost

    def _names(self, time: int) -> Iterator[bytes]:
        """The names that were new in a run. Its snapshot may be gone by now, but later ones still have most of them."""
        run = self._catalog.run(time)
        if run is None:
            return  # of another key
        count = 0
        for part in self._catalog.names(time):
            count += 1
            yield part
        if count != run.names_parts:
            raise Lost

    def _is_directory(self, path: bytes) -> bool:
        return any(part.is_directory for part in self._parts(path))

    def _parts(self, path: bytes) -> list[Part]:
        """The different records that have the entry at ``path``."""
        above, _, name = path.rpartition(b"/")
        found = []
        for key, times in _by_value(self._keys(above)):
            for record, those in self._loaded(key, times):
                parts = [(record, those)]
                if record.is_split:
                    parts = [part for leaf in candidates(record, key, name) for part in self._loaded(leaf, those)]
                for part, when in parts:
                    number = part.place.get(name)
                    if number is not None:
                        found.append(Part(part, number, when))
        return found

    def _keys(self, path: bytes) -> dict[int, int]:
        """The key of the directory ``path`` at each of the times that have it."""
        if not path:
            return self._roots
        keys = self._directories.get(path)
        if keys is None:
            keys = _keys_of(path.rpartition(b"/")[2], self._parts(path))
            self._directories[path] = keys
            if len(self._directories) > _KEPT_DIRECTORIES:
                self._directories.popitem(last=False)
        return keys

    def _loaded(self, key: int, times: list[int]) -> Iterator[tuple[Record, list[int]]]:
        """The different records of a directory or leaf at the given times."""
        for place, those in _by_value(self._catalog.find_all(times, key)):
            yield self._load(place), those

    def _load(self, place: Place | None) -> Record:
        if place is None:
            raise Lost
        record = self._records.get(place)
        if record is None:
            record = self._catalog.load(place)
            if record is None:
                raise Lost
            self._records[place] = record
            if len(self._records) > _KEPT_RECORDS:
                self._records.popitem(last=False)
        return record


def open_histories(snapshots: Iterable[Snapshot], name: str) -> tuple[list[History], list[Snapshot]]:
    """(The archives ``name`` of snapshots of one group side by side; the snapshots whose archive is not in the catalog
    and cannot be recorded). There are several histories where some archives are encrypted and others are not.

    Snapshots without such an archive are passed over. Raises KeyProblem.
    """
    catalogs: Catalogs = {}
    times: dict[Catalog, list[int]] = {}
    missing = []
    for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.ref.time):
        if not any(archive.name == name and archive.kind == "tree" for archive in snapshot.archives()):
            continue
        catalog = ensure(snapshot, name, catalogs)
        if catalog is None:
            missing.append(snapshot)
            continue
        times.setdefault(catalog, []).append(snapshot.ref.time)
    return [History(catalog, those) for catalog, those in times.items()], missing


class _Version:
    """A version while the states of later snapshots are compared with it."""

    def __init__(self, found: _Found) -> None:
        self.item = found.item
        self.times = list(found.times)
        self.items, self._inode, self._ctime = found.state

    def is_same(self, state: _State) -> bool:
        items, inode, ctime = state
        return (
            items == self.items
            and (inode == self._inode or not inode or not self._inode)
            and (ctime == self._ctime or not ctime or not self._ctime)
        )

    def add(self, found: _Found) -> None:
        self.times += found.times
        self._inode, self._ctime = found.state[1] or self._inode, found.state[2] or self._ctime


def _distinct(name: bytes, states: Iterable[_Found]) -> list[Version]:
    """The versions of an entry, oldest first."""
    versions: list[_Version] = []
    for found in sorted(states, key=lambda found: min(found.times)):
        same = next((one for one in reversed(versions) if one.is_same(found.state)), None)
        if same is None:
            versions.append(_Version(found))
        else:
            same.add(found)
    return [
        Version(tuple(sorted(one.times)), directory_entry(one.items, name) if one.item is None else one.item.entry)
        for one in versions
    ]


def _states(name: bytes, parts: Iterable[Part]) -> Iterator[_Found]:
    """Each state of what is no directory."""
    for part in parts:
        if not part.is_directory:
            item = Item(part.record, part.number, name)
            inode, _, _, ctime = item.row
            yield _Found((item.items, inode, ctime), part.times, item)


def _keys_of(name: bytes, parts: Iterable[Part]) -> dict[int, int]:
    """The key of a directory at each of the times that have it."""
    found: dict[int, int] = {}
    for part in parts:
        if part.is_directory:
            found.update(dict.fromkeys(part.times, Item(part.record, part.number, name).key))
    return found


def _by_value(mapping: dict[int, _T]) -> Iterator[tuple[_T, list[int]]]:
    """Each value with the times that have it."""
    found: dict[_T, list[int]] = {}
    for time, value in mapping.items():
        found.setdefault(value, []).append(time)
    yield from found.items()


def _plain(path: bytes) -> bytes:
    return b"/".join(part for part in path.split(b"/") if part)


def literal_of(text: bytes) -> bytes:
    """The longest part of a pattern's text that stands for itself and holds no slash."""
    return max(_BREAKS.split(text), key=len)


def _search(part: bytes, literal: bytes) -> Iterator[bytes]:
    """The paths in a part of a run's names that have ``literal`` in the name or above."""
    hit = part.find(literal)
    start = 0
    while 0 <= hit < len(part):
        end = part.find(b"\0", start)  # of the directory's path
        names_end = part.find(b"\0\0", end)
        if hit >= names_end:
            start = names_end + 2
            continue
        above = part[start:end]
        prefix = above + b"/" if above else b""
        if hit < end or not literal:
            for name in part[end + 1 : names_end].split(b"\0"):
                yield prefix + name
            hit = part.find(literal, names_end + 2)
        else:
            first = part.rfind(b"\0", end, hit) + 1
            last = part.find(b"\0", hit)
            yield prefix + part[first:last]
            hit = part.find(literal, last)
