"""Everything at once in separate processes, some of which are killed: two backups, prune, gc, verify, sync, restore.

After each process that ends every index in the store has all its chunks, and what was restored is what was saved. No
process waits for long: those that work for others' locks get them in turn.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from archiver.store.store import Store
from tests.compare import differences
from tests.random_trees import build_plain, mutate
from tests.store.collecting import needed, present
from tests.stores import ROOT, command, damage, every_snapshot, make_store, restored_differences

pytestmark = pytest.mark.in_memory

# Killed, done, some snapshots were in use, locked, gone meanwhile, held by a guard.
EXPECTED = {-signal.SIGKILL, 0, 3, 10, 11, 14, 30}
HOUSE = ("prune", "gc", "gc files", "gc cutoff", "verify", "sync", "sync all", "restore", "restore")


@dataclass
class Running:
    name: str
    process: subprocess.Popen[str]
    began: float
    kept: Path | None = None  # what a backup saves, or a restore is to bring back
    target: Path | None = None


@dataclass
class Stress:
    """``trees``: the two sources, each changed between two backups of it; ``held``: snapshot -> a copy of its tree."""

    place: Path
    rng: random.Random
    held: dict[str, Path] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.store, self.second = make_store(self.place / "store"), make_store(self.place / "second")
        self.trees = [self.place / f"tree-{number}" for number in range(2)]
        for number, tree in enumerate(self.trees):
            build_plain(tree, number, files=60, max_size=400_000)

    def start(self, name: str, *arguments: str | Path) -> Running:
        whole = command("--store", self.store, *arguments)
        process = subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return Running(name, process, time.monotonic())

    def backup(self, number: int) -> Running:
        tree, mode = self.trees[number], ["data", "metadata"][number]
        mutate(tree, self.rng.randrange(1 << 30), 5)
        self.count += 1
        kept = self.place / f"kept-{self.count}"
        shutil.copytree(tree, kept, symlinks=True)
        running = self.start(
            f"backup {mode}",
            *("backup", f"tree.pxar:{tree}", "--id", f"b{number}", "--chunk-size", "64", "--mode", mode),
        )
        running.kept = kept
        return running

    def house(self) -> Running:
        name = self.rng.choice(HOUSE)
        both = self.store, self.second
        if name == "restore" and self.held:
            snapshot = self.rng.choice(sorted(self.held))
            self.count += 1
            target = self.place / f"out-{self.count}"
            running = self.start(name, "restore", snapshot, target)
            running.kept, running.target = self.held[snapshot], target
            return running
        arguments: dict[str, tuple[str | Path, ...]] = {
            "prune": ("prune", "--keep-last", "3"),
            "gc files": ("gc", "--from-files"),
            "gc cutoff": ("gc", "--cutoff", "1"),
            "verify": ("verify",),
            "sync": ("sync", *both),
            "sync all": ("sync", *both, "--remove-vanished", "--resync-corrupt"),
        }
        return self.start(name, *arguments.get(name, ("gc",)))

    def ended(self, running: Running) -> None:
        out, err = running.process.communicate(timeout=60)
        code = running.process.returncode
        assert "Traceback" not in err and "bug" not in err, err
        assert code in EXPECTED, (running.process.args, code, err)
        self.ends[f"{running.name} {'killed' if code < 0 else f'exit {code}'}"] += 1
        self.longest[running.name] = max(self.longest.get(running.name, 0), time.monotonic() - running.began)
        if running.name.startswith("backup") and code == 0:
            assert running.kept is not None
            self.held[out.splitlines()[-1].removeprefix("snapshot ")] = running.kept
        elif running.kept is not None and running.target is None:
            shutil.rmtree(running.kept)  # if its snapshot was published all the same, a verification reads it
        if running.target is not None and code == 0:
            assert running.kept is not None and differences(running.kept, running.target) == []
        if running.target is not None:
            shutil.rmtree(running.target, ignore_errors=True)
        self.check_whole()

    def check_whole(self) -> None:
        """Every index has its chunks, whoever is at work; what is pruned just now need not."""
        for path in (self.store, self.second):
            missing = self.needed(path) - present(path)
            assert not missing or not missing & self.needed(path) - present(path), (path, missing)

    @staticmethod
    def needed(path: Path) -> set[str]:
        while True:
            try:
                return needed(path)
            except (FileNotFoundError, NotADirectoryError):
                pass  # removed while it was looked at

    def run(self, seconds: float) -> None:
        running: dict[str, Running] = {}
        deadline = time.monotonic() + seconds
        while running or time.monotonic() < deadline:
            if time.monotonic() < deadline:
                for number in range(2):
                    if f"b{number}" not in running:
                        running[f"b{number}"] = self.backup(number)
                name = f"h{self.rng.randrange(2)}"
                if name not in running:
                    running[name] = self.house()
                if self.rng.random() < 0.05:
                    self.rng.choice(list(running.values())).process.kill()
            time.sleep(0.05)
            for name, each in list(running.items()):
                if each.process.poll() is not None:
                    self.ended(each)
                    del running[name]
        self.check()

    def check(self) -> None:
        """Nothing is in the way of anybody, and all is whole."""
        for number, tree in enumerate(self.trees):
            running = self.backup(number)
            self.ended(running)
            assert running.process.returncode == 0
            with Store.open(self.store) as opened:
                newest = max(ref for ref in every_snapshot(opened) if ref.group.id == f"b{number}")
                refs = every_snapshot(opened)
            assert restored_differences(self.store, newest, tree, self.place / "out") == []
            shutil.rmtree(self.place / "out")
        for ref in refs:
            if str(ref) in self.held:
                assert restored_differences(self.store, ref, self.held[str(ref)], self.place / "out") == []
                shutil.rmtree(self.place / "out")
        for path in (self.store, self.second):
            assert damage(path) == []


def test_everything_at_once(tmp_path: Path) -> None:
    stress = Stress(tmp_path, random.Random(1))
    stress.run(8)
    assert stress.ends.total() > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 13))
def test_everything_at_once_for_minutes(tmp_path: Path, seed: int) -> None:
    stress = Stress(tmp_path, random.Random(seed))
    stress.run(180)
    print(f"{stress.ends.total()} processes: {dict(sorted(stress.ends.items()))}")
    print("longest, seconds:", {name: round(seconds, 1) for name, seconds in sorted(stress.longest.items())})
    assert stress.ends.total() > 100
