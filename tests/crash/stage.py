"""A small store to try an operation on: a tree, and some snapshots of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import plan_forget, remove
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.index import decode_index
from tests.compare import Description, snapshot_tree
from tests.crash.checking import Scene
from tests.random_trees import noise
from tests.stores import GROUP, Ahead, Heard, every_snapshot, make_store, save

START = 1_700_000_000


class Stage:
    """A store, a small tree, and some snapshots of it."""

    def __init__(self, place: Path, *, crypt: CryptConfig | None = None) -> None:
        self.place, self.crypt = place, crypt
        self.root = make_store(place / "store")
        self.tree = place / "tree"
        self.tree.mkdir()
        (self.tree / "folder").mkdir()
        self._seed = 0
        for name in ("a", "b", "folder/c"):
            self.write(name, 3000)
        self.write("large", 150_000)
        self.trees: dict[SnapshotRef, Description] = {}

    def write(self, name: str, size: int) -> None:
        self._seed += 1
        path = self.tree / name
        path.write_bytes(noise(self._seed, size))
        os.utime(path, (START, START + self._seed))
        os.utime(path.parent, (START, START + self._seed))

    def change(self) -> None:
        self.write("folder/c", 2000)
        self.write(f"folder/new-{self._seed}", 70_000)

    def save(self, number: int = 0, group: GroupRef = GROUP, path: Path | None = None, **options: Any) -> SnapshotRef:
        when = START + 86400 * number
        saved = save(path or self.root, self.tree, group=group, time=when, crypt=self.crypt, clock=Ahead(), **options)
        assert saved.problems == []
        return saved.snapshot

    def snapshot(self, number: int = 0, group: GroupRef = GROUP, **options: Any) -> SnapshotRef:
        """One that is there before the operation."""
        ref = self.save(number, group, **options)
        self.trees[ref] = snapshot_tree(self.tree)
        return ref

    def snapshots(self, count: int, group: GroupRef = GROUP) -> list[SnapshotRef]:
        found = []
        for number in range(count):
            if self.trees:
                self.change()
            found.append(self.snapshot(number, group, mode="metadata"))
        return found

    def scene(self, run: Callable[[Path], object], **options: Any) -> Scene:
        left: frozenset[SnapshotRef] = frozenset().union(*(options.get(name, ()) for name in ("new", "gone", "maybe")))
        options.setdefault("kept", frozenset(self.trees) - left)
        return Scene(self.root, run, dict(self.trees), crypt=self.crypt, **options)


def chunk_of(path: Path, digest: str) -> Path:
    return path / ".chunks" / digest[:4] / digest


def needed_by(path: Path, ref: SnapshotRef) -> set[str]:
    indexes = [decode_index(file.read_bytes()) for file in (path / ref.path).glob("*idx")]
    return {index.digest(entry).hex() for index in indexes for entry in range(len(index))}


def forget_snapshots(path: Path, refs: list[SnapshotRef]) -> None:
    """Those that are there."""
    with Store.open(path, clock=Ahead(), listener=Heard()) as store:
        there = set(every_snapshot(store))
        outcome = remove(store, plan_forget(store, [str(ref) for ref in refs if ref in there]))
        assert not outcome.skipped and not outcome.failed
