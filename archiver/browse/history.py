"""All recorded snapshots of an archive side by side: the versions of a path, and paths by a pattern."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

from blake3 import blake3

from archiver.browse.catalog import ensure
from archiver.browse.recorded import Item, Lost, RunTree, candidates
from archiver.browse.snapshot import Snapshot
from archiver.core.clock import system_random
from archiver.core.spill import SpillTable
from archiver.store.catalog.catalog import Catalog, Place
from archiver.store.catalog.record import Record
from formats.patterns import Pattern, PatternList
from formats.pxar.items import Entry

_T = TypeVar("_T")
_State = tuple[bytes, int, int]  # what the archive says, inode and change time; these are 0 where they are not known
_KEPT_DIRECTORIES = 256
_KEPT_RECORDS = 512
_SECRET = 32  # bytes
_BREAKS = re.compile(rb"\\.|\[[!^]?(?:\[:[a-z]+:\]|\\.|[^\]])*\]|[*?/]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Version:
    """What one path was in the snapshots of ``times``, oldest first. ``entry`` is without positions."""

    times: tuple[int, ...]
    entry: Entry


class History:
    """The archives ``name`` of the snapshots of ``times``, all of which are in the catalog. Not for several threads.

    Every method raises Lost where the catalog turns out to lack something.
    """

    def __init__(self, catalog: Catalog, times: Sequence[int]) -> None:
        self.times = sorted(times)
        self._catalog = catalog
        self._trees = {time: RunTree(catalog, time) for time in self.times}
        self._directories: OrderedDict[bytes, dict[int, int]] = OrderedDict()
        self._records: OrderedDict[Place, Record] = OrderedDict()

    def versions(self, path: bytes) -> list[Version]:
        """The distinct versions of the entry at ``path`` (``b"a/b"`` or ``b"/a/b"``), oldest first.

        Two states are one version when the archive says the same of them and nothing that was recorded of the live file
        speaks against it: another inode or change time, where they are known.
        """
        found: list[_Version] = []
        path = _plain(path)
        items = self._items(path) if path else dict.fromkeys(self.times)
        for time, item in items.items():
            state = self._state(time, item)
            for version in reversed(found):
                if version.is_same(state):
                    version.add(time, state)
                    break
            else:
                found.append(_Version(time, item, state))
        name = path.rpartition(b"/")[2]
        return [Version(tuple(version.times), self._entry(version.times[0], version.item, name)) for version in found]

    def _state(self, time: int, item: Item | None) -> _State:
        if item is None or item.kind == "dir":
            return self._record(time, self._trees[time].root if item is None else item.key).own, 0, 0
        inode, _, _, ctime = item.row
        return item.items, inode, ctime

    def _entry(self, time: int, item: Item | None, name: bytes) -> Entry:
        tree = self._trees[time]
        return tree.directory_entry(tree.root) if item is None else tree.entry(item)

    def glob(self, pattern: Pattern) -> Iterator[bytes]:
        """The paths (``b"a/b"``) that match and are, or once were, in one of the snapshots, each once, in no order.

        The longest part of the pattern that stands for itself is looked for in the recorded names first, so that only
        what is around its hits has to be matched.
        """
        match = PatternList([pattern]).match
        literal, secret = _literal(pattern.text), system_random(_SECRET)
        runs = [time for time in reversed(self._catalog.times()) if time <= self.times[-1]]
        with closing(SpillTable(self._catalog.database.directory)) as told:
            for time in runs:  # the first one, the largest by far, comes last: no need to remember what it has
                is_last = time == runs[-1]
                for path in chain.from_iterable(_search(part, literal) for part in self._names(time)):
                    if match(b"/" + path, partial(self._is_directory, path)) is None:
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
        return any(item.kind == "dir" for item in self._items(path).values())

    def _items(self, path: bytes) -> dict[int, Item]:
        """The entry at ``path`` at each of the times that have one."""
        above, _, name = path.rpartition(b"/")
        found: dict[int, Item] = {}
        for key, times in _by_value(self._keys(above)):
            for record, those in self._loaded(key, times):
                parts = [(record, those)]
                if record.is_split:
                    parts = [part for leaf in candidates(record, key, name) for part in self._loaded(leaf, those)]
                for part, when in parts:
                    number = part.place.get(name)
                    if number is not None:
                        found.update(dict.fromkeys(when, Item(part, number, name)))
        return dict(sorted(found.items()))

    def _keys(self, path: bytes) -> dict[int, int]:
        """The key of the directory ``path`` at each of the times that have it."""
        if not path:
            return {time: tree.root for time, tree in self._trees.items()}
        keys = self._directories.get(path)
        if keys is None:
            keys = {time: item.key for time, item in self._items(path).items() if item.kind == "dir"}
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

    def _record(self, time: int, key: int) -> Record:
        return self._load(self._catalog.find(time, key))


def open_histories(snapshots: Iterable[Snapshot], name: str) -> tuple[list[History], list[Snapshot]]:
    """(The archives ``name`` of snapshots of one group side by side; the snapshots whose archive is not in the catalog
    and cannot be recorded). There are several histories where some archives are encrypted and others are not.

    Snapshots without such an archive are passed over. Raises KeyProblem.
    """
    catalogs: dict[bytes, Catalog] = {}
    times: dict[bytes, list[int]] = {}
    missing = []
    for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.ref.time):
        if not any(archive.name == name and archive.kind == "tree" for archive in snapshot.archives()):
            continue
        catalog = ensure(snapshot, name)
        if catalog is None:
            missing.append(snapshot)
            continue
        catalogs[catalog.seal.identity] = catalog
        times.setdefault(catalog.seal.identity, []).append(snapshot.ref.time)
    return [History(catalog, times[identity]) for identity, catalog in catalogs.items()], missing


class _Version:
    """A version while the states of later snapshots are compared with it."""

    def __init__(self, time: int, item: Item | None, state: _State) -> None:
        self.item = item
        self.times = [time]
        self._items, self._inode, self._ctime = state

    def is_same(self, state: _State) -> bool:
        items, inode, ctime = state
        return (
            items == self._items
            and (inode == self._inode or not inode or not self._inode)
            and (ctime == self._ctime or not ctime or not self._ctime)
        )

    def add(self, time: int, state: _State) -> None:
        self.times.append(time)
        self._inode, self._ctime = state[1] or self._inode, state[2] or self._ctime


def _by_value(mapping: dict[int, _T]) -> Iterator[tuple[_T, list[int]]]:
    """Each value with the times that have it."""
    found: dict[_T, list[int]] = {}
    for time, value in mapping.items():
        found.setdefault(value, []).append(time)
    yield from found.items()


def _plain(path: bytes) -> bytes:
    return b"/".join(part for part in path.split(b"/") if part)


def _literal(text: bytes) -> bytes:
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
