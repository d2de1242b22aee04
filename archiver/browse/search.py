"""Looking for entries by name, kind, size and time: in one snapshot, or in all of a group with their versions.

The catalog answers, for all snapshots at once. Archives that it does not have and cannot record are read one by one;
what is found there is told for each of their snapshots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from archiver.browse.history import History, Version, literal_of, open_histories
from archiver.browse.recorded import Lost
from archiver.browse.snapshot import Snapshot
from archiver.browse.view import ArchiveView
from archiver.errors import ArchiverError
from archiver.store.layout import GroupRef, SnapshotRef
from formats.errors import FormatError
from formats.patterns import Pattern, PatternList
from formats.pxar.decoder import LEAVE
from formats.pxar.encoder import encode_entry
from formats.pxar.items import Entry, Kind

_FEW = 3000  # paths whose versions are looked up one by one; of more, all directories are gone through

_Matches = Callable[[bytes, Callable[[], bool]], bool]
Unread = Callable[[SnapshotRef, ArchiverError], None]
"""Is told of a snapshot whose archive cannot be read, or not to its end; it may raise the error."""


def _raised(ref: SnapshotRef, error: ArchiverError) -> None:
    raise error


class Query(NamedTuple):
    """All of what is given must be true of an entry.

    ``pattern`` is one as for excludes; ``expression`` must match somewhere in the path (``b"/a/b"``). ``size`` is the
    smallest and largest number of bytes, of regular files only; ``mtime`` the first and last moment in ns.
    """

    pattern: Pattern | None = None
    expression: re.Pattern[bytes] | None = None
    kinds: frozenset[Kind] | None = None
    size: tuple[int, int] | None = None
    mtime: tuple[int, int] | None = None

    def matcher(self) -> _Matches:
        """Whether a path (``b"a/b"``) is one; asks whether it is a directory only where that matters."""
        rules = None if self.pattern is None else PatternList([self.pattern]).match
        search = None if self.expression is None else self.expression.search

        def matches(path: bytes, is_directory: Callable[[], bool]) -> bool:
            path = b"/" + path
            if rules is not None and rules(path, is_directory) is None:
                return False
            return search is None or search(path) is not None

        return matches

    def takes(self, entry: Entry) -> bool:
        """What is said of an entry itself."""
        if self.kinds is not None and entry.kind not in self.kinds:
            return False
        if self.size is not None and not (entry.kind == "file" and self.size[0] <= entry.size <= self.size[1]):
            return False
        if self.mtime is not None:
            if entry.metadata is None:
                return False
            stat = entry.metadata.stat
            return self.mtime[0] <= stat.mtime_secs * 1_000_000_000 + stat.mtime_nanos <= self.mtime[1]
        return True


class Hit(NamedTuple):
    """``path`` from the archive's root: ``b"/a/b"``."""

    group: GroupRef
    archive: str
    path: bytes
    version: Version


def tree_names(snapshots: Iterable[Snapshot]) -> list[str]:
    """Names of all directory trees in any of the snapshots."""
    names = {archive.name: None for snapshot in snapshots for archive in snapshot.archives() if archive.kind == "tree"}
    return list(names)


def search(snapshots: Sequence[Snapshot], name: str, query: Query, unread: Unread = _raised) -> Iterator[Hit]:
    """What of the archives ``name`` of snapshots of one group is as ``query`` says: each path in the order of a walk,
    its versions oldest first. Raises KeyProblem, Unsigned."""
    group = snapshots[0].ref.group
    histories, missing = open_histories(snapshots, name)
    for history in histories:
        for path, versions in _resumed(history, snapshots, name, query):
            for version in versions:
                if query.takes(version.entry):
                    yield Hit(group, name, b"/" + path, version)
    for snapshot in missing:
        try:
            for path, entry in _of_archive(snapshot, name, query.matcher()):
                if query.takes(entry):
                    yield Hit(group, name, b"/" + path, Version((snapshot.ref.time,), entry))
        except ArchiverError as error:
            unread(snapshot.ref, error)


def _resumed(
    history: History, snapshots: Sequence[Snapshot], name: str, query: Query
) -> Iterator[tuple[bytes, list[Version]]]:
    """What is found in a history; from where it had come to without the snapshots that are removed meanwhile."""
    left: History | None = history
    last, behind = b"", [b""]
    while left is not None:
        try:
            for path, versions in _found(left, query):
                if len(left.times) == len(history.times) or path.split(b"/") > behind:
                    yield path, versions
                    last = path
            return
        except Lost as error:
            left, behind = _narrowed(left, snapshots, name, error), last.split(b"/")


def _narrowed(history: History, snapshots: Sequence[Snapshot], name: str, lost: Lost) -> History | None:
    """The same without the snapshots that were removed since; None when none is left. Raises ArchiverError when none
    was removed: the database lacks something."""
    there = {snapshot.ref.time for snapshot in snapshots if snapshot.store.is_finished(snapshot.ref)}
    times = [time for time in history.times if time in there]
    if len(times) == len(history.times):
        group = snapshots[0].ref.group
        text = f"the database cannot tell about {name} of {group}"
        raise ArchiverError(text, hint="try: archiver db rebuild") from lost
    return history.of(times) if times else None


def _found(history: History, query: Query) -> Iterator[tuple[bytes, list[Version]]]:
    matches = query.matcher()
    if query.pattern is None and query.expression is None:
        yield from history.walk(matches)
        return
    literal = b"" if query.pattern is None else literal_of(query.pattern.text)
    few = list(islice(history.paths(matches, literal), _FEW + 1))
    if len(few) > _FEW:
        yield from history.walk(matches)
        return
    for path in sorted(few, key=lambda path: path.split(b"/")):
        versions = history.versions(path)
        if versions:
            yield path, versions


def _of_archive(snapshot: Snapshot, name: str, matches: _Matches) -> Iterator[tuple[bytes, Entry]]:
    """The paths (``b"a/b"``) that match, from the archive itself."""
    view = ArchiveView(snapshot.tree(snapshot.archive(name)))
    above: list[bytes] = []
    try:
        for event in view.tree.decoder():
            if event is LEAVE:
                if above:
                    above.pop()
                continue
            if not event.depth:
                continue
            path = b"/".join((*above, event.name))
            if event.kind == "dir":
                above.append(event.name)
            if matches(path, partial(bool, event.kind == "dir")):
                yield path, event
    except FormatError as error:
        raise view.damaged(error) from error


# All versions of one path.


def versions_of(snapshots: Sequence[Snapshot], name: str, path: bytes, unread: Unread = _raised) -> list[Version]:
    """The distinct versions of ``path`` in the archives ``name`` of snapshots of one group, oldest first."""
    histories, missing = open_histories(snapshots, name)
    found: list[Version] = []
    for history in histories:
        left: History | None = history
        while left is not None:
            try:
                found += left.versions(path)
                break
            except Lost as error:
                left = _narrowed(left, snapshots, name, error)
    for snapshot in missing:
        try:
            entry = ArchiveView(snapshot.tree(snapshot.archive(name))).open_path(path)
        except ArchiverError as error:
            unread(snapshot.ref, error)
            continue
        if entry is not None:
            found.append(Version((snapshot.ref.time,), entry))
    if not missing and len(histories) == 1:
        return found
    return _merged(found)


def _merged(versions: Iterable[Version]) -> list[Version]:
    """Those from several sources of which the archives say the same made one."""
    found: dict[bytes, Version] = {}
    for version in versions:
        entry = version.entry._replace(payload_offset=0, link_offset=0)
        state = entry.kind.encode() + (encode_entry(entry) if entry.name else repr(entry.metadata).encode())
        same = found.get(state)
        times = version.times if same is None else tuple(sorted(same.times + version.times))
        found[state] = Version(times, version.entry)
    return sorted(found.values(), key=lambda version: version.times)
