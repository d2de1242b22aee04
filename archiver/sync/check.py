"""Whether a copy is complete, without reading contents: manifests, the database's references, names of chunk files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from archiver.errors import ArchiverError, Damaged, NotFound
from archiver.store import snapshots
from archiver.store.chunks import check_present
from archiver.store.digests import distinct_parts
from archiver.store.indexes import is_index, open_index
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from archiver.sync.filters import chosen
from archiver.sync.missing import missing_chunks
from archiver.sync.plan import SyncOptions, join, levels, wanted
from formats.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A snapshot of the source that the target has not, or not completely."""

    snapshot: SnapshotRef
    reason: str

    def as_json(self) -> dict[str, str]:
        return {"snapshot": str(self.snapshot), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``snapshots``: how many were compared."""

    snapshots: int
    shortfalls: list[Shortfall]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "snapshots": self.snapshots,
            "complete": not self.shortfalls,
            "items": [each.as_json() for each in self.shortfalls],
        }


def check(source: Store, target: Store, options: SyncOptions) -> CheckResult:
    """Compare every snapshot that ``options`` choose (of ``transfer_last`` the last ones). Raises ArchiverError when
    the source cannot be listed."""
    return _Check(source, target, options).run()


class _Check:
    def __init__(self, source: Store, target: Store, options: SyncOptions) -> None:
        self._source, self._target, self._options = source, target, options
        self._shortfalls: list[Shortfall] = []
        self._recorded: list[tuple[SnapshotRef, SnapshotRef]] = []  # those whose chunks the database tells
        self._count = 0

    def run(self) -> CheckResult:
        options = self._options
        for rest in levels(self._source, options.namespace, options.max_depth):
            for group in self._source.groups(join(options.namespace, rest)):
                if chosen(group, options.filters):
                    self._group(group, GroupRef(join(options.to_namespace, rest), group.type, group.id))
        self._chunks()
        check_present(self._target.layout)
        return CheckResult(self._count, sorted(self._shortfalls, key=lambda each: each.snapshot))

    def _add(self, ref: SnapshotRef, reason: str) -> None:
        self._shortfalls.append(Shortfall(ref, reason))

    def _group(self, group: GroupRef, to: GroupRef) -> None:
        found: list[tuple[SnapshotRef, Manifest | None]] = []
        for when in self._source.times(group):
            ref = SnapshotRef(group, when)
            try:
                manifest = self._source.manifest(ref)
            except NotFound:
                continue
            except Damaged:
                found.append((ref, None))
                continue
            if wanted(manifest, self._options):
                found.append((ref, manifest))
        for ref, ours in found[-self._options.transfer_last :] if self._options.transfer_last else found:
            self._count += 1
            try:
                self._snapshot(ref, SnapshotRef(to, ref.time), ours)
            except ArchiverError as error:
                self._add(ref, str(error))

    def _snapshot(self, ref: SnapshotRef, to: SnapshotRef, ours: Manifest | None) -> None:
        target = self._target
        try:
            theirs = target.manifest(to, from_file=True)
        except NotFound:
            self._add(ref, "not there")
            return
        if ours is not None and (ours.canonical(), ours.signature) != (theirs.canonical(), theirs.signature):
            self._add(ref, "another snapshot of the same name")
            return
        present = set(os.listdir(target.layout.snapshot(to)))
        missing = sorted({file.filename for file in theirs.files} - present)
        if missing:
            self._add(ref, f"{', '.join(missing)} is missing")
            return
        database = target.database
        row = database.snapshot(to.path) if database is not None else None
        if row is not None and row.stamp == snapshots.manifest_stamp(target.layout, to):
            self._recorded.append((ref, to))
        else:
            self._by_files(ref, to, theirs)

    def _by_files(self, ref: SnapshotRef, to: SnapshotRef, manifest: Manifest) -> None:
        """Without a record of the snapshot its indexes are read."""
        for file in manifest.files:
            if not is_index(file.filename):
                continue
            index = open_index(self._target.layout, to, file)
            parts = distinct_parts(index.digests)
            missing = sum(self._target.chunks.seen(bytes(digest)) is None for part in parts for digest in part)
            if missing:
                self._add(ref, f"{missing} chunks of {file.filename} are missing")

    def _chunks(self) -> None:
        database = self._target.database
        if database is None or not self._recorded:
            return
        used = np.zeros(len(database.sizes()[0]), np.bool_)
        for _, to in self._recorded:
            for numbers in database.references(to.path) or []:
                used[numbers[numbers < len(used)]] = True
        missing = missing_chunks(self._target, used)
        if missing is None:
            raise ArchiverError("the database of the target cannot be read", hint="try again: it is built anew then")
        for ref, to in self._recorded if missing.any() else ():
            references = database.references(to.path) or []
            count = sum(len(np.unique(numbers[missing[numbers]])) for numbers in references)
            if count:
                self._add(ref, f"{count} chunks are missing or damaged")
