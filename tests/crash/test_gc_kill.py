"""kill -9 of a garbage collection at any moment: every snapshot is whole, and the next one ends the work (P4)."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from tests.random_trees import build_plain, mutate, noise
from tests.store.collecting import forget, gc, make_old, needed, present
from tests.stores import (
    ROOT,
    command,
    damage,
    every_snapshot,
    make_store,
    new_chunks,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

_PLACES = ("unlink", "fdatasync", "pwrite64", "syncfs", "fcntl", "utimensat", "rename")


def prepare(path: Path, source: Path, kept: Path) -> SnapshotRef:
    """Two snapshots of which the first one is removed; the other one's source is in ``kept``."""
    build_plain(source, 5, files=100, max_size=40_000)
    (source / "large").write_bytes(noise(6, 24 << 20))
    first = save(path, source).snapshot
    (source / "large").write_bytes(noise(7, 1 << 20))
    mutate(source, 8, 20)
    second = save(path, source).snapshot
    shutil.copytree(source, kept, symlinks=True)
    gc(path)
    forget(path, first)
    make_old(path)
    return second


class Prepared(NamedTuple):
    """A store, its snapshot, and the source of that. Each test has a copy of the store."""

    store: Path
    ref: SnapshotRef
    kept: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    place = tmp_path_factory.mktemp("gc-kill")
    store, kept = make_store(place / "store"), place / "kept"
    return Prepared(store, prepare(store, place / "source", kept), kept)


def check(path: Path, ref: SnapshotRef, source: Path, scratch: Path) -> None:
    assert needed(path) <= present(path)
    assert damage(path) == []
    with Store.open(path) as store:
        assert every_snapshot(store) == [ref]
        assert store.database is not None and store.database.check() == []
    assert restored_differences(path, ref, source, scratch) == []
    shutil.rmtree(scratch)


def ends_the_work(path: Path, source: Path) -> None:
    gc(path)
    assert present(path) == needed(path)
    with Store.open(path) as store:
        assert store.database is not None
        assert store.database.statistics()["chunk"] == len(present(path))
    assert new_chunks(save(path, source)) == 0


def test_killed_at_some_moments(prepared: Prepared, tmp_path: Path) -> None:
    kill_at_random_moments(prepared, tmp_path, 1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_moments(prepared: Prepared, tmp_path: Path, seed: int) -> None:
    kill_at_random_moments(prepared, tmp_path, seed, 20)


def kill_at_random_moments(prepared: Prepared, tmp_path: Path, seed: int, count: int) -> None:
    """The first half of a run is spent with starting: kills come in the second one mostly."""
    rng = random.Random(seed)
    path, ref, kept = prepared
    spare = tmp_path / "spare"
    shutil.copytree(path, spare)
    began = time.monotonic()
    subprocess.run(command("--store", spare, "gc"), cwd=ROOT, check=True, capture_output=True)
    whole = time.monotonic() - began
    partial = 0
    for number in range(count):
        shutil.rmtree(spare)
        shutil.copytree(path, spare)
        mode = rng.choice([[], ["--cutoff", "1445"], ["--from-files"]])
        with subprocess.Popen(
            command("--store", spare, "gc", *mode), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(whole * (0.5 + 0.5 * (number + rng.random()) / count))
            process.kill()
        partial += len(needed(spare)) < len(present(spare)) < len(present(path))
        check(spare, ref, kept, tmp_path / "out")
        ends_the_work(spare, kept)
    print(f"{partial} of {count} in the middle of the sweep")


def traced(*inject: str) -> list[str]:
    return ["strace", "-f", "-qq", "-e", f"trace={','.join(_PLACES)}", *inject]


@pytest.mark.parametrize(
    ("call", "occurrence"),
    [("unlink", 1), ("unlink", 40), ("unlink", 300), ("syncfs", 1), ("pwrite64", 1), ("pwrite64", 3), ("rename", 1)],
)
def test_killed_at_places(prepared: Prepared, tmp_path: Path, call: str, occurrence: int) -> None:
    """Before the first chunk goes, among them, and while the database is told."""
    if shutil.which("strace") is None or subprocess.run(traced("true"), capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")
    (made, ref, kept), path = prepared, tmp_path / "store"
    shutil.copytree(made, path)
    with Store.open(path) as store:
        assert store.database is not None  # knows that a snapshot has gone
    before = len(present(path))
    inject = ["-e", f"inject={call}:signal=SIGKILL:when={occurrence}"]
    done = subprocess.run(
        [*traced(*inject), *command("--store", path, "gc")], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode != 0
    gone = before - len(present(path))
    assert gone == occurrence - 1 if call == "unlink" else gone == 0 if call == "syncfs" else gone > 100
    check(path, ref, kept, tmp_path / "out")
    ends_the_work(path, kept)
