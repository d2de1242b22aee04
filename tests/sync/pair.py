"""Two stores for a test, and a sync from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archiver.core.events import Listener, ignore
from archiver.store.layout import SnapshotRef, parse_reference
from archiver.store.store import Store
from archiver.sync.check import check
from archiver.sync.partners import open_target, remember
from archiver.sync.plan import SyncOptions, SyncPlan, make_plan
from archiver.sync.run import SyncResult, carry_out
from tests.random_trees import build_plain, mutate
from tests.stores import every_snapshot, make_store, save

START = 1_700_000_000


@dataclass
class Pair:
    """The directories of two stores, the second one empty at first."""

    source: Path
    target: Path
    tree: Path
    saved: list[SnapshotRef] = field(default_factory=list)

    @classmethod
    def make(cls, place: Path, *, snapshots: int = 0) -> Pair:
        """With snapshots a day apart of a tree that changes in between; it stays as the last one has it."""
        pair = cls(make_store(place / "source"), make_store(place / "target"), place / "tree")
        build_plain(pair.tree, 3, files=12, max_size=300_000)
        for number in range(snapshots):
            if number:
                mutate(pair.tree, number, 4)
            pair.saved.append(save(pair.source, pair.tree, time=START + 86400 * number).snapshot)
        return pair

    def sync(self, *, rate: int | None = None, listener: Listener = ignore, **options: Any) -> SyncResult:
        with Store.open(self.source) as ours, open_target(ours, str(self.target), ignore, new_target=False) as theirs:
            theirs.identify()
            remember(ours, theirs)
            chosen = SyncOptions(**options)
            return carry_out(ours, theirs, make_plan(ours, theirs, chosen), chosen, listener, rate=rate)

    def plan(self, **options: Any) -> SyncPlan:
        with Store.open(self.source) as ours, Store.open(self.target) as theirs:
            return make_plan(ours, theirs, SyncOptions(**options))

    def lacking(self, **options: Any) -> dict[str, str]:
        """What a check finds: snapshot of the source -> reason."""
        with Store.open(self.source) as ours, Store.open(self.target) as theirs:
            found = check(ours, theirs, SyncOptions(**options))
        return {str(each.snapshot): each.reason for each in found.shortfalls}

    def copies(self) -> list[SnapshotRef]:
        return finished(self.target)


def finished(path: Path) -> list[SnapshotRef]:
    with Store.open(path) as store:
        return sorted(ref for ref in every_snapshot(store) if store.is_finished(ref))


def snapshot_files(path: Path, ref: SnapshotRef) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / ref.path).iterdir()}


def find(text: str) -> SnapshotRef:
    ref = parse_reference(text)
    assert isinstance(ref, SnapshotRef)
    return ref
