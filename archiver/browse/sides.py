"""Two snapshots, or a snapshot and a live directory, compared archive by archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from archiver.browse.catalog import Catalogs
from archiver.browse.contents import SameContents, are_equal
from archiver.browse.diff import Change, Comparison
from archiver.browse.live import LiveView
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.browse.view import ArchiveView, answered, open_view
from archiver.errors import NotFound
from formats.index import FixedIndex


@dataclass(frozen=True, slots=True)
class WholeChange:
    """An image or a blob that is different. Sizes in bytes, None: there is none; ``added``: bytes that are new."""

    name: str
    kind: str
    before: int | None
    after: int | None
    added: int
    removed: int


def archive_names(before: Snapshot, after: Snapshot) -> dict[str, str]:
    """Names of all archives that either has, with their kinds; trees first."""
    kinds = {archive.name: archive.kind for snapshot in (before, after) for archive in snapshot.archives()}
    return dict(sorted(kinds.items(), key=lambda item: item[1] != "tree"))


def _archive(snapshot: Snapshot, name: str) -> ArchiveFiles | None:
    return next((archive for archive in snapshot.archives() if archive.name == name), None)


def tree_changes(before: Snapshot, after: Snapshot, name: str, path: bytes, *, contents: bool) -> Iterator[Change]:
    """What is different at ``path`` and below it. NotFound when neither tree has it. With ``contents`` these are
    compared, whatever the metadata say."""

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
        yield from Comparison(old, new, same).changes(*tops)

    return answered(ask)


def _view(snapshot: Snapshot, name: str, use_catalog: bool, catalogs: Catalogs) -> Any:
    archive = _archive(snapshot, name)
    if archive is None or archive.kind != "tree":
        return None
    return open_view(snapshot, archive, catalogs, use_catalog=use_catalog)


def live_changes(
    snapshot: Snapshot, archive: ArchiveFiles, path: bytes, live: Callable[[], LiveView], *, contents: bool
) -> Iterator[Change]:
    """What a live directory has become since it, or what is at ``path``, was saved. NotFound."""

    def ask(use_catalog: bool) -> Iterator[Change]:
        view: Any = _view(snapshot, archive.name, use_catalog and not contents, {})
        top = view.find(path)
        with live() as now:
            same = SameContents(view, now) if contents else None
            yield from Comparison(view, now, same).changes(top, now.root())

    return answered(ask)


def whole_change(before: Snapshot, after: Snapshot, name: str) -> WholeChange | None:
    """Of an image or blob; None when both snapshots have the same. Of an image the chunks are compared, a blob is
    read. Raises KeyProblem, Damaged."""
    old, new = _archive(before, name), _archive(after, name)
    old, new = (None if one is None or one.kind == "tree" else one for one in (old, new))
    if old is None or new is None:
        one = old or new
        if one is None:
            return None
        size = _size(before if new is None else after, one)
        return WholeChange(name, one.kind, *((size, None, 0, size) if new is None else (None, size, size, 0)))
    if old.kind == new.kind == "image":
        return _image_change(before, old, after, new)
    sizes = _size(before, old), _size(after, new)
    if sizes[0] == sizes[1] and are_equal(before.contents(old), after.contents(new)):
        return None
    return WholeChange(name, new.kind, sizes[0], sizes[1], sizes[1], sizes[0])


def _size(snapshot: Snapshot, archive: ArchiveFiles) -> int:
    file = archive.files[0]
    if archive.kind == "image":
        snapshot.require_key(file)
        return file.size
    return len(snapshot.blob(file))


def _image_change(before: Snapshot, old: ArchiveFiles, after: Snapshot, new: ArchiveFiles) -> WholeChange | None:
    first, second = (snapshot.stream(one.files[0]).index for snapshot, one in ((before, old), (after, new)))
    if first.size == second.size and first.csum() == second.csum():
        return None
    sizes = first.size, second.size
    if not (isinstance(first, FixedIndex) and isinstance(second, FixedIndex)) or first.chunk_size != second.chunk_size:
        if sizes[0] == sizes[1] and are_equal(before.contents(old), after.contents(new)):
            return None
        return WholeChange(new.name, "image", *sizes, sizes[1], sizes[0])
    common = min(len(first), len(second))
    differ = (first.digests[:common] != second.digests[:common]).any(axis=1)
    added, removed = (
        int(index.sizes()[:common][differ].sum(dtype=np.int64)) + int(index.sizes()[common:].sum(dtype=np.int64))
        for index in (second, first)
    )
    return WholeChange(new.name, "image", *sizes, added, removed) if added or removed else None
