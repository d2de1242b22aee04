"""The restore drill of a job: some files of a snapshot, others each time, are restored into a directory of their own,
read again, and compared with what the catalog says of them and with the live files that have not changed since."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from archiver.browse.difference import differences
from archiver.browse.recorded import Lost
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.browse.view import open_view
from archiver.core.events import FileProblem, Listener
from archiver.restore.drill import Sample, choose, restored
from archiver.restore.drill import drill as restore_one
from formats.pxar.items import Entry

_PIECE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """At most ``files`` files with ``size`` bytes; ``turn``: which ones. ``scratch``: where they are restored, None for
    the usual place of temporary files. ``sources``: of archives, where their files live."""

    files: int = 20
    size: int = 256 << 20
    turn: int = 0
    scratch: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class DrillResult:
    """``recorded`` files were compared with the catalog, ``compared`` with live ones; ``different`` of these differ."""

    snapshot: str
    files: int = 0
    bytes: int = 0
    recorded: int = 0
    compared: int = 0
    different: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "snapshot": self.snapshot,
            "files": self.files,
            "bytes": self.bytes,
            "in_catalog": self.recorded,
            "compared": self.compared,
            "different": self.different,
        }


def drill(snapshot: Snapshot, options: DrillOptions, listener: Listener) -> DrillResult:
    """Raises Damaged for a file that does not come back as it was saved, NotFound where there is none, ArchiverError.
    Differences from the live files and from the catalog are in the result."""
    result = DrillResult(str(snapshot.ref))
    for sample in samples(snapshot, options):
        with restored(snapshot, sample, listener, options.scratch) as (place, done):
            result.files += done.files
            result.bytes += done.bytes
            _compare_with_catalog(snapshot, sample, result, listener)
            source = options.sources.get(sample.archive.name)
            if source is not None:
                _compare_with_live(place, source, sample, result, listener)
    if not result.files:
        found = restore_one(snapshot, listener)
        result.files, result.bytes = 1, found.size
    return result


def samples(snapshot: Snapshot, options: DrillOptions) -> list[Sample]:
    """Files from all over the trees, at equal distances."""
    trees = [archive for archive in snapshot.archives() if archive.kind == "tree"]
    counts = [_count(snapshot, tree) for tree in trees]
    picker = _Picker(options, sum(counts))
    found = [choose(snapshot, tree, picker) for tree in trees]
    return [sample for sample in found if sample.chosen]


def _count(snapshot: Snapshot, archive: ArchiveFiles) -> int:
    count = 0

    def wanted(entry: Entry) -> bool:
        nonlocal count
        count += 1
        return False

    choose(snapshot, archive, wanted)
    return count


class _Picker:
    """Says yes to one file in so many, another one in each turn."""

    def __init__(self, options: DrillOptions, total: int) -> None:
        self._stride = max(total // options.files, 1)
        self._first = options.turn % self._stride
        self._left, self._room = options.files, options.size
        self._number = -1

    def __call__(self, entry: Entry) -> bool:
        self._number += 1
        if self._number % self._stride != self._first or not self._left or entry.size > self._room:
            return False
        self._left -= 1
        self._room -= entry.size
        return True


def _compare_with_catalog(snapshot: Snapshot, sample: Sample, result: DrillResult, listener: Listener) -> None:
    try:
        view: Any = open_view(snapshot, sample.archive)
        for path, entry in sample.chosen:
            what = differences(view.entry(view.find(path)), entry)
            result.recorded += 1
            if what:
                result.different += 1
                listener(FileProblem(path, f"the catalog has another {', '.join(what)}", "different"))
    except Lost:
        return  # the catalog lacks something, which the next backup mends


def _compare_with_live(place: str, source: str, sample: Sample, result: DrillResult, listener: Listener) -> None:
    for path, entry in sample.chosen:
        same = _is_same(os.path.join(os.fsencode(place), path), os.path.join(os.fsencode(source), path), entry)
        if same is None:
            continue
        result.compared += 1
        if not same:
            result.different += 1
            text = "the live file has other contents than the snapshot, though its size and time are the same"
            listener(FileProblem(path, text, "different"))


def _is_same(copy: bytes, live: bytes, entry: Entry) -> bool | None:
    """None for a live file that has changed since, or cannot be read."""
    unchanged = _unchanged(live, entry)
    try:
        if not unchanged():
            return None
        with open(copy, "rb") as ours, open(live, "rb") as theirs:
            while True:
                piece = ours.read(_PIECE)
                if piece != theirs.read(_PIECE):
                    return None if not unchanged() else False
                if not piece:
                    return True
    except OSError:
        return None


def _unchanged(live: bytes, entry: Entry) -> Callable[[], bool]:
    assert entry.metadata is not None
    saved = entry.metadata.stat
    time = saved.mtime_secs * 1_000_000_000 + saved.mtime_nanos

    def look() -> bool:
        status = os.lstat(live)
        return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (entry.size, time)

    return look
