"""Metadata runs that end early in every way, and runs that follow one: the store opens, what was saved stays, the next
run is complete (P1). What an interrupted run leaves behind makes the next one faster, never wrong.

The trees have forged times: of a file that was changed in between, size and modification time are as they were.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from tests.backup.living_tree import CHANGES, LivingTree
from tests.compare import Description, compare_descriptions, snapshot_tree
from tests.mounts import fill, small_file_system
from tests.random_trees import START, build_plain, noise
from tests.stores import ROOT, archiver, bring_back, command, damage, every_snapshot, make_store, save

pytestmark = pytest.mark.in_memory

MIB = 1 << 20
KINDS = sorted(CHANGES.keys() - {"huge_directory", "sparse", "exclude", "delete_directory"})

# The program's own way to a backup, with the clock of tests.stores: files that were made just now count as settled.
_SAVE = """
import sys
from pathlib import Path
from tests.stores import save
save(Path(sys.argv[1]), Path(sys.argv[2]), mode="metadata")
"""


def start_run(store: Path, source: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", _SAVE, str(store), str(source)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Night:
    """A store, a tree, and what each snapshot has to hold."""

    def __init__(self, place: Path, seed: int, files: int = 300) -> None:
        self.rng = random.Random(seed)
        self.tree = LivingTree(place / "source", forged=True)
        build_plain(self.tree.root, seed, files=files, max_size=40_000)
        self.change_the_large_file()
        self.store = make_store(place / "store")
        self.out = place / "out"
        self.kept: dict[SnapshotRef, Description] = {}
        self.save()

    def change_the_large_file(self) -> None:
        path = self.tree.root / "large"
        path.write_bytes(noise(self.rng.randrange(10**6), 16 * MIB))
        os.utime(path, ns=(START, START))

    def change(self, count: int) -> None:
        for _ in range(count):
            self.tree.change(self.rng.choice(KINDS), self.rng.randrange(10**6))

    def save(self) -> int:
        """One whole run; the bytes it has read."""
        saved = save(self.store, self.tree.root, mode="metadata")
        assert saved.problems == []
        self.kept[saved.snapshot] = snapshot_tree(self.tree.root)
        self.check(saved.snapshot)
        return saved.result.files.bytes_read

    def check(self, ref: SnapshotRef) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        assert bring_back(self.store, ref, self.out, verify=False).problems == []
        assert compare_descriptions(self.kept[ref], snapshot_tree(self.out)) == []

    def check_all(self) -> None:
        """After a run that came to no good end, which may have been published all the same."""
        with Store.open(self.store) as store:
            found = every_snapshot(store)
            assert all(store.is_finished(ref) for ref in found), "a half-visible snapshot"
            assert store.database is not None and store.database.check() == []
        fresh = set(found) - self.kept.keys()
        assert self.kept.keys() <= set(found) and len(fresh) <= 1
        for ref in fresh:
            self.kept[ref] = snapshot_tree(self.tree.root)
        assert damage(self.store) == []
        for ref in {*fresh, self.rng.choice(found)}:
            self.check(ref)

    def sessions(self) -> list[str]:
        """Without those that were killed before they had a name: they are empty, and removed when old."""
        names = os.listdir(self.store / ".archiver" / "sessions")
        return [name for name in names if not name.startswith(".new-")]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def kill_at_random_moments(place: Path, seed: int, count: int) -> None:
    """Each night one run is killed, or two that follow each other, at moments spread over the time of a whole run."""
    night = Night(place, seed)
    night.change_the_large_file()
    spare = place / "spare"
    shutil.copytree(night.store, spare)
    began = time.monotonic()
    assert start_run(spare, night.tree.root).wait() == 0
    whole = time.monotonic() - began
    for number in range(count):
        night.change_the_large_file()
        for _ in range(1 + number % 2):
            night.change(8)
            with start_run(night.store, night.tree.root) as process:
                try:
                    process.wait(whole * (number + night.rng.random()) / count * 1.2)
                except subprocess.TimeoutExpired:
                    process.kill()
            night.check_all()
        night.change(3)
        night.save()
        assert night.sessions() == []


def test_killed_at_some_moments(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, 1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_moments(tmp_path: Path, seed: int) -> None:
    kill_at_random_moments(tmp_path, seed, 10)


# -- what is left behind -----------------------------------------------------------------------------------------------


def large_files(source: Path) -> None:
    source.mkdir()
    for number in range(60):
        path = source / f"file-{number:02}"
        path.write_bytes(noise(number, MIB))
        os.utime(path, ns=(START, START))


def kill_in_the_middle(store: Path, source: Path) -> None:
    """When about two thirds of the contents are stored."""
    chunks = len(os.listdir(store / ".chunks"))
    process = start_run(store, source)
    try:
        while process.poll() is None and len(os.listdir(store / ".chunks")) < chunks + 500:
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("again", [False, True])
def test_the_next_run_goes_on(tmp_path: Path, again: bool) -> None:
    """Files that the killed run had stored are not read again; those that were changed since are, whatever their
    times say."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    large_files(source)
    kill_in_the_middle(store, source)
    if again:
        for number in range(60, 120):
            (source / f"file-{number}").write_bytes(noise(number, MIB))
        kill_in_the_middle(store, source)
    for number in (0, 7):
        path = source / f"file-{number:02}"
        path.write_bytes(noise(1000 + number, MIB))
        os.utime(path, ns=(START, START))
    (source / "file-03").unlink()
    (source / "file-04").rename(source / "file-05")
    saved = save(store, source, mode="metadata")
    total = sum(path.stat().st_size for path in source.iterdir())
    assert 2 * MIB <= saved.result.files.bytes_read < total - 10 * MIB
    assert os.listdir(store / ".archiver" / "sessions") == []
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert compare_descriptions(snapshot_tree(source), snapshot_tree(tmp_path / "out")) == []
    assert damage(store) == []


@pytest.mark.parametrize("harm", ["truncate", "noise", "remove"])
def test_chunks_of_a_killed_run_that_are_no_good(tmp_path: Path, harm: str) -> None:
    """A power cut takes what was not yet durable: the end of a file, its bytes, its name."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    large_files(source)
    kill_in_the_middle(store, source)
    for path in sorted((store / ".chunks").glob("*/*"))[::3]:
        if harm == "truncate":
            os.truncate(path, path.stat().st_size // 2)
        elif harm == "noise":
            path.write_bytes(noise(1, path.stat().st_size))
        else:
            path.unlink()
    saved = save(store, source, mode="metadata")
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert compare_descriptions(snapshot_tree(source), snapshot_tree(tmp_path / "out")) == []
    assert damage(store) == []


@pytest.mark.parametrize("harm", ["truncate", "noise", "zeros", "empty"])
def test_other_files_of_a_killed_run_that_are_no_good(tmp_path: Path, harm: str) -> None:
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    large_files(source)
    kill_in_the_middle(store, source)
    left = [path for path in (store / ".archiver" / "sessions").rglob("*") if path.is_file()]
    assert left != []
    for path in left:
        size = path.stat().st_size
        if harm == "truncate":
            os.truncate(path, size * 2 // 3)
        elif harm == "empty":
            os.truncate(path, 0)
        else:
            with path.open("r+b") as file:
                file.seek(size // 2)
                file.write(bytes(size - size // 2) if harm == "zeros" else noise(2, size - size // 2))
    saved = save(store, source, mode="metadata")
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert compare_descriptions(snapshot_tree(source), snapshot_tree(tmp_path / "out")) == []
    assert damage(store) == []


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    build_plain(source, 3, files=100)
    options = ("--store", store, "backup", f"tree.pxar:{source}", "--id", "test", "--mode", "metadata")
    assert archiver(*options, "--chunk-size", "64").returncode == 0
    (source / "large").write_bytes(noise(14, 30 * MIB))
    before = len(os.listdir(store / ".chunks"))
    process = subprocess.Popen(
        command(*options, "--chunk-size", "64"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(os.listdir(store / ".chunks")) < before + 50:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list((store / ".chunks").rglob("*.tmp_*")) == []
    with Store.open(store) as opened:
        assert len(every_snapshot(opened)) == 1
    done = archiver(*options, "--chunk-size", "64")
    assert done.returncode == 0, done.stderr
    with Store.open(store) as opened:
        newest = every_snapshot(opened)[-1]
    assert os.listdir(store / ".archiver" / "sessions") == []
    bring_back(store, newest, tmp_path / "out")
    assert compare_descriptions(snapshot_tree(source), snapshot_tree(tmp_path / "out")) == []
    assert damage(store) == []


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["on the full disk", "elsewhere"])
@pytest.mark.parametrize("leave", [0, 40 << 10, 400 << 10, 3 << 20])
def test_the_disk_is_full_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: int, database: str
) -> None:
    """Wherever the space ends; when there is room again the next run is complete."""
    source = tmp_path / "source"
    build_plain(source, 3, files=200)
    with small_file_system(tmp_path, 40 * MIB) as place:
        if database == "on the full disk":
            monkeypatch.setenv("ARCHIVER_DB_DIR", str(place / "db"))
        store = make_store(place / "store")
        first = save(store, source, mode="metadata").snapshot
        before = snapshot_tree(source)
        fill(place, leave)
        for number in range(8):
            (source / f"more-{number}").write_bytes(noise(number, 500_000))
        options = ("--store", store, "backup", f"tree.pxar:{source}", "--id", "test", "--mode", "metadata")
        for _ in range(2):
            done = archiver(*options, "--chunk-size", "64")
            assert done.returncode == 40, done.stderr
            assert "archiver: no space left to " in done.stderr and "Traceback" not in done.stderr
        with Store.open(store) as opened:
            assert every_snapshot(opened) == [first]
        bring_back(store, first, tmp_path / "first")
        assert compare_descriptions(before, snapshot_tree(tmp_path / "first")) == []
        (place / "filler").unlink()
        second = save(store, source, mode="metadata").snapshot
        bring_back(store, second, tmp_path / "second")
        assert compare_descriptions(snapshot_tree(source), snapshot_tree(tmp_path / "second")) == []
        assert damage(store) == []
        assert os.listdir(store / ".archiver" / "sessions") == []
        with Store.open(store) as opened:
            assert opened.database is not None and opened.database.check() == []
