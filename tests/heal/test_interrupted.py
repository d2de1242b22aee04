"""Others at work while a store is healed, and healings that are killed: no harm is done, and the next one goes on."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from archiver.core.disk import Disk
from archiver.core.events import Progress
from archiver.store.gc.collect import collect
from archiver.store.layout import MANIFEST
from archiver.store.removal import plan_forget, remove
from archiver.store.store import Store
from tests.crash.recording import Killed, Recorder
from tests.heal.healing import checked, flip, heal, states
from tests.heal.test_heal import Lab, files
from tests.store.collecting import make_old
from tests.stores import chunk_files, damage, restored_differences, save

pytestmark = pytest.mark.in_memory


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def lose_much(lab: Lab, rng: random.Random) -> None:
    """Chunks, the index of one snapshot, the manifest of the other one."""
    for file in rng.sample(chunk_files(lab.path), 6):
        if rng.random() < 0.5:
            file.unlink()
        else:
            flip(file, rng)
    (lab.path / lab.refs[0].path / "tree.ppxar.didx").unlink()
    (lab.path / lab.refs[1].path / MANIFEST).write_bytes(b"")


def test_collections_while_it_runs(lab: Lab, tmp_path: Path) -> None:
    """An index is lost: nothing but the snapshot that is healed refers to the chunks, and all of them are old."""
    (lab.path / lab.refs[0].path / "tree.ppxar.didx").unlink()
    with Store.open(lab.path) as store:
        remove(store, plan_forget(store, [str(lab.refs[1])]))
    for file in chunk_files(lab.path)[::3]:
        file.unlink()
    make_old(lab.path)
    counts: list[int] = []

    def collecting(event: object) -> None:
        if isinstance(event, Progress) and event.task == "heal":
            with Store.open(lab.path) as store:
                counts.append(collect(store, cutoff=1, from_files=len(counts) % 2 == 0).removed_chunks)

    plan, _ = heal(lab.path, copies=[lab.copy], listener=collecting)
    assert len(counts) > 3 and not plan.remaining
    assert damage(lab.path) == []


def test_backups_and_healings_at_once(lab: Lab, tmp_path: Path) -> None:
    rng = random.Random(1)
    for file in rng.sample(chunk_files(lab.path), 8):
        flip(file, rng)
    errors: list[BaseException] = []

    def run(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    works = [
        lambda: heal(lab.path, copies=[lab.copy], read_all=True),
        lambda: heal(lab.path, live=[lab.tree], copies=[lab.copy], read_all=True),
        lambda: save(lab.path, lab.tree, time=1_700_000_100),
        lambda: checked(lab.path, repairs=True),
    ]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    plan, _ = heal(lab.path, copies=[lab.copy], live=[lab.tree], read_all=True)
    assert not plan.remaining and damage(lab.path) == []
    for number, ref in enumerate((*lab.refs[-1:], "latest")):
        with Store.open(lab.path) as store:
            found = store.find(str(ref))
        assert restored_differences(lab.path, found, lab.tree, tmp_path / f"out {number}") == []


def test_killed_at_any_step(tmp_path: Path) -> None:
    """What was sound stays so, nothing half is put in place, no snapshot that was there is gone, and it goes on."""
    seed = 0
    while True:
        lab = Lab(tmp_path / str(seed))
        rng = random.Random(1)
        sound = files(lab.copy)
        lose_much(lab, rng)
        checked(lab.path, repairs=True)
        before = files(lab.path)
        recorder = Recorder(lab.path, tmp_path / f"attic {seed}", kill_at=5 * seed)
        with recorder.recording():
            try:
                heal(lab.path, copies=[lab.copy])
                killed = False
            except Killed:
                killed = True
        assert recorder.steps >= 5 * seed or not killed
        after = files(lab.path)
        for name, data in after.items():
            is_same = data == before.get(name) or data == sound.get(name)
            assert is_same or name.endswith((MANIFEST, ".bad")) or ".tmp_" in name, name
        kept = {name for name, data in before.items() if sound.get(name) == data}
        assert all(after[name] == sound[name] for name in kept)
        plan, _ = heal(lab.path, copies=[lab.copy], read_all=True)
        assert not plan.remaining and damage(lab.path) == []
        assert "failed" not in states(lab.path).values()
        if not killed:
            break
        seed += 1
    assert seed > 5


def test_what_was_found_good_is_durable_before_that_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be what a healing has put back that was killed before it could make it durable."""
    synced: list[str] = []
    monkeypatch.setattr(Disk, "sync_file_system", lambda disk, path: synced.append(path))
    plan, _ = heal(lab.path, read_all=True)
    assert not plan.damages and synced == [str(lab.path)]
