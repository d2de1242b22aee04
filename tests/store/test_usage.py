"""du: what it says would be freed is what forget and gc free."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from archiver.errors import ArchiverError, Damaged, NotFound
from archiver.store import usage as module
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import plan_forget, plan_forget_groups, remove
from archiver.store.store import Store
from archiver.store.usage import Named, StoreUsage, named, usage
from tests.random_trees import build_plain, mutate, noise
from tests.store.collecting import gc
from tests.stores import GROUP, KEY, chunk_files, make_store, save

pytestmark = pytest.mark.in_memory

OTHER = GroupRef("attic", "host", "other")
DAY = 86400
START = 1_700_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two groups in two namespaces, of trees that share contents with each other and with themselves."""
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    build_plain(tree, 1, files=30, max_size=200_000)
    (path / "ns/attic").mkdir(parents=True)
    for number in range(4):
        save(path, tree, time=START + number * DAY)
        mutate(tree, number, 4)
        (tree / f"new-{number}").write_bytes(noise(number, 150_000))
        if number % 2:
            save(path, tree, group=OTHER, time=START + number * DAY)
    return path


def used(path: Path, *texts: str) -> StoreUsage:
    with Store.open(path) as store:
        return usage(store, named(store, texts))


def everything(path: Path) -> list[str]:
    with Store.open(path) as store:
        return [str(name) for name in (*named(store, []), *store.snapshots())]


def freed(path: Path, names: list[Named]) -> int:
    """What really comes back."""
    snapshots = [str(name) for name in names if isinstance(name, SnapshotRef)]
    groups = [str(name) for name in names if isinstance(name, GroupRef)]
    with Store.open(path) as store:
        remove(store, plan_forget(store, snapshots))
        remove(store, plan_forget_groups(store, groups))
    return gc(path, mode="immediate").removed_bytes


def file_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in chunk_files(path))


@pytest.mark.parametrize(("seed", "at_once"), [(1, 1 << 20), (2, 7)])
def test_what_is_freed(path: Path, seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in a random order; some two at once. Ranges of numbers give the same."""
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    monkeypatch.setattr(module, "_PIECE", max(at_once // 3, 1))
    rng = random.Random(seed)
    while names := everything(path):
        before = used(path, *names)
        assert before.unused == 0 and before.stored == file_bytes(path) == before.together.freed
        chosen = rng.sample(names, min(len(names), rng.choice((1, 1, 2))))
        told = used(path, *chosen)
        alone = dict(before.items)
        assert all(usage.freed == alone[name].freed for name, usage in told.items)
        if len(chosen) == 1:
            assert told.together == told.items[0][1]
        assert freed(path, [name for name, _ in told.items]) == told.together.freed
    assert chunk_files(path) == []


def test_sums(path: Path) -> None:
    """Each chunk is counted once in what a snapshot, a group and the store take."""
    found = dict(used(path, *everything(path)).items)
    snapshots = [name for name in found if isinstance(name, SnapshotRef)]
    for group in (GROUP, OTHER):
        of_group = [found[name] for name in snapshots if name.group == group]
        assert found[group].snapshots == len(of_group)
        assert found[group].contents == sum(usage.contents for usage in of_group) > 0
        assert max(usage.stored for usage in of_group) <= found[group].stored < sum(usage.stored for usage in of_group)
        assert sum(usage.freed for usage in of_group) <= found[group].freed < found[group].stored
    assert all(0 <= usage.freed < usage.stored for usage in found.values())


def test_what_nobody_needs(path: Path) -> None:
    before = used(path)
    newest = everything(path)[2]
    told = used(path, newest)
    with Store.open(path) as store:
        remove(store, plan_forget(store, [newest]))
    after = used(path)
    assert after.unused == told.together.freed > 0
    assert after.unused + after.stored == before.stored


def test_an_interrupted_backup_needs_its_chunks(path: Path, tmp_path: Path) -> None:
    """They are freed neither by forget nor in what is told."""
    last = everything(path)[2]
    assert used(path, last).together.freed > 0
    with Store.open(path) as store, store.session() as session:
        reference = store.find(last)
        for file in (path / reference.path).glob("*.didx"):
            (Path(session.snapshot_path) / file.name).write_bytes(file.read_bytes())
        session.resumable(b"{}")
    assert used(path, last).together.freed == 0
    assert freed(path, [reference]) == 0


def test_encrypted_needs_no_key(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store")
    build_plain(tmp_path / "tree", 1, files=5)
    saved = save(path, tmp_path / "tree", crypt=KEY)
    told = used(path, str(saved.snapshot))
    assert told.together.freed == file_bytes(path) == freed(path, [saved.snapshot])


def test_an_unfinished_snapshot_frees_too(path: Path) -> None:
    refs = everything(path)[2:]
    (path / refs[0] / "index.json.blob").unlink()
    told = used(path, refs[0])
    assert told.items[0][1].contents == 0 and told.together.freed > 0
    assert freed(path, [told.items[0][0]]) == told.together.freed


def test_an_index_that_cannot_be_read(path: Path) -> None:
    ref = everything(path)[2]
    next((path / ref).glob("*.didx")).write_bytes(b"garbage")
    with Store.open(path) as store:
        store.rebuild_database()
        with pytest.raises(Damaged, match="cannot be read, so nobody knows which chunks it shares"):
            usage(store, named(store, []))


def test_what_is_not_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("host/nobody", "host/test/2001-01-01T00:00:00Z"):
        with pytest.raises(NotFound):
            used(path, text)
    with Store.open(make_store(path.parent / "empty")) as store:
        assert usage(store, named(store, [])).as_json()["items"] == []
    monkeypatch.setenv("ARCHIVER_DB_DIR", "/proc/nowhere")
    with pytest.raises(ArchiverError, match="there is none"):
        used(path)
