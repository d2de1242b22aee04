"""Namespaces are made, removed and moved with what is in them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from archiver.core.disk import Disk
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import Locked, NotFound, Skipped, UsageError
from archiver.store import labels
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.namespaces import check_name, create, delete_levels, move, plan_delete, plan_move
from archiver.store.removal import remove
from archiver.store.store import Store
from tests.golden_store import KEY, unpack
from tests.random_trees import build_plain
from tests.stores import Heard, damage, every_snapshot, listing, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

START = 1_700_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 2, files=5)
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def put(path: Path, source: Path, namespace: str, when: int, id: str = "x") -> SnapshotRef:
    return save(path, source, group=GroupRef(namespace, "host", id), time=when).snapshot


def names(path: Path) -> list[str]:
    with Store.open(path) as store:
        assert store.database is not None and store.database.check() == []
        found = [str(ref) for ref in every_snapshot(store)]
        assert set(store.database.stamps()) == set(found)
    assert damage(path) == []
    return [f"{name.rsplit('/', 1)[0]} {int(name[-3:-1])}" for name in found]  # the seconds


def test_create_and_list(path: Path) -> None:
    with Store.open(path) as store:
        create(store, "a")
        create(store, "a/b")
        assert list(store.namespaces()) == ["", "a", "a/b"]
        with pytest.raises(UsageError, match="exists already"):
            create(store, "a")
        with pytest.raises(NotFound, match="no namespace c"):
            create(store, "c/d")
    assert (path / "ns/a/ns/b").is_dir()


@pytest.mark.parametrize("text", ["", "/", "..", "a//b", "a/b/c/d/e/f/g/h", ".hidden", "x" * 33, "ä", "a b"])
def test_names_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        check_name(text)
    assert check_name("/a/b/") == "a/b"


def test_delete_empty_levels(path: Path) -> None:
    """With the directories that older snapshots have left."""
    with Store.open(path) as store:
        for name in ("a", "a/b", "a/c", "d"):
            create(store, name)
        (path / "ns/a/ns/b/host").mkdir()
        assert plan_delete(store, "a", with_groups=False).items == ()
        assert delete_levels(store, "a") == ["a/c", "a/b", "a"]
        assert list(store.namespaces()) == ["", "d"]
        assert delete_levels(store, "d") == ["d"]
        with pytest.raises(NotFound):
            plan_delete(store, "d", with_groups=False)
    assert not (path / "ns").exists()


def test_delete_with_groups(path: Path, source: Path) -> None:
    """What is protected stays, and the namespaces it is in."""
    put(path, source, "a", START)
    kept = put(path, source, "a/b", START)
    put(path, source, "a/c", START)
    (path / kept.path / ".protected").touch()
    with Store.open(path) as store:
        with pytest.raises(UsageError, match="has 3 groups"):
            plan_delete(store, "a", with_groups=False)
        plan = plan_delete(store, "a", with_groups=True)
        assert plan.protected == [kept]
        assert len(remove(store, plan).removed) == 2
        assert delete_levels(store, "a") == ["a/c"]
        assert list(store.namespaces()) == ["", "a", "a/b"]
    assert names(path) == ["ns/a/ns/b/host/x 20"]


def test_delete_leaves_what_is_not_the_stores(path: Path) -> None:
    with Store.open(path) as store:
        create(store, "a")
        (path / "ns/a/file").touch()
        assert delete_levels(store, "a") == []
    assert (path / "ns/a/file").exists()


def test_move(path: Path, source: Path, tmp_path: Path) -> None:
    put(path, source, "a", START)
    put(path, source, "a", START + 1)
    put(path, source, "a/b", START)
    with Store.open(path) as store:
        labels.set_owner(store, GroupRef("a", "host", "x"), "joe@pbs")
        labels.set_group_note(store, GroupRef("a", "host", "x"), "about x")
        create(store, "c")
        before = listing(path)
        plan = plan_move(store, "a", "c/d")
        assert plan.levels == ("c/d", "c/d/b") and not any(each.merges for each in plan.moves)
        assert listing(path) == before
        assert [each.problem for each in move(store, plan)] == [None, None]
        moved = GroupRef("c/d", "host", "x")
        assert (store.owner(moved), store.group_note(moved)) == ("joe@pbs", "about x")
        assert list(store.namespaces()) == ["", "c", "c/d", "c/d/b"]
    assert names(path) == [
        "ns/c/ns/d/host/x 20",
        "ns/c/ns/d/host/x 21",
        "ns/c/ns/d/ns/b/host/x 20",
    ]
    assert restored_differences(path, SnapshotRef(moved, START), source, tmp_path / "out") == []


def test_what_a_killed_move_has_made_is_durable_before_snapshots_follow(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the target, above all, which is there and so is not written again."""
    put(path, source, "a", START)
    steps: list[str] = []
    synced, renamed = Disk.sync_file_system, Disk.rename_directory

    def sync(disk: Disk, where: str) -> None:
        steps.append("sync")
        synced(disk, where)

    def rename(disk: Disk, old: str, new: str) -> None:
        assert (path / "ns/b/host/x/owner").exists()
        steps.append("rename")
        renamed(disk, old, new)

    monkeypatch.setattr(Disk, "sync_file_system", sync)
    monkeypatch.setattr(Disk, "rename_directory", rename)
    with Store.open(path) as store:
        move(store, plan_move(store, "a", "b"))
    assert steps[:2] == ["sync", "rename"]


def test_move_of_a_golden_namespace(tmp_path: Path) -> None:
    """Encrypted, of a PBS, with one in it."""
    golden = unpack(tmp_path)
    with Store.open(golden) as store:
        count = len(every_snapshot(store))
        assert {each.problem for each in move(store, plan_move(store, "one", "other"))} == {None}
        assert list(store.namespaces()) == ["", "other", "other/two"]
        assert len(every_snapshot(store)) == count
    assert damage(golden, KEY) == []


def test_merge(path: Path, source: Path) -> None:
    put(path, source, "b", START)
    put(path, source, "a", START + 1)
    put(path, source, "a", START + 2)
    heard = Heard()
    with Store.open(path, listener=heard) as store:
        for name in ("a", "b"):
            labels.set_group_note(store, GroupRef(name, "host", "x"), name)
        (planned,) = plan_move(store, "a", "b").moves
        assert planned.merges and planned.problem is None
        move(store, plan_move(store, "a", "b"))
        assert store.group_note(GroupRef("b", "host", "x")) == "b"
    assert any("keeps its own notes" in text for text in heard.notices)
    assert names(path) == ["ns/b/host/x 20", "ns/b/host/x 21", "ns/b/host/x 22"]


@pytest.mark.parametrize("reason", ["owner", "time"])
def test_what_cannot_be_merged_stays(path: Path, source: Path, reason: str) -> None:
    """The other groups move."""
    put(path, source, "b", START + (5 if reason == "time" else 0))
    put(path, source, "a", START + 1)
    put(path, source, "a", START + 1, id="y")
    with Store.open(path) as store:
        if reason == "owner":
            labels.set_owner(store, GroupRef("b", "host", "x"), "joe@pbs")
        first, second = move(store, plan_move(store, "a", "b"))
    assert first.problem is not None and second.problem is None
    assert ("another owner" if reason == "owner" else "not older") in first.problem
    assert "ns/a/host/x 21" in names(path) and "ns/b/host/y 21" in names(path)


def test_moves_that_cannot_be(path: Path) -> None:
    with Store.open(path) as store:
        for name in ("a", "a/b", "a/b/c"):
            create(store, name)
        for target, kind in (
            ("a", UsageError),
            ("a/x", UsageError),
            ("absent/x", NotFound),
            ("x" * 33, UsageError),
        ):
            with pytest.raises(kind):
                plan_move(store, "a", target)
        with pytest.raises(NotFound):
            plan_move(store, "absent", "z")
        deep = ""
        for name in "pqrstu":
            deep = f"{deep}/{name}".strip("/")
            create(store, deep)
        with pytest.raises(UsageError, match="cannot be moved"):
            plan_move(store, "a", f"{deep}/v")  # a/b/c would be at depth 9


def test_group_that_is_in_use_stays(path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_PATIENCE", 0.1)
    ref = put(path, source, "a", START)
    with Store.open(path) as store:
        with store.held(ref):
            (told,) = move(store, plan_move(store, "a", "b"))
        assert told.problem is not None and "in use" in told.problem
        with DirectoryLock(str(path / ref.group.path)):
            (told,) = move(store, plan_move(store, "a", "b"))
        assert told.problem is not None and "locked" in told.problem
        (told,) = move(store, plan_move(store, "a", "b"))
        assert told.problem is None
    assert names(path) == ["ns/b/host/x 20"]


@pytest.mark.parametrize("start", [0, 1])
def test_no_move_beside_a_gc(path: Path, source: Path, start: int) -> None:
    """Of either kind, ours and a PBS's; writers do not matter."""
    put(path, source, "a", START)
    before = names(path)
    fd = os.open(path / ".lock", os.O_RDWR)
    try:
        assert lock_range(fd, start, 0, exclusive=True)
        with Store.open(path) as store, pytest.raises(Locked, match="garbage collection"):
            move(store, plan_move(store, "a", "b"))
        assert names(path) == before
        assert lock_range(fd, 0, 0, exclusive=False)
        with Store.open(path) as store:
            move(store, plan_move(store, "a", "b"))
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)
        os.close(fd)
    assert names(path) == ["ns/b/host/x 20"]


def test_symlinks_are_not_followed(path: Path, source: Path, tmp_path: Path) -> None:
    ref = put(path, source, "a", START)
    (path / "ns/a").rename(tmp_path / "outside")
    (path / "ns/a").symlink_to(tmp_path / "outside")
    before = listing(tmp_path / "outside")
    with Store.open(path) as store:
        for work in (lambda: delete_levels(store, "a"), lambda: move(store, plan_move(store, "a", "b"))):
            with pytest.raises(Skipped, match="symlink"):
                work()
        assert remove(store, plan_delete(store, "a", with_groups=True)).removed == []
    assert listing(tmp_path / "outside") == before
    assert ref.path.startswith("ns/a/")
