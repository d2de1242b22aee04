"""What a backup would save, found out without saving anything: ``backup --dry-run``.

The sources are walked as the run would walk them, and trees compared with the group's newest snapshot by metadata. No
file is read, no command run, nothing written. Whether chunks of what is new are stored already only reading could tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from archiver.backup.run import BackupOptions
from archiver.backup.specification import ArchiveSpec, Kind
from archiver.browse.diff import Change, Comparison
from archiver.browse.live import CLI_EXCLUDES, LiveNode, LiveView
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.browse.view import answered, open_view
from archiver.core.disk import explained
from archiver.errors import ArchiverError
from archiver.source.image import STANDARD_INPUT, size_of
from archiver.source.problem import Report
from archiver.source.walk import WalkOptions
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store

Told = Callable[[str, Change], None]


@dataclass(slots=True)
class Rehearsed:
    """One archive. ``added``, ``changed`` and ``removed`` count entries of a tree, against the snapshot ``since``;
    ``bytes`` and ``bytes_to_read`` are None where nobody can know them (standard input)."""

    name: str
    kind: Kind
    since: SnapshotRef | None = None
    entries: int = 0
    files: int = 0
    bytes: int | None = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    bytes_to_read: int | None = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "since": None if self.since is None else str(self.since),
            "entries": self.entries,
            "files": self.files,
            "bytes": self.bytes,
            "added": self.added,
            "changed": self.changed,
            "removed": self.removed,
            "bytes_to_read": self.bytes_to_read,
        }


def rehearse(
    store: Store | None, specs: Sequence[ArchiveSpec], options: BackupOptions, told: Told, problem: Report
) -> list[Rehearsed]:
    """``told`` hears of every entry that is new, different or gone, with its archive's name; ``problem`` of what cannot
    be read. There need not be a ``store`` yet. Raises ArchiverError for a source that cannot be archived."""
    walk, snapshot = options.walk, None
    if store is not None:
        walk = walk._replace(never_enter=walk.never_enter | store.own_directories())
        times = store.times(options.group)
        if times:
            snapshot = Snapshot(store, SnapshotRef(options.group, times[-1]), options.crypt)
    return [
        _tree(spec, options, walk, snapshot, told, problem) if spec.kind == "tree" else _whole(spec) for spec in specs
    ]


def _whole(spec: ArchiveSpec) -> Rehearsed:
    if spec.path == STANDARD_INPUT:
        return Rehearsed(spec.archive, spec.kind, files=1, bytes=None, bytes_to_read=None)
    with explained("look at", spec.path):
        size = size_of(spec.path)
    return Rehearsed(spec.archive, spec.kind, files=1, bytes=size, bytes_to_read=size)


def _tree(
    spec: ArchiveSpec,
    options: BackupOptions,
    walk: WalkOptions,
    snapshot: Snapshot | None,
    told: Told,
    problem: Report,
) -> Rehearsed:
    found = Rehearsed(spec.archive, spec.kind)
    before = None if snapshot is None else _previous(snapshot, spec.archive)
    if snapshot is not None and before is not None:
        found.since = snapshot.ref

    def ask(use_catalog: bool) -> Iterator[Change]:
        found.entries = found.files = found.bytes = 0
        view: Any = None
        if snapshot is not None and before is not None:
            view = open_view(snapshot, before, use_catalog=use_catalog)
        with _Counted(spec.path, walk, problem, found) as live:
            yield from Comparison(view, live).changes(None if view is None else view.root(), live.root())

    for change in answered(ask):
        if change.path[1:] == CLI_EXCLUDES:
            continue
        setattr(found, change.change, getattr(found, change.change) + 1)
        if change.after is not None and change.after.kind == "file":
            found.bytes_to_read = (found.bytes_to_read or 0) + change.after.size
        told(spec.archive, change)
    if options.mode != "metadata":
        found.bytes_to_read = found.bytes
    return found


def _previous(snapshot: Snapshot, name: str) -> ArchiveFiles | None:
    """The archive that the run would go on from; None where it would have to save everything."""
    try:
        archive = next((one for one in snapshot.archives() if one.name == name and one.kind == "tree"), None)
        for file in archive.files if archive is not None else ():
            snapshot.require_key(file)
    except ArchiverError:
        return None
    return archive


class _Counted(LiveView):
    """One that counts what it is asked for: everything, once."""

    def __init__(self, path: str, options: WalkOptions, problem: Report, found: Rehearsed) -> None:
        super().__init__(path, options, problem)
        self._found = found

    def __enter__(self) -> _Counted:
        return self

    def root(self) -> LiveNode:
        self._found.entries += 1
        return super().root()

    def entries(self, directory: LiveNode) -> Iterator[LiveNode]:
        for node in super().entries(directory):
            self._found.entries += 1
            if node.kind == "file":
                self._found.files += 1
                self._found.bytes = (self._found.bytes or 0) + node.size
            yield node
