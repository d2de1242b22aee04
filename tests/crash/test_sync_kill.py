"""kill -9 of a sync at any moment: every copy that is visible is whole, and the next sync goes on where it ended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from archiver.store.gc.collect import collect
from archiver.store.store import Store
from tests.random_trees import noise
from tests.stores import ROOT, chunk_files, command, damage, every_snapshot, restored_differences, save
from tests.sync.pair import Pair, finished

pytestmark = pytest.mark.in_memory

_PLACES = ("rename", "renameat2", "fdatasync", "syncfs", "pwrite64", "mkdir", "fsync", "utimensat", "unlink")


def prepare(place: Path) -> Pair:
    pair = Pair.make(place, snapshots=2)
    (pair.tree / "large").write_bytes(noise(1, 12 << 20))
    pair.saved.append(save(pair.source, pair.tree).snapshot)
    return pair


def check(pair: Pair) -> None:
    """Right after the kill."""
    with Store.open(pair.target) as store:
        assert every_snapshot(store) == finished(pair.target), "a half-visible snapshot"
    copies = finished(pair.target)
    assert copies == pair.saved[: len(copies)], "they are published in the order of their times"
    assert damage(pair.target) == []


def ends_the_work(pair: Pair, scratch: Path) -> None:
    """A garbage collection takes nothing that the interrupted sync has stored; that is not copied again."""
    there = len(chunk_files(pair.target))
    with Store.open(pair.target) as store:
        assert collect(store, from_files=True).removed_chunks == 0
    assert len(chunk_files(pair.target)) == there
    result = pair.sync()
    assert result.errors == []
    assert result.copied.chunks == len(chunk_files(pair.target)) - there
    assert finished(pair.target) == pair.saved and damage(pair.target) == [] and pair.lacking() == {}
    assert os.listdir(pair.target / ".archiver/sessions") == []
    with Store.open(pair.target) as store:
        assert store.database is not None and store.database.check() == []
    assert restored_differences(pair.target, pair.saved[-1], pair.tree, scratch) == []
    shutil.rmtree(scratch)


def kill_at_random_moments(tmp_path: Path, seed: int, kills: int) -> None:
    pair = prepare(tmp_path)
    rng = random.Random(seed)
    shutil.copytree(pair.target, tmp_path / "kept")
    begin = time.monotonic()
    subprocess.run(command("sync", pair.source, pair.target), cwd=ROOT, check=True, capture_output=True)
    whole = time.monotonic() - begin
    killed = stored = 0
    sessions = pair.target / ".archiver" / "sessions"
    for _ in range(kills):
        shutil.rmtree(pair.target)
        shutil.copytree(tmp_path / "kept", pair.target)
        for _ in range(rng.randrange(1, 4)):
            running = subprocess.Popen(
                command("sync", pair.source, pair.target), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            while running.poll() is None and not (sessions.is_dir() and any(sessions.iterdir())):
                time.sleep(0.002)  # its start may take long on a busy machine
            time.sleep(rng.uniform(0, 0.7) * whole)
            running.kill()
            running.communicate()
            killed += running.returncode == -signal.SIGKILL
            check(pair)
        stored += len(chunk_files(pair.target)) > 0
        ends_the_work(pair, tmp_path / "out")
    assert killed and stored


def test_killed_at_some_moments(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, 1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_killed_at_many_moments(tmp_path: Path, seed: int) -> None:
    kill_at_random_moments(tmp_path, seed, 25)


@pytest.fixture(scope="module")
def tracing() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")


def kill_at_places(tmp_path: Path, places: list[tuple[str, int]]) -> None:
    """At the n-th call of a kind. The copy of the second snapshot is a bad one that is to be replaced."""
    pair = prepare(tmp_path)
    assert pair.sync(transfer_last=3).errors == []
    (pair.target / pair.saved[1].path / "tree.mpxar.didx").unlink()
    shutil.rmtree(pair.target / pair.saved[2].path)
    shutil.copytree(pair.target, tmp_path / "kept")
    arguments = command("sync", "--resync-corrupt", pair.source, pair.target)
    killed = 0
    for call, number in places:
        shutil.rmtree(pair.target)
        shutil.copytree(tmp_path / "kept", pair.target)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
        done = subprocess.run(["strace", "-f", "-qq", *inject, *arguments], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        killed += done.returncode != 0
        with Store.open(pair.target) as store:
            assert pair.saved[1] in every_snapshot(store), "the old copy is there until the new one is"
        assert pair.sync(resync_corrupt=True).errors == []
        assert finished(pair.target) == pair.saved and damage(pair.target) == [] and pair.lacking() == {}
    assert killed > len(places) // 3


@pytest.mark.usefixtures("tracing")
def test_killed_at_some_places(tmp_path: Path) -> None:
    kill_at_places(tmp_path, [(call, 1 + number % 2 * 2) for number, call in enumerate(_PLACES)])


@pytest.mark.slow
@pytest.mark.usefixtures("tracing")
def test_killed_at_many_places(tmp_path: Path) -> None:
    kill_at_places(tmp_path, [(call, number) for call in _PLACES for number in range(1, 40)])
