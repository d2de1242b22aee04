"""Backups side by side: processes, threads and open stores of one process."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from archiver.store.layout import GroupRef
from archiver.store.store import Store
from tests.random_trees import build_plain, noise
from tests.stores import (
    GROUP,
    ROOT,
    Saved,
    chunk_files,
    command,
    damage,
    every_snapshot,
    new_chunks,
    restored_differences,
    save,
    save_into,
)

pytestmark = pytest.mark.in_memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Trees that have most of their content in common."""
    found = []
    for number in range(3):
        source = tmp_path / f"source-{number}"
        build_plain(source, 1, files=200, max_size=40_000)
        (source / "common").write_bytes(noise(2, 8 << 20))
        (source / "own").write_bytes(noise(3 + number, 2 << 20))
        found.append(source)
    return found


def check(path: Path, count: int) -> None:
    assert damage(path) == []
    with Store.open(path) as store:
        refs = every_snapshot(store)
        assert len(refs) == count and all(store.is_finished(ref) for ref in refs)
        assert store.database is not None
        assert store.database.check() == []
        assert set(store.database.stamps()) == {ref.path for ref in refs}
    assert list((path / ".archiver" / "sessions").iterdir()) == []


@pytest.mark.parametrize("same_group", [True, False])
def test_processes_at_once(path: Path, sources: list[Path], tmp_path: Path, same_group: bool) -> None:
    """The first use of the store, too: identity, database and shards are made by whoever comes first."""
    ids = [GROUP.id if same_group else f"group-{number}" for number in range(len(sources))]
    running = [
        subprocess.Popen(
            command("--store", path, "backup", f"tree.pxar:{source}", "--id", id, "--chunk-size", "64"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for source, id in zip(sources, ids, strict=True)
    ]
    told = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], told
    check(path, 3)
    snapshots = [out.splitlines()[-1].removeprefix("snapshot ") for out, _ in told]
    assert len(set(snapshots)) == 3
    with Store.open(path) as store:
        refs = [store.find(text) for text in snapshots]
    for number, (ref, source) in enumerate(zip(refs, sources, strict=True)):
        assert restored_differences(path, ref, source, tmp_path / f"out-{number}") == []


@pytest.mark.parametrize("stores", [1, 2])
def test_threads_of_one_process_at_once(path: Path, sources: list[Path], tmp_path: Path, stores: int) -> None:
    """With one open store and with two, which share one database environment."""
    opened = [Store.open(path) for _ in range(stores)]
    results: dict[int, Saved] = {}

    def work(number: int) -> None:
        results[number] = save_into(opened[number % stores], sources[number], group=GroupRef("", "host", str(number)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in opened:
        store.close()
    assert results.keys() == {0, 1}
    check(path, 2)
    for number, result in results.items():
        assert restored_differences(path, result.snapshot, sources[number], tmp_path / f"out-{number}") == []
    assert new_chunks(save(path, sources[0])) == 0


def test_backup_while_the_database_is_rebuilt(path: Path, sources: list[Path]) -> None:
    save(path, sources[0])
    done = threading.Event()
    failures: list[BaseException] = []

    def rebuild() -> None:
        try:
            with Store.open(path) as store:
                while not done.is_set():
                    store.rebuild_database()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=rebuild)
    thread.start()
    try:
        for source in sources:
            save(path, source)
    finally:
        done.set()
        thread.join()
    assert failures == []
    assert damage(path) == []
    with Store.open(path) as store:
        assert store.database is not None and store.database.check() == []
    assert new_chunks(save(path, sources[1])) == 0
    assert len(chunk_files(path)) > 20
