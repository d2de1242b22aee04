"""What made a snapshot larger than the one before: directories with the bytes that came and went.

Promise P6: a report is a file that anybody may read, so nothing is told of a snapshot that is encrypted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archiver.browse.diff import Sizes
from archiver.browse.sides import archive_names, tree_changes, whole_change
from archiver.browse.snapshot import Snapshot
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store

_DEPTH = 4
_ROWS = 12


@dataclass(frozen=True, slots=True)
class Row:
    archive: str
    path: bytes
    added: int
    removed: int

    def as_json(self) -> dict[str, Any]:
        path = self.path.decode("utf-8", "surrogateescape") or None
        return {"archive": self.archive, "path": path, "bytes_added": self.added, "bytes_removed": self.removed}


@dataclass(frozen=True, slots=True)
class Grown:
    """From ``before`` to ``after``, the most first. ``is_secret``: there may be changes, but they are not told."""

    before: str
    after: str
    is_secret: bool
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        rows = [row.as_json() for row in self.rows]
        return {"before": self.before, "after": self.after, "secret": self.is_secret, "items": rows}


def grown(store: Store, before: SnapshotRef, after: SnapshotRef) -> Grown:
    """Raises ArchiverError where they cannot be read."""
    old, new = (Snapshot(store, ref, allow_unsigned=True) for ref in (before, after))
    if any(file.crypt_mode == "encrypt" for snapshot in (old, new) for file in snapshot.manifest.files):
        return Grown(str(before), str(after), True, ())
    rows: list[Row] = []
    for name, kind in archive_names(old, new).items():
        sizes = Sizes(_DEPTH)
        if kind == "tree":
            for change in tree_changes(old, new, name, b"", contents=False):
                sizes.add(change)
        elif (whole := whole_change(old, new, name)) is not None:
            sizes.add(whole)
        rows += [Row(name, path, added, removed) for path, added, removed, _ in sizes.largest_first()]
    return Grown(str(before), str(after), False, tuple(_telling(rows)[:_ROWS]))


def _telling(rows: list[Row]) -> list[Row]:
    """Without directories of which a single one below has it all, and without what neither grew nor shrank."""
    moved = [row for row in rows if row.added or row.removed]
    parents: dict[tuple[str, bytes], list[Row]] = {}
    for row in moved:
        if row.path.strip(b"/"):
            above = row.path.rpartition(b"/")[0] or b"/"
            parents.setdefault((row.archive, above), []).append(row)

    def is_all(row: Row) -> bool:
        below = parents.get((row.archive, row.path), [])
        return any((each.added, each.removed) == (row.added, row.removed) for each in below)

    return sorted((row for row in moved if not is_all(row)), key=lambda row: (-row.added, -row.removed, row.path))
