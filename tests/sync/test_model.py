"""Random runs of backup (plain and encrypted), forget, gc, sync, interruption, loss of databases and damage, against
two dictionaries."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from archiver.store.gc.collect import collect
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import plan_forget, remove
from archiver.store.store import Store
from tests.random_trees import build_plain, mutate
from tests.stores import KEY, chunk_files, damage, make_store, restored_differences, save
from tests.sync.pair import START, Pair, finished

pytestmark = pytest.mark.in_memory

GROUPS = (GroupRef("", "host", "one"), GroupRef("inner", "host", "two"))


class Cut(BaseException):
    """Ends a sync in the middle."""


@dataclass
class Model:
    """What each store must hold: snapshot -> a copy of its tree."""

    place: Path
    rng: random.Random
    pair: Pair
    source: dict[SnapshotRef, Path] = field(default_factory=dict)
    target: dict[SnapshotRef, Path] = field(default_factory=dict)
    begun: set[SnapshotRef] = field(default_factory=set)
    time: int = START

    def backup(self) -> None:
        group = self.rng.choice(GROUPS)
        self.time += 3600
        mutate(self.pair.tree, self.rng.randrange(1 << 30), 3)
        crypt = KEY if group == GROUPS[1] else None
        ref = save(self.pair.source, self.pair.tree, group=group, time=self.time, crypt=crypt).snapshot
        kept = self.place / f"kept-{self.time}"
        shutil.copytree(self.pair.tree, kept, symlinks=True)
        self.source[ref] = kept

    def forget(self) -> None:
        path, held = self.rng.choice([(self.pair.source, self.source), (self.pair.target, self.target)])
        if held:
            ref = self.rng.choice(sorted(held))
            with Store.open(path) as store:
                assert remove(store, plan_forget(store, [str(ref)])).removed == [ref]
            del held[ref]

    def gc(self) -> None:
        with Store.open(self.rng.choice([self.pair.source, self.pair.target])) as store:
            collect(store, from_files=self.rng.random() < 0.3)

    def lose_database(self) -> None:
        for file in (self.rng.choice([self.pair.source, self.pair.target]) / ".archiver/db").glob("*"):
            file.unlink()

    def expected(self, last: int | None) -> set[SnapshotRef]:
        """What a sync copies."""
        found = set()
        for group in GROUPS:
            ours = sorted(ref for ref in self.source if ref.group == group)
            newest = max((ref.time for ref in self.target if ref.group == group), default=0)
            for ref in ours:
                is_chosen = ref.time > newest and (last is None or ref in ours[-last:])
                if ref not in self.target and (is_chosen or ref in self.begun):
                    found.add(ref)
        return found

    def sync(self) -> None:
        last = self.rng.choice([None, None, None, 2])
        vanished = self.rng.random() < 0.3
        wanted = self.expected(last)
        result = self.pair.sync(transfer_last=last, remove_vanished=vanished, resync_corrupt=self.rng.random() < 0.2)
        assert result.errors == []
        assert {step.source for step in result.done if step.action == "copy"} == wanted
        for ref in wanted:
            self.target[ref] = self.source[ref]
        self.begun -= wanted
        if vanished:
            self.target = {ref: tree for ref, tree in self.target.items() if ref in self.source}

    def cut_sync(self) -> None:
        events = self.rng.randrange(1, 60)

        def hear(event: object) -> None:
            nonlocal events
            events -= 1
            if events == 0:
                raise Cut

        wanted = self.expected(None)
        try:
            self.pair.sync(listener=hear)
        except Cut:
            pass
        for ref in set(finished(self.pair.target)) - self.target.keys():
            assert ref in wanted
            self.target[ref] = self.source[ref]
        self.begun = {ref for ref in self.begun | wanted if self.is_begun(ref)}

    def is_begun(self, ref: SnapshotRef) -> bool:
        sessions = (self.pair.target / ".archiver/sessions").glob("*/resume.json")
        return any(ref.path in file.read_text() for file in sessions)

    def damaged_sync(self) -> None:
        """A chunk of the source is lost and comes back."""
        files = chunk_files(self.pair.source)
        if not files:
            return
        file = self.rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        wanted = self.expected(None)
        result = self.pair.sync()
        failed = {ref for ref in wanted if str(ref) in {problem.name for problem in result.problems}}
        assert {problem.name for problem in result.problems} == {str(ref) for ref in failed}
        for ref in wanted - failed:
            self.target[ref] = self.source[ref]
        self.begun = (self.begun - wanted) | failed
        file.write_bytes(whole)

    def check(self) -> None:
        assert set(finished(self.pair.source)) == self.source.keys()
        assert set(finished(self.pair.target)) == self.target.keys()
        assert damage(self.pair.source, KEY) == [] and damage(self.pair.target, KEY) == []
        lacking = {str(ref) for ref in self.source.keys() - self.target.keys()}
        assert set(self.pair.lacking()) == lacking
        if self.target:
            ref = self.rng.choice(sorted(self.target))
            out = self.place / "out"
            crypt = KEY if ref.group == GROUPS[1] else None
            assert restored_differences(self.pair.target, ref, self.target[ref], out, crypt) == []
            shutil.rmtree(out)


def run(place: Path, seed: int, steps: int) -> None:
    rng = random.Random(seed)
    tree = place / "tree"
    build_plain(tree, seed, files=8, max_size=200_000)
    model = Model(place, rng, Pair(make_store(place / "source"), make_store(place / "target"), tree))
    actions = {
        model.backup: 5,
        model.sync: 3,
        model.cut_sync: 2,
        model.damaged_sync: 1,
        model.forget: 2,
        model.gc: 1,
        model.lose_database: 1,
    }
    for _ in range(steps):
        (action,) = rng.choices(list(actions), list(actions.values()))
        action()
        model.check()


@pytest.mark.parametrize("seed", range(3))
def test_short_runs(tmp_path: Path, seed: int) -> None:
    run(tmp_path, seed, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_long_runs(tmp_path: Path, seed: int) -> None:
    run(tmp_path, seed, 150)
