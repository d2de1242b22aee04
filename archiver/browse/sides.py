"""Two snapshots, or a snapshot and a live directory, compared archive by archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from archiver.browse.catalog import Catalogs
from archiver.browse.contents import SameContents, are_equal
from archiver.browse.diff import Change, Comparison
from archiver.browse.live import CLI_EXCLUDES, LiveView
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.browse.view import ArchiveView, answered, open_view
from archiver.errors import NotFound
from archiver.store.indexes import Index
from archiver.store.layout import WRAPPED_KEY
from formats.index import FixedIndex
from formats.patterns import Pattern


class WholeState(NamedTuple):
    """``kind``: image or blob; ``size`` in bytes."""

    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class WholeChange:
    """An image or a blob that is different. It has the members of a Change; there is no path in it."""

    before: WholeState | None
    after: WholeState | None
    bytes_added: int
    bytes_removed: int
    path: bytes = b""

    @property
    def change(self) -> str:
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    @property
    def what(self) -> tuple[str, ...]:
        if self.before is None or self.after is None:
            return ()
        return ("content",) if self.before.size == self.after.size else ("size", "content")


def archive_names(before: Snapshot, after: Snapshot) -> dict[str, str]:
    """Names of all archives that either has, with their kinds; trees first."""
    kinds = {archive.name: archive.kind for snapshot in (before, after) for archive in snapshot.archives()}
    kinds.pop(WRAPPED_KEY.removesuffix(".blob"), None)  # it is wrapped anew each time
    return dict(sorted(kinds.items(), key=lambda item: item[1] != "tree"))


def _archive(snapshot: Snapshot, name: str) -> ArchiveFiles | None:
    return next((archive for archive in snapshot.archives() if archive.name == name), None)


def tree_changes(
    before: Snapshot, after: Snapshot, name: str, path: bytes, *, contents: bool, excludes: Sequence[Pattern] = ()
) -> Iterator[Change]:
    """What is different at ``path`` and below it, ``excludes`` left out. NotFound when neither tree has it. With
    ``contents`` these are compared, whatever the metadata say."""

    def ask(use_catalog: bool) -> Iterator[Change]:
        catalogs: Catalogs = {}
        views = [_view(snapshot, name, use_catalog and not contents, catalogs) for snapshot in (before, after)]
        old, new = views
        tops = [None if view is None else view.open_path(path) for view in views]
        if tops == [None, None]:
            raise NotFound(f"there is no {path.decode('utf-8', 'backslashreplace')} in {name} of either snapshot")
        same = None
        if contents and isinstance(old, ArchiveView) and isinstance(new, ArchiveView):
            same = SameContents(old, new)
        yield from Comparison(old, new, same, excludes).changes(*tops)

    return answered(ask)


def _view(snapshot: Snapshot, name: str, use_catalog: bool, catalogs: Catalogs) -> Any:
    archive = _archive(snapshot, name)
    if archive is None or archive.kind != "tree":
        return None
    return open_view(snapshot, archive, catalogs, use_catalog=use_catalog)


def live_changes(
    snapshot: Snapshot,
    archive: ArchiveFiles,
    path: bytes,
    live: Callable[[], LiveView],
    *,
    contents: bool,
    excludes: Sequence[Pattern] = (),
) -> Iterator[Change]:
    """What a live directory has become since it, or what is at ``path``, was saved; ``excludes`` left out on both
    sides. NotFound."""

    def ask(use_catalog: bool) -> Iterator[Change]:
        view: Any = _view(snapshot, archive.name, use_catalog and not contents, {})
        top = view.find(path)
        with live() as now:
            same = SameContents(view, now) if contents else None
            for change in Comparison(view, now, same, excludes).changes(top, now.root()):
                if change.path[1:] != CLI_EXCLUDES:
                    yield change

    return answered(ask)


def whole_change(before: Snapshot, after: Snapshot, name: str) -> WholeChange | None:
    """Of an image or blob; None when both snapshots have the same. Of images of equal chunks the digests are compared,
    all others are read. Raises KeyProblem, Damaged."""
    old, new = _archive(before, name), _archive(after, name)
    first = None if old is None else _state(before, old)
    second = None if new is None else _state(after, new)
    if old is None or new is None or first is None or second is None:
        return WholeChange(first, second, 0 if second is None else second.size, 0 if first is None else first.size)
    if old.kind == new.kind == "image":
        indexes = [snapshot.index(one.files[0]) for snapshot, one in ((before, old), (after, new))]
        numbers = _new_bytes(*indexes)
        if numbers is not None:
            return WholeChange(first, second, *numbers) if any(numbers) else None
    if first == second and are_equal(before.contents(old), after.contents(new)):
        return None
    return WholeChange(first, second, second.size, first.size)


def _state(snapshot: Snapshot, archive: ArchiveFiles) -> WholeState:
    file = archive.files[0]
    snapshot.require_key(file)
    return WholeState(archive.kind, file.size if archive.kind == "image" else len(snapshot.blob(file)))


def _new_bytes(old: Index, new: Index) -> tuple[int, int] | None:
    """Bytes of the chunks that only the new and only the old image has at their places; None when their chunks are of
    different sizes."""
    if not (isinstance(old, FixedIndex) and isinstance(new, FixedIndex)) or old.chunk_size != new.chunk_size:
        return None
    common = min(len(old), len(new))
    differ = (old.digests[:common] != new.digests[:common]).any(axis=1)
    added, removed = (
        int(index.sizes()[:common][differ].sum()) + int(index.sizes()[common:].sum()) for index in (new, old)
    )
    return added, removed
